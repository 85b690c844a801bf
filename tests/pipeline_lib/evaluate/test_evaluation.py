"""The evaluate stage: every test clip counts, and every number can be recomputed from the tables."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline_lib.evaluate import evaluate_model
from pipeline_lib.params import EvaluateParams, TrainParams
from pipeline_lib.train import train_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("single_thread")]

PARAMS = EvaluateParams(device="cpu", batch_size=7, resamples=500)


@pytest.fixture(scope="module", params=["alstm", "conv_alstm"])
def checkpoint(request, tmp_path_factory, feature_store):
    params = TrainParams(epochs=12, learning_rate=1e-2, alstm_units=16, conv_alstm_units=8, device="cpu", attention_penalty=0.0)
    folder = tmp_path_factory.mktemp(request.param)
    train_model(feature_store.clips, feature_store.files, folder, folder, params.of(request.param))
    return folder / "checkpoint.safetensors"


def evaluate(checkpoint, store, directory, params=PARAMS):
    return evaluate_model(checkpoint, store.clips, store.files, directory, params, fps=store.fps, boxes=store.boxes)


@pytest.fixture(scope="module")
def evaluated(checkpoint, feature_store, tmp_path_factory):
    """Return the metrics and the folder of an evaluation, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("evaluated")
    return evaluate(checkpoint, feature_store, folder), folder


def test_metrics_are_what_the_tables_say(evaluated, feature_store):
    metrics, directory = evaluated
    test = feature_store.clips[feature_store.clips["split"] == "test"]
    table = pd.read_parquet(directory / "predictions.parquet")
    videos = pd.read_parquet(directory / "videos.parquet")
    assert json.loads((directory / "metrics.json").read_text()) == metrics
    assert table["clip"].tolist() == test["clip"].tolist()
    assert metrics["num_clips"] == 18
    assert metrics["num_videos"] == len(videos) == 9
    assert (videos["num_clips"] == 2).all()
    assert metrics["clip_accuracy"] == (table["predicted"] == table["class_name"]).mean()
    assert metrics["video_accuracy"] == (videos["predicted"] == videos["class_name"]).mean()
    assert metrics["clip_accuracy_by_mean"] == (table["predicted_by_mean"] == table["class_name"]).mean()
    assert metrics["video_accuracy_by_mean"] == (videos["predicted_by_mean"] == videos["class_name"]).mean()
    assert metrics["chance"] == metrics["majority_class"] == metrics["majority_class_video"] == pytest.approx(1 / 3)
    frames = [(name == row.class_name) for row in table.itertuples() for name in row.frame_predicted]
    assert len(frames) == metrics["num_frames"] == test["valid_frames"].sum()
    assert metrics["frame_accuracy"] == pytest.approx(np.mean(frames))
    assert metrics["clip_accuracy"] > 0.5


def test_intervals_hold_the_accuracies(evaluated):
    metrics, _ = evaluated
    names = ["frame_accuracy", "clip_accuracy", "clip_accuracy_by_mean", "video_accuracy", "video_accuracy_by_mean"]
    assert list(metrics["intervals"]) == names
    for name, (low, high) in metrics["intervals"].items():
        assert 0 <= low <= metrics[name] <= high <= 1, name


def test_the_seed_and_number_of_resamples_decide_nothing(checkpoint, feature_store, tmp_path, evaluated):
    (tmp_path / "other").mkdir()
    metrics = evaluate(checkpoint, feature_store, tmp_path / "other", PARAMS.model_copy(update={"seed": 1, "resamples": 3}))
    assert metrics == evaluated[0]


def test_clip_prediction_is_the_mode_of_its_frames(evaluated):
    table = pd.read_parquet(evaluated[1] / "predictions.parquet")
    for row in table.itertuples():
        counts = pd.Series(row.frame_predicted).value_counts()
        assert counts[row.predicted] == counts.max()
        assert len(row.frame_predicted) == len(row.frame_confidence) == row.valid_frames
        assert 0 < row.confidence <= 1


def test_attention_is_in_the_order_of_the_predictions(evaluated):
    table = pd.read_parquet(evaluated[1] / "predictions.parquet")
    with h5py.File(evaluated[1] / "attention.h5") as file:
        assert file["clip"].asstr()[:].tolist() == table["clip"].tolist()
        assert file["attention"].dtype == np.float32
        attention = file["attention"][:]
    assert attention.shape == (18, 6, 4, 4)
    np.testing.assert_allclose(attention.sum(axis=(2, 3)), 1, atol=1e-5)


def test_per_class_table(evaluated):
    metrics, directory = evaluated
    table = pd.read_csv(directory / "per_class.csv")
    assert table["class"].tolist() == ["brush_hair", "sit", "walk & wave"]
    assert table["clips"].tolist() == [6, 6, 6]
    assert table["videos"].tolist() == [3, 3, 3]
    assert table["recall"].mean() == pytest.approx(metrics["clip_accuracy"])
    assert table["video_accuracy"].mean() == pytest.approx(metrics["video_accuracy"])


def test_pointing_is_reported_beside_chance(evaluated):
    metrics, _ = evaluated
    pointing = metrics["pointing"]
    assert pointing["num_frames"] == metrics["num_frames"]
    assert pointing["chance"] == pytest.approx(1 / 16)
    assert 0 <= pointing["accuracy"] <= 1


def test_maps_are_measured_as_they_are_written(evaluated):
    metrics, directory = evaluated
    maps = json.loads((directory / "maps.json").read_text())
    assert (maps["num_clips"], maps["num_masked"], maps["grid"]) == (18, 9, 4)
    assert maps["measures"]["pointing"]["model"] == metrics["pointing"]["accuracy"]
    with h5py.File(directory / "attention.h5") as file:
        attention = file["attention"][:].astype(float)
    valid = [
        clip[:length]
        for clip, length in zip(attention, pd.read_parquet(directory / "predictions.parquet")["valid_frames"], strict=True)
    ]
    entropy = -np.concatenate([(clip * np.log(clip)).sum(axis=(1, 2)) for clip in valid]) / np.log(16)
    assert maps["measures"]["entropy"]["model"] == pytest.approx(entropy.mean(), abs=1e-6)


def test_a_map_of_an_explainer_stands_beside_attention(evaluated):
    maps = json.loads((evaluated[1] / "maps.json").read_text())
    assert maps["kind"] == "attention"
    for name in ("entropy", "pointing", "mass_in_box", "tube_iou", "video_map_50"):
        assert np.isfinite(maps["measures"][name]["grad_cam"]), name
    assert list(maps["measures"]["pointing"]["differences"]) == ["uniform", "centre", "grad_cam"]
    assert "grad_cam" not in maps["measures"]["deletion"]


def test_a_model_without_attention_is_checked_by_grad_cam_which_finds_the_actor(feature_store, tmp_path):
    params = TrainParams(epochs=12, learning_rate=1e-2, alstm_units=16, device="cpu").of("mean_pool")
    train_model(feature_store.clips, feature_store.files, tmp_path, tmp_path, params)
    metrics = evaluate(tmp_path / "checkpoint.safetensors", feature_store, tmp_path)
    maps = json.loads((tmp_path / "maps.json").read_text())
    assert maps["kind"] == "grad_cam"
    assert metrics["pointing"]["accuracy"] > 0.8 > metrics["pointing"]["chance"]
    assert metrics["localisation"]["box_accuracy_30"] > 0.5
    assert maps["measures"]["deletion"]["model"] < maps["measures"]["deletion"]["uniform"]
    with h5py.File(tmp_path / "attention.h5") as file:
        assert np.ptp(file["attention"][:]) < 1e-6  # attention itself stays uniform


def test_flow_is_that_of_the_videos_with_boxes(checkpoint, feature_store, tmp_path, monkeypatch):
    """Of a collection in which one video has boxes."""
    asked = []

    def flow_maps(test, num_frames, grid, clip_N, path_of):
        asked.extend(path_of(video) for video in set(test["video"].iloc[clip_N]))
        map_NTI = np.zeros((len(test), num_frames, grid**2))
        map_NTI[:, :, 0] = 1
        return map_NTI

    monkeypatch.setattr("pipeline_lib.evaluate.evaluation.flow_maps", flow_maps)
    video = feature_store.clips.query("split == 'test'")["video"].iloc[0]
    own = feature_store.boxes.query("video == @video").assign(x0=0.0, y0=0.0, x1=0.25, y1=0.25)
    evaluate_model(
        checkpoint,
        feature_store.clips,
        feature_store.files,
        tmp_path,
        PARAMS,
        fps=feature_store.fps,
        boxes=own,
        video_path=tmp_path.joinpath,
    )
    measures = json.loads((tmp_path / "maps.json").read_text())["measures"]
    assert asked == [tmp_path / video]
    assert measures["pointing"]["flow"] == measures["mass_in_box"]["flow"] == measures["tube_iou"]["flow"] == 1
    assert list(measures["tube_iou"]["differences"]) == ["uniform", "centre", "grad_cam", "flow"]
    assert "flow" not in measures["entropy"]


def test_boxes_are_scored_as_they_are_written(evaluated, feature_store):
    metrics, directory = evaluated
    maps = json.loads((directory / "maps.json").read_text())
    tubes = pd.read_parquet(directory / "tubes.parquet")
    predictions = pd.read_parquet(directory / "predictions.parquet").set_index("clip")
    assert maps["boxes"] == {
        "videos": 9,
        "frames": metrics["num_frames"],
        "frames_with_several": 0,
        "frames_without": 0,
    }
    assert len(tubes) == metrics["num_frames"]
    names = ["box_accuracy_30", "box_accuracy_50", "box_accuracy_70", "tube_iou", "video_map_20", "video_map_50"]
    assert list(metrics["localisation"]) == names
    by_video = tubes["iou"].groupby(tubes["clip"].map(predictions["video"])).mean()
    assert maps["measures"]["tube_iou"]["model"] == pytest.approx(by_video.mean())
    for name in names:
        row = maps["measures"][name]
        assert row["model"] == metrics["localisation"][name]
        assert row["interval"][0] <= row["model"] <= row["interval"][1]
        # an actor fills one cell exactly
        assert row["oracle"] == 1 or name.startswith("video_map")
    # nine boxes of 1/16 of the frame: the whole frame is never half right
    assert maps["measures"]["tube_iou"]["uniform"] == pytest.approx(1 / 16)
    assert maps["measures"]["box_accuracy_30"]["uniform"] == 0
    assert len(pd.read_parquet(directory / "maps.parquet").query("map == 'oracle'")) == 4 * 9


def test_without_boxes_nothing_is_said_of_them(checkpoint, feature_store, tmp_path):
    metrics = evaluate(checkpoint, replace(feature_store, boxes=None), tmp_path)
    assert not {"pointing", "localisation"} & set(metrics)
    assert "boxes" not in json.loads((tmp_path / "maps.json").read_text())
    assert not (tmp_path / "tubes.parquet").exists()


def test_curves_begin_and_end_at_what_the_model_says(evaluated):
    _, directory = evaluated
    curves = json.loads((directory / "maps.json").read_text())["curves"]
    for name in ("model", "uniform", "centre"):
        deletion, insertion = curves["deletion"][name], curves["insertion"][name]
        assert (deletion[0], deletion[-1]) == (insertion[-1], insertion[0])
        # Nothing to see: whatever the model then prefers, over classes as frequent as each other it is chance.
        assert insertion[0] == pytest.approx(1 / 3, abs=1e-3)
        assert deletion[0] > insertion[0] + 0.1


def test_batch_size_does_not_matter(checkpoint, feature_store, tmp_path, evaluated):
    (tmp_path / "one").mkdir()
    metrics = evaluate(checkpoint, feature_store, tmp_path / "one", PARAMS.model_copy(update={"batch_size": 64}))
    assert metrics == evaluated[0]
    maps = [pd.read_parquet(folder / "maps.parquet") for folder in (tmp_path / "one", evaluated[1])]
    pd.testing.assert_frame_equal(*maps, atol=1e-5)


def test_equal_models_give_equal_files(checkpoint, feature_store, tmp_path, evaluated):
    (tmp_path / "again").mkdir()
    evaluate(checkpoint, feature_store, tmp_path / "again")
    for name in (
        "metrics.json",
        "predictions.parquet",
        "videos.parquet",
        "per_class.csv",
        "confusion.png",
        "attention.h5",
        "maps.json",
        "maps.parquet",
        "tubes.parquet",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (evaluated[1] / name).read_bytes(), name


def test_confusion_is_a_picture(evaluated):
    with Image.open(evaluated[1] / "confusion.png") as image:
        assert min(image.size) > 300


def test_without_test_clips(checkpoint, feature_store, tmp_path):
    clips = feature_store.clips
    with pytest.raises(ValueError, match="the test split has no clips"):
        evaluate(checkpoint, replace(feature_store, clips=clips[clips["split"] != "test"]), tmp_path)


def test_a_class_the_model_does_not_know(checkpoint, feature_store, tmp_path):
    clips = feature_store.clips.replace({"class_name": {"sit": "yawn"}})
    with pytest.raises(ValueError, match="was not trained on the class 'yawn'"):
        evaluate(checkpoint, replace(feature_store, clips=clips), tmp_path)


def test_features_of_another_backbone_are_refused(checkpoint, feature_store, tmp_path):
    other = tmp_path / "other.h5"
    other.write_bytes(feature_store.files[0].read_bytes())
    with h5py.File(other, "a") as file:
        file.attrs["weights_sha256"] = "b" * 64
    with pytest.raises(ValueError, match=r"trained on features with weights_sha256 a+, but these have b+"):
        evaluate(checkpoint, replace(feature_store, files=[other]), tmp_path)
