"""fetch: download or read the video collection and its split files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.addresses import identity, redact
from pipeline_lib.artifacts import Recipe, digest
from pipeline_lib.errors import UserError
from pipeline_lib.fetch.collection import fetch_collection
from pipeline_lib.params import FetchParams
from tasks.progress import transfer
from tasks.stage import Context, stage

VERSION = "fetch-1"
ADDRESSES = ("videos", "splits", "groups", "boxes")


def recipe(context: Context, params: FetchParams) -> Recipe:
    """Identify local input by its content, never its path; remote input by its checksum or its address without signatures."""
    values = params.recipe()
    inputs: dict[str, str] = {}
    for name in ADDRESSES:
        addresses = values.pop(name)
        for address in [addresses] if isinstance(addresses, str) else addresses or []:
            inputs[f"{name} {len(inputs)}"] = _identify(context, address, params.hint)
    return Recipe("fetch", VERSION, values, inputs)


def _identify(context: Context, address: str, hint: str | None) -> str:
    if address.startswith(("http://", "https://")):
        return identity(address)
    path = Path(address).expanduser()
    if not path.exists():
        mend = f"relative paths start at {Path.cwd()}{f'; {hint}' if hint else ''}"
        raise UserError(f"fetch: {redact(address)}: no such file or folder; {mend}")
    if path.is_dir():
        return digest([[entry.relative_to(path).as_posix(), _sha256(context, entry)] for entry in sorted(path.rglob("*"))])
    return str(_sha256(context, path))


def _sha256(context: Context, path: Path) -> str | None:
    """Return a file's digest, or None for a folder: empty class folders count too."""
    return context.store.digests.sha256(path) if path.is_file() else None


@stage(recipe)
def fetch(directory: Path, context: Context, made_from: Recipe, params: FetchParams) -> Mapping[str, Any]:
    """Write the collection: videos by class, split files, and an index with every video's SHA-256."""
    partial = context.store.partial(made_from)
    return fetch_collection(params, directory, partial, sha256=context.store.digests.sha256, progress=transfer("fetch"))
