"""Which parts of a file are ordered, as people and programs say it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

from .errors import BadRange, UsageError
from .ranges import END, ByteRange
from .units import parse_size

__all__ = ["Parts", "parse_part", "part_of", "wanted_parts"]

Parts = list[tuple[int, int | None]]
"""Half-open byte ranges; a stop of None is the end."""


def part_of(start: int, stop: int | None) -> ByteRange:
    """Return ``[start, stop)``, to the end if *stop* is None.

    Raises:
        BadRange: there is no such part of any file, be it an empty one.
    """
    try:
        found = index(start), END if stop is None else min(index(stop), END)
    except TypeError as error:
        raise BadRange(f"there is no byte from {start!r} to {stop!r}") from error
    if not 0 <= found[0] <= found[1]:
        raise BadRange(f"there is no byte from {start} to {stop}")
    return ByteRange(*found)


def wanted_parts(
    head: str | int | None = None, ranges: Iterable[tuple[int, int | None]] | None = None
) -> list[tuple[int, int]]:
    """Return the parts that *head*, a size, and *ranges* make up; all of it without either.

    Half-open, a stop of None being the end; END in what is returned.

    Raises:
        UsageError: one of them has no byte in it.
    """
    try:
        pairs = [(start, stop) for start, stop in ranges or ()]
    except (TypeError, ValueError) as error:
        raise UsageError("ranges are pairs of offsets, as (0, 1000) or (5000, None)") from error
    parts: list[tuple[int, int]] = [part_of(start, stop) for start, stop in pairs]
    if head is not None:
        parts.append((0, parse_size(head)))
    elif ranges is None:
        parts.append((0, END))
    for start, stop in parts:
        if start == stop:
            raise BadRange(f"there is no byte from {start} to {stop}")
    if not parts:
        raise UsageError("no part of the file is named")
    return parts


def parse_part(text: str) -> tuple[int, int | None]:
    """Return the part that ``0-8M`` or ``1G-`` means: sizes, from and up to.

    Raises:
        UsageError: it is something else.
    """
    start, dash, stop = text.partition("-")
    if not dash:
        raise UsageError(f"{text!r} is no part of a file; write START-STOP or START-, as 0-8M")
    part = parse_size(start), parse_size(stop) if stop else None
    wanted_parts(ranges=[part])
    return part
