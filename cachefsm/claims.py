"""Downloaders' promises: who fetches which bytes of one entry, and how fast.

Collapsing requests: claims never overlap and never cover stored bytes, so
whoever gets none waits for the one who has it. No locks here; the entry's guards it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Final

from .bodies import PIECE_BYTES
from .content import Content
from .errors import CacheError, OpenBody
from .fields import Fields
from .meters import RateMeter
from .origin import Fetch
from .origins import OriginFacts
from .parallel import WINDOW_BYTES, WINDOW_S, Seen, Trial, next_look_s, step
from .ranges import END
from .representation import Representation
from .scheduler import Limits, Open, Priority, StreamView
from .terms import Terms
from .throttle import Pace
from .urls import OriginUrl

__all__ = ["Claim", "Claims", "Inquiry", "SpeedLimits"]

THROWN_AWAY: Final = 0.004
"""The part of a file that may be received a second time, to spare requests."""

LATELY_S: Final = 1.0
"""A rate that holds a connection back does so again and again: every slice of it."""

_ids: Final = count(1)
_files: Final = count(1)


@dataclass(eq=False)
class Claim:
    """A promise to fetch ``[position, stop)`` of a content.

    ``reach`` is the stop that the origin was asked for, ``plain`` if that was
    without Range, and ``held`` what the answer is to be joined with; an *extra* one is
    there for speed. ``forwarded`` and ``secrets`` go with the request (see
    :class:`cachefsm.terms.Terms`), ``conditions`` too where it asks whether what is
    stored is current; ``hands_on`` says that a redirect is an answer like any other.
    Whoever waits for the answer has an ``inquiry``, and a claim that only ``asks`` is
    not among those that fill. ``begun`` is the first byte asked for, ``asked_at_s`` is
    Unix time, ``granted_s`` monotonic, ``url`` the link and ``generation`` the number that
    the entry had then. A claim that is *cancelled* may write and report nothing more;
    ``cancel_io`` wakes its thread out of a blocking read, and is set by that thread, as is
    the ``pace`` that keeps it to the rates allowed. One that has waited at its stop for a
    reader, at last until ``waited_s``, is no measure any more of how fast bytes come. Its
    connection stands until it *ended*, which only its thread can say.
    """

    content: Content
    position: int
    stop: int
    reach: int
    priority: Priority
    meter: RateMeter
    held: Representation | None
    plain: bool = False
    extra: bool = False
    forwarded: Fields = ()
    secrets: Fields = ()
    conditions: tuple[tuple[str, str], ...] = ()
    inquiry: Inquiry | None = None
    asks: bool = False
    hands_on: bool = False
    asked_at_s: float = 0.0
    begun: int = 0
    url: OriginUrl | None = None
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False
    ended: bool = False
    granted_s: float = 0.0
    generation: int | None = None
    received_bytes: int = 0
    answered_s: float | None = None
    heard_s: float = 0.0
    cancel_io: Callable[[], None] | None = None
    pace: Pace | None = None
    waited_s: float | None = None

    @property
    def is_at_stop(self) -> bool:
        """Whether it has brought all that it is to bring, as things stand."""
        return self.position >= self.stop

    @property
    def quiet_since_s(self) -> float:
        """Since when nothing has come though it might have: a rate may have held it back."""
        held_back_s = self.pace.held_back_s if self.pace is not None else None
        return self.heard_s if held_back_s is None else max(self.heard_s, held_back_s)

    def is_held_back(self, now_s: float) -> bool:
        """Say whether a rate has lately kept it from receiving more."""
        held_back_s = self.pace.held_back_s if self.pace is not None else None
        return held_back_s is not None and now_s < held_back_s + LATELY_S

    def received(self, size_bytes: int, now_s: float) -> None:
        """Count bytes that came for it."""
        self.meter.add(size_bytes, now_s)
        self.received_bytes += size_bytes
        self.heard_s = now_s

    def view(self, now_s: float) -> StreamView:
        """Return what the scheduler sees of it."""
        return StreamView(
            self.id,
            self.position,
            self.stop,
            self.reach,
            self.meter.rate_bytes_s(now_s),
            self.extra,
            self.begun,
            0.0 if self.answered_s is None else now_s - self.answered_s,
        )

    def mean_rate_bytes_s(self) -> float | None:
        """Return what it brought per second since its answer, None if that says little."""
        if self.answered_s is None or self.received_bytes < WINDOW_BYTES:
            return None
        if self.waited_s is not None:
            return None
        elapsed_s = self.heard_s - self.answered_s
        return self.received_bytes / elapsed_s if elapsed_s >= WINDOW_S else None


@dataclass(eq=False)
class Inquiry:
    """A question to the origin about a file as a whole, and its fate.

    The first question of all, or whether what is stored is still current. One is under
    way at a time for each entry; whoever comes meanwhile waits for the same answer
    (RFC 9111 §4: requests are collapsed). An answer that may not be stored goes to the
    one who asked, and everybody else asks for himself.

    ``terms`` are the asker's, ``start`` and ``stop`` the bytes that an answer brings, and
    ``end`` is how far the one answer has to go that cannot be joined with others.
    ``asker`` is who gets an answer that cannot be shared, None where nobody waits.
    ``claim`` is the connection that asks, once there is one. It is over when ``done``:
    with ``error``, or ``passed`` to the asker, or taken note of by the entry; an error's
    body that is ``open`` is the asker's, too; it was asked at ``since_s``, monotonic; ``status``
    is the origin's where it said that what is stored is current, ``cookies`` are those
    that its answer sets, for the one who asked.
    """

    terms: Terms
    start: int
    stop: int
    asker: object | None = None
    end: int = 0
    since_s: float = 0.0
    waiting: int = 0
    claim: Claim | None = None
    done: bool = False
    error: CacheError | None = None
    status: int | None = None
    cookies: tuple[tuple[str, str], ...] = ()
    passed: Fetch | None = None
    open: OpenBody | None = None

    @property
    def asker_waits(self) -> bool:
        """Whether there is somebody to hand an answer to that is for one alone."""
        return self.asker is not None and self.waiting > 0

    def take(self, asker: object) -> Fetch | None:
        """Hand the answer that could not be shared to the one who asked for it."""
        if asker is not self.asker:
            return None
        passed, self.passed = self.passed, None
        return passed

    def take_body(self, asker: object) -> OpenBody | None:
        """Hand the error's body that is open to the one who asked for it."""
        if asker is not self.asker:
            return None
        body, self.open = self.open, None
        return body


@dataclass(frozen=True)
class SpeedLimits:
    """When a connection is too slow to keep: silent for ``silence_s``, or below
    ``floor_bytes_s`` on the whole since it answered, looked at after ``window_s``.
    How long an answer may take is the origin client's timeout.

    Another one usually does better: it may reach another of the origin's servers,
    or get rid of a connection whose path has died without a word.
    """

    silence_s: float = 10.0
    floor_bytes_s: float = 1024.0
    window_s: float = 30.0

    def is_enough(self, claim: Claim, now_s: float) -> bool:
        """Say whether *claim*'s connection is worth keeping."""
        if claim.answered_s is None or claim.is_at_stop:
            return True
        if now_s >= claim.quiet_since_s + self.silence_s:
            return False
        age_s = now_s - claim.answered_s
        return (
            age_s < self.window_s
            or claim.received_bytes >= self.floor_bytes_s * age_s
            or claim.waited_s is not None
            or (claim.pace is not None and claim.pace.held_back_s is not None)
        )

    def due_s(self, claim: Claim) -> float | None:
        """Return when to look at *claim* again, or None while nothing is expected of it.

        A connection that has once been fast enough for the whole window falls
        below the floor only by silence, or so slowly that looking now and then will do.
        """
        if claim.answered_s is None or claim.is_at_stop:
            return None
        silent_s = claim.quiet_since_s + self.silence_s
        judged_s = claim.answered_s + self.window_s
        return min(silent_s, judged_s) if claim.heard_s < judged_s else silent_s


class Claims:
    """The claims on one entry of an origin.

    *on_move* is called where one that waits at its stop had better look again.
    """

    def __init__(
        self,
        origin: OriginFacts,
        limits: Limits,
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        self.origin = origin
        self._on_move = on_move
        self._file = next(_files)
        self._limits = limits
        self._claims: dict[int, Claim] = {}
        self._received_bytes = 0
        self._thrown_away_bytes = 0
        self._heard_s = 0.0
        self._piled_bytes = 0  # of those received, which had been waiting
        self._begun: dict[int, OriginFacts] = {}  # of which origin each connection is
        known = origin.record.connections
        self._trial = Trial(width=known, proven=known)

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        return iter(list(self._claims.values()))

    @property
    def stand(self) -> bool:
        """Whether a connection stands, if only as its thread has yet to hear that it is over."""
        return bool(self._begun)

    def get(self, claim_id: int) -> Claim | None:
        """Return the claim with that id, or None once it is over."""
        return self._claims.get(claim_id)

    def holds(self, offset: int) -> bool:
        """Say whether somebody has promised the byte at *offset*."""
        return any(claim.position <= offset < claim.stop for claim in self._claims.values())

    def views(self, now_s: float) -> tuple[StreamView, ...]:
        """Return what the scheduler sees."""
        return tuple(claim.view(now_s) for claim in self._claims.values())

    @property
    def at_work(self) -> int:
        """How many have been answered and have something left to bring."""
        return sum(map(_is_at_work, self))

    def width(self, now_s: float) -> int:
        """Return how many connections there are to be, by what they have brought so far."""
        before, waited = self._trial, (c.waited_s for c in self if c.waited_s is not None)
        if now_s < max(waited, default=-inf) + self._limits.hold_s:
            return 1  # it is the reader that is slow, not the line
        seen = Seen(now_s, self.at_work, self._received_bytes, self._heard_s, self._piled_bytes)
        self._trial = step(before, seen, self._allowed)
        if self._trial.rate_each not in (0, before.rate_each):
            self.origin.brought(self._trial.rate_each)
        if self._trial.proven != before.proven:
            self.origin.proved(self._trial.proven)
        return self._trial.width

    def next_look_s(self, now_s: float) -> float | None:
        """Return when there is something to decide about their number, or None.

        That is at the end of a measurement, when a stream has served its turn, and when
        one is so near its end that its successor can be opened.
        """
        moments = [next_look_s(self._trial, now_s, self._allowed)]
        turns = (c.answered_s + self._limits.turn_s for c in self if c.answered_s is not None)
        moments += [turn_s for turn_s in turns if turn_s > now_s]
        latency_s = self.origin.view().latency_s
        for claim in self:
            rate = claim.meter.rate_bytes_s(now_s)
            if rate and claim.stop < claim.content.length:
                left_s = (claim.stop - claim.position) / rate - latency_s
                moments.append(now_s + left_s if left_s > 0 else None)
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def _allowed(self) -> int:
        return min(self._limits.most, self.origin.view().most)

    def answered(self, claim: Claim, now_s: float, *, accepts_ranges: bool) -> None:
        """Note that the origin has answered."""
        latency_s = now_s - claim.heard_s
        self.origin.answered(
            latency_s, accepts_ranges=accepts_ranges, file=self._file, connection=claim.id
        )
        claim.answered_s = claim.heard_s = now_s
        claim.meter = RateMeter(now_s)  # the wait for the answer is no part of its speed

    def refused(self, claim: Claim, error: Exception) -> bool:
        """Say whether *error* is of one connection too many, which the origin is known by."""
        others_come = any(other is not claim and _is_at_work(other) for other in self)
        return self.origin.refused(error, self._file, others_come=others_come, connection=claim.id)

    def received(self, claim: Claim, stop: int, new_bytes: int, now_s: float) -> None:
        """Let *claim* go on at *stop*; of the bytes before, *new_bytes* had been missing."""
        came_bytes = stop - claim.position
        claim.received(came_bytes, now_s)
        claim.position = stop
        self._received_bytes += new_bytes
        if came_bytes >= PIECE_BYTES:
            self._piled_bytes += new_bytes
        self._thrown_away_bytes += came_bytes - new_bytes
        self._heard_s = now_s

    def skip_bytes(self, length: int) -> int:
        """Return the longest stored run that may be received once more, of *length* bytes in all.

        Each of several streams may be about to do so, and together they are to stay
        within the part of the file that may be thrown away.
        """
        left_bytes = int(length * THROWN_AWAY) - self._thrown_away_bytes
        return max(0, left_bytes) // 4 if length < END else 0

    def grant(self, content: Content, wish: Open, now_s: float) -> Claim | None:
        """Return a claim for *wish*, cut to what is neither stored nor claimed.

        None if nothing is left of it: the plan was made before somebody else came.
        """
        start = content.present.run_stop(wish.start)
        stop = max(start, min(wish.stop, content.length))
        for run in content.present.intersection(start, stop):
            if run.size > wish.skip_bytes or run.stop == stop:
                stop = run.start
                break
        for other in self._claims.values():
            if other.position <= start < other.stop:
                return None
            if other.position > start:
                stop = min(stop, other.position)
        if stop <= start:
            return None
        claim = Claim(
            content=content,
            position=start,
            stop=stop,
            reach=stop,
            priority=wish.priority,
            meter=RateMeter(now_s),
            heard_s=now_s,
            granted_s=now_s,
            plain=content.ask_plainly,
            extra=wish.extra,
            begun=start,
            held=content.representation if content.joinable else None,
        )
        content.file.retain()
        self._claims[claim.id] = claim
        self._begin(claim)
        return claim

    def ask(self, content: Content, inquiry: Inquiry, now_s: float) -> Claim:
        """Return a claim on no bytes: its answer tells whether *content* is current.

        If it brings another version, :meth:`adopt` makes it one of those that fill.
        """
        known = content.representation
        claim = Claim(
            content=content,
            position=inquiry.start,
            stop=inquiry.stop,
            reach=inquiry.stop,
            priority=Priority.BLOCKED,
            meter=RateMeter(now_s),
            heard_s=now_s,
            granted_s=now_s,
            held=None,
            conditions=tuple(known.validator.request_fields) if known else (),
            inquiry=inquiry,
            asks=True,
        )
        content.file.retain()
        return claim

    def adopt(self, claim: Claim, content: Content) -> None:
        """Let a claim that asked fill *content*, the new version that its answer brings."""
        content.file.retain()
        claim.content.file.release()
        claim.content, claim.asks = content, False
        self._claims[claim.id] = claim
        self._begin(claim)

    def _begin(self, claim: Claim) -> None:
        self._begun[claim.id] = self.origin
        self.origin.begin(claim.id)

    def forget(self, claim: Claim) -> None:
        """End a promise whose connection somebody else goes on to read."""
        self._claims.pop(claim.id, None)
        claim.cancelled = True

    def set_stop(self, claim: Claim, stop: int, now_s: float) -> None:
        """Let *claim* end at *stop*; at its position or before, it is cancelled."""
        was_at_stop, claim.stop = claim.is_at_stop, min(stop, claim.reach)
        if claim.is_at_stop:
            self.cancel(claim)
        elif was_at_stop:
            claim.waited_s = claim.heard_s = now_s
            claim.meter = RateMeter(now_s)
            self._on_move()

    def nudge(self) -> None:
        """Let those look again that wait for a reader."""
        if any(claim.is_at_stop for claim in self):
            self._on_move()

    def take_all(self, claim: Claim, start: int, stop: int) -> None:
        """Make *claim* the only one: its answer brings the file from *start* on."""
        for other in self:
            if other is not claim:
                self.cancel(other)
        claim.position, claim.stop = start, stop

    def end(self, claim: Claim) -> None:
        """Take *claim* back from its downloader, which has stopped writing."""
        self._claims.pop(claim.id, None)
        origin = self._begun.pop(claim.id, self.origin)
        origin.end(claim.id)
        rate = claim.mean_rate_bytes_s()
        if rate is not None:
            origin.brought(rate)
        claim.cancelled = claim.ended = True
        claim.content.file.release()

    def cancel(self, claim: Claim) -> None:
        """Break a promise: its downloader stops as soon as it looks or wakes."""
        self._claims.pop(claim.id, None)
        claim.cancelled = True
        self._on_move()
        if claim.cancel_io is not None:
            claim.cancel_io()

    def cancel_all(self) -> None:
        """Break every promise."""
        for claim in self:
            self.cancel(claim)

    def held_back(self, now_s: float) -> dict[int, float]:
        """Return which a rate keeps from receiving more, and how much each of them may per second.

        They share what is allowed.
        """
        held = [c for c in self if c.is_held_back(now_s)]
        return {c.id: c.pace.limit_bytes_s / len(held) for c in held if c.pace is not None}

    def describe(self) -> list[dict[str, int | None]]:
        """Return where the streams are, as JSON values."""
        return [
            {"position": claim.position, "stop": None if claim.stop == END else claim.stop}
            for claim in self._claims.values()
        ]


def _is_at_work(claim: Claim) -> bool:
    return claim.answered_s is not None and claim.position < claim.stop
