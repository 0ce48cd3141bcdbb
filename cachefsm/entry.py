"""A live entry: where readers, downloaders, people and the conductor meet.

Downloaders bring bytes, readers wait for them, people give orders, the conductor
decides who fetches what; threads meet only here. The ground under it, row, file
and machine, is :mod:`cachefsm.stored`, whose lock rules hold here too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from . import facts
from .acceptance import Answer
from .claims import Claim, Claims, RateMeter
from .content import Content
from .demands import READER, Demand, Demands, Fill
from .errors import (
    CacheError,
    DownloadCancelled,
    OriginError,
    OriginTimeout,
    RepresentationChanged,
    StorageError,
)
from .lifecycle import PERSON
from .models import EntryRecord, QueueRecord
from .ranges import END, ByteRange
from .records import CANCELLED
from .representation import Representation
from .retries import Attempts, Verdict, judge
from .scheduler import EntryView, Open, Priority, Want
from .semantics import Validator
from .states import ACTIVE, DownloadState
from .storage import ContentFile
from .stored import StoredEntry, Surroundings

__all__ = ["LiveEntry"]

_log = logging.getLogger(__name__)

FLUSH_BYTES: Final = 16 << 20
"""Unsynced bytes at which a flush is asked for at once. A coalesced range row
every 16 MiB costs about 4 ms/GiB; a row per 256 KiB would cost 305 ms/GiB."""


class LiveEntry(StoredEntry):
    """One entry while anybody reads it, fetches it or gives it orders."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        super().__init__(record, surroundings)
        self._policy = surroundings.policy
        # Read write, under the lock.
        self._claims = Claims(surroundings.origins.of(self.url.origin), self._policy.limits.most)
        self._demands = Demands(self._policy.fill, self._policy.grace_s)
        self._readers = 0
        self.on_close: set[Callable[[], None]] = set()
        """What ends the transfers that pass by the cache, of readers that are here."""
        self._attempts = Attempts(self._policy.retries)
        self._meter = RateMeter(surroundings.ticks())

    # -- looking ---------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether anybody reads, fetches or wants it: it must stay in memory."""
        with self._lock:
            return bool(
                self._readers
                or self._claims
                or self._waiters
                or self._demands
                or self._accesses
                or self._content.dirty_bytes
                or self._lifecycle.state in ACTIVE
            )

    def is_playable(self) -> bool:
        """Say whether enough is here to start playing; see :func:`cachefsm.facts.is_playable`."""
        with self._lock:
            return facts.is_playable(self._content, self._policy)

    def describe(self) -> dict[str, Any]:
        """Return what may be shown of it, as JSON values; no secrets."""
        with self._lock:
            rate = self._meter.rate_bytes_s(self._around.ticks()) if self._claims else 0
            return facts.describe(self._lifecycle.record, self._content, self._policy) | {
                "rate_bytes_s": round(rate),
                "streams": self._claims.describe(),
                "readers": self._readers,
                "asked_by": sorted(self._demands.askers),
            }

    # -- waiting ---------------------------------------------------------------

    def wait_for(self, start: int, stop: int, timeout_s: float | None) -> bool:
        """Wait until ``[start, stop)`` is here, and see to it that it is fetched."""
        return self._wait_wanting(
            [(start, stop)], lambda: self._content.has(start, stop), timeout_s
        )

    def wait_playable(self, timeout_s: float | None) -> bool:
        """Wait until :meth:`is_playable`, fetching head and tail first."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._lock:
                wanted = facts.playable_ranges(self._content, self._policy)

            def decided(asked: list[tuple[int, int]] = wanted) -> bool:
                # Once the length is known there is a tail, which somebody has to want.
                now_wanted = facts.playable_ranges(self._content, self._policy)
                return self.is_playable() or now_wanted != asked

            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if not self._wait_wanting(wanted, decided, left_s):
                return False
            if self.is_playable():
                return True

    def wait_complete(self, timeout_s: float | None) -> bool:
        """Wait until every byte is here and durable, fetching all of them."""
        return self._wait_wanting(
            [(0, END)],
            lambda: self._lifecycle.state is DownloadState.COMPLETE,
            timeout_s,
            Priority.PERSON,
        )

    # -- readers ---------------------------------------------------------------

    def attach(self) -> Content:
        """Count a reader in and return the content it reads; :meth:`detach` it later.

        What its file does not hold, though it should, is dropped first. An entry
        that failed before anything was known of it is retried if its back-off has
        passed; of any other, what is stored may be read.

        Raises:
            CacheError: it has failed and must rest, or the cache is closing.
        """
        self.check_file()
        with self._lock:
            if self._closed is not None or self._content.representation is None:
                self._revive()
            self._readers += 1
            self._accesses += 1
            content = self._content
            content.file.retain()
        self._around.on_dirty(self, False)
        return content

    def detach(self, content: Content) -> None:
        """Count a reader out."""
        with self._lock:
            self._readers -= 1
        content.file.release()
        self._around.on_change(self)

    def want(self, demand: Demand | None, start: int, stop: int, *, blocked: bool) -> Demand:
        """Tell which bytes a reader wants next and whether it waits; return its demand.

        Raises:
            CacheError: it waits, and the entry has failed and must rest.
        """
        with self._lock:
            if blocked:
                self._revive()
            if demand is None:
                demand = self._demands.add_reader(start, stop, Priority.READ_AHEAD)
                changed = True
            elif blocked:
                # A reader right at a stream's head needs no decision; any other
                # does, if only for when its patience ends.
                changed = not any(claim.position == start for claim in self._claims)
            else:
                # Look ahead only when half the window is neither here nor promised.
                middle = (start + min(stop, self._content.length)) // 2
                changed = not (self._content.has(start, middle) or self._claims.holds(middle))
            demand.move(start, stop, blocked=blocked, now_s=self._around.ticks())
        if changed:
            self._around.on_change(self)
        return demand

    def unwant(self, demand: Demand, *, linger: bool = True) -> None:
        """Let a reader's demand go, after the grace if it may *linger*."""
        with self._lock:
            self._demands.drop_reader(demand, self._around.ticks(), linger=linger)
        self._around.on_change(self)

    def close(self, cause: CacheError) -> None:
        """Stop its streams and readers, and fail its waiters with *cause*."""
        super().close(cause)
        for cancel in list(self.on_close):
            cancel()

    def refusal(self) -> StorageError | None:
        """Return why nothing can be stored just now, or None."""
        with self._lock:
            cause = self._attempts.cause
            resting = self._attempts.not_before_s > self._around.ticks()
            return cause if resting and isinstance(cause, StorageError) else None

    # -- orders ----------------------------------------------------------------

    def start(self, asked_by: str, priority: Priority, start: int = 0, stop: int = END) -> None:
        """Put the entry in the queue on somebody's behalf; a pause or failure ends."""
        self.check_file()
        with self._lock:
            state = self._lifecycle.state
            if state is DownloadState.COMPLETE:
                return
            if state in (DownloadState.PAUSED, DownloadState.FAILED):
                self._send("resume" if state is DownloadState.PAUSED else "retry", asked_by=PERSON)
            self._demands.add(asked_by, priority, start, stop)
            self._enqueue(asked_by, priority, start, stop)
        self._around.on_change(self)

    def pause(self) -> None:
        """Hold the download until a person resumes it; raises IllegalMove."""
        with self._lock:
            self._send("pause", reason=PERSON)
            self._claims.cancel_all()
        self._around.on_dirty(self, True)

    def resume(self) -> None:
        """Go on with a paused download, to its end; raises IllegalMove."""
        self._go_on("resume")

    def retry(self) -> None:
        """Go on with a failed download, keeping what is stored; raises IllegalMove."""
        self._go_on("retry")

    def cancel(self) -> None:
        """Give the download up; what is stored stays; raises IllegalMove."""
        with self._lock:
            self._fail(
                DownloadCancelled("a person cancelled the download"),
                event="cancel",
                reason=CANCELLED,
                rest_s=self._policy.retries.cancelled_s,
            )
        self._around.on_dirty(self, True)

    def evict(self) -> bool:
        """Invalidate the entry if nobody uses it; return whether it was so."""
        with self._lock:
            if self.is_busy or not self._content.present:
                return False
            old = self._invalidate("evicted")
        old.discard()
        return True

    def restore(self, queued: QueueRecord) -> None:
        """Take up a demand that an earlier process wrote down."""
        with self._lock:
            if queued.asked_by != READER:
                stop = END if queued.stop is None else queued.stop
                self._demands.add(queued.asked_by, Priority(queued.priority), queued.start, stop)
            elif self._policy.fill is not Fill.REQUESTED:
                self._demands.fill_the_rest()
            else:
                self._around.store.dequeue(self.id, READER)
        self._around.on_change(self)

    # -- the conductor ---------------------------------------------------------

    def view(self) -> EntryView | None:
        """Return what the scheduler should know, or None if there is nothing to decide.

        Also lets expired demands go, and an active entry that nobody wants come
        to rest.
        """
        with self._lock:
            now_s = self._around.ticks()
            self._expire_demands(now_s)
            self._replace_stalled(now_s)
            state, content = self._lifecycle.state, self._content
            if self._closed is not None or self._is_held():
                return None
            if state in (DownloadState.COMPLETE, DownloadState.FAILED):
                return None
            wants = self._demands.wants(now_s, self._policy.limits.patience_s)
            if content.is_here and not self._claims:
                if wants and state is DownloadState.PAUSED:
                    self._send("resume")
                if self._lifecycle.state in ACTIVE:
                    self._around.on_dirty(self, True)  # the flush will finish it
                return None
            if not wants and not self._claims:
                if state in ACTIVE:
                    self._send("pause", reason="idle")
                return None
            if wants and content.asked_past_end and content.representation is None:
                wants = (Want(0, 1, Priority.BLOCKED), *wants)
            return EntryView(
                id=self.id,
                host=self.url.origin,
                present=content.present.copy(),
                wants=wants,
                streams=self._claims.views(now_s),
                length=content.length,
                seekable=content.joinable,
                settled=content.representation is not None,
                width=self._claims.width(now_s),
                origin=self._claims.origin.view(),
            )

    def grant(self, wish: Open) -> Claim | None:
        """Return a claim for what the plan wants opened, or None if that went stale.

        Moves the entry to where a download may run.

        Raises:
            StorageError: the move could not be written; nothing has changed.
        """
        self.check_file()
        old: ContentFile | None = None
        with self._lock:
            now_s = self._around.ticks()
            if self._closed is not None or now_s < self._attempts.not_before_s or self._is_held():
                return None
            if not self._content.joinable and not self._claims:
                # What is stored, or what readers were told, can't be joined with what
                # a new answer brings: begin again.
                old = self._invalidate("the origin's answers cannot be joined")
                wish = replace(wish, start=0, stop=END)
            state = self._lifecycle.state
            if state is DownloadState.NOT_STARTED:
                self._send("initialize")
            elif state is DownloadState.PAUSED:
                self._send("resume")
            elif state not in ACTIVE:
                return None
            claim = self._claims.grant(self._content, wish, now_s)
            if state not in ACTIVE and READER in self._demands.askers:
                self._enqueue(READER, Priority.FILL)
        if old is not None:
            old.discard()
        return claim

    def refuse(self, error: CacheError) -> None:
        """Let nobody wait for what cannot be stored; try again after a rest."""
        self._around.trouble.note(error)
        with self._lock:
            self._claims.cancel_all()
            self._attempts.rest(self._around.ticks(), error)
            self._waiters.refuse(error)

    def set_stop(self, claim_id: int, stop: int) -> None:
        """Let a claim end at *stop*; at its position or before, it is cancelled."""
        with self._lock:
            claim = self._claims.get(claim_id)
            if claim is not None:
                self._claims.set_stop(claim, stop)

    def due_s(self) -> float | None:
        """Return the monotonic time at which the conductor should look again, or None."""
        with self._lock:
            now_s = self._around.ticks()
            moments: list[float | None] = [
                self._policy.speed.due_s(claim) for claim in self._claims
            ]
            moments += [
                self._demands.next_due_s(now_s, self._policy.limits.patience_s),
                self._claims.next_look_s(now_s),
            ]
            not_before_s = self._attempts.not_before_s
            if self._demands and not_before_s > now_s:
                moments.append(not_before_s)
            due = min((moment for moment in moments if moment is not None), default=None)
            # Whatever is overdue has just been looked at: never spin on it.
            return None if due is None else max(due, now_s + 0.05)

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
            old = content.representation
            if old is not None and not new.validator.same_version(old.validator):
                raise RepresentationChanged("the answer cannot be joined with the stored bytes")
            if answer.start != claim.position or not new.accepts_ranges:
                self._claims.take_all(claim, answer.start, answer.stop)
            claim.reach = answer.stop
            self._claims.answered(claim, self._around.ticks(), accepts_ranges=new.accepts_ranges)
            claim.stop = min(claim.stop, answer.stop)
            self._learn(content, new)
            self._waiters.wake()
        self._around.on_change(self)
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
            content, now_s = claim.content, self._around.ticks()
            size = sum(content.present.add(start, end) for start, end in written)
            self._claims.received(claim, size, now_s)
            if self._around.trouble.is_on:
                self._written_in_trouble = True
            self._meter.add(size, now_s)
            claim.position = stop
            self._waiters.wake()
            urgent = self._content.dirty_bytes >= FLUSH_BYTES
        self._around.on_dirty(self, urgent)
        self._around.on_progress(self)

    def ended(self, claim: Claim, error: Exception | None, *, at_end: bool = False) -> None:
        """Take a claim back: done, or stopped by *error*; *at_end* if the body ended itself."""
        old: ContentFile | None = None
        with self._lock:
            counts = not claim.cancelled and self._closed is None
            one_too_many = error is not None and counts and self._claims.origin.refused(error)
            self._claims.end(claim)
            if counts:
                try:
                    if one_too_many and (self._claims.at_work or self._attempts.excuse()):
                        _log.info("%s: goes on with fewer connections", self.shown_url)
                    elif error is not None:
                        old = self._after_error(claim, error)
                    elif at_end and claim.content.complete_length is None:
                        self._length_is(claim.content, claim.position)
                except StorageError as refusal:
                    # The database will not be told: memory stays as the row is.
                    self.refuse(refusal)
            urgent = self._content.is_here
            self._waiters.wake_all()
        if old is not None:
            old.discard()
        self._around.on_dirty(self, urgent)
        self._around.on_change(self)

    # -- with the lock held ----------------------------------------------------

    def _after_error(self, claim: Claim, error: Exception) -> ContentFile | None:
        """Do what an attempt's error calls for; return a file to discard, if any."""
        content = claim.content
        verdict = judge(error, content, claim.position)
        if verdict is Verdict.TRY_AGAIN:
            self._try_again(claim, error)
        elif verdict is Verdict.CANNOT_STORE and isinstance(error, CacheError):
            self.refuse(error)
        elif verdict is Verdict.LENGTH_TOLD:
            told = getattr(error, "complete_length", None)
            self._length_is(content, claim.position if told is None else told)
        elif verdict is Verdict.ASK_PLAINLY:
            content.ask_plainly = True
        elif verdict is Verdict.ASK_FROM_FRONT:
            content.asked_past_end = True
        elif verdict is Verdict.INVALIDATE:
            return self._invalidate("changed at the origin")
        else:
            cause = error if isinstance(error, CacheError) else _unexpected(error)
            self._fail(cause, rest_s=self._policy.retries.rest_s(cause))
        return None

    def _replace_stalled(self, now_s: float) -> None:
        """Break off streams that bring nothing, or next to nothing, for too long."""
        speed = self._policy.speed
        for claim in self._claims:
            if not speed.is_enough(claim, now_s):
                self._claims.cancel(claim)
                self._try_again(claim, OriginTimeout("the origin's connection is too slow"))

    def _try_again(self, claim: Claim, error: Exception) -> None:
        delay_s = self._attempts.failed(
            error,
            self._around.ticks(),
            begun=self._content.representation is not None,
            # Bytes that the next attempt must throw away are no progress.
            progressed=claim.received_bytes > 0 and claim.content.joinable,
        )
        cause = error if isinstance(error, CacheError) else _unexpected(error)
        if delay_s is None:
            self._fail(cause, rest_s=self._policy.retries.rest_s(error))
            return
        count = self._attempts.count
        _log.warning("%s: %s; attempt %d, next in %.1f s", self.shown_url, cause, count, delay_s)
        self._around.store.note_attempt(
            self.id, attempts=count, not_before=self._around.clock() + delay_s, error=str(cause)
        )

    def _length_is(self, content: Content, length: int) -> None:
        known = content.representation or _EMPTY
        self._learn(content, replace(known, complete_length=length))

    def _wait_wanting(
        self,
        wanted: list[tuple[int, int]],
        ready: Callable[[], bool],
        timeout_s: float | None,
        priority: Priority = Priority.BLOCKED,
    ) -> bool:
        # Takes the lock itself, as :meth:`wait` does.
        self.check_file()
        with self._lock:
            if ready():
                return True
            self._revive()
            now_s = self._around.ticks()
            demands = [self._demands.add_reader(start, stop, priority) for start, stop in wanted]
            for demand in demands:
                demand.blocked_since_s = now_s if priority is Priority.BLOCKED else None
        self._around.on_change(self)
        try:
            return self.wait(ready, timeout_s=timeout_s)
        finally:
            for demand in demands:
                self.unwant(demand)

    def _revive(self) -> None:
        """Retry a failed entry on a reader's behalf, or raise why it cannot be read."""
        if self._closed is not None:
            raise self._closed.again()
        failure = self.failure()
        if failure is None:
            return
        retry_at = self._lifecycle.record.retry_at
        if retry_at is not None and self._around.clock() < retry_at:
            raise failure.again()
        self._send("retry")

    def _go_on(self, event: str) -> None:
        # Takes the lock itself: the common part of two orders.
        with self._lock:
            self._send(event, asked_by=PERSON)
            self._attempts.reset()
            self._demands.add(PERSON, Priority.PERSON)
            self._enqueue(PERSON, Priority.PERSON)
        self._around.on_change(self)

    def _is_held(self) -> bool:
        record = self._lifecycle.record
        return record.state == DownloadState.PAUSED and record.state_reason == PERSON

    def _expire_demands(self, now_s: float) -> None:
        before = self._demands.askers
        self._demands.expire(now_s, self._content)
        for asker in before - self._demands.askers:
            self._around.store.dequeue(self.id, asker)

    def _enqueue(self, asked_by: str, priority: Priority, start: int = 0, stop: int = END) -> None:
        self._around.store.enqueue(
            QueueRecord(
                entry_id=self.id,
                asked_by=asked_by,
                priority=priority,
                start=start,
                stop=None if stop == END else stop,
                attempts=0,
                not_before=None,
                last_error=None,
                created_at=self._around.clock(),
            )
        )

    # What the ground asks of this layer.

    def _hopeless(self, content: Content | None, deadline_s: float | None) -> CacheError | None:
        cause, next_s = self._attempts.cause, self._attempts.not_before_s
        if isinstance(cause, CacheError) and not self._claims:
            # The next attempt comes too late for this wait; or what it would bring
            # cannot be stored, so whoever waits had better get it elsewhere.
            if deadline_s is not None and next_s > deadline_s:
                return cause
            if isinstance(cause, StorageError) and next_s > self._around.ticks():
                return cause
        return super()._hopeless(content, deadline_s)

    def _may_finish(self) -> bool:
        return super()._may_finish() and not self._claims

    def _finished(self) -> None:
        self._demands.drop_others()
        self._around.store.dequeue(self.id)
        self._attempts.reset()

    def _hold_off(self, error: CacheError) -> None:
        self._attempts.hold_off(error, self._around.ticks())

    def _stop_filling(self) -> None:
        self._claims.cancel_all()


_EMPTY: Final = Representation(
    complete_length=None, validator=Validator(), fields=(), accepts_ranges=True
)
"""What a 416 to the very first question tells: there is no byte, and nothing else."""


def _unexpected(error: Exception) -> CacheError:
    return OriginError(f"internal error: {type(error).__name__}")
