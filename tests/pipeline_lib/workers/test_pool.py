"""Functions called in worker processes: what comes back, and what becomes of calls that fail, stop or die."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from pipeline_lib.workers.pool import DiedError, Pool
from pipeline_lib.workers.worker import Place
from tests.pipeline_lib.workers import functions


@pytest.fixture(scope="module")
def pool():
    with Pool([Place()]) as pool:
        yield pool


def test_a_call_gets_its_arguments_and_returns_its_result(pool):
    result = pool.run(functions.describe, 1, "two", three=[3])
    assert (result["args"], result["kwargs"]) == ((1, "two"), {"three": [3]})
    assert result["pid"] != psutil.Process().pid


def test_callbacks_are_called_in_the_callers_thread_and_answered(pool):
    threads = []

    def on_step(step):
        threads.append(threading.current_thread())
        return step * 10

    with ThreadPoolExecutor(1) as caller:
        called = caller.submit(pool.run, functions.count_to, 3, callbacks={"on_step": on_step})
    assert called.result() == [0, 10, 20]
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


def test_what_a_callback_raises_ends_the_call_and_the_worker_lives(pool):
    def on_step(step):
        raise KeyError(step)

    with pytest.raises(KeyError):
        pool.run(functions.count_to, 3, callbacks={"on_step": on_step})
    assert pool.run(functions.describe)["args"] == ()


def test_errors_arrive_as_they_are_and_say_where_they_were_raised(pool):
    with pytest.raises(ValueError, match="mend this") as caught:
        pool.run(functions.fail, ValueError("mend this"))
    assert str(caught.value) == "mend this"
    (note,) = caught.value.__notes__
    assert "functions.py" in note
    with pytest.raises(RuntimeError, match="OddError: strange"):
        pool.run(functions.fail_oddly)


def test_a_worker_makes_several_calls_at_once(pool):
    with ThreadPoolExecutor(3) as callers:
        (pid,) = {call.result() for call in [callers.submit(pool.run, functions.meet) for _ in range(3)]}
    assert pid == pool.run(functions.describe)["pid"]


def test_calls_go_to_the_least_busy_worker():
    with Pool([Place()] * 3) as pool, ThreadPoolExecutor(3) as callers:
        started = threading.Barrier(4)
        for _ in range(3):
            callers.submit(pool.run, functions.sleep_for_ever, callbacks={"on_start": lambda pid: started.wait(30)})
        started.wait(30)
        assert [worker.num_calls for worker in pool.workers] == [1, 1, 1]
        pool.end()


def test_our_log_lines_come_out_in_the_callers_thread_and_of_others_warnings(pool, caplog):
    with caplog.at_level(logging.DEBUG):
        pool.run(functions.log_lines, "pipeline_lib.train")
        pool.run(functions.log_lines, "another")
    told = [(record.name, record.levelno) for record in caplog.records]
    ours = "pipeline_lib.train"
    assert told == [(ours, logging.INFO), (ours, logging.WARNING), ("another", logging.WARNING)]
    assert caplog.records[0].getMessage() == "at 20"


def test_a_parent_that_does_not_listen_hears_nothing(pool, caplog):
    logging.getLogger("pipeline_lib.quiet").setLevel(logging.ERROR)
    pool.run(functions.log_lines, "pipeline_lib.quiet")
    assert not caplog.records


def test_a_dead_worker_is_told_of_and_the_others_go_on():
    with Pool([Place()] * 2) as pool:
        with pytest.raises(DiedError, match=r"^its process was ended by SIGKILL, as when memory runs out$"):
            pool.run(functions.die)
        assert len(pool.workers) == 1
        assert pool.run(functions.describe)["args"] == ()
        with pytest.raises(DiedError, match="SIGKILL"):
            pool.run(functions.die)
        with pytest.raises(ValueError, match=r"^no worker is left: .*SIGKILL"):
            pool.run(functions.describe)


def test_the_end_of_the_pool_ends_what_is_under_way():
    pids = []
    started = threading.Event()

    def on_start(pid):
        pids.append(pid)
        started.set()

    with ThreadPoolExecutor(1) as caller:
        with Pool([Place()]) as pool:
            called = caller.submit(pool.run, functions.sleep_for_ever, callbacks={"on_start": on_start})
            assert started.wait(30)
        with pytest.raises(DiedError, match="SIGKILL"):
            called.result(30)
    assert not psutil.pid_exists(pids[0])


def test_a_worker_takes_its_place(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what it inherits is not what it keeps
    core = min(psutil.Process().cpu_affinity())
    with Pool([Place(gpu="7", threads=1, cores=frozenset({core}))]) as pool:
        assert pool.run(functions.place) == {"CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "1", "cores": {core}}
        assert pool.run(functions.threads_of_torch) == 1


def test_what_cannot_be_sent_is_refused_before(pool):
    with pytest.raises(Exception, match="pickle"):
        pool.run(lambda: None)
