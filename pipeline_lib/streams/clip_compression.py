"""Compress a clip of a feature file by LZ4, in the form of HDF5's filter 32004.

Clips are compressed and decompressed outside HDF5, which does both for one clip at a time. Any program with the package
hdf5plugin reads them through HDF5 as well.
Shape suffixes: S steps of a clip, K grid side, D feature channels.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa

LZ4_FILTER = 32004
"""Number that the HDF Group gave LZ4."""

HEADER = struct.Struct(">QII")
"""Bytes of the clip, bytes of a block (all of them: there is one), and bytes of the block as stored."""

CODEC = pa.Codec("lz4_raw")


def compress(clip_SKKD: np.ndarray) -> bytes:
    """Return a contiguous clip as a chunk of the filter."""
    clip = clip_SKKD.reshape(-1).view(np.uint8)
    block = CODEC.compress(clip, asbytes=True)
    if len(block) >= clip.nbytes:  # as the filter stores what LZ4 makes no smaller
        block = clip.tobytes()
    return HEADER.pack(clip.nbytes, clip.nbytes, len(block)) + block


def decompress(chunk: bytearray, clip_SKKD: np.ndarray) -> None:
    """Fill a contiguous array with the clip of a chunk.

    Raises:
        OSError: the chunk is damaged, or made of several blocks.
    """
    num_bytes = clip_SKKD.nbytes
    block = memoryview(chunk)[HEADER.size :]
    if len(chunk) < HEADER.size or HEADER.unpack_from(chunk) != (num_bytes, num_bytes, len(block)):
        raise OSError("a clip does not begin as LZ4 in HDF5")
    if len(block) < num_bytes:
        block = memoryview(CODEC.decompress(block, num_bytes))
    clip_SKKD.reshape(-1).view(np.uint8)[:] = np.frombuffer(block, np.uint8)
