"""What is measured: each scenario is a question, a shaped origin, and a function.

A scenario's function gets a contender that has just been started with an empty
cache, and the origin behind it, which nobody else uses. It returns its figures by
name, the unit at the name's end.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from statistics import median, quantiles
from typing import Final

from .contenders import Subject
from .http import Client, timed_get
from .origin import SMALL, RunningOrigin

__all__ = ["SCENARIOS", "Figures", "Scenario"]

MIB: Final = 1 << 20
GIB: Final = 1 << 30

Figures = dict[str, float | None]
Measure = Callable[[Subject, RunningOrigin, int], Figures]

SETTLED_S: Final = 0.1
"""Within this time what a request leaves to be done, such as recording, is done."""

_SLOW_CONNECTIONS: Final = ("--latency", "0.1", "--rate-per-connection", "20M")
_SLOW_LINE: Final = ("--latency", "0.1", "--rate-total", "20M")


@dataclass(frozen=True)
class Scenario:
    """One question: its origin's options and file size, and what is measured."""

    title: str
    size_bytes: int
    origin: tuple[str, ...]
    measure: Measure
    rounds: int = 3
    only_downloads: bool = False


def fill(subject: Subject, origin: RunningOrigin, _size: int) -> Figures:
    """Fetch one cold file, from the front to the end."""
    seconds = subject.download(1)
    return {"time s": seconds, "connections at once": origin.stats()["peak_connections"]}


def seek(subject: Subject, _origin: RunningOrigin, size: int) -> Figures:
    """Ask for 1 MiB at 75 % of a file that has just begun to be read from the front."""
    url, start = subject.file(1), size * 3 // 4
    begun, enough = threading.Event(), threading.Event()

    def play() -> None:
        timed_get(url, on_bytes=lambda _total: begun.set() or enough.is_set())

    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(play)
        try:
            begun.wait(10)
            found = timed_get(url, f"bytes={start}-{min(start + MIB, size) - 1}")
        finally:
            enough.set()
        playing.result()
    return {"first byte ms": found.first_byte_s * 1000, "1 MiB ms": found.total_s * 1000}


def scatter(subject: Subject, origin: RunningOrigin, size: int) -> Figures:
    """Let 16 readers read a cold file to its end, from random places and the front."""
    places = random.Random(16)  # the same ones for every contender
    starts = [0, *(places.randrange(size) for _ in range(15))]
    return _crowd(subject, origin, size, [f"bytes={start}-" for start in starts])


def crowd(subject: Subject, origin: RunningOrigin, size: int) -> Figures:
    """Let 10 readers read a cold file at the same time."""
    return _crowd(subject, origin, size, [None] * 10)


def _crowd(subject: Subject, origin: RunningOrigin, size: int, ranges: list[str | None]) -> Figures:
    before, started_s = origin.body_bytes_sent(), time.perf_counter()
    with ThreadPoolExecutor(len(ranges)) as pool:
        list(pool.map(timed_get, [subject.file(1)] * len(ranges), ranges))
    seconds = time.perf_counter() - started_s
    sent = origin.body_bytes_sent() - before
    return {"time s": seconds, "origin bytes per byte": sent / size}


def behind_prefetch(subject: Subject, origin: RunningOrigin, size: int) -> Figures:
    """Ask for cold files' first bytes on an idle cache, and while 20 others are prefetched."""
    films, smalls = range(1, 21), iter(SMALL)

    def first_byte_ms() -> float:
        times = []
        for number in islice(smalls, 10):
            # A small file: once it has been read nothing goes on behind it, but for a moment.
            times.append(timed_get(subject.file(number)).first_byte_s)
            time.sleep(SETTLED_S)
        return 1000 * median(times)

    idle_ms, before = first_byte_ms(), origin.body_bytes_sent()
    subject.prefetch(films)
    busy_ms = first_byte_ms()
    return {
        "idle ms": idle_ms,
        "while prefetching ms": busy_ms,
        "later by": busy_ms / idle_ms,
        "prefetched by then": (origin.body_bytes_sent() - before) / (len(films) * size),
    }


def warm(subject: Subject, _origin: RunningOrigin, size: int) -> Figures:
    """Read a stored file four times, then 3,000 ranges of it on one connection."""
    url, times = subject.file(1), 4
    timed_get(url)
    before_s = subject.cpu_s()
    seconds = sum(timed_get(url).total_s for _ in range(times))
    after_s = subject.cpu_s()
    gib = times * size / GIB
    known = before_s is not None and after_s is not None
    return {
        "MiB/s": gib * 1024 / seconds,
        "CPU s/GiB": (after_s - before_s) / gib if known else None,
        **_ranges(url, size, 3000),
    }


def hop(subject: Subject, _origin: RunningOrigin, size: int) -> Figures:
    """Read 400 ranges of what is stored of a file that somebody else is filling."""
    url, stored = subject.file(1), min(16 * MIB, size)
    begun, enough = threading.Event(), threading.Event()

    def watch(total: int) -> bool:
        if total >= stored:
            begun.set()
        return enough.is_set()

    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(timed_get, url, on_bytes=watch)
        try:
            begun.wait(10)
            figures = _ranges(url, stored, 400)
        finally:
            enough.set()
        filling.result()
    return figures


def _ranges(url: str, size: int, count: int) -> Figures:
    """Ask for *count* ranges of 64 KiB, anywhere in the first *size* bytes, on one connection."""
    places = random.Random(64)  # the same ones for every contender
    starts = [places.randrange(max(1, size - 65536)) for _ in range(count)]
    with Client(url) as client:
        taken_s = [
            client.get(url, f"bytes={start}-{min(start + 65536, size) - 1}").total_s
            for start in starts
        ]
    return {
        "64 KiB ranges/s": count / sum(taken_s),
        "64 KiB p99 ms": 1000 * quantiles(taken_s, n=100)[-1],
    }


SCENARIOS: Final = {
    "fill": Scenario(
        "a cold file, 20 MiB/s per connection, 100 ms to the first byte",
        *(128 * MIB, _SLOW_CONNECTIONS, fill),
        only_downloads=True,
    ),
    "fill-line": Scenario(
        "a cold file, 20 MiB/s for all connections together, 100 ms to the first byte",
        *(128 * MIB, _SLOW_LINE, fill),
        only_downloads=True,
    ),
    "seek": Scenario(
        "a seek to 75 % while filling, 20 MiB/s per connection, 100 ms to the first byte",
        *(256 * MIB, _SLOW_CONNECTIONS, seek),
        rounds=5,
    ),
    "scatter": Scenario(
        "16 readers from random places of a cold file, 20 MiB/s per connection",
        *(256 * MIB, _SLOW_CONNECTIONS, scatter),
    ),
    "prefetch": Scenario(
        "first byte of cold files while 20 files are prefetched, 20 MiB/s per connection",
        *(64 * MIB, _SLOW_CONNECTIONS, behind_prefetch),
        rounds=10,
    ),
    "warm": Scenario("a stored file, again and again", 256 * MIB, (), warm, rounds=5),
    "hop": Scenario(
        "ranges of a file that another reader fills, 24 MiB/s for all together",
        *(128 * MIB, ("--rate-total", "24M"), hop),
    ),
    "crowd": Scenario(
        "10 cold readers of one file, 64 MiB/s for all together",
        *(64 * MIB, ("--rate-total", "64M"), crowd),
    ),
}
