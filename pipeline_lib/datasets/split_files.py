"""Formats of official split files, and what the labels in them mean."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Set
from pathlib import Path, PurePosixPath
from typing import ClassVar

import pandas as pd

from pipeline_lib.errors import UserError


class SplitFormat(ABC):
    """How a data set's split files are named and read.

    A list is a split file of one fold with a video on each line. A format may have other files beside its lists.
    """

    LIST: ClassVar[re.Pattern[str]]
    """Name of a list, with the fold as the group `fold`."""
    BESIDE: ClassVar[frozenset[str]] = frozenset()
    """Names of files that belong to the lists."""
    EXAMPLE: ClassVar[str]
    """Name of a list of fold 1, for messages."""

    @abstractmethod
    def expected(self, classes: Set[str]) -> set[str]:
        """Return the names of all split files of a collection with these classes."""

    @abstractmethod
    def line_reader(self, path: Path) -> Callable[[str], tuple[str, str]]:
        """Return a function from a line of the list `path` to its video (`<class>/<file name>`) and label.

        The function raises `UserError` with the mistake in the line.
        """

    @abstractmethod
    def unlisted(self, splits: Path, fold: int, class_name: str) -> tuple[Path, str]:
        """Return the path that should list a video of the class, and what to do about it.

        Raises:
            UserError: there is no such list for the class.
        """

    def lists(self, splits: Path) -> list[Path]:
        """Return the lists in a folder, sorted; hidden files are none."""
        files = (path for path in splits.iterdir() if not path.name.startswith(".") and path.is_file())
        return sorted(path for path in files if self.LIST.fullmatch(path.name))

    def lists_of_fold(self, splits: Path, fold: int) -> list[Path]:
        """Return the lists of one fold; raises `UserError` if there is none."""
        paths = [path for path in self.lists(splits) if self._fold(path) == fold]
        if not paths:
            raise missing_list(splits, self.EXAMPLE.replace("1", str(fold)), fold)
        return paths

    def files(self, splits: Path) -> list[Path]:
        """Return the lists in a folder and the files that belong to them; nothing if there is no list."""
        lists = self.lists(splits)
        beside = [path for name in sorted(self.BESIDE) if (path := splits / name).is_file()]
        return [*lists, *beside] if lists else []

    def labels(self, path: Path) -> dict[str, str]:
        """Return the label (`unused`, `train` or `test`) of every video (`<class>/<file name>`) of a list.

        Raises:
            UserError: a malformed line, or a video listed twice.
        """
        read = self.line_reader(path)
        labels: dict[str, str] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                video, label = read(line)
            except UserError as mistake:
                raise UserError(f"{path}:{number}: {mistake}") from None
            if video in labels:
                raise UserError(f"{path}:{number}: {PurePosixPath(video).name} is listed twice; keep one line")
            labels[video] = label
        return labels

    def read(self, splits: Path, fold: int) -> pd.DataFrame:
        """Read all lists of one fold.

        Returns:
            One row per video: video (`<class>/<file name>`), class_name, label (`unused`, `train` or `test`).

        Raises:
            UserError: no list for this fold, a malformed line, or a video listed twice.
        """
        labels = [row for path in self.lists_of_fold(splits, fold) for row in self.labels(path).items()]
        rows = [(video, video.partition("/")[0], label) for video, label in labels]
        listed = pd.DataFrame(rows, columns=["video", "class_name", "label"], dtype="str")
        twice = listed.loc[listed["video"].duplicated(), "video"]
        if len(twice):
            raise UserError(f"{splits}: two lists of fold {fold} name {twice.iloc[0]}; keep it in one")
        return listed.sort_values("class_name", kind="stable", ignore_index=True)

    def listed(self, splits: Path) -> dict[int, set[str]]:
        """Return the videos that the lists of each fold name."""
        videos: dict[int, set[str]] = {}
        for path in self.lists(splits):
            videos.setdefault(self._fold(path), set()).update(self.labels(path))
        return videos

    def _fold(self, path: Path) -> int:
        match = self.LIST.fullmatch(path.name)
        assert match, f"{path}: not a list"
        return int(match["fold"])


def missing_list(splits: Path, name: str, fold: int) -> UserError:
    """Return the error for a fold without a list."""
    return UserError(f"{splits}: no split file `{name}` for chunk.fold = {fold}")


def read_text(path: Path) -> str:
    """Return the text of a split file; raises `UserError` if it is not one."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def spell_as(listed: Iterable[str], collected: Iterable[str]) -> list[str]:
    """Return the listed videos, spelled as in the collection where only the case of letters differs.

    Copies of UCF-101's lists and of its archive write `HandstandPushups` and `HandStandPushups`, for folders and for files.
    """
    listed = list(listed)
    exact = set(collected)
    free = sorted(exact.difference(listed))
    taken = Counter(video.casefold() for video in free)
    by_letters = {video.casefold(): video for video in free if taken[video.casefold()] == 1}
    return [video if video in exact else by_letters.get(video.casefold(), video) for video in listed]


def label_videos(videos: pd.DataFrame, listed: pd.DataFrame, splits: Path, fold: int, split_format: SplitFormat) -> pd.Series:
    """Return the label of every video of the collection.

    Raises:
        UserError: a class or a video that is not listed.
    """
    labels = videos["video"].map(listed.set_index("video")["label"])
    unknown = videos[labels.isna()]
    if len(unknown):
        video, class_name = unknown.iloc[0][["video", "class_name"]]
        path, mend = split_format.unlisted(splits, fold, class_name)
        others = f" (nor {len(unknown) - 1} other videos of the collection)" if len(unknown) > 1 else ""
        raise UserError(f"{path}: does not list {video}{others}; {mend}")
    return labels
