"""The stored bytes of one generation of an entry: the file and what of it is there.

A plain record without a lock: it is read and written under the lock of the entry
that owns it, except for the file's positional reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .errors import CacheError, StorageError
from .integrity import BLOCK_BYTES, Digests, block_at
from .ranges import END, ByteRange, RangeSet
from .representation import Representation
from .storage import ContentFile
from .terms import Stored

__all__ = ["Content"]


@dataclass(eq=False)
class Content:
    """One generation's file, and which of its bytes are there.

    ``present`` bytes are in the file and may be served; ``durable`` ones are also synced
    and recorded in the database, and the whole blocks among them have their checksum in
    ``digests``. ``superseded`` is set once the entry has moved on to another generation:
    readers of this one may still read what is present, but missing bytes will never come.
    ``requested_s`` and ``received_s`` say in Unix time when the origin was last asked and
    when it answered; ``confirmed_s`` is the time of that answer on the monotonic clock, if
    it came in this process.
    """

    file: ContentFile
    present: RangeSet = field(default_factory=RangeSet)
    durable: RangeSet = field(default_factory=RangeSet)
    digests: Digests = field(default_factory=Digests)
    representation: Representation | None = None
    requested_s: float = 0.0
    received_s: float = 0.0
    confirmed_s: float = float("-inf")
    superseded: CacheError | None = None
    lost: StorageError | None = None  # what a sync failed with, until what it was for is dropped
    path: str = ""  # of the URL, without the query: its ending may tell what this is
    asked_past_end: bool = False  # the first question was; the next comes from the front
    ask_plainly: bool = False  # without Range: of no bytes, no part can be asked for

    @property
    def stored(self) -> Stored | None:
        """What is known of the stored response, or None before the first answer."""
        if self.representation is None:
            return None
        return Stored(self.representation, self.requested_s, self.received_s, self.path)

    @property
    def complete_length(self) -> int | None:
        """The representation's length in bytes, or None while it is unknown."""
        return self.representation.complete_length if self.representation else None

    @property
    def length(self) -> int:
        """The representation's length in bytes, or END while it is unknown."""
        complete_length = self.complete_length
        return END if complete_length is None else complete_length

    @property
    def joinable(self) -> bool:
        """Whether bytes of several answers may be joined, as far as is known."""
        return self.representation is None or self.representation.joinable

    @property
    def is_here(self) -> bool:
        """Whether the length is known and every byte is present."""
        return self.present.total == self.complete_length

    @property
    def is_whole(self) -> bool:
        """Whether the length is known and every byte is durable."""
        return self.durable.total == self.complete_length

    @property
    def dirty_bytes(self) -> int:
        """How many present bytes are not durable yet."""
        return self.present.total - self.durable.total

    def has(self, start: int, stop: int) -> bool:
        """Say whether ``[start, stop)``, as far as there are such bytes, is present."""
        stop = min(stop, self.length)
        return stop <= start or self.present.contains(start, stop)

    def without(self, ranges: Iterable[ByteRange]) -> tuple[RangeSet, RangeSet]:
        """Return the durable and the present bytes outside of *ranges*, as two new sets."""
        durable, present = self.durable.copy(), self.present.copy()
        for start, stop in ranges:
            durable.remove(start, stop)
            present.remove(start, stop)
        return durable, present

    def undigested(self, fresh: RangeSet) -> list[ByteRange]:
        """Return the whole blocks that contain *fresh* bytes and have no checksum yet."""
        length = self.length
        touched = {
            index
            for start, stop in fresh
            for index in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        }
        if 0 < length < END:
            # It may be whole only since the length is known, with no byte added.
            touched.add((length - 1) // BLOCK_BYTES)
        blocks = (block_at(index, length) for index in touched if index not in self.digests)
        return [block for block in blocks if self.present.contains(*block)]

    def with_durable(
        self, fresh: RangeSet, digested: Iterable[ByteRange]
    ) -> tuple[RangeSet, tuple[ByteRange, ...]]:
        """Return the durable bytes once *fresh* ones are, and which runs must be recorded.

        Those are the runs that have grown, or in which blocks were newly *digested*.
        """
        durable = self.durable.copy()
        for start, stop in fresh:
            durable.add(start, stop)
        blocks = list(digested)
        grown = tuple(
            run
            for run in durable
            if not self.durable.contains(*run)
            or any(run.start <= block.start and block.stop <= run.stop for block in blocks)
        )
        return durable, grown

    def checksums(self, runs: Iterable[ByteRange]) -> dict[int, bytes]:
        """Return the checksums of each run's blocks, packed, by the run's start."""
        blobs = {run.start: self.digests.pack(run, self.length) for run in runs}
        return {start: blob for start, blob in blobs.items() if blob}
