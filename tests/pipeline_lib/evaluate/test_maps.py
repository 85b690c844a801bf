"""What is written about a model's maps, from maps made by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.maps import ScoredMaps, curve_totals, map_totals, write_maps
from pipeline_lib.evaluate.masking import Curves
from pipeline_lib.evaluate.pointing import find_actor

CLASSES = ("run", "sit", "wave")
GRID, FRAMES, FPS = 4, 3, 15.0
TEST = pd.DataFrame(
    {
        "clip": ["a#0", "a#3", "b#0", "c#0"],
        "video": ["a", "a", "b", "c"],
        "class_name": ["run", "run", "run", "sit"],
        "group": ["film", "film", "film", "other"],
        "first_frame": [0, 3, 0, 0],
        "valid_frames": [3, 2, 3, 1],
    }
)
LEFT_HALF = (0.0, 0.0, 0.5, 1.0)


@pytest.fixture
def attention_NTI():
    return np.random.default_rng(0).dirichlet(np.ones(GRID**2), (len(TEST), FRAMES))


def boxes(videos):
    rows = [(video, frame / FPS, *LEFT_HALF) for video in videos for frame in range(6)]
    return pd.DataFrame(rows, columns=["video", "time_seconds", "x0", "y0", "x1", "y1"])


def curves(test):
    """Return curves that fall and rise in a straight line, from and to the number of each video."""
    height_N = np.array([0.3, 0.6, 0.9])[[("a", "b", "c").index(video) for video in test["video"]]]
    rising_NF = height_N[:, None] * np.linspace(0, 1, 3)
    keys = [(name, measure) for name in ("model", "uniform", "centre") for measure in ("deletion", "insertion")]
    return Curves(np.linspace(0, 1, 3), {key: rising_NF[:, ::-1] if key[1] == "deletion" else rising_NF for key in keys})


def score(attention_NTI, test=TEST, boxed=("a", "b", "c")):
    actor = find_actor(test, FRAMES, GRID, boxes(boxed), fps=FPS) if boxed else None
    masked = test[test["first_frame"] == 0]
    totals = pd.concat([map_totals(test, attention_NTI, actor), curve_totals(masked, curves(masked))], ignore_index=True)
    return ScoredMaps(test, CLASSES, GRID, totals, curves(masked))


def written(tmp_path, scored):
    write_maps(tmp_path, scored)
    return json.loads((tmp_path / "maps.json").read_text())


def test_the_file_is_complete(tmp_path, attention_NTI):
    maps = written(tmp_path, score(attention_NTI))
    names = ["entropy", "centre_bias", "drift", "pointing", "mass_in_box", "deletion", "insertion"]
    assert (maps["num_clips"], maps["num_groups"], maps["num_masked"], maps["grid"]) == (4, 2, 3, GRID)
    assert list(maps["measures"]) == names
    for name, row in maps["measures"].items():
        assert row["interval"][0] <= row["model"] <= row["interval"][1], name
        assert ("differences" in row) == (row["better"] is not None), name
    assert maps["measures"]["entropy"]["uniform"] == 1
    assert maps["measures"]["centre_bias"]["uniform"] == 0
    assert maps["measures"]["drift"]["uniform"] == maps["measures"]["drift"]["centre"] == 0
    assert maps["measures"]["mass_in_box"]["uniform"] == maps["measures"]["pointing"]["uniform"] == 0.5
    assert [list(row) for row in maps["classes"]] == [["class", "clips", *names]] * 3
    assert [row["clips"] for row in maps["classes"]] == [3, 1, 0]
    assert maps["classes"][2]["entropy"] is None
    for measure in ("deletion", "insertion"):
        assert list(maps["curves"][measure]) == ["fraction", "model", "uniform", "centre"]
    assert maps["curves"]["deletion"]["model"] == pytest.approx([0.6, 0.3, 0])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "maps.parquet"), score(attention_NTI).totals)


def test_every_valid_frame_weighs_the_same(tmp_path, attention_NTI):
    half_K = np.arange(GRID**2) % GRID < GRID // 2
    valid = [attention_NTI[clip, frame] for clip, length in enumerate(TEST["valid_frames"]) for frame in range(length)]
    maps = written(tmp_path, score(attention_NTI))
    assert maps["measures"]["mass_in_box"]["model"] == pytest.approx(np.mean([map_I[half_K].sum() for map_I in valid]))
    moved = [
        np.abs(attention_NTI[clip, t] - attention_NTI[clip, t - 1]).sum() / 2
        for clip, t in ((0, 1), (0, 2), (1, 1), (2, 1), (2, 2))
    ]
    assert maps["measures"]["drift"]["model"] == pytest.approx(np.mean(moved))
    # sit's one clip has one frame: nothing before it to have moved from
    assert maps["classes"][1]["drift"] is None
    # clips of one video count once in curves, whatever their length
    assert maps["measures"]["insertion"]["model"] == pytest.approx(np.mean([0.3, 0.6, 0.9]) / 2)
    assert maps["classes"][0]["insertion"] == pytest.approx(np.mean([0.3, 0.6]) / 2)


def test_padded_frames_and_the_order_of_clips_change_nothing(tmp_path, attention_NTI):
    maps = written(tmp_path, score(attention_NTI))
    order = [2, 0, 3, 1]
    turned = attention_NTI.copy()
    turned[1, 2], turned[3, 1:] = 0, np.eye(GRID**2)[:2]
    again = written(tmp_path, score(turned[order], TEST.iloc[order].reset_index(drop=True)))
    assert again == maps


def test_frames_without_a_box_count_for_the_other_measures_only(tmp_path, attention_NTI):
    some = written(tmp_path, score(attention_NTI, boxed=("b",)))["measures"]
    half_K = np.arange(GRID**2) % GRID < GRID // 2
    assert some["mass_in_box"]["model"] == pytest.approx(attention_NTI[2][:, half_K].sum(axis=1).mean())
    none = written(tmp_path, score(attention_NTI, boxed=()))["measures"]
    assert list(none) == ["entropy", "centre_bias", "drift", "deletion", "insertion"]
    assert none["entropy"] == some["entropy"]


def test_pointing_is_a_metric_where_boxes_are_known(attention_NTI):
    assert score(attention_NTI, boxed=()).pointing() == {}
    on_left = np.broadcast_to(np.eye(GRID**2)[4], attention_NTI.shape)
    assert score(on_left).pointing() == {"pointing": {"accuracy": 1.0, "chance": 0.5, "num_frames": 9}}


def test_differences_are_of_the_same_videos(tmp_path, attention_NTI):
    on_left = np.broadcast_to(np.eye(GRID**2)[4], attention_NTI.shape)
    pointing = written(tmp_path, score(on_left))["measures"]["pointing"]
    assert pointing["differences"]["uniform"] == {"difference": 0.5, "interval": [0.5, 0.5]}


def test_flow_is_only_scored_where_it_is_known(tmp_path, attention_NTI):
    """In frames with boxes; another map of all frames has all measures."""
    left_NTI = np.zeros((len(TEST), FRAMES, GRID, GRID))
    left_NTI[..., : GRID // 2] = 2 / GRID**2
    left_NTI = left_NTI.reshape(len(TEST), FRAMES, -1)
    actor = find_actor(TEST, FRAMES, GRID, boxes(["a"]), fps=FPS)
    totals = map_totals(TEST, attention_NTI, actor, {"flow": left_NTI, "grad_cam": left_NTI})
    measures = written(tmp_path, ScoredMaps(TEST, CLASSES, GRID, totals, None))["measures"]
    assert {name: "flow" in row for name, row in measures.items()} == {
        "entropy": False,
        "centre_bias": False,
        "drift": False,
        "pointing": True,
        "mass_in_box": True,
    }
    assert all("grad_cam" in row for row in measures.values())
    assert measures["mass_in_box"]["flow"] == measures["pointing"]["flow"] == 1
    assert list(measures["pointing"]["differences"]) == ["uniform", "centre", "flow", "grad_cam"]
    difference = measures["mass_in_box"]["differences"]["flow"]["difference"]
    assert difference == pytest.approx(measures["mass_in_box"]["model"] - 1)
    known = map_totals(TEST, attention_NTI, None, {"flow": left_NTI})
    assert set(known["map"]) == {"model", "uniform", "centre"}
