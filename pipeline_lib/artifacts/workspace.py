"""Where a workspace is: a folder, or an object store with a folder of this machine as its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline_lib.artifacts.lease import SECONDS_TO_ANSWER
from pipeline_lib.artifacts.manifest import digest
from pipeline_lib.artifacts.remote import Remote, is_remote
from pipeline_lib.artifacts.shared_store import OnTransfer, SharedStore, address_of_cache
from pipeline_lib.artifacts.store import Store
from pipeline_lib.errors import UserError

CACHE_VARIABLE = "HAR_CACHE"
"""Environment variable: the folder of this machine's caches."""
DEFAULT_CACHE = "~/.cache/har"


class Workspace(BaseModel):
    """A workspace's folder on this machine, and its address in an object store if it has one."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    address: str | None = None

    @property
    def name(self) -> str:
        """The address, or else the folder."""
        return self.address or str(self.folder)

    @property
    def exists(self) -> bool:
        """Whether there is something to open; of an object store this is not known before."""
        return self.address is not None or self.folder.is_dir()

    def open(self, on_transfer: OnTransfer | None = None) -> Store:
        """Open the workspace's artifacts, creating the folder if needed."""
        if self.address is None:
            return Store(self.folder)
        return SharedStore(self.folder, Remote(self.address), on_transfer)


def locate_workspace(address: str, cache: str | None = None) -> Workspace:
    """Return where the workspace of this address is.

    Args:
        address: a folder, or an address in an object store, such as s3://bucket/prefix. The folder of an address's cache means
            that address, with this cache.
        cache: folder of an object store's cache; default: one for each address in HAR_CACHE or ~/.cache/har.
    """
    if is_remote(address):
        address = address.rstrip("/")
        return Workspace(folder=Path(cache).expanduser().absolute() if cache else default_cache(address), address=address)
    if "://" in address:
        raise UserError(f"workspace: {address}: give a folder, or an address such as s3://bucket/prefix")
    folder = Path(address).expanduser().absolute()
    return Workspace(folder=folder, address=address_of_cache(folder))


def default_cache(address: str) -> Path:
    """Return the folder of an address's cache on this machine."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", address.partition("://")[2]).strip("-")[:40]
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser().absolute() / f"{slug}-{digest(address)[:8]}"


@contextmanager
def open_workspace(workspace: Workspace, on_transfer: OnTransfer | None = None) -> Iterator[Store]:
    """Open the store of an existing workspace.

    Raises:
        UserError: there is no workspace, or its object store does not answer.
    """
    if workspace.address is None and not (workspace.folder / "artifacts").is_dir():
        raise UserError(f"{workspace.folder}: no artifacts there; give the workspace of your runs with --workspace")
    if workspace.address is not None:
        next(Remote(workspace.address, SECONDS_TO_ANSWER).objects("leases/"), None)  # a mistyped address is told at once
    store = workspace.open(on_transfer)
    try:
        yield store
    finally:
        store.close()
