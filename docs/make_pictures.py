"""Make the README's picture from the demo's own heatmaps: python docs/make_pictures.py [WORKSPACE]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

SIDE = 240
COLUMNS = 5
MODEL = "alstm"
TARGET = Path(__file__).parent / "images" / "heatmaps.jpg"


def newest_heatmaps(workspace: Path) -> Path:
    """Return the heatmaps folder of the demo's last run for MODEL."""
    summary = json.loads((workspace / "demo-summary.json").read_text(encoding="utf-8"))
    return Path(summary["report"]).parent / "media" / MODEL


def middle_frame(video: Path) -> Image.Image:
    """Return the frame in the middle of a heatmap video."""
    from pipeline_lib.video.reading import read_frames

    frames = list(read_frames(video, width=SIDE, height=SIDE))
    return Image.fromarray(frames[len(frames) // 2])


def main(workspace: Path) -> None:
    """Write one row of pictures."""
    videos = sorted(newest_heatmaps(workspace).glob("*.mp4"))[:COLUMNS]
    sheet = Image.new("RGB", (SIDE * len(videos), SIDE))
    for column, video in enumerate(videos):
        sheet.paste(middle_frame(video), (column * SIDE, 0))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(TARGET, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "workspace"))
