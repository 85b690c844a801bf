"""Controls: what a linear model reaches on the same features, and what is reached without seeing the action.

Real collections give their labels away: by the scenes and people that a class was filmed with, or by the size, rate and length
of its files. A model's accuracy means something as far as it is above that.
"""

# V videos, D channels (or columns), C classes

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline

from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.bootstrap import mean_interval
from pipeline_lib.evaluate.inputs import average_features, file_metadata
from pipeline_lib.evaluate.regression import Examples, fit_logistic_regression, inverse_penalty
from pipeline_lib.evaluate.sources import permute_labels, split_sources, video_sources
from pipeline_lib.features.hdf5 import FeatureReader
from pipeline_lib.params import EvaluateParams

PARTS = ("train", "val", "test")
Parts = Mapping[str, Examples]


def evaluate_controls(
    clips: pd.DataFrame,
    feature_files: Sequence[Path],
    videos: pd.DataFrame,
    directory: Path,
    params: EvaluateParams,
    *,
    fps: float,
) -> dict[str, Any]:
    """Train the controls of one split on its training videos, score them on its test videos, and return the scores.

    - `logistic_regression`: multinomial, on features averaged over each video's valid frames and all cells, standardised.
      What any attention over the same features has to reach.
    - `permuted_labels`: the same, its training labels permuted within each source, `params.permutations` times over.
      Such labels tell which actions a source shows and not which of its videos shows which: what is scored above chance
      on the true labels of the test part comes from the source, not from the action. Sources of one class, which that
      would leave as they are, exchange their labels as wholes; where all are such, no label has anything to do with its
      video any more, and the control shows no more than how far chance strays.
      `labels_changed` is the share of training videos with another label than their own, `in_mixed_sources` the share
      whose source has several classes.
    - `metadata`: a random forest on the size, aspect, frame rate and length of the video, none of its pixels.

    Writes controls.json, and videos.parquet with the logistic regression's predictions (video, class_name, predicted,
    confidence, correct). `videos` is the table of subsampled videos (see `pipeline_lib.evaluate.inputs.file_metadata`).

    Raises:
        UserError: no test clips, or a clip is in none of the feature files.
    """
    used = clips[clips["part"].isin(PARTS)]
    table = used.drop_duplicates("video").reset_index(drop=True)
    if "test" not in set(table["part"]):
        raise UserError("the test part has no clips; check the split files, or raise chunk.test_fraction")
    label_V, classes = pd.factorize(table["class_name"], sort=True)
    with FeatureReader(feature_files) as reader:
        averages = _parts(average_features(used, reader), label_V, table["part"])
    metadata = _parts(file_metadata(table["video"], videos, fps=fps), label_V, table["part"])
    model = fit_logistic_regression(averages["train"], averages["val"])
    predictions = _predictions(model, averages["test"], table[table["part"] == "test"], classes)
    predictions.to_parquet(directory / "videos.parquet", index=False)
    group_V = predictions["group"].to_numpy()
    regression = _scores(predictions["correct"].to_numpy(), group_V, params)
    controls = {
        "logistic_regression": regression | {"inverse_penalty": inverse_penalty(model)},
        "permuted_labels": _permuted_labels(averages, video_sources(table[table["part"] == "train"]), params),
        "metadata": _metadata(metadata, group_V, params),
    }
    (directory / "controls.json").write_text(json.dumps(controls, indent=2), encoding="utf-8")
    return controls


def _parts(input_VD: np.ndarray, label_V: np.ndarray, part: pd.Series) -> Parts:
    return {name: Examples(input_VD[part == name], label_V[part == name]) for name in PARTS}


def _predictions(model: Pipeline, test: Examples, videos: pd.DataFrame, classes: pd.Index) -> pd.DataFrame:
    probability_VC = model.predict_proba(test.input_VD)
    table = videos[["video", "class_name"]].assign(group=video_sources(videos)).reset_index(drop=True)
    table["predicted"] = classes.to_numpy()[model.classes_[probability_VC.argmax(axis=1)]]
    table["confidence"] = probability_VC.max(axis=1)
    table["correct"] = table["predicted"] == table["class_name"]
    return table


def _scores(correct_V: np.ndarray, group_V: np.ndarray, params: EvaluateParams) -> dict[str, Any]:
    """Return the accuracy and its interval, named as `evaluate_model` names them."""
    interval = mean_interval(correct_V, group_V, resamples=params.resamples, seed=params.seed)
    return {"video_accuracy": float(correct_V.mean()), "intervals": {"video_accuracy": interval}}


def _permuted_labels(parts: Parts, source_V: pd.Series, params: EvaluateParams) -> dict[str, Any]:
    rng = np.random.default_rng(params.seed)
    train, test = parts["train"], parts["test"]
    mixed, single = split_sources(source_V, train.label_V)
    accuracies, changed = [], []
    for _ in range(params.permutations):
        permuted = replace(train, label_V=permute_labels(train.label_V, mixed, single, rng))
        predicted_V = fit_logistic_regression(permuted, parts["val"]).predict(test.input_VD)
        accuracies.append(float((predicted_V == test.label_V).mean()))
        changed.append(float((permuted.label_V != train.label_V).mean()))
    return {
        "mean": mean(accuracies),
        "standard_deviation": stdev(accuracies) if len(accuracies) > 1 else None,
        "highest": max(accuracies),
        "permutations": len(accuracies),
        "labels_changed": mean(changed),
        "in_mixed_sources": sum(map(len, mixed)) / len(train.label_V),
    }


def _metadata(parts: Parts, group_V: np.ndarray, params: EvaluateParams) -> dict[str, Any]:
    train, test = parts["train"], parts["test"]
    forest = RandomForestClassifier(random_state=params.seed, n_jobs=1).fit(train.input_VD, train.label_V)
    return _scores(forest.predict(test.input_VD) == test.label_V, group_V, params)
