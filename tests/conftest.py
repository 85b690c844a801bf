"""Fixtures shared by all tests. Prefect's settings are read when it is first imported, so they are set before that.

With pytest-xdist every worker has its own of everything here: Prefect server, its folder, finished run.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.servers import object_store, postgresql, with_object_store  # noqa: F401

SHARED = Path(__file__).resolve().parents[2] / "shared"
WITH_PREFECT = ("tests/e2e/", "tests/tasks/test_stage.py")
"""How the names of tests begin that ask for `prefect_server`."""
UNUSED_SERVICES = ("TRIGGERS", "EVENT_PERSISTER", "SCHEDULER", "LATE_RUNS", "FOREMAN")
"""Of Prefect's server, for automations, its page of events, schedules and workers: no test of `prefect_server` has any."""
PREFECT = Path(tempfile.mkdtemp(prefix="har-tests-"))
atexit.register(shutil.rmtree, PREFECT, ignore_errors=True)

os.environ.update(
    PREFECT_HOME=str(PREFECT / "prefect"),
    PREFECT_API_URL="http://127.0.0.1:1/api",  # nothing: only tests that ask for `prefect_server` may talk to one
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_TO_API_ENABLED="false",  # its last lines would look for the server after the tests stopped it
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_LOGGING_LEVEL="WARNING",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores; read when torch is first imported, here and in subprocesses
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "HAR_DATABASE"):
    os.environ.pop(name, None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the test modules without garbage collection, and leave what they imported out of all later ones."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take everything down as usual."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep what asks for `prefect_server` on one of two workers: one server and one `finished` are enough.

    More workers would wait for that one in the end.
    """
    if config.getoption("dist") != "loadfile" or len(config.getoption("tx")) != 2:
        return None
    from xdist.scheduler import LoadFileScheduling

    class PrefectTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "Prefect" if nodeid.startswith(WITH_PREFECT) else super()._split_scope(nodeid)

    return PrefectTogether(config, log)


@event.listens_for(Engine, "connect")
def _leave_syncing_to_the_system(connection: Any, _: object) -> None:
    """Have SQLite (MLflow's store) not wait for the disk at each commit; only a crash of the machine could tell."""
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real material beside the checkout; skip where it is absent, as in a user's clone."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real videos, archives and weights are not beside this checkout (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Start one Prefect server for the session; yields its API address."""
    from flows.services import start_temporary_prefect, stop_temporary_prefect, wait_for_prefect

    with pytest.MonkeyPatch.context() as patch:
        for service in UNUSED_SERVICES:
            patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        address = start_temporary_prefect(PREFECT)
    wait_for_prefect(address)
    os.environ["PREFECT_API_URL"] = address
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # A flow run with a heartbeat ends up to a second late: Prefect waits for the thread, which sleeps.
    with temporary_settings({PREFECT_API_URL: address, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield address
    stop_temporary_prefect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded with `record_property`."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")
