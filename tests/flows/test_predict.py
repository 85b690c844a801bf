"""What `har predict` writes, refuses and returns, with a model from a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from flows.predict import _Job, predict
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.predict import predictor
from pipeline_lib.predict.videos import RequestedVideo
from pipeline_lib.video import decoders
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import VideoInfo
from tests.models import CLASSES, make_bundle, write_video


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alstm", "mean_pool")}
    for name, folder in folders.items():
        (folder / "model").mkdir()
        make_bundle(folder / "parts", name).save(folder / "model")
    return {name: str(folder / "model") for name, folder in folders.items()}


def run(arguments: list[str], model: str, folder: Path, **options: Any) -> int:
    defaults = {"output": None, "overlap": 0.0, "heatmaps": True}
    return predict(arguments, source=model, workspace=Workspace(folder=folder / "workspace"), **(defaults | options))


def test_a_folder_of_videos_becomes_a_table_json_csv_and_heatmaps(models, tmp_path, capsys):
    for name in ("videos/a/x.mp4", "videos/b/x.mp4"):
        write_video(tmp_path / name, 9)
    (tmp_path / "videos" / "broken.avi").write_text("no video")
    assert run([str(tmp_path / "videos")], models["alstm"], tmp_path) == 1
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "workspace" / "predictions").iterdir()
    assert f"results     {folder}" in out
    assert "not a video that ffmpeg can read" in out
    assert {path.name for path in folder.iterdir()} == {
        "predictions.json", "predictions.csv", "frames.csv", "x.mp4", "x-2.mp4",
    }  # fmt: skip
    rows = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))["videos"]
    assert [Path(row["video"]).name for row in rows] == ["x.mp4", "x.mp4", "broken.avi"]
    assert rows[0]["label"] in CLASSES
    assert len(rows[0]["frame_confidence"]) == rows[0]["frames"] == 5
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["error"] for row in table] == ["", "", "not a video that ffmpeg can read"]
    assert table[0]["label"] == rows[0]["label"]
    with (folder / "frames.csv").open(encoding="utf-8") as file:
        frames = list(csv.DictReader(file))
    assert len(frames) == 10
    assert sum(float(frames[0][name]) for name in CLASSES) == pytest.approx(1, abs=1e-5)


def test_a_model_without_attention_says_so_once_and_draws_nothing(models, tmp_path, capsys):
    videos = [str(write_video(tmp_path / f"{number}.mp4", 9)) for number in range(2)]
    assert run(videos, models["mean_pool"], tmp_path, output=tmp_path / "results") == 0
    assert capsys.readouterr().out.count("mean_pool has no attention, so there are no heatmap videos") == 1
    assert not list((tmp_path / "results").glob("*.mp4"))


def test_boxes_have_a_row_for_every_frame(models, tmp_path):
    videos = [str(write_video(tmp_path / f"{number}.mp4", 9)) for number in range(2)]
    assert run(videos, models["alstm"], tmp_path, output=tmp_path / "results", boxes=True) == 0
    rows = json.loads((tmp_path / "results" / "predictions.json").read_text(encoding="utf-8"))["videos"]
    with (tmp_path / "results" / "boxes.csv").open(encoding="utf-8") as file:
        boxes = list(csv.DictReader(file))
    assert list(boxes[0]) == ["video", "time_seconds", "x0", "y0", "x1", "y1", "score", "label"]
    assert len(boxes) == sum(row["frames"] for row in rows)
    assert {box["video"]: box["label"] for box in boxes} == {row["video"]: row["label"] for row in rows}
    assert [box["time_seconds"] for box in boxes[:3]] == ["0.0", "0.067", "0.133"]
    for box in boxes:
        assert 0 <= float(box["x0"]) < float(box["x1"]) <= 1
        assert 0 <= float(box["y0"]) < float(box["y1"]) <= 1


def test_a_model_without_attention_has_no_boxes(models, tmp_path, capsys):
    video = str(write_video(tmp_path / "a.mp4", 9))
    assert run([video], models["mean_pool"], tmp_path, output=tmp_path / "results", heatmaps=False, boxes=True) == 0
    assert "mean_pool has no attention, so there are no boxes" in capsys.readouterr().out
    assert not (tmp_path / "results" / "boxes.csv").exists()


def test_nothing_is_overwritten(models, tmp_path):
    video = str(write_video(tmp_path / "a.mp4", 9))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    for output in (tmp_path / "results", tmp_path / "results" / "mine.txt"):
        with pytest.raises(ValueError, match="--output"):
            run([video], models["alstm"], tmp_path, output=output)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["mine.txt"]
    for _ in range(2):
        run([video], models["mean_pool"], tmp_path)
    assert len(list((tmp_path / "workspace" / "predictions").iterdir())) == 2


@pytest.mark.parametrize("overlap", [1.0, -0.5])
def test_an_overlap_that_is_no_share_is_refused_before_anything_is_loaded(tmp_path, overlap):
    with pytest.raises(ValueError, match="--overlap"):
        run(["none.mp4"], "nonsense", tmp_path, overlap=overlap)


def test_what_was_done_before_a_stop_is_written(models, tmp_path, monkeypatch):
    videos = [str(write_video(tmp_path / f"{number}.mp4", 9)) for number in range(2)]
    real = _Job.run

    def stop_at_the_second(self, video, files, place):
        if video.name == videos[1]:
            raise KeyboardInterrupt
        real(self, video, files, place)

    monkeypatch.setattr(_Job, "run", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(videos, models["mean_pool"], tmp_path, output=tmp_path / "results")
    (row,) = json.loads((tmp_path / "results" / "predictions.json").read_text(encoding="utf-8"))["videos"]
    assert row["video"] == videos[0]


def test_a_decoder_that_is_killed_and_a_picture_that_is_too_large_cost_one_video_each(models, tmp_path, monkeypatch, capsys):
    videos = [str(write_video(tmp_path / f"{name}.mp4", 9)) for name in ("a", "huge", "b")]
    decoders.close_idle_decoders()
    decoders._idle.append(decoders.DecoderProcess())
    decoders._idle[0]._process.kill()
    probe = predictor.probe

    def limited(video: Path) -> VideoInfo:
        if video.stem == "huge":
            raise VideoError("16384 x 16384 pixels, more than can be decoded here")
        return probe(video)

    monkeypatch.setattr(predictor, "probe", limited)
    assert run(videos, models["mean_pool"], tmp_path, output=tmp_path / "results") == 1
    rows = json.loads((tmp_path / "results" / "predictions.json").read_text(encoding="utf-8"))["videos"]
    assert [row["error"] for row in rows] == [
        "the decoder was killed, probably because the machine ran out of memory",
        "16384 x 16384 pixels, more than can be decoded here",
        None,
    ]
    assert "a.mp4" in capsys.readouterr().out


def test_an_address_is_shown_without_its_signature(models, tmp_path, monkeypatch, capsys):
    local = write_video(tmp_path / "local.mp4", 9)
    monkeypatch.setattr(RequestedVideo, "fetch", lambda *_: local)
    address = "https://me:password@host/a.mp4?signature=secret"
    assert run([address], models["mean_pool"], tmp_path, output=tmp_path / "results") == 0
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "results").iterdir())
    assert "https://***@host/a.mp4?signature=***" in written
    for secret in ("password", "=secret"):
        assert secret not in written + capsys.readouterr().out
