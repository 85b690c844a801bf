"""Controls on collections made to give their labels away, or not to."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.evaluate.comparison import TrainingRun, compare, summarise
from pipeline_lib.evaluate.controls import SVM_INVERSE_PENALTIES, evaluate_controls
from pipeline_lib.evaluate.inputs import average_features, file_metadata
from pipeline_lib.evaluate.regression import regress
from pipeline_lib.params import EvaluateParams
from pipeline_lib.streams.feature_files import FeatureReader, FeatureWriter
from tests.pipeline_lib.conftest import ATTRIBUTES, FPS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("single_thread")]

PARAMS = EvaluateParams(linear_svm=True, resamples=200, permutations=5, device="cpu")
CLASSES = ("dance", "fence", "jump", "run")
CHANNELS = 12


@dataclass(frozen=True)
class Collection:
    """What `evaluate_controls` is given."""

    clips: pd.DataFrame
    files: list[Path]
    videos: pd.DataFrame


def controls(collection, directory, params=PARAMS):
    directory.mkdir(exist_ok=True)
    return evaluate_controls(collection.clips, collection.files, collection.videos, directory, params, fps=FPS)


def describe(clips, **columns):
    """Return the table of subsampled videos, all files alike but for `columns`."""
    videos = clips.drop_duplicates("video")[["video", "class_name"]].reset_index(drop=True)
    alike = {"source_fps": 25.0, "num_frames": 30, "width": 320, "height": 240}
    return videos.assign(**(alike | columns))


def write(folder, clips, features_VD):
    """Write features of one frame and one cell for clips that are a whole video each."""
    with FeatureWriter(folder / "features.h5", clips, frame_shape=(1, 1, CHANNELS), frames=1) as writer:
        writer.describe(ATTRIBUTES)
        writer.append(features_VD[:, None, None, :])
    return Collection(clips, [folder / "features.h5"], describe(clips))


def make_clips(source_labels, splits):
    """Return one clip a video, given the labels of each footage's videos and each footage's split."""
    rows = []
    for footage, (labels, split) in enumerate(zip(source_labels, splits, strict=True)):
        for number, label in enumerate(labels):
            name = CLASSES[label]
            rows.append((f"{name}/{footage}_{number}", name, f"film{footage}_{name}", split, footage, label))
    clips = pd.DataFrame(rows, columns=["video", "class_name", "group", "split", "footage", "label"])
    return clips.assign(clip=clips["video"] + "#00000", first_frame=0, valid_frames=1)


SPLITS = ["train"] * 12 + ["val"] * 4 + ["test"] * 8


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Return films that each show every action twice; a frame shows the action, and the film."""
    clips = make_clips([[0, 1, 2, 3] * 2] * len(SPLITS), SPLITS)
    rng = np.random.default_rng(0)
    features_VD = rng.normal(0, 0.3, (len(clips), CHANNELS)) + rng.normal(0, 1, (len(SPLITS), CHANNELS))[clips["footage"]]
    features_VD[:, :4] += 6 * np.eye(4)[clips["label"]]
    return write(tmp_path_factory.mktemp("honest"), clips, features_VD)


@pytest.fixture(scope="module")
def given_away(tmp_path_factory):
    """Return films that show one action mostly, and look like it whatever they show; a frame shows the film only."""
    mostly = np.arange(len(SPLITS)) % 4
    clips = make_clips([[main] * 6 + [(main + 1) % 4] for main in mostly], SPLITS)
    features_VD = np.random.default_rng(0).normal(0, 0.3, (len(clips), CHANNELS))
    features_VD[:, :4] += 3 * np.eye(4)[mostly[clips["footage"]]]
    return write(tmp_path_factory.mktemp("given_away"), clips, features_VD)


def test_permuted_labels_are_at_chance_where_sources_say_nothing(honest, tmp_path):
    scores = controls(honest, tmp_path, PARAMS.model_copy(update={"permutations": 40}))
    assert scores["logistic_regression"]["video_accuracy"] > 0.95
    permuted = scores["permuted_labels"]
    assert permuted["mean"] == pytest.approx(1 / 4, abs=0.08)
    assert permuted["labels_changed"] == pytest.approx(3 / 4, abs=0.05)
    assert permuted["in_mixed_sources"] == 1
    assert permuted["permutations"] == 40


def test_permuted_labels_choose_their_penalty_by_permuted_labels(honest, tmp_path, monkeypatch):
    """On true validation labels a penalty would be chosen that suits the true classes: the control must not see them."""
    seen = []
    monkeypatch.setattr("pipeline_lib.evaluate.controls.regress", lambda *args: seen.append(args) or regress(*args))
    controls(honest, tmp_path)
    [(splits, label_FV, _, _)] = seen
    num_train, true_V = len(splits["train"].label_V), np.concatenate([splits[name].label_V for name in ("train", "val")])
    assert (label_FV[0] == true_V).all()
    changed_FV = label_FV[1:] != true_V
    for part_FV in (changed_FV[:, :num_train], changed_FV[:, num_train:]):
        assert part_FV.mean() == pytest.approx(3 / 4, abs=0.15)


def test_permuted_labels_are_far_above_chance_where_sources_say_which(given_away, tmp_path):
    scores = controls(given_away, tmp_path)
    assert 0.7 < scores["logistic_regression"]["video_accuracy"] <= 6 / 7
    permuted = scores["permuted_labels"]
    assert permuted["mean"] > 0.7
    assert permuted["mean"] <= permuted["highest"] <= 1
    assert 0 < permuted["labels_changed"] < 2 / 7


def test_groups_that_do_not_end_in_their_class_are_sources_of_one_class(honest, tmp_path):
    dashed = honest.clips.assign(group=honest.clips["group"].str.replace("_", "-"))
    permuted = controls(replace(honest, clips=dashed), tmp_path)["permuted_labels"]
    assert permuted["in_mixed_sources"] == 0
    assert permuted["labels_changed"] == pytest.approx(3 / 4, abs=0.1)


def test_metadata_find_a_class_given_away_by_frame_size(honest, tmp_path):
    width = honest.clips["class_name"].map({"dance": 640, "fence": 320, "jump": 480, "run": 176})
    sized = replace(honest, videos=describe(honest.clips, width=width.to_numpy()))
    assert controls(sized, tmp_path / "sized")["metadata"]["video_accuracy"] == 1
    assert controls(honest, tmp_path / "alike")["metadata"]["video_accuracy"] == 1 / 4


def test_metadata_are_read_by_name_of_the_video(honest):
    shuffled = describe(honest.clips, width=np.arange(len(honest.clips)) + 100).sample(frac=1, random_state=0)
    table = file_metadata(honest.clips["video"], shuffled, fps=15.0)
    assert table[:, 0].tolist() == (np.arange(len(honest.clips)) + 100).tolist()
    np.testing.assert_allclose(table[3], [103, 240, 103 / 240, 25, 2.0])


def test_files(honest, tmp_path):
    scores = controls(honest, tmp_path)
    assert json.loads((tmp_path / "controls.json").read_text()) == scores
    regression = scores["logistic_regression"]
    low, high = regression["intervals"]["video_accuracy"]
    assert 0 <= low <= regression["video_accuracy"] <= high <= 1
    assert regression["num_groups"] == scores["metadata"]["num_groups"] == 8  # films of the test split, not `<film>_<class>`
    videos = pd.read_parquet(tmp_path / "videos.parquet")
    test = honest.clips[honest.clips["split"] == "test"]
    assert videos[["video", "class_name"]].to_numpy().tolist() == test[["video", "class_name"]].to_numpy().tolist()
    assert (videos["correct"] == (videos["predicted"] == videos["class_name"])).all()
    assert videos["correct"].mean() == regression["video_accuracy"]
    assert videos["confidence"].between(1 / 4, 1).all()


def test_the_regression_is_a_training_run_to_compare_models_with(honest, tmp_path):
    metrics = controls(honest, tmp_path)["logistic_regression"]
    regression = TrainingRun("logistic_regression", 1, 0, metrics, pd.read_parquet(tmp_path / "videos.parquet"))
    never_right = replace(regression, model="alstm", videos=regression.videos.assign(correct=False))
    [pair] = compare([regression, never_right], PARAMS)
    assert pair.difference == metrics["video_accuracy"]
    assert summarise([regression])[0].mean == {"video_accuracy": metrics["video_accuracy"], "num_groups": 8}


def test_the_svm_sees_directions_and_not_lengths(honest, tmp_path):
    scores = controls(honest, tmp_path)["linear_svm"]
    videos = pd.read_parquet(tmp_path / "videos_svm.parquet")
    assert scores["video_accuracy"] == videos["correct"].mean() > 0.95
    assert scores["inverse_penalty"] in SVM_INVERSE_PENALTIES
    assert videos["confidence"].between(1 / 4, 1).all()
    with FeatureReader(honest.files) as reader:
        features_VD = reader.load(honest.clips["clip"].tolist()).flatten(1).numpy()
    (tmp_path / "longer").mkdir()
    longer = write(tmp_path / "longer", honest.clips, features_VD * np.geomspace(0.5, 2, len(features_VD))[:, None])
    controls(longer, tmp_path / "longer")
    assert pd.read_parquet(tmp_path / "longer" / "videos_svm.parquet")["predicted"].equals(videos["predicted"])


def test_same_inputs_same_files(given_away, tmp_path):
    for name in ("one", "two"):
        controls(given_away, tmp_path / name)
    for name in ("controls.json", "videos.parquet", "videos_svm.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_test_labels_are_not_learned_from(given_away, tmp_path):
    clips = given_away.clips.copy()
    is_test = clips["split"] == "test"
    clips.loc[is_test, "class_name"] = "dance"
    controls(given_away, tmp_path / "before")
    controls(replace(given_away, clips=clips), tmp_path / "after")
    for file in ("videos.parquet", "videos_svm.parquet"):
        before, after = (pd.read_parquet(tmp_path / name / file) for name in ("before", "after"))
        assert before[["predicted", "confidence"]].equals(after[["predicted", "confidence"]])


def only_first_class_trains(clips):
    return clips[(clips["split"] != "train") | (clips["class_name"] == CLASSES[0])]


def one_training_video_a_class(clips):
    train = clips[clips["split"] == "train"].drop_duplicates("class_name")
    return pd.concat([train, clips[clips["split"] != "train"]])


def validation_of_an_unknown_class(clips):
    return clips[(clips["split"] == "test") | ((clips["split"] == "val") == (clips["class_name"] == CLASSES[0]))]


@pytest.mark.parametrize(
    "choose",
    [
        only_first_class_trains,
        one_training_video_a_class,
        validation_of_an_unknown_class,
        lambda clips: clips[clips["split"] != "val"],
        lambda clips: clips[(clips["split"] != "test") | (clips["class_name"] == CLASSES[0])],
    ],
    ids=["one class", "one video a class", "unknown validation", "no validation", "one test class"],
)
def test_thin_collections(honest, tmp_path, choose):
    scores = controls(replace(honest, clips=choose(honest.clips)), tmp_path, PARAMS.model_copy(update={"permutations": 1}))
    assert 0 <= scores["logistic_regression"]["video_accuracy"] <= 1
    assert 0 <= scores["linear_svm"]["video_accuracy"] <= 1
    assert scores["permuted_labels"]["standard_deviation"] is None
    json.dumps(scores, allow_nan=False)


def test_one_class_in_training_is_always_said(honest, tmp_path):
    scores = controls(replace(honest, clips=only_first_class_trains(honest.clips)), tmp_path)
    assert [scores[name]["video_accuracy"] for name in ("logistic_regression", "linear_svm", "metadata")] == [1 / 4] * 3
    assert scores["permuted_labels"]["labels_changed"] == 0
    assert scores["logistic_regression"]["inverse_penalty"] is scores["linear_svm"]["inverse_penalty"] is None


@pytest.mark.parametrize("source_fps", [np.nan, [np.nan, 25.0] * 96])
def test_rates_that_files_do_not_tell(honest, tmp_path, source_fps):
    scores = controls(replace(honest, videos=describe(honest.clips, source_fps=source_fps)), tmp_path)
    assert 0 <= scores["metadata"]["video_accuracy"] <= 1


def test_constant_features(honest, tmp_path):
    flat = write(tmp_path, honest.clips, np.ones((len(honest.clips), CHANNELS)))
    assert controls(flat, tmp_path)["logistic_regression"]["video_accuracy"] == 1 / 4


def test_without_test_clips(honest, tmp_path):
    with pytest.raises(ValueError, match="the test split has no clips"):
        controls(replace(honest, clips=honest.clips[honest.clips["split"] != "test"]), tmp_path)


def test_averages_against_a_loop(feature_store):
    clips = feature_store.clips
    with FeatureReader(feature_store.files) as reader:
        found_VD = average_features(clips, reader, torch.device("cpu"))
        assert len(found_VD) == clips["video"].nunique() == 36
        for average_D, (_, own) in zip(found_VD, clips.groupby("video", sort=False), strict=True):
            features = [
                reader.load([clip])[0, :valid_frames].double().numpy()
                for clip, valid_frames in zip(own["clip"], own["valid_frames"], strict=True)
            ]
            np.testing.assert_allclose(average_D, np.concatenate(features).mean(axis=(0, 1, 2)), rtol=1e-5)


def test_a_store_as_the_pipeline_makes_it(feature_store, tmp_path):
    """Unused videos have no say, and need no features."""
    whole = Collection(feature_store.clips, feature_store.files, describe(feature_store.clips))
    used = feature_store.clips[feature_store.clips["split"] != "unused"]
    assert controls(whole, tmp_path / "whole") == controls(replace(whole, clips=used), tmp_path / "used")
    assert controls(whole, tmp_path / "whole")["logistic_regression"]["video_accuracy"] == 1
