"""A live entry: where readers, downloaders, people and the conductor meet.

Downloaders bring bytes, readers wait for them, people give orders, the conductor
decides who fetches what; threads meet only here. It stands on five layers, each a
module of its own: :mod:`cachefsm.moving` (row and machine, whose lock rules hold
everywhere), :mod:`cachefsm.stored` (the file), :mod:`cachefsm.linked` (the link it comes
by), :mod:`cachefsm.asking` (questions to the origin) and :mod:`cachefsm.filling` (bytes).
This module adds what readers and people do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from . import facts
from .asking import NOT_STORED
from .claims import Claim
from .content import Content
from .demands import READER, Demand, Fill
from .errors import CacheError, DatabaseFull, DownloadCancelled, StorageError
from .explain import Situation, explain
from .filling import FillingEntry
from .lifecycle import PERSON
from .models import EntryRecord, QueueRecord
from .ranges import END, RangeSet
from .records import CANCELLED
from .scheduler import Denied, EntryView, Priority
from .states import ACTIVE, DownloadState
from .surroundings import Surroundings
from .terms import ANY_TERMS, Terms

__all__ = ["LiveEntry"]


_AT_REST: Final = (DownloadState.NOT_STARTED, DownloadState.PAUSED)


class LiveEntry(FillingEntry):
    """One entry while anybody reads it, fetches it or gives it orders."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        super().__init__(record, surroundings)
        # Read write, under the lock.
        self._passing: set[Callable[[], None]] = set()
        """Callbacks that end the transfers of readers which read past the cache."""
        self.denied: tuple[Denied, ...] = ()
        """The ranges for which there was no connection when the conductor last looked."""

    # -- looking ---------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether it must stay in memory: it is used, or there is something left to record."""
        with self._lock:
            return self._is_used or self._accesses > 0 or bool(self._unwritten)

    @property
    def _is_used(self) -> bool:
        """Whether anybody reads, fetches or wants it; read with the lock held."""
        return bool(
            self._readers
            or self._claims.stand
            or self._waiters
            or self._demands
            or self._inquiry
            or self._renewing
            or self._content.dirty_bytes
            or self._lifecycle.state in ACTIVE
        )

    @property
    def place_in_line(self) -> tuple[Priority, float] | None:
        """Which of the orders for which nothing is under way go before this one's, see
        :attr:`cachefsm.demands.Demands.place_in_line`; None for all other entries."""
        with self._lock:
            if self._lifecycle.state not in _AT_REST or self._is_held():
                return None
            rests = self._around.ticks() < self._attempts.not_before_s
            if self._claims or self._inquiry or self._renewing or rests:
                return None
            is_locked = self._around.secrets_of(self.key) is None
            return None if is_locked else self._demands.place_in_line

    def is_playable(self) -> bool:
        """Say whether enough is here to start playing; see :func:`cachefsm.facts.is_playable`."""
        with self._lock:
            return facts.is_playable(self._content, self._policy)

    def describe(self) -> dict[str, Any]:
        """Return the entry as JSON values for people and programs, without secrets."""
        with self._lock:
            rate = self._meter.rate_bytes_s(self._around.ticks()) if self._claims else 0
            return facts.describe(self._lifecycle.record, self._content, self._policy) | {
                "rate_bytes_s": round(rate),
                "streams": self._claims.describe(),
                "readers": self._readers,
                "asked_by": sorted(self._demands.askers),
            }

    def explain(self, offset: int) -> dict[str, Any]:
        """Return where a byte is, when it will come, or why not; see :mod:`cachefsm.explain`."""
        with self._lock:
            situation = self._situation()
        return explain(situation, offset)

    def _situation(self) -> Situation:
        content, now_s = self._content, self._around.ticks()
        readers = self._demands.readers
        return Situation(
            EntryView(
                self.id,
                self.url.origin,
                content.present.copy(),
                self._demands.wants(now_s, self._policy.limits.patience_s),
                self._claims.views(now_s),
                content.length,
                settled=content.representation is not None,
                origin=self._claims.origin.view(),
            ),
            self._lifecycle.state,
            self._lifecycle.record.state_reason,
            held=self._is_held(),
            unanswered=frozenset(c.id for c in self._claims if c.answered_s is None),
            held_back=self._claims.held_back(now_s),
            denied=tuple((each.start, each.stop, each.limit) for each in self.denied),
            resting_s=max(0.0, self._attempts.not_before_s - now_s),
            retry_at=self._lifecycle.record.retry_at,
            cause=str(self._attempts.cause) if self._attempts.cause is not None else None,
            readings=tuple(reader.reading(now_s) for reader in readers),
            closed=self._closed is not None,
            renewing=self._renewing,
            locked=self._around.secrets_of(self.key) is None,
        )

    # -- waiting ---------------------------------------------------------------

    def wait_for(self, start: int, stop: int, timeout_s: float | None) -> bool:
        """Have ``[start, stop)`` fetched and wait until it is here; False on timeout."""
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

    def attach(self, terms: Terms = ANY_TERMS) -> Content:
        """Count a reader in and return the content it reads; :meth:`detach` it later.

        First drops ranges that the file turns out not to hold. An entry that failed before
        anything was known of the file is retried if its back-off has passed, or if *terms*
        want it; of other failed entries, what is stored can be read.

        Raises:
            CacheError: it has failed and must rest, or the cache is closing.
        """
        try:
            self.check_file()
        except StorageError as error:  # reading will tell, and go straight
            self._around.trouble.note(error)
        with self._lock:
            if self._closed is not None or self._content.representation is None:
                self._revive(terms)
            self._readers += 1
            self._accesses += 1
            content = self._content
            content.file.retain()
        self._around.on_dirty(self, False)
        return content

    def detach(self, content: Content) -> None:
        """Count a reader out.

        The conductor has been told already if this reader wanted bytes or gave them up. It
        only needs to be told of an entry that was made active for a reader which then
        wanted nothing.
        """
        with self._lock:
            self._readers -= 1
            wanted = self._demands or self._claims or self._inquiry
            left_over = self._lifecycle.state in ACTIVE and not wanted
        content.file.release()
        if left_over:
            self._around.on_change(self)

    def want(self, demand: Demand | None, start: int, stop: int, *, blocked: bool) -> Demand:
        """Note which bytes a reader wants next, and whether it waits for them; return its demand.

        Raises:
            CacheError: it waits, and the entry has failed and must rest.
            StorageError: it waits for bytes that cannot be stored.
        """
        with self._lock:
            if blocked:
                self._revive()
                if self._is_passing() and not self._claims.holds(start):
                    raise StorageError(NOT_STORED)
            is_new = demand is None
            if demand is None:
                demand = self._demands.add_reader(start, stop, Priority.READ_AHEAD)
            if blocked:
                # A reader right at a stream's head needs no decision, unless the stream
                # ends there; any other does, if only for when its patience ends.
                at_head = any(c.position == start < c.stop for c in self._claims)
                changed = is_new or not at_head
            else:
                # Look ahead only when half the window is neither here nor promised.
                middle = (start + min(stop, self._content.length)) // 2
                changed = not (self._content.has(start, middle) or self._claims.holds(middle))
            demand.move(start, stop, blocked=blocked, now_s=self._around.ticks())
        self._around.on_want()
        if changed:
            self._around.on_change(self)
        elif is_new:
            self._around.on_hint(self)  # the rest of the file is wanted, too, and its ends
        return demand

    def unwant(self, demand: Demand, *, linger: bool = True) -> None:
        """Let a reader's demand go, after the grace if it may *linger*."""
        with self._lock:
            content, now_s = self._content, self._around.ticks()
            # Or else who brings it may have something better to do.
            had_all = content.has(demand.start, max(demand.start, demand.stop))
            # Of a whole file nothing will be wanted any more.
            self._demands.drop_reader(demand, now_s, linger=linger and not content.is_whole)
        if had_all and linger:
            self._around.on_hint(self)
        else:
            self._around.on_change(self)

    def close(self, cause: CacheError) -> None:
        """Stop its streams and readers, and fail its waiters with *cause*."""
        super().close(cause)
        with self._lock:
            if self._inquiry is not None and self._inquiry.claim is not None:
                self._claims.cancel(self._inquiry.claim)
            passing = list(self._passing)
        for cancel in passing:
            cancel()

    def cancel_on_close(self, cancel: Callable[[], None]) -> Callable[[], None]:
        """Have *cancel* called when the entry closes (now, if it has); return what revokes that."""
        with self._lock:
            self._passing.add(cancel)
            closed = self._closed is not None
        if closed:
            cancel()
        return lambda: self._no_more(cancel)

    def _no_more(self, cancel: Callable[[], None]) -> None:
        with self._lock:
            self._passing.discard(cancel)

    def refusal(self) -> StorageError | None:
        """Return the error because of which nothing can be stored just now, or None."""
        with self._lock:
            cause = self._attempts.cause
            resting = self._attempts.not_before_s > self._around.ticks()
            return cause if resting and isinstance(cause, StorageError) else None

    def is_coming(self, start: int, stop: int) -> bool:
        """Say whether a claim covers the first missing byte of ``[start, stop)``."""
        with self._lock:
            gap = next(self._content.present.gaps(start, stop), None)
            return gap is not None and self._claims.holds(gap.start)

    # -- orders ----------------------------------------------------------------

    def start(
        self,
        asked_by: str,
        priority: Priority,
        ranges: Iterable[tuple[int, int]] = ((0, END),),
        *,
        within_s: float | None = None,
    ) -> None:
        """Put the entry in the queue on somebody's behalf; ends a pause, retries a failure.

        The order replaces earlier ones of the same asker. If it is not met *within_s*, it is
        given up.
        """
        self.check_file()
        expires_at_s = None if within_s is None else self._around.ticks() + within_s
        order = [Demand(asked_by, priority, *run, expires_at_s) for run in RangeSet(ranges)]
        with self._lock:
            if self._closed is not None:
                raise self._closed.again()
            state = self._lifecycle.state
            if all(demand.is_met(self._content) for demand in order):
                return
            if state in (DownloadState.PAUSED, DownloadState.FAILED):
                event = "resume" if state is DownloadState.PAUSED else "retry"
                self._send(event, asked_by=PERSON, demands=self._queued(*order))
            else:
                self._enqueue(*order)
            self._demands.order(*order, now_s=self._around.clock())
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

    def outdate(self, reason: str) -> None:
        """Invalidate the entry, unless nothing is known of its file."""
        with self._letting_go():
            if self._content.representation is not None:
                self._invalidate(reason)
                self._demands.drop_left()
        self._around.on_change(self)

    def evict(self) -> bool:
        """Invalidate the entry if nobody uses it; return whether that was so.

        Its file is deleted later, by :meth:`discard_given_up`.
        """
        with self._lock:
            if self._is_used or self._was_just_used() or not self._content.present:
                return False
            self._invalidate("evicted")
        return True

    def restore(self, queued: QueueRecord) -> None:
        """Take up a demand that an earlier process wrote down."""
        with self._lock:
            if queued.asked_by != READER:
                offset_s = self._around.clock() - self._around.ticks()
                self._demands.add(Demand.of(queued, offset_s))
            elif self._policy.fill is not Fill.REQUESTED:
                self._demands.fill_the_rest()
            else:
                self._around.store.dequeue(self.id, READER)
        self._around.on_change(self)

    def is_urgent(self, claim: Claim) -> bool:
        """Say whether a reader wants what *claim* is about to bring."""
        with self._lock:
            soon = claim.position + self._policy.limits.near_bytes
            return self._demands.is_read(claim.position, min(claim.stop, soon))

    # -- with the lock held ----------------------------------------------------

    def _was_just_used(self) -> bool:
        """Record pending accesses; say whether there were any, which changes what to evict."""
        if not self._accesses:
            return False
        try:
            self._record_news()
        except DatabaseFull:
            return False  # it can be recorded once there is room, which is what is asked for
        return True

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
                demand.ordered_s = self._around.clock()
        self._around.on_change(self)
        try:
            return self.wait(ready, timeout_s=timeout_s)
        finally:
            for demand in demands:
                self.unwant(demand)

    def _go_on(self, event: str) -> None:
        # Takes the lock itself: the common part of two orders.
        with self._lock:
            order = Demand(PERSON, Priority.PERSON)
            self._send(event, asked_by=PERSON, demands=self._queued(order))
            self._attempts.reset()
            self._demands.order(order, now_s=self._around.clock())
        self._around.on_change(self)
