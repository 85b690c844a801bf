"""Download a file from an address, or from the first usable one of several."""

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
    """Return the result of `use` for the first address that is usable.

    `use` raises `PermanentError` or `UnusableError` to try the next address. `key` is the parameter to name in errors, for
    example `fetch.videos`.

    Raises:
        UserError: no address is usable; names each with the reason.
    """
    assert addresses, "no addresses"
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
    """Download a file to `directory` and return its path; a local file or folder is used in place.

    The download is written to `<name>.part`, which a later call resumes, and renamed when it is complete and checked.

    Raises:
        PermanentError: the file is not available or not the expected one.
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
