"""``make bench``: what a client waits for, through each proxy and straight from the origin.

A shaped origin runs in its own process, and each proxy too. Every figure is a
median of several rounds, the contenders taking turns within each, because
machines drift; the ratios to a direct client are what to quote. Programs that are
not installed are left out.

    python -m benchmarks [--rounds N] [--only SCENARIO]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from .contenders import CONTENDERS, Contender, run_origin
from .http import timed_get

MIB = 1 << 20
_names = count()


@dataclass(frozen=True)
class Scenario:
    """One question: its origin's options, and what is measured of a contender."""

    title: str
    unit: str
    origin: tuple[str, ...]
    measure: Callable[[str, str], float]


def first_byte(url: str, _origin: str) -> float:
    """Milliseconds to the first byte of a file that nobody has asked for."""
    return timed_get(f"{url}{next(_names)}", "bytes=0-65535").first_byte_s * 1000


def seek(url: str, _origin: str) -> float:
    """Milliseconds to the first byte at 75 % of a file whose fill has just begun."""
    path = f"{url}{next(_names)}"
    begun, enough = threading.Event(), threading.Event()

    def play() -> None:
        timed_get(path, None, on_bytes=lambda _total: begun.set() or enough.is_set())

    player = threading.Thread(target=play)
    player.start()
    begun.wait(10)
    try:
        return timed_get(path, "bytes=201326592-202375167").first_byte_s * 1000
    finally:
        enough.set()
        player.join()


def cold_crowd(url: str, _origin: str) -> float:
    """Seconds until 16 clients of a cold 64 MiB file all have it."""
    path = f"{url}{next(_names)}"
    clients = [threading.Thread(target=timed_get, args=(path, None)) for _ in range(16)]
    started = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return time.perf_counter() - started


def cold_crowd_bytes(url: str, origin: str) -> float:
    """Origin bytes per file byte while 16 clients fetch a cold 64 MiB file."""
    before = origin_bytes(origin)
    cold_crowd(url, origin)
    return (origin_bytes(origin) - before) / (64 * MIB)


def whole(url: str, _origin: str) -> float:
    """Seconds until a client has all of a file that nobody has asked for."""
    return timed_get(f"{url}{next(_names)}", None).total_s


def warm(url: str, _origin: str) -> float:
    """Milliseconds for 32 MiB that the contender has stored before."""
    path = f"{url}warm"
    timed_get(path, "bytes=0-33554431")
    return timed_get(path, "bytes=0-33554431").total_s * 1000


SCENARIOS = {
    "first-byte": Scenario(
        "first byte, cold", "ms", ("--size", "64M", "--latency", "0.05"), first_byte
    ),
    "seek": Scenario(
        "seek while filling",
        "ms",
        ("--size", "256M", "--latency", "0.1", "--rate-per-connection", "20M"),
        seek,
    ),
    "parallel": Scenario(
        "128 MiB, 20 MiB/s per connection",
        "s",
        ("--size", "128M", "--latency", "0.1", "--rate-per-connection", "20M"),
        whole,
    ),
    "shared-line": Scenario(
        "128 MiB, 40 MiB/s in all",
        "s",
        ("--size", "128M", "--latency", "0.1", "--rate-total", "40M"),
        whole,
    ),
    "crowd": Scenario("16 cold clients", "s", ("--size", "64M", "--rate-total", "64M"), cold_crowd),
    "crowd-bytes": Scenario(
        "16 cold clients, origin bytes", "x", ("--size", "64M"), cold_crowd_bytes
    ),
    "warm": Scenario("32 MiB, warm", "ms", ("--size", "64M", "--rate-total", "64M"), warm),
}


def origin_bytes(origin: str) -> int:
    """Return how many body bytes the origin has sent."""
    with urllib.request.urlopen(f"{origin}-/stats") as answer:
        sent: int = json.load(answer)["body_bytes_sent"]
    return sent


@contextmanager
def contenders(origin: str, directory: Path) -> Iterator[dict[str, str]]:
    """Start every contender that is installed; give their base URLs by name."""
    with ExitStack() as stack:
        urls = {"direct": origin}
        for contender in CONTENDERS:
            url = stack.enter_context(
                _started(contender, origin, directory / contender.name.replace(" ", "-"))
            )
            if url is not None:
                urls[contender.name] = url
        yield urls


@contextmanager
def _started(contender: Contender, origin: str, directory: Path) -> Iterator[str | None]:
    if not contender.is_installed():
        yield None
        return
    directory.mkdir()
    with contender.run(origin, directory) as url:
        yield url


def run(scenario: Scenario, rounds: int) -> None:
    """Print the scenario's medians and their ratios to the direct client's."""
    with (
        TemporaryDirectory() as directory,
        run_origin(*scenario.origin) as origin,
        contenders(origin, Path(directory)) as urls,
    ):
        figures: dict[str, list[float]] = {name: [] for name in urls}
        for number in range(rounds):
            print(f"\r{scenario.title}: round {number + 1} of {rounds}", end="", file=sys.stderr)
            for name, url in urls.items():
                figures[name].append(scenario.measure(url, origin))
    print("\r\033[K", end="", file=sys.stderr)
    direct = statistics.median(figures["direct"])
    for name, values in figures.items():
        median = statistics.median(values)
        print(
            f"{scenario.title:<30} {name:<12} {median:9.2f} {scenario.unit:<2} "
            f"({min(values):.2f} to {max(values):.2f})  x{median / direct:.2f}"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=SCENARIOS)
    options = parser.parse_args()
    for name, scenario in SCENARIOS.items():
        if options.only in (None, name):
            run(scenario, options.rounds)


if __name__ == "__main__":
    main()
