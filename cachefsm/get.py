"""The commands ``get`` and ``prefetch``: downloads through the cache."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .access import AllowList
from .backend import Backend, Facts, open_backend
from .client import ServerGone
from .display import format_stored
from .errors import CacheError, EntryNotFound, StorageError, UsageError
from .logs import logging_to
from .m3u import read_text, upcoming
from .output import STDOUT, check_output, outputs_for, replaced
from .parts import Parts
from .progress import LogAboveBar, Progress
from .states import ACTIVE
from .units import format_size
from .urls import OriginUrl, parse_url, redact

__all__ = ["Interrupted", "get", "looks", "prefetch"]

FIRST_LOOK_S: Final = 0.02
LAST_LOOK_S: Final = 0.2
"""How soon to look again at a download: soon at first, for small files, then less so."""

ITEMS: Final = 3
"""How many items of a playlist are prefetched, if nobody says."""

HANDOVERS: Final = 10
"""How often the process that holds the directory may change before we give up."""

_PIECE_BYTES: Final = 1 << 20


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; the message says what is left of its work."""


def get(options: argparse.Namespace) -> int:
    """Download each URL, and write it where ``-o`` says."""
    try:
        paths = outputs_for(options.urls, options.output)
    except UsageError as error:
        options.fail(str(error))
    if options.json and STDOUT in paths:
        options.fail("--json and -o - cannot both have stdout")
    for path in paths:
        if path is not None and path != STDOUT:
            check_output(path)
    wishes = [_Wish(url, path) for url, path in zip(options.urls, paths, strict=True)]
    return _Downloads(options, wishes, "person").run()


def prefetch(options: argparse.Namespace) -> int:
    """Have each URL downloaded by the server, or here if there is none."""
    if options.playlist and (options.head is not None or options.ranges):
        options.fail("--head and --range are of files, not of playlists")
    if not options.playlist and (options.items or options.after or options.allow):
        options.fail("--items, --after and --allow are of playlists: add --playlist")
    parts: Parts | None = None
    if options.head is not None or options.ranges:
        parts = [*((0, head) for head in [options.head] if head), *(options.ranges or ())]
    wishes = [_Wish(url, None, parts) for url in options.urls]
    return _Downloads(options, wishes, "prefetch").run()


@dataclass(frozen=True)
class _Wish:
    """A URL to download, the path to copy it to (or None), and its parts (None for all)."""

    url: str
    path: Path | None
    parts: Parts | None = None


class _Downloads:
    """The downloads of one command."""

    def __init__(self, options: argparse.Namespace, wishes: list[_Wish], priority: str) -> None:
        self._options = options
        self._priority = priority
        self._wanted = wishes
        self._playlists = priority == "prefetch" and options.playlist
        self._done: list[Facts] = []
        self._failures = 0
        self._now: Facts | None = None  # what is waited for
        self._began_s = time.time()
        self._backend: Backend | None = None
        self._streamed_bytes = 0

    def run(self) -> int:
        options = self._options
        level = logging.INFO if options.verbose else logging.WARNING
        if options.debug:
            level = logging.DEBUG
        with ExitStack() as stack:
            self._progress = stack.enter_context(Progress(quiet=options.quiet))
            stack.enter_context(
                logging_to(
                    LogAboveBar(self._progress),
                    level,
                    timed=False,
                    debug=options.debug,
                    # What matters of its retries is said in the end, or the bar shows it.
                    floors={"cachefsm.filling": logging.ERROR} if level == logging.WARNING else {},
                )
            )
            try:
                self._run()
            except KeyboardInterrupt as interrupt:
                raise Interrupted(self._what_is_left(), *interrupt.args) from interrupt
        if options.json:
            print(json.dumps(self._done, indent=2))
        return 1 if self._failures else 0

    def _run(self) -> None:
        for handover in range(HANDOVERS):
            with open_backend(
                self._options.cache_dir,
                downloads=True,
                max_size=self._options.max_size,
                key_rules=self._options.key_rule,
                resolver=self._options.resolver,
            ) as backend:
                self._backend = backend
                try:
                    self._run_with(backend, again=handover > 0)
                except KeyboardInterrupt:
                    if self._now is not None and backend.address is None:
                        with suppress(CacheError):  # say what there is, not what there was
                            self._now = backend.find(self._now["id"])
                    raise
                except ServerGone:
                    # Whoever held the directory has ended: go on by ourselves. But bytes
                    # that are out on stdout cannot be taken back.
                    if self._streamed_bytes or handover == HANDOVERS - 1:
                        raise
                else:
                    return

    def _run_with(self, backend: Backend, *, again: bool) -> None:
        if self._playlists:
            self._wanted = self._items_of_playlists(backend)
        added = []
        for wish in self._wanted:
            with self._failing(wish):
                if not again or (facts := _held(backend, wish.url)) is None:
                    facts = self._order(backend, wish)
                added.append((wish, facts))
        for wish, facts in added:
            with self._failing(wish):
                if self._priority == "prefetch" and backend.stays:
                    queued = "prefetch" in facts["asked_by"]
                    self._finish(wish, facts, stored=not queued, queued=queued)
                else:
                    self._download(backend, wish, facts)

    def _order(self, backend: Backend, wish: _Wish) -> Facts:
        if self._priority == "prefetch":
            return backend.prefetch(wish.url, wish.parts, self._options.deadline)
        return backend.add(wish.url, self._priority)

    def _items_of_playlists(self, backend: Backend) -> list[_Wish]:
        """Return the next items of each playlist that was named."""
        options = self._options
        after = parse_url(options.after) if options.after else None

        def read(url: OriginUrl) -> str:
            facts = backend.prefetch(str(url), None, None)
            with backend.open(facts["id"]) as stream:
                return read_text(stream)

        wishes = []
        for playlist in self._wanted:
            with self._failing(playlist):
                allowed = AllowList(options.allow)
                url = parse_url(playlist.url)
                count = options.items or ITEMS
                found = upcoming(url, count, read, after=after, allowed=allowed)
                wishes += [_Wish(item, None, parts) for item, parts in found.parts.items()]
                for origin in found.refused:
                    self._failures += 1
                    self._progress.say(
                        f"cachefsm: {redact(playlist.url)}: items at {origin} are left out; "
                        "--allow lets them in"
                    )
        self._playlists = False
        return wishes

    @contextmanager
    def _failing(self, wish: _Wish) -> Iterator[None]:
        """Report an error in the block about one URL at once, and go on with the others."""
        try:
            yield
        except ServerGone:
            raise
        except CacheError as error:
            self._failed(wish, error)

    def _download(self, backend: Backend, wish: _Wish, facts: Facts) -> None:
        # A small file may be complete by the time that its entry is described.
        if facts["state"] == "complete":
            stored = facts["since"] < self._began_s
        else:
            stored = _is_over(facts, self._priority)
        self._now = facts
        if wish.path == STDOUT:
            self._stream(backend, facts)
        for now in looks(backend, facts, self._progress, self._priority):
            facts = self._now = now
        kept = facts["downloaded_bytes"]
        rest = f"; {format_size(kept)} are kept" if kept else ""
        if facts["state"] == "failed":
            raise CacheError(f"{facts['reason']}{rest}")
        if facts["reason"] == "deadline":
            raise CacheError(f"not all of it came within the deadline{rest}")
        if facts["reason"] == "too large":
            raise CacheError(f"it is larger than the cache may be{rest}")
        if wish.path is not None and wish.path != STDOUT:
            with backend.open(facts["id"]) as stream, replaced(wish.path) as write:
                _copy(stream, write, lambda: None)
        self._finish(wish, facts, stored=stored)

    def _stream(self, backend: Backend, facts: Facts) -> None:
        """Write the bytes to stdout as they arrive."""
        stdout = sys.stdout.buffer

        def write(data: bytes) -> None:
            stdout.write(data)
            stdout.flush()
            self._streamed_bytes += len(data)

        def look() -> None:
            if self._progress.is_due:
                self._now = backend.find(facts["id"])
                self._progress.update(self._now)

        try:
            with backend.open(facts["id"]) as stream:
                _copy(stream, write, look)
        except ServerGone:
            facts = backend.find(facts["id"])  # raises as well if the server has really gone
            if facts["state"] != "failed":
                raise
            raise CacheError(
                f"{facts['reason']}; stdout has {format_size(self._streamed_bytes)}"
            ) from None

    def _finish(
        self, wish: _Wish, facts: Facts, *, stored: bool = False, queued: bool = False
    ) -> None:
        self._now = None
        self._wanted.remove(wish)
        path = wish.path
        file = None if path in (None, STDOUT) else str(path)
        self._done.append({**facts, "file": file} if self._priority == "person" else facts)
        if self._options.json or self._options.quiet or path == STDOUT:
            return
        what = file or facts["url"]
        entry = f"entry {facts['id']}"
        if queued:
            line = f"{what}: queued as {entry}"
        elif file:
            line = f"{what}: {format_stored(facts)}{', from the cache' if stored else ''}"
        else:
            how = "complete" if facts["state"] == "complete" else "stored"
            line = f"{what}: {format_stored(facts)}, {'already ' if stored else ''}{how} as {entry}"
        print(line, flush=True)

    def _failed(self, wish: _Wish, error: CacheError) -> None:
        self._failures += 1
        self._now = None
        self._wanted = [other for other in self._wanted if other != wish]
        name = "" if isinstance(error, StorageError) else f"{redact(wish.url)}: "
        self._progress.say(f"cachefsm: {name}{error}")

    def _what_is_left(self) -> str:
        """Return the message that says what became of an interrupted download."""
        facts = self._now
        if facts is None or self._backend is None:
            return "interrupted"
        if self._backend.stays:
            return f"interrupted; the server goes on, `cachefsm pause {facts['id']}` holds it"
        if not facts["downloaded_bytes"]:
            return "interrupted; nothing has come yet"
        return (
            f"interrupted; {format_stored(facts)} kept as entry {facts['id']}, "
            "the same command goes on from there"
        )


def looks(
    backend: Backend, facts: Facts, progress: Progress, asked_by: str = "person"
) -> Iterator[Facts]:
    """Show a download's *progress*; yield its facts until it is complete or has failed.

    A prefetch of parts, or with a deadline, may end before the file is complete.
    """
    look_s, told = FIRST_LOOK_S, False
    while True:
        yield facts
        if facts["state"] in ("complete", "failed") or _is_over(facts, asked_by):
            progress.clear()
            return
        progress.update(facts)
        if _is_held(facts) and not told:
            told = True
            progress.say(
                f"cachefsm: somebody has paused it; `cachefsm resume {facts['id']}` goes on"
            )
        backend.wait(look_s)
        look_s = min(look_s * 1.5, LAST_LOOK_S)
        facts = backend.find(facts["id"])


def _is_over(facts: Facts, asked_by: str) -> bool:
    """Say whether a prefetch has come to its end: all is here, or the order was given up."""
    if asked_by != "prefetch" or asked_by in facts["asked_by"] or facts["streams"]:
        return False
    # Wanted by nobody and yet active, it is about to come to rest, and to say why.
    return bool(facts["asked_by"]) or facts["state"] not in ACTIVE


def _held(backend: Backend, url: str) -> Facts | None:
    """Return the facts of *url* if a person has paused it since it was ordered, else None."""
    try:
        facts = backend.find(url)
    except EntryNotFound:  # whoever was to take the order had ended before that
        return None
    return facts if _is_held(facts) else None


def _is_held(facts: Facts) -> bool:
    """Say whether a person has paused it, so that a person must resume it."""
    return bool(facts["state"] == "paused" and facts["reason"] == "person")


def _copy(stream: io.RawIOBase, write: Callable[[bytes], None], look: Callable[[], None]) -> None:
    while data := stream.read(_PIECE_BYTES):
        write(data)
        look()
