"""One headless Chromium for all tests of pages; they skip where it, or Playwright, is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
)


@pytest.fixture(scope="package")  # no longer: while Playwright is there, nobody else may start an event loop in this thread
def browser() -> Iterator[Any]:
    """Start Chromium; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install '.[dev]'")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium), nor is CHROMIUM its path")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function that opens a file or address, at an anchor, after a script; in the end no page may have complained."""
    contexts, complaints = [], []

    def open_file(
        path: Path | str, *, at: str = "", script: str = "", width: int = 1280, height: int = 900, **context: Any
    ) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **context))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(script)
        page.goto((path if isinstance(path, str) else path.as_uri()) + at)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
