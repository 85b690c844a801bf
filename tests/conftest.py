"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real material beside the checkout; skip where it is absent, as in a user's clone."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real videos, archives and weights are not beside this checkout (../shared)")
    return SHARED
