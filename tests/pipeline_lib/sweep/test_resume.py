"""A sweep whose process is killed at any moment, and goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline_lib.sweep.running import run_study
from tests.pipeline_lib.sweep.objectives import follow_formula
from tests.pipeline_lib.sweep.test_running import search, wait_until, worker_pids

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[3]
TRIALS = 8


def start_sweep(folder, workers):
    """Run this module in a process of its own."""
    command = [sys.executable, "-m", __name__, str(folder), str(workers)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def main(folder, workers):
    from tests.pipeline_lib.sweep.conftest import make_study, processes
    from tests.pipeline_lib.sweep.objectives import Slow

    with make_study(folder) as study:
        run_study(study, Slow(folder), processes(workers), TRIALS, lambda trial: (folder / f"{trial.number}.told").touch())


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_sweep_keeps_what_is_finished_and_ends_with_as_many_trials(open_study, tmp_path, workers):
    process = start_sweep(tmp_path, workers)
    wait_until(lambda: len(list(tmp_path.glob("*.told"))) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate()[0] == b""
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in worker_pids(tmp_path)), 5)  # workers do not outlive it
    with open_study() as study:
        kept = study.trials()
    assert {path.stem for path in tmp_path.glob("*.told")} <= {str(trial.number) for trial in kept}
    assert 3 <= len(kept) < TRIALS
    told = search(open_study, follow_formula, TRIALS, workers)
    assert told[: len(kept)] == kept
    assert len(told) == TRIALS
    assert len({str(trial.params) for trial in told}) == TRIALS


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
