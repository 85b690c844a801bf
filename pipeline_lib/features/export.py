"""Export the features of one video as a series of steps with their times, to HDF5 or NPZ.

Shape suffixes: N steps of the video, S steps of a clip, B clips, K grid side, D feature channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.streams.steps import valid_steps


def export_video(reader: FeatureReader, clips: pd.DataFrame, destination: Path, *, video: str, pool: bool) -> None:
    """Write the features of a video's clips without their padding to an .h5 or .npz file.

    It has `features` (N x K x K x D in fp16, or with `pool` their means N x D in fp32), `seconds` (N, the time in the middle
    of each step) and the features' provenance: attributes in HDF5, a JSON text called `provenance` in NPZ.

    Args:
        reader: the feature files with the clips.
        clips: the video's clips in order (clip, first_frame, valid_frames).
        destination: path to write: `.h5` or `.npz`.
        video: the video's path or address, stored with the provenance.
        pool: whether to average each map.
    """
    step_frames = np.array(reader.step_frames)
    steps_B = valid_steps(reader.step_frames, clips["valid_frames"].to_numpy())
    frames = [first + step_frames[:steps] for first, steps in zip(clips["first_frame"], steps_B, strict=True)]
    provenance = reader.provenance | {"axes": "step,channel" if pool else "step,row,column,channel", "video": video}
    seconds_N = np.concatenate(frames) / provenance["fps"]
    shape = (len(seconds_N), *(reader.shape[-1:] if pool else reader.shape[2:]))
    maps = _maps(reader, clips["clip"], steps_B)
    write = _write_npz if destination.suffix == ".npz" else _write_hdf5
    write(destination, (_pooled(map_SKKD) if pool else map_SKKD for map_SKKD in maps), shape, seconds_N, provenance)


def _maps(reader: FeatureReader, clips: pd.Series, steps_B: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the features_SKKD of each clip's valid steps."""
    for clip, steps in zip(clips, steps_B, strict=True):
        yield reader.load([clip])[0, :steps].numpy()


def _pooled(features_SKKD: np.ndarray) -> np.ndarray:
    return features_SKKD.mean(axis=(1, 2), dtype=np.float32)


def _write_hdf5(
    path: Path, arrays: Iterator[np.ndarray], shape: tuple[int, ...], seconds_N: np.ndarray, provenance: dict[str, Any]
) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        _fill(file.create_dataset("features", shape, _dtype(shape)), arrays)
        file.create_dataset("seconds", data=seconds_N)
        for name, value in provenance.items():
            file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _write_npz(
    path: Path, arrays: Iterator[np.ndarray], shape: tuple[int, ...], seconds_N: np.ndarray, provenance: dict[str, Any]
) -> None:
    features = np.empty(shape, _dtype(shape))
    _fill(features, arrays)
    np.savez(path, features=features, seconds=seconds_N, provenance=json.dumps(provenance, sort_keys=True))


def _dtype(shape: tuple[int, ...]) -> type[np.floating[Any]]:
    """Return the type of pooled vectors (N x D) or maps."""
    return np.float32 if len(shape) == 2 else np.float16


def _fill(features: np.ndarray | h5py.Dataset, arrays: Iterator[np.ndarray]) -> None:
    start = 0
    for array in arrays:
        features[start : start + len(array)] = array
        start += len(array)
