"""What is known of a published data set, and the check that a copy of it is complete."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline_lib.addresses import Address
from pipeline_lib.datasets.split_files import SplitFormat, spell_as
from pipeline_lib.errors import UnusableError, UserError

MAX_NAMED = 200
"""Maximum number of missing files to name in an error."""


@dataclass(frozen=True)
class DataSet:
    """A published data set: addresses, expected contents, format of its split files, groups of its file names."""

    name: str
    videos: tuple[Address, ...]
    """Addresses of its videos, tried in order."""
    splits: tuple[Address, ...]
    """Addresses of its split files, tried in order."""
    split_format: SplitFormat
    video_name: re.Pattern[str]
    """Name of a video without its suffix, with the footage that it is cut from, and its class, as the group `group`."""
    num_classes: int
    num_videos: int
    num_groups: int
    num_split_files: int

    def group(self, stem: str) -> str | None:
        """Return the group of a video named `stem`; None if it is not named as in this data set."""
        match = self.video_name.fullmatch(stem)
        return match["group"] if match else None

    def check_splits(self, splits: Path) -> None:
        """Check that the split files are those of the data set and complete; raises like `check_complete`."""
        self.check_complete({video for videos in self._listed(splits).values() for video in videos}, splits)

    def check_complete(self, videos: Iterable[str], splits: Path) -> None:
        """Check that the videos (`<class>/<file>`) and the split files are those of the data set and complete.

        Raises:
            UnusableError: a line with found and expected counts, followed by a line for each missing or unexpected file.
        """
        found = set(videos)
        folds = {fold: set(spell_as(listed, found)) for fold, listed in self._listed(splits).items()}
        expected = {video for listed in folds.values() for video in listed}
        classes = {video.partition("/")[0] for video in found | expected}
        files = {path.name for path in self.split_format.files(splits)}
        missing_files = self.split_format.expected(classes) - files
        missing = sorted(missing_files) + sorted(expected - found) + ([] if missing_files else _uneven(folds, expected))
        counts = {
            "classes": (len({class_name.casefold() for class_name in classes}), self.num_classes),
            "videos": (len(found), self.num_videos),
            "split files": (len(files), self.num_split_files),
            "groups": (len({self.group(PurePosixPath(video).stem) for video in found} - {None}), self.num_groups),
        }
        if not missing and found == expected and all(count == right for count, right in counts.values()):
            return
        counted = ", ".join(f"{count} of {right} {what}" for what, (count, right) in counts.items())
        raise UnusableError(
            f"{self.name} is incomplete: {counted}; fetch its archives again, or use it as it is with "
            f"fetch.kind: archive{_lines('missing', missing)}{_lines('not in the split files', sorted(found - expected))}"
        )

    def _listed(self, splits: Path) -> dict[int, set[str]]:
        """Return the videos listed in each fold; a mistake in a list makes the whole address unusable."""
        try:
            return self.split_format.listed(splits)
        except UserError as error:
            raise UnusableError(str(error)) from None


def _uneven(folds: dict[int, set[str]], expected: set[str]) -> list[str]:
    """Return the videos that some folds list and others do not."""
    return [f"{video} in fold {fold}" for fold, listed in sorted(folds.items()) for video in sorted(expected - listed)]


def _lines(what: str, names: Sequence[str]) -> str:
    more = [f"and {len(names) - MAX_NAMED} more {what}"] if len(names) > MAX_NAMED else []
    return "".join(f"\n{line}" for line in [f"{what}: {name}" for name in names[:MAX_NAMED]] + more)
