"""The handle on one entry of a cache that embedders hold."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from .cachefile import BufferedCacheFile, CacheFile
from .entry import LiveEntry
from .errors import UsageError
from .lifecycle import PERSON
from .parts import part_of, wanted_parts
from .ranges import ByteRange
from .readers import Readers
from .registry import Registry
from .scheduler import Priority
from .states import DownloadState
from .units import parse_duration, patience_s
from .verify import Verification, verify

__all__ = ["Entry", "parse_priority"]

_PRIORITIES: Final = {
    "person": (PERSON, Priority.PERSON),
    "prefetch": ("prefetch", Priority.PREFETCH),
}


def parse_priority(name: str) -> tuple[str, Priority]:
    """Return who asks, and how urgently, for the *name* of a priority (``"person"``).

    Raises:
        UsageError: there is no such priority.
    """
    try:
        return _PRIORITIES[name]
    except (KeyError, TypeError):
        raise UsageError(
            f"{name!r} is no priority; use {' or '.join(map(repr, _PRIORITIES))}"
        ) from None


class Entry:
    """One URL of a cache: a light handle, good for as long as the entry exists.

    Thread-safe. Offsets and sizes are bytes, half-open; timeouts are seconds,
    None for no limit. Every method raises EntryNotFound once the entry has been
    removed, or forgotten because it held no byte and nobody asked for it for a week (see
    :mod:`cachefsm.upkeep`), and CacheClosed once the cache is closed.
    """

    __slots__ = ("_readers", "_registry", "id", "url")

    def __init__(self, registry: Registry, readers: Readers, entry_id: int, url: str) -> None:
        self._registry = registry
        self._readers = readers
        self.id: Final = entry_id
        self.url: Final = url
        """The URL as it may be shown: without credentials, a query as ``?…``."""

    def __repr__(self) -> str:
        return f"<Entry {self.id} {self.url}>"

    # -- looking ---------------------------------------------------------------

    @property
    def state(self) -> DownloadState:
        """Where the download stands."""
        with self._leased() as entry:
            return entry.state

    @property
    def reason(self) -> str | None:
        """Why it is in that state, or None if there is nothing to say."""
        with self._leased() as entry:
            return entry.record.state_reason

    @property
    def downloaded_bytes(self) -> int:
        """How many bytes are here."""
        with self._leased() as entry:
            return sum(run.size for run in entry.ranges())

    @property
    def total_bytes(self) -> int | None:
        """The complete length, or None while it is unknown."""
        with self._leased() as entry:
            return entry.content.complete_length

    @property
    def ranges(self) -> list[ByteRange]:
        """The byte ranges that are here, in order and coalesced."""
        with self._leased() as entry:
            return entry.ranges()

    def has(self, start: int, stop: int) -> bool:
        """Say whether ``[start, stop)``, clipped to the file, is here; UsageError for no range."""
        part = part_of(start, stop)
        with self._leased() as entry:
            return entry.has(*part)

    def is_playable(self) -> bool:
        """Say whether a head and a tail are here, enough for a player to start."""
        with self._leased() as entry:
            return entry.is_playable()

    def describe(self) -> dict[str, Any]:
        """Return the entry as JSON values, without secrets; see docs/interface.md."""
        with self._leased() as entry:
            return entry.describe()

    def explain(self, offset: int) -> dict[str, Any]:
        """Return where the byte at *offset* is, when it will come, or why nobody fetches it.

        JSON values; docs/interface.md says what they mean.

        Raises:
            UsageError: no file has such a byte.
        """
        position, _ = part_of(offset, None)
        with self._leased() as entry:
            return entry.explain(position)

    # -- waiting ---------------------------------------------------------------

    def wait_for(self, start: int, stop: int, timeout: float | None = None) -> bool:
        """Wait until ``[start, stop)`` is here, fetching it if need be; False on timeout.

        Raises:
            UsageError: that is no range, or no time.
            CacheError: the reason why the bytes will not come, as soon as that is known.
        """
        part, timeout_s = part_of(start, stop), patience_s(timeout)
        with self._leased() as entry:
            return entry.wait_for(*part, timeout_s)

    def wait_playable(self, timeout: float | None = None) -> bool:
        """Wait until enough is here to start playing; as :meth:`wait_for`."""
        timeout_s = patience_s(timeout)
        with self._leased() as entry:
            return entry.wait_playable(timeout_s)

    def wait_complete(self, timeout: float | None = None) -> bool:
        """Wait until every byte is here and durable; as :meth:`wait_for`."""
        timeout_s = patience_s(timeout)
        with self._leased() as entry:
            return entry.wait_complete(timeout_s)

    def open(self) -> io.BufferedReader:
        """Return a seekable binary file; a read blocks until its bytes are here.

        Raises:
            CacheError: only from reads: the reason why the bytes will not come.
        """
        return BufferedCacheFile(CacheFile(self._readers.opener(self.id)))

    # -- orders ----------------------------------------------------------------

    def start(self, priority: str = "person", start: int = 0, stop: int | None = None) -> None:
        """Put the download in the queue: ``"person"`` goes before ``"prefetch"``.

        Ends a pause, and retries a failure; does nothing to a complete entry.

        Raises:
            UsageError: there is no such priority, or no such part.
        """
        asked_by, level = parse_priority(priority)
        part = part_of(start, stop)
        with self._leased() as entry:
            entry.start(asked_by, level, [part])

    def prefetch(
        self,
        *,
        head: str | int | None = None,
        ranges: Iterable[tuple[int, int | None]] | None = None,
        deadline: str | float | None = None,
    ) -> None:
        """Queue it, or parts of it, behind what people and players wait for.

        *head* is how much of its beginning to fetch, *ranges* are further parts, half-open,
        with None for the end; without either, the whole file is fetched. An order that is
        not met within *deadline* is given up, with the reason ``deadline``. It replaces an
        earlier prefetch of this entry; otherwise it does what :meth:`start` does.

        Raises:
            UsageError: a part, size or duration makes no sense.
        """
        wanted = wanted_parts(head, ranges)
        within_s = None if deadline is None else parse_duration(deadline)
        with self._leased() as entry:
            entry.start("prefetch", Priority.PREFETCH, wanted, within_s=within_s)

    def pause(self) -> None:
        """Hold the download until somebody resumes it.

        Raises:
            IllegalMove: it is not under way.
        """
        with self._leased() as entry:
            entry.pause()

    def resume(self) -> None:
        """Go on with a paused download; raises IllegalMove if it is not paused."""
        with self._leased() as entry:
            entry.resume()

    def cancel(self) -> None:
        """Give the download up, keeping what is stored; raises IllegalMove if it is over."""
        with self._leased() as entry:
            entry.cancel()

    def retry(self) -> None:
        """Try a failed download again; raises IllegalMove if it has not failed."""
        with self._leased() as entry:
            entry.retry()

    def pin(self, pinned: bool = True) -> None:
        """Keep the entry from eviction, or let it go again."""
        with self._leased() as entry:
            entry.update(pinned=pinned)

    def unpin(self) -> None:
        """Let the entry be evicted again."""
        self.pin(False)

    def verify(
        self,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> Verification:
        """Compare every stored block with its checksum; what differs is dropped at once.

        *progress* is called with the bytes looked at so far and in all; *start* and
        *stop* limit the look. To fetch what was dropped again, :meth:`start` the entry.

        Raises:
            UsageError: that is no range.
        """
        part = part_of(start, stop)
        with self._leased() as entry:
            return verify(entry, progress, part)

    def remove(self) -> None:
        """Forget the entry and delete its bytes; readers are cut off."""
        self._registry.remove(self.id)

    @contextmanager
    def _leased(self) -> Iterator[LiveEntry]:
        with self._registry.lease(self.id) as entry:
            yield entry
