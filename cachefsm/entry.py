"""A live entry: row, file and machine under one lock, where threads meet.

Downloaders bring bytes, readers wait for them, people give orders, the conductor
decides who fetches what; all of them come here. Lock order: registry, then
entry, then the store's. File and origin I/O happen under none of them.

Waiting. Each waiter has a predicate and a Condition of its own on the entry's
one lock. Whoever changes something that a predicate reads does so under the lock
and calls :meth:`LiveEntry._wake` before letting go, which notifies the waiters
whose predicate now holds: no polling, no wake-up lost, and no herd (one shared
Condition takes 747 µs to wake 64 waiters, most of them for nothing).

A method named ``_name`` is called with the lock held.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from .content import Claim, Content, Demand, RateMeter
from .demands import READER, Demands, Fill
from .errors import (
    CacheError,
    DownloadCancelled,
    OriginError,
    OriginStatus,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)
from .lifecycle import PERSON, Lifecycle, Move
from .models import EntryRecord, QueueRecord, StaleRow, Store
from .ranges import END, ByteRange, RangeSet
from .retries import RetryPolicy
from .scheduler import EntryView, Limits, Open, Priority, Want, served_soon
from .acceptance import Answer, Representation
from .semantics import Validator
from .states import ACTIVE, DownloadState
from .storage import ContentFile, content_name, remove_content
from .urls import parse_url, redact

__all__ = ["EntryPolicy", "LiveEntry", "Transition"]

_log = logging.getLogger(__name__)

FLUSH_BYTES: Final = 16 << 20
"""Unsynced bytes at which a flush is asked for at once. A coalesced range row
every 16 MiB costs about 4 ms/GiB; a row per 256 KiB would cost 305 ms/GiB."""


@dataclass(frozen=True)
class EntryPolicy:
    """What every entry of one cache goes by; sizes in bytes, times in seconds."""

    fill: Fill = Fill.REST
    grace_s: float = 10.0
    playable_head_bytes: int = 1 << 20
    playable_tail_bytes: int = 256 << 10
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Transition:
    """One move of one entry, after it was committed."""

    entry_id: int
    url: str
    event: str
    source: DownloadState
    target: DownloadState
    reason: str | None


class _Waiter:
    def __init__(self, ready: Callable[[], bool], lock: threading.RLock) -> None:
        self.ready = ready
        self.refusal: CacheError | None = None
        self.condition = threading.Condition(lock)


class LiveEntry:
    """One entry while anybody reads it, fetches it or gives it orders."""

    def __init__(
        self,
        record: EntryRecord,
        chunks: list[ByteRange],
        *,
        store: Store,
        directory: Path,
        policy: EntryPolicy,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        on_change: Callable[[LiveEntry], None] = lambda entry: None,
        on_dirty: Callable[[LiveEntry, bool], None] = lambda entry, urgent: None,
        on_transition: Callable[[Transition], None] = lambda transition: None,
    ) -> None:
        # Write once.
        self.id = record.id
        self.key = record.key
        self.url = parse_url(record.url)
        self.shown_url = redact(record.url)
        self._store = store
        self._directory = directory
        self._policy = policy
        self._clock = clock
        self._ticks = ticks
        self._on_change = on_change
        self._on_dirty = on_dirty
        self._on_transition = on_transition
        self._lock = threading.RLock()
        self._flush_lock = threading.Lock()  # taken before the entry's lock, never after
        # Read write, under the lock.
        self._lifecycle = Lifecycle(store, record)
        self._content = Content(
            ContentFile(directory / record.content_file),
            RangeSet(chunks),
            RangeSet(chunks),
            _stored_representation(record),
        )
        self._claims: dict[int, Claim] = {}
        self._demands = Demands(policy.fill, policy.grace_s)
        self._waiters: list[_Waiter] = []
        self._failure: CacheError | None = None
        self._closed: CacheError | None = None
        self._attempts = 0
        self._not_before_s = 0.0
        self._readers = 0
        self._accesses = 0
        self._file_checked = not chunks
        self._meter = RateMeter(ticks())

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

    @property
    def is_busy(self) -> bool:
        """Whether anybody reads, fetches or wants it: it must stay in memory."""
        with self._lock:
            return bool(
                self._readers
                or self._claims
                or self._waiters
                or self._demands
                or self._lifecycle.state in ACTIVE
                or self._dirty()
            )

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

    def is_playable(self) -> bool:
        """Say whether enough is here to start playing: a head, and a tail.

        MP4 and MKV keep their index at either end. Where the length is unknown,
        or the origin cannot be asked for ranges, the head has to do.
        """
        with self._lock:
            return all(self._content.has(start, stop) for start, stop in self._playable_ranges())

    def failure(self) -> CacheError | None:
        """Return why the entry failed, or None if it has not."""
        with self._lock:
            if self._lifecycle.state is not DownloadState.FAILED:
                return None
            return self._failure or _remembered_failure(self._lifecycle.record)

    def describe(self) -> dict[str, Any]:
        """Return what may be shown of it, as JSON values; no secrets."""
        with self._lock:
            record, content, now_s = self._lifecycle.record, self._content, self._ticks()
            return {
                "id": record.id,
                "url": self.shown_url,
                "state": record.state,
                "reason": record.state_reason,
                "since": record.state_since,
                "total_size": content.complete_length,
                "downloaded_bytes": content.present.total,
                "ranges": [[start, stop] for start, stop in content.present],
                "playable": self.is_playable(),
                "rate_bytes_s": round(self._meter.rate_bytes_s(now_s)) if self._claims else 0,
                "streams": [
                    {"position": claim.position, "stop": None if claim.stop == END else claim.stop}
                    for claim in self._claims.values()
                ],
                "readers": self._readers,
                "asked_by": sorted(self._demands.askers),
                "pinned": record.pinned,
                "generation": record.generation,
                "created_at": record.created_at,
                "last_accessed_at": record.last_accessed_at,
                "access_count": record.access_count,
                "content_type": _field(content.representation, "content-type"),
            }

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
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            waiter = _Waiter(ready, self._lock)
            self._waiters.append(waiter)
            try:
                while not ready():
                    hopeless = waiter.refusal or self._hopeless(content)
                    if hopeless is not None:
                        raise hopeless
                    left_s = None if deadline_s is None else deadline_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        return False
                    waiter.condition.wait(left_s)
                return True
            finally:
                self._waiters.remove(waiter)

    def wake(self) -> None:
        """Let every waiter look again: something outside the entry has changed."""
        with self._lock:
            self._wake(everyone=True)

    def wait_for(self, start: int, stop: int, timeout_s: float | None) -> bool:
        """Wait until ``[start, stop)`` is here, and see to it that it is fetched."""
        return self._wait_wanting([(start, stop)], lambda: self._content.has(start, stop), timeout_s)

    def wait_playable(self, timeout_s: float | None) -> bool:
        """Wait until :meth:`is_playable`, fetching head and tail first."""
        head, tail = self._policy.playable_head_bytes, self._policy.playable_tail_bytes
        started = time.monotonic()
        if not self._wait_wanting(
            [(0, head)], lambda: self._content.representation is not None, timeout_s
        ):
            return False
        with self._lock:
            length = self._content.length
        wanted = [(0, head)] if length == END else [(0, head), (max(0, length - tail), length)]
        left_s = None if timeout_s is None else timeout_s - (time.monotonic() - started)
        return self._wait_wanting(wanted, self.is_playable, left_s)

    def wait_complete(self, timeout_s: float | None) -> bool:
        """Wait until every byte is here and durable."""
        return self._wait_wanting(
            [(0, END)],
            lambda: self._lifecycle.state is DownloadState.COMPLETE,
            timeout_s,
            Priority.PERSON,
        )

    # -- readers ---------------------------------------------------------------

    def attach(self) -> Content:
        """Count a reader in and return the content it reads; :meth:`detach` it later.

        A failed entry is retried if its back-off has passed; one whose file is
        gone or too short is invalidated first.

        Raises:
            CacheError: it has failed and must rest, or the cache is closing.
        """
        if not self._file_checked:
            self._check_file()
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self._revive()
            self._readers += 1
            self._accesses += 1
            self._content.file.retain()
            content = self._content
        self._on_dirty(self, False)
        return content

    def detach(self, content: Content) -> None:
        """Count a reader out."""
        with self._lock:
            self._readers -= 1
        content.file.release()
        self._on_change(self)

    def want(self, start: int, stop: int) -> Demand:
        """Register a reader's demand for ``[start, stop)``."""
        with self._lock:
            demand = self._demands.add_reader(start, stop)
        self._on_change(self)
        return demand

    def unwant(self, demand: Demand, *, linger: bool = True) -> None:
        """Let a reader's demand go, after the grace if it may *linger*."""
        with self._lock:
            self._demands.drop_reader(demand, self._ticks(), linger=linger)
        self._on_change(self)

    def move_want(self, demand: Demand, start: int, stop: int, *, blocked: bool) -> None:
        """Tell where a reader is, how far it wants to be served, and whether it waits."""
        with self._lock:
            was_blocked = demand.priority is Priority.BLOCKED
            demand.start, demand.stop = start, stop
            demand.priority = Priority.BLOCKED if blocked else Priority.READ_AHEAD
            if blocked:
                changed = not was_blocked and not self._served_soon(start)
            else:
                # Look ahead only when half the window is neither here nor promised.
                middle = (start + min(stop, self._content.length)) // 2
                changed = not self._content.has(start, middle) and not self._claimed(middle)
        if changed:
            self._on_change(self)

    # -- orders ----------------------------------------------------------------

    def start(self, asked_by: str, priority: Priority, start: int = 0, stop: int = END) -> None:
        """Put the entry in the queue on somebody's behalf; a pause or failure ends."""
        with self._lock:
            if self._lifecycle.state is DownloadState.COMPLETE:
                return
            if self._lifecycle.state is DownloadState.PAUSED:
                self._send("resume", asked_by=PERSON)
            elif self._lifecycle.state is DownloadState.FAILED:
                self._send("retry", asked_by=PERSON)
            self._demands.add(asked_by, priority, start, stop)
            self._enqueue(asked_by, priority, start, stop)
        self._on_change(self)

    def pause(self) -> None:
        """Hold the download until a person resumes it; raises IllegalMove."""
        with self._lock:
            self._send("pause", reason=PERSON)
            self._cancel_claims()
        self._on_dirty(self, True)

    def resume(self) -> None:
        """Go on with a paused download, to its end; raises IllegalMove."""
        self._order("resume")

    def retry(self) -> None:
        """Go on with a failed download, keeping what is stored; raises IllegalMove."""
        self._order("retry")

    def cancel(self) -> None:
        """Give the download up; what is stored stays; raises IllegalMove."""
        with self._lock:
            self._fail(
                DownloadCancelled("a person cancelled the download"),
                event="cancel",
                reason="cancelled",
                rest_s=self._policy.retries.cancelled_s,
            )
        self._on_dirty(self, True)

    def invalidate(self, reason: str) -> None:
        """Drop the stored bytes: the representation changed, rotted or is evicted.

        Readers keep what this generation holds; what is missing will not come.
        """
        with self._lock:
            old = self._invalidate(RepresentationChanged(reason), reason)
        remove_content(old)
        self._on_change(self)

    def evict(self) -> bool:
        """Invalidate the entry if nobody uses it; return whether it was so."""
        with self._lock:
            if self.is_busy or not self._lifecycle.allows("invalidate"):
                return False
            old = self._invalidate(RepresentationChanged("the entry was evicted"), "evicted")
        remove_content(old)
        return True

    def update(self, **columns: Any) -> None:
        """Write columns that are no part of the lifecycle, such as ``pinned``."""
        with self._lock:
            self._lifecycle.refresh(self._store.update(self._lifecycle.record, **columns))

    def restore(self, queued: QueueRecord) -> None:
        """Take up a demand that an earlier process wrote down."""
        stop = END if queued.stop is None else queued.stop
        with self._lock:
            if queued.asked_by == READER:
                if self._policy.fill is Fill.REQUESTED:
                    self._store.dequeue(self.id, READER)
                    return
                self._demands.fill_the_rest()
            else:
                self._demands.add(
                    queued.asked_by, Priority(queued.priority), queued.start, stop
                )
        self._on_change(self)

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
            self._cancel_claims()
            self._wake(everyone=True)

    def release_file(self) -> None:
        """Close the content file once nobody else has it open."""
        self.content.file.release()

    # -- the conductor ---------------------------------------------------------

    def view(self) -> EntryView | None:
        """Return what the scheduler should know, or None if there is nothing to decide.

        Also lets expired demands go, and an active entry that nobody wants come
        to rest.
        """
        with self._lock:
            now_s = self._ticks()
            askers = self._demands.askers
            self._demands.expire(now_s, self._content)
            for asker in askers - self._demands.askers:
                self._store.dequeue(self.id, asker)
            if self._closed is not None or self._is_held():
                return None
            if self._lifecycle.state in (DownloadState.COMPLETE, DownloadState.FAILED):
                return None
            content = self._content
            if self._lifecycle.state in ACTIVE and not self._claims and content.is_whole:
                self._on_dirty(self, True)  # the flush will finish it
                return None
            wants = self._demands.wants
            if wants and content.asked_past_end and content.representation is None:
                wants = (Want(0, 1, Priority.BLOCKED), *wants)
            if not wants and not self._claims:
                if self._lifecycle.state in ACTIVE:
                    self._send("pause", reason="idle")
                return None
            return EntryView(
                id=self.id,
                host=self.url.origin,
                present=content.present.copy(),
                wants=wants,
                streams=tuple(claim.view(now_s) for claim in self._claims.values()),
                length=content.length,
                seekable=content.representation is None or content.representation.joinable,
                settled=content.representation is not None,
            )

    def grant(self, action: Open) -> Claim | None:
        """Return a claim for what the plan wants opened, or None if that went stale.

        Moves the entry to where a download may run.

        Raises:
            StorageError: the move could not be written; nothing has changed.
        """
        old: Path | None = None
        with self._lock:
            if self._closed is not None or self._ticks() < self._not_before_s or self._is_held():
                return None
            representation = self._content.representation
            if representation and not representation.joinable and self._content.present:
                # Its bytes can't be joined with a new answer's: begin again.
                if self._claims:
                    return None
                old = self._invalidate(
                    RepresentationChanged("the origin's answers cannot be joined"),
                    "cannot be continued",
                )
                action = replace(action, start=0, stop=END)
            state = self._lifecycle.state
            if state is DownloadState.NOT_STARTED:
                self._send("initialize")
            elif state is DownloadState.PAUSED:
                self._send("resume")
            elif state not in ACTIVE:
                return None
            claim = self._claim(action)
            if claim is not None and state not in ACTIVE:
                self._enqueue_readers()
        if old is not None:
            remove_content(old)
        return claim

    def refuse(self, error: CacheError) -> None:
        """Let nobody wait for what could not be started; try again after a rest."""
        with self._lock:
            self._not_before_s = self._ticks() + self._policy.retries.exhausted_s
            for waiter in self._waiters:
                waiter.refusal = error
            self._wake(everyone=True)

    def set_stop(self, claim_id: int, stop: int) -> None:
        """Let a claim end at *stop*; at its position or before, it is cancelled."""
        with self._lock:
            claim = self._claims.get(claim_id)
            if claim is None:
                return
            claim.stop = stop
            if stop <= claim.position:
                self._cancel(claim)

    def due_s(self) -> float | None:
        """Return the monotonic time at which the conductor should look again, or None."""
        with self._lock:
            due = [self._demands.next_due_s()]
            if self._demands and self._not_before_s > self._ticks():
                due.append(self._not_before_s)
            return min((moment for moment in due if moment is not None), default=None)

    # -- downloaders -----------------------------------------------------------

    def answered(self, claim: Claim, answer: Answer) -> bool:
        """Take note of an acceptable answer; False if the claim is not wanted any more.

        Raises:
            RepresentationChanged: its bytes cannot be joined with the stored ones.
        """
        with self._lock:
            if claim.cancelled:
                return False
            content, new = claim.content, answer.representation
            if content.present and not (content.representation and new.joinable):
                raise RepresentationChanged("the origin's answer cannot be joined with stored bytes")
            if answer.start != claim.position or not new.accepts_ranges:
                for other in list(self._claims.values()):
                    if other is not claim:
                        self._cancel(other)
                claim.position, claim.stop = answer.start, answer.stop
            claim.reach = answer.stop
            claim.stop = min(claim.stop, answer.stop)
            self._learn(content, new)
            self._wake()
        self._on_change(self)
        return True

    def accept(self, claim: Claim, start: int, size: int) -> list[ByteRange] | None:
        """Return which parts of the received ``[start, start + size)`` to write.

        None once the claim is cancelled or filled: the stream should end.
        """
        with self._lock:
            if claim.cancelled or start >= claim.stop:
                return None
            return list(claim.content.present.gaps(start, min(start + size, claim.stop)))

    def wrote(self, claim: Claim, stop: int, written: list[ByteRange]) -> None:
        """Publish bytes that are in the file now; the claim goes on at *stop*."""
        with self._lock:
            content, now_s = claim.content, self._ticks()
            size = sum(content.present.add(start, end) for start, end in written)
            claim.meter.add(size, now_s)
            self._meter.add(size, now_s)
            claim.position = stop
            claim.received_bytes += size
            if size:
                self._attempts = 0
            self._wake()
            dirty = self._dirty()
        self._on_dirty(self, dirty >= FLUSH_BYTES)

    def ended(self, claim: Claim, error: Exception | None, *, at_end: bool = False) -> None:
        """Give a claim back: done, or stopped by *error*; *at_end* if the body ended itself."""
        old: Path | None = None
        with self._lock:
            self._claims.pop(claim.id, None)
            claim.content.file.release()
            if not claim.cancelled and self._closed is None:
                try:
                    if error is not None:
                        old = self._after_error(claim, error)
                    elif at_end and claim.content.complete_length is None:
                        self._length_is(claim.content, claim.position)
                except StorageError as refusal:
                    # The database refuses to be told: memory stays as the row is.
                    _log.warning("entry %s: %s", self.id, refusal)
                    self._not_before_s = self._ticks() + self._policy.retries.exhausted_s
            claim.cancelled = True
            whole = self._content.present.total == self._content.complete_length
            self._wake(everyone=True)
        if old is not None:
            remove_content(old)
        self._on_dirty(self, whole)
        self._on_change(self)

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
                if fresh:
                    content.file.flush()
                self._record_progress(content, fresh)
                self._record_accesses()
            finally:
                content.file.release()

    def _record_progress(self, content: Content, fresh: RangeSet) -> None:
        # Takes the lock itself: called with only the flush lock held.
        with self._lock:
            if content is not self._content:
                return  # invalidated meanwhile: those bytes are gone
            durable = content.durable.copy()
            for start, stop in fresh:
                durable.add(start, stop)
            grown = tuple(run for run in durable if not content.durable.contains(*run))
            whole = durable.total == content.complete_length
            record = self._lifecycle.record
            try:
                if whole and self._lifecycle.state in ACTIVE and not self._claims:
                    self._send(
                        "finish",
                        durable_bytes=durable.total,
                        complete_length=content.complete_length,
                        columns={"bytes_present": durable.total},
                        chunks=grown,
                    )
                    self._demands.drop_others()
                    self._store.dequeue(self.id)
                elif grown:
                    record = self._store.save_chunks(
                        record, grown, bytes_present=durable.total, now_s=self._clock()
                    )
                    self._lifecycle.refresh(record)
            except StaleRow:
                self._lifecycle.reload()
                raise
            content.durable = durable
            self._wake(everyone=True)

    def _check_file(self) -> None:
        # Takes the lock itself, and looks at the file without it.
        content = self.content
        stored = max((stop for _, stop in self.ranges()), default=0)
        size = content.file.size()
        if size is None or size < stored:
            found = "is gone" if size is None else f"ends at {size}, not {stored}"
            self.invalidate(f"the content file {found}")
        self._file_checked = True

    def _record_accesses(self) -> None:
        # Takes the lock itself. Counted in memory first: a player's hundred ranges
        # a second need not be a hundred transactions.
        with self._lock:
            if not self._accesses:
                return
            record = self._lifecycle.record
            self._lifecycle.refresh(
                self._store.update(
                    record,
                    access_count=record.access_count + self._accesses,
                    last_accessed_at=self._clock(),
                )
            )
            self._accesses = 0

    # -- with the lock held ----------------------------------------------------

    def _send(self, event: str, *, reason: str | None = None, **facts: Any) -> None:
        source = self._lifecycle.state
        record = self._lifecycle.send(event, Move(reason=reason, now_s=self._clock(), **facts))
        _log.info("%s %s %s -> %s%s", self.shown_url, event, source, record.state,
                  f" ({reason})" if reason else "")
        if self._lifecycle.state is not DownloadState.FAILED:
            self._failure = None
        self._wake(everyone=True)
        self._on_transition(
            Transition(self.id, self.shown_url, event, source, self._lifecycle.state, reason)
        )

    def _wake(self, *, everyone: bool = False) -> None:
        for waiter in self._waiters:
            if everyone or waiter.ready():
                waiter.condition.notify()

    def _hopeless(self, content: Content | None) -> CacheError | None:
        if self._closed is not None:
            return self._closed
        if content is not None and content.superseded is not None:
            return content.superseded
        return self.failure()

    def _wait_wanting(
        self,
        wanted: list[tuple[int, int]],
        ready: Callable[[], bool],
        timeout_s: float | None,
        priority: Priority = Priority.BLOCKED,
    ) -> bool:
        # Takes the lock itself, as :meth:`wait` does.
        with self._lock:
            if ready():
                return True
            self._revive()
        demands = [self.want(start, stop) for start, stop in wanted]
        try:
            for demand in demands:
                demand.priority = priority
            self._on_change(self)
            return self.wait(ready, timeout_s=timeout_s)
        finally:
            for demand in demands:
                self.unwant(demand)

    def _revive(self) -> None:
        """Retry a failed entry on a reader's behalf, or raise why it failed."""
        if self._lifecycle.state is not DownloadState.FAILED:
            return
        retry_at = self._lifecycle.record.retry_at
        if retry_at is not None and self._clock() < retry_at:
            failure = self.failure()
            assert failure is not None
            raise failure
        self._send("retry")

    def _order(self, event: str) -> None:
        # Takes the lock itself: the common part of two orders.
        with self._lock:
            self._send(event, asked_by=PERSON)
            self._attempts, self._not_before_s = 0, 0.0
            if not self._demands:
                self._demands.add(PERSON, Priority.PERSON)
                self._enqueue(PERSON, Priority.PERSON)
        self._on_change(self)

    def _is_held(self) -> bool:
        record = self._lifecycle.record
        return record.state == DownloadState.PAUSED and record.state_reason == PERSON

    def _dirty(self) -> int:
        return self._content.present.total - self._content.durable.total

    def _playable_ranges(self) -> list[tuple[int, int]]:
        head, tail = self._policy.playable_head_bytes, self._policy.playable_tail_bytes
        representation = self._content.representation
        if representation is None:
            return [(0, max(1, head))]
        length = self._content.length
        if length == END or not representation.joinable:
            return [(0, head)]
        return [(0, head), (max(0, length - tail), length)]

    def _served_soon(self, offset: int) -> bool:
        now_s = self._ticks()
        return served_soon(
            (claim.view(now_s) for claim in self._claims.values()), offset, self._policy.limits
        )

    def _claimed(self, offset: int) -> bool:
        return any(claim.position <= offset < claim.stop for claim in self._claims.values())

    def _claim(self, action: Open) -> Claim | None:
        start = self._content.present.run_stop(action.start)
        stop = min(action.stop, self._content.present.next_start(start), self._content.length)
        for other in self._claims.values():
            if other.position <= start < other.stop:
                return None
            if other.position > start:
                stop = min(stop, other.position)
        if stop <= start and not (start == 0 and self._content.representation is None):
            return None
        claim = Claim(
            content=self._content,
            position=start,
            stop=stop,
            reach=stop,
            priority=action.priority,
            meter=RateMeter(self._ticks()),
            held=self._content.representation,
        )
        self._content.file.retain()
        self._claims[claim.id] = claim
        return claim

    def _cancel(self, claim: Claim) -> None:
        claim.cancelled = True
        self._claims.pop(claim.id, None)
        if claim.cancel_io is not None:
            claim.cancel_io()

    def _cancel_claims(self) -> None:
        for claim in list(self._claims.values()):
            self._cancel(claim)

    def _learn(self, content: Content, new: Representation) -> None:
        """Write what an answer told of the representation, with the move where there is one."""
        old = content.representation
        if old is not None and old.complete_length is not None and new.complete_length is None:
            new = replace(new, complete_length=old.complete_length)
        columns = _columns(new, self._clock())
        if self._lifecycle.state is DownloadState.INITIALIZING:
            self._send("begin", columns=columns)
        elif old is None or old.complete_length != new.complete_length:
            self._lifecycle.refresh(self._store.update(self._lifecycle.record, **columns))
        content.representation = new

    def _length_is(self, content: Content, length: int) -> None:
        assert content.representation is not None
        self._learn(content, replace(content.representation, complete_length=length))

    def _enqueue(
        self, asked_by: str, priority: Priority, start: int = 0, stop: int = END
    ) -> None:
        self._store.enqueue(
            QueueRecord(
                entry_id=self.id,
                asked_by=asked_by,
                priority=priority,
                start=start,
                stop=None if stop == END else stop,
                attempts=0,
                not_before=None,
                last_error=None,
                created_at=self._clock(),
            )
        )

    def _enqueue_readers(self) -> None:
        if READER in self._demands.askers:
            self._enqueue(READER, Priority.FILL)

    def _after_error(self, claim: Claim, error: Exception) -> Path | None:
        """Decide what an attempt's error means; return a file to remove, if any."""
        if isinstance(error, UnsatisfiedByOrigin):
            return self._after_416(claim, error)
        if isinstance(error, RepresentationChanged):
            return self._invalidate(error, "changed at the origin")
        if claim.received_bytes == 0:
            self._attempts += 1
        else:
            self._attempts = 1
        retries = self._policy.retries
        begun = self._content.representation is not None
        if retries.gives_up(self._attempts, error, begun=begun):
            self._fail(_as_cache_error(error), rest_s=retries.rest_s(error))
            return None
        delay_s = retries.delay_s(self._attempts, error)
        self._not_before_s = self._ticks() + delay_s
        _log.warning(
            "%s: %s; attempt %d, next in %.1f s", self.shown_url, error, self._attempts, delay_s
        )
        self._store.note_attempt(
            self.id,
            attempts=self._attempts,
            not_before=self._clock() + delay_s,
            error=str(error),
        )
        return None

    def _after_416(self, claim: Claim, error: UnsatisfiedByOrigin) -> Path | None:
        """Make sense of "there is no such byte": an end found, or another version."""
        content, told = claim.content, error.complete_length
        known = content.complete_length
        nothing_else = content.present.total == claim.position
        if known is None and nothing_else and told in (None, claim.position):
            # Everything up to here is stored and nothing follows: that was the end.
            # For a zero-byte representation that is so at once.
            if content.representation is None:
                content.representation = Representation(
                    complete_length=None,
                    validator=Validator(None, None, None),
                    fields=(),
                    accepts_ranges=True,
                )
            self._length_is(content, claim.position)
            return None
        if known is not None and told is not None and told != known:
            return self._invalidate(
                RepresentationChanged(f"the origin now has {told} bytes, not {known}"),
                "changed at the origin",
            )
        if known is None and told is not None and content.representation is None:
            # A first question past the end: ask from the front next time, so that
            # the asker can be told 416 with the length.
            content.asked_past_end = True
            return None
        self._fail(OriginStatus(416), rest_s=self._policy.retries.permanent_s)
        return None

    def _fail(
        self,
        error: CacheError,
        *,
        event: str = "fail",
        reason: str | None = None,
        rest_s: float,
    ) -> None:
        self._send(
            event,
            reason=reason or str(error),
            columns={
                "retry_at": self._clock() + rest_s,
                "error_status": error.status_hint,
            },
        )
        self._failure = error
        self._cancel_claims()
        self._demands.drop_others()
        self._store.dequeue(self.id)
        self._attempts, self._not_before_s = 0, 0.0
        self._wake(everyone=True)

    def _invalidate(self, cause: CacheError, reason: str) -> Path:
        """Move to a new generation; return the old content file's path, to be removed."""
        name = content_name(self.key)
        self._send(
            "invalidate",
            reason=reason,
            columns={
                "generation": self._lifecycle.record.generation + 1,
                "content_file": name,
                "complete_length": None,
                "etag": None,
                "last_modified": None,
                "response_fields": "[]",
                "accepts_ranges": False,
                "validated_at": None,
                "bytes_present": 0,
                "error_status": None,
                "retry_at": None,
            },
        )
        self._cancel_claims()
        old, self._content = self._content, Content(ContentFile(self._directory / name))
        old.superseded = cause
        old.file.release()
        self._wake(everyone=True)
        return old.file.path


def _columns(representation: Representation, now_s: float) -> dict[str, Any]:
    return {
        "complete_length": representation.complete_length,
        "etag": representation.validator.etag,
        "last_modified": representation.validator.last_modified,
        "response_fields": json.dumps(representation.fields),
        "accepts_ranges": representation.accepts_ranges,
        "validated_at": now_s,
    }


def _stored_representation(record: EntryRecord) -> Representation | None:
    """Return what the row tells of the representation, or None if no answer came yet."""
    if record.validated_at is None:
        return None
    fields = tuple((name, value) for name, value in json.loads(record.response_fields))
    return Representation(
        complete_length=record.complete_length,
        validator=Validator.from_fields(fields),
        fields=fields,
        accepts_ranges=record.accepts_ranges,
    )


def _remembered_failure(record: EntryRecord) -> CacheError:
    """Return an error that says what the row remembers of a failure."""
    error: CacheError
    if record.state_reason == "cancelled":
        error = DownloadCancelled("a person cancelled the download")
    else:
        error = OriginError(record.state_reason or "the download failed")
    if record.error_status is not None:
        error.status_hint = record.error_status
    return error


def _as_cache_error(error: Exception) -> CacheError:
    return error if isinstance(error, CacheError) else OriginError(f"internal error: {error!r}")


def _field(representation: Representation | None, name: str) -> str | None:
    fields = representation.fields if representation else ()
    return next((value for key, value in fields if key.lower() == name), None)
