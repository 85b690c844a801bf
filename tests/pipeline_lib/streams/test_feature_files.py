"""Feature files: clips in the order asked for, over several files; damage is told in one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.features import FeatureReader, FeatureWriter
from pipeline_lib.params import Compression
from pipeline_lib.streams.clip_compression import HEADER, compress, decompress

PROVENANCE = {
    "backbone": "vgg16",
    "weights": "random: seed 0",
    "weights_sha256": "0" * 64,
    "preprocessing": {"image_size": 224},
    "precision": "bf16",
    "fps": 15.0,
    "tool_versions": {"torch": "2.15.0"},
}


def write(
    path: Path, videos: list[str], *, frames: int = 3, grid: int = 2, compression: Compression = "none", **provenance: object
) -> Path:
    """Write one clip of two valid frames a video; all values of a frame are its number over all files of the test."""
    clips = pd.DataFrame({"video": pd.Series(videos, dtype=str)})
    clips["clip"] = clips["video"] + "#00000"
    clips = clips.assign(class_name="wave", first_frame=0, valid_frames=2)
    with FeatureWriter(path, clips, frame_shape=(grid, grid, 4), frames=frames, compression=compression) as writer:
        writer.describe(PROVENANCE | provenance)
        numbers = [float(video[-1]) * 10 + frame for video in videos for frame in range(2)]
        features_NKKD = np.stack([np.full((grid, grid, 4), number) for number in numbers]) if numbers else []
        for start in range(0, len(features_NKKD), 3):
            writer.append(features_NKKD[start : start + 3])
    return path


@pytest.fixture(params=["none", "lz4"])
def paths(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    files = {"a.h5": ["w/1", "w/2", "w/3"], "b.h5": ["w/4", "w/5"]}
    return [write(tmp_path / name, videos, compression=request.param) for name, videos in files.items()]


def test_clips_come_in_the_order_asked_for_over_files(paths: list[Path]) -> None:
    with FeatureReader(paths) as reader:
        assert reader.shape == (5, 3, 2, 2, 4)
        features_NTKKD = reader.load(["w/5#00000", "w/1#00000", "w/4#00000", "w/2#00000", "w/1#00000"])
    assert features_NTKKD[:, :, 0, 0, 0].tolist() == [[50, 51, 51], [10, 11, 11], [40, 41, 41], [20, 21, 21], [10, 11, 11]]
    assert (features_NTKKD == features_NTKKD[:, :, :1, :1, :1]).all()


def test_no_clips_asked_for_gives_none(paths: list[Path]) -> None:
    with FeatureReader(paths) as reader:
        assert reader.load([]).shape == (0, 3, 2, 2, 4)


def test_opens_lazily_closes_and_opens_again(paths: list[Path]) -> None:
    reader = FeatureReader(paths)
    assert reader._files == []
    first = reader.load(["w/3#00000"])
    files = list(reader._files)
    reader.close()
    assert not any(files)
    assert (reader.load(["w/3#00000"]) == first).all()
    reader.close()


def test_travels_to_a_worker_without_its_handles(paths: list[Path]) -> None:
    with FeatureReader(paths) as reader:
        expected = reader.load(["w/2#00000"])
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert copy._files == []
            assert (copy.load(["w/2#00000"]) == expected).all()


def test_empty_file_among_others_is_fine(paths: list[Path], tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.h5", [])
    with FeatureReader([empty, *paths]) as reader:
        assert reader.shape == (5, 3, 2, 2, 4)
        assert reader.load(["w/4#00000"])[0, 1, 0, 0, 0] == 41


def test_unknown_clip_is_told(paths: list[Path]) -> None:
    with FeatureReader(paths) as reader, pytest.raises(ValueError, match=r"1 clips have no features \(w/9#00000.*--refresh"):
        reader.load(["w/1#00000", "w/9#00000"])


def test_file_that_cannot_be_locked_names_the_switch(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError(
            "Unable to synchronously open file (unable to lock file, errno = 37, error message = 'No locks available')"
        )

    monkeypatch.setattr(h5py, "File", no_locks)
    with pytest.raises(ValueError, match=r"a\.h5 cannot be locked .*HDF5_USE_FILE_LOCKING=FALSE"):
        _ = FeatureReader(paths).shape


def test_no_files_is_told() -> None:
    with pytest.raises(ValueError, match="no feature files"):
        FeatureReader([])


@pytest.mark.parametrize("damage", ["cut", "html", "empty", "absent"])
def test_damaged_file_is_one_line_naming_it_and_the_mend(paths: list[Path], damage: str) -> None:
    content = paths[1].read_bytes()
    if damage == "absent":
        paths[1].unlink()
    else:
        paths[1].write_bytes({"cut": content[: len(content) // 2], "html": b"<html>", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"b\.h5: .*--refresh features") as caught, FeatureReader(paths) as reader:
        reader.load(["w/4#00000"])
    assert "\n" not in str(caught.value)


def test_a_file_system_may_give_less_than_it_is_asked_for(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with FeatureReader(paths) as reader:
        expected_NTKKD = reader.load(reader.clips)
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:37]], offset))
        assert torch.equal(reader.load(reader.clips), expected_NTKKD)


def test_file_cut_off_after_it_was_opened_is_told(paths: list[Path]) -> None:
    with FeatureReader(paths) as reader:
        assert reader.shape[0] == 5
        os.truncate(paths[1], 100)
        with pytest.raises(ValueError, match=r"b\.h5: damaged \(it ends within a clip\).*--refresh features"):
            reader.load(["w/4#00000"])


@pytest.mark.parametrize("how", ["compressed", "missing"])
def test_clips_that_are_not_stored_plainly_are_refused(paths: list[Path], how: str) -> None:
    with h5py.File(paths[0], "r+") as file:
        shape = file["features"].shape
        del file["features"]
        compression = "gzip" if how == "compressed" else None
        features = file.create_dataset("features", shape, np.float16, chunks=(1, *shape[1:]), compression=compression)
        if how == "compressed":
            features[:] = 1
        file["features"].attrs["axes"] = file.attrs["axes"]
    with pytest.raises(
        ValueError, match=r"a\.h5: clips are missing, or compressed in another way than LZ4; run with `--refresh features`"
    ):
        _ = FeatureReader(paths).shape


def test_other_hdf5_files_and_other_axes_are_refused(paths: list[Path], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=r"other\.h5 is not a feature file .* lacks features"):
        _ = FeatureReader([tmp_path / "other.h5"]).shape
    with h5py.File(paths[0], "r+") as file:
        file.attrs["axes"] = "clip,frame,channel,row,column"
    with pytest.raises(ValueError, match=r"its axes are clip,frame,channel,row,column, not clip,frame,row,column,channel"):
        _ = FeatureReader(paths).shape


@pytest.mark.parametrize(
    ("change", "named"), [({"weights_sha256": "1" * 64}, "weights_sha256"), ({"fps": 10.0}, "fps"), ({"grid": 3}, "shape")]
)
def test_files_that_differ_are_refused(paths: list[Path], tmp_path: Path, change: dict[str, object], named: str) -> None:
    other = write(tmp_path / "other.h5", ["w/6"], **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"other\.h5 and .*a\.h5 differ in {named}"):
        _ = FeatureReader([*paths, other]).shape


def test_precision_may_differ_and_is_told(paths: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5", ["w/6"], precision="fp32")
    with FeatureReader([*paths, other]) as reader:
        assert reader.provenance["precision"] == "bf16, fp32"


def test_clip_in_two_files_is_refused(paths: list[Path], tmp_path: Path) -> None:
    again = write(tmp_path / "again.h5", ["w/1"])
    with pytest.raises(ValueError, match=r"again\.h5: clip w/1#00000 is also in .*a\.h5"):
        _ = FeatureReader([*paths, again]).shape


def test_compressed_files_are_smaller_and_read_together_with_others(tmp_path: Path) -> None:
    plain, packed = write(tmp_path / "a.h5", ["w/1"], grid=16), write(tmp_path / "b.h5", ["w/2"], grid=16, compression="lz4")
    with FeatureReader([plain, packed]) as reader:
        assert reader.load(["w/2#00000", "w/1#00000"])[:, :, 15, 15, 3].tolist() == [[20, 21, 21], [10, 11, 11]]
    assert packed.stat().st_size < plain.stat().st_size - 5000


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["zeros", "half zeros", "incompressible"])
def test_any_clip_survives_compression(share: float) -> None:
    random = np.random.default_rng(0)
    clip_SKKD = random.integers(0, 2**16, (3, 2, 2, 50), np.uint16) * (random.random((3, 2, 2, 50)) < share)
    clip_SKKD = clip_SKKD.astype(np.uint16).view(np.float16)  # with infinities and signed zeros
    chunk, read_SKKD = compress(clip_SKKD), np.empty_like(clip_SKKD)
    decompress(bytearray(chunk), read_SKKD)
    assert read_SKKD.tobytes() == clip_SKKD.tobytes()
    assert len(chunk) <= clip_SKKD.nbytes + HEADER.size


def test_another_program_reads_compressed_clips(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin", reason="hdf5plugin, with which others read LZ4, is not installed")
    with h5py.File(write(tmp_path / "a.h5", ["w/1", "w/2"], grid=16, compression="lz4")) as file:
        assert file["features"][:, :, 0, 0, 0].tolist() == [[10, 11, 11], [20, 21, 21]]


@pytest.mark.parametrize("place", [0, HEADER.size - 1, HEADER.size])
def test_a_damaged_compressed_clip_is_told(tmp_path: Path, place: int) -> None:
    path = write(tmp_path / "a.h5", ["w/1"], grid=16, compression="lz4")
    with FeatureReader([path]) as reader:
        assert reader.shape[0] == 1
        content = bytearray(path.read_bytes())
        content[reader._locations["w/1#00000"].offset + place] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.h5: damaged \(.*LZ4.*--refresh features|a\.h5: damaged \(.*Lz4"):
            reader.load(["w/1#00000"])


def test_failed_writing_leaves_no_file(tmp_path: Path) -> None:
    clips = pd.DataFrame(
        [["w/1#00000", "w/1", "w", 0, 2]], columns=["clip", "video", "class_name", "first_frame", "valid_frames"]
    )
    with pytest.raises(RuntimeError, match="stop"), FeatureWriter(tmp_path / "f.h5", clips, frame_shape=(2, 2, 4), frames=3):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def write_steps(path: Path, step_frames: list[int], frames: int = 6) -> Path:
    """Write two clips of whole steps, the second one of 2 valid frames; each step's features are its number in the file."""
    clips = pd.DataFrame({"clip": [f"{path.stem}#0", f"{path.stem}#6"], "video": path.stem, "class_name": "wave"})
    clips = clips.assign(first_frame=[0, 6], valid_frames=[6, 2])
    with FeatureWriter(path, clips, frame_shape=(2, 2, 4), frames=frames, step_frames=step_frames) as writer:
        writer.describe(PROVENANCE)
        writer.append(np.arange(2 * len(step_frames)).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 4)))
    return path


def test_steps_of_networks_that_see_whole_clips_are_kept_with_their_frames(tmp_path: Path) -> None:
    with FeatureReader([write_steps(tmp_path / "a.h5", [1, 4])]) as reader:
        assert reader.shape == (2, 2, 2, 2, 4)
        assert reader.step_frames == (1, 4)
        assert reader.load(["a#0", "a#6"])[:, :, 0, 0, 0].tolist() == [[0, 1], [2, 3]]


def test_step_frames_are_stored_only_where_steps_are_not_frames(paths: list[Path], tmp_path: Path) -> None:
    whole = write_steps(tmp_path / "whole.h5", list(range(6)))
    fewer = write_steps(tmp_path / "fewer.h5", [0, 1])
    for path, stored, steps in ((paths[0], False, 3), (whole, False, 6), (fewer, True, 2)):
        with h5py.File(path) as file:
            assert ("step_frames" in file) == stored
        with FeatureReader([path]) as reader:
            assert reader.step_frames == tuple(range(steps))


def test_files_with_other_steps_are_not_read_together(tmp_path: Path) -> None:
    files = [write_steps(tmp_path / "a.h5", [1, 4]), write_steps(tmp_path / "b.h5", [0, 3])]
    with pytest.raises(ValueError, match="differ in step_frames"):
        _ = FeatureReader(files).shape
