"""Where work is done, on machines that are made up, and that no more is begun than there is room for."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline_lib.compute.planning import Plan
from pipeline_lib.workers.worker import Place
from tasks.placing import end_workers, plan_models, plan_shards, run_at, turn
from tests.pipeline_lib.workers import functions

HERE = Plan((Place(),), slots=2, at_once=2)
ELSEWHERE = Plan((Place(threads=1), Place(threads=1)), slots=1, at_once=2)


@pytest.fixture(autouse=True)
def _no_workers_left():
    yield
    end_workers()


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "features.h5"
    file.write_bytes(b"1234")
    return file


@pytest.mark.parametrize(("alike", "workers", "processes"), [(1, None, 1), (2, None, 2), (9, None, 4), (9, 1, 1), (1, 3, 3)])
def test_models_of_a_kind_share_the_cores(monkeypatch, file, alike, workers, processes):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    plan = plan_models("cpu", "train.device", [file, file], alike, workers)
    assert plan.at_once == len(plan.places) == processes


def test_shards_are_extracted_here_without_several_gpus():
    assert plan_shards("cpu") is None


@pytest.mark.parametrize("plan", [None, HERE])
def test_a_single_place_is_here(plan):
    steps = []
    assert run_at(plan, functions.describe, 1, two=2)["pid"] == os.getpid()
    run_at(plan, functions.count_to, 3, callbacks={"on_step": steps.append})
    assert steps == [0, 1, 2]


def test_several_places_are_processes_that_stay_until_they_are_ended():
    steps = []
    run_at(ELSEWHERE, functions.count_to, 3, callbacks={"on_step": steps.append})
    first, second = (run_at(ELSEWHERE, functions.describe)["pid"] for _ in range(2))
    assert steps == [0, 1, 2]
    assert first == second != os.getpid()
    end_workers()
    assert run_at(ELSEWHERE, functions.describe)["pid"] != first


def test_what_waits_for_its_turn_when_the_run_ends_does_not_begin():
    def wait():
        with turn(HERE):
            raise AssertionError("begun")

    with ThreadPoolExecutor(1) as pool:
        with turn(HERE), turn(HERE):
            waiting = pool.submit(wait)
            while not waiting.running():
                threading.Event().wait(0.01)
            threading.Event().wait(0.1)
            end_workers()
        with pytest.raises(RuntimeError, match="the run has ended"):
            waiting.result()
    with turn(HERE):
        pass


def test_a_process_that_dies_is_told_of_in_one_line():
    with pytest.raises(ValueError, match=r"^die: its process was ended by SIGKILL, .* \(train\.workers\) or more memory$"):
        run_at(ELSEWHERE, functions.die)


def test_a_process_that_died_is_replaced_for_the_next_call():
    for _ in ELSEWHERE.places:
        with pytest.raises(ValueError, match="SIGKILL"):
            run_at(ELSEWHERE, functions.die)
    first, second = (run_at(ELSEWHERE, functions.describe)["pid"] for _ in range(2))
    assert os.getpid() not in (first, second)


def test_no_more_is_begun_than_there_is_room_for():
    lock, inside, most = threading.Lock(), 0, 0

    def work(number):
        nonlocal inside, most
        with turn(HERE):
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.02)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert most == HERE.at_once
