"""Checksums of stored blocks: how rot is told from what was received. No locks.

A block is 1 MiB, aligned; the last one ends with the file. It has a checksum
once all of it is durable. CRC-32 because the standard library has it at several
GB/s without the GIL and because the enemy is rot, not forgery: a damaged block
passes once in four thousand million. A block of 1 MiB costs 4 bytes of row, and
one that is damaged costs 1 MiB of transfer.

``cache_chunks.checksum`` holds, for each row, the checksums of the blocks that
lie wholly within it, in order, 4 bytes each, big-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from .ranges import END, ByteRange

__all__ = ["BLOCK_BYTES", "Digests", "block_at", "digest", "whole_blocks"]

BLOCK_BYTES: Final = 1 << 20


def digest(data: bytes) -> int:
    """Return the checksum of one block's bytes."""
    return zlib.crc32(data)


def block_at(index: int, length: int) -> ByteRange:
    """Return the bytes of block number *index* of a file of *length* bytes, END if unknown."""
    start = index * BLOCK_BYTES
    return ByteRange(start, min(start + BLOCK_BYTES, length))


def whole_blocks(start: int, stop: int, length: int) -> range:
    """Return the numbers of the blocks that lie wholly within ``[start, stop)``."""
    first = -(-start // BLOCK_BYTES)
    last = -(-stop // BLOCK_BYTES) if stop == length != END else stop // BLOCK_BYTES
    return range(first, max(first, last))


class Digests:
    """The known checksums of one content's blocks, by block number."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, index: int) -> bool:
        return index in self._known

    def __getitem__(self, index: int) -> int:
        return self._known[index]

    def get(self, index: int) -> int | None:
        """Return the checksum of that block, or None where none is known."""
        return self._known.get(index)

    def update(self, known: Mapping[int, int]) -> None:
        """Learn checksums."""
        self._known.update(known)

    def forget(self, start: int, stop: int) -> None:
        """Forget every block that ``[start, stop)`` touches."""
        for index in list(self._touched(start, stop)):
            del self._known[index]

    def within(self, start: int, stop: int, length: int) -> Iterator[int]:
        """Return the numbers of the blocks touching ``[start, stop)`` that have a checksum."""
        return self._touched(start, min(stop, length))

    def _touched(self, start: int, stop: int) -> Iterator[int]:
        blocks = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES) if start < stop else 0)
        if len(blocks) > len(self._known):
            # Nonsense in a row, or an unknown length, may make a range of exabytes.
            return (index for index in sorted(self._known) if index in blocks)
        return (index for index in blocks if index in self._known)

    def pack(self, run: ByteRange, length: int) -> bytes | None:
        """Return the text of a row's ``checksum``, None if a block's is missing."""
        try:
            values = [self._known[index] for index in whole_blocks(*run, length)]
        except KeyError:
            return None
        return struct.pack(f">{len(values)}I", *values)

    def unpack(self, run: ByteRange, blob: bytes, length: int) -> None:
        """Learn what :meth:`pack` wrote; a text of another size teaches nothing.

        But for one that was written while the length was unknown, and so without the
        last, short block.
        """
        blocks = whole_blocks(*run, length)
        if len(blob) != 4 * len(blocks):
            blocks = whole_blocks(*run, END)
        if len(blob) == 4 * len(blocks):
            self._known.update(zip(blocks, struct.unpack(f">{len(blocks)}I", blob), strict=True))
