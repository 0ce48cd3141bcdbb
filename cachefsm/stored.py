"""The content file of an entry, and which of its bytes the row may claim.

Received bytes are made durable before the row claims them. Blocks are compared with
their checksums, and bytes that are damaged or gone are dropped. Nothing here knows who
reads or fetches.

Lock order: the flush lock comes before the entry's. File I/O happens under the flush lock
or under none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .content import Content
from .errors import CacheError, StorageError
from .integrity import BLOCK_BYTES, block_at, digest
from .models import EntryRecord
from .moving import MovingEntry
from .ranges import ByteRange, RangeSet
from .states import ACTIVE
from .storage import ContentFile
from .surroundings import Durability, Surroundings

__all__ = ["StoredEntry"]


@dataclass(frozen=True)
class Found:
    """The result of comparing blocks with their checksums: bytes checked, ranges that differ."""

    checked_bytes: int
    damaged: tuple[ByteRange, ...]


class StoredEntry(MovingEntry):
    """An entry whose file is written, synced and checked."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        super().__init__(record, surroundings)
        # Write once.
        self._flush_lock = threading.Lock()
        # Read write, under the entry's lock.
        self._accesses = 0
        self._written_in_trouble = False

    # -- integrity -------------------------------------------------------------

    def check_file(self) -> None:
        """Drop ranges that lie beyond the end of the file, as when it was truncated."""
        with self._lock:
            if self._removed:
                return  # and so is its file
            content = self._content
            content.file.retain()
            stored = content.present.stop
        try:
            # After the look at what is present: bytes are in the file before that.
            size = content.file.size()
        finally:
            content.file.release()
        if stored > (size or 0):
            found = "is gone" if size is None else f"ends at {size}, not {stored}"
            self.drop(content, [ByteRange(size or 0, stored)], f"the content file {found}")
            stored = 0
        content.file.accept_end(size or 0, stored)

    def damaged(
        self,
        content: Content,
        start: int,
        stop: int,
        chosen: Callable[[int], bool] = lambda _index: True,
    ) -> Found:
        """Compare the blocks touching ``[start, stop)`` with their checksums.

        Reads only blocks that have a checksum and for whose number *chosen* returns True.
        """
        with self._lock:
            length = content.length
            known = {
                index: content.digests[index]
                for index in content.digests.within(start, stop, length)
                if chosen(index)
            }
            if not known:
                return Found(0, ())
            content.file.retain()
        blocks = {block_at(index, length): expected for index, expected in known.items()}
        try:
            damaged = tuple(
                block
                for block, expected in blocks.items()
                if _digest_of(content.file, block) != expected
            )
        finally:
            content.file.release()
        checked = sum(min(block.stop, stop) - max(block.start, start) for block in blocks)
        return Found(checked, damaged)

    def drop(self, content: Content, damaged: Iterable[ByteRange], reason: str) -> None:
        """Drop damaged ranges of *content* and keep the rest; do nothing if it is superseded.

        That begins a new generation with the same file, and its readers wait for those
        ranges to be fetched again. If new bytes could not be joined to the rest, or there
        is no rest, everything is dropped.

        Raises:
            StorageError: the database refused; nothing has changed.
        """
        with self._flush_lock:
            self._drop(content, tuple(damaged), reason)
        self._around.on_change(self)

    def _drop(
        self,
        content: Content,
        ranges: tuple[ByteRange, ...],
        reason: str,
        *,
        same_file: bool = False,
    ) -> None:
        # Takes the lock itself: called with only the flush lock held.
        with self._letting_go():
            if content is not self._content or self._removed:
                return
            durable, present = content.without(ranges)
            if present == content.present:
                return  # somebody else found the same damage
            keeps = content.joinable and bool(present or same_file)
            # Damage does not end a person's pause.
            if keeps:
                self._keep(content, durable, reason)
            else:
                self._invalidate(reason, keeps_pause=True)
            # Only now, and for whoever still reads it too: had the database refused,
            # the damaged blocks would have to stay known as such.
            content.durable, content.present = durable, present
            for start, stop in ranges:
                content.digests.forget(start, stop)
        if keeps:
            # A power loss must not bring the old rows back once the same file has
            # grown beyond the damage: they would claim what was a hole in between.
            self._around.store.sync()

    def _keep(self, content: Content, durable: RangeSet, reason: str) -> None:
        """Move to a generation that has only *durable* of the same content."""
        left = tuple(durable)
        self._send_invalidate(
            reason,
            keeps_pause=True,
            columns={"bytes_present": durable.total, "error_status": None, "retry_at": None},
            chunks=left,
            checksums=content.checksums(left),
        )
        self._stop_filling()

    # -- flushing --------------------------------------------------------------

    def flush(self) -> None:
        """Make the written bytes durable, then record them; finish the entry if it is whole.

        Raises:
            StorageError: the disk or the database refused; nothing is recorded.
        """
        with self._flush_lock:
            with self._lock:
                if self._removed:
                    return  # there is no row to record anything in
                content = self._content
                fresh = content.present.difference(content.durable)
                content.file.retain()
            try:
                if fresh and self._around.policy.durability is Durability.POWER:
                    self._sync(content, fresh)
                digested = self._digest(content, fresh)
                self._record_news()
                self._record_progress(content, fresh, digested)
            except StorageError as error:
                self._around.trouble.note(error)
                raise
            finally:
                content.file.release()

        if fresh:
            self._around.on_change(self)  # a demand for just these bytes is over now
        if self._written_in_trouble:
            # Bytes were written after the refusal, and recorded: the disk is well again.
            self._written_in_trouble = False
            self._around.trouble.over()

    def _sync(self, content: Content, fresh: RangeSet) -> None:
        # Called with only the flush lock held.
        try:
            if content.lost is not None:
                raise content.lost.again()
            content.file.flush()
        except StorageError as error:
            # The system may have forgotten those pages, so the next sync would
            # succeed and cover nothing: they have to be written again, after a rest.
            content.lost = error
            self._around.trouble.note(error)
            self._drop(content, tuple(fresh), "the disk refused to keep them", same_file=True)
            content.lost = None
            with self._lock:
                self._hold_off(error)
            self._around.on_change(self)
            raise

    def _digest(self, content: Content, fresh: RangeSet) -> list[ByteRange]:
        """Compute the checksums of the blocks that *fresh* bytes made whole; return the blocks."""
        # Takes the lock itself: called with only the flush lock held.
        with self._lock:
            missing = content.undigested(fresh)
        found = {block: _digest_of(content.file, block) for block in missing}
        known = {block: value for block, value in found.items() if value is not None}
        with self._lock:
            content.digests.update(
                {block.start // BLOCK_BYTES: value for block, value in known.items()}
            )
        return list(known)

    def _record_progress(
        self, content: Content, fresh: RangeSet, digested: list[ByteRange]
    ) -> None:
        # Takes the lock itself: called with only the flush lock held.
        with self._lock:
            if content is not self._content or self._removed:
                return  # meanwhile: those bytes are gone
            durable, grown = content.with_durable(fresh, digested)
            if durable.total == content.complete_length and self._may_finish():
                self._send(
                    "finish",
                    durable_bytes=durable.total,
                    complete_length=content.complete_length,
                    columns={"bytes_present": durable.total},
                    chunks=grown,
                    checksums=content.checksums(grown),
                    ends_demands=True,
                )
                content.durable = durable
                self._finished()
            elif grown:
                self._lifecycle.save_chunks(
                    grown,
                    bytes_present=durable.total,
                    now_s=self._around.clock(),
                    checksums=content.checksums(grown),
                )
                content.durable = durable

    def _record_news(self) -> None:
        # Takes the lock itself. Kept in memory first: a player's hundred ranges a second
        # need not be a hundred transactions. Before the bytes, which came with it.
        with self._lock:
            columns = dict(self._unwritten)
            if self._accesses:
                columns["access_count"] = self._lifecycle.record.access_count + self._accesses
                columns["last_accessed_at"] = self._around.clock()
            if columns and not self._removed:
                self._write(**columns)
                self._accesses, self._unwritten = 0, {}

    def _publish(
        self, content: Content, written: Iterable[ByteRange], generation: int | None
    ) -> int:
        """Let *written* bytes be read; return how many are new.

        Not where others were dropped since *generation*: these may be lost like those, as
        they may have been written before.
        """
        if generation != self._lifecycle.record.generation:
            return 0
        return sum(content.present.add(start, stop) for start, stop in written)

    # -- what the layer above does when the ground moves -----------------------

    def _hold_off(self, error: CacheError) -> None:
        """Begin no new attempt for a while."""

    def _may_finish(self) -> bool:
        return self._lifecycle.state in ACTIVE


def _digest_of(file: ContentFile, block: ByteRange) -> int | None:
    """Return the checksum of the block as the file holds it, None if the file ends before it."""
    try:
        return digest(file.read_at(block.start, block.size))
    except StorageError:
        return None
