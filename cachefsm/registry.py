"""Key to live entry: one object per entry in use, and a lease for each user.

An entry is a row until somebody leases it; then one :class:`LiveEntry` stands
for it, whoever asks. Where the database takes no row there is only the object.
Nothing busy is ever dropped from memory; the last few idle ones are kept,
because a player's next range comes within milliseconds.

Lock order: the registry's, then the entry's.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from .entry import LiveEntry
from .errors import CacheClosed, CacheError, DatabaseFull, EntryNotFound, StorageError
from .models import EntryRecord, Store
from .storage import ContentFile, content_name
from .urls import OriginUrl

__all__ = ["Registry"]

_Result = TypeVar("_Result")

IDLE_ENTRIES: Final = 64
"""Idle entries kept in memory, each with at most one open file."""

TOUCHED_S: Final = 1800.0
"""If an entry without bytes has not been used for this long, finding it by its URL counts as
a use, so that it is not forgotten before the finder has taken a lease."""


class Registry:
    """The live entries of one cache; thread-safe."""

    def __init__(
        self,
        store: Store,
        make: Callable[[EntryRecord], LiveEntry],
        make_unstored: Callable[[int, OriginUrl, str, StorageError], LiveEntry],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._make = make
        self._make_unstored = make_unstored
        self._clock = clock
        self._lock = threading.RLock()
        self._live: dict[int, LiveEntry] = {}
        self._stored: dict[str, LiveEntry] = {}  # by key, those of them that have a row
        self._idle: OrderedDict[int, LiveEntry] = OrderedDict()
        self._leases: Counter[LiveEntry] = Counter()
        self._last_unstored_id = 0
        self._closed: CacheError | None = None

    def find(self, key: str) -> EntryRecord | None:
        """Return the row with that key, or None."""
        return self._known(key) or self._store.find(key)

    def _known(self, key: str) -> EntryRecord | None:
        """Return the row with that key if its entry is in memory.

        It takes no query: nobody else writes that row, and a player asks for its film a
        hundred times a second.
        """
        with self._lock:
            self._check_open()
            entry = self._stored.get(key)
        return None if entry is None else entry.record

    def find_or_create(self, url: OriginUrl, key: str) -> int:
        """Return the id of the entry with *key*, registering it if it is new.

        If the database takes no row, the id is below 0: that entry is in memory only, and
        forgotten soon after its last lease.
        """
        now_s, record = self._clock(), self._known(key)
        try:
            if record is None or not record.bytes_present:
                # The row itself tells when it was last used, and it may be forgotten.
                record = self._store.find(key)
                if record is None or _is_blank_since(record, now_s - TOUCHED_S):
                    record = self._store.create(
                        key=key, url=str(url), content_file=content_name(key), now_s=now_s
                    )
        except StorageError as error:
            if record is None:
                return self._register_unstored(url, key, error)
        return record.id

    def _register_unstored(self, url: OriginUrl, key: str, refusal: StorageError) -> int:
        with self._lock:
            self._check_open()
            self._last_unstored_id -= 1
            entry = self._make_unstored(self._last_unstored_id, url, key, refusal)
            self._live[entry.id] = self._idle[entry.id] = entry
        self.drop_idle()
        return entry.id

    @contextmanager
    def lease(self, entry_id: int) -> Iterator[LiveEntry]:
        """Hold the live entry with that id.

        Raises:
            EntryNotFound: there is none.
            CacheClosed: the cache is shutting down.
        """
        entry = self.acquire(entry_id)
        try:
            yield entry
        finally:
            self.release(entry)

    def acquire(self, entry_id: int) -> LiveEntry:
        """Take a lease; give it back with :meth:`release`."""
        with self._lock:
            self._check_open()
            entry = self._live.get(entry_id)
            if entry is None:
                entry = self._make(self._store.entry(entry_id))
                self._live[entry_id] = self._stored[entry.key] = entry
            self._idle.pop(entry_id, None)
            self._leases[entry] += 1
            return entry

    def release(self, entry: LiveEntry) -> None:
        """Give a lease back."""
        with self._lock:
            self._leases[entry] -= 1
            if self._leases[entry] > 0:
                return
            del self._leases[entry]
            if self._live.get(entry.id) is not entry:
                entry.release_file()  # removed while it was leased
                return
            self._idle[entry.id] = entry
        self.drop_idle()

    def live(self) -> list[LiveEntry]:
        """Return the entries that are in memory now."""
        with self._lock:
            return list(self._live.values())

    def remove(self, entry_id: int) -> None:
        """Forget the entry: its streams end, its waiters are told, row and file go.

        Raises:
            EntryNotFound: there is none.
        """
        with self._lock, self.lease(entry_id) as entry:
            file = entry.content.file
            _give_up(file, entry.remove)
            self._forget(entry)
        file.discard()

    def evict(self, max_bytes: int, *, most: int | None = None) -> int:
        """Drop the bytes of idle entries, least recently used first, down to *max_bytes* in all.

        Pinned entries and those in use stay, and no more than *most* entries are evicted,
        so more than *max_bytes* may be left. Returns the bytes freed.
        """
        excess = self._store.total_bytes() - max_bytes
        freed = evicted = 0
        for entry_id, size in self._store.least_recently_used() if excess > 0 else ():
            if freed >= excess or evicted == most:
                break
            if self._evict(entry_id):
                freed += size
                evicted += 1
        return freed

    def forget(self, before_s: float, moved_before_s: float, most: int) -> list[str]:
        """Forget up to *most* entries without bytes that nobody has used since *before_s*.

        Entries that were found by their URL within TOUCHED_S stay, and those evicted since
        *moved_before_s*. Returns the names of their content files, which may exist.
        """
        with self._lock:  # so that nobody takes a lease meanwhile
            self._check_open()
            return self._store.forget_blank(before_s, moved_before_s, most, spare=self._live)

    def stop_endless(self, max_bytes: int) -> None:
        """Store no more of files of unknown length that take more than *max_bytes* each."""
        for entry in self.live():
            content = entry.content
            if content.complete_length is None and content.present.total > max_bytes:
                entry.stop_storing(
                    StorageError("it has no known end, and is longer than the cache may be")
                )

    def _evict(self, entry_id: int) -> bool:
        with self._lock:  # so that nobody takes a lease meanwhile
            try:
                entry = self.acquire(entry_id)
            except EntryNotFound:
                return False  # removed since the list was made
            try:
                evicted = self._leases[entry] == 1 and _give_up(entry.content.file, entry.evict)
            finally:
                self.release(entry)
        entry.discard_given_up()
        return evicted

    def drop_idle(self) -> None:
        """Keep no more than the last few idle entries in memory."""
        with self._lock:
            if len(self._idle) <= IDLE_ENTRIES:
                return
            # None of the last, however many are busy: one without a row cannot come back.
            for entry_id, entry in list(self._idle.items())[:-IDLE_ENTRIES]:
                if not entry.is_busy:
                    del self._idle[entry_id]
                    self._forget(entry)
                    entry.release_file()

    def _forget(self, entry: LiveEntry) -> None:
        """Call with lock held."""
        del self._live[entry.id]
        if self._stored.get(entry.key) is entry:
            del self._stored[entry.key]

    def close(self) -> list[LiveEntry]:
        """Refuse new leases, stop all streams and waiters; return the live entries."""
        closing = CacheClosed("the cache is shutting down")
        with self._lock:
            self._closed = closing
            entries = list(self._live.values())
        for entry in entries:
            entry.close(closing)
        return entries

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed.again()


def _is_blank_since(record: EntryRecord, used_s: float) -> bool:
    return record.bytes_present == 0 and record.last_accessed_at < used_s


def _give_up(file: ContentFile, forget: Callable[[], _Result]) -> _Result:
    """Call *forget*, which deletes the row of *file*; delete the file first on a full disk.

    Usually the row goes first, as a row without its file costs a transfer. But on a full
    disk the database has no room to delete anything until the file is gone.
    """
    try:
        return forget()
    except DatabaseFull:
        file.empty()
        return forget()
