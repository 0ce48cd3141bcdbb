"""The commands' view of a cache directory: the same whether a server holds it or not.

An idle directory is opened by the command itself; if a server holds it, the command asks
the server.
"""

from __future__ import annotations

import io
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from .client import ServedCache, ServerGone
from .dirlock import DirectoryLock, in_use
from .errors import CacheBusy, CacheError, EntryNotFound, StorageError, UsageError
from .parts import Parts

if TYPE_CHECKING:
    from .cache import Cache

__all__ = ["PATIENCE_S", "Backend", "Facts", "open_backend"]

_log = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0
"""How long to wait for a directory that another command holds, or a server that
starts or ends: all of them take less than half of that."""

_LOOK_AGAIN_S: Final = 0.02

Facts = dict[str, Any]
"""An entry's description, as ``/-/entries`` gives it."""


class Backend(Protocol):
    """What commands can do to a cache; entries are named by id or URL. All raise CacheError."""

    address: str | None
    """The address of the server that holds the cache; None if this process does."""
    stays: bool
    """Whether queued downloads go on when this command has ended."""

    def entries(self) -> list[Facts]: ...
    def find(self, which: int | str) -> Facts: ...
    def stats(self) -> Facts: ...
    def add(self, url: str, priority: str) -> Facts: ...
    def prefetch(self, url: str, parts: Parts | None, within_s: float | None) -> Facts: ...
    def order(self, name: str, which: int | str) -> Facts: ...
    def start(self, entry_id: int, start: int, stop: int | None) -> Facts: ...
    def verify(self, entry_id: int, start: int, stop: int) -> Facts: ...
    def collect(self, max_size: int | None) -> dict[str, int]: ...
    def explain(self, which: int | str, offset: int) -> Facts: ...
    def limits(self, changes: dict[str, int]) -> dict[str, int]: ...
    def wait(self, seconds: float) -> None: ...
    def open(self, entry_id: int) -> AbstractContextManager[io.RawIOBase]: ...
    def close(self) -> None: ...


@contextmanager
def open_backend(directory: Path, *, downloads: bool = False, **options: Any) -> Iterator[Backend]:
    """Open the cache in *directory*, or connect to the server that holds it.

    With *downloads* an idle cache is created if it does not exist, its threads are started,
    and other commands can reach it through this process meanwhile. *options* are those of
    an idle cache; a server has its own.

    Raises:
        CacheBusy: another process holds the directory and cannot be asked.
    """
    backend = _open(directory, downloads=downloads, options=options)
    try:
        yield backend
    finally:
        backend.close()


def _open(directory: Path, *, downloads: bool, options: dict[str, Any]) -> Backend:
    if directory.exists() and not directory.is_dir():
        raise StorageError(f"{directory} is no directory")
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        holder = DirectoryLock.holder(directory)
        if holder is not None and holder.address is not None:
            served = ServedCache(holder)
            try:
                served.ping()
            except ServerGone:
                if time.monotonic() >= deadline_s:
                    raise
            else:
                return served
        elif holder is None:
            if not downloads and not (directory / "cache.sqlite3").exists():
                return _NoCache(directory)
            try:
                return _IdleCache(directory, downloads=downloads, options=options)
            except CacheBusy:
                if time.monotonic() >= deadline_s:
                    raise
        elif time.monotonic() >= deadline_s:
            raise CacheBusy(in_use(directory, holder))
        # There is no waiting for the lock and for a time limit both.
        time.sleep(_LOOK_AGAIN_S)


class _IdleCache:
    """An idle cache, which this process has opened."""

    address: str | None = None
    stays = False

    def __init__(self, directory: Path, *, downloads: bool, options: dict[str, Any]) -> None:
        from .cache import Cache  # 150 ms that a served cache does without

        self._cache = Cache(
            directory,
            start=downloads,
            restore=False,  # what is asked for now is what is downloaded now
            # Nobody is in a hurry but the download itself, which knows when to give up.
            first_byte_timeout="1d",
            stall_timeout="1d",
            **options,
        )
        self._downloads = downloads
        self._moved = threading.Event()
        self._end_server: Callable[[], None] = lambda: None
        if downloads:
            self._cache.subscribe(lambda _event: self._moved.set())
            self._end_server = _serve_others(self._cache)

    def close(self) -> None:
        self._end_server()
        self._cache.close()

    def entries(self) -> list[Facts]:
        return self._cache.describe_all()

    def find(self, which: int | str) -> Facts:
        return self._cache.find(which).describe()

    def stats(self) -> Facts:
        return {**self._cache.stats(), "server": None}

    def add(self, url: str, priority: str) -> Facts:
        entry = self._cache.entry(url)
        entry.start(priority)
        return entry.describe()

    def prefetch(self, url: str, parts: Parts | None, within_s: float | None) -> Facts:
        (entry,) = self._cache.prefetch([url], ranges=parts, deadline=within_s)
        return entry.describe()

    def order(self, name: str, which: int | str) -> Facts:
        entry = self._cache.find(which)
        facts = entry.describe()
        getattr(entry, name)()
        if name == "remove":
            return facts
        # It would happen at the end anyway; what is reported is then what stays.
        with self._cache.registry.lease(entry.id) as live:
            live.rest("shutdown")
        return entry.describe()

    def start(self, entry_id: int, start: int, stop: int | None) -> Facts:
        entry = self._cache.find(entry_id)
        entry.start("person", start, stop)
        return entry.describe()

    def verify(self, entry_id: int, start: int, stop: int) -> Facts:
        return self._cache.find(entry_id).verify(start=start, stop=stop).describe()

    def collect(self, max_size: int | None) -> dict[str, int]:
        return self._cache.collect(max_size)

    def explain(self, which: int | str, offset: int) -> Facts:
        return self._cache.find(which).explain(offset)

    def limits(self, changes: dict[str, int]) -> dict[str, int]:
        raise _no_server(self._cache.directory)

    def wait(self, seconds: float) -> None:
        self._moved.wait(seconds)
        self._moved.clear()

    @contextmanager
    def open(self, entry_id: int) -> Iterator[io.RawIOBase]:
        with self._cache.find(entry_id).open() as stream:
            yield cast("io.RawIOBase", stream.raw)  # a CacheFile, whose reads wait


class _NoCache:
    """A directory without a cache: looking at it does not create one."""

    address: str | None = None
    stays = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def close(self) -> None:
        pass

    def entries(self) -> list[Facts]:
        return []

    def find(self, which: int | str) -> Facts:
        raise self._nothing()

    def stats(self) -> Facts:
        return {
            "server": None,
            "directory": str(self._directory),
            "entries": 0,
            "states": {},
            "bytes_stored": 0,
            "bytes_pinned": 0,
            "max_size": None,
            "bytes_free": None,
            "bytes_from_origin": 0,
            "streams": 0,
            "readers": 0,
        }

    def add(self, url: str, priority: str) -> Facts:
        return self.find(url)

    def prefetch(self, url: str, parts: Parts | None, within_s: float | None) -> Facts:
        return self.find(url)

    def order(self, name: str, which: int | str) -> Facts:
        return self.find(which)

    def start(self, entry_id: int, start: int, stop: int | None) -> Facts:
        return self.find(entry_id)

    def verify(self, entry_id: int, start: int, stop: int) -> Facts:
        return self.find(entry_id)

    def collect(self, max_size: int | None) -> dict[str, int]:
        return dict.fromkeys(("evicted_bytes", "orphan_files", "orphan_bytes", "bytes_stored"), 0)

    def explain(self, which: int | str, offset: int) -> Facts:
        return self.find(which)

    def limits(self, changes: dict[str, int]) -> dict[str, int]:
        raise _no_server(self._directory)

    def wait(self, seconds: float) -> None:
        raise self._nothing()

    def open(self, entry_id: int) -> AbstractContextManager[io.RawIOBase]:
        raise self._nothing()

    def _nothing(self) -> EntryNotFound:
        return EntryNotFound(f"there is no cache in {self._directory}")


def _no_server(directory: Path) -> CacheError:
    return StorageError(f"no server runs in {directory}, whose limits they would be")


def _serve_others(cache: Cache) -> Callable[[], None]:
    """Let other commands speak to *cache* while this one works; return what ends that."""
    from .proxy import Server

    try:
        server = Server(
            cache, token=secrets.token_urlsafe(), require_token=True, stays=False, port=0
        )
    except UsageError as error:
        # No loopback, no free port: they will be told that the directory is in use.
        _log.warning("other commands cannot join in: %s", error)
        return lambda: None
    return server.close
