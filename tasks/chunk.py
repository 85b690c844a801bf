"""chunk: cut videos into clips and assign them to train, val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import Recipe, layout
from pipeline_lib.params import ChunkParams
from tasks.stage import Context, Ref, stage

VERSION = "chunk-3"


def recipe(context: Context, collection: Ref, shards: Sequence[Ref], params: ChunkParams) -> Recipe:
    """Return what the clip table depends on: every shard's frame counts and the split files."""
    inputs = {"collection": collection.content_key} | {f"shard {n}": shard.content_key for n, shard in enumerate(shards)}
    return Recipe("chunk", VERSION, params.recipe(), inputs)


@stage(recipe)
def chunk(directory: Path, context: Context, collection: Ref, shards: Sequence[Ref], params: ChunkParams) -> Mapping[str, Any]:
    """Write the clip table of the collection for one fold."""
    from pipeline_lib.chunk import chunk_collection

    fetched = collection.checkout(context, "splits", layout.GROUPS)
    splits, groups = fetched / "splits", fetched / layout.GROUPS
    return chunk_collection(
        [shard.checkout(context, layout.VIDEOS) for shard in shards],
        directory,
        params,
        splits=splits if splits.is_dir() else None,
        groups=groups if groups.is_file() else None,
    )
