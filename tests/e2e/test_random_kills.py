"""Kills at random moments: nothing finished is lost or made twice, and what is made is that of an unbroken run.

HAR_KILLS (100) is the number of kills for all collections together; HAR_KILL_SEED (0) draws the moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.conftest import TINY

PROJECT = Path(__file__).parents[2]
COLLECTIONS = ("demo", "ucf101")
KILLS = int(os.environ.get("HAR_KILLS", "100")) // len(COLLECTIONS)
SEED = int(os.environ.get("HAR_KILL_SEED", "0"))
PARAMS = {
    **TINY,
    "subsample": {"shard_videos": 4, "max_quarantined": 0.05},
    "train": {**TINY["train"], "models": ["alstm", "conv_alstm"], "seeds": [0, 1], "epochs": 8, "patience": 8},
}
COMPARED = ("subsample", "chunk", "features", "train", "evaluate", "heatmaps")
"""Stages whose artifacts do not tell of the run that made them."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module", params=COLLECTIONS)
def fetch(request, tmp_path_factory) -> dict[str, str]:
    """Return `fetch` parameters of a collection: rendered, or real."""
    if request.param == "ucf101":
        shared = PROJECT.parent / "shared" / "data" / "ucf101"
        if not shared.is_dir():
            pytest.skip("needs ../shared/data/ucf101")
        return {"kind": "folder", "videos": str(shared / "videos"), "splits": str(shared / "splits")}
    folder = tmp_path_factory.mktemp("demo") / "collection"
    sizes = ("--pictures", "0", "--videos-per-class", "6", "--groups-per-class", "3", "--seconds", "1.5")
    subprocess.run([sys.executable, "-m", "demo", str(folder), *sizes], cwd=PROJECT, check=True)
    names = {"videos": "videos.rar", "splits": "splits.rar", "groups": "groups.csv", "boxes": "boxes.csv"}
    return {"kind": "archive"} | {key: str(folder / name) for key, name in names.items()}


@dataclass
class Trial:
    """A workspace whose runs are killed until one ends."""

    folder: Path
    fetch: dict[str, str]
    whole: dict[Path, str] = field(default_factory=dict)
    """Content of every manifest that was whole at a kill."""

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        self.folder.mkdir(exist_ok=True, parents=True)
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump({"workspace": str(self.workspace), "fetch": self.fetch} | PARAMS))
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "flows.cli", "run", str(path), *options]
            own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
            return subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=own | environment)

    def manifests(self) -> dict[Path, str]:
        found = (self.workspace / "artifacts").glob("[!.]*/[!.]*/manifest.json")
        return {path: path.read_text(encoding="utf-8") for path in found if path.parts[-3] in COMPARED}

    def remember(self) -> None:
        """Check that what was whole before is still as it was, and note what is whole now."""
        now = self.manifests()
        for path, text in self.whole.items():
            assert now.get(path) == text, f"{path} was whole and is lost or made again"
        self.whole = now

    def content(self) -> dict[str, str]:
        """Return the digests of every artifact's files, by stage and key."""
        manifests = {path.parts[-3:-1]: json.loads(text) for path, text in self.manifests().items()}
        return {"/".join(name): json.dumps(manifest["files"], sort_keys=True) for name, manifest in manifests.items()}


def finish(trial: Trial) -> float:
    began = time.monotonic()
    assert trial.start().wait() == 0, (trial.folder / "log").read_text()[-3000:]
    return time.monotonic() - began


def kill_at_random(trial: Trial, chance: random.Random, seconds: float) -> str:
    """Start a run, kill it or one of its workers after a while, and return what came of it."""
    process = trial.start()
    try:
        process.wait(chance.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        pass
    else:
        assert process.returncode == 0, (trial.folder / "log").read_text()[-3000:]
        return "ended before"
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if is_worker(child)]
    if workers and chance.random() < 0.6:
        os.kill(chance.choice(workers).pid, signal.SIGKILL)
        return "worker, run ended well" if process.wait() == 0 else "worker, run failed"
    name = chance.choice(("SIGKILL", "SIGINT"))
    os.kill(process.pid, signal.Signals[name])
    process.wait(60)
    assert not psutil.wait_procs(workers, timeout=10)[1], f"workers outlive a run that got {name}"
    return f"flow by {name}"


def is_worker(process: psutil.Process) -> bool:
    try:
        name = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return name.startswith("ray::") and "Agent" not in name and "EventActor" not in name


def test_kills_at_random_moments(fetch, tmp_path):
    unbroken = Trial(tmp_path / "unbroken", fetch)
    seconds = finish(unbroken)
    expected, chance, outcomes, number = unbroken.content(), random.Random(SEED), Counter(), 0
    began = time.monotonic()
    while sum(count for outcome, count in outcomes.items() if outcome != "ended before") < KILLS:
        trial, number = Trial(tmp_path / f"trial {number}", fetch), number + 1
        for _ in range(6):
            outcome = kill_at_random(trial, chance, seconds)
            outcomes[outcome] += 1
            trial.remember()
            if outcome in ("ended before", "worker, run ended well"):
                break
        finish(trial)
        trial.remember()
        assert trial.content() == expected
    spent = time.monotonic() - began
    sys.stderr.write(f"\n{number} workspaces, {spent:.0f} s, an unbroken run {seconds:.0f} s: {dict(outcomes)}\n")
