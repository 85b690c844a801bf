from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.predict.bundle import ModelBundle
from pipeline_lib.predict.predictor import Predictor
from tests.models import make_bundle, write_video


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    """Return models over one backbone; treat them as read-only."""
    folder = tmp_path_factory.mktemp("parts")
    return {name: make_bundle(folder / name, name) for name in ("alstm", "conv_alstm", "mean_pool")}


@pytest.fixture(scope="session")
def predictor(parts: dict[str, ModelBundle]) -> Predictor:
    return Predictor(parts.values(), device="cpu")


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 31 frames at 30 fps: 16 at 15 fps, two clips of 6 and a tail of 4."""
    return write_video(tmp_path_factory.mktemp("video") / "#1 (ü).mp4", 31)
