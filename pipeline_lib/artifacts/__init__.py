"""The artifact store: finished, checked, content-addressed folders, and the names and tables of what is in them."""

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
