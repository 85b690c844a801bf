"""deploy/with_gpus.py without Ray: waiting, the command's end, and the GPUs given back."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from tests.deploy.checking import ROOT

SCRIPT = ROOT / "deploy" / "with_gpus.py"
TELL = [sys.executable, "-c", "print('told')"]


@pytest.fixture
def with_gpus(monkeypatch):
    asked = []
    joined = iter([{}, {"GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}])
    # The real Ray would be imported without the engine's settings, which it reads only then.
    ray = SimpleNamespace(init=lambda **options: None, cluster_resources=lambda: next(joined))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.autoscaler", SimpleNamespace())
    autoscaler = SimpleNamespace(request_resources=lambda bundles: asked.append(bundles))
    monkeypatch.setitem(sys.modules, "ray.autoscaler.sdk", autoscaler)
    spec = importlib.util.spec_from_file_location("with_gpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKS", 0.0)
    monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
    module.asked = asked
    return module


def main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["with_gpus.py", *arguments])
    return module.main()


def test_the_command_runs_once_the_gpus_are_there(with_gpus, monkeypatch, capfd):
    assert main(with_gpus, monkeypatch, "2", *TELL) == 0
    assert "told" in capfd.readouterr().out
    assert with_gpus.asked == [[{"GPU": 1}] * 2, []]


def test_gpus_that_do_not_come_are_an_error_and_given_back(with_gpus, monkeypatch, capfd):
    with pytest.raises(SystemExit, match="2 GPUs did not join"):
        main(with_gpus, monkeypatch, "--minutes", "0", "2", *TELL)
    assert "told" not in capfd.readouterr().out
    assert with_gpus.asked[-1] == []


def test_the_exit_code_is_the_commands(with_gpus, monkeypatch):
    assert main(with_gpus, monkeypatch, "2", sys.executable, "-c", "raise SystemExit(3)") == 3
    assert with_gpus.asked[-1] == []


def test_sigterm_reaches_the_command(tmp_path):
    program = textwrap.dedent(f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("with_gpus", {str(SCRIPT)!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.exit(module.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]))
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
