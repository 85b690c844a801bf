from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import sleep

import pytest

from pipeline_lib.artifacts import Recipe
from pipeline_lib.errors import UserError
from tasks import progress
from tasks.stage import ArtifactPolicy, Context, Ref, stage


def recipe(context: Context, text: str) -> Recipe:
    if text == "faulty":
        raise UserError("faulty input")
    return Recipe("chunk", "chunk-1", {"text": text})


built: list[str] = []


@stage(recipe, worker="decoder")
def chunk(directory: Path, context: Context, text: str) -> dict[str, int]:
    """Write the text."""
    built.append(text)
    (directory / "text").write_text(text)
    return {"letters": len(text)}


@stage(recipe, worker="decoder")
def slow(directory: Path, context: Context, text: str) -> dict[str, int]:
    """Take a while, so that others come meanwhile."""
    built.append(text)
    sleep(1)
    if text == "fault":
        raise ValueError("it cannot be made")
    return {}


@pytest.fixture
def context(tmp_path):
    built.clear()
    return Context(workspace=tmp_path)


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


def test_tasks_at_the_same_artifact_at_once_make_it_once(context):
    with ThreadPoolExecutor(4) as callers:
        begun = Barrier(4, timeout=30)
        refs = list(callers.map(lambda _: (begun.wait(), slow.fn(context, "hello"))[1], range(4)))
        begun.reset()
        failures = [callers.submit(lambda: (begun.wait(), slow.fn(context, "fault"))) for _ in range(4)]
    assert built == ["hello", "fault"]
    assert sorted(ref.made for ref in refs) == [False, False, False, True]
    assert len({ref.content_key for ref in refs}) == 1
    for failure in failures:
        with pytest.raises(ValueError, match="cannot be made"):
            failure.result()


def test_refresh_makes_it_again(context):
    chunk.fn(context, "hello")
    assert chunk.fn(context.model_copy(update={"refresh": ("chunk",)}), "hello").made
    assert not chunk.fn(context.model_copy(update={"refresh": ("train",)}), "hello").made


def test_the_cache_key_is_the_artifacts_and_depends_on_no_path(context, tmp_path):
    assert key(context, "hello") == f"chunk-{recipe(context, 'hello').key}"
    assert key(Context(workspace=tmp_path / "elsewhere"), "hello") == key(context, "hello")
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
