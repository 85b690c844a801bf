"""UCF-101's lists and completeness, against its real lists."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline_lib.datasets.registry import find_split_format, group_of_name
from pipeline_lib.datasets.split_files import spell_as
from pipeline_lib.datasets.ucf101 import DATA_SET, Ucf101Splits
from pipeline_lib.errors import UnusableError, UserError


@pytest.fixture(scope="module")
def splits(shared: Path) -> Path:
    return shared / "data" / "ucf101" / "ucfTrainTestlist"


@pytest.fixture(scope="module")
def names(splits: Path) -> list[str]:
    """Return the names of all videos, `<class>/<file>`, read by other means than the library's."""
    lines = [line for part in ("train", "test") for line in (splits / f"{part}list01.txt").read_text().splitlines()]
    return sorted(line.split()[0] for line in lines)


@pytest.fixture
def copied(splits: Path, tmp_path: Path) -> Path:
    """Return a copy of the real lists to spoil."""
    return Path(shutil.copytree(splits, tmp_path / "lists"))


def write_lists(folder: Path, train: str, test: str = "", index: str | None = None, fold: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"trainlist0{fold}.txt").write_text(train, encoding="utf-8")
    (folder / f"testlist0{fold}.txt").write_text(test, encoding="utf-8")
    if index is not None:
        (folder / "classInd.txt").write_text(index, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("fold", "num_train", "num_test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_the_real_lists_of_each_fold(splits: Path, fold: int, num_train: int, num_test: int):
    listed = find_split_format(splits).read(splits, fold)
    assert listed["label"].value_counts().to_dict() == {"train": num_train, "test": num_test}
    assert listed["class_name"].nunique() == 101
    assert (listed["video"].str.partition("/")[0] == listed["class_name"]).all()
    groups = listed["video"].map(group_of_name)
    assert groups.nunique() == 2525
    assert (listed["label"].groupby(groups).nunique() == 1).all()


def test_the_whole_collection_is_accepted(splits: Path, names: list[str]):
    assert len(names) == 13320
    DATA_SET.check_splits(splits)
    DATA_SET.check_complete(names, splits)


@pytest.mark.parametrize(
    ("old", "new"),
    [("HandStandPushups/", "HandstandPushups/"), ("HandStandPushups", "HandstandPushups")],
    ids=["the folder, as in the archive", "folder and file"],
)
def test_handstand_pushups_are_found_however_spelled(splits: Path, names: list[str], old: str, new: str):
    respelled = [name.replace(old, new) for name in names]
    assert respelled != names
    DATA_SET.check_complete(respelled, splits)
    with pytest.raises(UnusableError, match=r"101 of 101 classes, 13319 of 13320 videos"):
        DATA_SET.check_complete([name for name in respelled if not name.endswith("tandPushups_g01_c01.avi")], splits)


def test_half_a_collection_is_counted_and_named(splits: Path, names: list[str]):
    half = names[:6660]
    num_groups = len({name.rpartition("_c")[0] for name in half})
    with pytest.raises(UnusableError) as caught:
        DATA_SET.check_complete(half, splits)
    first, *others = str(caught.value).splitlines()
    assert first.startswith(
        f"UCF-101 is incomplete: 101 of 101 classes, 6660 of 13320 videos, 7 of 7 split files, {num_groups} of 2525 groups; "
    )
    assert others[0] == f"missing: {names[6660]}"
    assert others[-1] == "and 6460 more missing"


def test_a_missing_list_and_a_foreign_video_are_named(copied: Path, names: list[str]):
    (copied / "testlist02.txt").unlink()
    with pytest.raises(UnusableError, match=r"13321 of 13320 videos, 6 of 7 split files") as caught:
        DATA_SET.check_complete([*names, "Archery/mine.avi"], copied)
    assert str(caught.value).splitlines()[1:] == ["missing: testlist02.txt", "not in the split files: Archery/mine.avi"]


def test_a_list_that_was_cut_short_is_noticed_though_other_folds_name_its_videos(copied: Path, names: list[str]):
    path = copied / "testlist03.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UnusableError) as caught:
        DATA_SET.check_splits(copied)
    assert str(caught.value).splitlines()[1:] == [f"missing: {lines[-1].split()[0]} in fold 3"]


def test_a_malformed_list_makes_its_address_unusable(copied: Path):
    (copied / "trainlist01.txt").write_text("<html>moved</html>\n")
    with pytest.raises(UnusableError, match=r"trainlist01\.txt:1: '<html>moved</html>' is not a line of a list"):
        DATA_SET.check_splits(copied)


def test_test_lists_have_labels_or_none_and_lines_end_as_they_like(tmp_path: Path):
    write_lists(tmp_path, "\ufeffa b/v x.avi 1\r\n\n", "c/#1 (é).avi\nc/2.avi 2  \n", "1 A B\r\n2 c\r\n")
    listed = Ucf101Splits().read(tmp_path, 1)
    assert dict(zip(listed["video"], listed["label"], strict=True)) == {
        "a b/v x.avi": "train",
        "c/#1 (é).avi": "test",
        "c/2.avi": "test",
    }


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("a.avi 1\n", "", r"trainlist01\.txt:1: 'a\.avi 1' is not a line of a list; accepted: `<class>/<video file>`"),
        ("x/y/a.avi 1\n", "", r"trainlist01\.txt:1: .* is not a line of a list"),
        ("x/a.avi 1\nx/b.avi 3\n", "", r"trainlist01\.txt:2: label 3 is not in classInd\.txt; correct it or leave it out"),
        ("x/a.avi one\n", "", r"trainlist01\.txt:1: label one is not in classInd\.txt"),
        ("x/a.avi 2\n", "", r"trainlist01\.txt:1: label 2 is y in classInd\.txt, not x"),
        ("x/a.avi 1\nx/b.avi 1\nx/a.avi 1\n", "", r"trainlist01\.txt:3: a\.avi is listed twice; keep one line"),
        ("x/a.avi 1\n", "x/a.avi\n", r"two lists of fold 1 name x/a\.avi; keep it in one"),
    ],
)
def test_a_mistake_in_a_list_is_one_line(tmp_path: Path, train: str, test: str, words: str):
    write_lists(tmp_path, train, test, "1 x\n2 y\n")
    with pytest.raises(UserError, match=words) as caught:
        Ucf101Splits().read(tmp_path, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("ApplyEyeMakeup\n", r"classInd\.txt:1: 'ApplyEyeMakeup' is not accepted; give `<label> <class>`"),
        ("1 x\n1 y\n", r"classInd\.txt:2: a second class for label 1; keep one"),
    ],
)
def test_a_mistake_in_the_index_of_classes_is_one_line(tmp_path: Path, index: str, words: str):
    write_lists(tmp_path, "x/a.avi 1\n", index=index)
    with pytest.raises(UserError, match=words):
        Ucf101Splits().read(tmp_path, 1)


def test_both_lists_of_a_fold_are_needed(tmp_path: Path):
    write_lists(tmp_path, "x/a.avi 1\n")
    (tmp_path / "testlist01.txt").unlink()
    for fold, name in ((1, "testlist01.txt"), (2, "trainlist02.txt")):
        with pytest.raises(UserError, match=rf"no split file `{name}` for chunk\.fold = {fold}"):
            Ucf101Splits().read(tmp_path, fold)


def test_only_names_that_the_collection_spells_otherwise_are_respelled():
    assert spell_as(["x/a", "x/B", "x/gone"], ["X/a", "x/b"]) == ["X/a", "x/b", "x/gone"]
    assert spell_as(["x/a"], ["x/a", "x/A"]) == ["x/a"]
    assert spell_as(["x/a"], ["x/A", "X/a"]) == ["x/a"]
