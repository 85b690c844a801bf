"""The parameter files that come with the project, by name: in the repository and beside an installed package alike."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "params"
"""The root of the repository and that of a wheel both hold `params/` beside `pipeline_lib/`."""


def shipped_names() -> list[str]:
    """Return the names of the parameter files that come with the project, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_params(name: str | Path) -> Path:
    """Return the path of a parameter file: a bare name such as `demo` is a shipped one, all else is a path as it stands.

    Raises:
        UserError: no shipped file has this name.
    """
    path = Path(name)
    if path.suffix or str(name) != path.name:
        return path
    if path.name not in shipped_names():
        raise UserError(
            f"{name}: no such parameter file; those that come with har are {', '.join(shipped_names())}, "
            "and a file of your own is given by its path, such as mine.yaml"
        )
    return FOLDER / f"{path.name}.yaml"
