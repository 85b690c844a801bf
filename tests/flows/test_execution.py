"""Work is judged as it ends, of whichever stage, and one model's failure is not the run's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from flows.execution import Execution, FailedWorkError
from tasks.stage import Ref


class Task:
    """Stands in for Prefect's task and its future: it ends when the test says so."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.state = SimpleNamespace(name="Completed")
        self.on_end: Callable[[object], None] = lambda _: None

    def with_options(self, **_):
        return self

    def submit(self, **_):
        return self

    def add_done_callback(self, callback):
        self.on_end = callback

    def wait(self):
        """It has ended when it is asked."""

    def result(self):
        if self.error:
            raise self.error
        return Ref(stage="any", key="k", content_key="c", counts={}, seconds=1.0, made=True)

    def end(self, error: Exception | None = None, state: str = "Completed") -> None:
        self.error, self.state = error, SimpleNamespace(name=state)
        self.on_end(self)


@dataclass
class Recorded(Execution):
    """Keeps what it is told."""

    told: list = field(default_factory=list)

    def ended(self, work, ref, *, is_failure):
        self.told.append((work.kind, work.key, is_failure))

    def stage_over(self, stage, result):
        self.told.append((stage, len(result.refs)))


@pytest.fixture
def run():
    return Recorded(params=None, context=SimpleNamespace(results=None), until=None)


def submit(run, kind, *keys):
    tasks = [Task() for _ in keys]
    for task, key in zip(tasks, keys, strict=True):
        run.submit(kind, task, key, f"model {key}")
    return tasks


def test_a_later_stages_failure_ends_a_wait_for_an_earlier_one(run):
    submit(run, "sweep", "alstm")  # takes hours
    (features,) = submit(run, "features", "shard")
    threading.Timer(0.05, features.end, [OSError("disk full")]).start()
    with pytest.raises(OSError, match="disk full"):
        run.gather_stage("sweep")


def test_work_is_recorded_as_it_ends_and_a_stage_with_its_last(run):
    first, second = submit(run, "train", 1, 2)
    (drawn,) = submit(run, "heatmaps", 2)
    for task in (second, drawn, first):
        task.end()
    run.gather()
    assert run.told == [
        ("train", 2, False), ("heatmaps", 2, False), ("heatmaps", 1), ("train", 1, False), ("train", 2),
    ]  # fmt: skip


def test_a_models_failure_is_noted_once_and_the_rest_recorded(run, caplog):
    failing, working = submit(run, "train", 1, 2)
    never, tested = submit(run, "evaluate", 1, 2)
    failing.end(RuntimeError("out of memory at https://me:secret@host/\nsecond line"))
    never.end(state="NotReady")
    working.end()
    tested.end()
    run.gather()
    line = "train model 1 failed: RuntimeError: out of memory at https://***@host/"
    assert run.failures == [line]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{line}\nTraceback")
    assert "secret" not in message
    assert run.told[:2] == [("train", 1, True), ("evaluate", 1, False)]
    assert [len(run.refs[stage]) for stage in ("train", "evaluate")] == [1, 1]
    with pytest.raises(FailedWorkError, match=r"^train model 1 failed"):
        run.raise_failures()


def test_a_run_that_fails_records_what_has_ended_and_submits_no_more(run):
    first, failing, second = *submit(run, "train", 1), *submit(run, "features", 1), *submit(run, "train", 2)
    first.end()
    failing.end(ValueError("no features"))
    second.end()
    with pytest.raises(ValueError, match="no features"):
        run.gather()
    run.ended = lambda work, ref, **_: (run.told.append(work.key), submit(run, "evaluate", work.key))
    run.settle_ended()
    assert run.told == [("train", 1, False), 2]
    assert [work.kind for work in run.works] == ["train", "features", "train"]
