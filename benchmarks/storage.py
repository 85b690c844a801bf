"""How large feature files are, and how fast they are written and read, with each of HDF5's filters.

python -m benchmarks.storage workspace/artifacts/features/*/features.h5
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline_lib.compute.cores import num_cores
from pipeline_lib.features import FeatureReader

MOST_CLIPS = 100
REPEATS = 3


def main() -> None:
    """Copy some clips of feature files with each filter, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    with FeatureReader(options.files) as reader:
        clips_NTKKD = reader.load(reader.clips[:MOST_CLIPS]).numpy()
    num_frames = clips_NTKKD.shape[0] * clips_NTKKD.shape[1]
    print(f"{len(clips_NTKKD)} clips of {clips_NTKKD[0].nbytes / 1e6:.2f} MB, {np.mean(clips_NTKKD == 0):.0%} zeros\n")
    print("| filter | MB a clip | written, frames/s | read, frames/s |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in filters().items():
            path = Path(folder) / "features.h5"
            written = min(_write(path, clips_NTKKD, settings) for _ in range(REPEATS))
            read = min(_read(path, clips_NTKKD) for _ in range(REPEATS))
            size = path.stat().st_size / len(clips_NTKKD) / 1e6
            print(f"| {name} | {size:.2f} | {num_frames / written:,.0f} | {num_frames / read:,.0f} |", flush=True)
    print(f"\nbest of {REPEATS}; writing ends when the disk has it, reading is from memory; one thread; {num_cores()} cores")


def filters() -> dict[str, Mapping[str, Any]]:
    """Return the filters that are there: h5py's own, and those of hdf5plugin if it is installed."""
    found: dict[str, Mapping[str, Any]] = {
        "none": {},
        "lzf": {"compression": "lzf"},
        "shuffle, lzf": {"compression": "lzf", "shuffle": True},
        "gzip 1": {"compression": "gzip", "compression_opts": 1},
        "shuffle, gzip 1": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    }
    try:
        plugin = importlib.import_module("hdf5plugin")
    except ImportError:
        return found
    return found | {
        "bitshuffle, LZ4 (hdf5plugin)": plugin.Bitshuffle(),
        "Blosc2 LZ4, shuffle (hdf5plugin)": plugin.Blosc2(cname="lz4", clevel=1, filters=plugin.Blosc2.SHUFFLE),
        "Blosc2 LZ4, bitshuffle (hdf5plugin)": plugin.Blosc2(cname="lz4", clevel=1, filters=plugin.Blosc2.BITSHUFFLE),
        "Blosc2 Zstd 1, shuffle (hdf5plugin)": plugin.Blosc2(cname="zstd", clevel=1, filters=plugin.Blosc2.SHUFFLE),
    }


def _write(path: Path, clips_NTKKD: np.ndarray, settings: Mapping[str, Any]) -> float:
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    with h5py.File(path, "w", libver="latest") as file:
        chunks = (1, *clips_NTKKD.shape[1:])
        dataset = file.create_dataset("features", clips_NTKKD.shape, np.float16, chunks=chunks, **settings)
        for index, clip_TKKD in enumerate(clips_NTKKD):
            if settings:
                dataset[index] = clip_TKKD
            else:
                dataset.id.write_direct_chunk((index, 0, 0, 0, 0), clip_TKKD)  # as the features stage does
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return time.perf_counter() - started


def _read(path: Path, clips_NTKKD: np.ndarray) -> float:
    order = np.random.default_rng(0).permutation(len(clips_NTKKD))
    clip_TKKD = np.empty(clips_NTKKD.shape[1:], np.float16)
    started = time.perf_counter()
    with h5py.File(path, "r") as file:
        for index in order:
            file["features"].read_direct(clip_TKKD, np.s_[index])
            assert clip_TKKD[-1, -1, -1, -1] == clips_NTKKD[index, -1, -1, -1, -1]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
