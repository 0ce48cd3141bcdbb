"""Several ranges in one answer: ``multipart/byteranges``. Pure.

Source: RFC 9110 §14.6, §15.3.7.2; RFC 2046 §5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .ranges import ByteRange
from .semantics import ContentRange

__all__ = ["Multipart", "Part"]


@dataclass(frozen=True)
class Part:
    """Text to send before some bytes of the file, and those bytes."""

    head: bytes
    range: ByteRange


@dataclass(frozen=True)
class Multipart:
    """The parts of an answer, what ends it, and its fields' values."""

    parts: tuple[Part, ...]
    end: bytes
    content_type: str

    @property
    def size_bytes(self) -> int:
        """The body's length, so that it can be promised."""
        return sum(len(part.head) + part.range.size for part in self.parts) + len(self.end)

    @classmethod
    def of(
        cls, ranges: Sequence[ByteRange], length: int, content_type: str, boundary: str
    ) -> Multipart:
        """Return the answer with *ranges*, in that order, of a file of *length* bytes.

        *boundary* must not occur in the file; a random one does not.
        """
        parts = []
        for number, found in enumerate(ranges):
            before = "" if number == 0 else "\r\n"
            head = (
                f"{before}--{boundary}\r\nContent-Type: {content_type}\r\n"
                f"Content-Range: {ContentRange(found, length)}\r\n\r\n"
            )
            parts.append(Part(head.encode("latin-1"), found))
        end = f"\r\n--{boundary}--\r\n".encode("ascii")
        return cls(tuple(parts), end, f"multipart/byteranges; boundary={boundary}")
