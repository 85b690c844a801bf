"""Redact secrets in settings, since Prefect stores the parameters of flow runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pipeline_lib.addresses import HIDDEN, redact_text
from pipeline_lib.errors import UserError

logger = logging.getLogger(__name__)

_originals: dict[str, str] = {}


def conceal(settings: Iterable[str]) -> list[str]:
    """Return `section.key=value` settings with addresses redacted; `reveal` restores them in this process."""
    originals = {redact_text(setting): setting for setting in settings}
    _originals.update(originals)
    return list(originals)


def reveal(settings: Iterable[str]) -> list[str]:
    """Return the original settings of `conceal`; warn of secrets that Prefect has stored because they came another way.

    Raises:
        UserError: a setting was redacted by another process, as in a retried flow run.
    """
    return [_reveal(setting) for setting in settings]


def _reveal(setting: str) -> str:
    shown = redact_text(setting)
    if setting in _originals:
        return _originals[setting]
    if shown != setting:
        logger.warning("Prefect has stored the secret in the parameter %s; a parameter file keeps it out of there", shown)
    elif "://" in setting and HIDDEN in setting:
        raise UserError(f"{setting}: the secret in this address was not stored; start a new run with the full address")
    return setting
