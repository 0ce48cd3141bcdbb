"""What an entry is on disk, and in memory: row, machine and file in agreement.

:class:`StoredEntry` is the ground that :class:`cachefsm.entry.LiveEntry` stands
on. It moves the entry through its lifecycle, lets others wait for that, makes
received bytes durable before a row claims them, and starts a new generation when
the bytes are worth nothing any more. It knows nothing of who reads or fetches.

Lock order: registry, then entry, then the store's; the flush lock comes before
the entry's. File I/O happens under none but the flush lock. A method named
``_name`` is called with the entry's lock held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from .content import Content
from .errors import CacheError, EntryNotFound, RepresentationChanged, StorageError
from .freshness import VaryKey
from .integrity import BLOCK_BYTES, block_at, digest
from .lifecycle import PERSON, Lifecycle, Move
from .models import EntryRecord, StaleRow
from .ranges import END, ByteRange, RangeSet
from .records import BLANK, columns_of, failure_of, representation_of, vary_to_json
from .representation import Representation
from .states import ACTIVE, DownloadState
from .storage import ContentFile, content_name
from .surroundings import Durability, Surroundings, Transition
from .terms import Stored
from .urls import parse_url, redact
from .waiting import Waiters

__all__ = ["StoredEntry"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a look at stored blocks found: bytes checked, and blocks that differ."""

    checked_bytes: int
    damaged: tuple[ByteRange, ...]


class StoredEntry:
    """One entry's row, machine and content under one lock; see the module."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        # Write once.
        self.id = record.id
        self.key = record.key
        self._around = surroundings
        self._lock = threading.RLock()
        self._flush_lock = threading.Lock()
        # Read write, under the lock.
        self.url = parse_url(record.url)
        self.shown_url = redact(record.url)
        self._lifecycle = Lifecycle(surroundings.store, record)
        self._content = self._load_content(record)
        self._waiters = Waiters(self._lock)
        self._accesses = 0
        self._written_in_trouble = False
        self._failure: CacheError | None = None
        self._closed: CacheError | None = None

    def _load_content(self, record: EntryRecord) -> Content:
        store = self._around.store
        chunks = store.chunks(record.id)
        content = Content(
            self._around.make_file(self._around.directory / record.content_file),
            RangeSet(chunks),
            RangeSet(chunks),
            representation=representation_of(record),
            requested_s=record.requested_at or 0.0,
            received_s=record.validated_at or 0.0,
        )
        for start, blob in store.checksums(record.id).items():
            run = ByteRange(start, content.durable.run_stop(start))
            content.digests.unpack(run, blob, content.length)
        return content

    # -- looking ---------------------------------------------------------------

    @property
    def record(self) -> EntryRecord:
        """The row as this process last read or wrote it."""
        with self._lock:
            return self._lifecycle.record

    @property
    def state(self) -> DownloadState:
        """Where the download stands."""
        with self._lock:
            return self._lifecycle.state

    @property
    def content(self) -> Content:
        """The present generation's content."""
        with self._lock:
            return self._content

    def ranges(self) -> list[ByteRange]:
        """Return the present byte ranges, in order."""
        with self._lock:
            return list(self._content.present)

    def has(self, start: int, stop: int) -> bool:
        """Say whether ``[start, stop)``, clipped to the file, is here."""
        with self._lock:
            return self._content.has(start, stop)

    def stored_until(self, content: Content, position: int, stop: int) -> int:
        """Return where the stored run at *position* ends, or *position*; at most *stop*."""
        with self._lock:
            return min(content.present.run_stop(position), max(position, stop))

    def open_file(self, content: Content) -> None:
        """Open the content's file, so that what is present stays readable until released.

        Raises:
            CacheError: it is gone, because the entry was removed or moved on; or
                it cannot be opened.
        """
        try:
            content.file.fileno()
        except StorageError:
            with self._lock:
                cause = self._closed or content.superseded
            if cause is None:
                raise
            raise cause.again() from None

    def failure(self) -> CacheError | None:
        """Return why the entry failed, or None if it has not."""
        with self._lock:
            if self._lifecycle.state is not DownloadState.FAILED:
                return None
            return self._failure or failure_of(self._lifecycle.record)

    # -- waiting ---------------------------------------------------------------

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        timeout_s: float | None,
        content: Content | None = None,
    ) -> bool:
        """Return True once *ready*, which runs under the lock, says so; False on timeout.

        Raises:
            CacheError: it can no longer become true: the entry failed, *content*
                was superseded, or the cache closed. Raised at once, with the cause.
        """
        with self._lock:
            return self._waiters.wait(
                ready, lambda deadline_s: self._hopeless(content, deadline_s), timeout_s
            )

    def wake(self) -> None:
        """Let every waiter look again: something outside the entry has changed."""
        with self._lock:
            self._waiters.wake_all()

    # -- changing --------------------------------------------------------------

    def invalidate(self, reason: str) -> None:
        """Drop the stored bytes: the representation changed, rotted or is evicted.

        Readers keep what this generation holds; what is missing will not come.
        """
        with self._lock:
            old = self._invalidate(reason)
        old.discard()
        self._around.on_change(self)

    def update(self, **columns: Any) -> None:
        """Write columns that are no part of the lifecycle, such as ``pinned``."""
        with self._lock:
            self._write(**columns)

    def recover(self) -> None:
        """Bring an entry that a stopped process left active to its defined state."""
        with self._lock:
            self._send("recover", reason="recovered")

    def rest(self, reason: str) -> None:
        """Pause an active entry because the cache closes."""
        with self._lock:
            if self._lifecycle.state in ACTIVE:
                self._send("pause", reason=reason)

    def close(self, cause: CacheError) -> None:
        """Stop its streams and fail its waiters with *cause*; nothing more is accepted."""
        with self._lock:
            self._closed = cause
            self._stop_filling()
            self._waiters.wake_all()

    def remove(self) -> None:
        """Delete the row; whoever is still here is told that the entry is gone.

        Raises:
            StorageError: the database refused; nothing has changed.
        """
        with self._lock:
            self._around.store.delete(self.id)
            self.close(EntryNotFound(f"entry {self.id} was removed"))

    def release_file(self) -> None:
        """Close the content file once nobody else has it open."""
        self.content.file.release()

    # -- integrity -------------------------------------------------------------

    def check_file(self) -> None:
        """Compare the file's size with what should be in it; drop what cannot be there."""
        with self._lock:
            content = self._content
            content.file.retain()
            stored = max((stop for _, stop in content.present), default=0)
        try:
            # After the look at what is present: bytes are in the file before that.
            size = content.file.size()
        finally:
            content.file.release()
        if stored > (size or 0):
            found = "is gone" if size is None else f"ends at {size}, not {stored}"
            self.drop(content, [ByteRange(size or 0, stored)], f"the content file {found}")

    def damaged(
        self,
        content: Content,
        start: int,
        stop: int,
        chosen: Callable[[int], bool] = lambda _index: True,
    ) -> Found:
        """Compare the blocks touching ``[start, stop)`` with what was stored.

        Only blocks that have a checksum and that *chosen* picks, by number, are read.
        """
        with self._lock:
            length = content.length
            known = {
                index: content.digests[index]
                for index in content.digests.within(start, stop, length)
                if chosen(index)
            }
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
        """Forget damaged ranges of *content*, keep the rest; nothing if it is superseded.

        That is a new generation of the same file: whoever reads it waits for those
        ranges to be fetched again. Where they could not be joined to the rest, or
        nothing is left, all of it goes.

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
        with self._lock:
            if content is not self._content:
                return
            durable, present = content.durable.copy(), content.present.copy()
            for start, stop in ranges:
                durable.remove(start, stop)
                present.remove(start, stop)
            if present == content.present:
                return  # somebody else found the same damage
            record, old = self._lifecycle.record, None
            if content.joinable and (present or same_file):
                self._keep(content, durable, reason)
            else:
                old = self._invalidate(reason)
            # Only now, and for whoever still reads it too: had the database refused,
            # the damaged blocks would have to stay known as such.
            content.durable, content.present = durable, present
            for start, stop in ranges:
                content.digests.forget(start, stop)
            if record.state == DownloadState.PAUSED and record.state_reason == PERSON:
                self._send("initialize")
                self._send("pause", reason=PERSON)  # damage does not end a person's pause
        if old is not None:
            old.discard()
        else:
            # A power loss must not bring the old rows back once the same file has
            # grown beyond the damage: they would claim what was a hole in between.
            self._around.store.sync()

    def _keep(self, content: Content, durable: RangeSet, reason: str) -> None:
        """Move to a generation that has only *durable* of the same content."""
        left = tuple(durable)
        self._leave_not_started()
        self._send(
            "invalidate",
            reason=reason,
            columns={"bytes_present": durable.total, "error_status": None, "retry_at": None},
            chunks=left,
            checksums=self._pack(content, left),
        )
        self._stop_filling()

    # -- flushing --------------------------------------------------------------

    def flush(self) -> None:
        """Make what was written durable, then record it; finish the entry if that is all.

        Raises:
            StorageError: the disk or the database refused; nothing is recorded.
        """
        with self._flush_lock:
            with self._lock:
                content = self._content
                fresh = content.present.difference(content.durable)
                content.file.retain()
            try:
                if fresh and self._around.policy.durability is Durability.POWER:
                    self._sync(content, fresh)
                learnt = self._digest(content, fresh)
                self._record_progress(content, fresh, learnt)
                self._record_accesses()
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
            content.file.flush()
        except StorageError as error:
            # The system may have forgotten those pages, so the next sync would
            # succeed and cover nothing: they have to be written again, after a rest.
            self._around.trouble.note(error)
            self._drop(content, tuple(fresh), "the disk refused to keep them", same_file=True)
            with self._lock:
                self._hold_off(error)
            self._around.on_change(self)
            raise

    def _digest(self, content: Content, fresh: RangeSet) -> list[ByteRange]:
        """Learn the checksums of the blocks that *fresh* bytes made whole; return those blocks."""
        # Takes the lock itself: called with only the flush lock held.
        with self._lock:
            length = content.length
            touched = {
                index
                for start, stop in fresh
                for index in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
            }
            if 0 < length < END:
                # It may be whole only since the length is known, with no byte added.
                touched.add((length - 1) // BLOCK_BYTES)
            missing = [
                index
                for index in touched
                if index not in content.digests
                and content.present.contains(*block_at(index, length))
            ]
        found = {index: _digest_of(content.file, block_at(index, length)) for index in missing}
        known = {index: value for index, value in found.items() if value is not None}
        with self._lock:
            content.digests.update(known)
        return [block_at(index, length) for index in known]

    def _record_progress(self, content: Content, fresh: RangeSet, learnt: list[ByteRange]) -> None:
        # Takes the lock itself: called with only the flush lock held.
        with self._lock:
            if content is not self._content:
                return  # invalidated meanwhile: those bytes are gone
            durable = content.durable.copy()
            for start, stop in fresh:
                durable.add(start, stop)
            grown = tuple(
                run
                for run in durable
                if not content.durable.contains(*run)
                or any(run.start <= block.start and block.stop <= run.stop for block in learnt)
            )
            if durable.total == content.complete_length and self._may_finish():
                self._send(
                    "finish",
                    durable_bytes=durable.total,
                    complete_length=content.complete_length,
                    columns={"bytes_present": durable.total},
                    chunks=grown,
                    checksums=self._pack(content, grown),
                )
                content.durable = durable
                self._finished()
            elif grown:
                self._save_chunks(content, grown, durable.total)
                content.durable = durable

    def _record_accesses(self) -> None:
        # Takes the lock itself. Counted in memory first: a player's hundred ranges
        # a second need not be a hundred transactions.
        with self._lock:
            if self._accesses:
                count = self._lifecycle.record.access_count + self._accesses
                self._write(access_count=count, last_accessed_at=self._around.clock())
                self._accesses = 0

    # -- with the lock held ----------------------------------------------------

    def _send(self, event: str, *, reason: str | None = None, **facts: Any) -> None:
        """Move by *event*; everybody who waits looks again, everybody who listens is told."""
        source = self._lifecycle.state
        move = Move(reason=reason, now_s=self._around.clock(), **facts)
        try:
            self._lifecycle.send(event, move)
        finally:
            self._waiters.wake_all()
        target = self._lifecycle.state
        if target is not DownloadState.FAILED:
            self._failure = None
            self._around.negatives.forget(self.id)
        why = f" ({reason})" if reason else ""
        _log.info("%s %s %s -> %s%s", self.shown_url, event, source, target, why)
        self._around.on_transition(
            Transition(self.id, self.shown_url, event, source, target, reason)
        )

    def _fail(
        self, error: CacheError, *, event: str = "fail", reason: str | None = None, rest_s: float
    ) -> None:
        """Move to failed: streams end, waiters hear *error*, new readers wait *rest_s*."""
        self._send(
            event,
            reason=reason or str(error),
            columns={
                "retry_at": self._around.clock() + rest_s,
                "error_status": error.status_hint,
            },
        )
        self._failure = error
        self._stop_filling()
        self._finished()
        self._waiters.wake_all()

    def _invalidate(self, reason: str) -> ContentFile:
        """Move to a new, empty generation; return the old file, to be discarded."""
        name = content_name(self.key)
        self._leave_not_started()
        self._send(
            "invalidate",
            reason=reason,
            columns={**BLANK, "content_file": name},
        )
        self._stop_filling()
        old, self._content = (
            self._content,
            Content(self._around.make_file(self._around.directory / name)),
        )
        old.superseded = self._superseded(reason)
        old.file.release()
        self._waiters.wake_all()
        return old.file

    def _leave_not_started(self) -> None:
        """Make the next invalidation a legal move: bytes may be left from the last one."""
        if self._lifecycle.state is DownloadState.NOT_STARTED:
            self._send("initialize")

    def _learn(
        self,
        content: Content,
        new: Representation,
        *,
        asked_at_s: float | None = None,
        selected_by: VaryKey | None = None,
    ) -> None:
        """Write what an answer told of the representation, with the move where there is one.

        *asked_at_s* is when it was asked for, None if nobody did: the stored response
        is then no younger than before. *selected_by* says what it was selected by.
        """
        old, now_s = content.representation, self._around.clock()
        if old is not None and old.complete_length is not None and new.complete_length is None:
            new = replace(new, complete_length=old.complete_length)
        told = Stored(new, content.requested_s, content.received_s)
        if asked_at_s is not None or old is None:
            told = Stored(new, now_s if asked_at_s is None else asked_at_s, now_s)
        columns = columns_of(told)
        if selected_by is not None:
            columns["vary"] = vary_to_json(selected_by)
        if self._lifecycle.state is DownloadState.INITIALIZING:
            self._send("begin", columns=columns)
        else:
            self._write(**columns)
        content.representation = new
        content.requested_s, content.received_s = told.requested_s, told.received_s
        if asked_at_s is not None:
            content.confirmed_s = self._around.ticks()

    def _write(self, **columns: Any) -> None:
        record = self._lifecycle.record
        try:
            self._lifecycle.refresh(self._around.store.update(record, **columns))
        except StaleRow:
            self._lifecycle.reload()
            raise

    def _pack(self, content: Content, runs: tuple[ByteRange, ...]) -> dict[int, bytes]:
        blobs = {run.start: content.digests.pack(run, content.length) for run in runs}
        return {start: blob for start, blob in blobs.items() if blob}

    def _save_chunks(
        self, content: Content, chunks: tuple[ByteRange, ...], bytes_present: int
    ) -> None:
        try:
            record = self._around.store.save_chunks(
                self._lifecycle.record,
                chunks,
                bytes_present=bytes_present,
                now_s=self._around.clock(),
                checksums=self._pack(content, chunks),
            )
        except StaleRow:
            self._lifecycle.reload()
            raise
        self._lifecycle.refresh(record)

    def _hopeless(self, content: Content | None, deadline_s: float | None) -> CacheError | None:
        """Return why waiting for *content* until *deadline_s* is in vain, or None."""
        if self._closed is not None:
            return self._closed
        if content is not None and content.superseded is not None:
            return content.superseded
        return self.failure()

    # What the layer above does when the ground moves.

    def _hold_off(self, error: CacheError) -> None:
        """Begin no new attempt for a while."""

    def _may_finish(self) -> bool:
        return self._lifecycle.state in ACTIVE

    def _finished(self) -> None:
        """Nothing more is to be fetched: complete, failed or cancelled."""

    def _stop_filling(self) -> None:
        """No byte may be added to the present content any more."""

    def _superseded(self, reason: str) -> CacheError:
        return RepresentationChanged(reason)


def _digest_of(file: ContentFile, block: ByteRange) -> int | None:
    """Return the checksum of what the file holds there, None where it holds nothing."""
    try:
        return digest(file.read_at(block.start, block.size))
    except StorageError:
        return None
