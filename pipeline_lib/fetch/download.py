"""A file from the first of several addresses that gives it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.fetch.transfer import Address, AddressError, Patience, Progress, Transfer, check_file

__all__ = ["Address", "Patience", "Progress", "download"]

logger = logging.getLogger(__name__)


def download(
    addresses: Sequence[Address],
    directory: Path,
    *,
    key: str,
    patience: Patience,
    progress: Progress | None = None,
) -> Path:
    """Return the path of the file that the first working address gives.

    A local path is used in place. A transfer goes to `directory` as `<name>.part`, which a later call takes up again,
    and is renamed when whole and checked. `key` names the parameter to mend, for example `fetch.videos`.

    Raises:
        UserError: no address gave the file (each is named with its reason), or the disk is full.
    """
    assert addresses, "nowhere to look for the file"
    reasons = []
    for address in addresses:
        try:
            if not address.is_remote:
                return _local_file(address)
            return Transfer(address, directory, patience, progress).run()
        except AddressError as error:
            logger.warning("%s: %s", address.url, error)
            reasons.append(f"{address.url} ({error})")
    raise UserError(
        f"{key}: not to be had from {'; '.join(reasons)}. Set {key} to the path of a local copy or another address"
    )


def _local_file(address: Address) -> Path:
    path = Path(address.url).expanduser().absolute()
    if not path.exists():
        raise AddressError("no such file or folder")
    if path.is_file():
        check_file(path, address.sha256)
    return path
