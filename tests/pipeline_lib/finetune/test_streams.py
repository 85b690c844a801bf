"""Finetuning of streams of flow and clips: learns motion that no frame shows, and leaves weights that the stream loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.finetune import finetune_backbone
from pipeline_lib.finetune import training as training_module
from pipeline_lib.finetune.source import network_input, source_of
from pipeline_lib.params import FinetuneParams, StreamParams
from pipeline_lib.params.stages import FetchParams, Params
from pipeline_lib.streams.flow.opening import flow_spec, open_flow
from pipeline_lib.video.decoders import Derived, read_images
from pipeline_lib.video.writing import VideoWriter

pytestmark = [pytest.mark.usefixtures("single_thread"), pytest.mark.integration, pytest.mark.slow]
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {"backbone": "vgg_small", "weights": "random", "grid": 2, "precision": "fp32", "device": "cpu"}
FLOW = StreamParams(input="flow", image_size=32, stack=3, bound=8.0, **COMMON)
FLOW_IMAGE = FLOW.model_copy(update={"stack": 1})
CLIP = StreamParams(input="clip", image_size=32, **(COMMON | {"backbone": "mc3_18"}))
PARAMS = FinetuneParams(epochs=8, batch_size=8, learning_rate=1e-2, frames_per_video=6, patience=8)


class Killed(Exception):  # noqa: N818
    """What a run that is killed in a test dies of."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return videos of a square that moves sideways (run) or up and down (wave) over noise."""
    folder = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    for class_name in ("run", "wave"):
        for number in range(8):
            with VideoWriter(folder / f"{class_name}{number}.mp4", width=48, height=48, fps=15, crf=10) as writer:
                for frame in _moving_square(random, axis=int(class_name == "run")):
                    writer.write(frame)
    return folder


def _moving_square(random: np.random.Generator, *, axis: int) -> Iterator[np.ndarray]:
    background = random.integers(0, 256, (6, 6, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    square = random.integers(0, 256, (5, 5, 3)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    place, direction = random.integers(4, 24, 2), random.choice([-1, 1])
    for number in range(10):
        corner = place.copy()
        corner[axis] = np.clip(corner[axis] + direction * 3 * (number - 5), 0, 28)
        frame = background.copy()
        frame[corner[0] : corner[0] + 20, corner[1] : corner[1] + 20] = square
        yield frame


@pytest.fixture
def clips() -> pd.DataFrame:
    splits = ["train"] * 5 + ["val"] * 2 + ["test"]
    rows = [(f"{name}{n}", name, split, 0, 10) for name in ("run", "wave") for n, split in enumerate(splits)]
    return pd.DataFrame(rows, columns=["video", "class_name", "split", "first_frame", "valid_frames"])


class Run:
    """One finetuning in a folder of its own."""

    def __init__(self, clips: pd.DataFrame, folder: Path, place: Path, stream: StreamParams) -> None:
        self.clips, self.folder, self.stream = clips, folder, stream
        self.directory, self.partial = place / "artifact", place / "partial"
        self.directory.mkdir(parents=True)
        self.partial.mkdir()

    def start(self, on_epoch: Any = None, **changes: Any) -> dict[str, Any]:
        params = PARAMS.model_copy(update=changes)
        paths = {video: self.folder / f"{video}.mp4" for video in self.clips["video"]}
        return finetune_backbone(
            self.clips, paths.__getitem__, self.directory, self.partial, params, self.stream, on_epoch=on_epoch
        )

    @property
    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(self.directory.iterdir())}


@pytest.mark.parametrize("stream", [FLOW, FLOW_IMAGE], ids=["stack", "image"])
def test_flow_stream_learns_motion_and_leaves_weights_that_load(
    clips: pd.DataFrame, folder: Path, tmp_path: Path, stream: StreamParams
) -> None:
    run = Run(clips, folder, tmp_path, stream)
    counts = run.start()
    assert counts["val_frame_accuracy"] >= 0.8
    path = run.directory / "backbone.safetensors"
    build_backbone("vgg_small", "random", grid=2, seed=0, weights_file=path, channels_in=stream.input_channels)
    assert len(json.loads((run.directory / "history.json").read_text())) == counts["epochs"]


def test_killed_flow_run_continues_to_the_same_bytes(clips: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise Killed

    whole, broken = (Run(clips, folder, tmp_path / name, FLOW) for name in ("whole", "broken"))
    whole.start(epochs=3)
    with pytest.raises(Killed):
        broken.start(kill, epochs=3)
    broken.start(epochs=3)
    assert broken.files == whole.files


@pytest.mark.parametrize("change", [{"flip": False}, {"crop": 0.0}])
def test_each_augmentation_of_flow_takes_part_but_not_colour(
    clips: pd.DataFrame, folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    first, other, colourless = (Run(clips, folder, tmp_path / name, FLOW) for name in ("first", "other", "colourless"))
    first.start(epochs=1)
    other.start(epochs=1, **change)
    colourless.start(epochs=1, colour=0.0)
    assert other.files != first.files
    assert colourless.files == first.files


def test_kept_flow_is_that_of_extraction_at_half_its_side(folder: Path) -> None:
    path = folder / "run0.mp4"
    stream = FLOW.model_copy(update={"image_size": 48})
    source = source_of(stream, build_backbone("vgg_small", "random", grid=2, seed=0, channels_in=6), 10, CPU)
    assert (source.side, source.channels, source.offsets) == (24, 2, (0, 1, 2))
    whole = open_flow(flow_spec(stream), stream, CPU)
    assert isinstance(whole, Derived)
    kept_FHWC, whole_NHWC = (
        np.concatenate([images for _, images in read_images(path, [wanted])]) for wanted in (source.wanted, whole)
    )
    means_NHWC = whole_NHWC.reshape(10, 24, 2, 24, 2, 6).mean(axis=(2, 4))
    for number in range(8):
        stacked_HWC = np.concatenate(list(kept_FHWC[number : number + 3]), axis=-1)
        assert abs(stacked_HWC - means_NHWC[number]).max() <= 0.5


def test_stack_becomes_channels_in_the_order_of_extraction_at_the_image_size() -> None:
    backbone = build_backbone("vgg_small", "random", grid=2, seed=0, channels_in=6)
    images_NTCHW = torch.arange(6, dtype=torch.uint8).view(1, 3, 2, 1, 1).expand(1, 3, 2, 4, 4) + 125
    inputs_NCHW = network_input(images_NTCHW, backbone, 8)
    assert inputs_NCHW.shape == (1, 6, 8, 8)
    assert inputs_NCHW[0, :, 4, 4].diff().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, "all"])
def test_clip_stream_is_tuned(clips: pd.DataFrame, folder: Path, tmp_path: Path, blocks: int | str) -> None:
    run = Run(clips, folder, tmp_path, CLIP)
    counts = run.start(epochs=1, frames_per_video=2, blocks=blocks, learning_rate=1e-4)
    assert counts["train_frames"] == 10
    assert counts["val_frames"] == 4
    tuned = build_backbone("mc3_18", "random", grid=2, seed=0, weights_file=run.directory / "backbone.safetensors")
    before = build_backbone("mc3_18", "random", grid=2, seed=0)
    changed = {
        name.split(".")[0]
        for name, weight in tuned.extractor.state_dict().items()
        if not torch.equal(weight, before.extractor.state_dict()[name])
    }
    assert changed == ({"layer4"} if blocks == 1 else {"stem", "layer1", "layer2", "layer3", "layer4"})


def test_clips_become_what_a_video_network_takes() -> None:
    backbone = build_backbone("mc3_18", "random", grid=2, seed=0)
    images_NTCHW = torch.randint(0, 256, (2, 5, 3, 8, 8)).to(torch.uint8)
    clips_NCTHW = network_input(images_NTCHW, backbone, 8)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in backbone.preprocessing)
    torch.testing.assert_close(clips_NCTHW, (images_NTCHW.transpose(1, 2) / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_network_that_does_not_take_the_input_is_one_line(clips: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    run = Run(clips, folder, tmp_path, CLIP.model_copy(update={"backbone": "vgg_small"}))
    with pytest.raises(ValueError, match=r"^features\.backbone = vgg_small: .*$"):
        run.start()


def test_flow_has_a_higher_dropout(clips: pd.DataFrame, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropouts = []
    original = training_module.FrameClassifier.__init__

    def note(model: Any, *arguments: Any) -> None:
        dropouts.append(arguments[-1])
        original(model, *arguments)

    monkeypatch.setattr(training_module.FrameClassifier, "__init__", note)
    for name, stream in (("flow", FLOW), ("rgb", StreamParams(image_size=32, **COMMON))):
        Run(clips, folder, tmp_path / name, stream).start(epochs=1, frames_per_video=1)
    assert dropouts == [0.8, 0.5]


def test_unknown_stream_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"finetune\.streams has motion, but features\.streams has only rgb; add it there"):
        Params(fetch=FetchParams(kind="hmdb51"), finetune=FinetuneParams(streams=("motion",)))
