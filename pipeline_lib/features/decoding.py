"""Decodes several videos ahead of their use, so that the network need not wait for ffmpeg."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Full, Queue

import numpy as np

from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import read_frames

LOOKAHEAD_FRAMES = 32
"""Most decoded frames that wait per open video; bounds memory whatever a video's length."""

POLL_SECONDS = 0.2


class _VideoQueue:
    """The frames of one video, passed from the thread that decodes it to the one that uses them."""

    def __init__(self, path: Path, stopped: threading.Event) -> None:
        self.path = path
        self.stopped = stopped
        self.queue: Queue[np.ndarray | Exception | None] = Queue(LOOKAHEAD_FRAMES)

    def fill(self) -> None:
        """Decode the video into the queue; `None` or an error ends it."""
        frames = read_frames(self.path)
        try:
            for frame in frames:
                if not self._put(frame):
                    return
            self._put(None)
        except Exception as error:  # raised again in the thread that uses the frames
            self._put(error)
        finally:
            frames.close()  # type: ignore[attr-defined]

    def _put(self, item: np.ndarray | Exception | None) -> bool:
        while not self.stopped.is_set():
            try:
                self.queue.put(item, timeout=POLL_SECONDS)
                return True
            except Full:
                continue
        return False

    def frames(self) -> Iterator[np.ndarray]:
        while (item := self._get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _get(self) -> np.ndarray | Exception | None:
        while not self.stopped.is_set():
            try:
                return self.queue.get(timeout=POLL_SECONDS)
            except Empty:
                continue
        return None


def read_ahead(videos: Iterable[tuple[str, Path]], *, threads: int = 2) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Yield each video's name and frames (uint8 RGB, H x W x 3), in order, decoding `threads` videos at once.

    The frames of one video must be used before the next video is asked for.

    Raises:
        ValueError: a video cannot be decoded; raised while its frames are read.
    """
    waiting = iter(videos)
    opened: deque[tuple[str, _VideoQueue]] = deque()
    stopped = threading.Event()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:

        def open_next() -> None:
            for name, path in waiting:
                opened.append((name, _VideoQueue(path, stopped)))
                pool.submit(opened[-1][1].fill)
                return

        try:
            for _ in range(threads):
                open_next()
            while opened:
                name, video = opened[0]
                yield name, _named_frames(name, video)
                opened.popleft()
                open_next()
        finally:
            stopped.set()


def _named_frames(name: str, video: _VideoQueue) -> Iterator[np.ndarray]:
    try:
        yield from video.frames()
    except VideoError as error:
        raise ValueError(f"{name}: no longer decodes ({error.reason}); run with `--refresh subsample`") from None
