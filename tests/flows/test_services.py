"""Servers in the background: what a start that fails leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows import services
from flows.record_stores import Stores
from flows.service_state import running_services
from flows.services import Wanted, start_services, stop_services
from pipeline_lib.errors import UserError

SLEEPS, FAILS = ([sys.executable, "-c", code] for code in ("import time; time.sleep(60)", "raise SystemExit(1)"))


def test_a_start_that_fails_leaves_the_servers_that_ran_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    plans = [services._Plan("prefect", SLEEPS, {}, "http://127.0.0.1:1", lambda: True)]
    monkeypatch.setattr(services, "_plan", lambda *_: plans)
    monkeypatch.setattr(services, "_refuse_port", lambda *_: None)
    monkeypatch.setattr(services, "open_stores", lambda *_: Stores())
    try:
        first = start_services(tmp_path, Wanted(), lambda _: None)
        plans.append(services._Plan("mlflow", FAILS, {}, "http://127.0.0.1:2", lambda: False))
        with pytest.raises(UserError):
            start_services(tmp_path, Wanted(), lambda _: None)
        assert running_services(tmp_path) == {"prefect": first["prefect"]}
    finally:
        assert stop_services(tmp_path) == ["prefect"]
    assert running_services(tmp_path) == {}
