"""Opens readers of entries: each with a lease, the cache's timeouts, and its request's terms."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from .origin import OriginClient
from .reader import Reader, ReaderOptions
from .registry import Registry
from .settling import News
from .terms import Terms

__all__ = ["Readers"]


class Readers:
    """Opens readers of the entries of *registry*, by the entry's id; thread-safe."""

    def __init__(self, registry: Registry, options: ReaderOptions, origin: OriginClient) -> None:
        self._registry = registry
        self._options = options
        self._origin = origin

    def open(
        self,
        entry_id: int,
        *,
        terms: Terms | None = None,
        news: News | None = None,
        watch: Callable[[Reader], AbstractContextManager[object]] = lambda _reader: nullcontext(),
        patience_s: float | None = None,
    ) -> Reader:
        """Return a reader of that entry; see :meth:`cachefsm.cache.Cache.open_reader`."""
        options = self._options
        if patience_s is not None:
            options = replace(options, first_byte_timeout_s=patience_s, stall_timeout_s=patience_s)
        entry = self._registry.acquire(entry_id)
        try:
            return Reader(
                entry,
                options,
                self._origin,
                terms=terms or entry.own_terms(_plain_terms()),
                news=news,
                watch=watch,
                on_close=lambda: self._registry.release(entry),
            )
        except BaseException:
            self._registry.release(entry)
            raise

    def opener(self, entry_id: int) -> Callable[[], Reader]:
        """Return a function that opens readers of that entry, all for one request made now."""
        terms = _plain_terms()
        return lambda: self.open(entry_id, terms=self.own_terms(entry_id, terms))

    def own_terms(self, entry_id: int, terms: Terms | None = None) -> Terms:
        """Return *terms* (by default a plain request's) with the entry's own credentials.

        For requests that name the entry by its id: they get its variant and credentials,
        whatever their own fields are.

        Raises:
            EntryNotFound: there is none.
        """
        with self._registry.lease(entry_id) as entry:
            return entry.own_terms(terms or _plain_terms())


def _plain_terms() -> Terms:
    """Return the terms of a request without any fields that comes now."""
    return Terms(since_s=time.monotonic())
