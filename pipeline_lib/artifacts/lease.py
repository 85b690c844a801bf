"""Leases: who uses a workspace in an object store.

A run and `har gc --delete` each hold one, an object with a heartbeat. Several runs may use a workspace at once, as publishing
is safe. Deleting needs it alone. Ages are differences of the store's own times, so clocks of machines need not agree.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline_lib.artifacts.manifest import now
from pipeline_lib.artifacts.remote import Remote
from pipeline_lib.artifacts.workspace_lock import WorkspaceBusyError
from pipeline_lib.errors import UserError

SECONDS_BETWEEN_HEARTBEATS = 20.0
SECONDS_TO_EXPIRE = 90.0
SECONDS_TO_ANSWER = 10.0
Purpose = Literal["run", "gc"]

logger = logging.getLogger(__name__)


class Holder(BaseModel):
    """Who holds a lease."""

    model_config = ConfigDict(frozen=True)
    purpose: Purpose
    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        """Return the holder as messages name it."""
        what = "a run" if self.purpose == "run" else "har gc"
        return f"{what} (host {self.host}, process {self.pid}, since {self.since})"


class Lease:
    """A lease that is held. Its heartbeat runs in a thread."""

    def __init__(self, remote: Remote, purpose: Purpose, heartbeat: float, expire: float) -> None:
        self._remote, self._expire = remote, expire
        self._path = f"leases/{uuid.uuid4().hex}.json"
        holder = Holder(purpose=purpose, host=socket.gethostname(), pid=os.getpid(), since=now())
        self._content = holder.model_dump_json().encode()
        self._purpose = purpose
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat,), name="lease", daemon=True)

    def take(self) -> None:
        """Take the lease.

        Raises:
            WorkspaceBusyError: another process deletes, or this one is to delete and another runs.
        """
        self._remote.put(self._path, self._content)
        try:
            for path, other in live_holders(self._remote, self._expire).items():
                if path != self._path and "gc" in (other.purpose, self._purpose):
                    raise WorkspaceBusyError(
                        f"{self._remote.address}: {other} is using this workspace; wait for it; a dead one counts "
                        f"for {self._expire:g} s"
                    )
        except BaseException:
            self._remote.delete([self._path])
            raise
        self._thread.start()

    def check(self) -> None:
        """Fail if the lease may have been taken over, as when this machine was frozen.

        Raises:
            WorkspaceBusyError: the last heartbeat is too old.
        """
        if time.monotonic() - self._seen > self._expire / 2:
            raise WorkspaceBusyError(f"{self._remote.address}: this process did not answer for too long; run it again")

    def end(self) -> None:
        """Give the lease back."""
        self._ended.set()
        self._thread.join()
        with suppress(UserError):  # it ends by itself
            self._remote.delete([self._path])

    def _beat(self, heartbeat: float) -> None:
        while not self._ended.wait(heartbeat):
            try:
                self._remote.put(self._path, self._content)
                self._seen = time.monotonic()
            except UserError as error:
                logger.warning("the run goes on, but could not say so: %s", error)


@contextmanager
def hold_lease(
    address: str,
    purpose: Purpose,
    *,
    heartbeat: float = SECONDS_BETWEEN_HEARTBEATS,
    expire: float = SECONDS_TO_EXPIRE,
) -> Iterator[Lease]:
    """Hold a lease on a workspace in the block; leases of dead processes are deleted.

    Its requests wait for a store that is away only for `SECONDS_TO_ANSWER`, so that a mistyped address is told at once.

    Args:
        address: of the workspace's object store.
        purpose: `gc` needs the workspace alone.
        heartbeat: seconds between two signs of life.
        expire: seconds after the last one when a holder counts as dead.

    Raises:
        WorkspaceBusyError: another process uses the workspace; names it.
    """
    lease = Lease(Remote(address, SECONDS_TO_ANSWER), purpose, heartbeat, expire)
    lease.take()
    try:
        yield lease
    finally:
        lease.end()


def live_holders(remote: Remote, expire: float = SECONDS_TO_EXPIRE) -> dict[str, Holder]:
    """Return who holds leases, by the paths of these; delete those of dead processes.

    The store's time is that of an object written now.
    """
    probe = f"leases/.now-{uuid.uuid4().hex}"
    remote.put(probe, b"")
    try:
        leases = {one.path: one.modified for one in remote.objects("leases/")}
        present = leases.pop(probe)
    finally:
        remote.delete([probe])
    dead = {path for path, modified in leases.items() if (present - modified).total_seconds() > expire}
    remote.delete(dead)
    holders = {}
    for path in leases.keys() - dead:
        with suppress(ValueError):
            if content := remote.get(path):
                holders[path] = Holder.model_validate_json(content)
    return holders
