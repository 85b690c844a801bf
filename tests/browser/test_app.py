"""`har app` in a real browser: upload, result, bad file, too large, a second visitor, models, examples, keyboard, phone."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flows.app.server import Limits, make_app
from flows.app.serving import listen
from pipeline_lib.predict.examples import Example
from pipeline_lib.predict.predictor import Predictor
from tasks.mlflow.loading import Opened
from tests.models import make_opened, write_video

OpenPage = Callable[..., Any]
EVIL = "<img src=x onerror='document.title = 1'>.mp4"


class Gate:
    """Lets predictions pass, or holds them until it is opened."""

    def __init__(self, predictor: Predictor) -> None:
        self._predict = predictor.predict
        self._is_open = threading.Event()
        self._is_open.set()
        self.open, self.close = self._is_open.set, self._is_open.clear

    def predict(self, *arguments: Any, **options: Any) -> Any:
        assert self._is_open.wait(20)
        return self._predict(*arguments, **options)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return make_opened(tmp_path_factory.mktemp("models"))


@pytest.fixture
def gate(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(opened.predictor)
    monkeypatch.setattr(opened.predictor, "predict", gate.predict)
    yield gate
    gate.open()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `a.mp4`, `b.mp4`, a text and a file that is too large."""
    folder = tmp_path_factory.mktemp("videos")
    for name, num_frames in (("a.mp4", 31), ("b.mp4", 45)):
        write_video(folder / name, num_frames)
    (folder / "notes.mp4").write_text("no video")
    (folder / "large.mp4").write_bytes(bytes(3_000_000))
    return folder


@pytest.fixture(scope="module")
def address(opened: Opened, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the app."""
    examples = [Example(videos / "b.mp4", "wave", False), Example(videos / "a.mp4", "sit", True)]
    app = make_app(opened, tmp_path_factory.mktemp("app"), examples, limits=Limits(max_bytes=2_000_000))
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


def upload(page: Any, video: Path) -> None:
    page.locator("#file").set_input_files(video)


def wait_until(page: Any, condition: str) -> None:
    """Wait for an expression; Playwright's own waiting would need `eval`, which the page forbids."""
    deadline = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def wait_for_result(page: Any, name: str) -> None:
    page.get_by_role("heading", name=name).wait_for()
    wait_until(page, "document.querySelector('.player canvas')?.width === 64 && Chart.getChart('chart')")


def test_a_dropped_video_of_any_name_is_predicted_and_plays(address: str, videos: Path, open_page: OpenPage) -> None:
    page = open_page(address, reduced_motion="no-preference")
    transfer = page.evaluate_handle(
        """([text, name]) => {
        const bytes = Uint8Array.from(atob(text), one => one.charCodeAt(0)), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type: "video/mp4" })); return transfer; }""",
        [base64.b64encode((videos / "a.mp4").read_bytes()).decode(), EVIL],
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    assert "over" in page.locator("#drop").get_attribute("class")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    wait_for_result(page, EVIL)
    assert page.locator("#label").inner_text() in ("jump", "sit", "wave")
    assert page.locator("#top li").count() == 3
    assert page.locator("#announcement").inner_text().startswith("alstm predicts ")
    wait_until(page, "(video => !video.paused && video.currentTime > 0)(document.querySelector('video'))")
    assert page.locator("#progress").is_hidden()
    assert page.title() == "har: watch where it looks"
    assert page.locator("img[src=x]").count() == 0


def test_models_are_switched_and_compared(address: str, videos: Path, open_page: OpenPage) -> None:
    page = open_page(address, reduced_motion="reduce")
    upload(page, videos / "a.mp4")
    wait_for_result(page, "a.mp4")
    tiles, rows = page.locator(".player-tile:visible"), page.locator(".player-row:visible")
    assert (tiles.count(), rows.count()) == (2, 1)
    first = page.evaluate("Chart.getChart('chart').data.datasets[0].data.map(point => point.y)")
    page.get_by_role("radio", name="conv alstm").check()
    assert page.locator("#verdict-model").inner_text() == "conv alstm predicts"
    assert page.evaluate("Chart.getChart('chart').data.datasets[0].data.map(point => point.y)") != first
    page.get_by_label("Scale").select_option("relative to uniform")
    page.get_by_role("radio", name="mean pool").check()
    assert page.get_by_text("This model has no attention").is_visible()
    assert (tiles.count(), rows.count()) == (1, 1)
    page.get_by_label("all models side by side").check()
    assert (tiles.count(), rows.count()) == (3, 3)
    upload(page, videos / "b.mp4")
    wait_for_result(page, "b.mp4")
    assert page.get_by_role("radio", name="mean pool").is_checked()
    assert page.get_by_label("Scale").input_value() == "relative to uniform"


def test_the_chart_is_in_step_with_the_player_and_its_numbers_can_be_had(
    address: str, videos: Path, open_page: OpenPage
) -> None:
    page = open_page(address, reduced_motion="reduce")
    upload(page, videos / "a.mp4")
    wait_for_result(page, "a.mp4")
    assert page.locator(".player-toggle").get_attribute("aria-label") == "Play"
    page.locator("#chart").scroll_into_view_if_needed()
    area = page.evaluate("(({left, right, top}) => [left, right, top])(Chart.getChart('chart').chartArea)")
    page.locator("#chart").click(position={"x": area[0] + 0.4 * (area[1] - area[0]), "y": area[2] + 20})
    wait_until(page, "document.querySelector('[role=slider]').ariaValueNow === '7'")  # of 16
    page.get_by_text("As a table").click()
    row = page.locator("#numbers tbody tr").nth(1)
    assert row.locator("th").inner_text() == "0:01"
    assert sum(float(cell.split("\u202f")[0]) for cell in row.locator("td").all_inner_texts()) == pytest.approx(100, abs=0.3)
    with page.expect_download() as download:
        page.get_by_text("Predictions of all models as JSON").click()
    assert download.value.suggested_filename == "a.predictions.json"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.mp4", "notes.mp4: not a video that ffmpeg can read"),
        ("large.mp4", "large.mp4: larger than the 2 MB allowed here"),
    ],
)
def test_a_bad_file_is_told_in_one_line_and_the_next_one_works(
    address: str, videos: Path, open_page: OpenPage, name: str, reason: str
) -> None:
    page = open_page(address, reduced_motion="reduce")
    upload(page, videos / name)
    page.get_by_text(reason).first.wait_for()
    assert page.locator("#problem").inner_text() == page.locator("#announcement").text_content() == reason
    assert page.locator("#drop").is_visible()
    upload(page, videos / "a.mp4")
    wait_for_result(page, "a.mp4")
    assert page.locator("#problem").is_hidden()


def test_the_second_visitor_waits_for_the_first(
    address: str, videos: Path, open_page: OpenPage, gate: Gate, tmp_path: Path
) -> None:
    gate.close()
    first, second, third = (open_page(address, reduced_motion="reduce") for _ in range(3))
    upload(first, write_video(tmp_path / "first.mp4", 33))
    first.get_by_text("Decoding first.mp4").first.wait_for()
    upload(second, write_video(tmp_path / "second.mp4", 34))
    second.get_by_text("second.mp4 is queued: 1 video ahead").first.wait_for()
    upload(third, write_video(tmp_path / "third.mp4", 35))
    third.get_by_text("third.mp4 is queued: 2 videos ahead").first.wait_for()
    second.get_by_role("button", name="Cancel").click()
    assert second.locator("#drop").is_visible()
    third.get_by_text("third.mp4 is queued: 1 video ahead").first.wait_for()
    gate.open()
    wait_for_result(first, "first.mp4")
    wait_for_result(third, "third.mp4")
    assert second.locator("#result").is_hidden()


def test_an_example_is_told_right_or_wrong(address: str, open_page: OpenPage, gate: Gate) -> None:
    page = open_page(address, reduced_motion="reduce")
    example = page.locator("[data-example='0']")
    wait_until(page, "[...document.images].every(image => image.complete && image.naturalWidth)")
    example.focus()
    page.keyboard.press("Enter")
    wait_for_result(page, "Example 1: true label wave")
    label = page.locator("#label")
    assert label.inner_text()[0] == ("\u2713" if label.inner_text().endswith("wave") else "\u2717")
    assert page.locator(".model .right, .model .wrong").count() == 3
    gate.close()  # what was predicted once is shown again at once
    page.locator("[data-example='0']").click()
    wait_until(page, "document.activeElement.id === 'result-title'")


def test_the_keyboard_does_everything(address: str, videos: Path, open_page: OpenPage) -> None:
    page = open_page(address, reduced_motion="reduce")
    with page.expect_file_chooser() as chooser:  # begins to listen while the keys are pressed that come before
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the upload"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        page.wait_for_timeout(100)
        page.keyboard.press("Enter")
    chooser.value.set_files(videos / "a.mp4")
    wait_for_result(page, "a.mp4")
    assert page.evaluate("document.activeElement.id") == "result-title"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#verdict-model").inner_text() == "conv alstm predicts"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert page.get_by_role("slider", name="Frame").get_attribute("aria-valuenow") == "16"


def test_a_stopped_server_is_told(address: str, videos: Path, open_page: OpenPage) -> None:
    page = open_page(address, reduced_motion="reduce")
    page.evaluate("() => { XMLHttpRequest.prototype.send = function () { setTimeout(() => this.onerror()); }; }")
    upload(page, videos / "a.mp4")
    page.get_by_text("a.mp4: har app does not answer; is it still running?").first.wait_for()


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_shows_all_without_sideways_scrolling(address: str, videos: Path, open_page: OpenPage, width: int) -> None:
    page = open_page(address, width=width, height=740, reduced_motion="reduce")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    upload(page, videos / "a.mp4")
    wait_for_result(page, "a.mp4")
    page.get_by_label("all models side by side").check()
    page.get_by_text("As a table").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing(address: str, videos: Path, open_page: OpenPage, gate: Gate, scheme: str, tmp_path: Path) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed: pip install '.[dev]'"
    ).Axe()
    page = open_page(address, color_scheme=scheme, reduced_motion="reduce")

    def check() -> None:
        found = axe.run(page).response["violations"]
        assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]][:3]) for rule in found] == []

    upload(page, videos / "notes.mp4")
    page.locator("#problem").wait_for()
    check()
    gate.close()
    upload(page, write_video(tmp_path / "new.mp4", 36 if scheme == "light" else 37))
    page.get_by_text("Decoding new.mp4").first.wait_for()
    check()
    gate.open()
    wait_for_result(page, "new.mp4")
    page.locator("[data-example='0']").click()
    wait_for_result(page, "Example 1: true label wave")
    page.get_by_label("all models side by side").check()
    for summary in page.locator("summary:visible").all():
        summary.click()
    check()
