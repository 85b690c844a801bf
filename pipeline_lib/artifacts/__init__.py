"""The artifact store, file names and tables of artifacts, and the workspace lock."""

from pipeline_lib.artifacts.digests import file_sha256
from pipeline_lib.artifacts.manifest import Manifest, Recipe, digest, tool_versions
from pipeline_lib.artifacts.store import Artifact, Store

__all__ = ["Artifact", "Manifest", "Recipe", "Store", "digest", "file_sha256", "tool_versions"]
