"""A flow whose tasks log metrics at once, as training runs do: `python -m tests.e2e.logging_flow NAME BATCHES`."""

from __future__ import annotations

import os
import sys
import threading

from prefect import flow, task

from tasks.background import Background
from tasks.mlflow import tracking

TASKS = 4
METRICS = 25
"""Of a batch."""


@task
def log(experiment_id: str, name: str, batches: int) -> None:
    """Log to a run of its own, in the background."""
    background = Background("MLflow", tracking.is_outage, pause_seconds=0.5)
    run = tracking.TrackedRun(background, tracking.start_parent(experiment_id, name, {}, {}))
    for step in range(batches):
        run.log(tracking.log_metrics, {f"metric {number}": float(number) for number in range(METRICS)}, step)
    run.log(tracking.end_run, "FINISHED")
    is_written = threading.Event()
    run.log(lambda _: is_written.set())
    assert is_written.wait(240)
    background.close()


@flow
def log_much(name: str, batches: int) -> None:
    """Log from several tasks at once."""
    client = tracking._client()
    experiment_id = client.get_experiment_by_name("har").experiment_id
    for future in [log.submit(experiment_id, f"{name} {number}", batches) for number in range(TASKS)]:
        future.result()


if __name__ == "__main__":
    os.environ.update(tracking.IN_A_RUN)
    log_much(sys.argv[1], int(sys.argv[2]))
