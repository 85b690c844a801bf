"""The clip player: it draws what Python draws, keeps in step with the video, and needs neither mouse nor network."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.heatmaps.maps import MapUpsampler, percentile_level
from pipeline_lib.heatmaps.overlay import Overlay
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.report.player import ASSETS, PLAYER_FILES, SIDE, ClipModel, ClipTube, describe_clip, player_style
from pipeline_lib.video.writing import VideoWriter

T, K, FPS, SIZE = 12, 7, 15.0, (96, 64)
PARAMS = HeatmapsParams()
EVIL = '</script><img src=x onerror="document.title = 1">'


def attention_maps() -> np.ndarray:
    """Return maps that wander, an even one, and one all in a corner cell."""
    maps_TKK = np.random.default_rng(0).dirichlet(np.full(K * K, 0.3), T).reshape(T, K, K).astype(np.float32)
    maps_TKK[0] = 1 / K**2
    maps_TKK[1] = 0
    maps_TKK[1, 0, K - 1] = 1
    return maps_TKK


def grey_video(path: Path) -> str:
    """Write frames of 10, 30, 50, ... in grey and return them as an address."""
    with VideoWriter(path, width=SIZE[0], height=SIZE[1], fps=FPS, crf=10) as writer:
        for frame in range(T):
            writer.write(np.full((*reversed(SIZE), 3), 10 + 20 * frame, np.uint8))
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def tube() -> ClipTube:
    """Return a box on the left half, the actor's on the right quarter, which nobody saw in the last frame."""
    iou_T = np.append(np.linspace(0, 0.5, T - 1), np.nan)
    truth = [[0.75, 0.0, 1.0, 1.0, 0.5, 0.5, 0.6, 0.6]] * (T - 1) + [[]]
    return ClipTube(np.tile([0.0, 0.0, 0.5, 1.0], (T, 1)), iou_T, truth)


def importance() -> np.ndarray:
    """Return weights of frames that rise to 2 T / (T + 1) times an equal one."""
    return np.arange(1, T + 1) / np.arange(1, T + 1).sum()


def example(
    folder: Path, label: str | None = "wave", boxed: ClipTube | None = None, importance_T: np.ndarray | None = None
) -> dict[str, Any]:
    maps_TKK, predicted = attention_maps(), ["golf"] * 4 + ["wave"] * 7 + [EVIL]
    confidence = np.linspace(0.3, 0.9, T).tolist()
    models = [
        ClipModel("alstm", maps_TKK, predicted, confidence, "wave", 0.6, boxed, importance_T),
        ClipModel("conv_alstm", maps_TKK[::-1], ["wave"] * T, confidence, "wave", 0.7),
        ClipModel("lrcn", None, ["golf"] * T, confidence, "golf", 0.5),
    ]
    video = grey_video(folder / "v.mp4")
    return describe_clip("1", label=label, video=video, still=None, size=SIZE, fps=FPS, grid=K, models=models)


@pytest.fixture
def player_page(tmp_path: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that opens a page with one player, reachable as `player`."""

    def open_player(
        label: str | None = "wave", boxed: ClipTube | None = None, importance_T: np.ndarray | None = None, **options: Any
    ) -> Any:
        tokens, sheet, script = ((ASSETS / name).read_text(encoding="utf-8") for name in PLAYER_FILES)
        data = json.dumps([example(tmp_path, label, boxed, importance_T), player_style(K, PARAMS)]).replace("<", r"\u003c")
        start = f"const [clip, style] = {data}; const view = HarPlayer.view(style); const changes = [];"
        start += "const player = HarPlayer.create(document.getElementById('clip'), clip, style, view);"
        start += "const changed = view => { changes.push(view); player.setView(view); };"
        start += "HarPlayer.controls(document.getElementById('view'), style, view, changed);"
        page = '<!doctype html><html lang="en"><title>player</title><link rel="icon" href="data:,">'
        page += f"<style>{tokens}{sheet}</style><main><h1>One clip</h1><div id=view></div><div id=clip></div></main>"
        (tmp_path / "page.html").write_text(f"{page}<script>{script}\n{start}</script></html>", encoding="utf-8")
        return open_page(tmp_path / "page.html", **options)

    return open_player


def levels_of(page: Any, method: str) -> np.ndarray:
    """Return the levels (T, S, S) that the browser computes from what it was sent."""
    encoded = page.evaluate(
        """method => { const painter = new HarPlayer.Painter(style), maps = player.attention.get(clip.models[0]), all = [];
        for (let t = 0; t < clip.frames; t++) all.push(...painter[method](maps.slice(t * 49, (t + 1) * 49)));
        return all; }""",
        method,
    )
    return np.array(encoded, np.uint8).reshape(T, SIDE, SIDE)


def test_levels_are_those_of_the_heatmap_videos(player_page: Callable[..., Any]) -> None:
    upsampler = MapUpsampler(K, SIDE, PARAMS.sigma * SIDE)
    expected = np.stack([upsampler.levels(map_KK) for map_KK in attention_maps()])
    found = levels_of(player_page(), "articleLevels")
    assert not found[0].any()
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_percentile_is_that_of_the_heatmap_videos(player_page: Callable[..., Any]) -> None:
    page = player_page()
    for flat in (np.arange(256).repeat(100), np.triu(np.full((SIDE, SIDE), 9)).ravel(), np.zeros(SIDE**2, np.int64)):
        found = page.evaluate("levels => new HarPlayer.Painter(style).threshold(Uint8Array.from(levels))", flat.tolist())
        assert found == percentile_level(np.bincount(flat, minlength=256).tolist(), PARAMS.percentile)


OVER_GREY = """frame => { const painter = new HarPlayer.Painter(style), canvas = document.createElement("canvas");
    Object.assign(canvas, { width: painter.side, height: painter.side });
    const context = canvas.getContext("2d"), map = player.attention.get(clip.models[0]).slice(frame * 49, (frame + 1) * 49);
    context.fillStyle = "rgb(90 90 90)";
    context.fillRect(0, 0, painter.side, painter.side);
    context.drawImage(painter.paint(map, view), 0, 0);
    return [...context.getImageData(0, 0, painter.side, painter.side).data]; }"""


@pytest.mark.parametrize("frame", [0, 1, 5])
def test_a_frame_gets_the_colours_of_the_heatmap_videos(player_page: Callable[..., Any], frame: int) -> None:
    expected = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))
    levels_SS = MapUpsampler(K, SIDE, PARAMS.sigma * SIDE).levels(attention_maps()[frame])
    Overlay(PARAMS.colormap, PARAMS.opacity, PARAMS.percentile).draw(expected, levels_SS)
    found = np.array(player_page().evaluate(OVER_GREY, frame)).reshape(SIDE, SIDE, 4)[..., :3]
    difference = np.abs(found - np.asarray(expected).astype(int))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.999) <= 6
    assert (found.std() > 5) == (frame > 0)


def test_on_the_relative_scale_a_uniform_map_has_no_colour_and_a_sharp_one_all(player_page: Callable[..., Any]) -> None:
    found = levels_of(player_page(), "shareLevels")
    assert found[0].max() <= 1
    assert found[1].max() == 255
    expected = MapUpsampler(K, SIDE, PARAMS.sigma * SIDE).share_levels(attention_maps()[5])
    assert np.abs(found[5] - expected.astype(int)).max() <= 1


GREY = """() => { const canvas = document.querySelectorAll("canvas")[1], greys = [];
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < data.length; i += 4) {
      if (Math.abs(data[i] - data[i + 1]) + Math.abs(data[i] - data[i + 2]) < 3) greys.push(data[i]);
    }
    return greys.sort((a, b) => a - b)[greys.length >> 1]; }"""
"""The median grey of the second model's picture, where the attention leaves it bare."""


def test_each_frame_is_shown_with_its_own_prediction(player_page: Callable[..., Any]) -> None:
    page = player_page()
    page.evaluate("player.load()")
    page.wait_for_function("player.loaded")
    for frame in (0, 3, 4, T - 1):
        page.evaluate("frame => player.seek(frame)", frame)
        page.wait_for_function(f"grey => Math.abs(({GREY})() - grey) <= 4", arg=10 + 20 * frame)
        assert page.evaluate("player.frame") == frame
        expected = "golf" if frame < 4 else "wave" if frame < T - 1 else EVIL
        assert expected in page.locator(".player-tile .player-value").first.inner_text()
    assert page.title() == "player"


def test_it_plays_and_all_models_with_it(player_page: Callable[..., Any]) -> None:
    page = player_page()
    page.get_by_role("button", name="Play").click()
    before = page.evaluate("player.frame")
    page.wait_for_function("before => player.loaded && player.frame != before", arg=before)
    assert page.evaluate("!player.video.paused")
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("player.video.paused")
    page.evaluate("player.unload()")
    assert page.evaluate("player.video.readyState") == 0


def test_arrows_and_the_mouse_seek(player_page: Callable[..., Any]) -> None:
    page = player_page()
    slider = page.get_by_role("slider", name="Frame")
    slider.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuenow") == "2"
    assert slider.get_attribute("aria-valuetext").startswith("2 of 12; alstm: golf 36")
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuenow") == "12"
    box = page.locator(".player-track").first.bounding_box()
    page.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 5)
    assert slider.get_attribute("aria-valuenow") == "6"


def test_nothing_moves_when_the_video_comes(player_page: Callable[..., Any]) -> None:
    page = player_page()
    slider = page.get_by_role("slider", name="Frame")
    for shape in ("as filmed", "square"):
        page.get_by_label("Shape").select_option(shape)
        page.evaluate("player.unload()")
        before = slider.bounding_box()
        page.evaluate("player.load()")
        page.wait_for_function("player.loaded && player.video.readyState > 1")
        assert slider.bounding_box() == before


def test_the_view_changes_scale_colours_shape_and_speed(player_page: Callable[..., Any]) -> None:
    page = player_page()
    page.evaluate("player.load()")
    page.wait_for_function("player.loaded")
    canvas = page.locator("canvas").first
    size = "canvas => [canvas.width, canvas.height]"
    assert canvas.evaluate(size) == [96, 64]
    page.get_by_label("Shape").select_option("square")
    assert canvas.evaluate(size) == [64, 64]
    page.get_by_label("Scale").select_option("relative to uniform")
    page.get_by_label("Colour map").select_option("cividis")
    page.get_by_label("Speed").select_option("half")
    last = page.evaluate("changes.at(-1)")
    assert last == {"scale": "share", "colormap": "cividis", "squared": True, "model": None, "speed": 0.5, "boxes": True}
    assert page.evaluate("player.video.playbackRate") == 0.5
    page.evaluate("player.setView({...player.view, model: 'conv_alstm'})")
    assert page.locator(".player-tile:visible").count() == 2
    assert page.locator(".player-row:visible").count() == 1


WHITE = """x => { const canvas = document.querySelector("canvas"), { width, height } = canvas;
    const data = canvas.getContext("2d").getImageData(Math.round(x * width), 0, 1, height).data;
    let white = 0;
    for (let i = 0; i < data.length; i += 4) white += Math.min(data[i], data[i + 1], data[i + 2]) > 170;
    return white / height; }"""
"""The share of white in the first model's picture, in the column at `x`."""


def test_the_box_is_drawn_beside_the_actors(player_page: Callable[..., Any]) -> None:
    page = player_page(boxed=tube())
    page.evaluate("player.load()")
    page.wait_for_function("player.loaded && player.video.readyState > 1")
    page.evaluate("player.seek(1)")
    page.wait_for_function("!player.video.seeking")
    near, actor = ([page.evaluate(WHITE, x + step / 96) for step in (-3, -2, 2, 3)] for x in (0.5, 0.75))
    assert max(near) > 0.8  # a solid line
    assert 0.2 < max(actor) < 0.8  # a dashed one
    page.evaluate("player.setView({...player.view, boxes: false})")
    assert max(page.evaluate(WHITE, 0.5 + step / 96) for step in (-3, -2, 2, 3)) < 0.2


def test_the_iou_is_shown_and_spoken(player_page: Callable[..., Any]) -> None:
    page = player_page(boxed=tube())
    slider, value = page.get_by_role("slider", name="Frame"), page.locator(".player-tube .player-value")
    assert value.count() == 1
    slider.focus()
    page.keyboard.press("Home")
    assert value.inner_text() == "0.00"
    assert "alstm: golf 30\u202f%, IoU 0.00, conv_alstm: wave" in slider.get_attribute("aria-valuetext")
    page.keyboard.press("End")
    assert value.inner_text() == "no box known"
    assert "IoU" not in slider.get_attribute("aria-valuetext")
    page.evaluate("player.setView({...player.view, model: 'conv_alstm'})")
    assert page.locator(".player-row:visible").count() == 1


def test_the_weights_of_frames_are_drawn_and_spoken(player_page: Callable[..., Any]) -> None:
    page = player_page(importance_T=importance())
    slider, strip = page.get_by_role("slider", name="Frame"), page.locator(".player-importance")
    assert strip.count() == 1
    slider.focus()
    page.keyboard.press("End")
    assert strip.locator(".player-value").inner_text() == "1.8\u00a0\u00d7 equal"
    assert "alstm: " in slider.get_attribute("aria-valuetext")
    assert slider.get_attribute("aria-valuetext").count("weight 1.8\u00a0\u00d7 equal") == 1
    heights = strip.locator(".player-area").evaluate(
        "node => node.style.clipPath.match(/[\\d.]+%/g).map(parseFloat).filter((_, i) => i % 2)"
    )
    assert heights[1:3] == [pytest.approx(100 * (1 - 1 / T), abs=0.1)] * 2  # the first frame, from the top
    assert heights[-3:-1] == [0, 0]
    bottom, equal = strip.evaluate(
        """node => { const track = node.querySelector(".player-track").getBoundingClientRect();
        const line = node.querySelector(".player-equal").getBoundingClientRect();
        return [(track.bottom - line.bottom) / track.height, 13 / 24]; }"""
    )
    assert bottom == pytest.approx(equal, abs=0.08)
    page.evaluate("player.setView({...player.view, model: 'conv_alstm'})")
    assert not strip.is_visible()


def test_a_clip_nobody_has_labelled_is_neither_right_nor_wrong(player_page: Callable[..., Any]) -> None:
    page = player_page(label=None)
    assert page.locator(".player-right, .player-wrong").count() == 0
    assert page.locator(".player-unknown").count() > 5


def test_models_must_agree_about_the_frames() -> None:
    model = ClipModel("alstm", attention_maps(), ["wave"] * 3, [0.5] * T, "wave", 0.5)
    with pytest.raises(ValueError, match="alstm has 3 predictions, 12 confidences"):
        describe_clip("1", label=None, video="v", still=None, size=SIZE, fps=FPS, grid=K, models=[model])
