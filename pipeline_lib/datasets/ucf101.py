"""UCF-101: a list of training videos and one of test videos for each fold.

Soomro et al., "UCF101: a dataset of 101 human actions classes from videos in the wild", CRCV-TR-12-01, 2012. Each of its 101
classes has 25 groups, g01 to g25; the videos of a group share the place and the people.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from pathlib import Path

from pipeline_lib.addresses import Address
from pipeline_lib.datasets.data_set import DataSet
from pipeline_lib.datasets.split_files import SplitFormat, missing_list, read_text
from pipeline_lib.errors import UserError

CLASS_INDEX = "classInd.txt"
LINE = re.compile(r"(?P<video>(?P<class_name>[^/]+)/[^/]+\.\w+)(?:\s+(?P<label>\S+))?\s*")
CLASS_LINE = re.compile(r"(?P<label>\d+)\s+(?P<class_name>\S.*?)\s*")


class Ucf101Splits(SplitFormat):
    """Lists `trainlist0<1|2|3>.txt` and `testlist0<1|2|3>.txt` with lines `<class>/<video file> [<label>]`.

    The class is the one before the slash. Labels must agree with `classInd.txt`, lines `<label> <class>`, if there is one.
    """

    LIST = re.compile(r"(?P<label>train|test)list0(?P<fold>[123])\.txt")
    BESIDE = frozenset((CLASS_INDEX,))
    EXAMPLE = "trainlist01.txt"

    def expected(self, classes: Set[str]) -> set[str]:
        """Return two lists for each fold, and the index of classes."""
        return {CLASS_INDEX, *(f"{label}list0{fold}.txt" for label in ("train", "test") for fold in (1, 2, 3))}

    def lists_of_fold(self, splits: Path, fold: int) -> list[Path]:
        """Return the two lists of a fold; raises `UserError` if one is missing."""
        paths = [splits / f"{label}list0{fold}.txt" for label in ("train", "test")]
        for path in paths:
            if not path.is_file():
                raise missing_list(splits, path.name, fold)
        return paths

    def line_reader(self, path: Path) -> Callable[[str], tuple[str, str]]:
        """Read `<class>/<video file> [<label>]`; the list says whether its videos train or test."""
        classes = _read_class_index(path.parent / CLASS_INDEX)
        split = path.name.partition("list")[0]

        def read(line: str) -> tuple[str, str]:
            match = LINE.fullmatch(line)
            if not match:
                raise UserError(f"{line!r} is not a line of a list; accepted: `<class>/<video file>`, a label may follow")
            if classes and match["label"]:
                _check_label(match["label"], match["class_name"], classes)
            return match["video"], split

        return read

    def unlisted(self, splits: Path, fold: int, class_name: str) -> tuple[Path, str]:
        """Return the list of training videos."""
        return splits / f"trainlist0{fold}.txt", f"add a line for each there or in testlist0{fold}.txt"


def _read_class_index(path: Path) -> dict[str, str]:
    """Return the class of each label; none if there is no such file."""
    classes: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines() if path.is_file() else [], start=1):
        match = CLASS_LINE.fullmatch(line)
        if line.strip() and not match:
            raise UserError(f"{path}:{number}: {line!r} is not accepted; give `<label> <class>`")
        if match and classes.setdefault(match["label"], match["class_name"]) != match["class_name"]:
            raise UserError(f"{path}:{number}: a second class for label {match['label']}; keep one")
    return classes


def _check_label(label: str, class_name: str, classes: dict[str, str]) -> None:
    if label not in classes:
        raise UserError(f"label {label} is not in {CLASS_INDEX}; correct it or leave it out")
    if classes[label].casefold() != class_name.casefold():
        raise UserError(f"label {label} is {classes[label]} in {CLASS_INDEX}, not {class_name}; correct it or leave it out")


_QUCHENYUAN = "https://huggingface.co/datasets/quchenyuan/UCF101-ZIP/resolve/04d4e5ca1dc93606cb58752b0c08331e598743a4"
_MICHIGAN = "https://huggingface.co/datasets/MichiganNLP/ucf-101/resolve/main"
_CENTRE = "www.crcv.ucf.edu/data/UCF101"
_VIDEOS_SHA256 = "ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55"
_SPLITS = "UCF101TrainTestSplits-RecognitionTask.zip"
_SPLITS_SHA256 = "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27"

# None of the addresses could be tried from where this was written. The digests of the centre's files are those of torchvision's
# prototype data sets, the lists' also that of TensorFlow Datasets; quchenyuan's are on the hub's pages of its commits. Of
# MichiganNLP's files neither the full commit hash nor a digest is known, so they rely on `check_complete`.
DATA_SET = DataSet(
    name="UCF-101",
    # A mirror comes first, because public scripts turn the check of the centre's certificate off.
    videos=(
        Address(
            f"{_QUCHENYUAN}/UCF-101.zip",
            "eb77e54dfafd9c77e7b086f5e5ef7738cabd16a701b3f5c301a1f6c81fc4756e",
            6_957_373_664,
        ),
        Address(f"https://{_CENTRE}/UCF101.rar", _VIDEOS_SHA256),
        Address(f"http://{_CENTRE}/UCF101.rar", _VIDEOS_SHA256),
        Address(f"{_MICHIGAN}/UCF101.zip"),
    ),
    splits=(
        Address(f"{_QUCHENYUAN}/{_SPLITS}", _SPLITS_SHA256, 113_943),
        Address(f"https://{_CENTRE}/{_SPLITS}", _SPLITS_SHA256, 113_943),
        Address(f"http://{_CENTRE}/{_SPLITS}", _SPLITS_SHA256, 113_943),
        Address(f"{_MICHIGAN}/{_SPLITS}"),
    ),
    split_format=Ucf101Splits(),
    video_name=re.compile(r"(?P<group>v_\w+_g\d+)_c\d+"),
    num_classes=101,
    num_videos=13_320,
    num_groups=101 * 25,
    num_split_files=7,
)
