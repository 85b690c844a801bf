"""Every data set is one module and one name in the registry, and nothing else names one."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pipeline_lib.datasets import registry
from pipeline_lib.datasets.hmdb51 import DATA_SET
from pipeline_lib.datasets.registry import NAMES, find_data_set, find_split_format, group_of_name
from pipeline_lib.datasets.split_files import SplitFormat

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_data_set(name: str):
    data_set = find_data_set(name)
    assert data_set
    assert data_set.videos
    assert data_set.splits
    assert data_set.split_format.LIST.fullmatch(data_set.split_format.EXAMPLE)
    for address in (*data_set.videos, *data_set.splits):
        assert re.fullmatch(r"https?://\S+", address.url)
        assert address.sha256 is None or re.fullmatch("[0-9a-f]{64}", address.sha256)


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_a_collection_of_ones_own_is_no_data_set(kind: str):
    assert find_data_set(kind) is None


def test_nothing_but_the_registry_names_a_data_set():
    named = re.compile("|".join(rf"[\"']{name}[\"']|datasets\.{name}\b|import {name}\b" for name in NAMES))
    sources = [path for package in ("pipeline_lib", "tasks") for path in (REPOSITORY / package).rglob("*.py")]
    naming = [path.relative_to(REPOSITORY).as_posix() for path in sources if named.search(path.read_text(encoding="utf-8"))]
    assert naming == ["pipeline_lib/params/stages.py"]


class DotSplits(SplitFormat):
    """Lists `fold<n>.lst` of another data set."""

    LIST = re.compile(r"fold(?P<fold>\d)\.lst")
    EXAMPLE = "fold1.lst"

    def expected(self, classes):
        return {"fold1.lst"}

    def line_reader(self, path):
        return lambda line: tuple(line.split("\t"))

    def unlisted(self, splits, fold, class_name):
        return splits / f"fold{fold}.lst", "add a line"


def test_another_data_set_is_one_module_and_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("pipeline_lib.datasets.dots")
    module.DATA_SET = replace(  # type: ignore[attr-defined]
        DATA_SET, name="Dots", split_format=DotSplits(), video_name=re.compile(r"(?P<group>dot\d+)_\d+")
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "NAMES", (*NAMES, "dots"))
    (tmp_path / "fold2.lst").write_text("x/dot1_1.avi\ttrain\nx/dot2_1.avi\ttest\n")
    found = find_data_set("dots")
    assert found
    assert found.name == "Dots"
    assert group_of_name("x/dot1_1.avi") == "dot1"
    assert list(find_split_format(tmp_path).read(tmp_path, 2)["label"]) == ["train", "test"]
