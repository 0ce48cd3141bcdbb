"""An entry whose URL may change: because it has expired, or because a newer one was named.

The *link* is the URL that the entry is fetched by at present. The key stays the same, and
with it all that is stored. Bytes are joined across a change of link only if it is proven
that the new link leads to the same file; see :mod:`cachefsm.renewal`. There is one link
at a time, so that no renewal is made twice.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, Final

from .content import Content
from .errors import CacheError, OriginStatus, StorageError
from .models import EntryRecord
from .ranges import ByteRange
from .representation import Representation
from .states import DownloadState
from .stored import StoredEntry
from .surroundings import Surroundings
from .urls import OriginUrl, redact

__all__ = ["LinkedEntry"]

_log = logging.getLogger(__name__)

EXPIRED: Final = frozenset({401, 403, 410})
"""The statuses with which origins answer to an expired signed link."""

RENEWALS: Final = 3
"""How many fresh links in a row may turn out to be useless."""


class LinkedEntry(StoredEntry, ABC):
    """A stored entry and the link that its bytes come by."""

    def __init__(self, record: EntryRecord, surroundings: Surroundings) -> None:
        super().__init__(record, surroundings)
        # Read write, under the lock.
        self._named = self.url
        self._renewing = False
        self._unproven = False
        self._renewals = 0

    @property
    def is_unproven(self) -> bool:
        """Whether the link is a fresh one that has not been proven to lead to the same file."""
        with self._lock:
            return self._unproven

    def stored(self) -> tuple[Content, list[ByteRange]]:
        """Return the present content, and a copy of the set of its stored bytes."""
        with self._lock:
            return self._content, list(self._content.present)

    @property
    def has_secrets(self) -> bool:
        """Whether it is fetched with credentials, which are for one origin alone."""
        return self._around.secrets_of(self.key) != ()

    def name(self, url: OriginUrl) -> None:
        """Fetch from *url* from now on, unless it is the URL that was named last.

        Called for each URL that a key rule maps to this entry: the latest one named has the
        latest token.
        """
        with self._lock:
            if url == self._named:
                return
            self._named = url
            if url == self.url:
                return
            self._move(url)
            columns: dict[str, Any] = {"url": str(url)}
            if self._lifecycle.state is DownloadState.FAILED:
                columns["retry_at"] = self._around.clock()  # it was the old link that failed
            try:
                self._write(**columns)
            except StorageError as error:  # after a restart it is named anew
                self._around.trouble.note(error)
        self._around.on_change(self)

    def renewed(self, url: OriginUrl) -> None:
        """Go on with a fresh link, which is written down once it has proven itself."""
        with self._lock:
            self._renewing, self._unproven = False, True
            self._move(url)
            self._waiters.wake_all()
        self._around.on_change(self)

    def not_renewed(self, error: CacheError) -> None:
        """Fail with *error*, as there is no fresh link.

        Raises:
            StorageError: the database refused.
        """
        with self._lock:
            self._renewing, self._renewals = False, 0
            if self._closed is None:
                self._give_up(error)
        self._around.on_change(self)

    def proven(self, content: Content, told: Representation | None) -> None:
        """Keep the fresh link, which was proven to lead to *content*.

        *told* is what the origin says of the file there, if that differs from what was known.
        """
        with self._lock:
            if not self._unproven:
                return
            self._write(url=str(self.url))
            if told is not None and content is self._content:
                self._learn(content, told, asked_at_s=self._around.clock())
            # Only now: had the database refused, it would have to prove itself again.
            self._unproven = False

    # -- with the lock held ----------------------------------------------------

    def _expires(self, error: Exception | None, url: OriginUrl | None) -> bool:
        """Say whether *error*, the answer to *url*, can be ignored because of a link to come.

        If *url* is the present link, a fresh one is asked for.
        """
        if not isinstance(error, OriginStatus) or error.status not in EXPIRED:
            return False
        if url not in (None, self.url):
            return True  # another has come meanwhile
        if self._around.renew is None:
            return False
        if self._renewals >= RENEWALS and not self._renewing:
            self._renewals = 0  # for the next who tries, after a rest
            return False
        if not self._renewing:
            try:
                self._around.renew(self, error)
            except RuntimeError:  # no thread to be had: it has expired for now
                return False
            self._renewing = True
            self._renewals += 1
            self._stop_filling()
        return True

    def _move(self, url: OriginUrl) -> None:
        self.url, self.shown_url = url, redact(str(url))

    @abstractmethod
    def _give_up(self, error: CacheError) -> None:
        """Fail the waits for an answer of the origin; for subclasses that have such waits."""
