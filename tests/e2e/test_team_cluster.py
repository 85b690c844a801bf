"""A cluster on one host, as docs/scaling.md describes it: four Ray nodes that share no folder, an object store, PostgreSQL.

While the flow runs, a worker is killed, a node is killed, another one freezes, and the database is killed and restarted. What
is made equals what one machine makes. The rendered collection and, where it is beside the checkout, the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml

from pipeline_lib.artifacts.manifest import Manifest
from pipeline_lib.artifacts.remote import Remote
from tests.e2e.conftest import TINY
from tests.e2e.test_random_kills import COMPARED, PARAMS, Trial, fetch, finish, is_worker
from tests.e2e.test_team_servers import har
from tests.pipeline_lib.compute.test_cluster import Node, environment
from tests.servers import ObjectStore, PostgresServer, free_port

__all__ = ["fetch"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="four loopback addresses"),
    pytest.mark.timeout(1800),
]
PROJECT = Path(__file__).parents[2]
SECONDS_TO_HAPPEN = 600.0


@dataclass
class Site:
    """The servers, and the nodes by name."""

    folder: Path
    postgresql: PostgresServer
    variables: dict[str, str]
    """Environment of the flow."""
    engine: str = ""
    """Address of the cluster."""
    nodes: dict[str, Node] = field(default_factory=dict)

    @property
    def token(self) -> Path:
        return self.folder / "token"


@pytest.fixture
def site(postgresql: PostgresServer, object_store: ObjectStore) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="har-", dir="/tmp"))  # short: Ray's sockets are in it
    (folder / "token").write_text("a" * 64)
    ports = free_port(), free_port()
    servers = {"PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api", "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports[1]}"}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_", "HAR_"))}
    env = own | object_store.environment | {"HAR_DATABASE": postgresql.address("cluster")}
    workspace = folder / "servers"
    workspace.mkdir()
    options = ("--workspace", workspace, "--prefect-port", ports[0], "--mlflow-port", ports[1])
    site = Site(folder, postgresql, object_store.environment | servers)
    try:
        up = har("up", *options, "--artifacts", "s3://lab/mlflow", env=env)
        assert up.returncode == 0, up.stdout + up.stderr
        start_nodes(site, object_store.environment)
        yield site
    finally:
        for node in site.nodes.values():
            node.signal(signal.SIGCONT)
            node.end()
        har("down", "--workspace", workspace, env=env)
        shutil.rmtree(folder, ignore_errors=True)


def start_nodes(site: Site, store: dict[str, str]) -> None:
    """Start four nodes with a core each, in folders and with caches of their own; the flow runs on the first."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={site.folder / 'ray'}")
    for number, name in enumerate("acde", start=1):
        options = head if number == 1 else (f"--address={address}",)
        own = {"HAR_CACHE": str(site.folder / f"cache-{name}")} | store
        site.nodes[name] = Node(
            name, site.folder / name, site.token, *options, f"--node-ip-address=127.0.0.{number}", "--num-gpus=0", **own
        )
    site.variables |= {"RAY_AUTH_TOKEN_PATH": str(site.token), "HAR_CACHE": str(site.folder / "cache-a")}
    site.engine = address


def start(
    site: Site, fetch: dict[str, str], address: str, *options: str, params: dict[str, Any] = PARAMS, **variables: str
) -> subprocess.Popen[bytes]:
    """Start the flow on the first node."""
    path = site.folder / "params.yaml"
    path.write_text(yaml.safe_dump({"workspace": address, "fetch": fetch} | params))
    command = [sys.executable, "-m", "flows.cli", "run", str(path), "--engine", site.engine, *options]
    env = environment(**site.variables | variables)
    with (site.folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=env)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_HAPPEN
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.3)


def trials(site: Site) -> dict[int, str]:
    """Return the states of the search's trials in the database, by number."""
    with suppress(psycopg.Error):  # it is down, or has no tables yet
        return dict(site.postgresql.execute("cluster_sweeps", "select number, state::text from trials"))
    return {}


def tracked_trials(site: Site) -> list[str]:
    """Return the numbers of the trials that MLflow has as runs, in the order of their first row."""
    query = "select value from tags join runs using (run_uuid) where key = 'trial' order by start_time"
    return [number for (number,) in site.postgresql.execute("cluster_mlflow", query)]


def workers(node: Node) -> list[psutil.Process]:
    """Return the processes of a node that work for the flow."""
    return [child for child in psutil.Process(node.process.pid).children(recursive=True) if is_worker(child)]


def published(address: str) -> dict[str, Manifest]:
    remote = Remote(address)
    found = {f"{stage}/{key}": remote.manifest(stage, key) for stage, key in remote.published() if stage in COMPARED}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def content(address: str) -> dict[str, str]:
    """Return the digests of every artifact's files, by stage and key."""
    files = {name: manifest.model_dump(mode="json")["files"] for name, manifest in published(address).items()}
    return {name: json.dumps(records, sort_keys=True) for name, records in files.items()}


def test_what_a_disturbed_cluster_makes_is_what_one_machine_makes(
    site: Site, fetch: dict[str, str], tmp_path: Path, with_object_store: ObjectStore
) -> None:
    alone = Trial(tmp_path / "alone", fetch)
    seconds_alone = finish(alone)
    address, log, began = f"s3://lab/{tmp_path.name}", site.folder / "log", time.monotonic()
    process = start(site, fetch, address)

    wait_until(lambda: any(workers(site.nodes[name]) for name in "cde"), process, log)
    os.kill(next(worker for name in "cde" for worker in workers(site.nodes[name])).pid, signal.SIGKILL)
    wait_until(lambda: any(name.startswith("features/") for name in published(address)), process, log)
    site.nodes["d"].signal(signal.SIGKILL)
    site.postgresql.kill()
    time.sleep(5)
    site.postgresql.start()
    wait_until(lambda: any(name.startswith("train/") for name in published(address)), process, log)
    site.nodes["e"].signal(signal.SIGSTOP)
    assert process.wait(SECONDS_TO_HAPPEN) == 0, log.read_text()[-3000:]

    assert content(address) == alone.content()
    sys.stderr.write(f"\n{fetch['kind']}: {time.monotonic() - began:.0f} s on the cluster, {seconds_alone:.0f} s alone\n")


SEARCH: dict[str, Any] = TINY | {
    "train": TINY["train"] | {"models": ["alstm"], "epochs": 20, "patience": 20},
    "sweep": {"enabled": True, "models": ["alstm"], "trials": 8, "workers": 4, "units": [4, 8]},
}


def test_trials_of_nodes_without_a_shared_folder_are_in_the_database_and_outlive_it(
    site: Site, tiny_collection: Path, tmp_path: Path, with_object_store: ObjectStore
) -> None:
    address, log = f"s3://lab/{tmp_path.name}", site.folder / "log"
    fetch = {"kind": "folder", "videos": str(tiny_collection / "videos"), "splits": str(tiny_collection / "splits")}
    site.variables["HAR_DATABASE"] = site.postgresql.address("cluster")
    options = ("--until", "sweep")
    process = start(site, fetch, address, *options, params=SEARCH)
    wait_until(lambda: "COMPLETE" in trials(site).values(), process, log)
    wait_until(lambda: any(workers(site.nodes[name]) for name in "cde"), process, log)
    os.kill(next(worker for name in "cde" for worker in workers(site.nodes[name])).pid, signal.SIGKILL)
    site.postgresql.kill()
    time.sleep(5)
    site.postgresql.start()
    assert process.wait(SECONDS_TO_HAPPEN) == 0, log.read_text()[-3000:]
    first = trials(site)
    assert sum(state in ("COMPLETE", "PRUNED") for state in first.values()) == 8
    assert sorted(map(int, tracked_trials(site))) == sorted(first)

    more = SEARCH | {"sweep": SEARCH["sweep"] | {"trials": 10}}
    process = start(site, fetch, address, *options, params=more, HAR_CACHE=str(site.folder / "empty"))  # as on another machine
    assert process.wait(SECONDS_TO_HAPPEN) == 0, log.read_text()[-3000:]
    second = trials(site)
    assert {number: second[number] for number in first} == first
    assert sum(state in ("COMPLETE", "PRUNED") for state in second.values()) == 10
