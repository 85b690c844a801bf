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
from tasks.sources import Opened
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
    """Return a folder with `a.mp4`, `b.mp4`, one with an evil name, a text and a video that is too large."""
    folder = tmp_path_factory.mktemp("videos")
    for name, num_frames in (("a.mp4", 31), ("b.mp4", 45), (EVIL, 40)):
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


def wait_for_result(page: Any, name: str) -> None:
    page.get_by_role("heading", name=name).wait_for()
    page.wait_for_function("document.querySelector('.player canvas')?.width > 0 && Chart.getChart('chart')")


def test_a_dropped_video_is_predicted_and_plays(address: str, videos: Path, open_page: OpenPage) -> None:
    page = open_page(address, reduced_motion="no-preference")
    transfer = page.evaluate_handle(
        """async url => { const bytes = await (await fetch(url)).arrayBuffer(), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.mp4", { type: "video/mp4" })); return transfer; }""",
        "data:video/mp4;base64," + base64.b64encode((videos / "a.mp4").read_bytes()).decode(),
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    assert "over" in page.locator("#drop").get_attribute("class")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    wait_for_result(page, "dropped.mp4")
    assert page.locator("#label").inner_text() in ("jump", "sit", "wave")
    assert page.locator("#top li").count() == 3
    assert page.locator("#told").inner_text().startswith("alstm says ")
    page.wait_for_function("(video => !video.paused && video.currentTime > 0)(document.querySelector('video'))")
    assert page.locator("#progress").is_hidden()
