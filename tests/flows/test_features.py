"""`har features` writes any stream of any video; its features are those of the pipeline and of the predictor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from flows.features import features
from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.features import FeatureReader, extract_features
from pipeline_lib.params import ChunkParams, StreamParams, SubsampleParams, load_params
from pipeline_lib.predict.predictor import Predictor
from pipeline_lib.streams.stream import Span
from pipeline_lib.subsample import subsample_video
from tasks.features import backbone_recipe
from tasks.stage import Context
from tests.models import make_bundle, write_video

SMALL = {"weights": "random", "image_size": 32, "grid": 2, "precision": "fp32"}
STREAMS: dict[str, dict[str, Any]] = {
    "rgb": {"backbone": "vgg_small", **SMALL},
    "flow": {"input": "flow", "backbone": "vgg_small", **SMALL},
    "stack": {"input": "flow", "stack": 3, "backbone": "vgg_small", **SMALL},
    "clip": {"input": "clip", "backbone": "r3d_18", **SMALL},
    "dense": {"input": "clip", "backbone": "mc3_18", **SMALL},
}
FRAMES = 16
SETTINGS = [f"features={json.dumps({'device': 'cpu', 'streams': STREAMS})}", f"chunk.frames={FRAMES}"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 41 frames at 30 fps: 21 at 15 fps, a clip and 5 frames of the next."""
    return write_video(tmp_path_factory.mktemp("video") / "a b.mp4", 41)


def run(videos: list[Path], folder: Path, **options: Any) -> int:
    defaults = {"params": "hmdb51", "settings": SETTINGS, "streams": (), "output": folder, "suffix": "h5", "pool": False}
    return features([str(video) for video in videos], **defaults | options)


@pytest.fixture(scope="module")
def written(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("features")
    assert run([video], folder) == 0
    return folder


@pytest.mark.parametrize("name", STREAMS)
def test_extraction_har_features_and_the_predictor_agree(name: str, video: Path, written: Path, tmp_path: Path) -> None:
    params = StreamParams(**STREAMS[name], device="cpu")
    subsampled = tmp_path / "shard" / "videos" / "a.mp4"
    subsampled.parent.mkdir(parents=True)
    num_frames = subsample_video(video, subsampled, SubsampleParams()).num_frames
    table = pd.DataFrame({"video": ["a"], "class_name": "c", "num_frames": num_frames, "reason": None})
    table.to_parquet(tmp_path / "shard" / "videos.parquet")
    extract_features(tmp_path / "shard", {name: tmp_path}, {name: params}, ChunkParams(frames=FRAMES), fps=15.0)
    with FeatureReader([tmp_path / "features.h5"]) as reader:
        clips_NSKKD, step_frames = reader.load(reader.clips).numpy(), np.array(reader.step_frames)

    predictor = Predictor([make_bundle(tmp_path / "model", frames=FRAMES, params=params)], device="cpu")
    windows = [window for (window,) in map(dict.values, predictor._windows(subsampled, Span((0, FRAMES), num_frames), None))]
    np.testing.assert_allclose(np.stack([window.values for window in windows]), clips_NSKKD, rtol=1e-4, atol=1e-4)

    with h5py.File(written / name / "a_b.h5") as file:
        steps_NKKD, seconds_N = file["features"][:], file["seconds"][:]
        assert file.attrs["axes"] == "step,row,column,channel"
        assert file.attrs["video"] == str(video)
    frames_N = np.concatenate([step_frames, (FRAMES + step_frames)[step_frames < num_frames - FRAMES]])
    assert num_frames == 21
    np.testing.assert_allclose(seconds_N, frames_N / 15)
    expected_NKKD = np.concatenate([clips_NSKKD[0], clips_NSKKD[1][step_frames < num_frames - FRAMES]])
    np.testing.assert_allclose(steps_NKKD, expected_NKKD, rtol=1e-4, atol=1e-4)


def test_pooled_vectors_as_npz_are_the_means_of_the_maps(video: Path, written: Path, tmp_path: Path) -> None:
    assert run([video], tmp_path / "out", streams=("flow", "clip"), suffix="npz", pool=True) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip", "flow"]
    for name in ("flow", "clip"):
        with np.load(tmp_path / "out" / name / "a_b.npz") as pooled, h5py.File(written / name / "a_b.h5") as maps:
            assert pooled["features"].dtype == np.float32
            np.testing.assert_allclose(pooled["features"], maps["features"][:].astype(float).mean(axis=(1, 2)), rtol=1e-5)
            np.testing.assert_array_equal(pooled["seconds"], maps["seconds"][:])
            provenance = json.loads(str(pooled["provenance"]))
            assert provenance["axes"] == "step,channel"
            assert provenance["preprocessing"] == json.loads(maps.attrs["preprocessing"])


def test_a_bad_video_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("videos/a/x.mp4", "videos/b/X.mp4", "videos/c/one.mp4"):
        write_video(tmp_path / name, 1 if "one" in name else 9)
    (tmp_path / "videos" / "bad.avi").write_text("no video")
    assert run([tmp_path / "videos"], tmp_path / "out", streams=("rgb",)) == 1
    assert sorted(path.name for path in (tmp_path / "out" / "rgb").iterdir()) == ["X-2.h5", "one.h5", "x.h5"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rgb"]
    out = capsys.readouterr().out
    assert "bad.avi: not a video that ffmpeg can read" in out
    assert "3 of 4 videos" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": ("motion",)}, "--stream motion: features.streams has only rgb, flow, stack, clip, dense"),
        ({"settings": ["features.backbone=r3d_18"]}, "features.backbone = r3d_18: takes clips, not single images"),
        ({"settings": ["features.backbon=x"]}, "unknown key features.backbon"),
        ({"params": "none.yaml"}, "none.yaml"),
    ],
    ids=str,
)
def test_bad_parameters_are_one_clear_line(options: dict[str, Any], message: str, video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run([video], tmp_path / "out", **options)
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(video: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output .*: is not empty"):
        run([video], tmp_path)


TUNED = [
    *SETTINGS[1:],
    f"features={json.dumps({'device': 'cpu', 'streams': {'rgb': STREAMS['rgb'], 'flow': STREAMS['flow']}})}",
    "finetune.enabled=true",
]


def make_tuned(workspace: Path, fold: int, seed: int) -> str:
    """Make the artifacts of a fold's clips and of the weights tuned on them, and return the weights' SHA-256."""
    params = load_params("hmdb51", [*TUNED, f"workspace={workspace}"])
    context = Context(workspace=Workspace(folder=workspace))
    clips = Recipe("chunk", "chunk", params.chunk.of_fold(fold).recipe())
    made = context.store.make(clips, lambda folder: (folder / layout.CLIPS).write_text(str(fold)) and {})
    values = {"finetune": params.finetune.recipe(), "backbone": backbone_recipe(context, params.tuned_streams["rgb"])}
    tuned = build_backbone("vgg_small", "random", grid=2, seed=seed)

    def write(folder: Path) -> dict[str, Any]:
        save_file(tuned.extractor.state_dict(), folder / layout.BACKBONE)
        return {}

    context.store.make(Recipe("finetune", "finetune", values, {"clips": made.content_key}), write)
    return str(tuned.weights_sha256)


def sha256_of(path: Path) -> str:
    with h5py.File(path) as file:
        return str(file.attrs["weights_sha256"])


def test_a_tuned_stream_has_its_tuned_weights(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*TUNED, f"workspace={tmp_path / 'workspace'}"]
    first, second = (make_tuned(tmp_path / "workspace", fold, seed=fold + 3) for fold in (1, 2))
    assert run([video], tmp_path / "one", settings=settings) == 0
    assert "weights     rgb: tuned on fold 1" in capsys.readouterr().out
    assert sha256_of(tmp_path / "one" / "rgb" / "a_b.h5") == first
    assert sha256_of(tmp_path / "one" / "flow" / "a_b.h5") not in (first, second)
    assert run([video], tmp_path / "two", settings=[*settings, "chunk.fold=2"], streams=("rgb",)) == 0
    assert sha256_of(tmp_path / "two" / "rgb" / "a_b.h5") == second
    with pytest.raises(ValueError, match=r"was tuned for the folds 1, 2: choose one, such as `--set chunk\.fold=1`$"):
        run([video], tmp_path / "both", settings=[*settings, "chunk.fold=[1,2]"])
    with pytest.raises(ValueError, match=r"^features\.streams\.rgb is tuned, but .* has no weights .* `--weights rgb=PATH`"):
        run([video], tmp_path / "none", settings=[*settings, "finetune.epochs=77"])
    assert run([video], tmp_path / "flow", settings=[*settings, "finetune.epochs=77"], streams=("flow",)) == 0


def test_weights_can_be_given(video: Path, tmp_path: Path) -> None:
    given = build_backbone("vgg_small", "random", grid=2, seed=7)
    save_file(given.extractor.state_dict(), tmp_path / "given.safetensors")
    weights = [f"rgb={tmp_path / 'given.safetensors'}"]
    assert run([video], tmp_path / "out", settings=TUNED, streams=("rgb",), weights=weights) == 0
    assert sha256_of(tmp_path / "out" / "rgb" / "a_b.h5") == given.weights_sha256
    for text, message in (("clip=x", "give STREAM=PATH with one of .*: rgb, flow$"), ("rgb=none.pth", "no such file")):
        with pytest.raises(ValueError, match=f"^--weights {text}: {message}"):
            run([video], tmp_path / "bad", settings=TUNED, weights=[text])
