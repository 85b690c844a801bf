"""HMDB-51: a split file for each class and fold, with a label after each video's name.

Kuehne et al., "HMDB: a large video database for human motion recognition", ICCV 2011; CC BY 4.0. Its web page states
6849 clips, but the split files and the archive contain 6766.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from pathlib import Path

from pipeline_lib.addresses import Address
from pipeline_lib.datasets.data_set import DataSet
from pipeline_lib.datasets.split_files import SplitFormat
from pipeline_lib.errors import UserError

LABELS = {"0": "unused", "1": "train", "2": "test"}
"""Meaning of the digit after a file name. HMDB-51's lines end in a space."""

MEND = "add a line for each: label 0 unused, 1 train, 2 test"


class Hmdb51Splits(SplitFormat):
    """Lists `<class>_test_split<1|2|3>.txt` with lines `<video file> <label>`."""

    LIST = re.compile(r"(?P<class_name>.+)_test_split(?P<fold>[123])\.txt")
    EXAMPLE = "<class>_test_split1.txt"

    def expected(self, classes: Set[str]) -> set[str]:
        """Return a list for each class and fold."""
        return {f"{class_name}_test_split{fold}.txt" for class_name in classes for fold in (1, 2, 3)}

    def line_reader(self, path: Path) -> Callable[[str], tuple[str, str]]:
        """Read `<video file> <label>`; the class is in the name of the list."""
        class_name = path.name.rpartition("_test_split")[0]

        def read(line: str) -> tuple[str, str]:
            name, _, digit = line.rstrip().rpartition(" ")
            if not name.strip() or digit not in LABELS:
                raise UserError(
                    f"{line!r} is not a line of a split file; accepted: `<video file> <label>`, label 0 unused, 1 train, 2 test"
                )
            return f"{class_name}/{name}", LABELS[digit]

        return read

    def unlisted(self, splits: Path, fold: int, class_name: str) -> tuple[Path, str]:
        """Return the list of the class."""
        path = splits / f"{class_name}_test_split{fold}.txt"
        if not path.exists():
            raise UserError(f"{splits}: no split file for class {class_name}; add {path.name}")
        return path, MEND


_HUB = "https://huggingface.co/datasets"
_MICHIGAN = f"{_HUB}/MichiganNLP/hmdb/resolve/16eb4625d3bf20255526e1327ee9e2ea32d66c82"
_LAB = "serre-lab.clps.brown.edu/wp-content/uploads/2013/10"
_VIDEOS_SHA256 = "9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e"
_SPLITS_SHA256 = "229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7"

DATA_SET = DataSet(
    name="HMDB-51",
    # Mirrors come first, because the lab's own server has responded with its home page since 2025.
    videos=(
        # Neither the full commit hash nor the digest is known, so this names the branch and relies on `check_complete`.
        Address(f"{_HUB}/innat/HMDB51/resolve/main/hmdb51_org.zip"),
        Address(
            f"{_MICHIGAN}/hmdb51_org.zip",
            "2d652f386debd04ae8f83508faacb959c03c9cbf1176fc76848b73cda4d52e57",
            4_246_812_958,
        ),
        Address(
            f"{_HUB}/jili5044/hmdb51/resolve/2eb2a92b79a29f7eac24d58f03a5013cdee53a49/hmdb51.zip",
            "fd9a7ee3d1486ebe522bcbb15af645973d61f2620f6cfaf0ed6a9102ab3ac606",
            2_117_581_749,
        ),
        Address(f"https://{_LAB}/hmdb51_org.rar", _VIDEOS_SHA256),
        Address(f"http://{_LAB}/hmdb51_org.rar", _VIDEOS_SHA256),
    ),
    splits=(
        Address(
            f"{_MICHIGAN}/test_train_splits.zip", "12df0053bd9d570817edb10d2299030f43646969d5d42ff40200249b45ab2efa", 222_848
        ),
        Address(f"https://web.archive.org/web/20211104084122id_/http://{_LAB}/test_train_splits.rar", _SPLITS_SHA256),
        Address(f"https://{_LAB}/test_train_splits.rar", _SPLITS_SHA256),
        Address(f"http://{_LAB}/test_train_splits.rar", _SPLITS_SHA256),
    ),
    split_format=Hmdb51Splits(),
    # `<footage>_<class>_<body part>_<camera motion>_np<people>_<viewpoint>_<quality>_<index>`
    video_name=re.compile(r"(?P<group>.+)_[fhlu]_(nm|cm)_np\d+_(fr|ba|le|ri)_(bad|med|goo)_\d+"),
    num_classes=51,
    num_videos=6766,
    num_groups=2291,
    num_split_files=51 * 3,
)
