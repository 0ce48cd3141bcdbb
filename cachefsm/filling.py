"""An entry as it is filled: what the conductor is shown and grants, and what downloaders bring."""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus
from math import inf
from typing import Final, TypeGuard, cast

from . import facts
from .acceptance import Answer
from .asking import AskingEntry, unexpected
from .claims import Claim, Inquiry
from .content import Content
from .demands import READER, Demand
from .errors import (
    CacheError,
    OpenBody,
    OriginStatus,
    OriginTimeout,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)
from .meters import RateMeter
from .models import EntryRecord
from .negative import Negative
from .ranges import END, ByteRange
from .representation import Representation
from .retries import Verdict, judge
from .scheduler import Abandoned, Ask, EntryView, Open, Priority, SetStop, Want
from .semantics import Validator
from .states import ACTIVE, DownloadState
from .surroundings import Surroundings

__all__ = ["FillingEntry"]

_log = logging.getLogger(__name__)

FLUSH_BYTES: Final = 16 << 20
"""Unsynced bytes at which a flush is asked for at once. A coalesced range row
every 16 MiB costs about 4 ms/GiB; a row per 256 KiB would cost 305 ms/GiB."""

_AHEAD: Final = (Priority.READ_AHEAD, Priority.FILL)


class FillingEntry(AskingEntry):
    """An entry that the conductor plans for, and downloader threads write into."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        super().__init__(record, surroundings)
        self._meter = RateMeter(surroundings.ticks())

    # -- the conductor ---------------------------------------------------------

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is fetched, wanted or asked: there is nothing to decide or due."""
        with self._lock:
            busy = self._claims or self._demands or self._inquiry
            return not busy and self._lifecycle.state not in ACTIVE

    def view(self) -> EntryView | None:
        """Return what the scheduler should know, or None if there is nothing to decide.

        Also lets expired demands go, and an active entry that nobody wants come
        to rest.
        """
        with self._lock:
            now_s = self._around.ticks()
            lapsed = self._expire_demands(now_s)
            self._claims.nudge()
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
                self._come_to_rest(lapsed=lapsed)
                return None
            if self._demands.fills:
                opening = facts.opening_ranges(content, self._policy)
                wants += tuple(Want(*part, Priority.READ_AHEAD, apart=True) for part in opening)
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
            ask_since_s=0.0 if self._inquiry is None else self._inquiry.since_s,
            ask_impatient=now_s >= self._impatient_s(),
            width=self._claims.width(now_s),
            skip_bytes=self._claims.skip_bytes(content.length),
            rests=now_s < self._attempts.not_before_s,
            origin=self._claims.origin.view(),
        )

    def grant(self, wish: Open) -> Claim | None:
        """Return a claim for what the plan wants opened, or None if that went stale.

        Moves the entry to where a download may run.

        Raises:
            StorageError: the move could not be written; nothing has changed.
        """
        self.check_file()
        with self._letting_go():
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
                self._invalidate("the origin's answers cannot be joined")
                wish = replace(wish, start=0, stop=END)
            if not self._go_active():
                return None
            claim = self._claims.grant(self._content, wish, now_s)
            if claim is not None:
                claim.inquiry = inquiry
                self._send_along(claim)
        return claim

    def refuse(self, error: CacheError) -> None:
        """Let nobody wait for what cannot be stored; try again after a rest."""
        self._around.trouble.note(error)
        self.stop_storing(error)

    def stop_storing(self, error: CacheError) -> None:
        """Store nothing more for a while, because of *error*: readers go straight, if they can."""
        with self._lock:
            self._claims.cancel_all()
            self._attempts.rest(self._around.ticks(), error)
            self._waiters.refuse(error)

    def set_stop(self, order: SetStop) -> None:
        """Let a claim end where the plan has it; see :class:`cachefsm.picture.SetStop`."""
        with self._lock:
            claim = self._claims.get(order.stream_id)
            if claim is None:
                return
            if order.may_wait and order.stop <= claim.position:
                claim.stop = claim.position  # which the plan did not know yet
                if self._is_followed(claim):
                    return
            self._claims.set_stop(claim, order.stop, self._around.ticks())

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
            rests_s = now_s + (self._claims.origin.rests_s() or 0.0)
            later = (self._attempts.not_before_s, self._impatient_s(), rests_s)
            # Or nobody is left, and only the move to rest was refused.
            wanted = self._demands or self._inquiry or self._lifecycle.state in ACTIVE
            moments += [moment_s for moment_s in later if wanted and now_s < moment_s < inf]
            due = min((moment for moment in moments if moment is not None), default=None)
            # Whatever is overdue has just been looked at: never spin on it.
            return None if due is None else max(due, now_s + 0.05)

    # -- downloaders -----------------------------------------------------------

    def answered(self, claim: Claim, answer: Answer) -> bool:
        """Take note of an acceptable answer; False if the claim is not wanted any more.

        Raises:
            RepresentationChanged: its bytes cannot be joined with the stored ones.
        """
        with self._letting_go():
            if claim.cancelled:
                return False
            if claim.asks and claim.inquiry is not None:
                if not self._replace(claim, claim.inquiry, answer):
                    return False
            elif _falls_short(claim, answer):
                self._ask_on(claim)
                return False
            self._take_note(claim, answer)
        self._around.on_change(self)
        return True

    def accept(self, claim: Claim, size: int) -> tuple[int, list[ByteRange]] | None:
        """Return how many of *size* received bytes to take, and which ranges of them to write.

        None if the stream should end. Where it has brought all that is wanted and a reader
        is close behind, the answer comes once that one has come on: a stream that is kept
        waiting costs the origin less than another request.
        """
        with self._lock:
            while not claim.cancelled:
                if claim.position < claim.stop:
                    stop = min(claim.position + size, claim.stop)
                    gaps = claim.content.present.gaps(claim.position, stop)
                    return stop - claim.position, list(gaps)
                if claim.stop == claim.reach:
                    return None if size else (0, [])  # what is there to receive is the end
                if not self._is_followed(claim):
                    return None
                claim.stop = claim.position  # which it may have outrun while it wrote
                self._claim_moved.wait(self._policy.limits.hold_s)
        return None

    def wrote(self, claim: Claim, stop: int, written: list[ByteRange]) -> None:
        """Publish bytes that are in the file now; the claim goes on at *stop*."""
        with self._lock:
            content, now_s = claim.content, self._around.ticks()
            size = self._publish(content, written, claim.generation)
            self._claims.received(claim, stop, size, now_s)
            if self._around.trouble.is_on:
                self._written_in_trouble = True
            self._meter.add(size, now_s)
            self._waiters.wake()
            urgent = self._content.dirty_bytes >= FLUSH_BYTES
        self._around.on_dirty(self, urgent)
        self._around.on_progress(self)

    def ended(self, claim: Claim, error: Exception | None, *, at_end: bool = False) -> None:
        """Take a claim back: done, or stopped by *error*; *at_end* if the body ended itself."""
        body = error.take() if isinstance(error, OriginStatus) else None
        with self._letting_go():
            counts = not claim.cancelled and self._closed is None
            if claim.inquiry is not None and isinstance(error, OriginStatus):
                claim.inquiry.cookies = error.cookies
            refused = counts and self._refused(claim, error)
            self._claims.end(claim)
            # If its link has expired a fresh one is asked for; until then nobody connects.
            if counts and not self._expires(error, claim.url):
                try:
                    self._conclude(claim, error, refused=refused, at_end=at_end)
                except StorageError as refusal:
                    # The database will not be told: memory stays as the row is.
                    self.refuse(refusal)
            self._ask_again(claim)
            body = self._hand_on(body, claim.inquiry, error)
            urgent = self._content.is_here
            self._waiters.wake_all()
        if body is not None:
            body.close()
        self._around.on_dirty(self, urgent)
        self._around.on_change(self)

    # -- with the lock held ----------------------------------------------------

    def _come_to_rest(self, *, lapsed: bool) -> None:
        """Pause, as nobody wants anything; so does what never came to its turn, if it *lapsed*."""
        state = self._lifecycle.state
        rest = ("pause", self._move_of(self._demands.ended))
        if state in ACTIVE:
            self._send_all(rest)
        elif lapsed:
            begin = "resume" if state is DownloadState.PAUSED else "initialize"
            self._send_all((begin, self._move_of(None)), rest)

    def _is_followed(self, claim: Claim) -> bool:
        """Say whether a reader will soon want what comes next of *claim*, and of no other."""
        content, position = claim.content, claim.position
        if self._claims.holds(position) or content.present.run_stop(position) > position:
            return False
        limits = self._policy.limits
        since_s = self._around.ticks() - limits.hold_s
        return self._demands.are_near(position, limits.near_bytes, since_s)

    def _go_active(self) -> bool:
        """Move to where a download may run; return whether there is such a way."""
        state, fill = self._lifecycle.state, Demand(READER, Priority.FILL)
        queued = self._queued(fill) if READER in self._demands.askers else ()
        if state is DownloadState.NOT_STARTED:
            self._send("initialize", demands=queued)
        elif state is DownloadState.PAUSED:
            self._send("resume", demands=queued)
        return state in (DownloadState.NOT_STARTED, DownloadState.PAUSED, *ACTIVE)

    def _refused(self, claim: Claim, error: Exception | None) -> bool:
        """Say whether *error* is of one connection too many, which the origin is known by."""
        if error is None or _is_of_the_file(claim, error):
            return False
        return self._claims.refused(claim, error)

    def _ask_on(self, claim: Claim) -> None:
        """Ask once more, for all that is to be read: there will be no second answer to join."""
        inquiry = cast(Inquiry, claim.inquiry)
        inquiry.stop, inquiry.claim = inquiry.end, None
        self._claims.cancel(claim)  # whose end lets the conductor look again

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
        if old is None and content.joinable:
            self._keep_to_what_is_wanted(claim)
        self._waiters.wake()

    def _keep_to_what_is_wanted(self, claim: Claim) -> None:
        """Let the first answer bring no more than that, now that its file's length is known.

        The conductor would say so a moment later; an origin close by brings megabytes
        in a moment.
        """
        if self._policy.limits.abandoned is Abandoned.FINISH:
            return
        self._expire_demands(self._around.ticks())
        wanted = self._demands.wanted_until(claim.position)
        if wanted > claim.position:  # else the conductor ends it
            claim.stop = min(claim.stop, wanted)

    def _conclude(
        self, claim: Claim, error: Exception | None, *, refused: bool, at_end: bool
    ) -> None:
        """Do what the end of a connection calls for that was still wanted.

        Raises:
            StorageError: it cannot be written down; nothing has changed.
        """
        one_too_many = refused and claim.inquiry is None  # else somebody is to hear it
        if claim.asks:
            self._question_over(claim, error)
        elif one_too_many and (self._claims.origin.knows_most or self._attempts.excuse()):
            _log.info("%s: goes on with fewer connections", self.shown_url)
        elif error is not None:
            self._after_error(claim, error)
        elif at_end and claim.content.complete_length is None:
            self._length_is(claim.content, claim.position)

    def _after_error(self, claim: Claim, error: Exception) -> None:
        """Do what an attempt's error calls for."""
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
            if error.is_for_one:
                self._resolve(claim.inquiry, error)  # everybody else asks for himself
            else:
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
            self._invalidate("changed at the origin")
        else:
            cause = error if isinstance(error, CacheError) else unexpected(error)
            self._fail(cause, rest_s=self._policy.retries.rest_s(cause))

    def _hand_on(
        self, body: OpenBody | None, inquiry: Inquiry | None, error: Exception | None
    ) -> OpenBody | None:
        """Give *error*'s body to the one who asked; return it if nobody is told of that."""
        if inquiry is None or inquiry.error is not error or not inquiry.asker_waits:
            return body
        inquiry.open = body
        return None

    def _replace_stalled(self, now_s: float) -> None:
        """Break off streams that bring nothing, or next to nothing, for too long."""
        speed = self._policy.speed
        for claim in self._claims:
            if not (claim.cancelled or speed.is_enough(claim, now_s)):
                self._claims.cancel(claim)
                self._try_again(claim, OriginTimeout("the origin's connection is too slow"))

    def _try_again(self, claim: Claim, error: Exception) -> None:
        delay_s = self._attempts.failed(
            error,
            self._around.ticks(),
            begun=self._content.representation is not None,
            # Bytes that the next attempt must throw away are no progress.
            progressed=claim.received_bytes > 0 and claim.content.joinable,
            asked_s=claim.granted_s,
        )
        cause = error if isinstance(error, CacheError) else unexpected(error)
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

    def _expire_demands(self, now_s: float) -> bool:
        before, dropped = self._demands.askers, False
        most_bytes, length = self._policy.max_bytes, self._content.complete_length
        if most_bytes is not None and length is not None:
            dropped = self._demands.drop_larger(length, most_bytes)
        lapsed = self._demands.expire(now_s, self._content) or dropped
        for asker in before - self._demands.askers:
            self._around.store.dequeue(self.id, asker)
        return lapsed

    def _may_finish(self) -> bool:
        return super()._may_finish() and not self._claims


_EMPTY: Final = Representation(
    complete_length=None, validator=Validator(), fields=(), accepts_ranges=True
)
"""What a 416 to the very first question tells: there is no byte, and nothing else."""


def _falls_short(claim: Claim, answer: Answer) -> bool:
    """Say whether an answer that nothing can be joined with ends before what is to be read."""
    inquiry, new = claim.inquiry, answer.representation
    if inquiry is None or claim.content.representation is not None or new.joinable:
        return False
    length = END if new.complete_length is None else new.complete_length
    return answer.stop < min(inquiry.end, length) and inquiry.stop < inquiry.end


def _is_of_the_file(claim: Claim, error: Exception) -> bool:
    """Say whether *error* is that one file's: a 503 to a question that somebody waits for.

    Its origin may bear more connections all the same, which others wait for.
    """
    is_asked = claim.inquiry is not None
    return is_asked and _is_an_answer(error) and error.status == HTTPStatus.SERVICE_UNAVAILABLE


def _is_an_answer(error: Exception) -> TypeGuard[OriginStatus]:
    """Say whether the origin gave a final answer, if not the one that was hoped for."""
    return (
        isinstance(error, OriginStatus)
        and not isinstance(error, UnsatisfiedByOrigin)
        and error.retry_after_s is None
    )
