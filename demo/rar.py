"""A writer of RAR 5.0 archives whose members are stored as they are.

The layout follows RARLAB's public "RAR 5.0 archive format" technical note: a signature, then blocks of CRC32, size, type,
flags, fields and data; integers are little-endian base 128 (`vint`). Equal members give equal archives.
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

SIGNATURE = b"Rar!\x1a\x07\x01\x00"
MAIN_HEADER, FILE_HEADER, END_HEADER = 1, 2, 5
HAS_DATA = 2
HAS_CRC32 = 4
STORED = 0
UNIX = 1
REGULAR_FILE = 0o100644
READ_BYTES = 1024 * 1024


def write_rar(archive: Path, members: Sequence[tuple[str, Path]]) -> None:
    """Pack files into a RAR 5.0 archive.

    Args:
        archive: the file to write; it is removed again if anything goes wrong.
        members: name within the archive, with forward slashes, and the file that holds the content.

    Raises:
        ValueError: two members have one name.
        OSError: a file cannot be read, or the archive not be written.
    """
    names = [name for name, _ in members]
    if len(set(names)) != len(names):
        raise ValueError(f"{archive}: two members have the same name; give each its own")
    try:
        with archive.open("wb") as file:
            file.write(SIGNATURE + _block(MAIN_HEADER, 0, vint(0)))
            for name, path in members:
                file.write(_file_header(name, path))
                with path.open("rb") as content:
                    shutil.copyfileobj(content, file, READ_BYTES)
            file.write(_block(END_HEADER, 0, vint(0)))
    except BaseException:
        archive.unlink(missing_ok=True)
        raise


def pack_collection(directory: Path, archive: Path) -> None:
    """Pack `directory/videos` as HMDB-51 is packed: an archive of one `<class>.rar` each, which holds `<class>/<video>`."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        classes = sorted(folder for folder in (directory / "videos").iterdir() if folder.is_dir())
        packed = [Path(scratch) / f"{folder.name}.rar" for folder in classes]
        for folder, inner in zip(classes, packed, strict=True):
            write_rar(inner, [(f"{folder.name}/{video.name}", video) for video in sorted(folder.iterdir())])
        write_rar(archive, [(inner.name, inner) for inner in packed])


def vint(number: int) -> bytes:
    """Encode a non-negative integer, seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _block(kind: int, flags: int, fields: bytes) -> bytes:
    """Return a header: CRC32 of what follows it, size of what follows the size, type, flags, fields."""
    body = vint(kind) + vint(flags) + fields
    sized = vint(len(body)) + body
    return zlib.crc32(sized).to_bytes(4, "little") + sized


def _file_header(name: str, path: Path) -> bytes:
    size_bytes, crc32 = vint(path.stat().st_size), _crc32(path).to_bytes(4, "little")
    encoded = name.encode()
    # The data's size as packed comes with the header; the fields repeat it as unpacked.
    fields = size_bytes + vint(HAS_CRC32) + size_bytes + vint(REGULAR_FILE) + crc32
    return _block(FILE_HEADER, HAS_DATA, fields + vint(STORED) + vint(UNIX) + vint(len(encoded)) + encoded)


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32
