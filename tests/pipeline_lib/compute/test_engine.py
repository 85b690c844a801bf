"""The engine in this process, and on a Ray of this machine."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline_lib.compute import engine
from pipeline_lib.compute.engine import Needs, WorkerLostError, cancel_work, open_engine, run_at, take_seconds_waited
from pipeline_lib.compute.needs import Ledger
from pipeline_lib.errors import UserError
from tests.pipeline_lib.compute import functions

pytestmark = pytest.mark.integration

SECONDS = 20.0


def start(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call the function in a thread."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def wait_until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return value


def test_without_an_engine_work_runs_at_once_here():
    assert run_at(functions.add, 1, 2, scale=3, needs=Needs(cpus=1000, gpus=1)) == 9
    assert run_at(functions.where)["pid"] == os.getpid()


@pytest.mark.parametrize("needs", [{"cpus": -1}, {"gpus": 1.5}, {"gpus": -0.1}, {"cpus": math.nan}, {"memory_bytes": -1}])
def test_impossible_needs_are_refused(needs):
    with pytest.raises(ValueError, match="at least 0"):
        Needs(**needs)


class Grants:
    """Threads that hold a ledger's grants until they are let go."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.held: dict[str, int] = {}
        self._ends: dict[str, threading.Event] = {}
        self.futures: dict[str, Future[Any]] = {}

    def ask(self, name: str, **needs: float) -> None:
        self._ends[name] = threading.Event()
        before = len(self._ledger._waiting) + len(self.held)
        self.futures[name] = start(self._hold, name, Needs(**needs))
        wait_until(lambda: len(self._ledger._waiting) + len(self.held) > before or self.futures[name].done())

    def _hold(self, name: str, needs: Needs) -> None:
        with self._ledger.grant(needs) as gpu:
            self.held[name] = gpu
            self._ends[name].wait(SECONDS)
            del self.held[name]

    def end(self, name: str) -> None:
        self._ends[name].set()
        self.futures[name].result(SECONDS)

    def holds(self, *names: str) -> bool:
        wait_until(lambda: set(names) <= set(self.held))
        time.sleep(0.05)
        return set(self.held) == set(names)


class TestLedger:
    def test_work_that_fits_runs_together(self):
        grants = Grants(Ledger(4, 0))
        for name in "ab":
            grants.ask(name, cpus=2)
        assert grants.holds("a", "b")
        grants.ask("c", cpus=0.5)
        assert grants.holds("a", "b")
        grants.end("a")
        assert grants.holds("b", "c")

    def test_infinitely_many_cores_are_all_of_them(self):
        grants = Grants(Ledger(4, 0))
        grants.ask("a", cpus=1)
        grants.ask("all", cpus=math.inf)
        assert grants.holds("a")
        grants.end("a")
        assert grants.holds("all")

    def test_a_large_demand_is_not_starved_by_small_ones_behind_it(self):
        grants = Grants(Ledger(2, 0))
        grants.ask("a", cpus=1)
        grants.ask("large", cpus=2)
        grants.ask("b", cpus=1)
        assert grants.holds("a")
        grants.end("a")
        assert grants.holds("large")
        grants.end("large")
        assert grants.holds("b")

    def test_what_a_waiting_demand_does_not_need_goes_on(self):
        grants = Grants(Ledger(4, 1))
        grants.ask("gpu", cpus=1, gpus=1)
        grants.ask("second", cpus=1, gpus=0.5)  # waits for the GPU, and reserves a core
        grants.ask("cores", cpus=2)
        assert grants.holds("gpu", "cores")
        grants.ask("core", cpus=1)
        assert grants.holds("gpu", "cores")
        grants.end("gpu")
        assert grants.holds("second", "cores", "core")

    def test_shares_of_a_gpu_add_up_to_one(self):
        grants = Grants(Ledger(64, 1))
        for name in "abc":
            grants.ask(name, gpus=1 / 3)
        assert grants.holds("a", "b", "c")
        grants.ask("d", gpus=0.01)
        assert grants.holds("a", "b", "c")

    def test_the_gpu_with_the_most_left_is_taken(self):
        grants = Grants(Ledger(64, 2))
        grants.ask("a", gpus=0.25)
        grants.ask("b", gpus=0.5)
        grants.ask("c", gpus=0.25)
        assert grants.holds("a", "b", "c")
        assert grants.held["a"] == grants.held["c"] != grants.held["b"]

    def test_a_closed_gpu_is_not_granted(self):
        ledger = Ledger(64, 2)
        grants = Grants(ledger)
        grants.ask("a", gpus=1)
        ledger.close_gpu(1 - grants.held["a"])
        grants.ask("b", gpus=1)
        assert grants.holds("a")
        ledger.close_gpu(grants.held["a"])
        with pytest.raises(UserError, match="GPU"):
            grants.futures["b"].result(SECONDS)

    @pytest.mark.parametrize("needs", [{"cpus": 2.5}, {"gpus": 0.1}])
    def test_what_can_never_be_granted_is_refused_at_once(self, needs):
        with pytest.raises(UserError, match="needed"), Ledger(2, 0).grant(Needs(**needs)):
            pass

    def test_the_end_reaches_what_waits(self):
        ledger = Ledger(1, 0)
        grants = Grants(ledger)
        grants.ask("a")
        grants.ask("b")
        ledger.end()
        with pytest.raises(RuntimeError, match="not begun: the run has ended"):
            grants.futures["b"].result(SECONDS)
        grants.end("a")


class TestHere:
    def test_work_runs_in_the_calling_thread(self):
        with open_engine():
            assert run_at(functions.where, needs=Needs(cpus=math.inf))["thread"] == threading.get_ident()

    def test_time_that_work_waits_for_its_needs_is_counted_apart(self):
        def timed():
            started = time.monotonic()
            run_at(functions.where, 0.4, needs=Needs(cpus=math.inf))
            return take_seconds_waited(), time.monotonic() - started

        with open_engine(), ThreadPoolExecutor(2) as threads:
            (first, _), (second, _) = sorted(threads.map(lambda _: timed(), range(2)))
        assert first < 0.2
        assert 0.3 < second < 0.8

    def test_needs_are_counted(self, monkeypatch):
        monkeypatch.setattr(engine, "num_cores", lambda: 2)
        running: list[int] = []
        most: list[int] = []
        with open_engine(num_gpus=3), ThreadPoolExecutor(8) as threads:

            def work() -> None:
                running.append(1)
                most.append(len(running))
                time.sleep(0.05)
                running.pop()

            for needs, together in ((Needs(cpus=1), 2), (Needs(cpus=0, gpus=0.25), 4), (Needs(cpus=math.inf), 1)):
                most.clear()
                list(threads.map(lambda _, needs=needs: run_at(work, needs=needs), range(8)))
                assert max(most) == together

    def test_a_callback_that_fails_is_a_warning_and_not_called_again(self, caplog):
        seen = []

        def on_frame(value):
            seen.append(value)
            raise ZeroDivisionError("a listener's own")

        with open_engine():
            assert run_at(functions.say, 3, callbacks={"on_frame": on_frame}) == 3
        assert seen == [0]
        assert [record.message for record in caplog.records] == [
            "on_frame: ZeroDivisionError: a listener's own; it is not called again"
        ]

    def test_cancelled_work_does_not_begin(self):
        with open_engine():
            holder = start(run_at, functions.where, 0.3, needs=Needs(cpus=math.inf))
            time.sleep(0.1)
            waiting = start(run_at, functions.where, needs=Needs(cpus=1))
            time.sleep(0.05)
            cancel_work()
            with pytest.raises(RuntimeError, match="not begun"):
                waiting.result(SECONDS)
            with pytest.raises(RuntimeError, match="not begun"):
                run_at(functions.where)
            assert holder.result(SECONDS)["pid"] == os.getpid()
        with open_engine():
            assert run_at(functions.add, 1, 1) == 2

    def test_one_engine_at_a_time(self):
        with open_engine(), pytest.raises(RuntimeError, match="open already"), open_engine():
            pass


def test_ray_is_not_started_where_nothing_is_called():
    code = "import sys; from pipeline_lib.compute.engine import open_engine\nwith open_engine(is_local_ray=True): pass\n"
    code += "assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "nonsense"])
def test_a_cluster_that_is_not_there_is_one_line(address):
    begun = time.monotonic()
    with open_engine(address), pytest.raises(UserError, match=address) as raised:
        run_at(functions.add, 1, 2)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - begun < 10


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(scope="module")
def ray() -> Iterator[ExitStack]:
    """Yield what closes the module's engine: a local Ray of two cores and one logical GPU."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline_lib.compute.ray_engine.num_cores", lambda: 2)
        stack.enter_context(open_engine(is_local_ray=True, num_gpus=1))
        assert start(run_at, functions.add, 1, 2).result(60) == 3  # Ray must outlive the thread that started it
        yield stack


@pytest.mark.usefixtures("ray")
class TestRay:
    def test_results_are_those_of_the_function(self):
        assert run_at(functions.add, 1, 2, scale=1.5) == functions.add(1, 2, scale=1.5)
        assert run_at(lambda: 3) == 3

    def test_work_runs_side_by_side_in_other_processes_without_our_services(self, tmp_path):
        calls = [start(run_at, functions.meet, tmp_path, 2) for _ in range(2)]
        answers = [call.result(SECONDS) for call in calls]
        assert len({answer["pid"] for answer in answers} | {os.getpid()}) == 3
        assert all(answer["modules"] == [] for answer in answers)
        assert all(answer["threads"] == "1" for answer in answers)

    def test_time_that_work_waits_for_its_needs_is_counted_apart(self):
        calls = [start(lambda: (run_at(functions.where, 1.0, needs=Needs(cpus=2)), take_seconds_waited())) for _ in range(2)]
        waited = sorted(call.result(SECONDS)[1] for call in calls)
        assert waited[1] - waited[0] > 0.7

    def test_all_cores_are_as_many_threads(self):
        assert run_at(functions.where, needs=Needs(cpus=math.inf))["threads"] == "2"

    def test_exceptions_keep_their_type_and_say_where(self):
        with pytest.raises(FileNotFoundError) as raised:
            run_at(functions.fail, "file")
        assert (raised.value.errno, raised.value.filename) == (2, "a.avi")
        (note,) = raised.value.__notes__
        assert "worker process" in note
        assert "in fail" in note
        assert "KeyError" in note

    def test_exceptions_that_cannot_be_pickled_keep_their_text(self):
        with pytest.raises(RuntimeError, match="OddError: this and that"):
            run_at(functions.fail, "odd")

    def test_events_come_in_order_in_the_calling_thread_and_before_the_end(self):
        seen, threads = [], set()

        def on_frame(value):
            seen.append(value)
            threads.add(threading.get_ident())

        assert run_at(functions.say, 1000, callbacks={"on_frame": on_frame}) == 1000
        assert seen == list(range(1000))
        assert threads == {threading.get_ident()}

    def test_events_come_while_the_work_runs(self):
        ages = []
        run_at(functions.say, 8, seconds=0.25, callbacks={"on_frame": lambda _: ages.append(time.monotonic())})
        assert ages[-1] - ages[0] > 1.0

    def test_events_are_values_of_their_moment(self):
        seen = []
        run_at(functions.say_changing, callbacks={"on_rows": seen.append})
        assert seen == [[0], [0, 1], [0, 1, 2]]

    def test_events_of_calls_side_by_side_are_not_mixed(self):
        seen: dict[int, list[int]] = {number: [] for number in (50, 60, 70)}
        calls = [start(run_at, functions.say, n, callbacks={"on_frame": seen[n].append}) for n in seen]
        assert [call.result(SECONDS) for call in calls] == list(seen)
        assert seen == {number: list(range(number)) for number in seen}

    def test_a_callback_that_fails_is_a_warning(self, caplog):
        def on_frame(value):
            raise ZeroDivisionError("a listener's own")

        assert run_at(functions.say, 5, callbacks={"on_frame": on_frame}) == 5
        assert [record.message for record in caplog.records] == [
            "on_frame: ZeroDivisionError: a listener's own; it is not called again"
        ]

    def test_an_event_that_cannot_be_sent_is_a_warning(self, caplog):
        assert run_at(functions.say_unreadable, callbacks={"on_frame": print}) == "done"
        assert "on_frame: its value cannot be sent: TypeError: not for sending" in caplog.text

    def test_log_lines_come_out_in_the_calling_threads_context(self):
        task_run: contextvars.ContextVar[str] = contextvars.ContextVar("task_run", default="none")
        lines: list[tuple[str, str]] = []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append((task_run.get(), record.getMessage()))

        def call(name: str) -> None:
            task_run.set(name)
            run_at(functions.log, f"line of {name}")

        handler = Handler()
        logging.getLogger().addHandler(handler)
        logging.getLogger("pipeline_lib").setLevel(logging.INFO)
        try:
            for future in [start(call, name) for name in ("a", "b")]:
                future.result(SECONDS)
        finally:
            logging.getLogger("pipeline_lib").setLevel(logging.NOTSET)
            logging.getLogger().removeHandler(handler)
        for name in ("a", "b"):
            mine = [line for owner, line in lines if owner == name]
            assert mine[0].startswith(f"line of {name} by ")
            assert mine[1] == "from a thread of its own"
            assert "a warning of Python" in mine[2]
            assert len(mine) == 3

    def test_a_killed_worker_is_told_and_the_next_call_works(self):
        seen = []
        with pytest.raises(WorkerLostError, match="kill_self: its worker process died"):
            run_at(functions.kill_self, callbacks={"on_frame": seen.append})
        assert seen == ["before"]
        assert run_at(functions.add, 1, 2) == 3

    def test_what_no_node_can_hold_is_refused_at_once(self):
        begun = time.monotonic()
        with pytest.raises(UserError, match=r"3 cores are needed on one node .* the largest has 2 cores"):
            run_at(functions.add, 1, 2, needs=Needs(cpus=3))
        with pytest.raises(UserError, match=r"1000\.0 GB of memory are needed"):
            run_at(functions.add, 1, 2, needs=Needs(memory_bytes=10**12))
        assert time.monotonic() - begun < 1

    def test_work_without_a_gpu_sees_none(self):
        assert run_at(functions.where)["gpus"] == ""

    def test_work_with_shares_of_a_gpu_runs_in_threads_of_one_warm_process(self):
        calls = [start(run_at, functions.where, 1.0, needs=Needs(gpus=0.5)) for _ in range(4)]
        answers = [call.result(SECONDS) for call in calls]
        assert {answer["gpus"] for answer in answers} == {"0"}
        assert len({answer["pid"] for answer in answers}) == 1
        assert len({answer["thread"] for answer in answers}) >= 2
        assert run_at(functions.where, needs=Needs(gpus=1))["pid"] == answers[0]["pid"]

    def test_a_killed_gpu_process_is_told_and_another_takes_its_place(self):
        before = run_at(functions.where, needs=Needs(gpus=1))["pid"]
        beside = start(run_at, functions.where, 10.0, needs=Needs(gpus=0.5))
        with pytest.raises(WorkerLostError, match="kill_self: the worker process of its GPU died"):
            run_at(functions.kill_self, callbacks={"on_frame": print}, needs=Needs(gpus=0.5))
        with pytest.raises(WorkerLostError, match="where: the worker process of its GPU died"):
            beside.result(SECONDS)
        assert run_at(functions.where, needs=Needs(gpus=1))["pid"] != before

    def test_a_lost_event_process_fails_no_work(self):
        (process,) = [child for child in children() if "EventActor" in " ".join(child.cmdline())]
        process.kill()
        assert run_at(functions.say, 3, callbacks={"on_frame": print}) == 3
        wait_until(lambda: run_and_see(3) == [0, 1, 2])

    def test_ports_are_on_loopback(self):
        ours = [psutil.Process(), *children()]
        addresses = {
            connection.laddr.ip
            for process in ours
            for connection in process.net_connections("tcp")
            if connection.status == "LISTEN"
        }
        assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def run_and_see(number: int) -> list[int]:
    seen: list[int] = []
    run_at(functions.say, number, callbacks={"on_frame": seen.append})
    return seen


def test_the_end_of_a_run_ends_its_work_and_every_process_of_ray(ray: ExitStack, tmp_path: Path):
    """The last test of the module, as it closes the module's engine."""
    calls = [start(run_at, functions.live, tmp_path / f"{gpus}", 60, needs=Needs(gpus=gpus)) for gpus in (0, 0.5)]
    wait_until(lambda: all((tmp_path / name).exists() for name in ("0", "0.5")))
    waiting = [start(run_at, functions.where, needs=Needs(cpus=cpus, gpus=gpus)) for cpus, gpus in ((2, 0), (1, 1))]
    processes = [process for process in children() if "ray" in " ".join(process.cmdline())]  # others' servers and decoders stay
    folders = {
        argument.split("/session_")[0] for process in processes for argument in process.cmdline() if "/session_" in argument
    }
    assert any("raylet" in process.name() for process in processes)
    begun = time.monotonic()
    cancel_work()
    for call in [*calls, *waiting]:
        with pytest.raises(RuntimeError, match="the run has ended"):
            call.result(2)
    pids = [int((tmp_path / name).read_text().split()[0]) for name in ("0", "0.5")]
    wait_until(lambda: not any(is_running(pid) for pid in pids), 2)
    assert time.monotonic() - begun < 2
    with pytest.raises(RuntimeError, match="not begun"):
        run_at(functions.add, 1, 2)
    ray.close()
    _, left = psutil.wait_procs(processes, timeout=2)
    assert left == []
    assert not any(Path(folder.split("=")[-1]).exists() for folder in folders)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_threads_of_a_run_that_was_broken_off_begin_nothing_in_this_process():
    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt), open_engine():
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="the run has ended"):
        start(run_at, begun.append, 1).result(SECONDS)
    run_at(begun.append, 2)  # this thread has left that run
    with open_engine():
        start(run_at, begun.append, 3).result(SECONDS)
    start(run_at, begun.append, 4).result(SECONDS)
    assert begun == [2, 3, 4]


@pytest.mark.slow
def test_a_second_ray_starts_after_the_environment_was_restored():
    for number in range(2):
        before = dict(os.environ)
        with open_engine(is_local_ray=True):
            assert run_at(functions.add, number, 1) == number + 1
        os.environ.clear()
        os.environ.update(before)
