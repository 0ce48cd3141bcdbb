"""The class that embedders use: a cache directory with its threads and entries.

It reads the arguments and wires the parts together; it decides nothing itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from .buckets import RateLimits
from .catalogue import Catalogue
from .claims import SpeedLimits
from .credentials import Credentials
from .demands import Fill
from .dirlock import Holder, absolute, take
from .engine import Engine, Parts
from .errors import CacheClosed, EntryNotFound, UsageError
from .events import Event, EventHub, Mailbox
from .fields import Fields
from .handle import Entry
from .keys import KeyRule, KeyRules, check_key
from .origin import OriginClient, OriginOptions
from .overview import Overview
from .playlist_items import wanted_items
from .policies import entry_policy, rate_limits, reader_options
from .reader import Reader, VerifyReads
from .readers import Readers
from .recall import stored_playlists
from .resolvers import Resolver
from .restart import queued_urls, restore_queue
from .retries import RetryPolicy
from .salvage import open_store
from .scheduler import Abandoned, Limits
from .settling import News
from .storage import bytes_free
from .surroundings import Durability
from .terms import Terms
from .throttle import Throttle
from .units import parse_size
from .urls import OriginUrl, parse_url, redact

if TYPE_CHECKING:
    from .proxy import Server

__all__ = ["Cache"]


class Cache:
    """A cache directory, held by this process, and the threads that fill it.

    Sizes and durations are numbers (bytes, seconds) or text such as ``"20G"`` and
    ``"500ms"``. A context manager; see :meth:`close`.

    Args:
        directory: where content and database live; made if it is not there.
        max_size: evict the least recently used beyond this; None for no limit.
        fill: what is fetched beyond what readers ask for; see :class:`Fill`.
        grace: how long a download goes on after its last reader has left.
        abandoned: what becomes of requests whose bytes nobody wants any more; see
            :class:`Abandoned`.
        read_ahead: how far past a reader's position bytes are fetched for it; 0 for
            all that it asks for, at once.
        playable_head, playable_tail: how much of a file's beginning and end
            :meth:`Entry.is_playable` requires.
        first_byte_timeout, stall_timeout: how long a reader waits, for its first
            byte and for every further one.
        durability: what recorded bytes survive; see :class:`Durability`.
        verify_reads: which stored blocks are checked when served; :class:`VerifyReads`.
        scrub_rate: how fast stored bytes are checked in the background, in bytes
            per second; 0 for not at all.
        limit_rate, limit_rate_per_host, limit_background_rate: the most bytes per second
            from all origins, from each, and for bytes that no reader waits for; 0 for no
            limit. See :meth:`set_rate_limits`.
        speed, limits, retries, origin: see their classes.
        secrets: sets of request fields, such as credentials, that are known beforehand, so
            that downloads which need them go on after a restart.
        resolver: returns a fresh URL for one that has expired. It is called in a thread of
            its own, and may take its time; see :mod:`cachefsm.renewal`.
        key_rules: which query parameters are left out of entries' keys.
        start: with False nothing is downloaded, as for a look at the entries.
        restore: with False, downloads that earlier processes queued stay at rest until
            :meth:`restore_queue`.

    Raises:
        CacheBusy: another process holds the directory.
        StorageError: the directory or its database cannot be used.
        UsageError: an argument makes no sense.
        CacheError: the system gives no threads.
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
        self.directory: Final = absolute(directory)
        self.max_size: Final = None if max_size is None else parse_size(max_size)
        self.clock: Final = clock
        options = reader_options(first_byte_timeout, stall_timeout, read_ahead, verify_reads)
        policy = entry_policy(
            fill=fill,
            durability=durability,
            grace=grace,
            playable_head=playable_head,
            playable_tail=playable_tail,
            retries=retries,
            speed=speed,
            limits=limits,
            abandoned=abandoned,
            max_size=self.max_size,
        )
        self._throttle = Throttle(
            rate_limits(RateLimits(), limit_rate, limit_rate_per_host, limit_background_rate)
        )
        scrub_rate_bytes_s = parse_size(scrub_rate)
        keys, credentials = KeyRules(key_rules), Credentials(secrets)
        self.origin: Final = OriginClient(origin, clock, self._throttle)
        self._events = EventHub()
        self._closing = threading.RLock()  # a signal's handler may interrupt it, to close
        self._closed = False
        self._owner = os.getpid()
        with ExitStack() as held:
            self._dirlock = take(self.directory)
            held.callback(self._dirlock.release)
            content = self.directory / "content"
            self._store = open_store(self.directory / "cache.sqlite3", content, now_s=clock())
            held.callback(self._store.close)
            self._engine = Engine(
                Parts(
                    self._store,
                    content,
                    self.origin,
                    self._throttle,
                    self._events,
                    credentials,
                    clock,
                ),
                policy,
                scrub_rate=scrub_rate_bytes_s,
                resolver=resolver,
            )
            self.registry: Final = self._engine.registry
            self._catalogue = Catalogue(self._store, self.registry, keys, credentials)
            self._overview = Overview(self._store, self.registry, content, policy)
            self._readers = Readers(self.registry, options, self.origin)
            self.stored_playlists: Final = partial(stored_playlists, self._store, content)
            self._engine.settle()
            if start and restore:
                self.restore_queue()
            if start:
                self._engine.start()
            self._held = held.pop_all()

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
        """The name of this cache in Via fields. RFC 9110 §7.6.3."""
        return self.origin.name

    @property
    def via(self) -> str:
        """The value that this cache adds to the Via field of messages."""
        return self.origin.via

    def __repr__(self) -> str:
        downloads = f"{len(self._engine.workers)} downloads"
        return f"<Cache {self.directory} {'closed' if self._closed else downloads}>"

    # -- entries ---------------------------------------------------------------

    def entry(self, url: str, *, key: str | None = None) -> Entry:
        """Find or register the entry of *url*; nothing is fetched yet.

        *key* is the URL by default. Other keys keep apart what one URL serves to different
        credentials.

        Raises:
            UsageError: it is no http(s) URL, or *key* is no text.
        """
        if key is not None:
            check_key(key)
        return self._handle(self._catalogue.id_of(parse_url(url), key), url)

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first."""
        self._check_open()
        return [self._handle(record.id, record.url) for record in self._store.entries()]

    def find(self, which: int | str) -> Entry:
        """Return the entry with that id or URL, or raise EntryNotFound."""
        self._check_open()
        record = self._catalogue.find(which)
        return self._handle(record.id, record.url)

    def find_variant(self, url: str, terms: Terms) -> int:
        """Return the id of the entry that answers a request for *url* on *terms*.

        One URL has an entry for each set of credentials, and for each choice of the
        request fields that its origin names in Vary (RFC 9111 §4.1).

        Raises:
            UsageError: it is no http(s) URL.
        """
        return self._catalogue.variant(parse_url(url), terms)

    def own_terms(self, entry_id: int, terms: Terms | None = None) -> Terms:
        """Return *terms* (by default a plain request's) with the entry's own credentials.

        For requests that name the entry by its id: they get its variant and credentials,
        whatever their own fields are.

        Raises:
            EntryNotFound: there is none.
        """
        return self._readers.own_terms(entry_id, terms)

    def outdate(self, url: str, reason: str) -> None:
        """Drop what is stored under *url*, for whatever credentials and fields."""
        self._check_open()
        for record in self._catalogue.all_of(parse_url(url)):
            with suppress(EntryNotFound), self.registry.lease(record.id) as entry:
                entry.outdate(reason)

    def prefetch(
        self,
        urls: Iterable[str],
        *,
        head: str | int | None = None,
        ranges: Iterable[tuple[int, int | None]] | None = None,
        deadline: str | float | None = None,
    ) -> list[Entry]:
        """Queue several, in their order; see :meth:`Entry.prefetch`.

        Raises:
            UsageError: one of them is no http(s) URL; nothing is queued.
        """
        if isinstance(urls, str):  # iterating over it would give letters
            raise UsageError("prefetch takes a list of URLs; this is one")
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
        """Read a playlist, M3U or HLS, and queue its next *items*; return their entries.

        The next items are those after *after*, the one being played; if that is None, the
        first ones, or the last ones of a live playlist. A master playlist stands for its
        first variant. Items of other origins than the playlist's are left out, with a
        warning, unless *allow* names them; see :class:`cachefsm.access.AllowList`.

        Raises:
            UsageError: it is no playlist, *after* is not in it, or *items* is no number.
            CacheError: the reason why the playlist cannot be read.
        """

        def open_playlist(playlist: OriginUrl) -> BinaryIO:
            return self.entry(str(playlist)).open()

        wanted = wanted_items(url, items, open_playlist, after=after, allow=allow)
        return [
            entry
            for item, parts in wanted.items()
            for entry in self.prefetch([item], ranges=parts, deadline=deadline)
        ]

    def describe_all(self, *, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Return what :meth:`Entry.describe` does for every entry, oldest first.

        With *limit*, at most so many, with ids higher than *after*. Many entries take but
        two queries, as they are not loaded into memory for this.
        """
        self._check_open()
        return self._overview.entries(after, limit)

    def describe_latest(self, most: int) -> list[dict[str, Any]]:
        """Describe the *most* entries that were used last, and all that are being fetched."""
        self._check_open()
        return self._overview.latest(most)

    def stats(self) -> dict[str, Any]:
        """Return how much there is, as JSON values; sizes are in bytes."""
        self._check_open()
        return {
            "directory": str(self.directory),
            **self._overview.stored(),
            "max_size": self.max_size,
            "bytes_free": bytes_free(self.directory),
            "bytes_from_origin": self.origin.received_bytes,
            **self._overview.in_use(),
        }

    # -- keeping it in order ---------------------------------------------------

    def collect(self, max_size: str | int | None = None) -> dict[str, int]:
        """Evict down to *max_size* or the cache's own, and delete files that no entry owns.

        Returns what was freed, in bytes but for ``orphan_files``.
        """
        self._check_open()
        return self._engine.upkeep.collect(None if max_size is None else parse_size(max_size))

    def remove_orphans(self) -> int:
        """Delete content files that belong to no entry; return how many there were."""
        self._check_open()
        return self._engine.upkeep.remove_orphans()[0]

    def queued_urls(self) -> list[OriginUrl]:
        """Return the URLs that people and prefetches wait for, the most urgent first."""
        self._check_open()
        return queued_urls(self._store)

    def restore_queue(self) -> None:
        """Go on with the downloads that earlier processes left in the queue."""
        self._check_open()
        restore_queue(self._store, self.registry)

    # -- reading ---------------------------------------------------------------

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

        *terms* are those of the request that is answered, by default of a plain one made
        now; *news* is filled in with how it was answered. The reader waits inside the
        context manager that *watch* returns; see :class:`Reader`. *patience_s* replaces its
        timeouts for the first and for every further byte.

        Raises:
            CacheError: the entry has failed and must rest; or there is none.
        """
        return self._readers.open(
            entry_id, terms=terms, news=news, watch=watch, patience_s=patience_s
        )

    def readers(self, entry_id: int) -> Callable[[], Reader]:
        """Return a function that opens readers of that entry, all for one request made now."""
        return self._readers.opener(entry_id)

    # -- limits and events -----------------------------------------------------

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
        """Change the limits on bytes per second at once, and return those that hold now.

        0 is no limit, None leaves a limit as it is. Bytes that readers wait for may use all
        of *rate* and *rate_per_host*. The others, which also keep to *background_rate*,
        wait until what readers took has been made up for.
        """
        limits = rate_limits(self._throttle.limits, rate, rate_per_host, background_rate)
        self._throttle.set(limits)
        return limits

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call *callback* with every Transition, and with Progress; return what ends that.

        It is called in a thread of its own, so it may take its time and use the cache.
        Transitions come in order. Progress comes at most four times a second for each entry
        that is growing, with the numbers of that moment.
        """
        return self._events.subscribe(callback)

    def listen(self) -> Mailbox:
        """Return a mailbox of the same events, for a thread that waits for them itself."""
        return self._events.listen()

    # -- the proxy -------------------------------------------------------------

    def serve(self, **options: Any) -> Server:
        """Return the proxy in a thread; see :class:`cachefsm.proxy.Server`."""
        self._check_open()
        # The proxy is built on the cache; only this convenience looks the other way.
        from .proxy import Server

        return Server(self, **options)

    def announce(self, address: str | None, token: str | None, *, stays: bool = True) -> None:
        """Tell processes that find the directory locked where to reach this one's control."""
        self._dirlock.announce(Holder(os.getpid(), address, token, stays))

    # -- the end ---------------------------------------------------------------

    def close(self) -> None:
        """Stop every download, fail every wait, record everything; within two seconds.

        Downloads under way are paused and go on when the directory is opened
        again. Safe to call twice, from any thread, and from a callback. In a fork it
        changes nothing: threads and directory are the parent's.
        """
        if os.getpid() != self._owner:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            with self._held:  # whatever happens, the directory is let go
                self._engine.close()

    def _handle(self, entry_id: int, url: str) -> Entry:
        return Entry(self.registry, self._readers, entry_id, redact(url))

    def _check_open(self) -> None:
        if self._closed:
            raise CacheClosed("the cache is closed")
