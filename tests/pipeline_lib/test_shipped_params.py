from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.params import load_params
from pipeline_lib.params.shipped import find_params, shipped_names

REPOSITORY = Path(__file__).parents[2]


def test_a_bare_name_is_a_shipped_file_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_params("hmdb51") == REPOSITORY / "params" / "hmdb51.yaml"
    assert load_params("hmdb51") == load_params(REPOSITORY / "params" / "hmdb51.yaml")


def test_a_file_of_the_working_folder_does_not_replace_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text("fetch: {kind: hmdb51}")
    monkeypatch.chdir(tmp_path)
    assert find_params("demo") == REPOSITORY / "params" / "demo.yaml"


@pytest.mark.parametrize("path", ["demo.yaml", "./demo", "params/demo", "params/demo.yaml", "../mine.yml"])
def test_a_path_stays_a_path(path):
    assert find_params(path) == Path(path)


def test_an_unknown_name_lists_the_shipped_ones_in_one_line():
    with pytest.raises(UserError) as error:
        find_params("hmbd51")
    (line,) = str(error.value).splitlines()
    assert line.startswith("hmbd51: no such parameter file")
    assert {"demo", "hmdb51"} <= set(shipped_names())
    assert all(name in line for name in shipped_names())


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: no such parameter file.*demo, hmdb51"):
        load_params(tmp_path / "nothing.yaml")
