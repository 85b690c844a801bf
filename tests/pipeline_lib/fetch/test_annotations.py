"""Boxes in the formats of UCF101-24 and J-HMDB, in tiny files written here."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from pipeline_lib.artifacts import file_sha256
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.annotations import read_annotations
from pipeline_lib.fetch.collection import fetch_collection
from pipeline_lib.params import FetchParams
from pipeline_lib.video.writing import VideoWriter

FRAMES, FPS = 10, 25
SKI, SURF = "Skiing/v_Skiing_g01_c01", "Surfing/v_Surfing_g01_c01"
TUBE, LATER = np.array([[32, 24, 64, 120], [64, 24, 64, 120]]), np.array([[0, 0, 320, 240]])
EXPECTED = [
    (SKI, 0.08, 0.1, 0.1, 0.3, 0.6),
    (SKI, 0.12, 0.2, 0.1, 0.4, 0.6),
    (SKI, 0.12, 0.0, 0.0, 1.0, 1.0),
]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in (SKI, SURF):
        path = tmp_path / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        with VideoWriter(path, width=32, height=24, fps=FPS, crf=30) as writer:
            for _ in range(FRAMES):
                writer.write(np.zeros((24, 32, 3), np.uint8))
    return tmp_path / "videos"


def fetch(videos: Path, boxes: Path) -> list[tuple[object, ...]]:
    """Return the rows of the fetched table, names without suffix."""
    artifact = videos.parent / "artifact"
    artifact.mkdir(exist_ok=True)
    params = FetchParams(kind="folder", videos=str(videos), boxes=str(boxes))
    fetch_collection(params, artifact, artifact, sha256=file_sha256)
    table = pd.read_csv(artifact / "boxes.csv")
    table["video"] = table["video"].str.removesuffix(".mp4")
    return list(table.itertuples(index=False, name=None))


def write_pickle(path: Path, numf: int = FRAMES, protocol: int = 2) -> Path:
    tubes = [{"sf": 2, "ef": 4, "label": 16, "boxes": TUBE}, {"sf": 3, "ef": 4, "label": 16, "boxes": LATER}]
    video = {"label": 16, "numf": np.uint32(numf), "annotations": tubes}
    path.write_bytes(pickle.dumps({SKI: video, "Diving/v_Diving_g01_c01": video}, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tubes_of_the_pickle_count_frames_from_zero(videos, tmp_path, protocol):
    assert fetch(videos, write_pickle(tmp_path / "pyannot.pkl", protocol=protocol)) == EXPECTED


def test_arrays_pickled_before_numpy_2_are_read(tmp_path):
    path = write_pickle(tmp_path / "pyannot.pkl", protocol=2)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert next(video.name for video in read_annotations(str(path)) or ()) == SKI


def test_tubes_of_the_matlab_file_count_frames_from_one(videos, tmp_path):
    tube = np.dtype([("ef", object), ("sf", object), ("class", object), ("boxes", object)])
    tubes = np.array([(4, 3, 17, TUBE), (4, 4, 17, LATER)], dtype=tube)
    annot = np.array([(FRAMES, SKI, tubes)], dtype=[("num_imgs", object), ("name", object), ("tubes", object)])
    savemat(tmp_path / "finalAnnots.mat", {"annot": annot})
    assert fetch(videos, tmp_path / "finalAnnots.mat") == EXPECTED


def write_mask(folder: Path, name: str, frames: int = FRAMES) -> None:
    mask = np.zeros((24, 32, frames), np.uint8)
    mask[6:12, 8:24, 0] = 1
    mask[0:24, 31, 4] = 1
    (folder / name).mkdir(parents=True)
    savemat(folder / name / "puppet_mask.mat", {"part_mask": mask})


def test_masks_give_the_tight_box(videos, tmp_path):
    write_mask(tmp_path / "puppet_mask", SKI)
    boxes = [(SKI, 0.0, 0.25, 0.25, 0.75, 0.5), (SKI, 0.16, 0.9688, 0.0, 1.0, 1.0)]
    assert fetch(videos, tmp_path / "puppet_mask") == fetch(videos, tmp_path / "puppet_mask") == boxes


def test_a_video_of_another_length_is_left_out(videos, tmp_path, caplog):
    """J-HMDB's videos are parts of HMDB-51's, under the same names."""
    write_mask(tmp_path / "puppet_mask", SKI)
    write_mask(tmp_path / "puppet_mask", SURF, frames=FRAMES + 3)
    assert {row[0] for row in fetch(videos, tmp_path / "puppet_mask")} == {SKI}
    assert f"left out 1 of 2 videos with another number of frames than their boxes: {SURF}.mp4" in caplog.text


def test_boxes_that_fit_no_video_are_an_error(videos, tmp_path):
    with pytest.raises(UserError, match=r"Skiing\S+ has another number of frames than its boxes"):
        fetch(videos, write_pickle(tmp_path / "pyannot.pkl", numf=FRAMES + 30))
    write_mask(tmp_path / "puppet_mask", "ski/1")
    with pytest.raises(UserError, match=rf"fits none of the collection's videos: names must be like {SKI}"):
        fetch(videos, tmp_path / "puppet_mask")


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_cannot_run_code(tmp_path, capsys):
    (tmp_path / "pyannot.pkl").write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match=r"print has no place in a file of boxes"):
        read_annotations(str(tmp_path / "pyannot.pkl"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["a.pkl", "a.mat"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("no boxes")
    with pytest.raises(UserError, match=r"^fetch\.boxes: .* cannot be read as UCF101-24's corrected annotations"):
        read_annotations(str(tmp_path / name))


def test_a_folder_without_masks(tmp_path):
    with pytest.raises(UserError, match=r"no puppet_mask\.mat in this folder"):
        read_annotations(str(tmp_path))


def test_tables_are_not_annotations(tmp_path):
    (tmp_path / "boxes.csv").touch()
    assert read_annotations(str(tmp_path / "boxes.csv")) is None
    assert read_annotations(str(tmp_path / "none.pkl")) is None
    assert read_annotations(None) is None
