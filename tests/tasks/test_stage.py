from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from flows.execution import Work
from pipeline_lib.artifacts import Recipe
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.compute.engine import WorkerLostError
from pipeline_lib.errors import UserError
from tasks import progress
from tasks.stage import RETRIES, ArtifactPolicy, Context, Ref, stage, stage_of_several


def recipe(context: Context, text: str) -> Recipe:
    if text == "faulty":
        raise UserError("faulty input")
    return Recipe("chunk", "chunk-1", {"text": text})


built: list[str] = []


@stage(recipe)
def chunk(directory: Path, context: Context, text: str) -> dict[str, int]:
    """Write the text."""
    built.append(text)
    (directory / "text").write_text(text)
    return {"letters": len(text)}


def recipes(context: Context, text: str) -> dict[str, Recipe]:
    return {letter: recipe(context, letter) for letter in text}


@stage_of_several(recipes)
def letters(directories: Mapping[str, Path], context: Context, text: str) -> dict[str, dict[str, str]]:
    """Write each letter to its own artifact."""
    built.append("".join(directories))
    for letter, directory in directories.items():
        (directory / "text").write_text(letter)
    return {letter: {"letter": letter} for letter in directories}


@stage(recipe)
def slow(directory: Path, context: Context, text: str) -> dict[str, int]:
    """Take a while, so that others come meanwhile."""
    built.append(text)
    sleep(1)
    return {}


FAULTS: dict[str, Exception] = {
    "bug": ValueError("it cannot be made"),
    "mistake": UserError("mend it"),
    "disk": OSError("disk full"),
}


meeting = threading.Barrier(2, timeout=10)


@stage(recipe)
def together(directory: Path, context: Context, text: str) -> dict[str, int]:
    """Meet another that is at work at the same time."""
    meeting.wait()
    return {"met": 1}


@stage(recipe)
def unlucky(directory: Path, context: Context, text: str) -> dict[str, int]:
    """Lose as many workers as the text says, or fail otherwise."""
    built.append(text)
    if text in FAULTS:
        raise FAULTS[text]
    if len(built) <= int(text):
        raise WorkerLostError("train: its worker died")
    return {}


@pytest.fixture
def context(tmp_path):
    built.clear()
    return Context(workspace=Workspace(folder=tmp_path))


@pytest.fixture
def run_all(context, prefect_server):
    """Return a function that has Prefect run a task at once for several texts, and returns the finished work."""
    context.results.mkdir(parents=True, exist_ok=True)

    def run(task: Any, *texts: str) -> list[Work]:
        stored = task.with_options(result_storage=context.results, retry_delay_seconds=0)
        with ThreadPoolTaskRunner(max_workers=len(texts)) as runner:
            futures = [runner.submit(stored, parameters={"context": context, "text": text}) for text in texts]
            for future in futures:
                future.wait(60)
        return [Work("chunk", text, text, future) for text, future in zip(texts, futures, strict=True)]

    return run


def key(context: Context, text: str) -> str | None:
    policy = ArtifactPolicy(recipe=recipe)
    return policy.compute_key(None, {"context": context, "text": text}, {})


def test_the_task_makes_the_artifact_once_and_then_finds_it(context):
    first, second = chunk.fn(context, "hello"), chunk.fn(context=context, text="hello")
    assert built == ["hello"]
    assert (first.made, second.made) == (True, False)
    assert first.counts == {"letters": 5}
    assert first.content_key == second.content_key
    assert (first.directory(context) / "text").read_text() == "hello"


def test_several_artifacts_are_made_together_and_only_those_that_are_missing(context):
    first = letters.fn(context, "ab")
    assert [(ref.counts, ref.made) for ref in first.values()] == [({"letter": "a"}, True), ({"letter": "b"}, True)]
    second = letters.fn(context, "bca")
    assert {name: ref.made for name, ref in second.items()} == {"b": False, "c": True, "a": False}
    assert built == ["ab", "c"]
    assert second["a"].content_key == chunk.fn(context, "a").content_key  # what one task makes, another finds


def test_several_with_equal_recipes_are_made_once(context):
    @stage_of_several(lambda context, text: {name: recipe(context, text) for name in ("x", "y")})
    def twins(directories: Mapping[str, Path], context: Context, text: str) -> dict[str, dict[str, int]]:
        built.extend(directories)
        return {name: {} for name in directories}

    first, second = twins.fn(context, "hello"), twins.fn(context, "hello")
    assert built == ["x"]
    assert first["x"] == first["y"]
    assert [ref.made for ref in (*first.values(), *second.values())] == [True, True, False, False]


def test_one_of_several_that_fails_leaves_none(context):
    @stage_of_several(recipes)
    def broken(directories: Mapping[str, Path], context: Context, text: str) -> dict[str, dict[str, str]]:
        (directories["a"] / "text").write_text("a")
        raise ValueError("b cannot be made")

    with pytest.raises(ValueError, match="b cannot"):
        broken.fn(context, "ab")
    assert not list((context.folder / "artifacts" / "chunk").iterdir())


def test_several_from_the_cache_count_as_found(run_all):
    (made,) = run_all(letters, "ab")
    (found,) = run_all(letters, "ab")
    assert found.future.state.name == "Cached"
    assert [ref.made for ref in made.result().values()] == [True, True]
    assert [ref.made for ref in found.result().values()] == [False, False]
    assert built == ["ab"]


def test_tasks_at_the_same_artifact_at_once_make_it_once(run_all):
    works = run_all(slow, *["hello"] * 4)
    assert built == ["hello"]
    assert sorted(work.future.state.name for work in works) == ["Cached", "Cached", "Cached", "Completed"]
    assert sorted(work.result().made for work in works) == [False, False, False, True]
    assert len({work.result().content_key for work in works}) == 1


def test_one_that_fails_keeps_no_other_from_the_artifact(run_all):
    works = run_all(unlucky, "bug", "bug")
    assert built == ["bug", "bug"]
    for work in works:
        with pytest.raises(ValueError, match="cannot be made"):
            work.result()


def test_tasks_at_different_artifacts_do_not_wait_for_each_other(run_all):
    works = run_all(together, "one", "other")
    assert [work.result().counts for work in works] == [{"met": 1}, {"met": 1}]


@pytest.mark.parametrize("num_lost", range(1 + RETRIES))
def test_work_whose_worker_died_is_tried_again(run_all, num_lost):
    (work,) = run_all(unlucky, str(num_lost))
    assert work.result().made
    assert len(built) == num_lost + 1


def test_work_that_loses_its_worker_each_time_fails_with_one_clear_line(run_all):
    (work,) = run_all(unlucky, "99")
    assert len(built) == 3
    with pytest.raises(UserError) as failure:
        work.result()
    assert str(failure.value).startswith("train: its worker died, 3 times; ")
    assert len(str(failure.value).splitlines()) == 1
    assert failure.value.__suppress_context__


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_else_is_tried_again(run_all, fault):
    (work,) = run_all(unlucky, fault)
    assert built == [fault]
    with pytest.raises(type(FAULTS[fault]), match=str(FAULTS[fault])):
        work.result()


def test_refresh_makes_it_again(context):
    chunk.fn(context, "hello")
    assert chunk.fn(context.model_copy(update={"refresh": ("chunk",)}), "hello").made
    assert not chunk.fn(context.model_copy(update={"refresh": ("train",)}), "hello").made


def test_the_cache_key_is_the_artifacts_and_depends_on_no_path(context, tmp_path):
    assert key(context, "hello") == f"chunk-{recipe(context, 'hello').key}"
    assert key(Context(workspace=Workspace(folder=tmp_path / "elsewhere")), "hello") == key(context, "hello")
    assert key(context, "other") != key(context, "hello")


def test_faulty_input_has_no_key_so_that_the_task_itself_complains(context):
    assert key(context, "faulty") is None
    with pytest.raises(ValueError, match="faulty input"):
        chunk.fn(context, "faulty")


def test_a_record_is_kept_while_its_artifact_is_whole_and_forgotten_after(context):
    ref: Ref = chunk.fn(context, "hello")
    record = context.results / f"chunk-{ref.key}"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    key(context, "hello")
    assert record.exists()
    key(context.model_copy(update={"refresh": ("chunk",)}), "hello")
    assert not record.exists()
    record.write_text("{}")
    (ref.directory(context) / "text").write_text("HELLO")
    key(context, "hello")
    assert not record.exists()


def test_progress_counts_across_callers_and_begins_anew():
    seen = []
    stop = progress.listen(lambda *step: seen.append(step))
    progress.begin()
    progress.advance("features", 3)
    progress.expect("features", 10)
    progress.advance("features", 4)
    progress.finish("features")
    progress.begin()
    progress.advance("features")
    stop()
    progress.advance("features")
    assert seen == [
        ("features", 3, None), ("features", 3, 10), ("features", 7, 10), ("features", 10, 10), ("features", 1, None),
    ]  # fmt: skip


def test_a_listener_that_raises_costs_a_warning_and_is_not_called_again(caplog):
    seen, calls = [], []

    def broken(*step):
        calls.append(step)
        raise ConnectionError("no server")

    stops = progress.listen(broken), progress.listen(lambda *step: seen.append(step))
    progress.begin()
    progress.advance("features")
    progress.advance("features")
    for stop in stops:
        stop()
    assert len(calls) == 1
    assert len(seen) == 2
    assert [record.getMessage() for record in caplog.records] == ["progress is no longer shown: ConnectionError: no server"]
