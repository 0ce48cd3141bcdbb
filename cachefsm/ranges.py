"""Byte ranges and sets of them: interval arithmetic, no I/O and no locks.

Inside cachefsm every range is half-open, so sizes are differences and neighbours
share a bound; the inclusive form of the wire is `cachefsm.semantics`' business.
One invariant holds after every call: the runs of a `RangeSet` are sorted,
non-empty, and separated by at least one missing byte. A caller that shares a set
between threads brings the lock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = ["END", "ByteRange", "RangeSet"]

#: The stop of a range that goes to the end of the file, wherever that is. The
#: largest offset a file system or an SQLite integer can hold, so that unknown
#: ends sort, compare and store like known ones.
END: Final[int] = 2**63 - 1


class _Bounds(NamedTuple):
    """The pair beneath `ByteRange`; a NamedTuple cannot check its own values."""

    start: int
    stop: int


class ByteRange(_Bounds):
    """The bytes from *start* up to, not including, *stop*.

    ``ByteRange(0, 500)`` is 500 bytes. Empty ranges are allowed; being a pair,
    they are still true: ask for `size`.

    Raises:
        ValueError: not ``0 <= start <= stop <= END``.
    """

    __slots__ = ()

    def __new__(cls, start: int, stop: int) -> ByteRange:
        _check(start, stop)
        return super().__new__(cls, start, stop)

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {'END' if self.stop == END else self.stop})"


class RangeSet:
    """The bytes of one file that are here: sorted, coalesced runs.

    Two parallel lists, because `bisect` on plain integers is faster than every
    interval library measured, and needs no key function.
    """

    __slots__ = ("_starts", "_stops", "_total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._total = 0
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> int:
        """Add the range; return how many of its bytes were not here before.

        An empty range changes nothing.

        Raises:
            ValueError: not ``0 <= start <= stop <= END``.
        """
        _check(start, stop)
        if start == stop:
            return 0
        starts, stops = self._starts, self._stops
        if starts and starts[-1] <= start <= stops[-1]:
            return self._extend_last(stop)
        # Adjacent runs are merged too, so touching counts as overlapping.
        low = bisect_left(stops, start)
        high = bisect_right(starts, stop, low)
        if low == high:
            starts.insert(low, start)
            stops.insert(low, stop)
            added = stop - start
        else:
            start = min(start, starts[low])
            stop = max(stop, stops[high - 1])
            added = stop - start - self._size_of(low, high)
            starts[low:high] = [start]
            stops[low:high] = [stop]
        self._total += added
        return added

    def _extend_last(self, stop: int) -> int:
        """Grow the last run to *stop*: what a sequential download does all day."""
        added = stop - self._stops[-1]
        if added <= 0:
            return 0
        self._stops[-1] = stop
        self._total += added
        return added

    def remove(self, start: int, stop: int) -> int:
        """Take the range out; return how many bytes were here.

        Raises:
            ValueError: not ``0 <= start <= stop <= END``.
        """
        _check(start, stop)
        starts, stops = self._starts, self._stops
        low = bisect_right(stops, start)
        high = bisect_left(starts, stop, low)
        if start == stop or low == high:
            return 0
        # What sticks out on either side of the range survives.
        first, last = starts[low], stops[high - 1]
        kept = [(a, b) for a, b in ((first, start), (stop, last)) if a < b]
        removed = self._size_of(low, high) - sum(b - a for a, b in kept)
        starts[low:high] = [a for a, _ in kept]
        stops[low:high] = [b for _, b in kept]
        self._total -= removed
        return removed

    def _size_of(self, low: int, high: int) -> int:
        return sum(self._stops[low:high]) - sum(self._starts[low:high])

    def clear(self) -> None:
        """Forget every range."""
        self._starts.clear()
        self._stops.clear()
        self._total = 0

    def contains(self, start: int, stop: int) -> bool:
        """Return whether every byte of the range is here; an empty one always is."""
        return self.first_gap(start, stop) is None

    def __contains__(self, wanted: ByteRange) -> bool:
        return self.contains(*wanted)

    def run_stop(self, offset: int) -> int:
        """Return where the run containing *offset* ends: [offset, here) can be read.

        *offset* itself when that byte is missing.
        """
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def next_start(self, offset: int) -> int:
        """Return where the first run beginning at or after *offset* begins, or END."""
        index = bisect_left(self._starts, offset)
        return self._starts[index] if index < len(self._starts) else END

    def first_gap(self, start: int, stop: int) -> ByteRange | None:
        """Return the first missing part of the range, or None if all of it is here.

        Raises:
            ValueError: not ``0 <= start <= stop <= END``.
        """
        _check(start, stop)
        begin = self.run_stop(start)
        if begin >= stop:
            return None
        return ByteRange(begin, min(stop, self.next_start(begin)))

    def gaps(self, start: int, stop: int) -> Iterator[ByteRange]:
        """Yield the missing parts of the range, in order.

        Each step looks afresh, so the set may change between steps.
        """
        while (gap := self.first_gap(start, stop)) is not None:
            yield gap
            start = gap.stop

    def intersection(self, start: int, stop: int) -> Iterator[ByteRange]:
        """Yield the parts of the range that are here, in order.

        Each step looks afresh, so the set may change between steps.
        """
        _check(start, stop)
        while start < stop:
            run_stop = self.run_stop(start)
            if start < run_stop:
                yield ByteRange(start, min(stop, run_stop))
            start = self.next_start(run_stop)

    def difference(self, other: RangeSet) -> RangeSet:
        """Return what is in this set and not in *other*, as a new set."""
        return RangeSet(gap for run in self for gap in other.gaps(*run))

    @property
    def total(self) -> int:
        """Return the number of bytes present; kept, not counted."""
        return self._total

    @property
    def stop(self) -> int:
        """Return where the last run ends, 0 if there is none."""
        return self._stops[-1] if self._stops else 0

    def copy(self) -> RangeSet:
        """Return an independent copy."""
        twin = RangeSet()
        twin._starts[:] = self._starts
        twin._stops[:] = self._stops
        twin._total = self._total
        return twin

    def __iter__(self) -> Iterator[ByteRange]:
        return map(ByteRange, self._starts, self._stops)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    # Equal by value and changeable: a hash would go stale.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({', '.join(map(str, self))})"


def _check(start: int, stop: int) -> None:
    if not 0 <= start <= stop <= END:
        raise ValueError(f"not a byte range: [{start}, {stop})")
