"""The engine on Ray: tasks for work on cores, one warm actor a GPU, and events that come back to the waiting thread.

Prefect's threads wait here while the work runs in Ray's workers. Each waits at a queue of its own, never in `ray.get`, which
would keep `ray.shutdown` from returning. One thread takes the events that the work sends and looks for nodes that are lost.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil

from pipeline_lib.artifacts.shipping import Shipper
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.needs import Callbacks, EndedError, Ledger, Needs, WorkerLostError, add_seconds_waited
from pipeline_lib.errors import UserError

ENVIRONMENT = {
    # A node that froze is noticed within 95 s, not after 7 minutes. A worker that is pinged more often than every 60 s while
    # nothing else is sent ends the connection, and Ray the work with it ("Too many pings").
    "RAY_grpc_client_keepalive_time_ms": "75000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or a call after the shutdown would start a cluster
    "RAY_DEDUP_LOGS": "0",
    "GRPC_VERBOSITY": "NONE",  # a node that is gone is told once, by us
}
"""Ray's settings of the driver, which it reads when it is imported."""
WORKER_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}  # or work without a GPU would see all GPUs
LOCAL_ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the second: listen on loopback only
JOIN_ENVIRONMENT = {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # a wrong token is told after seconds
TOKEN_FILE = Path("~/.ray/auth_token")
SHORT_FOLDER = Path("/tmp")
"""Where a local Ray keeps its sockets, whose paths may have 107 characters; a user's own temporary folder can be too deep."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Shared memory of a local Ray: arguments and results are small, files carry the rest."""
CALLS_PER_GPU = 64
SECONDS_TO_CONNECT = 5.0
SECONDS_BETWEEN_DRAINS = 0.2
SECONDS_BETWEEN_CHECKS = 5.0
SECONDS_TO_TAKE = 5.0
SECONDS_TO_CLOSE = 10.0

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Call:
    """A call under way, and what comes for the thread that waits for it: log records, events, and last a _Done."""

    number: int
    name: str
    needs: Needs
    started: float
    gpu: int | None = None
    cpus: float = 0
    """Cores asked of Ray: those of the largest node, where the needs are all cores of a node."""
    inbox: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    actor: Any = None
    ref: Any = None

    @property
    def asked(self) -> Needs:
        """What was asked of Ray, which waits until a node has it."""
        return Needs(self.cpus, memory_bytes=self.needs.memory_bytes)


@dataclass(frozen=True)
class _Done:
    """The end of a call: its outcome, or why there is none."""

    outcome: Any = None
    error: BaseException | None = None

    @property
    def may_have_sent(self) -> bool:
        """Whether events may be on their way."""
        return self.outcome is None or self.outcome.has_sent


class RayEngine:
    """Runs work on a Ray cluster, or on a Ray of this machine alone. Started by the first call."""

    def __init__(self, address: str | None, num_gpus: int, shipper: Shipper | None = None) -> None:
        self._address, self._num_gpus, self._shipper = address, num_gpus, shipper
        self._numbers = itertools.count()
        self._starting = threading.Lock()
        self._cluster: _Cluster | None = None
        self._failure: UserError | None = None
        self._changed = threading.Condition()
        self._calls: dict[int, _Call] = {}
        self._num_inside = 0
        self._has_ended = False

    def run(self, work: Callable[..., Any], args: Any, kwargs: Any, needs: Needs, callbacks: Callbacks) -> Any:
        """Return `work(*args, **kwargs, **callbacks)`, called by a worker of Ray."""
        started = time.monotonic()
        with self._inside():
            cluster = self._start()
            packed = (self._shipper or cluster).pack((work, args, kwargs))
            call = _Call(next(self._numbers), getattr(work, "__name__", "work"), needs, started)
            if needs.gpus == 0:
                return self._wait(cluster, call, packed, callbacks)
            with cluster.gpus.grant(Needs(cpus=0, gpus=needs.gpus)) as call.gpu:
                return self._wait(cluster, call, packed, callbacks)

    def num_gpus(self) -> int:
        """Return how many GPUs there are, in the cluster or on this machine."""
        return self._num_gpus if self._address is None else len(self._start().open_gpus)

    def cancel(self) -> None:
        """Let nothing more begin, and end what the workers are doing."""
        with self._changed:
            self._has_ended = True
            calls, cluster = list(self._calls.values()), self._cluster
        for call in calls:
            call.inbox.put(_Done(error=EndedError("stopped: the run has ended")))
        if cluster is not None:
            cluster.gpus.end()
            cluster.end(calls)

    def close(self) -> None:
        """Cancel, let the waiting threads leave, and leave the cluster; a local one ends."""
        self.cancel()
        with self._starting:  # a start that is under way ends first
            cluster, self._cluster = self._cluster, None
        if cluster is None:
            return
        cluster.gpus.end()
        with self._changed:
            self._changed.wait_for(lambda: not self._num_inside, SECONDS_TO_CLOSE)
        cluster.close()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._changed:
            if self._has_ended:
                raise EndedError("not begun: the run has ended")
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    def _start(self) -> _Cluster:
        """Return the cluster, which the first call starts or joins."""
        with self._starting:
            if self._has_ended:
                raise EndedError("not begun: the run has ended")
            if self._failure is not None:
                raise self._failure
            if self._cluster is None:
                try:
                    self._cluster = _Cluster(self._address, self._num_gpus, self._calls)
                except UserError as error:
                    self._failure = error
                    raise
            return self._cluster

    def _wait(self, cluster: _Cluster, call: _Call, packed: bytes, callbacks: Callbacks) -> Any:
        """Submit a call, hand on its events in this thread, and return its result."""
        with self._changed:
            if self._has_ended:
                raise EndedError("not begun: the run has ended")
            cluster.submit(call, packed, tuple(callbacks))
            self._calls[call.number] = call
        try:
            done = _deliver_until_done(call, callbacks)
            if done.may_have_sent and not self._has_ended:
                cluster.drain()
                _deliver_rest(call, callbacks)
            if done.outcome is not None:
                add_seconds_waited(time.monotonic() - call.started - done.outcome.seconds)
            return _result(call, done)
        except WorkerLostError:
            cluster.drop(call)
            raise
        except BaseException:
            cluster.cancel(call)
            raise
        finally:
            with self._changed:
                del self._calls[call.number]


class _Cluster:
    """A Ray cluster that this process has joined or started."""

    def __init__(self, address: str | None, num_gpus: int, calls: Mapping[int, _Call]) -> None:
        self._folder = None if address else Path(tempfile.mkdtemp(prefix="har-ray-", dir=SHORT_FOLDER))
        _set_environment(is_local=address is None)
        # One thread starts Ray, drains events and shuts Ray down. Ray's processes die with the thread that started them, so it
        # must not be one of Prefect's; in the main thread Ray would replace the handler of SIGTERM.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray")
        self._thread.submit(partial(_join, address) if address else partial(_start_local, num_gpus, str(self._folder))).result()
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pipeline_lib.compute import ray_worker

        self._ray, self._calls = ray, calls
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        events = ray.remote(ray_worker.EventActor).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
        self._events: Any = events.remote()
        self._call_on_cores = ray.remote(ray_worker.call_on_cores)
        self._gpu_actor = ray.remote(ray_worker.GpuActor).options(num_cpus=0, num_gpus=1, max_concurrency=CALLS_PER_GPU)
        self._nodes = self._live_nodes()
        self.open_gpus = list(range(sum(node.gpus for node in self._nodes)))
        self.gpus = Ledger(0, len(self.open_gpus))
        self._lock = threading.Lock()
        self._actors: dict[int, Any] = {}
        self._nodes_of_actors: dict[int, Future[Any]] = {}
        self._drained = threading.Condition()
        self._last_asked = self._last_begun = self._last_ended = 0
        self._is_closed = False
        self._drainer = self._thread.submit(self._drain_until_closed)

    def pack(self, work: Any) -> bytes:
        """Return the work pickled, as a context manager that yields it: functions of modules by name, of a script by value."""
        return self._ray.cloudpickle.dumps(nullcontext(work))

    def submit(self, call: _Call, packed: bytes, callbacks: tuple[str, ...]) -> None:
        """Hand a call to Ray; a _Done comes into its inbox.

        Raises:
            UserError: no node can hold it.
        """
        args = (call.number, packed, callbacks, self._events)
        if call.gpu is not None:
            call.actor = self._actor_of(call.gpu)
            call.ref = call.actor.call.options(name=call.name).remote(*args)
        else:
            call.cpus = self._cpus(call)
            options = {"num_cpus": call.cpus, "memory": call.needs.memory_bytes or None, "max_retries": 0, "name": call.name}
            call.ref = self._call_on_cores.options(**options).remote(max(1, int(call.cpus)), *args)
        call.ref.future().add_done_callback(lambda future: call.inbox.put(_done(future)))

    def cancel(self, call: _Call) -> None:
        """End a task; one that has ended already is no matter. Threads of a GPU's actor cannot be ended alone."""
        if call.gpu is None:
            with suppress(Exception):
                self._ray.cancel(call.ref, force=True)

    def drop(self, call: _Call) -> None:
        """Forget the actor that a call was lost with, so that the next call starts another one."""
        with self._lock:
            if call.gpu is not None and self._actors.get(call.gpu) is call.actor:
                self._kill(self._actors.pop(call.gpu))

    def end(self, calls: Sequence[_Call] = ()) -> None:
        """End the tasks, and the actors of all GPUs."""
        with self._lock:
            while self._actors:
                self._kill(self._actors.popitem()[1])
        for call in calls:
            self.cancel(call)

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        with self._drained:
            self._is_closed = True
            self._drained.notify_all()
        self._drainer.result()
        self.end()
        self._kill(self._events)
        self._thread.submit(partial(self._ray.shutdown, wait_for_processes=True)).result()
        self._thread.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def drain(self) -> None:
        """Wait until all events that were sent before now are in their inboxes."""
        with self._drained:
            self._last_asked = mine = self._last_begun + 1
            self._drained.notify_all()
            self._drained.wait_for(lambda: self._last_ended >= mine or self._is_closed)

    def _cpus(self, call: _Call) -> float:
        """Return the cores to ask Ray for: refuses what no node can hold, as Ray would let it wait for ever."""
        if not self._can_hold(call):
            self._nodes = self._live_nodes()  # another node may have joined
        if not self._can_hold(call):
            raise UserError(_too_large(call.needs, self._nodes))
        cpus = min(call.needs.cpus, max(node.cpus for node in self._nodes if node.can_hold(call.needs)))
        return math.ceil(cpus) if cpus > 1 else cpus

    def _can_hold(self, call: _Call) -> bool:
        return any(node.can_hold(call.needs) for node in self._nodes)

    def _live_nodes(self) -> list[_Node]:
        return [_Node(node["NodeID"], node["Resources"]) for node in self._ray.nodes() if node["Alive"]]

    def _actor_of(self, gpu: int) -> Any:
        with self._lock:
            if gpu not in self._actors:
                self._actors[gpu] = self._gpu_actor.remote()
                self._nodes_of_actors[gpu] = self._actors[gpu].node_id.remote().future()
            return self._actors[gpu]

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):
            self._ray.kill(actor, no_restart=True)

    def _drain_until_closed(self) -> None:
        checked_at = time.monotonic()
        while self._begin_drain():
            if self._calls:
                self._take_events()
            with self._drained:
                self._last_ended = self._last_begun
                self._drained.notify_all()
            if self._calls and time.monotonic() - checked_at > SECONDS_BETWEEN_CHECKS:
                with suppress(Exception):  # what the head does not answer now it does later
                    self._look_for_lost_nodes()
                checked_at = time.monotonic()

    def _begin_drain(self) -> bool:
        with self._drained:
            self._drained.wait_for(lambda: self._is_closed or self._last_asked > self._last_begun, SECONDS_BETWEEN_DRAINS)
            self._last_begun += 1
            return not self._is_closed

    def _take_events(self) -> None:
        try:
            batches = self._events.take.remote().future().result(SECONDS_TO_TAKE)
        except Exception as error:
            logger.debug("no events could be taken: %s: %s", type(error).__name__, error)
            return
        for number, batch in batches:
            if call := self._calls.get(number):
                for event in batch:
                    call.inbox.put(event)

    def _look_for_lost_nodes(self) -> None:
        """End the wait of calls that no node can run any more, and give up the GPUs of nodes that are gone."""
        self._nodes = self._live_nodes()
        gpus = self._lost_gpus()
        for gpu in gpus:
            self.open_gpus.remove(gpu)
            self.gpus.close_gpu(gpu)
        for call in list(self._calls.values()):
            if call.gpu in gpus or (call.gpu is None and not any(node.can_hold(call.asked) for node in self._nodes)):
                call.inbox.put(_Done(error=WorkerLostError(f"{call.name}: the only node that could run it died")))

    def _lost_gpus(self) -> list[int]:
        """Return as many GPUs as the cluster lost: first those without an actor, then those whose actor is on no live node."""
        missing = max(0, len(self.open_gpus) - sum(node.gpus for node in self._nodes))
        live = {node.node_id for node in self._nodes}
        gone = [gpu for gpu in self.open_gpus if gpu not in self._actors]
        gone += [gpu for gpu in self.open_gpus if gpu in self._actors and _value(self._nodes_of_actors[gpu]) not in live]
        return gone[:missing]


@dataclass(frozen=True)
class _Node:
    """A live node of the cluster, and what it has in all."""

    node_id: str
    resources: Mapping[str, float]

    @property
    def cpus(self) -> float:
        return self.resources.get("CPU", 0)

    @property
    def gpus(self) -> int:
        return int(self.resources.get("GPU", 0))

    @property
    def memory_bytes(self) -> float:
        return self.resources.get("memory", 0)

    def can_hold(self, needs: Needs) -> bool:
        cpus = 1 if math.isinf(needs.cpus) else needs.cpus
        return cpus <= self.cpus and needs.memory_bytes <= self.memory_bytes


def _too_large(needs: Needs, nodes: Sequence[_Node]) -> str:
    largest = max(nodes, key=lambda node: (node.cpus, node.memory_bytes), default=_Node("", {}))
    memory = f" and {needs.memory_bytes / 1e9:.1f} GB of memory" if needs.memory_bytes else ""
    return (
        f"{needs.cpus:g} cores{memory} are needed on one node of the Ray cluster, and the largest has "
        f"{largest.cpus:g} cores and {largest.memory_bytes / 1e9:.1f} GB: ask for less, or add a larger node"
    )


def _value(future: Future[Any]) -> Any:
    """Return the future's result if it is there already."""
    return future.result() if future.done() and future.exception() is None else None


def _done(future: Future[Any]) -> _Done:
    try:
        return _Done(future.result())
    except BaseException as error:
        return _Done(error=error)


def _deliver_until_done(call: _Call, callbacks: Callbacks) -> _Done:
    while not isinstance(item := call.inbox.get(), _Done):
        _deliver(item, callbacks)
    return item


def _deliver_rest(call: _Call, callbacks: Callbacks) -> None:
    with suppress(Empty):
        while True:
            if not isinstance(item := call.inbox.get_nowait(), _Done):
                _deliver(item, callbacks)


def _deliver(event: tuple[str | None, bytes], callbacks: Callbacks) -> None:
    """Call a callback, or let a worker's log line come out where one of this thread would."""
    name, pickled = event
    try:
        value = pickle.loads(pickled)
    except Exception as error:
        logger.warning("an event of %s cannot be read: %s: %s", name or "the log", type(error).__name__, error)
        return
    if name is not None:
        callbacks[name](value)
    elif logging.getLogger(value.name).isEnabledFor(value.levelno):
        logging.getLogger(value.name).handle(value)


def _result(call: _Call, done: _Done) -> Any:
    """Return what the function returned, or raise what it raised, or why there is neither."""
    if done.outcome is None:
        assert done.error is not None
        raise _explain(call, done.error) from None
    value = pickle.loads(done.outcome.pickled)
    if done.outcome.has_failed:
        raise value
    return value


def _explain(call: _Call, error: BaseException) -> BaseException:
    """Return what one of Ray's own exceptions means for the work."""
    from ray import exceptions

    worker = "its worker process" if call.gpu is None else "the worker process of its GPU"
    match error:
        case exceptions.TaskCancelledError():
            return EndedError("stopped: the run has ended")
        case exceptions.OutOfMemoryError():
            reason = f"{worker} was ended, as its node ran out of memory"
        case exceptions.NodeDiedError():
            reason = "its node died"
        case exceptions.WorkerCrashedError() | exceptions.ActorDiedError():
            reason = f"{worker} died, as when memory runs out"
        case exceptions.RayTaskError() | exceptions.RuntimeEnvSetupError():
            return error
        case exceptions.RayError():
            reason = f"{worker} or its node cannot be reached ({type(error).__name__})"
        case _:
            return error
    return WorkerLostError(f"{call.name}: {reason}")


def _set_environment(*, is_local: bool) -> None:
    """Set what Ray reads from the environment when it is imported; what a user has set stays."""
    settings = dict(ENVIRONMENT)
    if is_local:
        settings |= LOCAL_ENVIRONMENT | WORKER_ENVIRONMENT | {"RAY_AUTH_TOKEN": _local_token()}
    else:
        settings |= JOIN_ENVIRONMENT
        if _has_token():
            settings |= {"RAY_AUTH_MODE": "token"}  # Ray itself does so for its nodes, but not for who joins them by address
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@cache  # Ray reads it once a process, and the environment may have been restored since
def _local_token() -> str:
    return secrets.token_hex(32)


def _has_token() -> bool:
    return any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or TOKEN_FILE.expanduser().is_file()


def _start_local(num_gpus: int, folder: str) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=num_cores(),
        num_gpus=num_gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _memory=psutil.virtual_memory().total,  # or what is free at the moment would decide what is refused
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )


def _join(address: str) -> None:
    """Join the cluster at HOST:PORT, or the one that "auto" means.

    Raises:
        UserError: there is none.
    """
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if address != "auto":
        _check_address(address)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"run.engine: cannot join a Ray cluster at {address}: {reason}; is its token here?") from error


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(f"run.engine: {address}: give HOST:PORT of a Ray cluster's head, such as 10.0.0.5:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise UserError(f"run.engine: no Ray cluster answers at {address}: {error}; is its head running?") from error
