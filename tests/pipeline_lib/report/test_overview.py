"""The results as text."""

from __future__ import annotations

from pipeline_lib.report.overview import estimate, fusions_overview, pairs_overview, results_overview

MEAN = {
    "frame_accuracy": 0.5,
    "clip_accuracy": 0.625,
    "video_accuracy": 0.75,
    "video_accuracy_by_mean": 0.8,
    "calibration_error": 0.123,
    "chance": 0.25,
    "majority_class": 0.3,
    "majority_class_video": 0.35,
    "num_videos": 40,
    "num_groups": 8,
    "pointing_accuracy": 0.9,
    "pointing_chance": 0.1,
}
CONTROLS = {
    "permuted_labels": {"mean": 0.26, "standard_deviation": 0.04},
    "metadata": {"mean": 0.45, "standard_deviation": None, "interval": [0.3, 0.6]},
}


def results(**changes):
    one = {"model": "conv_alstm", "num_training_runs": 1, "mean": MEAN, "standard_deviation": {}, "intervals": {}}
    return {"models": [one | changes], "controls": CONTROLS, "pairs": []}


def row(overview, name):
    (cells,) = [cells for first, *cells in (*overview.models, *overview.references) if first == name]
    return dict(zip(overview.headings, cells, strict=True))


def test_a_models_row_is_in_percent_with_intervals_where_there_are_any():
    overview = results_overview(results(intervals={"video_accuracy": [0.61, 0.892], "video_accuracy_by_mean": [0, 1]}))
    assert row(overview, "conv alstm") == {
        "frame acc.": "50.0",
        "clip acc.": "62.5",
        "video acc.": "75.0 [61, 89]",
        "mean vote": "80.0",
        "macro F1": "",
        "top-5": "",
        "ECE": "12.3",
        "pointing game": "90.0",
    }
    assert "40 videos" in overview.title
    assert "95 % CI over groups" in overview.title


def test_several_folds_and_seeds_show_their_deviation():
    overview = results_overview(results(num_training_runs=15, standard_deviation={"video_accuracy": 0.021}))
    assert row(overview, "conv alstm")["video acc."] == "75.0 ± 2.1"
    assert "± SD over 15 folds and seeds" in overview.title


def test_controls_and_baselines_stand_below():
    overview = results_overview(results())
    assert row(overview, "permuted labels")["video acc."] == "26.0 ± 4.0"
    assert row(overview, "file metadata")["video acc."] == "45.0 [30, 60]"
    assert row(overview, "majority class") == dict.fromkeys(overview.headings, "") | {"clip acc.": "30.0", "video acc.": "35.0"}
    assert row(overview, "chance")["mean vote"] == "25.0"
    assert row(overview, "chance")["pointing game"] == "10.0"


def test_pairs_are_a_triangle_of_rows_minus_columns():
    pair = {"difference": -0.0213, "p_holm": 0.0442}
    pairs = [{"first": a, "second": b} | pair for a, b in (("alstm", "lrcn"), ("alstm", "mean_pool"), ("lrcn", "mean_pool"))]
    overview = pairs_overview({"pairs": pairs})
    assert overview.headings == ["lrcn", "mean pool"]
    assert overview.models == [["alstm", "-2.1 [0.044]", "-2.1 [0.044]"], ["lrcn", "", "-2.1 [0.044]"]]


def test_spread():
    assert estimate(0.5) == "50.0"
    assert estimate(0.5, deviation=0.0) == "50.0 ± 0.0"
    assert estimate(0.5, interval=[0.4, 0.6]) == "50.0 [40, 60]"


def test_a_fusion_has_its_gain_and_the_overlap_of_its_members_errors():
    fusion = {
        "fusion": "two_stream",
        "members": ["lrcn", "lrcn@flow"],
        "method": "weights",
        "weights": [1 / 3, 2 / 3],
        "notes": [],
        "best_member": "lrcn@flow",
        "difference": 0.04,
        "p_holm": 0.031,
        "oracle_accuracy": 0.9,
        "all_wrong": 0.1,
        "error_jaccard": 0.25,
    }
    svm = fusion | {"fusion": "learned", "method": "svm", "notes": ["2 of 5 classes"], "error_jaccard": None}
    overview = fusions_overview({"fusions": [fusion, svm]})
    assert row(overview, "two stream") == {
        "method": "weights",
        "weights": "0.33:0.67",
        "best member": "lrcn@flow",
        "gain": "+4.0 [0.031]",
        "either right": "90.0",
        "all wrong": "10.0",
        "overlap of errors": "25.0",
    }
    learned = row(overview, "learned")
    assert (learned["method"], learned["weights"], learned["overlap of errors"]) == ("svm*", "", "")


def test_a_difference_that_rounds_to_zero_has_no_minus():
    results = {"pairs": [{"first": "a", "second": "b", "difference": -1e-9, "p_holm": 1.0}]}
    assert pairs_overview(results).models == [["a", "+0.0 [1]"]]
