"""Two streams read as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.errors import UserError
from pipeline_lib.networks.normalisation import SCALE, Normalised
from pipeline_lib.streams.feature_files import FeatureReader, FeatureWriter
from pipeline_lib.streams.joined import open_features, other_clips
from pipeline_lib.training.batches import load_cached

FRAMES = 6
CLIPS = pd.DataFrame(
    {
        "clip": ["w/1#00000", "w/2#00000"],
        "video": ["w/1", "w/2"],
        "class_name": ["w", "w"],
        "first_frame": [0, 0],
        "valid_frames": [FRAMES, FRAMES],
    }
)


def write(path: Path, *, grid: int, channels: int, step_frames: tuple[int, ...] | None, first: float) -> Path:
    """Write features of which each step of each clip has its own value."""
    shape = (grid, grid, channels)
    steps = FRAMES if step_frames is None else len(step_frames)
    with FeatureWriter(path, CLIPS, frame_shape=shape, frames=FRAMES, step_frames=step_frames) as writer:
        names = {"backbone": "b", "weights": "w", "weights_sha256": str(first), "precision": "fp32", "fps": 15.0}
        writer.describe({**names, "preprocessing": {}, "tool_versions": {}})
        values = first + np.arange(2 * steps, dtype=np.float16)
        writer.append(np.broadcast_to(values[:, None, None, None], (2 * steps, *shape)))
    return path


@pytest.fixture
def files(tmp_path) -> list[Path]:
    frames = write(tmp_path / "rgb.h5", grid=2, channels=3, step_frames=None, first=0)
    return [frames, write(tmp_path / "clip.h5", grid=2, channels=4, step_frames=(1, 4), first=100)]


def test_channels_lie_side_by_side_at_the_nearest_steps(files):
    with open_features(files, 2) as reader:
        assert (reader.shape, reader.channels, reader.step_frames) == ((2, 6, 2, 2, 7), (3, 4), tuple(range(6)))
        features_NSKKD = reader.load(["w/2#00000", "w/1#00000"])
    assert features_NSKKD[0, :, 1, 1, 0].tolist() == [6, 7, 8, 9, 10, 11]
    assert features_NSKKD[0, :, 1, 1, 6].tolist() == [102, 102, 102, 103, 103, 103]
    assert features_NSKKD[1, :, 0, 0, 3].tolist() == [100, 100, 100, 101, 101, 101]


def test_both_streams_are_described(files):
    with open_features(files, 2) as reader:
        assert [stream["weights_sha256"] for stream in reader.provenance["streams"]] == ["0", "100"]


def test_one_stream_needs_no_joining(files):
    assert isinstance(open_features(files[:1], 1), FeatureReader)


def test_streams_with_other_grids_are_refused_in_one_line(files, tmp_path):
    fine = write(tmp_path / "fine.h5", grid=3, channels=3, step_frames=None, first=0)
    with open_features([files[0], fine], 2) as reader, pytest.raises(UserError, match=r"grids of 2 and 3 cells.*`grid`"):
        _ = reader.shape


def make_clips(groups: dict[str, list[int]]) -> pd.DataFrame:
    """Return a table of clips: for each split, groups of these sizes."""
    rows = [
        (f"{split}/{group}#{clip:05d}", split, f"{split} {group}")
        for split, sizes in groups.items()
        for group, size in enumerate(sizes)
        for clip in range(size)
    ]
    return pd.DataFrame(rows, columns=["clip", "split", "group"])


def test_every_clip_has_the_flow_of_another_group_of_its_split():
    clips = make_clips({"train": [3, 1, 4, 2], "val": [2, 2], "test": [1, 1, 1]})
    others = other_clips(clips, seed=0)
    assert sorted(others) == sorted(others.values()) == sorted(clips["clip"])
    of_clip = clips.set_index("clip")
    for clip, other in others.items():
        assert of_clip.loc[clip, "split"] == of_clip.loc[other, "split"]
        assert of_clip.loc[clip, "group"] != of_clip.loc[other, "group"]


def test_the_seed_decides_which_other_clip_and_the_order_of_the_table_does_not():
    clips = make_clips({"train": [2] * 9})
    assert other_clips(clips.sample(frac=1, random_state=0), seed=3) == other_clips(clips, seed=3)
    assert other_clips(clips, seed=3) != other_clips(clips, seed=4)


def test_a_clip_has_another_even_if_one_group_is_most_of_the_split():
    others = other_clips(make_clips({"val": [5, 1]}), seed=0)
    assert sorted(others) == sorted(others.values())
    assert all(clip != other for clip, other in others.items())


def test_a_split_of_one_clip_cannot_be_shuffled():
    with pytest.raises(UserError, match=r"motion = 'shuffled': the val split has one clip"):
        other_clips(make_clips({"train": [2, 2], "val": [1]}), seed=0)


def test_the_second_stream_is_that_of_the_other_clip_in_any_batch(files):
    others = {"w/1#00000": "w/2#00000", "w/2#00000": "w/1#00000"}
    with open_features(files, 2, others) as shuffled, open_features(files, 2) as straight:
        both, one = shuffled.load(list(others)), shuffled.load(["w/2#00000"])
        own = straight.load(list(others))
        assert torch.equal(both[..., :3], own[..., :3])
        assert torch.equal(both[..., 3:], own[..., 3:].flip(0))
        assert torch.equal(both[1:], one)
        cached = [load_cached(reader, list(others), torch.device("cpu")) for reader in (straight, shuffled, straight)]
    assert cached[0] is cached[2]
    assert torch.equal(cached[1].features_NTKKD, both)


def test_each_stream_is_scaled_by_a_factor_of_its_own():
    features_BTKKD = torch.cat((torch.full((2, 3, 2, 2, 3), 2.0), torch.full((2, 3, 2, 2, 1), 50.0)), dim=-1)
    model = Normalised(torch.nn.Identity(), (3, 1))
    model.measure([(features_BTKKD, torch.tensor([3, 1]), torch.zeros(2))])
    assert (features_BTKKD * model.factor).sub(SCALE).abs().max() < 1e-5
