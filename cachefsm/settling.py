"""May what is stored be served to this reader, and if not, what instead?

Whether the origin has to be asked first, what its answer or its silence means for the
one who asks, and when all of it had better come past the cache. Which bytes a reader
then reads, and when it waits for them, is :mod:`cachefsm.reader`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from .claims import Inquiry
from .content import Content
from .entry import LiveEntry
from .errors import (
    AnotherVariant,
    CacheError,
    NotStored,
    OpenBody,
    OriginError,
    OriginStatus,
    StorageError,
    WaitCancelled,
    WaitTimeout,
)
from .origin import Fetch
from .terms import Terms, Use

__all__ = ["QUESTIONS", "News", "PastTheCache", "Settling"]

_log = logging.getLogger(__name__)

QUESTIONS: Final = 4
"""How often an answer is waited for that others keep overtaking."""

PATIENCE_WITH_STALE_S: Final = 5.0
"""How long a silent origin keeps a client from what is stored and may be served stale."""


@dataclass
class News:
    """How a response came about, in the words of RFC 9211.

    ``forwarded`` is why the origin was asked, or None, ``status`` what it answered if
    that was to keep what is stored; ``collapsed`` that somebody else had asked already;
    ``stale`` that what is served could not be, or is being, validated. ``cookies`` are
    for this client alone.
    """

    forwarded: str | None = None
    status: int | None = None
    collapsed: bool = False
    stale: bool = False
    cookies: tuple[tuple[str, str], ...] = ()

    @property
    def is_first_hand(self) -> bool:
        """Whether what is served is the origin's answer to this very request."""
        return self.forwarded is not None and self.status is None and not self.stale


@dataclass(frozen=True)
class PastTheCache:
    """What is read comes from an answer of its own, which goes on to *stop*.

    From *fetch*, where that is here already. It *is_private* if its fields, too, are the
    reader's alone.
    """

    stop: int
    fetch: Fetch | None = None
    is_private: bool = False


class Settling:
    """One reader's way to something that it may serve; used by one thread.

    *news* is told what comes of it, and an error's body that is the reader's alone goes
    to *hold*. While it waits it holds what *watch* gives, for as long as *timeout_s* and
    until the reader *is_cancelled*.
    """

    def __init__(
        self,
        entry: LiveEntry,
        content: Content,
        terms: Terms,
        news: News,
        *,
        timeout_s: float,
        hold: Callable[[OpenBody | None], None],
        watch: Callable[[], AbstractContextManager[object]],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._entry = entry
        self._content = content
        self._terms = terms
        self._news = news
        self._timeout_s = timeout_s
        self._hold = hold
        self._watch = watch
        self._is_cancelled = is_cancelled

    def settle(self, start: int, stop: int, *, farthest: int, end: int) -> PastTheCache | None:
        """Return once what is stored may be served, or what is to be read in its place.

        Of ``[start, stop)`` no more is asked for than *farthest*, or all the way to
        *end* if what comes of that cannot be joined with anything else.

        Raises:
            NotStored: the origin may not be asked.
            AnotherVariant: what is stored answers other requests than this one.
            CacheError: why there is no answer.
        """
        entry, content, terms = self._entry, self._content, self._terms
        if entry.refusal() is not None and not (content.joinable or content.is_here):
            # The rest of it would have to come from another answer, which can be of
            # another version: all of it from that one, then.
            return PastTheCache(end)
        for _ in range(QUESTIONS):
            use = entry.use_of(content, terms)
            if use is Use.NEVER:
                raise NotStored("it is not stored, or not fresh enough, and may not be asked for")
            if use is Use.NOW:
                break
            if use is Use.MEANWHILE:
                # Not for this client, whose own words are about what it is served now.
                entry.inquire(content, replace(terms, request_fields=()), start, stop, None)
                self._news.stale = True
                break
            if entry.is_for_each(content):
                is_known = content.representation is not None
                self._news.forwarded = "stale" if is_known else "bypass"
                return PastTheCache(end, is_private=True)
            try:
                fetch, error = self._ask(start, farthest, end)
            except StorageError:
                return PastTheCache(end)
            if fetch is not None:
                return PastTheCache(stop, fetch, is_private=True)
            if error is not None:
                self._bear(error)
                self._hold(None)
                break
        if not entry.selects(content, terms):
            raise AnotherVariant("what is stored answers requests with other fields")
        return None

    def _ask(self, start: int, farthest: int, end: int) -> tuple[Fetch | None, CacheError | None]:
        """Wait for an answer of the origin's; return it, if it is for this reader alone.

        Or why there is none, if it told.
        """
        content, news = self._content, self._news
        news.forwarded = self._why_ask()
        inquiry = self._entry.inquire(content, self._terms, start, farthest, self, end=end)
        news.collapsed = inquiry.asker is not self
        try:
            error = self._await(inquiry)
            fetch = inquiry.take(self)
            self._hold(inquiry.take_body(self))
        finally:
            if self._terms.cookies and inquiry.asker is self:
                news.cookies = inquiry.cookies
            self._entry.leave(inquiry)
        if fetch is None and content.superseded is not None:
            raise content.superseded.again()
        news.status = inquiry.status
        return fetch, error

    def _why_ask(self) -> str:
        """Return why the origin is asked. Source: RFC 9211 §2.2."""
        if self._content.representation is None:
            return "miss"
        anybodys = replace(self._terms, request_fields=(), since_s=inf)
        is_fresh = self._entry.use_of(self._content, anybodys) is Use.NOW
        return "request" if is_fresh else "stale"

    def _await(self, inquiry: Inquiry) -> CacheError | None:
        """Wait until *inquiry* is over; return why there is no answer."""
        timeout_s = self._timeout_s
        if self._entry.may_use_on_error(self._content, self._terms):
            timeout_s = min(timeout_s, PATIENCE_WITH_STALE_S)
        with self._watch():
            arrived = self._entry.wait_answer(inquiry, self._is_cancelled, timeout_s)
        if self._is_cancelled() and not inquiry.done:
            raise WaitCancelled("the client has left")
        if not arrived:
            return WaitTimeout(f"the origin has not answered within {timeout_s:g} s")
        return inquiry.error

    def _bear(self, error: CacheError) -> None:
        """Serve what is stored all the same, if *error* and the terms let it; else raise it."""
        code = error.status if isinstance(error, OriginStatus) else error.status_hint
        unable = isinstance(error, (OriginError, WaitTimeout)) and code >= 500
        if not unable or self._content.representation is None:
            raise error.again()
        if not self._entry.may_use_on_error(self._content, self._terms):
            if isinstance(error, OriginStatus):
                raise error.again()
            raise NotStored(f"what is stored cannot be confirmed: {error}")
        if isinstance(error, OriginStatus):
            self._news.status = error.status
        _log.warning("%s: %s; serving what is stored", self._entry.shown_url, error)
        self._news.stale = True
