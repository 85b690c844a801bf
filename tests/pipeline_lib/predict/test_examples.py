"""Which videos are offered to try a model on, in a workspace made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline_lib.artifacts import Artifact, Recipe, Store, layout
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.examples import NUM_RIGHT, NUM_WRONG, find_drawing, find_examples

NAMES = [f"{label}/{number}.avi" for label in ("jump", "wave") for number in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "workspace")
    yield store
    store.close()


def make(store: Store, stage: str, inputs: dict[str, str], content: str | pd.DataFrame, params: dict | None = None) -> Artifact:
    def build(folder: Path) -> dict[str, int]:
        if isinstance(content, str):
            (folder / "checkpoint.safetensors").write_text(content)
        else:
            content.to_parquet(folder / "videos.parquet")
            for name in content["video"] if stage == "subsample" else ():
                layout.subsampled_path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                layout.subsampled_path(folder, name).write_text(name)
        return {}

    return store.make(Recipe(stage, f"{stage}-1", params or {}, inputs), build)


def evaluate(store: Store, trained: Artifact, wrong: list[str], params: dict | None = None) -> Artifact:
    rows = [
        {"video": name, "class_name": name.split("/")[0], "confidence": 0.5 + number / 100, "correct": name not in wrong}
        for number, name in enumerate(NAMES)
    ]
    return make(store, "evaluate", {"trained": trained.content_key}, pd.DataFrame(rows), params)


def train(store: Store) -> Artifact:
    """Return a model trained on a shard of all videos but one, which could not be decoded; another shard is not its own."""
    shown = pd.DataFrame({"video": NAMES[1:], "reason": None})
    shard = make(store, "subsample", {}, shown)
    make(store, "subsample", {"other": "shard"}, shown.tail(1), {"fps": 3})
    features = make(store, "features", {"shard": shard.content_key}, "features")
    return make(store, "train", {"clips": "c", "features 0": features.content_key}, "checkpoint")


def sha256_of(trained: Artifact) -> str:
    return trained.manifest.files[0].sha256


def test_mistakes_come_first_then_every_class_in_turn(store):
    trained = train(store)
    evaluate(store, trained, wrong=NAMES[:3])
    examples = find_examples(store, sha256_of(trained))
    assert [example.is_right for example in examples] == [False] * 2 + [True] * NUM_RIGHT  # NAMES[0] is not there
    assert [example.label for example in examples[:6]] == ["jump", "jump", "wave", "jump", "wave", "jump"]
    assert examples[0].video.read_text() == NAMES[2]
    assert all(example.video.parts[-4] == examples[0].video.parts[-4] for example in examples)


def test_there_are_not_many_and_the_newest_evaluation_counts(store, monkeypatch):
    trained = train(store)
    evaluate(store, trained, wrong=[])
    monkeypatch.setattr("pipeline_lib.artifacts.store.time.strftime", lambda *_: "2999-01-01T00:00:00Z")
    evaluate(store, trained, wrong=NAMES[1:], params={"resamples": 1})
    assert [example.is_right for example in find_examples(store, sha256_of(trained))] == [False] * NUM_WRONG


def test_a_model_of_elsewhere_or_without_videos_has_none(store):
    trained = train(store)
    assert find_examples(store, "0" * 64) == []
    assert find_examples(store, sha256_of(trained)) == []
    evaluate(store, trained, wrong=[])
    for path in store.workspace.glob("artifacts/subsample/*/videos/*/*"):
        path.unlink()
    assert find_examples(store, sha256_of(trained)) == []


def test_attention_is_drawn_as_its_run_draws_it(store):
    trained = train(store)
    assert find_drawing(store, "0" * 64) == find_drawing(store, sha256_of(trained)) == HeatmapsParams()
    evaluated = evaluate(store, trained, wrong=[])
    make(store, "heatmaps", {"evaluated": "another"}, "h", HeatmapsParams().recipe() | {"fps": 15.0})
    assert find_drawing(store, sha256_of(trained)) == HeatmapsParams()
    wanted = HeatmapsParams(colormap="viridis", scale="share")
    make(store, "heatmaps", {"evaluated": evaluated.content_key}, "h", wanted.recipe() | {"fps": 15.0})
    assert find_drawing(store, sha256_of(trained)) == wanted
