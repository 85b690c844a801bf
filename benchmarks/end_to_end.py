"""Times `har run` from archive to report: a row a stage, the critical path, and what the machine did meanwhile.

`python -m benchmarks.end_to_end WORKSPACE PARAMS.yaml [--set section.key=value]...` runs in a new workspace; in an old one it
does what is left. Stages and the path are read from the manifests of what the run made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline_lib.artifacts.manifest import MANIFEST, Manifest
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.params import STAGES

SAMPLE_SECONDS = 0.5
WAITED = 0.1
"""Seconds between two artifacts on the critical path from which on the wait is printed."""


@dataclass(frozen=True)
class Made:
    """An artifact that the run made; times are seconds since the run began."""

    manifest: Manifest
    begin: float
    end: float

    @property
    def name(self) -> str:
        """The stage, and which of its artifacts."""
        kind = self.manifest.version.rpartition("-")[0]
        return f"{self.manifest.stage} {self.manifest.params.get('model', kind)} ({self.manifest.key[:6]})"


@dataclass
class Sampler:
    """Samples the run's memory and the GPU until stopped."""

    process: psutil.Process
    peak_memory_bytes: int = 0
    gpu_busy: list[float] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> threading.Thread:
        """Sample in a thread of its own."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()

    def _sample(self) -> None:
        gpu = _open_gpu()
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.peak_memory_bytes = max(self.peak_memory_bytes, sum(_memory(self.process)))
            if gpu is not None:
                import pynvml

                self.gpu_busy.append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)


def _open_gpu() -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None


def _memory(process: psutil.Process) -> Iterator[int]:
    """Yield the resident bytes of the process and of all that it started."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            yield member.memory_info().rss
        except psutil.NoSuchProcess:
            continue


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("params")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value")
    parser.add_argument("--until", choices=STAGES)
    options = parser.parse_args()
    workspace = options.workspace.absolute()
    until = ["--until", options.until] if options.until else []
    settings = [argument for setting in [f"workspace={workspace}", *options.settings] for argument in ("--set", setting)]
    summary = workspace.with_name(f"{workspace.name}-summary.json")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.time()
    run = subprocess.Popen([sys.executable, "-m", "flows.cli", "run", options.params, "--summary", summary, *settings, *until])
    sampler = Sampler(psutil.Process(run.pid))
    sampler.start()
    code = run.wait()
    ended = time.time()
    sampler.stop()
    if code:
        sys.exit(f"har run ended with {code}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = read_made(workspace, began)
    core_seconds = _core_seconds(used) - _core_seconds(before)
    print(f"\n{ended - began:.1f} s in all; {core_seconds:.0f} core-seconds of {num_cores()} cores")
    print(f"peak memory of all processes {sampler.peak_memory_bytes / 2**30:.1f} GiB" + _describe_gpu(sampler.gpu_busy))
    print_stages(made, ended - began)
    print_path(made)
    print(json.dumps({"cache": {name: row["cache"] for name, row in json.loads(summary.read_text())["stages"].items()}}))


def _core_seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def _describe_gpu(busy: Sequence[float]) -> str:
    return f"; GPU busy {sum(busy) / len(busy):.0%} of the time" if busy else ""


def read_made(workspace: Path, began: float) -> list[Made]:
    """Return the artifacts made since then, in the order in which they were finished."""
    made = []
    for path in workspace.glob(f"artifacts/*/*/{MANIFEST}"):
        manifest, end = Manifest.model_validate_json(path.read_bytes()), path.stat().st_mtime
        if end >= began:
            made.append(Made(manifest, end - began - manifest.seconds, end - began))
    return sorted(made, key=lambda artifact: artifact.end)


def print_stages(made: Sequence[Made], all_seconds: float) -> None:
    """Print when each stage began and ended, how long its work took in all, and how long nothing else was at work."""
    alone = seconds_alone(made)
    print("\n| stage | from, s | to, s | wall, s | work, s | alone, s |\n|---|---|---|---|---|---|")
    for stage in STAGES:
        own = [artifact for artifact in made if artifact.manifest.stage == stage]
        if own:
            first, last = min(artifact.begin for artifact in own), max(artifact.end for artifact in own)
            work = sum(artifact.end - artifact.begin for artifact in own)
            row = (first, last, last - first, work, alone.get(stage, 0.0))
            print(f"| {stage} | {' | '.join(f'{value:.1f}' for value in row)} |")
    print(f"\nno stage at work: {all_seconds - sum(alone.values()) - alone_shared(made):.1f} s")


def _moments(made: Iterable[Made]) -> Iterator[tuple[float, set[str]]]:
    """Yield (seconds, stages at work) for each stretch between two beginnings or ends."""
    edges = sorted({edge for artifact in made for edge in (artifact.begin, artifact.end)})
    for low, high in itertools.pairwise(edges):
        yield high - low, {artifact.manifest.stage for artifact in made if artifact.begin < high and artifact.end > low}


def seconds_alone(made: Sequence[Made]) -> dict[str, float]:
    """Return how long each stage was the only one at work."""
    alone: dict[str, float] = {}
    for seconds, stages in _moments(made):
        if len(stages) == 1:
            alone[min(stages)] = alone.get(min(stages), 0.0) + seconds
    return alone


def alone_shared(made: Sequence[Made]) -> float:
    """Return how long several stages were at work."""
    return sum(seconds for seconds, stages in _moments(made) if len(stages) > 1)


def print_path(made: Sequence[Made]) -> None:
    """Print the critical path: from the last artifact back to whichever input was finished last."""
    print("\ncritical path:")
    for artifact, waited in critical_path(made):
        wait = f", after waiting {waited:.1f} s" if waited > WAITED else ""
        print(f"  {artifact.begin:6.1f} s  {artifact.name}: {artifact.end - artifact.begin:.1f} s{wait}")


def critical_path(made: Sequence[Made]) -> list[tuple[Made, float]]:
    """Return the path from the first artifact to the last, each with the seconds between its last input and its beginning."""
    by_content = {artifact.manifest.content_key: artifact for artifact in made}
    path: list[tuple[Made, float]] = []
    current: Made | None = made[-1]
    while current:
        inputs = [by_content[key] for key in current.manifest.inputs.values() if key in by_content]
        if not inputs and len(path) == 0:  # the report names no inputs: it follows what was finished before it
            inputs = [artifact for artifact in made if artifact.end <= current.begin]
        last = max(inputs, key=lambda artifact: artifact.end, default=None)
        path.append((current, current.begin - (last.end if last else 0.0)))
        current = last
    return path[::-1]


if __name__ == "__main__":
    main()
