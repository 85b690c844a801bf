"""Decodes several videos ahead of their use, so that the network need not wait for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty as NothingThere
from queue import Full, Queue

import numpy as np

from pipeline_lib.errors import UserError
from pipeline_lib.video.decoders import Shape, empty_array, read_arrays
from pipeline_lib.video.ffmpeg import VideoError

LOOKAHEAD = 4
"""Most arrays of decoded frames that wait per open video; bounds memory whatever a video's length."""

POLL_SECONDS = 0.2

Empty = Callable[[Shape], np.ndarray]


class _VideoQueue:
    """The frames of one video, passed from the thread that reads them to the one that uses them."""

    def __init__(self, path: Path, empty: Empty, stopped: threading.Event) -> None:
        self.path, self.empty = path, empty
        self.stopped = stopped
        self.queue: Queue[np.ndarray | Exception | None] = Queue(LOOKAHEAD)

    def fill(self) -> None:
        """Decode the video into the queue; `None` or an error ends it."""
        arrays = read_arrays(self.path, empty=self.empty)
        try:
            for frames_NHWC in arrays:
                if not self._put(frames_NHWC):
                    return
            self._put(None)
        except Exception as error:  # raised again in the thread that uses the frames
            self._put(error)
        finally:
            arrays.close()  # type: ignore[attr-defined]

    def _put(self, item: np.ndarray | Exception | None) -> bool:
        while not self.stopped.is_set():
            try:
                self.queue.put(item, timeout=POLL_SECONDS)
                return True
            except Full:
                continue
        return False

    def arrays(self) -> Iterator[np.ndarray]:
        while (item := self._get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _get(self) -> np.ndarray | Exception | None:
        while not self.stopped.is_set():
            try:
                return self.queue.get(timeout=POLL_SECONDS)
            except NothingThere:
                continue
        return None


def read_ahead(
    videos: Iterable[tuple[str, Path]], *, threads: int = 2, empty: Empty = empty_array
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Yield each video's name and frames in arrays of several (uint8 RGB, N x H x W x 3, made by `empty`), in order.

    `threads` videos are decoded at once. The frames of one must be used before the next video is asked for.

    Raises:
        UserError: a video cannot be decoded; raised while its frames are read.
    """
    waiting = iter(videos)
    opened: deque[tuple[str, _VideoQueue]] = deque()
    stopped = threading.Event()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:

        def open_next() -> None:
            for name, path in waiting:
                opened.append((name, _VideoQueue(path, empty, stopped)))
                pool.submit(opened[-1][1].fill)
                return

        try:
            for _ in range(threads):
                open_next()
            while opened:
                name, video = opened[0]
                yield name, _named_arrays(name, video)
                opened.popleft()
                open_next()
        finally:
            stopped.set()


def _named_arrays(name: str, video: _VideoQueue) -> Iterator[np.ndarray]:
    try:
        yield from video.arrays()
    except VideoError as error:
        raise UserError(f"{name}: no longer decodes ({error.reason}); run with `--refresh subsample`") from None
