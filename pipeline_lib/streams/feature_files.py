"""Read and write feature files: one self-describing HDF5 file per shard, one chunk per clip.

They are not compressed, because reading would be slower, unless the network or the disk is the limit
(docs/decisions/2026-11-29-feature-storage.md).
Shape suffixes: N clips (steps in `FeatureWriter.append`), S steps of a clip, K grid side, D feature channels.
"""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline_lib.errors import UserError
from pipeline_lib.params import Compression
from pipeline_lib.streams.clip_compression import LZ4_FILTER, compress, decompress

logger = logging.getLogger(__name__)

AXES = "clip,frame,row,column,channel"
SHARED_ATTRIBUTES = ("backbone", "weights", "weights_sha256", "preprocessing", "fps")
"""Attributes that must agree between files read together."""

READ_THREADS = 8
"""Threads that read clips; a single one cannot saturate a disk or the page cache."""

STRINGS = ("clip", "video", "class_name")
NUMBERS = ("first_frame", "valid_frames")
STEP_FRAMES = "step_frames"
"""Data set with the frame in the middle of each step of a clip; left out where steps are frames."""
HANDLES = 2
"""Open files that a reader holds for each of its own: HDF5's and the one that is read directly."""
FILES_OPEN_OTHERWISE = 512


class FeatureWriter:
    """Context manager that writes a table of clips, in order, from the features of their steps.

    If the block raises, the incomplete file is deleted.
    """

    def __init__(
        self,
        path: Path,
        clips: pd.DataFrame,
        *,
        frame_shape: tuple[int, int, int],
        frames: int,
        step_frames: Sequence[int] | None = None,
        compression: Compression = "none",
    ) -> None:
        """Create the file for a table of clips.

        Args:
            path: file to write.
            clips: columns clip, video, class_name, first_frame, valid_frames.
            frame_shape: shape (K, K, D) of a step.
            frames: frames per clip.
            step_frames: the frame in the middle of each step, if every clip comes with all steps. By default a step is a
                frame, and only valid frames come: the last one is repeated as padding.
            compression: how clips are stored.
        """
        self.path = path
        self.is_compressed = compression == "lz4"
        self.clip_SKKD = np.empty((frames if step_frames is None else len(step_frames), *frame_shape), np.float16)
        self.given_steps = clips["valid_frames"].tolist() if step_frames is None else [len(step_frames)] * len(clips)
        self.bytes_in_memory = len(clips) * self.clip_SKKD.nbytes
        """Size of the features when they are read, whatever they take on disk."""
        self.num_filled = 0
        self.num_written = 0
        self.file = h5py.File(path, "w", libver="latest")
        self.dataset = self._create_features(len(clips))
        for name in STRINGS:
            self.file.create_dataset(name, data=clips[name].tolist(), dtype=h5py.string_dtype(), shape=len(clips))
        for name in NUMBERS:
            self.file.create_dataset(name, data=clips[name].to_numpy(np.int32))
        if step_frames is not None and [*step_frames] != [*range(frames)]:
            self.file.create_dataset(STEP_FRAMES, data=np.array(step_frames, np.int32))

    def _create_features(self, num_clips: int) -> h5py.Dataset:
        shape = self.clip_SKKD.shape
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if self.is_compressed:
            properties.set_filter(LZ4_FILTER, h5py.h5z.FLAG_OPTIONAL)  # HDF5 need not have it
        # A chunk may not be larger than a fixed axis; maxshape allows shards without clips.
        dataset = self.file.create_dataset(
            "features",
            (num_clips, *shape),
            np.float16,
            chunks=(1, *shape),
            maxshape=(None, *shape),
            track_times=False,
            dcpl=properties,
        )
        dataset.attrs["axes"] = AXES
        return dataset

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Store provenance as attributes of the file; dictionaries are stored as JSON."""
        for name, value in {"axes": AXES, **attributes}.items():
            self.file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value

    def append(self, features_NKKD: np.ndarray) -> None:
        """Append the features of the next steps; each clip is written when its steps are complete."""
        while len(features_NKKD):
            assert self.num_written < len(self.given_steps), "more steps than the clips hold"
            missing = self.given_steps[self.num_written] - self.num_filled
            next_NKKD, features_NKKD = features_NKKD[:missing], features_NKKD[missing:]
            self.clip_SKKD[self.num_filled : self.num_filled + len(next_NKKD)] = next_NKKD
            self.num_filled += len(next_NKKD)
            if len(next_NKKD) == missing:
                self._write_clip()

    def _write_clip(self) -> None:
        self.clip_SKKD[self.num_filled :] = self.clip_SKKD[self.num_filled - 1]
        chunk = compress(self.clip_SKKD) if self.is_compressed else self.clip_SKKD  # a clip is a chunk
        self.dataset.id.write_direct_chunk((self.num_written, 0, 0, 0, 0), chunk)
        self.num_written += 1
        self.num_filled = 0

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.file.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)
            return
        assert self.num_written == len(self.given_steps), "fewer steps than the clips hold"


@dataclass(frozen=True)
class _Location:
    """Where a clip is: the index of its file, its first byte there, and how many."""

    file_index: int
    offset: int
    num_bytes: int
    is_compressed: bool


class FeatureReader:
    """Context manager that reads clips by id from several files.

    Files are opened on first use. A reader can be pickled and sent to another process, where it opens them again.
    HDF5 only locates the clips; threads read their bytes directly, since HDF5 serialises reads.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise UserError("no feature files to read; run the features stage first")
        self.paths = list(paths)
        _allow_open_files(FILES_OPEN_OTHERWISE + HANDLES * len(self.paths))
        self._reset()

    def __enter__(self) -> FeatureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Drop open handles; HDF5 files must be opened again in each process."""
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the reader with its files closed."""
        self.paths = state["paths"]
        self._reset()

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        if self._stack is not None:
            self._stack.close()
        self._reset()

    def _reset(self) -> None:
        self._stack: ExitStack | None = None
        self._files: list[h5py.File] = []
        self._locations: dict[str, _Location] = {}

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape (N, S, K, K, D) of the features of all files."""
        files = self._open_files()
        return (len(self._locations), *files[0]["features"].shape[1:])

    @property
    def step_frames(self) -> tuple[int, ...]:
        """The frame in the middle of each step of a clip."""
        return _step_frames(self._open_files()[0])

    @property
    def clips(self) -> list[str]:
        """Ids of all clips, file by file."""
        self._open_files()
        return list(self._locations)

    @property
    def provenance(self) -> dict[str, Any]:
        """Backbone, weights, preprocessing, precision, frame rate and tool versions of the features."""
        files = self._open_files()
        provenance = {name: _plain(value) for name, value in files[0].attrs.items()}
        provenance |= {name: json.loads(provenance[name]) for name in ("preprocessing", "tool_versions")}
        provenance["precision"] = ", ".join(sorted({_plain(file.attrs["precision"]) for file in files}))
        return provenance

    def load(self, clips: Sequence[str], *, pinned: bool = False) -> Tensor:
        """Return features_NSKKD (float16, on the CPU) of the given clips, in the given order.

        With `pinned` they are in page-locked memory, for asynchronous copies to a GPU.

        Raises:
            UserError: a clip is in none of the files, or a file is damaged.
        """
        self._open_files()
        unknown = [clip for clip in clips if clip not in self._locations]
        if unknown:
            raise UserError(
                f"{len(unknown)} clips have no features ({unknown[0]}, ...): "
                "features and clips are from different runs; run with `--refresh features`"
            )
        features_NSKKD = torch.empty((len(clips), *self.shape[1:]), dtype=torch.float16, pin_memory=pinned)
        for _ in self._pool.map(self._read, map(self._locations.__getitem__, clips), features_NSKKD.numpy()):
            pass  # iterate to raise the threads' errors
        return features_NSKKD

    def _read(self, location: _Location, clip_SKKD: np.ndarray) -> None:
        """Fill the array with the clip at a location."""
        if not location.is_compressed:
            self._read_bytes(location, clip_SKKD.reshape(-1).view(np.uint8).data)
            return
        chunk = bytearray(location.num_bytes)
        self._read_bytes(location, memoryview(chunk))
        try:
            decompress(chunk, clip_SKKD)
        except OSError as error:
            raise _damaged(self.paths[location.file_index], error) from None

    def _read_bytes(self, location: _Location, rest: memoryview) -> None:
        offset = location.offset
        while rest:  # a read may return fewer bytes than requested
            num_read = os.preadv(self._descriptors[location.file_index], [rest], offset)
            if num_read == 0:
                raise _damaged(self.paths[location.file_index], OSError("it ends within a clip"))
            rest, offset = rest[num_read:], offset + num_read

    def _open_files(self) -> list[h5py.File]:
        if self._stack is None:
            with ExitStack() as stack:
                self._files = [stack.enter_context(_open(path)) for path in self.paths]
                self._locations = self._locate_clips()
                self._check_consistent()
                self._descriptors = [stack.enter_context(path.open("rb")).fileno() for path in self.paths]
                self._pool = stack.enter_context(ThreadPoolExecutor(READ_THREADS, thread_name_prefix="features"))
                self._stack = stack.pop_all()
        return self._files

    def _locate_clips(self) -> dict[str, _Location]:
        """Return the location of each clip."""
        locations: dict[str, _Location] = {}
        for file_index, (path, file) in enumerate(zip(self.paths, self._files, strict=True)):
            found = _locate(path, file["features"], file_index)
            for clip, location in zip(file["clip"].asstr()[:], found, strict=True):
                if clip in locations:
                    raise UserError(f"{path}: clip {clip} is also in {self.paths[locations[clip].file_index]}")
                locations[clip] = location
        return locations

    def _check_consistent(self) -> None:
        first, first_path = self._files[0], self.paths[0]
        for path, file in zip(self.paths, self._files, strict=True):
            differing = [name for name in SHARED_ATTRIBUTES if _plain(file.attrs[name]) != _plain(first.attrs[name])]
            if file["features"].shape[1:] != first["features"].shape[1:]:
                differing.append("shape")
            if _step_frames(file) != _step_frames(first):
                differing.append(STEP_FRAMES)
            if differing:
                raise UserError(f"{path} and {first_path} differ in {', '.join(differing)}; run with `--refresh features`")


def _allow_open_files(number: int) -> None:
    """Raise this process's limit of open files to `number`, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def _open(path: Path) -> h5py.File:
    """Open a feature file for reading and check its format.

    Raises:
        UserError: missing, damaged, or not a feature file.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _damaged(path, error) from None
    missing = [name for name in ("features", *STRINGS, *NUMBERS) if name not in file]
    missing += [name for name in (*SHARED_ATTRIBUTES, "precision", "tool_versions") if name not in file.attrs]
    axes = _plain(file.attrs.get("axes", "none"))
    if missing or axes != AXES:
        file.close()
        reason = f"it lacks {', '.join(missing)}" if missing else f"its axes are {axes}, not {AXES}"
        raise UserError(f"{path} is not a feature file of this pipeline: {reason}; run with `--refresh features`")
    return file


def _locate(path: Path, features: h5py.Dataset, file_index: int) -> list[_Location]:
    """Return each clip's location.

    Raises:
        UserError: clips are missing, or not stored as `FeatureWriter` stores them.
    """
    locations: dict[int, _Location] = {}
    clip_bytes = features.dtype.itemsize * int(np.prod(features.shape[1:]))
    filters = _filters(features)

    def note(chunk: Any) -> None:
        if filters or chunk.size == clip_bytes:
            locations[chunk.chunk_offset[0]] = _Location(file_index, chunk.byte_offset, chunk.size, bool(filters))

    features.id.chunk_iter(note)
    if features.dtype != np.float16 or filters not in ([], [LZ4_FILTER]) or len(locations) < len(features):
        raise UserError(f"{path}: clips are missing, or compressed in another way than LZ4; run with `--refresh features`")
    return [locations[row] for row in range(len(features))]


def _filters(features: h5py.Dataset) -> list[int]:
    """Return the numbers of a data set's HDF5 filters."""
    properties = features.id.get_create_plist()
    return [properties.get_filter(position)[0] for position in range(properties.get_nfilters())]


def _damaged(path: Path, error: OSError) -> UserError:
    if "unable to lock" in str(error) or "No locks available" in str(error):
        return UserError(f"{path} cannot be locked ({error}); on a network drive set HDF5_USE_FILE_LOCKING=FALSE")
    reason = "no such file" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
    return UserError(f"{path}: {reason}; recreate it with `--refresh features`")


def _step_frames(file: h5py.File) -> tuple[int, ...]:
    if STEP_FRAMES in file:
        return tuple(file[STEP_FRAMES][:].tolist())
    return tuple(range(file["features"].shape[1]))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
