"""Extraction: every clip of a shard, each frame's features in its place, whatever the batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.features import FeatureReader, extract_features
from pipeline_lib.params import ChunkParams, StreamParams
from pipeline_lib.streams.encoding import normalise, resize
from pipeline_lib.video import decoding
from pipeline_lib.video.decoders import RGB, Wanted, read_images
from pipeline_lib.video.reading import read_frames

pytestmark = pytest.mark.usefixtures("single_thread")

PARAMS = StreamParams(
    backbone="vgg_small", weights="random", image_size=32, grid=2, precision="fp32", device="cpu", batch_frames=7
)
CHUNK = ChunkParams(frames=8)


def extract(
    shard: Path, directory: Path, params: StreamParams = PARAMS, chunk: ChunkParams = CHUNK, **options: Any
) -> dict[str, Any]:
    """Extract one stream to the directory and return its counts."""
    return extract_features(shard, {"rgb": directory}, {"rgb": params}, chunk, fps=15.0, **options)["rgb"]


@pytest.fixture(scope="module")
def features(shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("features")
    extract(shard, directory)
    return directory / "features.h5"


def test_counts_and_progress(shard: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    counts = extract(shard, tmp_path, on_frames=seen.append)
    assert (counts["clips"], counts["frames"]) == (6, 33)
    with FeatureReader([tmp_path / "features.h5"]) as reader:
        assert counts["bytes_in_memory"] == np.prod(reader.shape) * 2
    assert set(counts["busy_seconds"]) == {"network", "writing", "waiting_for_frames", "all"}
    assert min(counts["busy_seconds"].values()) >= 0
    assert 0 < counts["busy_seconds"]["network"] <= counts["busy_seconds"]["all"]
    assert seen == [7, 7, 7, 7, 5]


def test_each_frames_features_are_those_of_the_frame_alone(shard: Path, features: Path) -> None:
    backbone = build_backbone("vgg_small", "random", grid=2, seed=0)
    frames = list(read_frames(shard / "videos" / "wave" / "a (1).avi.mp4"))
    with FeatureReader([features]) as reader:
        features_NTKKD = reader.load([f"wave/a (1).avi#{first:05d}" for first in (0, 8, 16)]).float()
    assert features_NTKKD.shape == (3, 8, 2, 2, 128)
    for number, frame in enumerate(frames):
        with torch.inference_mode():
            expected_NKKD = backbone(normalise(resize([torch.from_numpy(frame[None].copy())], 32), backbone))
        torch.testing.assert_close(features_NTKKD[number // 8, number % 8], expected_NKKD[0], rtol=1e-2, atol=1e-3)
    assert not torch.equal(features_NTKKD[0, 0], features_NTKKD[0, 1])


def provenance_of(path: Path) -> dict[str, Any]:
    with FeatureReader([path]) as reader:
        return reader.provenance


def test_frames_past_the_valid_ones_repeat_the_last(features: Path) -> None:
    with FeatureReader([features]) as reader:
        clip_TKKD = reader.load(["wave/#b.avi#00000"])[0]
    assert all(torch.equal(clip_TKKD[3], padding) for padding in clip_TKKD[4:])
    assert not torch.equal(clip_TKKD[2], clip_TKKD[3])


def test_the_file_explains_itself(features: Path) -> None:
    with h5py.File(features) as file:
        assert file["features"].chunks == (1, 8, 2, 2, 128)
        assert file["features"].dtype == np.float16
        assert file["clip"].asstr()[0] in ("wave/a (1).avi#00000", "run/c.avi#00000", "wave/#b.avi#00000")
        assert sorted(file["valid_frames"][:].tolist()) == [1, 4, 4, 8, 8, 8]
    provenance = provenance_of(features)
    assert provenance["axes"] == "clip,frame,row,column,channel"
    assert provenance["backbone"] == "vgg_small"
    assert provenance["weights"] == "random: seed 0"
    assert len(provenance["weights_sha256"]) == 64
    assert provenance["precision"] == "fp32"
    assert provenance["fps"] == 15.0
    assert provenance["preprocessing"]["image_size"] == 32
    assert provenance["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert "torch" in provenance["tool_versions"]


def test_equal_input_gives_equal_bytes(shard: Path, features: Path, tmp_path: Path) -> None:
    extract(shard, tmp_path)
    assert (tmp_path / "features.h5").read_bytes() == features.read_bytes()


def test_compressed_features_are_the_same(shard: Path, features: Path, tmp_path: Path) -> None:
    extract(shard, tmp_path, PARAMS.model_copy(update={"compression": "lz4"}))
    with FeatureReader([features]) as plain, FeatureReader([tmp_path / "features.h5"]) as packed:
        assert torch.equal(packed.load(plain.clips), plain.load(plain.clips))
        assert packed.provenance == plain.provenance
    assert (tmp_path / "features.h5").stat().st_size < features.stat().st_size


def test_dropped_clips_are_left_out(shard: Path, tmp_path: Path) -> None:
    chunk = ChunkParams(frames=8, short="drop", tail="drop")
    counts = extract(shard, tmp_path, chunk=chunk)
    assert (counts["clips"], counts["frames"]) == (3, 24)


def test_shard_without_clips_makes_an_empty_file_that_reads(shard: Path, features: Path, tmp_path: Path) -> None:
    counts = extract(shard, tmp_path, chunk=ChunkParams(frames=8 * 30, short="drop"))
    assert (counts["clips"], counts["frames"]) == (0, 0)
    empty = tmp_path / "features.h5"
    with FeatureReader([empty]) as reader:
        assert reader.shape == (0, 240, 2, 2, 128)
    nothing = extract(shard, tmp_path, chunk=ChunkParams(frames=8))
    assert nothing["clips"] == 6


def test_weights_of_the_finetune_stage_replace_the_others(shard: Path, features: Path, tmp_path: Path) -> None:
    tuned = build_backbone("vgg_small", "random", grid=2, seed=4)
    torch.save(tuned.extractor.state_dict(), tmp_path / "tuned.pt")
    extract(shard, tmp_path, weights={"rgb": tmp_path / "tuned.pt"})
    assert provenance_of(tmp_path / "features.h5")["weights_sha256"] == tuned.weights_sha256
    assert provenance_of(features)["weights_sha256"] != tuned.weights_sha256


def test_video_that_lost_a_frame_is_named_and_no_file_stays(shard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shard"
    shutil.copytree(shard, copy)
    videos = pd.read_parquet(copy / "videos.parquet")
    videos.loc[videos["video"] == "run/c.avi", "num_frames"] = 10
    videos.to_parquet(copy / "videos.parquet")
    with pytest.raises(ValueError, match=r"run/c\.avi: decoded 9 frames, but videos\.parquet lists 10"):
        extract(copy, tmp_path)
    assert not (tmp_path / "features.h5").exists()


def test_damaged_video_is_named(shard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shard"
    shutil.copytree(shard, copy)
    (copy / "videos" / "run" / "c.avi.mp4").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"run/c\.avi: can no longer be decoded .*--refresh subsample"):
        extract(copy, tmp_path)


def test_image_too_small_for_the_backbone_is_told_with_the_stream(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^stream rgb: features\.image_size = 8 is too small"):
        extract(shard, tmp_path, PARAMS.model_copy(update={"image_size": 8}))


def test_real_videos_with_real_weights(shared: Path, tmp_path: Path) -> None:
    """One HMDB-51 clip with ImageNet features: neighbouring frames look alike, distant ones less."""
    from pipeline_lib.params import SubsampleParams
    from pipeline_lib.subsample.videos import subsample_video

    rows = []
    for source in sorted((shared / "data" / "hmdb51_clips").rglob("*.avi")):
        video = f"{source.parent.name}/{source.name}"
        path = tmp_path / "shard" / "videos" / f"{video}.mp4"
        path.parent.mkdir(parents=True)
        made = subsample_video(source, path, SubsampleParams())
        rows.append({"video": video, "class_name": source.parent.name, "num_frames": made.num_frames, "reason": None})
    shortest = min(rows, key=lambda row: row["num_frames"])
    pd.DataFrame([shortest]).to_parquet(tmp_path / "shard" / "videos.parquet")
    weights = shared / "weights" / "squeezenet1_1_imagenet_features.pth"
    params = StreamParams(backbone="squeezenet1_1", weights=str(weights), precision="fp32", device="cpu")
    counts = extract(tmp_path / "shard", tmp_path, params, ChunkParams())
    assert (counts["clips"], counts["frames"]) == (2, shortest["num_frames"])
    with FeatureReader([tmp_path / "features.h5"]) as reader:
        assert reader.shape == (2, 30, 7, 7, 512)
        frames_ND = reader.load([f"{shortest['video']}#00000"])[0].float().mean(dim=(1, 2))
    neighbours = torch.cosine_similarity(frames_ND[:-1], frames_ND[1:]).mean()
    distant = torch.cosine_similarity(frames_ND[:15], frames_ND[15:]).mean()
    assert neighbours > 0.85
    assert distant < neighbours - 0.05
    assert (frames_ND != 0).float().mean() > 0.5


SMALL = {"weights": "random", "image_size": 32, "grid": 2, "precision": "fp32", "device": "cpu"}
STREAMS = {
    "rgb": PARAMS,
    "flow": StreamParams(input="flow", stack=3, backbone="vgg_small", **SMALL),
    "clip": StreamParams(input="clip", backbone="r3d_18", **SMALL),
    "large": StreamParams(backbone="vgg_small", **SMALL | {"image_size": 336}),
}
LONG = ChunkParams(frames=16)
"""Clips of 16 frames: r3d_18 makes two steps of them."""


def extract_several(shard: Path, folder: Path, names: list[str], **options: Any) -> dict[str, dict[str, Any]]:
    directories = {name: folder / name for name in names}
    for directory in directories.values():
        directory.mkdir(parents=True)
    return extract_features(shard, directories, {name: STREAMS[name] for name in names}, LONG, fps=15.0, **options)


def test_streams_together_are_what_each_is_alone(shard: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    counts = extract_several(shard, tmp_path / "all", list(STREAMS), on_frames=seen.append)
    assert sum(seen) == 33 * len(STREAMS)
    for name in STREAMS:
        assert (counts[name]["clips"], counts[name]["frames"]) == (4, 33)
        assert min(counts[name]["busy_seconds"].values()) >= 0
        extract_several(shard, tmp_path / "alone", [name])
        together, alone = (tmp_path / folder / name / "features.h5" for folder in ("all", "alone"))
        assert together.read_bytes() == alone.read_bytes()


def test_videos_are_decoded_once_for_all_streams(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: dict[str, list[Wanted]] = {}

    def read(path: Path, wanted: list[Wanted], **options: Any) -> Iterator[tuple[Wanted, np.ndarray]]:
        assert path.name not in decoded
        decoded[path.name] = wanted
        return read_images(path, wanted, **options)

    monkeypatch.setattr(decoding, "read_images", read)
    extract_several(shard, tmp_path / "several", ["rgb", "flow", "clip"])
    assert sorted(decoded) == ["#b.avi.mp4", "a (1).avi.mp4", "c.avi.mp4"]
    assert all(wanted[0] == RGB and len(wanted) == 2 for wanted in decoded.values())
    decoded.clear()
    extract_several(shard, tmp_path / "alone", ["flow"])
    assert not any(RGB in wanted for wanted in decoded.values())


def test_a_clip_streams_steps_are_those_of_the_padded_clip(shard: Path, tmp_path: Path) -> None:
    extract_several(shard, tmp_path, ["clip"])
    frames = np.stack(list(read_frames(shard / "videos" / "run" / "c.avi.mp4")))
    backbone = build_backbone("r3d_18", "random", grid=2, seed=0)
    clip = torch.from_numpy(frames[[*range(9), *[8] * 7]])
    with torch.inference_mode():
        expected_SKKD = backbone(normalise(resize([clip], 32), backbone).transpose(0, 1)[None])[0]
    with FeatureReader([tmp_path / "clip" / "features.h5"]) as reader:
        assert reader.step_frames == backbone.step_frames(16)
        assert reader.provenance["preprocessing"]["input"] == "clip"
        torch.testing.assert_close(reader.load(["run/c.avi#00000"])[0].float(), expected_SKKD, rtol=1e-2, atol=1e-2)


def test_flow_streams_are_padded_like_frames(shard: Path, tmp_path: Path) -> None:
    extract_several(shard, tmp_path, ["flow"])
    with FeatureReader([tmp_path / "flow" / "features.h5"]) as reader:
        clip_TKKD = reader.load(["wave/#b.avi#00000"])[0]
        assert reader.provenance["preprocessing"]["stack"] == 3
    assert all(torch.equal(clip_TKKD[3], padding) for padding in clip_TKKD[4:])


def test_a_tuned_backbone_replaces_that_of_its_stream_alone(shard: Path, tmp_path: Path) -> None:
    tuned = build_backbone("vgg_small", "random", grid=2, seed=4, channels_in=6)
    torch.save(tuned.extractor.state_dict(), tmp_path / "tuned.pt")
    extract_several(shard, tmp_path, ["rgb", "flow"], weights={"flow": tmp_path / "tuned.pt"})
    assert provenance_of(tmp_path / "flow" / "features.h5")["weights_sha256"] == tuned.weights_sha256
    assert provenance_of(tmp_path / "rgb" / "features.h5")["weights"] == "random: seed 0"


@pytest.mark.parametrize("names", [["rgb", "flow"], ["clip"]], ids=str)
def test_an_error_leaves_no_file_of_any_stream(shard: Path, tmp_path: Path, names: list[str]) -> None:
    copy = shutil.copytree(shard, tmp_path / "shard")
    videos = pd.read_parquet(copy / "videos.parquet")
    videos.loc[videos["video"] == "run/c.avi", "num_frames"] = 10
    videos.to_parquet(copy / "videos.parquet")
    with pytest.raises(ValueError, match=r"run/c\.avi: .*decoded 9 frames") as caught:
        extract_several(copy, tmp_path, names)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("features.h5"))
