"""What embedders import: a cache directory with its threads, and its entries.

Wires the parts together and decides nothing itself.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import facts
from .access import AllowList
from .buckets import RateLimits
from .claims import Claim, SpeedLimits
from .conductor import Conductor, Flusher
from .content import Content
from .credentials import Credentials, variant_key
from .demands import READER, Fill
from .dirlock import DirectoryLock, Holder
from .doubts import Doubts
from .downloader import Downloader
from .entry import LiveEntry
from .errors import CacheClosed, CacheError, EntryNotFound, StorageError, UsageError
from .events import Event, EventHub, Mailbox
from .fields import Fields, value_of
from .handle import Entry
from .keys import KeyRule, KeyRules
from .m3u import read_text, upcoming
from .models import EntryRecord
from .origin import OriginClient, OriginOptions
from .origins import OriginBook
from .ranges import ByteRange, RangeSet
from .reader import News, Reader, ReaderOptions, VerifyReads
from .records import representation_of, vary_from_json
from .registry import Registry
from .renewal import ProvenOrigin, Renewals
from .resolvers import Resolver
from .retries import RetryPolicy
from .salvage import open_store
from .scheduler import Abandoned, Limits
from .states import DownloadState
from .storage import ContentFile, disk_usage, remove_content
from .surroundings import Durability, EntryPolicy, Surroundings
from .terms import Terms
from .throttle import Throttle
from .units import parse_duration, parse_size
from .unstored import UnstoredEntry
from .urls import OriginUrl, parse_url, redact
from .verify import Scrubber, find_orphans

if TYPE_CHECKING:
    from .proxy import Server

__all__ = ["Cache"]

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 1.5
"""How long :meth:`Cache.close` waits for its threads; with the last flush it stays
within the two seconds that a service manager's users expect."""

ORIGINS_KEPT_S: Final = 90 * 86_400.0
"""How long what was learnt of an origin is kept after it was last asked for something."""

LACK_OF_ROOM_S: Final = 2.0
"""How often a cache that is too large looks for something to evict."""

EVICTED_AT_ONCE: Final = 64
"""After so many, what has come meanwhile is flushed before more are evicted: dropping
thousands takes a while, in which no download could finish."""

PAGE_ENTRIES: Final = 2000
"""How many entries are listed at once: the store's lock is held for 50 ms then."""


class Cache:
    """A cache directory, held by this process, and the threads that fill it.

    Sizes and durations are numbers (bytes, seconds) or text such as ``"20G"`` and
    ``"500ms"``. A context manager; see :meth:`close`.

    Args:
        directory: where content and database live; made if it is not there.
        max_size: evict the least recently used beyond this; None for no limit.
        fill: what is fetched beyond what readers ask for; see :class:`Fill`.
        grace: how long a download goes on after its last reader has left.
        abandoned: what then becomes of requests under way; see :class:`Abandoned`.
        read_ahead: how far past a reader's position bytes are fetched for it; 0 for
            all that it asks for, at once.
        playable_head, playable_tail: what :meth:`Entry.is_playable` asks for.
        first_byte_timeout, stall_timeout: how long a reader waits, for its first
            byte and for every further one.
        durability: what recorded bytes survive; see :class:`Durability`.
        verify_reads: which stored blocks are checked when served; :class:`VerifyReads`.
        scrub_rate: how fast stored bytes are checked in the background, in bytes
            per second; 0 for not at all.
        limit_rate, limit_rate_per_host, limit_background_rate: the most bytes per second
            from all origins, from each, and for all that no reader waits for; 0 for as
            many as come. See :meth:`set_rate_limits`.
        speed, limits, retries, origin: see the classes.
        secrets: sets of request fields that entries are told apart by, such as
            credentials, so that downloads with them go on after a restart.
        resolver: gives a fresh URL for one whose link has expired; it is called in a
            thread of its own, and may take its time. See :mod:`cachefsm.renewal`.
        key_rules: which query parameters tell no entries apart.
        start: False leaves all downloads at rest, as for a look at the entries.
        restore: False leaves what earlier processes queued until :meth:`restore_queue`.

    Raises:
        CacheBusy: another process holds the directory.
        StorageError: the directory or its database cannot be used.
        UsageError: an argument makes no sense.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_size: str | int | None = None,
        fill: Fill | str = Fill.REST,
        grace: str | float = 10.0,
        read_ahead: str | int = 8 << 20,
        playable_head: str | int = 1 << 20,
        playable_tail: str | int = 256 << 10,
        first_byte_timeout: str | float = 30.0,
        stall_timeout: str | float = 30.0,
        durability: Durability | str = Durability.POWER,
        verify_reads: VerifyReads | str = VerifyReads.SAMPLE,
        scrub_rate: str | int = 0,
        speed: SpeedLimits | None = None,
        limits: Limits | None = None,
        abandoned: Abandoned | str = Abandoned.STOP,
        limit_rate: str | int = 0,
        limit_rate_per_host: str | int = 0,
        limit_background_rate: str | int = 0,
        retries: RetryPolicy | None = None,
        origin: OriginOptions | None = None,
        secrets: Iterable[Fields] = (),
        resolver: Resolver | None = None,
        key_rules: Iterable[KeyRule] = (),
        start: bool = True,
        restore: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory: Final = Path(directory).expanduser().absolute()
        self.max_size: Final = None if max_size is None else parse_size(max_size)
        self._reader_options = ReaderOptions(
            first_byte_timeout_s=parse_duration(first_byte_timeout),
            stall_timeout_s=parse_duration(stall_timeout),
            read_ahead_bytes=parse_size(read_ahead),
            verify_reads=_choice(VerifyReads, verify_reads, "choice of reads to verify"),
        )
        self._policy = EntryPolicy(
            fill=_choice(Fill, fill, "fill policy"),
            durability=_choice(Durability, durability, "durability"),
            grace_s=parse_duration(grace),
            playable_head_bytes=parse_size(playable_head),
            playable_tail_bytes=parse_size(playable_tail),
            retries=retries or RetryPolicy(),
            speed=speed or SpeedLimits(),
            limits=replace(
                limits or Limits(),
                abandoned=_choice(Abandoned, abandoned, "way with abandoned fetches"),
            ),
        )
        self.clock: Final = clock
        self._closing = threading.Lock()
        self._closed = False
        self._downloads: set[threading.Thread] = set()
        self._downloads_lock = threading.Lock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot make {self.directory}: {error.strerror}") from error
        self._dirlock = DirectoryLock(self.directory)
        try:
            content = self.directory / "content"
            self._store = open_store(
                self.directory / "cache.sqlite3",
                content,
                now_s=clock(),
            )
        except BaseException:
            self._dirlock.release()
            raise
        self._throttle = Throttle(
            RateLimits(
                parse_size(limit_rate),
                parse_size(limit_rate_per_host),
                parse_size(limit_background_rate),
            )
        )
        self.origin: Final = OriginClient(origin, clock, self._throttle)
        self._credentials = Credentials(secrets)
        self._keys = KeyRules(key_rules)
        self._events = EventHub()
        self._flusher = Flusher(after=self._after_flush)
        self._surroundings = Surroundings(
            store=self._store,
            directory=content,
            policy=self._policy,
            clock=clock,
            origins=OriginBook(self._store.origins(), clock),
            on_change=lambda _entry: self._conductor.poke(),
            on_want=self._throttle.wake,
            on_dirty=self._flusher.note,
            on_transition=self._events.publish,
            on_progress=self._events.progressed,
            secrets_of=self._credentials.of,
            renew=Renewals(resolver, self._in_thread).renew if resolver else None,
        )
        self.registry: Final = Registry(
            self._store,
            self._make_entry,
            partial(UnstoredEntry, surroundings=self._surroundings),
            clock,
        )
        self._conductor = Conductor(
            self.registry.live, lambda: self._policy.limits, self._start_download
        )
        self._scrubber = Scrubber(self.registry, self._store, content, parse_size(scrub_rate))
        self._doubts = Doubts(self._store, self.registry, self._policy.durability, clock)
        try:
            self._recover()
            self._doubts.settle()
            if start and restore:
                self.restore_queue()
        except BaseException:
            self._store.close()
            self._dirlock.release()
            raise
        if start:
            self._conductor.start()
            self._flusher.start()
            self._scrubber.start()
            self._conductor.poke()
            self._flusher.look()

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What this cache calls itself to origins and clients. RFC 9110 §7.6.3."""
        return self.origin.name

    @property
    def via(self) -> str:
        """The value of the Via field of what passes through here."""
        return self.origin.via

    def __repr__(self) -> str:
        with self._downloads_lock:
            count = len(self._downloads)
        return f"<Cache {self.directory} {'closed' if self._closed else f'{count} downloads'}>"

    # -- entries ---------------------------------------------------------------

    def entry(self, url: str, *, key: str | None = None) -> Entry:
        """Find or register the entry of *url*; nothing is fetched yet.

        *key* tells apart what one URL serves to different credentials; the URL
        itself by default.

        Raises:
            UsageError: it is no http(s) URL.
        """
        parsed = parse_url(url)
        return Entry(self, self._entry_id(parsed, key or self._keys.key(parsed)), redact(url))

    def prefetch(
        self,
        urls: Iterable[str],
        *,
        head: str | int | None = None,
        ranges: Iterable[tuple[int, int | None]] | None = None,
        deadline: str | float | None = None,
    ) -> list[Entry]:
        """Queue several, in their order; see :meth:`Entry.prefetch`."""
        entries = [self.entry(url) for url in urls]
        parts = None if ranges is None else list(ranges)
        for entry in entries:
            entry.prefetch(head=head, ranges=parts, deadline=deadline)
        return entries

    def prefetch_playlist(
        self,
        url: str,
        items: int = 3,
        *,
        after: str | None = None,
        allow: Iterable[str] = (),
        deadline: str | float | None = None,
    ) -> list[Entry]:
        """Read a playlist, M3U or HLS, and queue what comes next in it; return that.

        *after* is the item that is being played. Without, the first ones come next; in
        a live playlist the last ones; of a master playlist, those of its first variant.
        Items of other origins than the playlist's are left out, with a warning, but for
        those in *allow*, which is as :class:`cachefsm.access.AllowList` has it.

        Raises:
            UsageError: it is no playlist, or *after* is not in it.
            CacheError: why the playlist cannot be read.
        """

        def read(playlist: OriginUrl) -> str:
            with self.entry(str(playlist)).open() as stream:
                return read_text(stream)

        current = None if after is None else parse_url(after)
        allowed = AllowList(allow)
        found = upcoming(parse_url(url), items, read, after=current, allowed=allowed)
        for origin in found.refused:
            _log.warning("%s: items at %s are left out; allow it", redact(url), origin)
        return [
            entry
            for item, parts in found.parts.items()
            for entry in self.prefetch([item], ranges=parts, deadline=deadline)
        ]

    def find_variant(self, url: str, terms: Terms) -> int:
        """Return the id of the entry that answers a request for *url* on *terms*.

        One URL has an entry for each set of credentials, and for each choice of the
        request fields that its origin names in Vary (RFC 9111 §4.1).

        Raises:
            UsageError: it is no http(s) URL.
        """
        parsed = parse_url(url)
        key = self._credentials.key(self._keys.key(parsed), terms.secrets)
        while terms.fresh_s is None and (record := self._store.find(key)) is not None:
            selected_by = vary_from_json(record.vary)
            chosen = tuple((name, value_of(terms.forwarded, name)) for name, _ in selected_by)
            if chosen == selected_by:
                break
            key = variant_key(key, chosen)
        return self._entry_id(parsed, key)

    def own_terms(self, entry_id: int, terms: Terms | None = None) -> Terms:
        """Return *terms*, or a plain request's, as they are for that very entry.

        Its variant and credentials are its own, whoever asks for it by number.

        Raises:
            EntryNotFound: there is none.
        """
        with self.registry.lease(entry_id) as entry:
            return entry.own_terms(terms or Terms(since_s=time.monotonic()))

    def _entry_id(self, url: OriginUrl, key: str) -> int:
        """Return the id of the entry with *key*; it is fetched by *url* from now on."""
        entry_id = self.registry.find_or_create(url, key)
        if self._keys.key(url) != str(url):  # others have the same key
            with self.registry.lease(entry_id) as entry:
                entry.name(url)
        return entry_id

    def outdate(self, url: str, reason: str) -> None:
        """Drop what is stored under *url*, for whatever credentials and fields."""
        parsed = parse_url(url)
        for record in self._store.entries_of(str(parsed), self._keys.key(parsed)):
            with suppress(EntryNotFound), self.registry.lease(record.id) as entry:
                entry.outdate(reason)

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first."""
        return [Entry(self, record.id, redact(record.url)) for record in self._records()]

    def describe_all(self, *, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Return what may be shown of every entry, oldest first, as :meth:`Entry.describe` does.

        At most *limit* of them, with higher ids than *after*. Entries that are not in
        memory are not brought there: it takes two queries for many of them.
        """
        self._check_open()
        found: list[dict[str, Any]] = []
        while limit is None or len(found) < limit:
            wanted = PAGE_ENTRIES if limit is None else min(PAGE_ENTRIES, limit - len(found))
            page = self._store.page(after, wanted)
            # After the rows were read: what has come to life since knows better.
            live = {entry.id: entry for entry in self.registry.live()}
            for record, ranges in page:
                entry = live.get(record.id)
                found.append(entry.describe() if entry else self._at_rest(record, ranges))
            if len(page) < wanted:
                break
            after = found[-1]["id"]
        return found

    def find(self, which: int | str) -> Entry:
        """Return the entry with that id or URL, or raise EntryNotFound."""
        self._check_open()
        if isinstance(which, int):
            record: EntryRecord | None = self._store.entry(which)
        else:
            url = parse_url(which)
            record = next(iter(self._store.entries_of(str(url), self._keys.key(url))), None)
        if record is None:
            raise EntryNotFound(f"there is no entry for {redact(str(which))}")
        return Entry(self, record.id, redact(record.url))

    def stats(self) -> dict[str, Any]:
        """Return how much there is, as JSON values; sizes are in bytes."""
        self._check_open()
        kinds = self._store.count_by_state()
        states: Counter[str] = Counter()
        for state, _, count, _ in kinds:
            states[state] += count
        live = [entry.describe() for entry in self.registry.live()]
        return {
            "directory": str(self.directory),
            "entries": sum(states.values()),
            "states": {state.value: states[state] for state in DownloadState if states[state]},
            "bytes_stored": sum(size for _, _, _, size in kinds),
            "bytes_pinned": sum(size for _, pinned, _, size in kinds if pinned),
            "max_size": self.max_size,
            "bytes_free": shutil.disk_usage(self.directory).free,
            "bytes_from_origin": self.origin.received_bytes,
            "streams": sum(len(entry["streams"]) for entry in live),
            "readers": sum(entry["readers"] for entry in live),
        }

    def collect(self, max_size: str | int | None = None) -> dict[str, int]:
        """Evict down to *max_size* or the cache's own, and delete files that no entry owns.

        Returns what was freed, in bytes but for ``orphan_files``.
        """
        limit = self.max_size if max_size is None else parse_size(max_size)
        evicted = 0 if limit is None else self.registry.evict(limit)
        orphans = find_orphans(self.directory / "content", self._store)
        size = sum(disk_usage(path) for path in orphans)
        for path in orphans:
            remove_content(path)
        return {
            "evicted_bytes": evicted,
            "orphan_files": len(orphans),
            "orphan_bytes": size,
            "bytes_stored": self._store.total_bytes(),
        }

    def remove_orphans(self) -> int:
        """Delete content files that belong to no entry; return how many there were."""
        self._check_open()
        orphans = find_orphans(self.directory / "content", self._store)
        for path in orphans:
            remove_content(path)
        return len(orphans)

    def open_reader(
        self,
        entry_id: int,
        *,
        terms: Terms | None = None,
        news: News | None = None,
        watch: Callable[[Reader], AbstractContextManager[object]] = lambda _reader: nullcontext(),
        patience_s: float | None = None,
    ) -> Reader:
        """Return a reader of that entry, which holds a lease until it is closed.

        *terms* are those of the request that is answered, by default a plain one that
        comes now; *news* is told how it is answered. *watch* gives what it holds while
        it waits; see :class:`Reader`. *patience_s* is how long it waits for its first
        byte and every further one, if not as long as others.

        Raises:
            CacheError: the entry has failed and must rest; or there is none.
        """
        options = self._reader_options
        if patience_s is not None:
            options = replace(options, first_byte_timeout_s=patience_s, stall_timeout_s=patience_s)
        entry = self.registry.acquire(entry_id)
        try:
            return Reader(
                entry,
                options,
                self.origin,
                terms=terms or entry.own_terms(Terms(since_s=time.monotonic())),
                news=news,
                watch=watch,
                on_close=lambda: self.registry.release(entry),
            )
        except BaseException:
            self.registry.release(entry)
            raise

    def readers(self, entry_id: int) -> Callable[[], Reader]:
        """Return what opens readers of that entry, all as for one request that comes now."""
        terms = Terms(since_s=time.monotonic())
        return lambda: self.open_reader(entry_id, terms=self.own_terms(entry_id, terms))

    def queued_urls(self) -> list[OriginUrl]:
        """Return the URLs that people and prefetches wait for, the most urgent first."""
        queued = [queued for queued in self._store.queue() if queued.asked_by != READER]
        ids = dict.fromkeys(each.entry_id for each in queued)
        return [parse_url(self._store.entry(entry_id).url) for entry_id in ids]

    def restore_queue(self) -> None:
        """Take up what earlier processes left in the queue."""
        for queued in self._store.queue():
            with self._tolerant(queued.entry_id), self.registry.lease(queued.entry_id) as entry:
                entry.restore(queued)

    def rate_limits(self) -> RateLimits:
        """Return the limits on what is received from origins, in bytes per second."""
        return self._throttle.limits

    def set_rate_limits(
        self,
        *,
        rate: str | int | None = None,
        rate_per_host: str | int | None = None,
        background_rate: str | int | None = None,
    ) -> RateLimits:
        """Change what may be received per second, at once; 0 for no limit, None as it is.

        What readers wait for has *rate* and *rate_per_host* for itself: what goes on
        behind that, within *background_rate*, makes up for it. Returns what holds now.
        """
        given = {
            "rate": rate,
            "rate_per_host": rate_per_host,
            "background_rate": background_rate,
        }
        changes = {name: parse_size(text) for name, text in given.items() if text is not None}
        self._throttle.set(replace(self._throttle.limits, **changes))
        return self._throttle.limits

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call *callback* with every Transition, and with Progress at times; returns the way out.

        It is called in a thread of its own, so it may take its time and use the
        cache. Progress comes at most four times a second for each entry whose bytes
        grow, with the numbers of that moment; transitions are all told, in order.
        """
        return self._events.subscribe(callback)

    def listen(self) -> Mailbox:
        """Return a mailbox of the same events, for a thread that waits for them itself."""
        return self._events.listen()

    # -- the proxy -------------------------------------------------------------

    def serve(self, **options: Any) -> Server:
        """Return the proxy in a thread; see :class:`cachefsm.proxy.Server`."""
        # The proxy is built on the cache; only this convenience looks the other way.
        from .proxy import Server

        return Server(self, **options)

    def announce(self, address: str | None, token: str | None, *, stays: bool = True) -> None:
        """Tell those who find the directory locked where its control routes are."""
        self._dirlock.announce(Holder(os.getpid(), address, token, stays))

    # -- the end ---------------------------------------------------------------

    def close(self) -> None:
        """Stop every download, fail every wait, record everything; within two seconds.

        Downloads under way are paused and go on when the directory is opened
        again. Safe to call twice and from any thread.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
            self._conductor.stop(CLOSE_TIMEOUT_S)
            entries = self.registry.close()
            self.origin.close()
            with self._downloads_lock:
                threads = list(self._downloads)
            for thread in threads:
                thread.join(max(0.0, deadline_s - time.monotonic()))
                if thread.is_alive():
                    _log.warning("%s is still in a call that cannot be interrupted", thread.name)
            self._scrubber.stop(max(0.1, deadline_s - time.monotonic()))
            self._flusher.stop(max(0.1, deadline_s - time.monotonic()))
            self._flusher.flush_all(entries)
            for entry in entries:
                try:
                    entry.rest("shutdown")
                except CacheError as error:
                    # It stays active in the database: the next start recovers it.
                    _log.warning("entry %s: %s", entry.id, error)
            self._events.close()
            for entry in entries:
                entry.release_file()
            try:
                self._doubts.rest()
            except StorageError as error:
                _log.warning("%s", error)  # then more is checked than need be
            self._store.close()
            self._dirlock.release()

    # -- wiring ----------------------------------------------------------------

    def _records(self) -> list[EntryRecord]:
        self._check_open()
        return self._store.entries()

    def _at_rest(self, record: EntryRecord, ranges: list[ByteRange]) -> dict[str, Any]:
        file, stored = (
            ContentFile(self._surroundings.directory / record.content_file),
            RangeSet(ranges),
        )
        content = Content(file, stored, stored, representation=representation_of(record))
        return facts.describe(record, content, self._policy)

    def _check_open(self) -> None:
        if self._closed:
            raise CacheClosed("the cache is closed")

    def _make_entry(self, record: EntryRecord) -> LiveEntry:
        return LiveEntry(record, self._surroundings)

    @contextmanager
    def _tolerant(self, entry_id: int) -> Iterator[None]:
        """Let one entry's trouble keep no other from being taken up."""
        try:
            yield
        except CacheError as error:
            _log.warning("entry %s could not be taken up: %s", entry_id, error)

    def _recover(self) -> None:
        """Bring what a stopped process left active to its defined state."""
        for record in self._store.active_entries():
            with self._tolerant(record.id), self.registry.lease(record.id) as entry:
                entry.recover()

    def _after_flush(self) -> float | None:
        """Write down what has been learnt, and make room; return when to make more, if at all."""
        self._save_origins()
        return self._make_room()

    def _save_origins(self) -> None:
        origins = self._surroundings.origins
        try:
            learnt = origins.changes()
            if learnt:
                self._store.save_origins(learnt, self.clock() - ORIGINS_KEPT_S)
        except StorageError as error:  # without it, it is learnt once more
            self._surroundings.trouble.note(error)

    def _make_room(self) -> float | None:
        """Keep to the size while downloading, too; return in how many seconds to go on with it.

        And keep few entries in memory: until it was flushed, one that was only looked
        at is busy.
        """
        self.registry.drop_idle()
        if self.max_size is None or self._closed:
            return None
        try:
            self.registry.stop_endless(self.max_size)
            excess = self._store.total_bytes() - self.max_size
            freed = self.registry.evict(self.max_size, most=EVICTED_AT_ONCE) if excess > 0 else 0
        except CacheClosed:
            return None
        except StorageError as error:
            self._surroundings.trouble.note(error)
            return LACK_OF_ROOM_S
        if freed >= excess:
            return None
        # Nobody says that what is in the way has come to rest.
        return 0.0 if freed else LACK_OF_ROOM_S

    def _start_download(self, entry: LiveEntry, claim: Claim) -> None:
        download = Downloader(entry, claim, ProvenOrigin(entry, self.origin))
        self._in_thread(f"download-{claim.id}", download.run)

    def _in_thread(self, name: str, work: Callable[[], None]) -> None:
        """Do *work* in a thread that :meth:`close` waits for; RuntimeError if there is none."""

        def run() -> None:
            try:
                work()
            finally:
                with self._downloads_lock:
                    self._downloads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"cachefsm-{name}", daemon=True)
        with self._downloads_lock:
            thread.start()
            self._downloads.add(thread)


_Choice = TypeVar("_Choice", bound=Enum)


def _choice(kind: type[_Choice], value: _Choice | str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in kind)
        raise UsageError(f"{value!r} is no {what}; use one of {choices}") from None
