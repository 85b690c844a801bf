"""The results table, from runs made by hand."""

import json
from dataclasses import replace
from statistics import stdev

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.comparison import TrainingRun, compare, summarise
from pipeline_lib.evaluate.pairing import MCNEMAR, SIGN_FLIP
from pipeline_lib.evaluate.results import Controls, write_results
from pipeline_lib.params import EvaluateParams

PARAMS = EvaluateParams(resamples=500)


def make_run(model, correct, *, fold=1, seed=0, first_video=0, **metrics):
    """Return a run that is right (1) or wrong (0) on one video after the other."""
    names = [f"v{first_video + number:02d}" for number in range(len(correct))]
    videos = pd.DataFrame({"video": names, "group": names, "correct": np.array(correct) == 1})
    accuracy = float(videos["correct"].mean())
    intervals = {"video_accuracy": [accuracy - 0.1, accuracy + 0.1]}
    return TrainingRun(model, fold, seed, {"video_accuracy": accuracy, "intervals": intervals, **metrics}, videos)


def test_one_cell_keeps_its_intervals():
    [summary] = summarise([make_run("alstm", [1, 1, 0, 1], top5_accuracy=None, pointing={"accuracy": 0.3, "chance": 0.1})])
    assert summary.mean == {"video_accuracy": 0.75, "pointing_accuracy": 0.3, "pointing_chance": 0.1}
    assert summary.intervals == {"video_accuracy": [0.65, 0.85]}
    assert summary.standard_deviation == {}


def test_mean_and_deviation_over_training_runs():
    runs = [make_run("alstm", [1, 0], seed=0, macro_f1=0.2), make_run("lrcn", [1, 1], macro_f1=0.5)]
    runs += [make_run("alstm", [1, 1], seed=1, macro_f1=0.4), make_run("alstm", [1, 1], fold=2, macro_f1=0.9)]
    alstm, lrcn = summarise(runs)
    assert (alstm.model, alstm.num_training_runs, lrcn.model, lrcn.num_training_runs) == ("alstm", 3, "lrcn", 1)
    assert alstm.mean == pytest.approx({"video_accuracy": 2.5 / 3, "macro_f1": 0.5})
    assert alstm.standard_deviation == pytest.approx({"video_accuracy": stdev([0.5, 1, 1]), "macro_f1": stdev([0.2, 0.4, 0.9])})
    assert alstm.intervals == {}


def test_a_metric_that_one_cell_lacks_is_left_out():
    runs = [make_run("alstm", [1], seed=0, macro_f1=0.2), make_run("alstm", [1], seed=1)]
    assert summarise(runs)[0].mean == {"video_accuracy": 1.0}


def test_pair_of_single_training_runs():
    first = make_run("alstm", [1, 1, 1, 1, 1, 1, 1, 0])
    second = make_run("lrcn", [0, 0, 0, 0, 0, 1, 0, 1])
    [pair] = compare([first, second], PARAMS)
    assert (pair.first, pair.second, pair.num_videos, pair.test) == ("alstm", "lrcn", 8, MCNEMAR)
    assert pair.difference == pytest.approx(5 / 8)
    assert pair.p_value == pair.p_holm == pytest.approx(2 * (1 + 7) / 2**7)
    assert pair.interval[0] < 5 / 8 < pair.interval[1]


def test_the_interval_is_paired():
    """Two models that fail together differ surely, however little each accuracy is sure of."""
    shared = [1, 0] * 40
    better = [1] * 4 + shared[4:]
    [pair] = compare([make_run("alstm", better), make_run("lrcn", shared)], PARAMS)
    assert pair.difference == pytest.approx(2 / 80)
    assert -0.02 < pair.interval[0] < pair.interval[1] < 0.1


def test_seeds_are_averaged_video_by_video():
    runs = [make_run("alstm", [1, 1, 0], seed=0), make_run("alstm", [1, 0, 0], seed=1)]
    runs += [make_run("lrcn", [1, 0, 0], seed=0), make_run("lrcn", [0, 0, 1], seed=1)]
    [pair] = compare(runs, PARAMS)
    assert (pair.test, pair.num_videos) == (SIGN_FLIP, 3)
    assert pair.difference == pytest.approx((0.5 + 0.5 - 0.5) / 3)
    assert pair.p_value == pytest.approx(1, abs=0.01)


def test_a_video_of_two_splits_counts_once():
    runs = [make_run("alstm", [1, 1]), make_run("alstm", [0, 1], fold=2, first_video=1)]
    runs += [make_run("lrcn", [1, 0]), make_run("lrcn", [0, 0], fold=2, first_video=1)]
    [pair] = compare(runs, PARAMS)
    assert pair.num_videos == 3
    assert pair.difference == pytest.approx((0 + 0.5 + 1) / 3)


def test_only_common_folds_are_compared():
    runs = [make_run("alstm", [1, 1]), make_run("alstm", [0, 0], fold=2), make_run("lrcn", [0, 1])]
    [pair] = compare(runs, PARAMS)
    assert pair.difference == pytest.approx(1 / 2)
    assert compare([make_run("alstm", [1]), make_run("lrcn", [1], fold=2)], PARAMS) == []


def test_p_values_are_adjusted_for_all_pairs():
    runs = [make_run("a", [1] * 10), make_run("b", [0] * 10), make_run("c", [1] * 10)]
    pairs = {(pair.first, pair.second): pair for pair in compare(runs, PARAMS)}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    p = 2 / 2**10
    assert [pair.p_value for pair in pairs.values()] == pytest.approx([p, 1, p])
    assert [pair.p_holm for pair in pairs.values()] == pytest.approx([3 * p, 1, 3 * p])


def test_files(tmp_path):
    runs = [make_run("alstm", [1, 1, 1, 0], seed=seed, chance=0.25) for seed in (0, 1)] + [make_run("lrcn", [0, 1, 0, 0])]
    assert write_results(tmp_path, runs, [], PARAMS) == {"training_runs": 3, "pairs": 1}
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["model"] for row in results["models"]] == ["alstm", "lrcn"]
    table = pd.read_csv(tmp_path / "results.csv").set_index("model")
    assert table["folds x seeds"].tolist() == [2, 1]
    assert table["video accuracy (mode)"].tolist() == [0.75, 0.25]
    assert table.loc["alstm", "video accuracy (mode), sd"] == 0
    assert table.loc["lrcn", "video accuracy (mode), 95 % from"] == pytest.approx(0.15)
    assert pd.isna(table.loc["alstm", "video accuracy (mode), 95 % from"])
    p_holm = results["pairs"][0]["p_holm"]
    assert table.loc["alstm", "p against lrcn (Holm)"] == table.loc["lrcn", "p against alstm (Holm)"] == p_holm
    assert "macro F1 (videos, mode)" not in table


def test_same_training_runs_same_files(tmp_path):
    runs = [make_run("alstm", [1, 0, 1, 1], seed=seed) for seed in (0, 1)] + [make_run("lrcn", [0, 1, 0, 0])]
    for name, order in (("one", runs), ("two", [runs[1], runs[0], runs[2]])):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, order, [], PARAMS)
    for name in ("results.json", "results.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


BASICS = {"chance": 0.5, "majority_class": 0.5, "majority_class_video": 0.5}


def make_controls(fold, correct, permuted, metadata):
    accuracy = sum(correct) / len(correct)
    scores = {
        "logistic_regression": {"video_accuracy": accuracy, "intervals": {"video_accuracy": [0.1, 0.9]}},
        "permuted_labels": {
            "mean": permuted,
            "standard_deviation": 0.05,
            "highest": permuted + 0.1,
            "permutations": 20,
            "labels_changed": 0.5,
            "in_mixed_sources": 0.0,
        },
        "metadata": {"video_accuracy": metadata, "intervals": {"video_accuracy": [metadata - 0.1, metadata + 0.1]}},
    }
    linear = make_run("logistic_regression", correct, fold=fold)
    return Controls(fold, scores, [replace(linear, metrics=scores["logistic_regression"])])


def test_the_linear_reference_is_compared_like_a_model_and_controls_stand_beside(tmp_path):
    controls = [make_controls(1, [1, 0, 0, 0], permuted=0.2, metadata=0.4)]
    write_results(tmp_path, [make_run("alstm", [1, 1, 0, 0])], controls, PARAMS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["model"] for row in results["models"]] == ["alstm", "logistic_regression"]
    assert results["pairs"][0]["difference"] == pytest.approx(0.25)
    assert results["controls"]["permuted_labels"]["mean"] == 0.2
    assert results["controls"]["permuted_labels"]["standard_deviation"] == 0.05
    assert results["controls"]["metadata"] == {"mean": 0.4, "standard_deviation": None, "interval": pytest.approx([0.3, 0.5])}


def test_controls_of_several_folds_are_averaged(tmp_path):
    controls = [make_controls(1, [1, 0], permuted=0.2, metadata=0.4), make_controls(2, [1, 1], permuted=0.4, metadata=0.6)]
    write_results(tmp_path, [make_run("alstm", [1, 1], fold=fold) for fold in (1, 2)], controls, PARAMS)
    found = json.loads((tmp_path / "results.json").read_text())["controls"]
    assert found["permuted_labels"]["mean"] == pytest.approx(0.3)
    assert found["permuted_labels"]["standard_deviation"] == pytest.approx(0.2 / 2**0.5)
    assert found["permuted_labels"]["highest"] == pytest.approx(0.5)
    assert found["metadata"] == {
        "mean": pytest.approx(0.5),
        "standard_deviation": pytest.approx(0.2 / 2**0.5),
        "interval": None,
    }


def test_pairs_are_of_groups():
    """Eight videos from two films: two pieces of evidence."""
    runs = [make_run("alstm", [1] * 8), make_run("lrcn", [0, 1] + [0] * 6)]
    filmed = [replace(run, videos=run.videos.assign(group=["one"] * 4 + ["two"] * 4)) for run in runs]
    [alone], [pair] = compare(runs, PARAMS), compare(filmed, PARAMS)
    assert (alone.num_groups, pair.num_groups, pair.num_videos) == (8, 2, 8)
    assert (pair.test, pair.p_value) == (SIGN_FLIP, 0.5)
    assert alone.p_value < 0.05
    assert pair.interval[0] < 0 < alone.interval[0]
