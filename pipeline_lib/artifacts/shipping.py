"""Paths of a call that is run on another node: files of the workspace are there, at that node's own paths, when it begins.

Paths in the workspace travel as places: relative to it. The node brings the artifacts that are named to its own cache, fills
drafts in its own folder and uploads them, and keeps unfinished work in the object store while the call runs.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cloudpickle

from pipeline_lib.artifacts.remote import CONNECTIONS, Remote
from pipeline_lib.artifacts.shared_store import SharedStore
from pipeline_lib.artifacts.store import Store
from pipeline_lib.artifacts.workspace import CACHE_VARIABLE, default_cache
from pipeline_lib.artifacts.workspace_lock import known_id, workspace_id
from pipeline_lib.errors import UserError

SECONDS_BETWEEN_MIRRORINGS = 60.0

_node: ContextVar[SharedStore] = ContextVar("node")
"""The store of this node, while a call's arguments are unpickled."""
_is_own: ContextVar[bool] = ContextVar("is_own")
"""Whether that is the driver's own node."""


class Place(NamedTuple):
    """A path in the workspace: in an artifact, in the draft of one, or in a folder of unfinished work."""

    area: str
    """`artifacts` or `partial`."""
    stage: str
    key: str
    """The key, or the name of a draft."""
    below: str
    """The path in that folder; empty for the folder itself."""

    @classmethod
    def of(cls, store: Store, path: Path) -> Place | None:
        """Return the place of a path, or None if it is not in an artifact or in a folder of unfinished work."""
        try:
            parts = path.relative_to(store.workspace).parts
        except ValueError:
            return None
        if len(parts) < 3 or parts[0] not in ("artifacts", "partial"):
            return None
        return cls(parts[0], parts[1], parts[2], PurePosixPath(*parts[3:]).as_posix() if parts[3:] else "")

    @property
    def is_draft(self) -> bool:
        """Whether it is in an artifact that is being made."""
        return self.key.startswith(".")

    def path(self, store: Store) -> Path:
        """Return the path on a node."""
        return store.workspace / self.area / self.stage / self.key / self.below

    @property
    def folder(self) -> Place:
        """The artifact, draft or folder that it is in."""
        return self._replace(below="")


class LocalFiles(Mapping[str, Path]):
    """Paths of files by name; a file of a workspace in an object store is brought to this machine when it is asked for."""

    def __init__(self, paths: Mapping[str, Path], store: Store | None = None) -> None:
        """Keep the paths; the store is that of their workspace."""
        self._paths, self._store = paths, store

    def __getitem__(self, name: str) -> Path:
        path = self._paths[name]
        if isinstance(self._store, SharedStore) and (place := Place.of(self._store, path)):
            self._store.checkout(place, place.below)
        return path

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalFiles, (dict(self._paths),)

    def places(self, store: Store) -> dict[str, Place | Path]:
        """Return the places of those in the workspace, and the paths of others."""
        return {name: Place.of(store, path) or path for name, path in self._paths.items()}


class Shipper:
    """Prepares calls whose arguments have paths in a workspace in an object store."""

    def __init__(self, store: SharedStore, max_cache_bytes: float = inf) -> None:
        """Prepare calls for the store of the driver; caches of other nodes have the same limit."""
        self._store, self._max_cache_bytes = store, max_cache_bytes
        self._owner = workspace_id(store.workspace)

    @contextmanager
    def here(self, arguments: Any) -> Iterator[None]:
        """Bring what the arguments' paths name to this machine."""
        with _prepared(self._store, _pickle(self._store, arguments)[1], is_own=True):
            yield

    def pack(self, work: Any) -> bytes:
        """Return the work pickled, as a context manager that yields it on another node."""
        content, places = _pickle(self._store, work)
        self._store.shipped.update(place.folder.path(self._store) for place in places if place.is_draft)
        address, cache = self._store.remote.address, str(self._store.workspace)
        return cloudpickle.dumps(Shipment(address, cache, self._max_cache_bytes, self._owner, tuple(places), content))


@dataclass
class Shipment(AbstractContextManager[Any]):
    """A pickled call with the places of its paths."""

    address: str
    cache: str
    """The driver's cache."""
    max_cache_bytes: float
    owner: str
    """The id of the driver's cache, which its own node finds there as well."""
    places: tuple[Place, ...]
    content: bytes
    _stack: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_stack"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _stack=ExitStack())

    def __enter__(self) -> Any:
        store = _node_store(self.address, self.cache, self.max_cache_bytes)
        is_own = known_id(store.workspace) == self.owner
        work = copy_context().run(_unpickle, self.content, store, is_own)
        self._stack.enter_context(_prepared(store, self.places, is_own=is_own))
        return work

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)


@functools.lru_cache(maxsize=4)
def _node_store(address: str, cache: str, max_cache_bytes: float) -> SharedStore:
    """Return this process's store, its cache within its limit if no other process of the node uses it.

    The node's own folder of caches wins over the driver's, which may be the same one.
    """
    folder = default_cache(address) if os.environ.get(CACHE_VARIABLE) else Path(cache)
    store = SharedStore(folder, Remote(address))
    store.trim(max_cache_bytes)
    return store


@contextmanager
def _prepared(store: SharedStore, places: Iterable[Place], *, is_own: bool) -> Iterator[None]:
    """Bring artifacts here, make the folders of drafts and hand them over at the end, and mirror unfinished work."""
    drafts = sorted({place.folder for place in places if place.is_draft})
    partial = sorted({place.folder for place in places if place.area == "partial"})
    _check_out(store, [place for place in places if place.area == "artifacts" and not place.is_draft])
    folders = [draft.path(store) for draft in drafts if not is_own]
    with ExitStack() as stack:
        for place in partial:
            stack.enter_context(store.mirrored_partial(place.stage, place.key, SECONDS_BETWEEN_MIRRORINGS))
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
            folder.mkdir(parents=True)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield
        for folder in folders:
            store.hand_over(folder)


def _check_out(store: SharedStore, places: Iterable[Place]) -> None:
    names: defaultdict[Place, set[str]] = defaultdict(set)
    for place in places:
        names[place.folder].add(place.below)

    def check_out(item: tuple[Place, set[str]]) -> None:
        place, below = item
        store.checkout(place, *(() if "" in below else below))

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="checkout") as pool:
        for _ in pool.map(check_out, names.items()):
            pass


def _pickle(store: Store, work: Any) -> tuple[bytes, list[Place]]:
    """Return an object pickled with its paths as places, and these places."""
    file = io.BytesIO()
    pickler = _Pickler(file, store)
    pickler.dump(work)  # type: ignore[no-untyped-call]
    return file.getvalue(), sorted(pickler.places)


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles paths in the workspace as places."""

    def __init__(self, file: io.BytesIO, store: Store) -> None:
        super().__init__(file)  # type: ignore[no-untyped-call]
        self._workspace_store = store
        self.places: set[Place] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, LocalFiles):
            return _unpack_files, (value.places(self._workspace_store),)  # looked up when it is asked for
        if isinstance(value, Path) and (place := Place.of(self._workspace_store, value)):
            self.places.add(place)
            return _unpack_path, (tuple(place),)
        if isinstance(value, Path) and value.is_relative_to(self._workspace_store.workspace):
            return _unpack_own, (str(value),)
        return super().reducer_override(value)  # type: ignore[no-untyped-call]


def _unpickle(content: bytes, store: SharedStore, is_own: bool) -> Any:
    _node.set(store)
    _is_own.set(is_own)
    return pickle.loads(content)


def _unpack_path(place: tuple[str, str, str, str]) -> Path:
    return Place(*place).path(_node.get())


def _unpack_own(path: str) -> Path:
    """Return a path of the driver's cache that no other node has.

    Raises:
        UserError: this is another node.
    """
    if not _is_own.get():
        raise UserError(
            f"{path}: nodes without a shared folder cannot use this; "
            "a sweep on them needs a database (HAR_DATABASE, docs/servers.md)"
        )
    return Path(path)


def _unpack_files(places: Mapping[str, Place | Path]) -> LocalFiles:
    store = _node.get()
    paths = {name: place.path(store) if isinstance(place, Place) else place for name, place in places.items()}
    return LocalFiles(paths, store)
