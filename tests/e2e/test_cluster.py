"""The flow on a Ray cluster of two nodes, started by hand in other working folders; one of them is killed on the way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.test_random_kills import Trial, finish
from tests.pipeline_lib.compute.test_cluster import Cluster, Node, cluster

__all__ = ["cluster"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def second_node(cluster: Cluster) -> Iterator[Node]:
    """Return the second node of a cluster; the first has one core, this one two."""
    node = Node("b", cluster.folder / "b", cluster.token, f"--address={cluster.address}", "--node-ip-address=127.0.0.2")
    yield node
    node.end()


def test_two_nodes_one_killed_on_the_way_make_the_same_artifacts(tmp_path, tiny_collection, cluster, second_node):
    fetch = {"kind": "folder", "videos": str(tiny_collection / "videos"), "splits": str(tiny_collection / "splits")}
    alone = Trial(tmp_path / "alone", fetch)
    finish(alone)
    clustered = Trial(tmp_path / "clustered", fetch)
    process = clustered.start("--engine", cluster.address, RAY_AUTH_TOKEN_PATH=str(cluster.token))
    trained = clustered.workspace / "partial" / "train"
    while not any(trained.glob("*/state.pt")):
        assert process.poll() is None, (clustered.folder / "log").read_text()
        time.sleep(0.1)
    second_node.signal(signal.SIGKILL)
    assert process.wait() == 0, (clustered.folder / "log").read_text()
    assert clustered.content() == alone.content()
