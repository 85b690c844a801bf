"""The controls' logistic regressions: all of them as one problem, and one after the other with scikit-learn.

Shape suffixes: F label sets, N videos (train, then val, then test), D channels, C classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from benchmarks.measuring import Comparison, compare
from pipeline_lib.evaluate.regression import INVERSE_PENALTIES, Examples, regress

VIDEOS_OF_A_GROUP = 6


@dataclass(frozen=True)
class Size:
    """How much there is to fit."""

    train: int
    val: int
    test: int
    channels: int
    classes: int
    label_sets: int

    def __str__(self) -> str:
        return f"{self.train} x {self.channels}, {self.classes} classes, {self.label_sets} label sets"

    @property
    def num_fits(self) -> int:
        """One a label set and penalty."""
        return self.label_sets * len(INVERSE_PENALTIES)


SMALL = Size(train=700, val=100, test=300, channels=256, classes=15, label_sets=3)
"""Takes scikit-learn half a minute."""

HMDB51 = Size(train=3570, val=500, test=1530, channels=512, classes=51, label_sets=21)
"""More than a fold has, whose 3570 training videos include those for validation."""


class Problem:
    """Features like the means of a ReLU network: not negative, correlated, alike within groups; and permuted labels."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        num_videos = size.train + size.val + size.test
        group_N = np.arange(num_videos) // VIDEOS_OF_A_GROUP
        label_N = rng.permutation(np.arange(group_N[-1] + 1) % size.classes)[group_N]
        hidden = rng.normal(size=(size.classes, 100))[label_N] + rng.normal(size=(group_N[-1] + 1, 100))[group_N]
        hidden += rng.normal(size=hidden.shape)
        mixing = rng.normal(size=(100, size.channels)) / np.sqrt(np.arange(1, 101))[:, None]
        features_ND = np.maximum(hidden @ mixing, 0)
        ends = np.cumsum([0, size.train, size.val, size.test])
        rows = {name: slice(*ends[index : index + 2]) for index, name in enumerate(("train", "val", "test"))}
        self.size = size
        self.splits = {name: Examples(features_ND[split], label_N[split]) for name, split in rows.items()}
        known_N = label_N[: ends[2]]
        self.label_FN = np.stack([known_N, *(rng.permutation(known_N) for _ in range(size.label_sets - 1))])

    def ours(self, device: str = "cpu") -> None:
        """Fit all label sets with all penalties at once."""
        regress(self.splits, self.label_FN, self.size.classes, torch.device(device))

    def usual(self) -> None:
        """Fit each label set with each penalty, and keep the one with the lowest validation loss."""
        scaler = StandardScaler().fit(self.splits["train"].input_VD)
        train_ND, val_MD, test_VD = (scaler.transform(self.splits[name].input_VD) for name in ("train", "val", "test"))
        for label_N in self.label_FN:
            train_label_N, val_label_M = np.split(label_N, [self.size.train])
            fits = [LogisticRegression(C=inverse, max_iter=1000).fit(train_ND, train_label_N) for inverse in INVERSE_PENALTIES]
            losses = [log_loss(val_label_M, fit.predict_proba(val_MD), labels=fit.classes_) for fit in fits]
            fits[int(np.argmin(losses))].predict(test_VD)


def compare_controls() -> Comparison:
    """Compare both ways at a size where the usual one takes half a minute."""
    problem = Problem(SMALL)
    problem.ours()
    return compare(f"controls, {SMALL}", "fits/s", SMALL.num_fits, usual=problem.usual, ours=problem.ours)


def time_hmdb51() -> str:
    """Return how long ours takes at HMDB-51's size, on the CPU and on a GPU if there is one."""
    problem = Problem(HMDB51)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return f"controls, {HMDB51}: " + ", ".join(f"{_seconds(problem, device):.1f} s ({device})" for device in devices)


def _seconds(problem: Problem, device: str) -> float:
    started = time.perf_counter()
    problem.ours(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(time_hmdb51())
