"""Decode several videos ahead of their use in parallel."""

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
"""Maximum number of decoded arrays queued per worker; bounds memory."""


class _Worker:
    """A thread that decodes its videos one after another into its own bounded queue.

    It waits only for the reader of the queue, who reads videos in order, so workers cannot deadlock.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Iterator[np.ndarray]]) -> None:
        self._paths, self._read = paths, read
        self._free_slots = threading.Semaphore(LOOKAHEAD)
        self._decoded: SimpleQueue[np.ndarray | Exception | None] = SimpleQueue()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield the arrays of the next video; errors of the decoder are raised here."""
        while (item := self._decoded.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self._free_slots.release()
            yield item

    def stop(self) -> None:
        """Ask the thread to stop before its next array."""
        self._is_stopped = True
        self._free_slots.release()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _run(self) -> None:
        for path in self._paths:
            error = None
            try:
                self._decode(path)
            except Exception as raised:  # re-raised in `arrays`
                error = raised
            if self._is_stopped:
                return
            self._decoded.put(error)

    def _decode(self, path: Path) -> None:
        arrays = self._read(path)
        try:
            for frames_NHWC in arrays:
                self._free_slots.acquire()
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
    """Yield the name and the frames of each video in order, the frames as arrays of several (uint8 RGB, N x H x W x 3).

    Of W workers, worker w decodes the videos w, w + W, w + 2 W, ... in its own process. Use the frames of a video before
    requesting the next one. For `empty` and `max_side` see `read_arrays`.

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
            deque(arrays, maxlen=0)  # skip frames that the caller did not read
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
        raise UserError(f"{name}: can no longer be decoded ({error.reason}); run with `--refresh subsample`") from None
