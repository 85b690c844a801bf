"""Finetuning: learns from the training split alone, leaves better weights or the same, continues after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.finetune import finetune_backbone
from pipeline_lib.finetune.training import FrameTrainer, one_cycle
from pipeline_lib.params import FeaturesParams, FinetuneParams
from pipeline_lib.video.writing import VideoWriter

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration]
FEATURES = FeaturesParams(backbone="vgg_small", weights="random", image_size=32, grid=2, precision="fp32", device="cpu")
PARAMS = FinetuneParams(epochs=6, batch_size=8, learning_rate=1e-2, frames_per_video=6, patience=6)


class Killed(Exception):  # noqa: N818
    """What a run that is killed in a test dies of."""


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
    splits = ["train"] * 5 + ["val"] * 2 + ["test"]
    rows = [(f"{name}{n}", name, split, 0, 6) for name in ("run", "wave") for n, split in enumerate(splits)]
    return pd.DataFrame(rows, columns=["video", "class_name", "split", "first_frame", "valid_frames"])


class Run:
    """One finetuning in a folder of its own."""

    def __init__(self, clips: pd.DataFrame, folder: Path, place: Path, features: FeaturesParams = FEATURES) -> None:
        self.clips, self.folder, self.features = clips, folder, features
        self.directory, self.partial = place / "artifact", place / "partial"
        self.directory.mkdir(parents=True)
        self.partial.mkdir()
        self.decoded: list[str] = []

    def path(self, video: str) -> Path:
        self.decoded.append(video)
        return self.folder / f"{video}.mp4"

    def start(self, on_epoch: Any = None, **changes: Any) -> dict[str, Any]:
        params = PARAMS.model_copy(update=changes)
        return finetune_backbone(self.clips, self.path, self.directory, self.partial, params, self.features, on_epoch=on_epoch)

    @property
    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(self.directory.iterdir())}

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.directory / "backbone.safetensors")

    @property
    def history(self) -> list[dict[str, Any]]:
        return json.loads((self.directory / "history.json").read_text())


@pytest.fixture
def run(clips: pd.DataFrame, folder: Path, tmp_path: Path) -> Run:
    return Run(clips, folder, tmp_path / "first")


@pytest.fixture
def pretrained_run(clips: pd.DataFrame, folder: Path, tmp_path: Path) -> Run:
    """Return a run that starts from a file of weights, here random ones, as it would from ImageNet's."""
    path = tmp_path / "pretrained.safetensors"
    save_file(first_weights(), path)
    return Run(clips, folder, tmp_path / "pretrained", FEATURES.model_copy(update={"weights": str(path)}))


def first_weights() -> dict[str, Tensor]:
    return build_backbone("vgg_small", "random", grid=2, seed=0).extractor.state_dict()


def changed(weights: dict[str, Tensor]) -> set[str]:
    """Return the numbers of the modules any of whose weights differ from the first ones."""
    before = first_weights()
    return {name.split(".")[1] for name, weight in weights.items() if not torch.equal(weight, before[name])}


def set_val_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Make validation return the loss before training, then those of the epochs."""
    remaining = iter(losses)
    original = FrameTrainer.validate
    monkeypatch.setattr(FrameTrainer, "validate", lambda self: original(self) | {"val_loss": next(remaining)})


def test_learns_and_leaves_weights_that_load(run: Run) -> None:
    rows: list[dict[str, Any]] = []
    counts = run.start(rows.append, epochs=16, patience=16)
    assert counts["val_frame_accuracy"] >= 0.9
    assert counts["train_frames"] == 60
    assert counts["val_frames"] == 24
    assert [row["epoch"] for row in rows] == list(range(1, 17))
    path = run.directory / "backbone.safetensors"
    tuned = build_backbone("vgg_small", "random", grid=2, seed=0, weights_file=path)
    assert tuned.weights_sha256 != build_backbone("vgg_small", "random", grid=2, seed=0).weights_sha256


def test_history_has_a_row_an_epoch_and_nothing_that_differs_from_run_to_run(run: Run) -> None:
    run.start(epochs=2)
    names = ["epoch", "train_loss", "train_frame_accuracy", "val_loss", "val_frame_accuracy"]
    assert [list(row) for row in run.history] == [names, names]


@pytest.mark.parametrize("blocks", [1, 3])
def test_frozen_weights_keep_every_bit_and_all_tuned_ones_change(run: Run, blocks: int) -> None:
    counts = run.start(blocks=blocks, epochs=2)
    assert counts["best_epoch"] > 0
    last_modules = {1: {"15", "16", "18", "20"}, 3: {"4", "6", "8", "9", "11", "13", "15", "16", "18", "20"}}
    assert changed(run.weights) == last_modules[blocks]


def test_all_blocks_change_everything(run: Run) -> None:
    run.start(blocks="all", epochs=2)
    assert changed(run.weights) == {name.split(".")[1] for name in first_weights()}


def test_more_blocks_than_there_are_is_told_before_a_video_is_decoded(run: Run) -> None:
    with pytest.raises(ValueError, match=r"finetune\.blocks = 7: vgg_small has 4 blocks"):
        run.start(blocks=7)
    assert not run.decoded


def test_decodes_videos_of_train_and_val_once_and_never_those_of_test(run: Run) -> None:
    run.start(epochs=1)
    used = run.clips[run.clips["split"].isin(["train", "val"])]
    assert sorted(run.decoded) == sorted(used["video"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_weights_come_from_the_training_part_alone(run: Run, folder: Path, tmp_path: Path, split: str) -> None:
    """Videos of another split are exchanged between the classes: nothing that is learned in an epoch may change."""
    run.start(epochs=1)
    poisoned = run.clips.copy()
    others = poisoned["split"] == split
    poisoned.loc[others, "video"] = poisoned.loc[others, "video"].to_numpy()[::-1]
    other = Run(poisoned, folder, tmp_path / "poisoned")
    other.start(epochs=1)
    assert other.files["backbone.safetensors"] == run.files["backbone.safetensors"]
    assert (other.history[0]["val_loss"] == run.history[0]["val_loss"]) == (split == "test")


def test_training_videos_do_decide_the_weights(run: Run, folder: Path, tmp_path: Path) -> None:
    run.start(epochs=1)
    other = Run(run.clips.replace({"video": {"run0": "wave0", "wave0": "run0"}}), folder, tmp_path / "exchanged")
    other.start(epochs=1)
    assert other.files["backbone.safetensors"] != run.files["backbone.safetensors"]


def test_frames_are_drawn_from_videos_not_clips(run: Run) -> None:
    """Cutting the same frames into more clips changes nothing."""
    halves = [run.clips.assign(first_frame=first, valid_frames=3) for first in (0, 3)]
    run.start(epochs=1, frames_per_video=2)
    whole = run.files
    run.clips = pd.concat(halves)
    (run.partial / "state.pt").unlink()
    run.start(epochs=1, frames_per_video=2)
    assert run.files == whole


def test_early_stopping_keeps_the_best_epoch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    original = FrameTrainer.train_epoch

    def train_epoch(trainer: FrameTrainer, *arguments: Any) -> dict[str, float]:
        metrics = original(trainer, *arguments)
        seen.append({name: weight.clone() for name, weight in trainer.backbone.extractor.state_dict().items()})
        return metrics

    monkeypatch.setattr(FrameTrainer, "train_epoch", train_epoch)
    set_val_losses(monkeypatch, [2.0, 1.5, 1.0, 1.2, 1.1, 0.5])
    counts = run.start(epochs=9, patience=2)
    assert (counts["epochs"], counts["best_epoch"]) == (4, 2)
    assert all(torch.equal(weight, seen[1][name]) for name, weight in run.weights.items())


def test_all_epochs_run_unless_patience_is_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_val_losses(monkeypatch, [2.0, 1.0, 1.2, 1.1, 1.3, 0.5])
    counts = run.start(epochs=5, patience=FinetuneParams().patience)
    assert (counts["epochs"], counts["best_epoch"]) == (5, 5)


def test_weights_stay_as_they_were_if_tuning_brings_nothing(pretrained_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_val_losses(monkeypatch, [0.9, 1.5, 1.0, 1.2])
    counts = pretrained_run.start(epochs=3)
    assert (counts["epochs"], counts["best_epoch"]) == (3, 0)
    assert counts["val_frame_accuracy"] == counts["frozen_val_frame_accuracy"]
    assert not changed(pretrained_run.weights)


def test_random_weights_are_tuned_whatever_it_brings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_val_losses(monkeypatch, [0.9, 1.5, 1.0])
    assert run.start(epochs=2)["best_epoch"] == 2
    assert changed(run.weights)


def test_pretrained_backbone_starts_from_the_best_head_and_a_random_one_does_not(
    pretrained_run: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrameTrainer, "train_epoch", lambda *arguments: {})  # what is validated is what it starts from
    counts = [started.start(epochs=1) for started in (pretrained_run, run)]
    frozen = counts[0]["frozen_val_frame_accuracy"]
    assert frozen == counts[1]["frozen_val_frame_accuracy"] > 0.6
    assert pretrained_run.history[0]["val_frame_accuracy"] == frozen
    assert run.history[0]["val_frame_accuracy"] < frozen


@pytest.mark.parametrize("blocks", [2, "all"])
def test_killed_run_continues_to_the_same_bytes(run: Run, folder: Path, tmp_path: Path, blocks: int | str) -> None:
    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise Killed

    torch.manual_seed(1)
    run.start(blocks=blocks)
    broken = Run(run.clips, folder, tmp_path / "second")
    torch.manual_seed(2)
    with pytest.raises(Killed):
        broken.start(kill, blocks=blocks)
    rows: list[dict[str, Any]] = []
    broken.start(rows.append, blocks=blocks)
    assert broken.files == run.files
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_seed_decides_the_result(run: Run, folder: Path, tmp_path: Path) -> None:
    run.start(epochs=1)
    other = Run(run.clips, folder, tmp_path / "other")
    other.start(epochs=1, seed=1)
    assert other.files["backbone.safetensors"] != run.files["backbone.safetensors"]


@pytest.mark.parametrize("change", [{"flip": False}, {"crop": 0.0}, {"colour": 0.0}])
def test_each_augmentation_takes_part(run: Run, folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    run.start(epochs=1)
    other = Run(run.clips, folder, tmp_path / "other")
    other.start(epochs=1, **change)
    assert other.history != run.history


def test_last_batch_is_never_a_single_frame(run: Run) -> None:
    """17 frames in batches of 8: batch normalisation of one frame of one cell would be impossible."""
    features = FEATURES.model_copy(update={"image_size": 16, "grid": 1})
    clips = run.clips.iloc[:5].assign(valid_frames=[6, 6, 5, 6, 6])
    clips["split"] = ["train", "train", "train", "val", "val"]
    clips["class_name"] = ["run", "wave", "run", "run", "wave"]
    run.clips, run.features = clips, features
    assert run.start(epochs=1)["train_frames"] == 17


@pytest.mark.parametrize("split", ["train", "val"])
def test_part_without_clips_is_told(run: Run, split: str) -> None:
    run.clips = run.clips[run.clips["split"] != split]
    with pytest.raises(ValueError, match=f"finetune: no clips in the {split} split"):
        run.start()


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [one_cycle(progress / 100) for progress in range(101)]
    assert 0 < rates[0] <= 0.01
    assert max(rates) == rates[20] == 1
    assert rates[100] == pytest.approx(0)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
