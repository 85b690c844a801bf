"""A file from an address, and the first of several addresses that gives what it should."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline_lib.addresses import Address, redact
from pipeline_lib.errors import UnusableError, UserError
from pipeline_lib.fetch.transfer import PermanentError, Progress, RetryPolicy, Transfer, check_file

__all__ = ["Address", "Progress", "RetryPolicy", "download", "first_usable"]

logger = logging.getLogger(__name__)
T = TypeVar("T")


def first_usable(addresses: Sequence[Address], use: Callable[[Address], T], *, key: str) -> T:
    """Return what `use` makes of the first address that gives what it should.

    `use` raises a `PermanentError` or `UnusableError` where the next address is to be tried. `key` names the parameter to
    mend, for example `fetch.videos`.

    Raises:
        UserError: no address gave it; each is named with its reason.
    """
    assert addresses, "nowhere to look for the file"
    reasons = []
    for address in addresses:
        shown = redact(address.url)
        try:
            return use(address)
        except PermanentError as error:
            reason = str(error)
        except UnusableError as error:
            if len(addresses) == 1:
                raise
            reason = str(error).partition("\n")[0].removeprefix(f"{key}: {shown}: ")
        logger.warning("%s: %s: %s", key, shown, reason)
        reasons.append(f"{shown} ({reason})")
    raise UserError(
        f"{key}: could not be downloaded from {'; '.join(reasons)}. Set {key} to the path of a local copy or another address"
    )


def download(address: Address, directory: Path, *, policy: RetryPolicy, progress: Progress | None = None) -> Path:
    """Return the path of the file that an address gives; a local one is used in place.

    A transfer goes to `directory` as `<name>.part`, which a later call takes up again, and is renamed when whole and
    checked.

    Raises:
        PermanentError: the address does not give the file.
        UserError: the disk is full.
    """
    if address.is_remote:
        return Transfer(address, directory, policy, progress).run()
    path = Path(address.url).expanduser().absolute()
    if not path.exists():
        raise PermanentError("no such file or folder")
    if path.is_file():
        check_file(path, address)
    return path
