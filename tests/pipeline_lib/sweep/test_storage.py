"""Studies in a real PostgreSQL."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import PendingRollbackError

from pipeline_lib.errors import UserError
from pipeline_lib.sweep import storage
from pipeline_lib.sweep.storage import study_location
from tests.pipeline_lib.sweep.conftest import make_study, search
from tests.pipeline_lib.sweep.objectives import follow_formula
from tests.servers import PASSWORD, QUOTED

pytestmark = pytest.mark.integration


@pytest.fixture
def open_there(tmp_path, postgresql):
    """Open the same study in the database each time; those of other tests have other names."""
    folder, name = tmp_path / "there", f"key of {tmp_path.name}"
    return lambda other=name: make_study(folder, other, database=postgresql.address("studies"))


def test_several_that_create_the_tables_at_once_all_find_them(tmp_path, postgresql):
    for attempt in range(2):
        address = postgresql.address(f"fresh{attempt}")
        with ThreadPoolExecutor(4) as pool:
            locations = list(pool.map(study_location, [tmp_path] * 4, [address] * 4))
        assert locations == [locations[0]] * 4
        assert postgresql.execute(f"fresh{attempt}_sweeps", "select count(*) from studies") == [(0,)]


def test_a_study_in_the_database_is_that_of_a_folder(open_study, open_there, monkeypatch):
    monkeypatch.setattr("pipeline_lib.sweep.study.RANDOM_TRIALS", 2)
    in_folder = search(open_study(), follow_formula, 5)
    in_database = search(open_there(), follow_formula, 2)
    assert search(open_there(), follow_formula, 5)[:2] == in_database
    assert open_there().trials() == in_folder


def test_trials_at_once_share_it(open_there):
    told = search(open_there(), follow_formula, 4, at_once=2)
    assert len({str(trial.params) for trial in told}) == len(told) == 4


def test_searches_of_other_keys_are_other_studies(open_there):
    search(open_there(), follow_formula, 1)
    assert open_there("another key").trials() == []


def test_a_second_search_at_the_same_is_refused_until_the_first_ends(open_there):
    location = open_there().location
    with (
        location.hold(),
        pytest.raises(UserError, match=r"^sweep: another run is at the same search \(key of "),
        location.hold(),
    ):
        pass
    with location.hold():
        pass


def test_nothing_that_is_printed_or_in_the_folder_holds_the_password(open_there, caplog, tmp_path):
    search(open_there(), follow_formula, 1)
    location = open_there().location
    shown = f"{location} {location!r} {caplog.text}"
    assert not any(secret in shown for secret in (PASSWORD, QUOTED))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert pickle.loads(pickle.dumps(location)) == location  # as other nodes are sent it


def test_a_database_that_restarts_on_the_way_is_waited_for(open_there, postgresql, caplog, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.1)
    stopped = False

    def restart_in_the_second_trial(params, on_epoch):
        nonlocal stopped
        if study.trials() and not stopped:
            stopped = True
            postgresql.kill()
            pool.submit(start_later)
        follow_formula(params, on_epoch)

    def start_later():
        while "trying again" not in caplog.text:
            time.sleep(0.05)
        postgresql.start()

    study = open_there()
    with study.location.hold(), ThreadPoolExecutor(1) as pool:
        told = search(study, restart_in_the_second_trial, 3)
    assert stopped
    assert "does not answer" in caplog.text
    assert {trial.state for trial in told} <= {"complete", "pruned"}


def test_a_transaction_that_a_restart_broke_off_is_tried_again(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.0)
    errors = [PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")]

    def commit():
        if errors:
            raise StorageInternalError("An exception is raised during the commit.") from errors.pop()
        return "done"

    assert storage._patient(commit)() == "done"


def test_a_database_that_stays_away_ends_the_search(open_there, postgresql, monkeypatch):
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 0.0)
    study = open_there()
    postgresql.kill()
    try:
        with pytest.raises(UserError, match=r"^HAR_DATABASE: the database has not answered for 0 s"):
            search(study, follow_formula, 2)
    finally:
        postgresql.start()
