"""Decode several videos ahead of their use in parallel, and process their frames in the same threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np

from pipeline_lib.errors import UserError
from pipeline_lib.video.decoders import RGB, DecoderDiedError, Shape, Wanted, empty_array, read_images
from pipeline_lib.video.ffmpeg import VideoError

LOOKAHEAD = 4
"""Default maximum number of items queued per worker; bounds memory."""

Video = tuple[str, Path]
"""Name and path."""
Item = TypeVar("Item")


class _Output(Generic[Item]):
    """What a worker makes of a video, in order, with the worker's slot that each item takes; last an error or None."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self.queue: SimpleQueue[tuple[Item, threading.Semaphore] | Exception | None] = SimpleQueue()

    def items(self) -> Iterator[Item]:
        """Yield the video's items; errors of its decoding and processing are raised here."""
        while (made := self.queue.get()) is not None:
            if isinstance(made, Exception):
                raise made
            item, free_slots = made
            free_slots.release()
            yield item


class _Worker(Generic[Item]):
    """A thread that decodes one video after another: always the first that no other worker has taken.

    It waits only for the reader, who reads videos in the order in which they are taken, so workers cannot deadlock.
    """

    def __init__(self, outputs: Iterator[_Output[Item]], read: Callable[[Video], Iterator[Item]], lookahead: int) -> None:
        self._outputs, self._read = outputs, read
        self._free_slots = threading.Semaphore(lookahead)
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to stop before its next item."""
        self._is_stopped = True
        self._free_slots.release()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _run(self) -> None:
        for output in self._outputs:
            error = None
            try:
                self._decode(output)
            except Exception as raised:  # re-raised in `items`
                error = raised
            if self._is_stopped:
                return
            output.queue.put(error)

    def _decode(self, output: _Output[Item]) -> None:
        with closing(self._read(output.video)) as items:  # type: ignore[type-var]  # it is a generator
            for item in items:
                self._free_slots.acquire()
                if self._is_stopped:
                    return
                output.queue.put((item, self._free_slots))


def read_ahead(
    videos: Iterable[Video],
    *,
    workers: int = 2,
    lookahead: int = LOOKAHEAD,
    empty: Callable[[Shape], np.ndarray] = empty_array,
    max_side: int | None = None,
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Yield the name and the frames of each video in order, the frames as arrays of several (uint8 RGB, N x H x W x 3).

    See `process_ahead`.
    """

    def frames_of(_: str, images: Iterator[tuple[Wanted, np.ndarray]]) -> Iterator[np.ndarray]:
        return (frames_NHWC for _, frames_NHWC in images)

    return process_ahead(videos, frames_of, workers=workers, lookahead=lookahead, empty=empty, max_side=max_side)


def process_ahead(
    videos: Iterable[Video],
    process: Callable[[str, Iterator[tuple[Wanted, np.ndarray]]], Iterator[Item]],
    *,
    wanted: Sequence[Wanted] = (RGB,),
    workers: int = 2,
    lookahead: int = LOOKAHEAD,
    empty: Callable[[Shape], np.ndarray] = empty_array,
    max_side: int | None = None,
) -> Iterator[tuple[str, Iterator[Item]]]:
    """Yield the name of each video in order, with what `process` makes from its name and its images in a decoding thread.

    Each worker decodes in its own process, and takes the next video when it has ended one. Use the items of a video before
    requesting the next one. For `wanted`, `empty` and `max_side` see `read_images`.

    All workers are busy only if `lookahead` items hold most videos whole, because the end of a longer one is not made until it
    is used.

    Raises:
        UserError: a video cannot be decoded; raised while its items are read.
    """

    def read(video: Video) -> Iterator[Item]:
        name, path = video
        with closing(read_images(path, wanted, empty=empty, max_side=max_side)) as images:  # type: ignore[type-var]  # a generator
            yield from process(name, images)

    outputs: list[_Output[Item]] = [_Output(video) for video in videos]
    next_outputs = iter(outputs)  # shared: a list's iterator gives each item to one thread
    pool = [_Worker(next_outputs, read, lookahead) for _ in range(min(workers, len(outputs)))]
    try:
        for output in outputs:
            name, _ = output.video
            items = _named(name, output.items())
            yield name, items
            deque(items, maxlen=0)  # skip what the caller did not read
    finally:
        for worker in pool:
            worker.stop()
        for worker in pool:
            worker.join()


def _named(name: str, items: Iterator[Item]) -> Iterator[Item]:
    try:
        yield from items
    except DecoderDiedError as error:
        raise UserError(f"{name}: {error.reason}") from None
    except VideoError as error:
        raise UserError(f"{name}: can no longer be decoded ({error.reason}); run with `--refresh subsample`") from None
