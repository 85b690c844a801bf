from __future__ import annotations

import subprocess
import sys

import pytest

from flows import cli
from pipeline_lib.params import STAGES
from tasks import sources

HEAVY = ("torch", "prefect", "mlflow", "pandas", "numpy", "pydantic")

LOADED = """
import sys
sys.argv = ["har", "--help"]
from flows.cli import main
try:
    main()
finally:
    assert not [name for name in {names} if name in sys.modules]
"""


def test_help_loads_nothing_heavy():
    code = LOADED.format(names=HEAVY)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in ("run", "predict", "app", "promote", "up", "down", "doctor"))


def test_the_command_knows_every_stage():
    assert cli.STAGES == STAGES


@pytest.mark.parametrize("arguments", [[], ["rum"], ["predict"], ["run", "--until"], ["run", "--refresh", "all"]])
def test_a_wrong_call_says_how_to_call(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: har" in capsys.readouterr().err


def test_the_default_model_is_the_one_that_falls_back_to_the_newest():
    """The command line has its own copy: importing the other would cost `har --help` its speed."""
    assert cli.DEFAULT_MODEL == sources.DEFAULT
