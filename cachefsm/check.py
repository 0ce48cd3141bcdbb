"""The command ``verify``: compares stored bytes with their checksums.

Entries are checked window by window. If a server holds the cache, each window is one
short request, so that none times out, progress is visible, and Ctrl-C works.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from .backend import Backend, Facts, open_backend
from .client import ServerGone
from .display import format_count, spell_ranges
from .errors import CacheError, EntryNotFound
from .get import looks
from .logs import logging_to
from .progress import CHECKING, LogAboveBar, Progress
from .ranges import RangeSet
from .units import format_size

__all__ = ["verify"]

WINDOW_BYTES: Final = 64 << 20
"""Half a second's work for a hard disk; whole blocks, so that none is read twice."""


def verify(options: argparse.Namespace) -> int:
    """Check the entries named, or all; with ``--repair`` fetch again what was damaged."""
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=options.quiet))
        stack.enter_context(
            logging_to(
                LogAboveBar(progress),
                logging.DEBUG if options.debug else logging.WARNING,
                timed=False,
                debug=options.debug,
                # What matters of a repair's retries is said in the end.
                floors={} if options.debug else {"cachefsm.filling": logging.ERROR},
            )
        )
        return _Check(options, progress).run()


@dataclass
class _Finding:
    """What was found in one entry; *facts* is its description from before the check."""

    facts: Facts
    checked_bytes: int = 0
    unchecked_bytes: int = 0
    damaged: RangeSet = field(default_factory=RangeSet)
    repaired: bool | None = None

    @property
    def was_left_damaged(self) -> bool:
        """Whether an earlier check dropped damaged bytes that nobody has wanted since.

        Nothing else leaves an entry that has bytes in the state ``not_started``.
        """
        return self.facts["state"] == "not_started" and bool(self.facts["downloaded_bytes"])

    @property
    def needs_repair(self) -> bool:
        return bool(self.damaged) or self.was_left_damaged

    @property
    def was_partial(self) -> bool:
        """Whether the file was incomplete, so that not all missing bytes need be fetched."""
        return self.facts["state"] not in ("complete", "not_started")

    def add(self, found: Facts) -> None:
        self.checked_bytes += found["checked_bytes"]
        self.unchecked_bytes += found["unchecked_bytes"]
        for start, stop in found["damaged"]:
            self.damaged.add(start, stop)

    def lost(self) -> tuple[int, int | None]:
        """Return the range to repair: a formerly whole file's, or what spans the damage."""
        if not self.was_partial:
            return 0, None
        runs = list(self.damaged)
        return runs[0].start, runs[-1].stop

    def is_as_before(self, facts: Facts) -> bool:
        """Say whether an incomplete file has all of its damaged bytes again."""
        here = RangeSet((start, stop) for start, stop in facts["ranges"])
        return self.was_partial and all(here.contains(*run) for run in self.damaged)

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.facts["id"],
            "url": self.facts["url"],
            "checked_bytes": self.checked_bytes,
            "unchecked_bytes": self.unchecked_bytes,
            "damaged_bytes": self.damaged.total,
            "damaged": [[start, stop] for start, stop in self.damaged],
            "repaired": self.repaired,
        }


class _Check:
    """The work of one command."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._findings: list[_Finding] = []
        self._orphans = {"orphan_files": 0, "orphan_bytes": 0}
        self._failures = 0
        self._total_bytes = self._done_bytes = 0
        self._began_s = time.monotonic()

    def run(self) -> int:
        with open_backend(self._options.cache_dir) as backend:
            self._look(backend)
            if self._options.repair and not self._options.entries:
                freed = backend.collect(None)
                self._orphans = {name: freed[name] for name in self._orphans}
        broken = [finding for finding in self._findings if finding.needs_repair]
        if self._options.repair and broken:
            # Opened anew, and only now: with its threads an idle cache would look for
            # damage by itself, and be first to find it.
            with open_backend(self._options.cache_dir, downloads=True) as backend:
                for finding in broken:
                    self._repair(backend, finding)
        self._progress.clear()
        self._report()
        unrepaired = any(f.damaged and not f.repaired for f in self._findings)
        return 1 if unrepaired or self._failures else 0

    # -- looking ---------------------------------------------------------------

    def _look(self, backend: Backend) -> None:
        chosen = list(self._chosen(backend))
        self._total_bytes = sum(facts["downloaded_bytes"] for facts in chosen)
        for facts in chosen:
            finding = _Finding(facts)
            try:
                for start, stop in _windows(facts["ranges"]):
                    self._draw(facts)
                    found = backend.verify(facts["id"], start, stop)
                    finding.add(found)
                    self._done_bytes += found["checked_bytes"] + found["unchecked_bytes"]
            except ServerGone:
                raise
            except EntryNotFound as error:
                if self._options.entries:  # else: removed since they were listed
                    self._failed(facts["id"], error)
                continue
            except CacheError as error:
                self._failed(facts["id"], error)
            self._findings.append(finding)
            if finding.damaged:
                self._say(
                    f"entry {facts['id']}: {format_size(finding.damaged.total)} damaged, "
                    f"{spell_ranges(list(finding.damaged))}: {facts['url']}"
                )

    def _chosen(self, backend: Backend) -> Iterator[Facts]:
        if not self._options.entries:
            yield from backend.entries()
        for which in self._options.entries:
            try:
                yield backend.find(which)
            except EntryNotFound as error:
                self._failed(None, error)

    def _draw(self, facts: Facts) -> None:
        """Show the progress over all entries, with the name of the present one."""
        took_s = time.monotonic() - self._began_s
        self._progress.update(
            {
                "url": facts["url"],
                "state": CHECKING,
                "total_size": self._total_bytes,
                "downloaded_bytes": self._done_bytes,
                "ranges": [[0, self._done_bytes]],
                "rate_bytes_s": round(self._done_bytes / took_s) if took_s else 0,
            }
        )

    # -- repairing -------------------------------------------------------------

    def _repair(self, backend: Backend, finding: _Finding) -> None:
        entry_id = finding.facts["id"]
        finding.repaired = False
        try:
            facts = backend.start(entry_id, *finding.lost())
            for now in looks(backend, facts, self._progress):
                if finding.is_as_before(now):
                    break
                if now["state"] == "failed":
                    raise CacheError(now["reason"])
        except ServerGone:
            raise
        except CacheError as error:
            self._failed(entry_id, error)
        else:
            finding.repaired = True

    # -- telling ---------------------------------------------------------------

    def _failed(self, entry_id: int | None, error: CacheError) -> None:
        self._failures += 1
        name = f"entry {entry_id}: " if entry_id is not None else ""
        self._progress.say(f"cachefsm: {name}{error}")

    def _say(self, line: str) -> None:
        if not self._options.json:
            self._progress.clear()
            print(line, flush=True)

    def _report(self) -> None:
        sums = {
            "checked_bytes": sum(finding.checked_bytes for finding in self._findings),
            "unchecked_bytes": sum(finding.unchecked_bytes for finding in self._findings),
            "damaged_bytes": sum(finding.damaged.total for finding in self._findings),
            **self._orphans,
        }
        if self._options.json:
            entries = [finding.describe() for finding in self._findings]
            print(json.dumps({"entries": entries, **sums}, indent=2))
        elif (self._findings or not self._failures) and (
            not self._options.quiet or sums["damaged_bytes"]
        ):
            print(_summary(self._findings, sums))


def _windows(ranges: list[list[int]]) -> Iterator[tuple[int, int]]:
    """Yield the windows that hold any of *ranges*, in order."""
    done = 0
    for start, stop in ranges:
        first = max(done, start // WINDOW_BYTES)
        done = -(-stop // WINDOW_BYTES)
        for index in range(first, done):
            yield index * WINDOW_BYTES, (index + 1) * WINDOW_BYTES


def _summary(findings: list[_Finding], sums: dict[str, int]) -> str:
    parts = [f"checked {format_size(sums['checked_bytes'])} of {_entries(findings)}"]
    damaged = [finding for finding in findings if finding.damaged]
    mended = [finding for finding in findings if finding.repaired]
    if damaged:
        parts.append(f"{format_size(sums['damaged_bytes'])} damaged in {_entries(damaged)}")
    else:
        parts.append("no damage")
    if mended:
        parts.append(f"{_entries(mended)} repaired")
    if sums["unchecked_bytes"]:
        parts.append(f"{format_size(sums['unchecked_bytes'])} without a checksum")
    if sums["orphan_files"]:
        files = format_count(sums["orphan_files"], "file")
        parts.append(f"removed {files} without an entry ({format_size(sums['orphan_bytes'])})")
    return ", ".join(parts)


def _entries(findings: list[_Finding]) -> str:
    return format_count(len(findings), "entry", "entries")
