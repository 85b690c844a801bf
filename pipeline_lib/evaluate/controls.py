"""Controls: the accuracy of a linear model on the same features, and of classifiers that cannot see the action.

Real collections leak labels through scenes and people, or through the size, frame rate and length of the files. A model's
accuracy is meaningful only as far as it exceeds that of the controls.
"""

# F label sets, V videos, D channels (or columns), C classes

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier

from pipeline_lib.artifacts import layout
from pipeline_lib.compute.devices import choose_device
from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.inputs import average_features, file_metadata
from pipeline_lib.evaluate.intervals import accuracy_interval
from pipeline_lib.evaluate.linear_svm import fit_svm
from pipeline_lib.evaluate.permutation import mixed_and_single, permute_labels, video_footage
from pipeline_lib.evaluate.regression import Examples, regress
from pipeline_lib.params import EvaluateParams
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.training.linear_svm import unit_length

# Small collections have classes of one or two videos. Filtered globally, because warning filters are not per thread.
warnings.filterwarnings("ignore", message="The number of unique classes", module="sklearn")

SVM_INVERSE_PENALTIES, SVM_CV_FOLDS = (0.1, 1.0, 10.0), 3
"""Candidates for the SVM's C, and folds of its cross-validation; few, because a fit to many classes takes seconds."""

SPLITS = ("train", "val", "test")
Splits = Mapping[str, Examples]


def evaluate_controls(
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    videos: pd.DataFrame,
    directory: Path,
    params: EvaluateParams,
    *,
    fps: float,
) -> dict[str, Any]:
    """Train the controls on one fold's training videos, score them on its test videos, and return the scores.

    - `logistic_regression`: multinomial, on standardised features averaged over each video's valid frames and all cells. It is
      the baseline for attention over the same features.
    - `linear_svm`, if `params.linear_svm`: one class against the rest, on the same averages, L2-normalised (C3D's protocol,
      Tran et al. 2015). The penalty is chosen by cross-validation over the groups of the training videos.
    - `permuted_labels`: the logistic regression with the labels of training and validation videos permuted within each group,
      `params.permutations` times. Such labels still say which actions a group shows, but not in which videos. Accuracy above
      chance on the true test labels therefore comes from the footage and not from the action. Groups of a single class swap
      their labels as a whole. If all groups are of a single class, labels and videos are unrelated and the control only shows
      how much accuracy varies by chance. `labels_changed` is the fraction of training videos whose label changed,
      `in_mixed_sources` the fraction of training and validation videos in groups of several classes.
    - `metadata`: a random forest on the size, aspect ratio, frame rate and length of the video, without its pixels.

    Writes controls.json, videos.parquet with the logistic regression's predictions (video, class_name, group, predicted,
    confidence, correct), and videos_svm.parquet with those of the SVM, whose confidence is the softmax of its decision values
    and not calibrated. `videos` is the table of subsampled videos (see `pipeline_lib.evaluate.inputs.file_metadata`).
    Intervals are over groups (see `pipeline_lib.evaluate.intervals`).

    Raises:
        UserError: no test clips, or a clip is in none of the feature files.
    """
    device = choose_device(params.device, key="evaluate.device")
    table, ordered_clips = _order_by_split(clips)
    label_V, classes = pd.factorize(table["class_name"], sort=True)
    with FeatureReader(feature_files) as reader:
        averages = _by_split(average_features(ordered_clips, reader, device), label_V, table["split"])
    train_group_V = table[table["split"] == "train"]["footage"].to_numpy()
    metadata = _by_split(file_metadata(table["video"], videos, fps=fps), label_V, table["split"])
    fitted = table[table["split"] != "test"]
    true_V = label_V[: len(fitted)]
    mixed, single = mixed_and_single(fitted["footage"], true_V)
    rng = np.random.default_rng(params.seed)
    permuted_FV = np.array([permute_labels(true_V, mixed, single, rng) for _ in range(params.permutations)])
    regression = regress(averages, np.concatenate([true_V[None], permuted_FV]), len(classes), device)
    predictions = _predictions(regression.probability_FVC[0], table[table["split"] == "test"], classes)
    predictions.to_parquet(directory / layout.VIDEOS, index=False)
    svm_scores = {}
    if params.linear_svm:
        svm_VC, inverse_penalty = _linear_svm(averages, train_group_V, len(classes))
        of_svm = _predictions(svm_VC, table[table["split"] == "test"], classes)
        of_svm.to_parquet(directory / layout.SVM_VIDEOS, index=False)
        svm_scores["linear_svm"] = _scores(of_svm["correct"], of_svm["group"]) | {"inverse_penalty": inverse_penalty}
    controls = {
        "logistic_regression": _scores(predictions["correct"], predictions["group"])
        | {"inverse_penalty": regression.inverse_penalty_F[0]},
        **svm_scores,
        "permuted_labels": _permuted_scores(regression.probability_FVC[1:], averages, permuted_FV)
        | {"in_mixed_sources": sum(map(len, mixed)) / len(fitted)},
        "metadata": _metadata(metadata, predictions["group"], params),
    }
    (directory / layout.CONTROLS).write_text(json.dumps(controls, indent=2), encoding="utf-8")
    return controls


def _order_by_split(clips: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of videos, with their `footage`, and of clips, both ordered by split: train, val, test."""
    used = pd.concat([clips[clips["split"] == split] for split in SPLITS])
    table = used.drop_duplicates("video").reset_index(drop=True)
    if "test" not in set(table["split"]):
        raise UserError("the test split has no clips; check the split files, or raise chunk.test_fraction")
    return table.assign(footage=video_footage(table)), used


def _by_split(input_VD: np.ndarray, label_V: np.ndarray, split: pd.Series) -> Splits:
    return {name: Examples(input_VD[split == name], label_V[split == name]) for name in SPLITS}


def _predictions(probability_VC: np.ndarray, videos: pd.DataFrame, classes: pd.Index) -> pd.DataFrame:
    table = videos[["video", "class_name"]].reset_index(drop=True).assign(group=videos["footage"].to_numpy())
    table["predicted"] = classes.to_numpy()[probability_VC.argmax(axis=1)]
    table["confidence"] = probability_VC.max(axis=1)
    table["correct"] = table["predicted"] == table["class_name"]
    return table


def _linear_svm(splits: Splits, group_V: np.ndarray, num_classes: int) -> tuple[np.ndarray, float | None]:
    """Return confidence_VC of the test videos and scikit-learn's C, which is None if all training videos are of one class."""
    train, test = splits["train"], splits["test"]
    known, label_V = np.unique(train.label_V, return_inverse=True)
    confidence_VC = np.zeros((len(test.label_V), num_classes))
    if len(known) == 1:
        confidence_VC[:, known] = 1.0
        return confidence_VC, None
    svm = fit_svm(
        unit_length(train.input_VD),
        label_V,
        group_V,
        inverse_penalties=SVM_INVERSE_PENALTIES,
        default=1.0,
        cv_folds=SVM_CV_FOLDS,
    )
    confidence_VC[:, known] = softmax(svm.decide(unit_length(test.input_VD)), axis=1)
    return confidence_VC, svm.inverse_penalty


def _scores(correct_V: pd.Series, group_V: pd.Series) -> dict[str, Any]:
    """Return the accuracy and its interval under the names that `evaluate_model` uses."""
    interval = accuracy_interval(correct_V.to_numpy(), group_V.to_numpy())
    return {
        "video_accuracy": float(correct_V.mean()),
        "intervals": {"video_accuracy": interval},
        "num_groups": int(group_V.nunique()),
    }


def _permuted_scores(probability_FVC: np.ndarray, splits: Splits, permuted_FV: np.ndarray) -> dict[str, Any]:
    train, test = splits["train"], splits["test"]
    accuracies = (probability_FVC.argmax(axis=2) == test.label_V).mean(axis=1).tolist()
    return {
        "mean": mean(accuracies),
        "standard_deviation": stdev(accuracies) if len(accuracies) > 1 else None,
        "highest": max(accuracies),
        "permutations": len(accuracies),
        "labels_changed": float((permuted_FV[:, : len(train.label_V)] != train.label_V).mean()),
    }


def _metadata(splits: Splits, group_V: pd.Series, params: EvaluateParams) -> dict[str, Any]:
    train, test = splits["train"], splits["test"]
    forest = RandomForestClassifier(random_state=params.seed, n_jobs=1).fit(train.input_VD, train.label_V)
    return _scores(pd.Series(forest.predict(test.input_VD) == test.label_V), group_V)
