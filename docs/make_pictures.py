"""Make the README's pictures from a finished demo: python docs/make_pictures.py [WORKSPACE].

Frames of the heatmap videos need nothing more; pictures of the pages need Chromium, and Playwright (the `dev` extra).
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

SIDE = 240
COLUMNS = 5
MODEL = "alstm"
TARGET = Path(__file__).parent / "images"
MOST_BYTES = 200_000

WINDOWS = {"report.jpg": (1280, 1180, ".toolbar"), "report-phone.jpg": (390, 844, ".clip")}
"""Pictures of the report: width and height of the window in pixels, and where it is scrolled to."""


def main(workspace: Path) -> None:
    """Write every picture."""
    summary = json.loads((workspace / "demo-summary.json").read_text(encoding="utf-8"))
    TARGET.mkdir(parents=True, exist_ok=True)
    picture_heatmaps(summary)
    with browser() as chromium:
        for name, window in WINDOWS.items():
            write_jpeg(picture_report(chromium, Path(summary["report"]), *window), TARGET / name)
        with app(workspace) as address:
            write_jpeg(picture_app(chromium, address), TARGET / "app.jpg")


def picture_heatmaps(summary: dict[str, Any]) -> None:
    """Write one row of frames with the attention of MODEL over them."""
    import mlflow

    mlflow.set_tracking_uri(summary["mlflow"]["tracking_uri"])
    folder = mlflow.artifacts.download_artifacts(run_id=summary["models"][MODEL]["mlflow_run_id"], artifact_path="heatmaps")
    listed = json.loads((Path(folder) / "heatmaps.json").read_text(encoding="utf-8"))
    sheet = Image.new("RGB", (SIDE * COLUMNS, SIDE))
    for column, clip in enumerate(listed["clips"][:COLUMNS]):
        sheet.paste(middle_frame(Path(folder) / clip["mp4"]), (column * SIDE, 0))
    sheet.save(TARGET / "heatmaps.jpg", quality=88)


def middle_frame(video: Path) -> Image.Image:
    """Return the frame in the middle of a heatmap video."""
    from pipeline_lib.video.reading import read_frames

    frames = list(read_frames(video, width=SIDE, height=SIDE))
    return Image.fromarray(frames[len(frames) // 2])


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


def picture_report(chromium: Any, path: Path, width: int, height: int, place: str) -> Image.Image:
    """Return what a window shows of the report, from `place` downwards; nothing moves in it."""
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme="light", reduced_motion="reduce")
    page.goto(path.as_uri())
    page.locator(place).first.evaluate("node => node.scrollIntoView()")
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
    """Return what a window shows of the app after it has seen the first example."""
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
    """Write a picture at the best quality that keeps it under MOST_BYTES."""
    for quality in range(90, 40, -5):
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "workspace"))
