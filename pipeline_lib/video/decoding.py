"""Decodes several videos ahead of their use, so that the network need not wait for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from pipeline_lib.errors import UserError
from pipeline_lib.video.decoders import DecoderDiedError, Shape, empty_array, read_arrays
from pipeline_lib.video.ffmpeg import VideoError

LOOKAHEAD = 4
"""Most arrays of decoded frames that wait per worker; bounds memory whatever a video's length."""


class _Worker:
    """A thread that decodes its videos one after the other into one bounded queue.

    It waits for nobody but the reader of that queue, whose order is the order of use: workers cannot block each other.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Iterator[np.ndarray]]) -> None:
        self._paths, self._read = paths, read
        self._room = threading.Semaphore(LOOKAHEAD)
        self._decoded: SimpleQueue[np.ndarray | Exception | None] = SimpleQueue()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield the arrays of the next video, or raise what decoding it raised."""
        while (item := self._decoded.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self._room.release()
            yield item

    def stop(self) -> None:
        """Have the thread end at its next array."""
        self._is_stopped = True
        self._room.release()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _run(self) -> None:
        for path in self._paths:
            error = None
            try:
                self._decode(path)
            except Exception as raised:  # raised again in the thread that uses the frames
                error = raised
            if self._is_stopped:
                return
            self._decoded.put(error)

    def _decode(self, path: Path) -> None:
        arrays = self._read(path)
        try:
            for frames_NHWC in arrays:
                self._room.acquire()
                if self._is_stopped:
                    return
                self._decoded.put(frames_NHWC)
        finally:
            arrays.close()  # type: ignore[attr-defined]  # it is a generator


def read_ahead(
    videos: Iterable[tuple[str, Path]],
    *,
    workers: int = 2,
    empty: Callable[[Shape], np.ndarray] = empty_array,
    max_side: int | None = None,
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Yield each video's name and frames in arrays of several (uint8 RGB, N x H x W x 3), in order.

    Of W workers, worker w decodes the videos w, w + W, w + 2 W, ..., each in a process of its own. The frames of one video are
    to be used before the next is asked for. For `empty` and `max_side` see `read_arrays`.

    Raises:
        UserError: a video cannot be decoded; raised while its frames are read.
    """
    videos = list(videos)
    read = partial(read_arrays, empty=empty, max_side=max_side)
    pool = [_Worker([path for _, path in videos[first::workers]], read) for first in range(min(workers, len(videos)))]
    try:
        for (name, _), worker in zip(videos, cycle(pool), strict=False):
            arrays = _named_arrays(name, worker.arrays())
            yield name, arrays
            deque(arrays, maxlen=0)  # what is left of it is not the next video's
    finally:
        for worker in pool:
            worker.stop()
        for worker in pool:
            worker.join()


def _named_arrays(name: str, arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        yield from arrays
    except DecoderDiedError as error:
        raise UserError(f"{name}: {error.reason}") from None
    except VideoError as error:
        raise UserError(f"{name}: no longer decodes ({error.reason}); run with `--refresh subsample`") from None
