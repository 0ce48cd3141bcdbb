"""Questions of an entry to its origin about the file as a whole, and their answers.

They are: what the file is, if nothing is known of it; and whether what is stored is still
current. This layer knows with whose request fields the question is asked, who waits for
the answer, and what is done if that may not be stored, tells of another version, or does
not come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from math import inf
from typing import Final

from .acceptance import Answer, read_not_modified
from .claims import Claim, Claims, Inquiry
from .content import Content
from .demands import READER, Demand, Demands, Fill
from .errors import (
    CacheError,
    NotModified,
    OpenBody,
    OriginError,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)
from .fields import cookies_of, without
from .freshness import chosen_by
from .lifecycle import is_resting
from .linked import LinkedEntry
from .models import EntryRecord, QueueRecord
from .origin import Fetch
from .ranges import END
from .records import vary_from_json
from .representation import Representation, update_fields
from .retries import Attempts
from .scheduler import Ask, Priority
from .states import ACTIVE, DownloadState
from .surroundings import Surroundings
from .terms import ANY_TERMS, Terms, Use
from .urls import OriginUrl

__all__ = ["NOT_STORED", "AskingEntry", "unexpected"]

NOT_STORED: Final = "the origin's answer may not be stored"

PASSING_S: Final = 60.0
"""After an answer that may not be stored, for how long readers do not wait for one another's
answers, but each asks the origin for its own."""

SAYS_SOON_S: Final = 0.5
"""The longest time from the origin's answer until its reader has said which bytes it wants."""


class AskingEntry(LinkedEntry):
    """An entry with its claims, its demands, and at most one question under way."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        super().__init__(record, surroundings)
        self._policy = surroundings.policy
        # Read write, under the lock.
        self._claim_moved = threading.Condition(self._lock)
        self._claims = Claims(
            surroundings.origins.of(self.url.origin),
            self._policy.limits,
            self._claim_moved.notify_all,
        )
        self._demands = Demands(self._policy.fill, self._policy.grace_s)
        self._readers = 0
        self._attempts = Attempts(self._policy.retries)
        self._inquiry: Inquiry | None = None
        self._terms: Terms | None = None
        """The terms of the request on whose behalf the origin was last asked."""
        self._passing_until_s = float("-inf")

    # -- those who wait for an answer ------------------------------------------

    def use_of(self, content: Content, terms: Terms) -> Use:
        """Return whether *content* may be served to a request on *terms*, or what comes first."""
        with self._lock:
            stored = content.stored
            if stored is None:
                return Use.AFTER_ASKING if terms.may_ask() else Use.NEVER
            if content.confirmed_s >= terms.since_s or self._is_held():
                return Use.NOW
            return terms.use_of(stored, self._around.clock())

    def own_terms(self, terms: Terms) -> Terms:
        """Return *terms* with this entry's own credentials and Vary fields in place of theirs."""
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
        return selected_by == chosen_by((name for name, _ in selected_by), terms.forwarded)

    def may_use_on_error(self, content: Content, terms: Terms) -> bool:
        """Say whether *content* may stand in for an origin that cannot answer."""
        with self._lock:
            stored = content.stored
        return stored is not None and terms.may_use_on_error(stored, self._around.clock())

    def is_for_each(self, content: Content) -> bool:
        """Say whether a reader that must ask the origin should read an answer of its own.

        So it is if the origin's last answer, not long ago, could not be stored: the next
        one likely cannot be either. And so it is if *content* has no validator to ask with
        while others read it as it arrives: a new answer would replace it and cut them off.
        """
        with self._lock:
            if content.representation is None:
                return self._is_passing()
            is_read = self._readers > 1 and len(self._claims) > 0
            return is_read and not content.representation.validator.request_fields

    def inquire(
        self,
        content: Content,
        terms: Terms,
        start: int,
        stop: int,
        asker: object | None,
        *,
        end: int = 0,
    ) -> Inquiry:
        """Have the origin asked about *content*, or join the question that is under way.

        The caller has to :meth:`leave` the inquiry later. It is ``done`` at once if
        somebody else's answer has just made the question unnecessary. The reader wants
        ``[start, stop)``, and bytes up to *end* if they all have to come from this answer.
        *asker* is None if nobody waits for the answer.

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
                now_s = self._around.ticks()
                inquiry = self._inquiry = Inquiry(terms, start, stop, asker, since_s=now_s)
                if self._content.representation is None:
                    # Somebody is asking already, on a person's order.
                    inquiry.claim = next(iter(self._claims), None)
                if inquiry.claim is not None:
                    inquiry.claim.inquiry = inquiry
            inquiry.end = max(inquiry.end, end)
            if asker is not None:
                inquiry.waiting += 1
        self._around.on_change(self)
        return inquiry

    def wait_answer(
        self, inquiry: Inquiry, ready: Callable[[], bool], timeout_s: float | None
    ) -> bool:
        """Wait until *inquiry* is done or *ready* returns True; False on timeout.

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
        """Stop waiting for *inquiry*; it is given up once nobody waits for it."""
        passed: Fetch | None = None
        body: OpenBody | None = None
        with self._lock:
            inquiry.waiting -= 1
            if inquiry.waiting:
                return
            claim = inquiry.claim
            if inquiry.done:
                passed, inquiry.passed = inquiry.passed, None
                body, inquiry.open = inquiry.open, None
            elif claim is None:
                self._inquiry = None
            elif claim.content.representation is None and self._closed is None:
                self._linger(inquiry)  # the answer is still wanted for a while
            else:
                self._claims.cancel(claim)
                self._resolve(inquiry)  # at once: who comes next asks for himself
        for left in (passed, body):
            if left is not None:
                left.close()
        self._around.on_change(self)

    # -- answers ---------------------------------------------------------------

    def passes(self, claim: Claim, fetch: Fetch) -> bool:
        """Say whether an answer may not be stored and was handed to the reader that asked.

        If no reader asked, a forbidden answer is stored only where a person has ordered it;
        readers that wait for it have to get answers of their own.
        """
        inquiry, fields = claim.inquiry, fetch.answer.representation.fields
        with self._letting_go():
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
                self._invalidate(NOT_STORED)
                self._demands.drop_left()
                if not inquiry.terms.forbids_storing:  # else the next answer may be stored
                    self._let_pass()
            handed = inquiry.asker_waits
            inquiry.passed = fetch if handed else None
            self._resolve(inquiry)
            claim.cancelled = True
        self._around.on_change(self)
        return handed

    # -- with the lock held ----------------------------------------------------

    def _replace(self, claim: Claim, inquiry: Inquiry, answer: Answer) -> bool:
        """Begin a new generation with the answer to a question.

        Returns False if there is no need, as the answer shows what is stored to be current.
        """
        content, new = claim.content, answer.representation
        if content is not self._content:
            self._resolve(inquiry)  # it moved on meanwhile
            return False
        if content.representation is not None and new.validator.same_version(
            content.representation.validator
        ):
            # An origin that does not know conditions says so by sending it all.
            fields = update_fields(content.representation.fields, new.fields)
            self._hear(claim, replace(content.representation, fields=fields))
            inquiry.status = HTTPStatus.OK.value
            self._resolve(inquiry)
            return False
        self._invalidate("changed at the origin")
        self._send("initialize")
        self._claims.adopt(claim, self._content)
        claim.generation = self._lifecycle.record.generation
        return True

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
        """End an inquiry, with *error* if it brought no answer, and wake those who wait for it."""
        inquiry.done, inquiry.error = True, error
        if self._inquiry is inquiry:
            self._inquiry = None
        self._waiters.wake_all()

    def _linger(self, inquiry: Inquiry) -> None:
        """Keep the bytes of an unfinished inquiry wanted for the grace, though nobody waits.

        A reader that has just asked says soon which bytes it wants; until then the answer
        must not be broken off.
        """
        stop, most_bytes = inquiry.stop, self._policy.max_bytes
        if most_bytes is not None and most_bytes < self._content.length < END:
            stop = min(stop, inquiry.start + self._policy.limits.near_bytes)  # not all of it
        demand = self._demands.add_reader(inquiry.start, stop, Priority.READ_AHEAD)
        self._demands.drop_reader(demand, self._around.ticks())
        demand.moved_s = self._around.ticks()  # who asked is about to read
        # Without a grace, too: or the answer would be broken off before that.
        demand.expires_at_s = demand.moved_s + max(self._policy.grace_s, SAYS_SOON_S)
        if self._removed:
            return
        try:
            self._enqueue(Demand(READER, Priority.FILL))
        except StorageError as error:  # only the next start would have read it
            self._around.trouble.note(error)

    def _question_over(self, claim: Claim, error: Exception | None) -> None:
        """Act on the end of a claim that asked a question and brought no bytes.

        Raises:
            StorageError: the consequence cannot be recorded.
        """
        content, inquiry = claim.content, claim.inquiry
        if inquiry is None or inquiry.done:
            return
        if content is not self._content:
            self._resolve(inquiry)
        elif isinstance(error, NotModified) and content.representation is not None:
            try:
                current = read_not_modified(error.told, held=content.representation)
            except RepresentationChanged:
                self._outdate(inquiry)
                return
            try:
                self._hear(claim, current)
            except StorageError as refusal:  # it is current, if only this process knows
                self._around.trouble.note(refusal)
                content.confirmed_s = self._around.ticks()
            inquiry.status = HTTPStatus.NOT_MODIFIED.value
            self._resolve(inquiry)
        elif isinstance(error, (UnsatisfiedByOrigin, RepresentationChanged)):
            self._outdate(inquiry)
        elif isinstance(error, StorageError):
            raise error
        elif error is not None:
            self._resolve(inquiry, error if isinstance(error, CacheError) else unexpected(error))

    def _outdate(self, inquiry: Inquiry) -> None:
        """Drop what is stored, as the origin has another version; it is then asked for anew."""
        self._invalidate("changed at the origin")
        self._resolve(inquiry)

    def _ask_again(self, claim: Claim) -> None:
        """Settle an inquiry whose connection ended without an answer, or have it asked again."""
        inquiry = claim.inquiry
        if inquiry is None or inquiry.done or inquiry.claim not in (None, claim):
            return
        if claim.asks or claim.content.representation is None:
            inquiry.claim = None
            if not inquiry.waiting:
                self._resolve(inquiry)
        else:
            self._resolve(inquiry)  # there are no bytes, and that is all to be known

    def _send_along(self, claim: Claim) -> Claim:
        """Give a claim the request fields that it goes out with."""
        # Or as whoever asked before the last start of the program did.
        terms = self._terms or self.own_terms(ANY_TERMS)
        claim.forwarded, claim.secrets = terms.forwarded, terms.secrets
        claim.hands_on = terms.hands_on
        if claim.inquiry is not None:
            claim.conditions += terms.directives
        claim.asked_at_s, claim.url = self._around.clock(), self.url
        claim.generation = self._lifecycle.record.generation
        if claim.inquiry is not None:
            claim.inquiry.claim = claim
        return claim

    def _ask(self) -> Ask:
        if self._inquiry is None:
            return Ask.NO
        return Ask.WANTED if self._inquiry.claim is None else Ask.UNDER_WAY

    def _impatient_s(self) -> float:
        """Return when somebody will have waited for long that a question goes out, else inf."""
        inquiry = self._inquiry
        if inquiry is None or inquiry.claim is not None or not inquiry.waiting:
            return inf
        return inquiry.since_s + self._policy.limits.patience_s

    def _is_asking(self) -> bool:
        return bool(self._claims) or self._ask() is Ask.UNDER_WAY

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

    def _enqueue(self, *order: Demand) -> None:
        self._around.store.enqueue(*self._queued(*order))

    def _queued(self, *order: Demand) -> tuple[QueueRecord, ...]:
        """Return the rows that one asker's demands have in the queue."""
        now_s = self._around.clock()
        offset_s = now_s - self._around.ticks()
        return tuple(demand.record(self.id, now_s, offset_s) for demand in order)

    def _let_pass(self) -> None:
        """For a while, let no reader wait for an answer here: the last one may not be stored."""
        self._passing_until_s = self._around.ticks() + PASSING_S
        self._demands.drop_left()
        self._demands.calm()
        self._waiters.refuse(StorageError(NOT_STORED))

    def _is_passing(self) -> bool:
        return self._around.ticks() < self._passing_until_s

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

    def _finished(self) -> None:
        self._demands.drop_others()
        self._attempts.reset()

    def _hold_off(self, error: CacheError) -> None:
        self._attempts.hold_off(error, self._around.ticks())

    def _stop_filling(self) -> None:
        self._claims.cancel_all()

    def _move(self, url: OriginUrl) -> None:
        super()._move(url)
        self._around.negatives.forget(self.id)
        self._claims.origin = self._around.origins.of(url.origin)

    def _give_up(self, error: CacheError) -> None:
        if self._inquiry is not None:
            self._resolve(self._inquiry, error)
        if self._lifecycle.state in (*ACTIVE, DownloadState.PAUSED):
            self._fail(error, rest_s=self._policy.retries.rest_s(error))


def unexpected(error: Exception) -> CacheError:
    """Return the error to report in place of an unforeseen one, whose text might tell secrets."""
    return OriginError(f"internal error: {type(error).__name__}")
