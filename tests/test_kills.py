"""SIGKILL at any moment: nothing wrong is recorded, and little is fetched twice.

Every check of a change kills 20 times, so that it stays a matter of seconds; `make
soak` kills 100 times (``KILLS=100``). Either says what the kills cost; ``SEED`` brings
back a choice of moments, as far as processes allow.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.audit import Patterned, StoredEntry, complaints, read_entries
from tests.support.child import Child
from tests.support.origin import Origin, Resource, Shaping

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("SEED", "35"))

MIB = 1 << 20
RATE = 24 * MIB
NOTHING_HAPPENS_S = 2.0  # then that is the moment
MOST_LOST = 16 * MIB  # on average: so much is recorded at once, at the latest


@dataclass
class Films:
    """What there is to download: one film after another, each in one version after another."""

    origin: Origin
    dice: random.Random
    number: int = 0
    versions: list[Patterned] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.origin.url(f"/film-{self.number}")

    def next_version(self) -> None:
        size = self.dice.randrange(24 * MIB, 48 * MIB)
        self.versions.append(Patterned(size, len(self.versions)))
        self.origin.put(f"/film-{self.number}", Resource(size, version=len(self.versions) - 1))

    def next_film(self) -> None:
        self.number += 1
        self.versions = []
        self.next_version()

    def truths(self, entry: StoredEntry) -> list[Patterned]:
        return [v for v in self.versions if entry.etag in (None, f'"v{v.version}"')]


Moment = Callable[[], None]


def _moments(origin: Origin, directory: Path, dice: random.Random) -> dict[str, Moment]:
    """Return what to wait for before killing, by name."""
    sent = origin.body_bytes_sent + dice.randrange(RATE)

    def looks(pattern: str) -> Callable[[], Hashable]:
        return lambda: tuple(map(_look_at, directory.glob(pattern)))

    return {
        "sent": lambda: _await_changes(lambda: origin.body_bytes_sent >= sent, 1),
        "written": lambda: _await_changes(looks("content/*/*"), dice.randint(1, 40)),
        # From the lock file on: opening, recovery, the first moves.
        "committed": lambda: _await_changes(looks("cache.sqlite3-wal"), dice.randint(1, 6)),
        "opened": lambda: _await_changes(looks("lock"), 1),
    }


def _look_at(path: Path) -> Hashable:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return path, found.st_size, found.st_mtime_ns


def _await_changes(look: Callable[[], Hashable], count: int) -> None:
    """Return at the *count*-th change, or when none comes."""
    before, pause = look(), threading.Event()
    deadline_s = time.monotonic() + NOTHING_HAPPENS_S
    while count and time.monotonic() < deadline_s:
        now = look()
        if now != before:
            before, count = now, count - 1
            deadline_s = time.monotonic() + NOTHING_HAPPENS_S
        else:
            pause.wait(0.0001)


def _examined(directory: Path, films: Films) -> StoredEntry | None:
    """Return what is recorded of the film; fails where that, or anything else, is wrong."""
    entries = read_entries(directory)
    for entry in entries:
        if entry.url == films.url:
            assert complaints(entry, films.truths(entry)) == [], str(entry)
    return next((entry for entry in entries if entry.url == films.url), None)


def _lost(before: StoredEntry | None, after: StoredEntry | None, sent_bytes: int) -> int | None:
    """Return how much of what was sent is not recorded, None where other bytes were dropped."""
    known, now = (0 if entry is None else entry.bytes_present for entry in (before, after))
    if before is not None and after is not None:
        assert after.generation >= before.generation
        if after.generation > before.generation:
            return None
    assert now >= known
    return sent_bytes - (now - known)


class Nursery:
    """Has the next child import everything while the last one still works."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next: tuple[str, Child] | None = None

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            self._next[1].kill()

    def prepare(self, url: str) -> None:
        self._next = url, Child(self._directory, url)

    def child(self, url: str) -> Child:
        """Return a child for *url*, prepared or not."""
        if self._next is not None:
            prepared_for, child = self._next
            self._next = None
            if prepared_for == url:
                return child
            child.kill()
        return Child(self._directory, url)


@pytest.mark.fault("process", "it is killed (`kill -9`)")
def test_kills_spoil_nothing_and_cost_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, dice = tmp_path / "cache", random.Random(SEED)
    lost: dict[str, list[int]] = {}
    with Origin(Shaping(rate_per_connection=RATE)) as origin:
        films = Films(origin, dice)
        films.next_version()
        before: StoredEntry | None = None
        with Nursery(directory) as nursery:
            for _ in range(KILLS):
                sent_bytes = origin.body_bytes_sent
                with nursery.child(films.url) as child:
                    name, moment = dice.choice(list(_moments(origin, directory, dice).items()))
                    child.release()
                    nursery.prepare(films.url)
                    moment()
                after = _examined(directory, films)
                waste = _lost(before, after, origin.body_bytes_sent - sent_bytes)
                if waste is not None:
                    lost.setdefault(name, []).append(waste)
                before = after
                if after is not None and after.state == "complete":
                    films.next_film()
                    before = None
                elif dice.random() < 0.15:
                    films.next_version()
        origin.shaping = Shaping()  # enough of slowness
        with Child(directory, films.url) as child:
            child.go()
            child.expect("complete")
        after = _examined(directory, films)
        assert after is not None
        assert after.state == "complete"
    with capsys.disabled():
        print(_summary(lost))
    wastes = [waste for found in lost.values() for waste in found]
    assert sum(wastes) / len(wastes) <= MOST_LOST


def _summary(lost: dict[str, list[int]]) -> str:
    lines = [f"\n{KILLS} kills, seed {SEED}; fetched for nothing by each, MiB:"]
    for name, wastes in sorted(lost.items()):
        average, worst = sum(wastes) / len(wastes) / MIB, max(wastes) / MIB
        lines.append(f"  {name:9} {len(wastes):3} times, {average:5.2f}, at worst {worst:5.2f}")
    return "\n".join(lines)
