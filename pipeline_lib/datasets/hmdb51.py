"""HMDB-51: addresses of its archives, and a check that the collection is complete.

Kuehne et al., "HMDB: a large video database for human motion recognition", ICCV 2011; CC BY 4.0. Its web page states
6849 clips, but the split files and the archive contain 6766.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline_lib.addresses import Address
from pipeline_lib.errors import UnusableError

NUM_CLASSES = 51
NUM_VIDEOS = 6766
NUM_SPLITS = 3
NUM_SPLIT_FILES = NUM_CLASSES * NUM_SPLITS
MAX_NAMED = 200
"""Maximum number of missing files to name in an error."""

_HUB = "https://huggingface.co/datasets"
_MICHIGAN = f"{_HUB}/MichiganNLP/hmdb/resolve/16eb4625d3bf20255526e1327ee9e2ea32d66c82"
_LAB = "serre-lab.clps.brown.edu/wp-content/uploads/2013/10"
_VIDEOS_SHA256 = "9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e"
_SPLITS_SHA256 = "229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7"

VIDEOS = (
    # Neither the full commit hash nor the digest is known, so this names the branch and relies on `check_complete`.
    Address(f"{_HUB}/innat/HMDB51/resolve/main/hmdb51_org.zip"),
    Address(f"{_MICHIGAN}/hmdb51_org.zip", "2d652f386debd04ae8f83508faacb959c03c9cbf1176fc76848b73cda4d52e57", 4_246_812_958),
    Address(
        f"{_HUB}/jili5044/hmdb51/resolve/2eb2a92b79a29f7eac24d58f03a5013cdee53a49/hmdb51.zip",
        "fd9a7ee3d1486ebe522bcbb15af645973d61f2620f6cfaf0ed6a9102ab3ac606",
        2_117_581_749,
    ),
    Address(f"https://{_LAB}/hmdb51_org.rar", _VIDEOS_SHA256),
    Address(f"http://{_LAB}/hmdb51_org.rar", _VIDEOS_SHA256),
)
"""Mirrors come first, because the lab's own server has responded with its home page since 2025."""

SPLITS = (
    Address(f"{_MICHIGAN}/test_train_splits.zip", "12df0053bd9d570817edb10d2299030f43646969d5d42ff40200249b45ab2efa", 222_848),
    Address(f"https://web.archive.org/web/20211104084122id_/http://{_LAB}/test_train_splits.rar", _SPLITS_SHA256),
    Address(f"https://{_LAB}/test_train_splits.rar", _SPLITS_SHA256),
    Address(f"http://{_LAB}/test_train_splits.rar", _SPLITS_SHA256),
)


def check_splits(splits: Path) -> None:
    """Check that the split files are those of HMDB-51 and complete; raises like `check_complete`."""
    check_complete(_listed_videos(splits), splits)


def check_complete(videos: Iterable[str], splits: Path) -> None:
    """Check that the videos (`<class>/<file>`) and the split files are those of HMDB-51 and complete.

    Raises:
        UnusableError: a line with found and expected counts, followed by a line for each missing or unexpected file.
    """
    found = set(videos)
    files = {path.name for path in _split_files(splits)}
    classes = {video.partition("/")[0] for video in found} | {_class_of(name) for name in files}
    expected_files = {f"{name}_test_split{number}.txt" for name in classes for number in range(1, NUM_SPLITS + 1)}
    expected = _listed_videos(splits)
    counts_fit = (len(classes), len(found), len(files)) == (NUM_CLASSES, NUM_VIDEOS, NUM_SPLIT_FILES)
    if counts_fit and found == expected:
        return
    missing = sorted(expected_files - files) + sorted(expected - found)
    raise UnusableError(
        f"HMDB-51 is incomplete: {len(classes)} of {NUM_CLASSES} classes, {len(found)} of {NUM_VIDEOS} videos, "
        f"{len(files)} of {NUM_SPLIT_FILES} split files; fetch its archives again, or use it as it is with "
        f"fetch.kind: archive{_lines('missing', missing)}{_lines('not in the split files', sorted(found - expected))}"
    )


def _split_files(splits: Path) -> list[Path]:
    return list(splits.glob("*_test_split?.txt"))


def _listed_videos(splits: Path) -> set[str]:
    return {video for path in _split_files(splits) for video in _videos_of(path)}


def _class_of(split_file: str) -> str:
    return split_file.rpartition("_test_split")[0]


def _videos_of(split_file: Path) -> list[str]:
    """Return the `<class>/<file>` videos of a split file, whose lines are `name.avi LABEL `."""
    lines = split_file.read_text(encoding="utf-8").splitlines()
    return [f"{_class_of(split_file.name)}/{line.split()[0]}" for line in lines if line.strip()]


def _lines(what: str, names: Sequence[str]) -> str:
    more = [f"and {len(names) - MAX_NAMED} more {what}"] if len(names) > MAX_NAMED else []
    return "".join(f"\n{line}" for line in [f"{what}: {name}" for name in names[:MAX_NAMED]] + more)
