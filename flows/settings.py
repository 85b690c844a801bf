"""Settings whose addresses hold secrets: Prefect stores a flow run's parameters, so it gets them redacted."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pipeline_lib.addresses import HIDDEN, redact_text
from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

_originals: dict[str, str] = {}


def conceal(settings: Iterable[str]) -> list[str]:
    """Return `section.key=value` settings with their addresses redacted; `reveal` knows the originals, in this process."""
    originals = {redact_text(setting): setting for setting in settings}
    _originals.update(originals)
    return list(originals)


def reveal(settings: Iterable[str]) -> list[str]:
    """Return the settings that `conceal` was given; warn of those with secrets that came another way, so that Prefect has them.

    Raises:
        UserError: a setting was redacted by another process, such as that of a flow run that is retried.
    """
    return [_reveal(setting) for setting in settings]


def _reveal(setting: str) -> str:
    shown = redact_text(setting)
    if setting in _originals:
        return _originals[setting]
    if shown != setting:
        logger.warning("Prefect has stored the secret in the parameter %s; a parameter file keeps it out of there", shown)
    elif "://" in setting and HIDDEN in setting:
        raise UserError(f"{setting}: the secret in this address was not stored; start the run anew with the whole address")
    return setting
