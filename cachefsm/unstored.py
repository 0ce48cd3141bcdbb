"""An entry for which the database accepts no row, as on a full disk: served, never stored."""

from __future__ import annotations

from typing import Any, NoReturn

from .content import Content
from .entry import LiveEntry
from .errors import CacheError, StorageError
from .models import unsaved_entry
from .scheduler import EntryView
from .storage import content_name
from .surroundings import Surroundings
from .urls import OriginUrl

__all__ = ["UnstoredEntry"]


class UnstoredEntry(LiveEntry):
    """Tells readers at once that nothing can be stored, so that they read past the cache.

    It is in memory only, under a negative *entry_id*, and lasts as long as somebody uses
    it. Nothing is fetched for it, and every order is refused with *refusal*, the database's
    error. A later request for the URL gets a row as soon as the database accepts one.
    """

    def __init__(
        self,
        entry_id: int,
        url: OriginUrl,
        key: str,
        refusal: StorageError,
        surroundings: Surroundings,
    ) -> None:
        record = unsaved_entry(
            entry_id,
            key=key,
            url=str(url),
            content_file=content_name(key),
            state_reason=str(refusal),
            now_s=surroundings.clock(),
        )
        super().__init__(record, surroundings)
        self._refusal = refusal
        surroundings.trouble.note(refusal)

    @property
    def is_busy(self) -> bool:
        """False: whoever uses it holds a lease, and nothing else keeps it."""
        return False

    def refusal(self) -> StorageError:
        """Return why nothing can be stored."""
        return self._refusal

    def view(self) -> EntryView | None:
        """Return None: there is nothing to decide."""
        return None

    def flush(self) -> None:
        """Do nothing: there is neither a byte nor an access to record."""

    def _hopeless(self, content: Content | None, deadline_s: float | None) -> CacheError:
        return super()._hopeless(content, deadline_s) or self._refusal

    def _refuse(self, *_args: Any, **_facts: Any) -> NoReturn:
        raise self._refusal.again()

    _send_all = _write = _enqueue = _refuse
