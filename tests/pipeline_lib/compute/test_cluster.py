"""The engine on a cluster of two nodes of this machine, of which one is killed or frozen; and drivers that are."""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
SECONDS_TO_START = 90.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own helpers, which first try to tell a head that is gone why they end."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="two loopback addresses and /proc"),
    pytest.mark.timeout(300),
]


def environment(**more: str) -> dict[str, str]:
    """Return the environment without what tests in this process may have set for Ray, and without the project's folder."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"} | more


class Node:
    """A node of a Ray cluster: all its processes are children of one."""

    def __init__(self, name: str, folder: Path, token: Path, *options: str, **more: str) -> None:
        folder.mkdir()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--object-store-memory=100000000", f"--num-cpus={2 if name == 'b' else 1}"],
                cwd=folder,
                env=environment(TEST_NODE=name, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + SECONDS_TO_START
        while "Ray runtime started" not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < end, self.log.read_text(errors="replace")
            time.sleep(0.2)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes at once."""
        node = psutil.Process(self.process.pid)
        for process in [node, *node.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> None:
        """End it in order: the head would send the next test's work to a killed one until it misses its heartbeats."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait(10)


class Driver:
    """A process with an engine, see driver.py."""

    def __init__(self, folder: Path, options: dict[str, Any], **more: str) -> None:
        self._errors = (folder / f"driver-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline_lib.compute.driver", json.dumps(options)],
            cwd=ROOT,
            env=environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._numbers = itertools.count()
        self._inbox: queue.Queue[list[Any]] = queue.Queue()
        self.events: list[list[Any]] = []
        self._outcomes: dict[int, tuple[str, Any]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("["):
                self._inbox.put(json.loads(line))

    def call(self, function: str, *args: Any, needs: dict[str, Any] | None = None, callbacks: tuple[str, ...] = ()) -> int:
        assert self.process.stdin is not None
        number = next(self._numbers)
        request = {"number": number, "function": function, "args": args, "needs": needs or {}, "callbacks": callbacks}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return number

    def outcome(self, number: int, seconds: float = SECONDS_TO_START) -> tuple[str, Any]:
        end = time.monotonic() + seconds
        while number not in self._outcomes:
            try:
                of, kind, value = self._inbox.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no outcome within {seconds} s; {self.errors()}") from None
            if kind == "event":
                self.events.append([of, value])
            else:
                self._outcomes[of] = (kind, value)
        return self._outcomes[number]

    def result(self, number: int, seconds: float = SECONDS_TO_START) -> Any:
        kind, value = self.outcome(number, seconds)
        assert kind == "result", value
        return value

    def errors(self) -> str:
        self._errors.flush()
        return Path(self._errors.name).read_text()

    def end(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            finally:
                self.process.kill()
        for file in (self.process.stdin, self.process.stdout, self._errors):
            file.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """Node a has one core; node b has two and a logical GPU, and is started by the tests that want it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._numbers = folder, itertools.count()
        self.token = folder / "token"
        self.token.write_text("a" * 64)
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.split(":")[1]
        self.nodes = [
            Node(
                "a",
                folder / "a",
                self.token,
                "--head",
                f"--port={port}",
                "--node-ip-address=127.0.0.1",
                "--include-dashboard=false",
                "--num-gpus=0",
                f"--temp-dir={folder / 'ray'}",
            )
        ]

    def add_node(self) -> Node:
        folder = self.folder / f"b{next(self._numbers)}"
        options = (f"--address={self.address}", "--node-ip-address=127.0.0.2", "--num-gpus=1")
        self.nodes.append(Node("b", folder, self.token, *options))
        return self.nodes[-1]

    def driver(self) -> Driver:
        return Driver(self.folder, {"address": self.address}, RAY_AUTH_TOKEN_PATH=str(self.token))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="har-", dir="/tmp"))  # short: Ray's sockets are in it
    cluster = Cluster(folder)
    yield cluster
    for node in cluster.nodes:
        node.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Node]:
    node = cluster.add_node()
    yield node
    node.end()


@pytest.fixture
def driver(cluster: Cluster, node: Node) -> Iterator[Driver]:
    driver = cluster.driver()
    yield driver
    driver.end()


def wait_for(file: Path, seconds: float = SECONDS_TO_START) -> int:
    """Wait until a function writes the file, and return its process."""
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return int(file.read_text().split()[0])


def last_life(file: Path) -> float:
    return float(file.read_text().split()[1])


def test_work_goes_where_its_needs_are(driver: Driver, node: Node, tmp_path: Path):
    meets = [driver.call("meet", str(tmp_path), 3) for _ in range(3)]
    # The rest comes later: a call that waits for both cores of a node keeps Ray from starting another small one there.
    assert sorted(driver.result(number)["node"] for number in meets) == ["a", "b", "b"]
    assert len({driver.result(number)["cwd"] for number in meets}) == 2
    wide = driver.call("where", needs={"cpus": "all"})
    gpu = driver.call("where", needs={"gpus": 0.5})
    large = driver.call("where", needs={"cpus": 3})
    say = driver.call("say", 20, needs={"cpus": 2}, callbacks=("on_frame",))
    log = driver.call("log", "a line", needs={"cpus": 2})
    where = driver.result(wide)
    assert (where["node"], where["threads"], where["gpus"], where["modules"]) == ("b", "2", "", [])
    assert (driver.result(gpu)["node"], driver.result(gpu)["gpus"]) == ("b", "0")
    assert driver.outcome(large)[0] == "UserError"
    assert driver.result(say) == 20
    assert driver.events == [[say, index] for index in range(20)]
    driver.result(log)
    assert "a line by" in driver.errors()


def test_a_killed_node_is_told_and_work_goes_on_at_the_other(driver: Driver, node: Node, tmp_path: Path, record_property):
    lost = driver.call("live", str(tmp_path / "cpu"), 120, needs={"cpus": 1.5})
    gpu = driver.call("live", str(tmp_path / "gpu"), 120, needs={"gpus": 1})
    waiting = driver.call("where", needs={"cpus": 2})
    for name in ("cpu", "gpu"):
        wait_for(tmp_path / name)
    begun = time.monotonic()
    node.signal(signal.SIGKILL)
    for number in (lost, gpu, waiting):
        kind, text = driver.outcome(number, 30)
        record_property("told", f"after {time.monotonic() - begun:.1f} s: {text}")
        assert kind == "WorkerLostError"
    assert driver.result(driver.call("where", needs={"cpus": 1}), 30)["node"] == "a"
    assert driver.outcome(driver.call("where", needs={"cpus": 2}), 5)[0] == "UserError"
    assert driver.outcome(driver.call("where", needs={"gpus": 1}), 30)[0] in ("UserError", "WorkerLostError")
    assert driver.outcome(driver.call("where", needs={"gpus": 1}), 5)[0] == "UserError"


def test_a_frozen_node_is_told(driver: Driver, node: Node, tmp_path: Path, record_property):
    lost = driver.call("live", str(tmp_path / "cpu"), 300, needs={"cpus": 2})
    gpu = driver.call("live", str(tmp_path / "gpu"), 300, needs={"gpus": 1})
    for name in ("cpu", "gpu"):
        wait_for(tmp_path / name)
    begun = time.monotonic()
    node.signal(signal.SIGSTOP)
    for number in (lost, gpu):
        kind, text = driver.outcome(number, 120)
        record_property("told", f"after {time.monotonic() - begun:.1f} s: {text}")
        assert kind == "WorkerLostError"
    assert driver.result(driver.call("where", needs={"cpus": 1}), 60)["node"] == "a"


def test_work_of_which_nothing_is_heard_for_minutes_is_not_taken_for_lost(driver: Driver, node: Node, tmp_path: Path):
    pid = driver.result(driver.call("live", str(tmp_path / "cpu"), 150, needs={"cpus": 2}), 200)
    assert isinstance(pid, int)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_work_ends_with_its_driver(driver: Driver, cluster: Cluster, tmp_path: Path, number: signal.Signals, record_property):
    needs = {"cpu": {"cpus": 2}, "gpu": {"gpus": 1}}
    for name, need in needs.items():
        driver.call("live", str(tmp_path / name), 120, needs=need)
    for name in needs:
        wait_for(tmp_path / name)
    begun = time.time()
    driver.process.send_signal(number)
    driver.process.wait(15)
    record_property("ended", f"after {time.time() - begun:.1f} s")
    time.sleep(3)
    record_property("work ended", f"after {max(last_life(tmp_path / name) for name in needs) - begun:.1f} s")
    assert all(last_life(tmp_path / name) < begun + 3 for name in needs)
    another = cluster.driver()
    assert another.result(another.call("add", 1, 2)) == 3
    another.end()


def test_a_wrong_token_is_told(cluster: Cluster, tmp_path: Path):
    (tmp_path / "token").write_text("b" * 64)
    driver = Driver(tmp_path, {"address": cluster.address}, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    kind, text = driver.outcome(driver.call("add", 1, 2), 30)
    driver.end()
    assert kind == "UserError"
    assert cluster.address in text
    assert "token" in text


def test_a_run_that_ends_leaves_no_thread_waiting(driver: Driver, cluster: Cluster, tmp_path: Path):
    calls = [
        driver.call("live", str(tmp_path / name), 120, needs=need)
        for name, need in (("cpu", {"cpus": 2}), ("gpu", {"gpus": 1}))
    ]
    waiting = [driver.call("where", needs=need) for need in ({"cpus": 2}, {"gpus": 1})]
    pids = [wait_for(tmp_path / name) for name in ("cpu", "gpu")]
    driver.end()
    assert driver.process.returncode == 0
    assert [driver.outcome(number, 1)[0] for number in (*calls, *waiting)] == ["EndedError"] * 4
    assert not any(psutil.pid_exists(pid) for pid in pids)
    another = cluster.driver()
    assert another.result(another.call("add", 1, 2)) == 3
    another.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_local_ray_ends_with_its_driver(tmp_path: Path, number: signal.Signals, record_property):
    driver = Driver(tmp_path, {"address": None, "is_local_ray": True, "num_gpus": 1})
    for name, gpus in (("cpu", 0), ("gpu", 1)):
        driver.call("live", str(tmp_path / name), 120, needs={"gpus": gpus})
    for name in ("cpu", "gpu"):
        wait_for(tmp_path / name)
    processes = psutil.Process(driver.process.pid).children(recursive=True)
    assert any("raylet" in " ".join(process.cmdline()) for process in processes)
    agents = {process for process in processes if process.name() in AGENTS}
    arguments = [argument for process in processes for argument in process.cmdline()]
    os.killpg(driver.process.pid, number) if number == signal.SIGINT else driver.process.send_signal(number)
    driver.process.wait(15)
    driver.end()
    begun = time.monotonic()
    assert psutil.wait_procs(set(processes) - agents, timeout=5)[1] == []
    assert psutil.wait_procs(agents, timeout=90)[1] == []
    record_property("its last process ended", f"after {time.monotonic() - begun:.1f} s")
    for folder in {
        argument.split("=")[1].split("/session_")[0] for argument in arguments if argument.startswith("--store_socket_name=")
    }:
        shutil.rmtree(folder, ignore_errors=True)
