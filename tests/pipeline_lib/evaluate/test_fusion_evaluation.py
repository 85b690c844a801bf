"""A fusion's evaluation reads its members' and leaves what a model's leaves."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.evaluate import TrainingRun, evaluate_fusion, read_training_run, write_results
from pipeline_lib.evaluate.evaluation import write_predictions
from pipeline_lib.evaluate.permutation import video_footage
from pipeline_lib.evaluate.probabilities import write_probabilities
from pipeline_lib.evaluate.scores import overall_scores
from pipeline_lib.params import EvaluateParams, FusionParams
from tests.pipeline_lib.conftest import CLASSES, FPS, FRAMES, GRID, draw_features, make_clips

MEMBERS = ("alstm", "alstm@flow")
CLIPS = make_clips()


def draw_probabilities(clips: pd.DataFrame, knows: set[str], seed: int) -> np.ndarray:
    """Return probability_NTC, near certain on videos of the classes that the member knows and unsure on the others."""
    rng = np.random.default_rng(seed)
    logit_NTC = rng.normal(0, 0.7, (len(clips), FRAMES, len(CLASSES)))
    for number, class_name in enumerate(clips["class_name"]):
        if class_name in knows:
            logit_NTC[number, :, CLASSES.index(class_name)] += 5
    exp_NTC = np.exp(logit_NTC)
    return (exp_NTC / exp_NTC.sum(axis=2, keepdims=True)).astype(np.float32)


def write_member(folder: Path, knows: set[str], seed: int, *, attends: bool = True, shuffle_test: bool = False) -> Path:
    """Write what the evaluation of a model leaves."""
    folder.mkdir()
    test = CLIPS[CLIPS["split"] == "test"].reset_index(drop=True)
    test["group"] = video_footage(test)
    val = CLIPS[CLIPS["split"] == "val"]
    on_val, on_test = draw_probabilities(val, knows, seed), draw_probabilities(test, knows, seed + 1)
    if shuffle_test:
        on_test = on_test[np.random.default_rng(9).permutation(len(on_test))]
    maps_NTKK = np.random.default_rng(seed).dirichlet(np.ones(GRID**2), (len(test), FRAMES)).reshape(-1, FRAMES, GRID, GRID)
    write_probabilities(folder, "val", val["clip"], CLASSES, on_val)
    write_probabilities(folder, "test", test["clip"], CLASSES, on_test)
    predictions, videos = write_predictions(folder, test, on_test, maps_NTKK.astype(np.float32), CLASSES)
    metrics = overall_scores(predictions, videos, CLASSES, train=CLIPS[CLIPS["split"] == "train"])
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if attends:
        (folder / "maps.json").write_text('{"kind": "attention"}')
    return folder


@pytest.fixture
def members(tmp_path):
    return [write_member(tmp_path / "a", {CLASSES[0], CLASSES[1]}, 0), write_member(tmp_path / "b", {CLASSES[2]}, 10)]


def evaluate(folders, directory, clips=CLIPS, boxes=None, **params):
    directory.mkdir()
    return evaluate_fusion(folders, clips, directory, FusionParams(members=MEMBERS, **params), fps=FPS, boxes=boxes)


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_complementary_members_are_better_together(members, tmp_path):
    fused = evaluate(members, tmp_path / "fused")
    alone = [read(folder, "metrics.json")["video_accuracy"] for folder in members]
    assert fused["video_accuracy"] == 1 > max(alone)
    overlap = read(tmp_path / "fused", "fusion.json")["overlap"]
    assert overlap["oracle_accuracy"] == 1
    assert overlap["all_wrong"] == overlap["error_jaccard"] == 0


@pytest.mark.parametrize("method", ["mean", "weights", "svm"])
def test_files_are_those_of_a_model(members, tmp_path, method):
    metrics = evaluate(members, tmp_path / "fused", method=method, boxes=draw_features(CLIPS)[1])
    written = {path.name for path in (tmp_path / "fused").iterdir()}
    own = {path.name for path in members[0].iterdir()} - {"probabilities.h5"}
    assert written == own | {"fusion.json", "maps.parquet", "tubes.parquet", "per_class.csv", "confusion.png"}
    assert 0 < metrics["localisation"]["tube_iou"] < 1
    assert read(tmp_path / "fused", "metrics.json") == metrics
    assert metrics.keys() == read(members[0], "metrics.json").keys() | {"pointing", "localisation"}
    maps = read(tmp_path / "fused", "maps.json")
    assert (maps["num_clips"], maps["num_masked"], maps["curves"]) == (18, 0, {})
    attention = {"entropy", "centre_bias", "drift", "pointing", "mass_in_box"}
    assert maps["measures"].keys() == attention | metrics["localisation"].keys()
    with h5py.File(tmp_path / "fused" / "attention.h5") as file:
        np.testing.assert_allclose(file["attention"][:].sum(axis=(2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["weights", "svm"])
def test_what_is_fitted_never_saw_the_test_split(members, tmp_path, method):
    evaluate(members, tmp_path / "fused", method=method)
    others = [
        write_member(tmp_path / "c", {CLASSES[0], CLASSES[1]}, 0, shuffle_test=True),
        write_member(tmp_path / "d", {CLASSES[2]}, 10, shuffle_test=True),
    ]
    evaluate(others, tmp_path / "shuffled", method=method)
    first, second = read(tmp_path / "fused", "fusion.json"), read(tmp_path / "shuffled", "fusion.json")
    assert first["fitted"] == second["fitted"]
    assert first["fitted"]["method"] == method
    assert read(tmp_path / "fused", "metrics.json") != read(tmp_path / "shuffled", "metrics.json")


def test_a_model_with_itself_has_its_own_metrics_and_maps(members, tmp_path):
    metrics = evaluate([members[0]] * 2, tmp_path / "fused")
    assert metrics == read(members[0], "metrics.json")
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(folder / "predictions.parquet") for folder in (members[0], tmp_path / "fused"))
    )
    with h5py.File(members[0] / "attention.h5") as own, h5py.File(tmp_path / "fused" / "attention.h5") as fused:
        np.testing.assert_allclose(fused["attention"][:], own["attention"][:], atol=1e-6)


def test_members_without_attention_have_no_part_in_the_map(members, tmp_path):
    plain = write_member(tmp_path / "plain", {CLASSES[2]}, 20, attends=False)
    evaluate([plain, members[1]], tmp_path / "fused")
    with h5py.File(members[1] / "attention.h5") as own, h5py.File(tmp_path / "fused" / "attention.h5") as fused:
        np.testing.assert_allclose(fused["attention"][:], own["attention"][:], atol=1e-6)
    (plain / "maps.json").write_text('{"kind": "grad_cam"}')
    evaluate([plain, plain], tmp_path / "none")
    assert not (tmp_path / "none" / "maps.json").exists()
    evaluate([plain, members[1]], tmp_path / "explained")
    with h5py.File(members[1] / "attention.h5") as own, h5py.File(tmp_path / "explained" / "attention.h5") as fused:
        np.testing.assert_allclose(fused["attention"][:], own["attention"][:], atol=1e-6)


def test_members_of_other_clips_are_refused(members, tmp_path):
    moved = CLIPS.copy()
    moved.loc[moved.index[moved["split"] == "test"][0], "split"] = "train"
    with pytest.raises(UserError, match=r"alstm: .*test split.*--refresh evaluate"):
        evaluate(members, tmp_path / "fused", clips=moved)


def test_a_fusion_stands_in_the_results_beside_its_members(members, tmp_path):
    evaluate(members, tmp_path / "fused", method="weights", weights=(1, 1))
    runs: list[TrainingRun] = [read_training_run(folder, name, 1, 0) for name, folder in zip(MEMBERS, members, strict=True)] + [
        read_training_run(tmp_path / "fused", "two_stream", 1, 0)
    ]
    write_results(tmp_path, runs, [], EvaluateParams(resamples=500))
    results = read(tmp_path, "results.json")
    assert [row["model"] for row in results["models"]] == [*MEMBERS, "two_stream"]
    assert {(pair["first"], pair["second"]) for pair in results["pairs"]} == {
        ("alstm", "alstm@flow"),
        ("alstm", "two_stream"),
        ("alstm@flow", "two_stream"),
    }
    [fusion] = results["fusions"]
    pair = next(pair for pair in results["pairs"] if (pair["first"], pair["second"]) == ("alstm", "two_stream"))
    assert (fusion["fusion"], fusion["members"], fusion["best_member"]) == ("two_stream", list(MEMBERS), "alstm")
    assert fusion["difference"] == -pair["difference"] > 0
    assert fusion["interval"] == [-pair["interval"][1], -pair["interval"][0]]
    assert fusion["weights"] == [0.5, 0.5]
