"""The sign-in page of `har app` in a real browser, behind a reverse proxy: link, token, wrong token, sign-out, phone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flows.app.access import Site
from flows.app.server import make_app
from flows.app.serving import configure, listen
from tests.models import make_opened, write_video
from tests.reverse_proxy import reverse_proxy

OpenPage = Callable[..., Any]
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the app behind a proxy under a name and a path."""
    opened = make_opened(tmp_path_factory.mktemp("models"), ["alstm"])
    with listen("127.0.0.1", 0) as listener, reverse_proxy(listener.getsockname()[1], "/har") as proxy_port:
        site = Site("127.0.0.1", listener.getsockname()[1], f"http://lab.localhost:{proxy_port}/har", TOKEN)
        server = uvicorn.Server(configure(make_app(opened, tmp_path_factory.mktemp("app"), site=site), site))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"{site.url}/"
        server.should_exit = True
        thread.join(10)


def test_the_printed_link_signs_in_and_a_video_is_predicted(address: str, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(address, at=f"#token={TOKEN}", reduced_motion="reduce")
    page.locator("#drop").wait_for()
    assert page.url == address
    page.locator("#file").set_input_files(write_video(tmp_path / "a.mp4", 31))
    page.get_by_role("heading", name="a.mp4").wait_for()
    page.goto(f"{address}#token={TOKEN}")
    page.wait_for_url(address)


def test_signing_in_by_keyboard_and_out_again(address: str, open_page: OpenPage) -> None:
    page = open_page(address)
    assert page.url == f"{address}sign-in"
    page.locator("input:focus").wait_for()  # a browser gives the field the focus a moment after the page has loaded
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_url(address)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{address}sign-in")
    page.goto(address)
    assert page.url == f"{address}sign-in"


@pytest.fixture
def stranger(browser: Any) -> Iterator[Any]:
    """Return a page without the check for messages: a browser reports the status of an answer that refuses."""
    context = browser.new_context(viewport={"width": 320, "height": 640}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(15_000)
    yield page
    context.close()


def test_a_wrong_token_is_told_and_the_right_one_still_works(address: str, stranger: Any) -> None:
    stranger.goto(address)
    stranger.get_by_label("Token").fill("wrong")
    stranger.get_by_role("button", name="Sign in").click()
    stranger.get_by_role("alert").wait_for()
    assert stranger.get_by_role("alert").inner_text() == "That is not the token."
    assert stranger.get_by_label("Token").input_value() == ""
    stranger.get_by_label("Token").fill(TOKEN)
    stranger.get_by_role("button", name="Sign in").click()
    stranger.wait_for_url(address)


def test_a_session_that_has_ended_is_told(address: str, stranger: Any, tmp_path: Path) -> None:
    stranger.goto(f"{address}#token={TOKEN}")
    stranger.locator("#drop").wait_for()
    stranger.context.clear_cookies()
    stranger.locator("#file").set_input_files(write_video(tmp_path / "a.mp4", 31))
    stranger.locator("#problem").wait_for()
    assert stranger.locator("#problem").inner_text() == "a.mp4: signed out; reload the page to sign in"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_a_phone_shows_all(address: str, open_page: OpenPage, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed: pip install '.[dev]'"
    ).Axe()
    page = open_page(address, width=320, height=640, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert [rule["id"] for rule in axe.run(page).response["violations"]] == []
