"""The artifact store, file names and tables of artifacts, and the workspace lock."""

from pipeline_lib.artifacts.store import (
    Artifact,
    Manifest,
    Recipe,
    Store,
    digest,
    file_sha256,
    tool_versions,
)

__all__ = ["Artifact", "Manifest", "Recipe", "Store", "digest", "file_sha256", "tool_versions"]
