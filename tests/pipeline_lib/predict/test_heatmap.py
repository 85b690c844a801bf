from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.heatmaps.panel import Panel
from pipeline_lib.heatmaps.rendering import fitting
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.boxes import find_boxes
from pipeline_lib.predict.heatmap import LONGER_SIDE, draw_box, draw_heatmap
from pipeline_lib.predict.prediction import Prediction
from pipeline_lib.video.reading import count_frames, probe, read_frames


def test_the_video_keeps_its_aspect_and_shows_where_the_model_looked(predictor, video, tmp_path):
    subsampled, drawn = tmp_path / "subsampled.mp4", tmp_path / "drawn.mp4"
    prediction = look_left_then_right(predictor.predict(video, subsampled=subsampled))
    numbers = []
    draw_heatmap(subsampled, prediction, "alstm", drawn, HeatmapsParams(), on_frame=numbers.append)
    info = probe(drawn)
    assert (info.width, info.height, info.fps) == (LONGER_SIDE, LONGER_SIDE * 3 // 4, 15)
    assert count_frames(drawn) == 16
    assert numbers == list(range(1, 17))
    size = info.width, info.height
    plain = np.stack([Image.fromarray(frame).resize(size) for frame in read_frames(subsampled)]).astype(int)
    changed_THW = np.abs(np.stack(list(read_frames(drawn))).astype(int) - plain).max(axis=3) > 60
    left, right = np.split(changed_THW[:, info.height // 4 :], 2, axis=2)  # under the text
    assert (left[:8].mean(axis=(1, 2)) > 10 * right[:8].mean(axis=(1, 2))).all()
    assert (right[8:].mean(axis=(1, 2)) > 10 * left[8:].mean(axis=(1, 2))).all()


def look_left_then_right(prediction: Prediction) -> Prediction:
    attention_TKK = np.full((16, 2, 2), 0.05, np.float32)
    attention_TKK[:8, 1, 0] = attention_TKK[8:, 1, 1] = 0.85
    model = dataclasses.replace(prediction.models["alstm"], attention_TKK=attention_TKK)
    return dataclasses.replace(prediction, models={"alstm": model})


def test_the_colours_are_those_asked_for(predictor, video, tmp_path):
    subsampled = tmp_path / "subsampled.mp4"
    prediction = look_left_then_right(predictor.predict(video, subsampled=subsampled))
    redness = []
    for colormap in ("Reds", "Blues"):
        draw_heatmap(subsampled, prediction, "alstm", tmp_path / "drawn.mp4", HeatmapsParams(colormap=colormap, opacity=1.0))
        frame_HW3 = next(read_frames(tmp_path / "drawn.mp4")).astype(int)
        redness.append((frame_HW3[..., 0] - frame_HW3[..., 2]).mean())
    assert redness[0] > redness[1] + 10


def test_a_model_without_attention_draws_nothing(predictor, video, tmp_path):
    prediction = predictor.predict(video, subsampled=tmp_path / "subsampled.mp4")
    with pytest.raises(ValueError, match="mean_pool has no attention to draw"):
        draw_heatmap(tmp_path / "subsampled.mp4", prediction, "mean_pool", tmp_path / "drawn.mp4", HeatmapsParams())
    assert not (tmp_path / "drawn.mp4").exists()


def test_a_box_is_a_light_line_between_dark_ones():
    picture = Image.new("RGB", (100, 50), (200, 0, 0))
    draw_box(picture, np.array([0.2, 0.2, 0.8, 1.0]))
    pixels_HW3 = np.asarray(picture)
    changed_HW = (pixels_HW3 != (200, 0, 0)).any(axis=2)
    assert [np.flatnonzero(changed_HW.any(axis=axis))[[0, -1]].tolist() for axis in (0, 1)] == [[20, 79], [10, 49]]
    assert not changed_HW[20:40, 30:70].any()
    assert pixels_HW3[30, 20:25].sum(axis=1).argmax() in (1, 2)
    assert pixels_HW3[30, 20].tolist() == [12, 14, 20]


def test_the_box_is_drawn_where_the_model_looked(predictor, video, tmp_path):
    subsampled, drawn = tmp_path / "subsampled.mp4", tmp_path / "drawn.mp4"
    prediction = look_left_then_right(predictor.predict(video, subsampled=subsampled))
    box_T4 = find_boxes(prediction.models["alstm"])
    assert box_T4[0].tolist() == [0, 0.5, 0.5, 1]
    assert box_T4[-1].tolist() == [0.5, 0.5, 1, 1]
    frames = []
    for boxes in (None, box_T4):
        draw_heatmap(subsampled, prediction, "alstm", drawn, HeatmapsParams(), box_T4=boxes)
        frames.append(next(read_frames(drawn)).astype(int))
    changed_HW = np.abs(frames[1] - frames[0]).max(axis=2) > 60
    height, width = changed_HW.shape
    assert changed_HW[height // 2 : height // 2 + 5, : width // 2].mean() > 0.5
    assert changed_HW[:, width // 2 + 8 :].mean() < 0.01


def test_a_strip_without_a_true_label_has_one_line_and_no_mark():
    heights = []
    for true in ("wave", None):
        frame = Image.new("RGB", (200, 200), (200, 0, 0))
        Panel(200).draw(frame, true, "wave", 0.5)
        heights.append(int((np.asarray(frame)[:, 199] != (200, 0, 0)).any(axis=1).sum()))
    assert heights[1] == pytest.approx(heights[0] / 2, abs=2)


@pytest.mark.parametrize(
    ("size", "fitted"), [((320, 240), (640, 480)), ((1080, 1920), (360, 640)), ((2, 2), (640, 640)), ((4000, 2), (640, 2))]
)
def test_sizes_are_even_and_fit(size, fitted):
    assert fitting(size, LONGER_SIDE) == fitted
