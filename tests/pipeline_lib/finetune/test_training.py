"""Finetuning: learns, keeps the best weights loadable, continues after a kill with the same result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.finetune import finetune_backbone
from pipeline_lib.finetune.training import one_cycle
from pipeline_lib.models.backbones import build_backbone
from pipeline_lib.params import FeaturesParams, FinetuneParams
from pipeline_lib.video.writing import VideoWriter

pytestmark = pytest.mark.usefixtures("single_thread")
FEATURES = FeaturesParams(backbone="vgg_small", weights="random", image_size=32, grid=2, precision="fp32", device="cpu")
PARAMS = FinetuneParams(epochs=6, batch_size=8, learning_rate=1e-2, frames_per_clip=6, patience=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return videos of horizontal (run) and vertical (wave) stripes of random widths and colours."""
    folder = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    for class_name in ("run", "wave"):
        for number in range(8):
            with VideoWriter(folder / f"{class_name}{number}.mp4", width=48, height=48, fps=15) as writer:
                for _ in range(6):
                    writer.write(_stripes(random, upright=class_name == "wave"))
    return folder


def _stripes(random: np.random.Generator, *, upright: bool) -> np.ndarray:
    colours = random.integers(0, 256, (2, 3))
    places = (np.arange(48) // random.integers(4, 7)) % 2
    frame = np.broadcast_to(colours[places][None], (48, 48, 3)).astype(np.uint8)
    return np.ascontiguousarray(frame if upright else frame.transpose(1, 0, 2))


@pytest.fixture
def clips() -> pd.DataFrame:
    parts = ["train"] * 5 + ["val"] * 2 + ["test"]
    rows = [(f"{name}{n}", name, part, 0, 6) for name in ("run", "wave") for n, part in enumerate(parts)]
    return pd.DataFrame(rows, columns=["video", "class_name", "part", "first_frame", "valid_frames"])


class Run:
    """One finetuning in a folder of its own."""

    def __init__(self, clips: pd.DataFrame, folder: Path, place: Path) -> None:
        self.clips, self.folder = clips, folder
        self.directory, self.partial = place / "artifact", place / "partial"
        self.directory.mkdir(parents=True)
        self.partial.mkdir()
        self.decoded: list[str] = []

    def path(self, video: str) -> Path:
        self.decoded.append(video)
        return self.folder / f"{video}.mp4"

    def start(self, params: FinetuneParams = PARAMS, **options: Any) -> dict[str, Any]:
        return finetune_backbone(self.clips, self.path, self.directory, self.partial, params, FEATURES, **options)

    @property
    def weights(self) -> bytes:
        return (self.directory / "backbone.safetensors").read_bytes()

    @property
    def history(self) -> list[dict[str, Any]]:
        return json.loads((self.directory / "history.json").read_text())


@pytest.fixture
def run(clips: pd.DataFrame, folder: Path, tmp_path: Path) -> Run:
    return Run(clips, folder, tmp_path / "first")


def test_learns_from_the_training_part_and_leaves_weights_that_load(run: Run) -> None:
    rows: list[dict[str, Any]] = []
    counts = run.start(PARAMS.model_copy(update={"epochs": 16, "patience": 16}), on_epoch=rows.append)
    assert counts["val_frame_accuracy"] >= 0.9
    assert counts["train_frames"] == 60
    assert counts["val_frames"] == 24
    assert rows == run.history
    assert set(rows[0]) >= {"epoch", "train_loss", "train_frame_accuracy", "val_loss", "val_frame_accuracy", "seconds"}
    tuned = build_backbone("vgg_small", "random", grid=2, seed=0, weights_file=run.directory / "backbone.safetensors")
    assert tuned.weights_sha256 != build_backbone("vgg_small", "random", grid=2, seed=0).weights_sha256


def test_decodes_videos_of_train_and_val_once_and_never_those_of_test(run: Run) -> None:
    run.start(PARAMS.model_copy(update={"epochs": 2}))
    used = run.clips[run.clips["part"].isin(["train", "val"])]
    assert sorted(run.decoded) == sorted(used["video"])


def test_killed_run_continues_to_the_same_bytes(run: Run, folder: Path, tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise Killed

    torch.manual_seed(1)
    run.start()
    broken = Run(run.clips, folder, tmp_path / "second")
    torch.manual_seed(2)
    with pytest.raises(Killed):
        broken.start(on_epoch=kill)
    rows: list[dict[str, Any]] = []
    broken.start(on_epoch=rows.append)
    assert broken.weights == run.weights
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_seed_decides_the_result(run: Run, folder: Path, tmp_path: Path) -> None:
    short = PARAMS.model_copy(update={"epochs": 1})
    run.start(short)
    other = Run(run.clips, folder, tmp_path / "other")
    other.start(short.model_copy(update={"seed": 1}))
    assert other.weights != run.weights


@pytest.mark.parametrize("part", ["train", "val"])
def test_part_without_clips_is_told(run: Run, part: str) -> None:
    run.clips = run.clips[run.clips["part"] != part]
    with pytest.raises(ValueError, match=f"finetune: no clips in the {part} part"):
        run.start()


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [one_cycle(progress / 100) for progress in range(101)]
    assert 0 < rates[0] <= 0.01
    assert max(rates) == rates[20] == 1
    assert rates[100] == pytest.approx(0)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
