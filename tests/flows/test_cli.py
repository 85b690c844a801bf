from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from flows import cli
from pipeline_lib.errors import UserError
from pipeline_lib.predict.videos import MAX_BYTES, MAX_SECONDS
from tasks.mlflow import loading

HEAVY = ("torch", "prefect", "mlflow", "pandas", "numpy", "pydantic")

LOADED = """
import sys
sys.argv = ["har", *{arguments}]
from flows.cli import main
try:
    main()
finally:
    assert not [name for name in {names} if name in sys.modules]
"""


def test_help_loads_nothing_heavy():
    code = LOADED.format(names=HEAVY, arguments=["--help"])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert all(
        command in result.stdout
        for command in ("run", "predict", "features", "app", "promote", "up", "down", "doctor", "verify", "gc")
    )


def test_down_loads_nothing_heavy(tmp_path):
    names = ("torch", "prefect", "mlflow", "pandas", "scipy", "matplotlib")
    code = LOADED.format(names=names, arguments=["down", "--workspace", str(tmp_path)])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "no servers of this workspace are running\n"), result.stderr


def test_the_engine_is_a_parameter_that_overrides_the_file():
    options = cli._parser().parse_args(["run", "demo", "--set", "train.epochs=3", "--engine", "10.0.0.5:6379"])
    assert cli._settings(options) == ["train.epochs=3", "run.engine=10.0.0.5:6379"]
    assert cli._settings(cli._parser().parse_args(["run", "demo"])) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rum"],
        ["predict"],
        ["features"],
        ["features", "a.mp4"],
        ["run", "--until"],
        ["run", "--refresh", "all"],
        ["gc", "--older-than", "30"],
        ["gc", "--older-than", "nand"],
        ["gc", "--keep-size", "lots"],
        ["gc", "--keep-size", "5GBGB"],
        ["app", "--max-size", "200"],
        ["app", "--max-minutes", "ten"],
    ],
)
def test_a_wrong_call_says_how_to_call(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: har" in capsys.readouterr().err


def test_the_default_model_is_the_one_that_falls_back_to_the_newest():
    """The command line has its own copy: importing the other would cost `har --help` its speed."""
    assert cli.DEFAULT_MODEL == loading.DEFAULT


def test_the_limits_of_the_app_are_those_of_the_served_model_unless_told():
    options = cli._parser().parse_args(["app"])
    assert (options.max_size, options.max_minutes, options.public_url) == (MAX_BYTES, MAX_SECONDS, None)
    options = cli._parser().parse_args(["app", "--max-size", "1GB", "--max-minutes", "1.5"])
    assert (options.max_size, options.max_minutes) == (1e9, 90)


def call_with(error: Exception, monkeypatch) -> None:
    def fail(options):
        raise error

    monkeypatch.setattr(cli, "_doctor", fail)
    monkeypatch.setattr(cli, "_leave", lambda code: sys.exit(code))
    cli.main(["doctor"])


@pytest.mark.parametrize("error", [UserError("what to mend"), OSError(errno.ENOSPC, "no space left")])
def test_what_a_user_can_mend_is_one_line(error, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call_with(error, monkeypatch)
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == f"har: {error}\n"


@pytest.mark.parametrize("error", [ValueError("operands could not be broadcast"), FileNotFoundError(errno.ENOENT, "gone")])
def test_a_bug_shows_its_traceback(error, monkeypatch):
    with pytest.raises(type(error)):
        call_with(error, monkeypatch)


def test_each_failure_is_a_line_without_secrets(monkeypatch, capsys):
    def fail(options):
        raise UserError("train alstm failed: https://me:secret@host/ is gone\ntrain lrcn failed: so is this")

    monkeypatch.setattr(cli, "_doctor", fail)
    monkeypatch.setattr(cli, "_leave", sys.exit)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["har: train alstm failed: https://***@host/ is gone", "har: train lrcn failed: so is this"]
