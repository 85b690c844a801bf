"""Where a study is kept: in a journal file of the workspace, or in a team's PostgreSQL."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from pipeline_lib.errors import UserError
from pipeline_lib.postgresql import VARIABLE, connect, make_databases, reveal

logger = logging.getLogger(__name__)

FILE = "study.journal"
PURPOSE = "sweeps"
"""What the database is for; also a part of its name."""
OUTAGE_SECONDS = 120.0
"""How long a database may not answer before its trials fail."""
RETRY_SECONDS = 1.0
TABLES = 0x68617200
"""Number of the advisory lock under which tables are created."""
GONE_SECONDS = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""PostgreSQL's settings by which it notices that the machine of a search is gone."""


@dataclass(frozen=True)
class StudyLocation:
    """Where a study is: in the folder of its search, or in a database, which nodes without that folder can use."""

    search: str
    """Name of the search; that of its folder."""
    folder: Path | None
    """None if it is in a database: paths of the workspace cannot be sent to a node that does not share it."""
    database: URL | None = None

    def open(self) -> BaseStorage:
        """Return Optuna's storage; a database's tables must be there."""
        if self.database:
            return _Patient(_connect(self.database, skip_table_creation=True))
        assert self.folder
        return JournalStorage(_Journal(self.folder / FILE))

    def name(self, model: str) -> str:
        """Return the name of a model's study: a database has those of all searches."""
        return f"{self.search} {model}" if self.database else model

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from searching here too; the database notices if this one dies.

        In a folder the workspace's lock does that.

        Raises:
            UserError: another process searches here.
        """
        if self.database is None:
            yield
            return
        number = int.from_bytes(hashlib.sha256(self.search.encode()).digest()[:8], signed=True)
        with connect(self.database, VARIABLE) as connection:
            for name, value in GONE_SECONDS.items():
                connection.execute("select set_config(%s, %s, false)", (name, str(value)))
            if connection.execute("select pg_try_advisory_lock(%s)", (number,)).fetchone() != (True,):
                raise UserError(f"sweep: another run is at the same search ({self.search}) in the database; wait for it")
            yield


def study_location(folder: Path, address: str | None) -> StudyLocation:
    """Return the location of a search, and create the database and tables if needed.

    Args:
        folder: folder of the search, made if it is not there; its name is that of no other search.
        address: address of a PostgreSQL server; None: the folder.

    Raises:
        UserError: the database cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not address:
        return StudyLocation(folder.name, folder)
    database = make_databases(address, [PURPOSE])[PURPOSE]
    with connect(database, VARIABLE) as connection:  # two processes that create tables at once would both fail
        connection.execute("select pg_advisory_lock(%s)", (TABLES,))
        _connect(database).engine.dispose()
    return StudyLocation(folder.name, None, database)


def _connect(database: URL, *, skip_table_creation: bool = False) -> RDBStorage:
    return RDBStorage(reveal(database), {"pool_pre_ping": True, "pool_size": 1}, skip_table_creation=skip_table_creation)


class _Patient(_CachedStorage):
    """Optuna's storage in a database that may restart: every method is tried again for a while."""

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        weakref.finalize(self, backend.engine.dispose)  # closes the connections


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                return method(*arguments, **options)
            except (StorageInternalError, DBAPIError, PendingRollbackError) as error:
                if not _is_outage(error):
                    raise
            if time.monotonic() >= deadline:
                raise UserError(f"{VARIABLE}: the database has not answered for {OUTAGE_SECONDS:.0f} s; its trials are kept")
            logger.warning("the sweep's database does not answer; trying again for %.0f s", deadline - time.monotonic())
            time.sleep(RETRY_SECONDS)

    return call


def _is_outage(error: BaseException) -> bool:
    from psycopg import OperationalError

    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    is_broken_off = isinstance(cause, PendingRollbackError)  # the connection was lost within a transaction
    return is_broken_off or (isinstance(cause, DBAPIError) and isinstance(cause.orig, OperationalError))


for _name in BaseStorage.__abstractmethods__:
    setattr(_Patient, _name, _patient(getattr(_CachedStorage, _name)))


class _Journal(JournalFileBackend):
    """Optuna's journal file, under a lock that a killed process does not leave behind; Optuna's own block for 30 s."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, each a line, after the last whole line."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            _cut_torn_line(file)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file: BinaryIO) -> None:
    """Cut off what a process that was killed wrote of its last line; leave the position at the file's end."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
