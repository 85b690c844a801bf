"""Output of the commands that take videos: a new folder, names of files in it, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.terminal import console
from pipeline_lib.errors import UserError

Step = Callable[[str, float, float | None], None]
"""Called with (description, done, total or None if unknown)."""


class FreeNames:
    """Gives every video's files a name of their own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, stem: str) -> str:
        """Return the name, with a number if it is taken; upper and lower case count as equal."""
        names = (f"{stem}{f'-{number}' if number > 1 else ''}" for number in range(1, len(self._taken) + 2))
        name = next(name for name in names if name.lower() not in self._taken)
        self._taken.add(name.lower())
        return name


def new_folder(folder: Path) -> Path:
    """Create the folder; it may exist if it is empty.

    Raises:
        UserError: it is not empty, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--output {folder}: is not empty; name a new folder")
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be created ({error.strerror}); name another folder") from None
    return folder


@contextmanager
def show_progress() -> Iterator[Step]:
    """Show a progress bar of the current step; only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        shown: dict[str, TaskID] = {}

        def step(text: str, done: float, total: float | None) -> None:
            if text not in shown:
                for bar in shown.values():
                    bars.remove_task(bar)
                shown.clear()
                shown[text] = bars.add_task(escape(text), total=total)
            bars.update(shown[text], completed=done, total=total)

        yield step
