"""Prints one table: what the usual way and ours do in a second on this machine's CPU."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.collection import make_shards
from benchmarks.controls import compare_controls, time_hmdb51
from benchmarks.extraction import compare_extraction
from benchmarks.measuring import Comparison, spread
from benchmarks.subsampling import compare_subsampling
from benchmarks.training import compare_training
from pipeline_lib.compute.devices import describe_device

TOOLS = ("torch", "torchvision", "numpy", "h5py", "imageio-ffmpeg")
HEADER = ("work", "unit", "usual way", "ours", "times faster")


def main() -> None:
    """Measure everything and print the table."""
    load = os.getloadavg()[0]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        comparisons = list(_measure(Path(folder)))
    print()
    for line in _table(comparisons):
        print(line)
    print(f"\n{time_hmdb51()}")
    minutes = (time.monotonic() - started) / 60
    print(f"\nlowest – median – highest of {len(comparisons[0].ours)} repeats in turns; {minutes:.1f} minutes in all")
    print(f"{processor()}: {describe_device(torch.device('cpu'))}, {torch.get_num_threads()} threads; load before: {load:.1f}")
    print(f"Python {platform.python_version()}, " + ", ".join(f"{tool} {version(tool)}" for tool in TOOLS))


def _measure(folder: Path) -> Iterator[Comparison]:
    print("rendering videos ...", flush=True)
    shards = make_shards(folder)
    print("subsampling ...", flush=True)
    yield compare_subsampling(folder / "source", folder)
    print("training ...", flush=True)
    yield from compare_training(shards, folder)
    print("feature extraction ...", flush=True)
    yield compare_extraction(shards, folder)
    print("controls ...", flush=True)
    yield compare_controls()


def _table(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    rows = [(row.subject, row.unit, spread(row.usual), spread(row.ours), spread(row.ratios())) for row in comparisons]
    for cells in (HEADER, ("---",) * len(HEADER), *rows):
        yield f"| {' | '.join(cells)} |"


def processor() -> str:
    """Return the processor's name as Linux tells it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
