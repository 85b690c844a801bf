"""Take the screenshots of the README and of docs/usage.md from a finished demo: python docs/make_pictures.py [WORKSPACE].

Requires Chromium and Playwright (the `dev` extra).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

TARGET = Path(__file__).parent / "images"
MOST_BYTES = 200_000


def main(workspace: Path) -> None:
    """Write both screenshots to docs/images/."""
    summary = json.loads((workspace / "demo-summary.json").read_text(encoding="utf-8"))
    TARGET.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        write_jpeg(picture_report(chromium, Path(summary["report"])), TARGET / "report.jpg")
        with app(workspace) as address:
            write_jpeg(picture_app(chromium, address), TARGET / "app.jpg")


@contextmanager
def browser() -> Iterator[Any]:
    """Start a headless Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        sys.exit("no chromium on the path; Debian: apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def picture_report(chromium: Any, path: Path) -> Image.Image:
    """Return a screenshot of the report from the gallery downwards, with reduced motion."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1180}, color_scheme="light", reduced_motion="reduce")
    page.goto(path.as_uri())
    page.locator(".toolbar").first.evaluate("node => node.scrollIntoView()")
    page.wait_for_timeout(1500)
    picture = Image.open(BytesIO(page.screenshot()))
    page.close()
    return picture.convert("RGB")


@contextmanager
def app(workspace: Path) -> Iterator[str]:
    """Run `har app` and yield its address."""
    command = [sys.executable, "-m", "flows.cli", "app", "--port", "0", "--workspace", str(workspace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
        process.terminate()


def picture_app(chromium: Any, address: str) -> Image.Image:
    """Return a screenshot of the app after predicting the first example."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light", reduced_motion="reduce")
    page.goto(address)
    page.locator(".example").first.click()
    page.locator("#result").wait_for()
    page.locator("#result").evaluate("node => node.scrollIntoView()")
    page.wait_for_timeout(2500)
    picture = Image.open(BytesIO(page.screenshot()))
    page.close()
    return picture.convert("RGB")


def write_jpeg(picture: Image.Image, path: Path) -> None:
    """Write a JPEG of at most MOST_BYTES, at the highest quality that fits."""
    for quality in range(90, 40, -5):
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "workspace"))
