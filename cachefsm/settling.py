"""Decides, before a reader's first byte, whether it may be served what is stored.

That is: whether the origin has to be asked first, what its answer or silence means for
this reader, and when the reader has to be served past the cache, by an answer of its
own. Reading and waiting for bytes come after that, in :mod:`cachefsm.reader`.
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
"""How many questions to the origin one reader waits for. It needs a further one if the
answer to the last no longer holds when the reader wakes."""

PATIENCE_WITH_STALE_S: Final = 5.0
"""How long a client waits for a silent origin before a stale response is served, if it may be."""


@dataclass
class News:
    """How a response came about, in the words of RFC 9211.

    ``forwarded``: why the origin was asked, None if it was not. ``status``: what it
    answered, if what is stored is served all the same (304, say). ``collapsed``: somebody
    else had asked already. ``stale``: what is served is stale, and could not be validated
    or is being validated now. ``cookies``: Set-Cookie fields for this client alone.
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
    """The reader is to read past the cache, from an answer of the origin's for it alone.

    That answer is *fetch*, or is still to be asked for, as far as byte *stop*. If it
    *is_private*, its fields are for this reader alone, too.
    """

    stop: int
    fetch: Fetch | None = None
    is_private: bool = False


class Settling:
    """Finds out what one reader may be served, asking the origin if need be; for one thread.

    *news* is filled in with how that went. The body of an origin's error that is for this
    reader alone is given to *hold*. A wait takes at most *timeout_s*, ends when
    *is_cancelled*, and is made inside the context manager that *watch* returns.
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
        """Return None once what is stored may be served, else what to read in its place.

        The reader wants ``[start, stop)``. A question to the origin asks for no more than
        up to *farthest*; or up to *end*, if the answer cannot be joined with others.

        Raises:
            NotStored: the request forbids asking the origin (``only-if-cached``, say).
            AnotherVariant: what is stored is not for a request with these fields.
            CacheError: the reason why the origin gave no answer.
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
        """Have the origin asked, and wait for its answer.

        Returns the answer if it is for this reader alone, and the error if there is none.
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
        """Wait until *inquiry* is over; return the error if it brought no answer."""
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
        """Return if what is stored may be served in spite of *error*; else raise it."""
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
