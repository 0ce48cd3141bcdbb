"""A live entry: where readers, downloaders, people and the conductor meet.

Downloaders bring bytes, readers wait for them, people give orders, the conductor
decides who fetches what; threads meet only here. The ground under it, row, file
and machine, is :mod:`cachefsm.stored`, whose lock rules hold here too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, TypeGuard

from . import facts
from .acceptance import Answer, read_not_modified
from .claims import Claim, Claims, Inquiry, RateMeter
from .content import Content
from .demands import READER, Demand, Demands, Fill
from .errors import (
    CacheError,
    DownloadCancelled,
    NotModified,
    OriginError,
    OriginStatus,
    OriginTimeout,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)
from .fields import cookies_of, value_of, without
from .lifecycle import PERSON, is_resting
from .linked import LinkedEntry
from .models import EntryRecord, QueueRecord
from .negative import Negative
from .origin import Fetch
from .ranges import END, ByteRange, RangeSet
from .records import CANCELLED, vary_from_json
from .representation import Representation, update_fields
from .retries import Attempts, Verdict, judge
from .scheduler import Ask, EntryView, Open, Priority, Want
from .semantics import Validator
from .states import ACTIVE, DownloadState
from .storage import ContentFile
from .stored import Surroundings
from .terms import ANY_TERMS, Terms, Use
from .urls import OriginUrl

__all__ = ["LiveEntry"]

_log = logging.getLogger(__name__)

FLUSH_BYTES: Final = 16 << 20
"""Unsynced bytes at which a flush is asked for at once. A coalesced range row
every 16 MiB costs about 4 ms/GiB; a row per 256 KiB would cost 305 ms/GiB."""


_AHEAD: Final = (Priority.READ_AHEAD, Priority.FILL)

NOT_STORED: Final = "the origin's answer may not be stored"
PASSING_S: Final = 60.0
"""How long after an answer that could not be stored nobody waits for somebody else's."""


class LiveEntry(LinkedEntry):
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
        self._inquiry: Inquiry | None = None
        self._terms: Terms | None = None
        """On whose terms the origin was last asked."""
        self._passing_until_s = float("-inf")
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
                or self._inquiry
                or self._renewing
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

    def attach(self, terms: Terms = ANY_TERMS) -> Content:
        """Count a reader in and return the content it reads; :meth:`detach` it later.

        What its file does not hold, though it should, is dropped first. An entry
        that failed before anything was known of it is retried if its back-off has
        passed, or if *terms* want it; of any other, what is stored may be read.

        Raises:
            CacheError: it has failed and must rest, or the cache is closing.
        """
        self.check_file()
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
        """Count a reader out."""
        with self._lock:
            self._readers -= 1
        content.file.release()
        self._around.on_change(self)

    def want(self, demand: Demand | None, start: int, stop: int, *, blocked: bool) -> Demand:
        """Tell which bytes a reader wants next and whether it waits; return its demand.

        Raises:
            CacheError: it waits, and the entry has failed and must rest.
            StorageError: it waits for what could not be stored.
        """
        with self._lock:
            if blocked:
                self._revive()
                if self._is_passing() and not self._claims.holds(start):
                    raise StorageError(NOT_STORED)
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
        with self._lock:
            if self._inquiry is not None and self._inquiry.claim is not None:
                self._claims.cancel(self._inquiry.claim)
        for cancel in list(self.on_close):
            cancel()

    def refusal(self) -> StorageError | None:
        """Return why nothing can be stored just now, or None."""
        with self._lock:
            cause = self._attempts.cause
            resting = self._attempts.not_before_s > self._around.ticks()
            return cause if resting and isinstance(cause, StorageError) else None

    # -- questions -------------------------------------------------------------

    def is_coming(self, start: int, stop: int) -> bool:
        """Say whether somebody has been promised the first byte that is missing there."""
        with self._lock:
            gap = next(self._content.present.gaps(start, stop), None)
            return gap is not None and self._claims.holds(gap.start)

    def use_of(self, content: Content, terms: Terms) -> Use:
        """Return what may be done with *content*, if anything is known of it, on *terms*."""
        with self._lock:
            stored = content.stored
            if stored is None:
                return Use.AFTER_ASKING if terms.may_ask() else Use.NEVER
            if content.confirmed_s >= terms.since_s or self._is_held():
                return Use.NOW
            return terms.use_of(stored, self._around.clock())

    def own_terms(self, terms: Terms) -> Terms:
        """Return *terms* with the fields that this entry is told apart by, whoever asks."""
        with self._lock:
            selected_by = vary_from_json(self._lifecycle.record.vary)
        others = without(terms.forwarded, (name for name, _ in selected_by))
        chosen = ((name, value) for name, value in selected_by if value is not None)
        secrets = self._around.secrets_of(self.key) or ()
        return replace(terms, forwarded=(*others, *chosen), secrets=tuple(secrets))

    def selects(self, content: Content, terms: Terms) -> bool:
        """Say whether *content* is what a request with these fields selects. RFC 9111 §4.1."""
        with self._lock:
            if content is not self._content or terms.fresh_s is not None:
                return True
            selected_by = vary_from_json(self._lifecycle.record.vary)
        return all(value == value_of(terms.forwarded, name) for name, value in selected_by)

    def may_use_on_error(self, content: Content, terms: Terms) -> bool:
        """Say whether *content* may stand in for an origin that cannot answer."""
        with self._lock:
            stored = content.stored
        return stored is not None and terms.may_use_on_error(stored, self._around.clock())

    def is_for_each(self, content: Content) -> bool:
        """Say whether who must ask about *content* had better get an answer of his own.

        The origin's last answer could not be stored, not long ago: the next one likely
        cannot either. Or nothing tells whether *content* is current, and others read it
        while it comes: an answer that took its place would cut them off.
        """
        with self._lock:
            if content.representation is None:
                return self._is_passing()
            is_read = self._readers > 1 and len(self._claims) > 0
            return is_read and not content.representation.validator.request_fields

    def inquire(
        self, content: Content, terms: Terms, start: int, stop: int, asker: object | None
    ) -> Inquiry:
        """Have the origin asked about *content*, or join whoever asks; :meth:`leave` it later.

        It is done at once if the answer to somebody else's question has just come.
        *asker* is None where nobody waits for the answer.

        Raises:
            CacheError: the entry has failed and must rest.
        """
        with self._lock:
            if content is not self._content or self.use_of(content, terms) is Use.NOW:
                return Inquiry(terms, start, stop, asker, waiting=1, done=True)
            if content.representation is None:
                self._revive(terms)
            inquiry = self._inquiry
            if inquiry is None:
                # Unless nothing but what is asked for is to come, its answer may go on.
                to_the_end = self._policy.fill is not Fill.REQUESTED
                start = start if start < END else 0
                stop = END if to_the_end else max(stop, start + 1)
                inquiry = self._inquiry = Inquiry(terms, start, stop, asker)
                if self._content.representation is None:
                    # Somebody is asking already, on a person's order.
                    inquiry.claim = next(iter(self._claims), None)
                if inquiry.claim is not None:
                    inquiry.claim.inquiry = inquiry
            if asker is not None:
                inquiry.waiting += 1
        self._around.on_change(self)
        return inquiry

    def wait_answer(
        self, inquiry: Inquiry, ready: Callable[[], bool], timeout_s: float | None
    ) -> bool:
        """Wait until *inquiry* is done or *ready* says so; False on timeout.

        Raises:
            CacheError: there will be no answer.
        """
        content = self.content

        def hopeless(deadline_s: float | None) -> CacheError | None:
            if content.representation is None:
                return self._hopeless(content, deadline_s)
            return self._closed  # what is stored stays, whatever the answer

        with self._lock:
            return self._waiters.wait(lambda: inquiry.done or ready(), hopeless, timeout_s)

    def leave(self, inquiry: Inquiry) -> None:
        """Wait for *inquiry* no more; if nobody does, it is given up."""
        passed = None
        with self._lock:
            inquiry.waiting -= 1
            if inquiry.waiting:
                return
            claim = inquiry.claim
            if inquiry.done:
                passed, inquiry.passed = inquiry.passed, None
            elif claim is None:
                self._inquiry = None
            elif claim.content.representation is None:
                self._linger(inquiry)  # the answer is still wanted for a while
            else:
                self._claims.cancel(claim)
        if passed is not None:
            passed.close()
        self._around.on_change(self)

    # -- orders ----------------------------------------------------------------

    def start(
        self,
        asked_by: str,
        priority: Priority,
        ranges: Iterable[tuple[int, int]] = ((0, END),),
        *,
        within_s: float | None = None,
    ) -> None:
        """Put the entry in the queue on somebody's behalf; a pause or failure ends.

        That takes the place of what the same asker ordered before. Not met *within_s*,
        the order is given up.
        """
        self.check_file()
        expires_at_s = None if within_s is None else self._around.ticks() + within_s
        order = [Demand(asked_by, priority, *run, expires_at_s) for run in RangeSet(ranges)]
        with self._lock:
            state = self._lifecycle.state
            if all(demand.is_met(self._content) for demand in order):
                return
            if state in (DownloadState.PAUSED, DownloadState.FAILED):
                self._send("resume" if state is DownloadState.PAUSED else "retry", asked_by=PERSON)
            self._demands.drop(asked_by)
            for demand in order:
                self._demands.add(demand)
            self._enqueue(*order)
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
        """Invalidate the entry if there is anything to it."""
        old = None
        with self._lock:
            if self._content.representation is not None:
                old = self._invalidate(reason)
                self._demands.drop_left()
        if old is not None:
            old.discard()
        self._around.on_change(self)

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
                offset_s = self._around.clock() - self._around.ticks()
                self._demands.add(Demand.of(queued, offset_s))
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
            lapsed = self._expire_demands(now_s)
            self._replace_stalled(now_s)
            state, content, ask = self._lifecycle.state, self._content, self._ask()
            if self._closed is not None or self._renewing or self._is_held():
                return None
            if state in (DownloadState.COMPLETE, DownloadState.FAILED):
                return self._view((), ask) if ask is not Ask.NO else None
            wants = self._demands.wants(now_s, self._policy.limits.patience_s)
            if self._is_passing():
                # Nothing is fetched ahead of anybody where it could not be stored.
                wants = tuple(want for want in wants if want.priority not in _AHEAD)
            if content.is_here and not self._claims:
                if wants and state is DownloadState.PAUSED:
                    self._send("resume")
                if self._lifecycle.state in ACTIVE:
                    self._around.on_dirty(self, True)  # the flush will finish it
                return self._view((), ask) if ask is not Ask.NO else None
            if not wants and not self._claims and ask is Ask.NO:
                if lapsed and state not in ACTIVE:  # it never came to its turn
                    self._send("resume" if state is DownloadState.PAUSED else "initialize")
                if self._lifecycle.state in ACTIVE:
                    self._send("pause", reason=self._demands.ended)
                return None
            if wants and content.asked_past_end and content.representation is None:
                wants = (Want(0, 1, Priority.BLOCKED), *wants)
            if self._around.secrets_of(self.key) is None and ask is Ask.NO:
                return None  # whoever has the credentials for it has not come back yet
            return self._view(wants, ask)

    def _view(self, wants: tuple[Want, ...], ask: Ask) -> EntryView:
        content, now_s = self._content, self._around.ticks()
        return EntryView(
            id=self.id,
            host=self.url.origin,
            present=content.present.copy(),
            wants=wants,
            streams=self._claims.views(now_s),
            length=content.length,
            seekable=content.joinable,
            settled=content.representation is not None,
            ask=ask,
            width=self._claims.width(now_s),
            origin=self._claims.origin.view(),
        )

    def _is_asking(self) -> bool:
        return bool(self._claims) or self._ask() is Ask.UNDER_WAY

    def _ask(self) -> Ask:
        if self._inquiry is None:
            return Ask.NO
        return Ask.WANTED if self._inquiry.claim is None else Ask.UNDER_WAY

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
            if self._renewing or (self._unproven and self._is_asking()):
                return None  # one connection proves a fresh link, and then there may be more
            inquiry = self._inquiry if wish.asks else None
            if wish.asks:
                if inquiry is None or inquiry.claim is not None:
                    return None
                self._terms = inquiry.terms
                if self._content.representation is not None:
                    return self._send_along(self._claims.ask(self._content, inquiry, now_s))
                wish = replace(wish, start=inquiry.start, stop=inquiry.stop)
                if self._content.asked_past_end:
                    wish = replace(wish, start=0, stop=1)
            if self._content.is_here:
                return None  # the last of it came after the plan was made
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
            if claim is not None:
                claim.inquiry = inquiry
                self._send_along(claim)
            if state not in ACTIVE and READER in self._demands.askers:
                self._enqueue(Demand(READER, Priority.FILL))
        if old is not None:
            old.discard()
        return claim

    def _send_along(self, claim: Claim) -> Claim:
        """Give a claim the request fields that it goes out with."""
        # Or as whoever asked before the last start of the program did.
        terms = self._terms or self.own_terms(ANY_TERMS)
        claim.forwarded, claim.secrets = terms.forwarded, terms.secrets
        claim.hands_on = terms.hands_on
        if claim.inquiry is not None:
            claim.conditions += terms.directives
        claim.asked_at_s = self._around.clock()
        if claim.inquiry is not None:
            claim.inquiry.claim = claim
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
            if (self._demands or self._inquiry) and not_before_s > now_s:
                moments.append(not_before_s)
            due = min((moment for moment in moments if moment is not None), default=None)
            # Whatever is overdue has just been looked at: never spin on it.
            return None if due is None else max(due, now_s + 0.05)

    # -- downloaders -----------------------------------------------------------

    def passes(self, claim: Claim, fetch: Fetch) -> bool:
        """Say whether an answer may not be stored and was handed to the one who asked.

        If nobody did, none is stored but what a person ordered, and whoever waits for it
        gets it elsewhere.
        """
        inquiry, old = claim.inquiry, None
        fields = fetch.answer.representation.fields
        with self._lock:
            if claim.cancelled:
                return False
            if inquiry is None:
                # A client's own words were about the answer to that client.
                terms = replace(self._terms or ANY_TERMS, request_fields=())
                if not terms.may_store(HTTPStatus.OK, fields) and self._demands.are_readers:
                    self._claims.cancel_all()
                    self._let_pass()
                return False
            inquiry.cookies = cookies_of(fetch.fields)
            if inquiry.terms.may_store(HTTPStatus.OK, fields):
                return False
            if claim.content is self._content:
                self._claims.forget(claim)
                old = self._invalidate(NOT_STORED)
                self._demands.drop_left()
                if not inquiry.terms.forbids_storing:  # else the next answer may be stored
                    self._let_pass()
            handed = inquiry.waiting > 0 and inquiry.asker is not None
            inquiry.passed = fetch if handed else None
            self._resolve(inquiry)
            claim.cancelled = True
        if old is not None:
            old.discard()
        self._around.on_change(self)
        return handed

    def answered(self, claim: Claim, answer: Answer) -> bool:
        """Take note of an acceptable answer; False if the claim is not wanted any more.

        Raises:
            RepresentationChanged: its bytes cannot be joined with the stored ones.
        """
        replaced: ContentFile | None = None
        with self._lock:
            if claim.cancelled:
                return False
            if claim.asks and claim.inquiry is not None:
                replaced = self._replace(claim, claim.inquiry, answer)
                if replaced is None:
                    return False
            self._take_note(claim, answer)
        if replaced is not None:
            replaced.discard()
        self._around.on_change(self)
        return True

    def _replace(self, claim: Claim, inquiry: Inquiry, answer: Answer) -> ContentFile | None:
        """Begin a generation with what answers a question; None if what is stored is current."""
        content, new = claim.content, answer.representation
        if content is not self._content:
            self._resolve(inquiry)  # it moved on meanwhile
            return None
        if content.representation is not None and new.validator.same_version(
            content.representation.validator
        ):
            # An origin that does not know conditions says so by sending it all.
            fields = update_fields(content.representation.fields, new.fields)
            self._hear(claim, replace(content.representation, fields=fields))
            inquiry.status = HTTPStatus.OK.value
            self._resolve(inquiry)
            return None
        old = self._invalidate("changed at the origin")
        self._send("initialize")
        self._claims.adopt(claim, self._content)
        return old

    def _take_note(self, claim: Claim, answer: Answer) -> None:
        content, new, inquiry = claim.content, answer.representation, claim.inquiry
        old = content.representation
        if old is not None and not new.validator.same_version(old.validator):
            raise RepresentationChanged("the answer cannot be joined with the stored bytes")
        if answer.start != claim.position or not new.accepts_ranges:
            self._claims.take_all(claim, answer.start, answer.stop)
        claim.reach = answer.stop
        self._claims.answered(claim, self._around.ticks(), accepts_ranges=new.accepts_ranges)
        claim.stop = min(claim.stop, answer.stop)
        self._renewals = 0
        self._hear(claim, new)
        if inquiry is not None and not inquiry.done:
            self._linger(inquiry)
            self._resolve(inquiry)
        self._waiters.wake()

    def _hear(self, claim: Claim, new: Representation) -> None:
        """Write down what the origin said in answer to *claim*."""
        terms = self._terms or Terms(forwarded=claim.forwarded)
        self._learn(
            claim.content,
            new,
            asked_at_s=claim.asked_at_s,
            selected_by=terms.vary_key(new.fields) or (),
        )

    def _resolve(self, inquiry: Inquiry, error: CacheError | None = None) -> None:
        """End an inquiry: whoever waits for it looks again."""
        inquiry.done, inquiry.error = True, error
        if self._inquiry is inquiry:
            self._inquiry = None
        self._waiters.wake_all()

    def _linger(self, inquiry: Inquiry) -> None:
        """Let what was asked for be wanted for the grace: who asked says soon what he wants."""
        demand = self._demands.add_reader(inquiry.start, inquiry.stop, Priority.READ_AHEAD)
        self._demands.drop_reader(demand, self._around.ticks())
        self._enqueue(Demand(READER, Priority.FILL))

    def _question_over(self, claim: Claim, error: Exception | None) -> ContentFile | None:
        """Do what the answer to a question calls for that brought no bytes."""
        content, inquiry = claim.content, claim.inquiry
        if inquiry is None or inquiry.done:
            return None
        if content is not self._content:
            self._resolve(inquiry)
        elif isinstance(error, NotModified) and content.representation is not None:
            try:
                current = read_not_modified(error.told, held=content.representation)
            except RepresentationChanged:
                return self._outdate(inquiry)
            self._hear(claim, current)
            inquiry.status = HTTPStatus.NOT_MODIFIED.value
            self._resolve(inquiry)
        elif isinstance(error, (UnsatisfiedByOrigin, RepresentationChanged)):
            return self._outdate(inquiry)
        elif error is not None:
            self._resolve(inquiry, error if isinstance(error, CacheError) else _unexpected(error))
        return None

    def _outdate(self, inquiry: Inquiry) -> ContentFile:
        """Drop what is stored, as the origin has another version: that is asked for anew."""
        old = self._invalidate("changed at the origin")
        self._resolve(inquiry)
        return old

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
            if claim.inquiry is not None and isinstance(error, OriginStatus):
                claim.inquiry.cookies = error.cookies
            refused = error is not None and counts and self._claims.origin.refused(error)
            one_too_many = refused and claim.inquiry is None  # else somebody is to hear it
            self._claims.end(claim)
            if counts and self._expires(error):
                pass  # a fresh link is asked for; until then there are no connections
            elif counts and claim.asks:
                old = self._question_over(claim, error)
            elif counts:
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
            self._ask_again(claim)
            urgent = self._content.is_here
            self._waiters.wake_all()
        if old is not None:
            old.discard()
        self._around.on_dirty(self, urgent)
        self._around.on_change(self)

    # -- with the lock held ----------------------------------------------------

    def _ask_again(self, claim: Claim) -> None:
        """See to it that an inquiry whose connection is over is answered, or asked once more."""
        inquiry = claim.inquiry
        if inquiry is None or inquiry.done or inquiry.claim not in (None, claim):
            return
        if claim.asks or claim.content.representation is None:
            inquiry.claim = None
            if not inquiry.waiting:
                self._resolve(inquiry)
        else:
            self._resolve(inquiry)  # there are no bytes, and that is all to be known

    def _after_error(self, claim: Claim, error: Exception) -> ContentFile | None:
        """Do what an attempt's error calls for; return a file to discard, if any."""
        content = claim.content
        verdict = judge(error, content, claim.position)
        if claim.inquiry is not None and _is_an_answer(error):
            # Whoever asks is there to hear it, and knows better whether to ask again.
            self._fail(error, rest_s=0.0)
            answer = Negative.of(
                error,
                claim.inquiry.terms,
                requested_s=claim.asked_at_s,
                received_s=self._around.clock(),
                guess_s=self._policy.retries.permanent_s,
            )
            self._around.negatives.note(self.id, answer)
        elif verdict is Verdict.TRY_AGAIN:
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

    def _revive(self, terms: Terms = ANY_TERMS) -> None:
        """Retry a failed entry on a reader's behalf, or raise why it cannot be read."""
        if self._closed is not None:
            raise self._closed.again()
        failure = self.failure()
        if failure is None:
            return
        answer = self._around.negatives.of(self.id)
        given = answer.again(terms, self._around.clock()) if answer is not None else None
        if given is not None:
            raise given
        if is_resting(self._lifecycle.record, self._around.clock()):
            raise failure.again()
        self._send("retry")

    def _go_on(self, event: str) -> None:
        # Takes the lock itself: the common part of two orders.
        with self._lock:
            self._send(event, asked_by=PERSON)
            self._attempts.reset()
            order = Demand(PERSON, Priority.PERSON)
            self._demands.drop(PERSON)
            self._demands.add(order)
            self._enqueue(order)
        self._around.on_change(self)

    def _let_pass(self) -> None:
        """Let nobody wait for what could not be stored, for a while."""
        self._passing_until_s = self._around.ticks() + PASSING_S
        self._demands.drop_left()
        self._demands.calm()
        self._waiters.refuse(StorageError(NOT_STORED))

    def _is_passing(self) -> bool:
        return self._around.ticks() < self._passing_until_s

    def _is_held(self) -> bool:
        record = self._lifecycle.record
        return record.state == DownloadState.PAUSED and record.state_reason == PERSON

    def _expire_demands(self, now_s: float) -> bool:
        before = self._demands.askers
        lapsed = self._demands.expire(now_s, self._content)
        for asker in before - self._demands.askers:
            self._around.store.dequeue(self.id, asker)
        return lapsed

    def _enqueue(self, *order: Demand) -> None:
        now_s = self._around.clock()
        offset_s = now_s - self._around.ticks()
        self._around.store.enqueue(*(demand.record(self.id, now_s, offset_s) for demand in order))

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

    def _move(self, url: OriginUrl) -> None:
        super()._move(url)
        self._negative = None
        self._claims.origin = self._around.origins.of(url.origin)

    def _give_up(self, error: CacheError) -> None:
        if self._inquiry is not None:
            self._resolve(self._inquiry, error)
        if self._lifecycle.state in (*ACTIVE, DownloadState.PAUSED):
            self._fail(error, rest_s=self._policy.retries.rest_s(error))


_EMPTY: Final = Representation(
    complete_length=None, validator=Validator(), fields=(), accepts_ranges=True
)
"""What a 416 to the very first question tells: there is no byte, and nothing else."""


def _is_an_answer(error: Exception) -> TypeGuard[OriginStatus]:
    """Say whether the origin gave a final answer, if not the one that was hoped for."""
    return (
        isinstance(error, OriginStatus)
        and not isinstance(error, UnsatisfiedByOrigin)
        and error.retry_after_s is None
    )


def _unexpected(error: Exception) -> CacheError:
    return OriginError(f"internal error: {type(error).__name__}")
