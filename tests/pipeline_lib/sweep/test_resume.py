"""A sweep whose process is killed at any moment, and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline_lib.compute.engine import Needs, open_engine
from pipeline_lib.sweep.running import run_study
from tests.pipeline_lib.sweep.conftest import make_study, search
from tests.pipeline_lib.sweep.objectives import Slow, follow_formula

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[3]
TRIALS = 8


def main(folder, at_once, is_local_ray):
    with open_engine(is_local_ray=is_local_ray):
        on_trial = lambda trial: (folder / f"{trial.number}.told").touch()  # noqa: E731
        run_study(make_study(folder), Slow(folder), at_once, Needs(cpus=0.5), TRIALS, on_trial)


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("at_once", "is_local_ray"), [(1, False), (2, False), pytest.param(2, True, marks=pytest.mark.slow)])
def test_a_killed_sweep_keeps_what_is_finished_and_ends_with_as_many_trials(open_study, tmp_path, at_once, is_local_ray):
    command = [sys.executable, "-m", __name__, str(tmp_path), str(at_once), "ray" if is_local_ray else ""]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: len(list(tmp_path.glob("*.told"))) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate()[0] == b""
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers), 10)  # workers do not outlive it
    kept = open_study().trials()
    assert {path.stem for path in tmp_path.glob("*.told")} <= {str(trial.number) for trial in kept}
    assert 3 <= len(kept) < TRIALS
    told = search(open_study(), follow_formula, TRIALS, at_once)
    assert told[: len(kept)] == kept
    assert len(told) == TRIALS
    assert len({str(trial.params) for trial in told}) == TRIALS


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), bool(sys.argv[3]))
