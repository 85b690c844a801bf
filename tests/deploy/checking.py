"""The repository's root, and programs that check its files, run without the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment; its exit code tells whether the file is right."""
    return subprocess.run(
        [Path(sys.executable).with_name(program), *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def changed(path: Path, pattern: str, replacement: str, folder: Path) -> Path:
    """Return a copy of a file with one fault in it."""
    text, number = re.subn(pattern, replacement, path.read_text(), count=1)
    assert number == 1, f"{pattern} is not in {path}"
    copy = folder / path.name
    copy.write_text(text)
    return copy


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    match = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if match is None:
        pytest.fail(f"{package} is not in constraints.txt")
    return match[1]
