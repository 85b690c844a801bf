"""Load parameters from a YAML file and `section.key=value` settings, with a one-line error for each mistake."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from pipeline_lib.addresses import redact_all, redact_text
from pipeline_lib.errors import UserError
from pipeline_lib.params.section import Section
from pipeline_lib.params.shipped import find_params, shipped_names
from pipeline_lib.params.stages import Params

logger = logging.getLogger(__name__)


EXPECTED = {
    "tuple_type": "input should be a list, such as [a, b]",
    "dict_type": "input should be a section with keys",
    "model_type": "input should be a section with keys",
}
"""What is expected of a value, by the type of pydantic's error, in the words of YAML instead of Python's."""

RENAMED = {"chunk.split": "chunk.fold", "fetch.sources": "fetch.groups"}
"""Old keys with their new names. An old key works with a warning."""


class _Loader(yaml.SafeLoader):
    """PyYAML's YAML 1.1, except that `1e-3` is a number as in YAML 1.2."""


_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


def load_params(path: str | Path, settings: Iterable[str] = ()) -> Params:
    """Load a parameter file, by its path or as a shipped one by its name, and apply `section.key=value` settings over it.

    Raises:
        UserError: one line per mistake: where it is, the value found, what is accepted.
    """
    path = find_params(path)
    values = _read_yaml(path)
    for old, new in RENAMED.items():
        _rename_key(values, old, new)
    for setting in settings:
        _apply_setting(values, setting)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # A list with a wrong entry is also reported as too short.
        mistakes = [mistake for mistake in error.errors() if mistake["type"] != "too_short" or error.error_count() == 1]
        by_value = groupby(mistakes, lambda mistake: (_location(mistake), repr(mistake["input"])))
        raise UserError("\n".join(_describe(path, list(alike)) for _, alike in by_value)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        shipped = ", ".join(shipped_names())
        raise UserError(f"{path}: no such parameter file; those that come with har need no path: {shipped}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a parameter file ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections such as `fetch:`, found {type(values).__name__}")
    return values


def _rename_key(values: dict[str, Any], old: str, new: str) -> None:
    """Move a value from a section's old key to its new one."""
    section, key = old.split(".")
    if isinstance(values.get(section), dict) and key in values[section]:
        _warn_renamed(old, new)
        values[section].setdefault(new.split(".")[1], values[section].pop(key))


def _warn_renamed(old: str, new: str) -> None:
    logger.warning("%s is called %s now; the old name will be refused in the next version", old, new)


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    """Apply one `section.key=value` to the nested dictionary; the value is parsed as YAML."""
    name, equals, text = setting.partition("=")
    name = name.strip()
    if name in RENAMED:
        _warn_renamed(name, RENAMED[name])
    *sections, key = RENAMED.get(name, name).split(".")
    if not equals or not key or not all(sections):
        raise UserError(f"--set {redact_text(setting)}: must look like section.key=value")
    for section in sections:
        child = values.setdefault(section, {})
        if child is None:
            child = values[section] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {redact_text(setting)}: {section} is not a section")
        values = child
    try:
        values[key] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {redact_text(setting)}: the value is not valid YAML; quote it") from None


def _describe(path: Path, mistakes: Sequence[Any]) -> str:
    """Format one mistake as a line for users; pydantic has several errors where a value may be of several types."""
    mistake = mistakes[0]
    location = _location(mistake)
    name = ".".join(str(part) for part in location)
    if mistake["type"] == "extra_forbidden":
        return f"{path}: unknown key {name}; accepted here: {', '.join(_accepted_keys(location[:-1]))}"
    if mistake["type"] == "missing":
        return f"{path}: {name} is missing"
    if mistake["type"] == "value_error":
        message = str(mistake["ctx"]["error"])
        where = f"{name}: " if location and str(location[0]) not in message else ""
        return f"{path}: {where}{message}"
    expected = " or ".join(dict.fromkeys(map(_expected, mistakes))).replace(" or input should be ", " or ")
    return f"{path}: {name} = {redact_all(mistake['input'])!r}: {expected}"


def _location(mistake: Any) -> list[Any]:
    """Return where a mistake is, without pydantic's names of types."""
    return [part for part in mistake["loc"] if isinstance(part, int) or (part.isidentifier() and part != "str")]


def _expected(mistake: Any) -> str:
    return EXPECTED.get(mistake["type"]) or mistake["msg"][0].lower() + mistake["msg"][1:]


def _accepted_keys(location: list[Any]) -> list[str]:
    found: Any = Params
    for part in location:
        found = found.model_fields[part].annotation if _is_section(found) else _section_in(found)
    return list(_section_in(found).model_fields)


def _section_in(annotation: Any) -> Any:
    """Return the section in an annotation such as `dict[str, StreamParams] | None`."""
    if _is_section(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
