"""The soak: origin, clients, orders and weather around one proxy process after another."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.soak.clients import Client, Door
from tests.soak.lives import Examiner, Life
from tests.soak.people import Person, order
from tests.soak.report import Report
from tests.soak.weather import Weather
from tests.soak.world import KINDS, Subject, World
from tests.support.origin import Origin, Shaping

__all__ = ["Options", "soak"]

MIB: Final = 1 << 20
PROGRESS_S: Final = 5.0
WATCH_S: Final = 0.5
RECOVERY_S: Final = 30.0

NETWORK: Final = Shaping(
    first_byte_latency_s=0.005, rate_per_connection=12 * MIB, rate_total=40 * MIB
)
"""Slow enough for a download to be met in its midst, by clients and by kills."""


OPTIONS: Final = {
    "fill": ("rest", "rest", "finish", "requested"),
    "read_ahead": ("0", "256K", "8M"),
    "verify_reads": ("never", "sample", "always"),
    "durability": ("power", "process"),
}
"""What the caches of different lives choose from; whichever it is, a kill is survived."""


@dataclass(frozen=True)
class Options:
    """*without* names kinds of resources, faults, ``kill`` and ``harm``, to be left out."""

    seconds: float
    seed: int
    clients: int = 10
    without: Collection[str] = ()


def soak(options: Options) -> tuple[Report, str]:
    """Run it; return what was found, and the closing lines."""
    report = Report(options.seed)
    kinds = [kind for kind in KINDS if kind.name not in options.without]
    with (
        Origin(NETWORK) as origin,
        tempfile.TemporaryDirectory(prefix="cachefsm-soak-", ignore_cleanup_errors=True) as name,
    ):
        world = World(origin, options.seed, kinds)
        weather = Weather(world, options.without)
        _Soak(options, report, world, weather, Path(name)).run()
        return report, report.totals(weather.counts)


class _Soak:
    def __init__(
        self, options: Options, report: Report, world: World, weather: Weather, directory: Path
    ) -> None:
        self._options = options
        self._report = report
        self._world = world
        self._weather = weather
        self._directory = directory
        self._dice = random.Random(f"{options.seed}/lives")
        self._door = Door()
        self._examiner = Examiner(directory / "cache", world, report)
        self._until_s = time.monotonic() + options.seconds
        self._progress_s = time.monotonic() + PROGRESS_S

    def run(self) -> None:
        report, over = self._report, threading.Event()
        actors = self._actors(over)
        for actor in actors:
            actor.start()
        number = 0
        try:
            while time.monotonic() < self._until_s and not report.over.is_set():
                number += 1
                self._live(number)
                if dead := [actor.name for actor in actors if not actor.is_alive()]:
                    report.wrong(f"the soak itself has failed: {dead}")
        finally:
            over.set()
            self._door.brick_up()
        for actor in actors:
            actor.join()
        if not report.over.is_set():
            self._recover(number + 1)

    def _actors(self, over: threading.Event) -> list[threading.Thread]:
        world, door, report = self._world, self._door, self._report
        clients = [
            Client(number, world, door, report, over) for number in range(self._options.clients)
        ]
        weather = threading.Thread(target=self._weather.blow, args=[over], name="soak-weather")
        weather.daemon = True
        return [*clients, Person(world, door, report, over), weather]

    def _live(self, number: int) -> None:
        """Run one process for a while, end it one way or the other, and look at what is left."""
        killed = "kill" not in self._options.without and self._dice.random() < 0.75
        with self._life(number) as life:
            longest_s = self._dice.choice((2.0, 12.0))
            self._wait(life, self._dice.uniform(0.05, longest_s))
            if self._report.over.is_set():
                life.complain("what every thread did then")
            elif killed:
                self._door.shut()
                life.kill()
            else:
                life.come_to_rest(self._door, self._weather)
                life.end()
            self._door.shut()
        if not self._report.over.is_set():
            self._examiner.examine(life.log, killed=killed)
            if "harm" not in self._options.without and self._dice.random() < 0.6:
                self._examiner.harm(self._dice)

    @contextmanager
    def _life(self, number: int) -> Iterator[Life]:
        log, cache = self._directory / f"log-{number}", self._directory / "cache"
        options = [f"{name}={self._dice.choice(values)}" for name, values in OPTIONS.items()]
        with Life.begun(cache, self._world, self._report, log, *options) as life:
            self._door.open(life.address)
            yield life

    def _wait(self, life: Life, seconds: float) -> None:
        """Watch *life* for a while, or until something is wrong."""
        end_s = min(self._until_s, time.monotonic() + seconds)
        while (left_s := end_s - time.monotonic()) > 0:
            if self._report.over.wait(min(left_s, WATCH_S)):
                return
            life.watch()
            if time.monotonic() >= self._progress_s:
                self._progress_s = time.monotonic() + PROGRESS_S
                self._report.progress()

    def _recover(self, number: int) -> None:
        """In fair weather everything must be had again, whatever happened to it."""
        self._weather.calm = True
        client = Client(-1, self._world, self._door, self._report, threading.Event())
        with self._life(number) as life:
            for entry in order(life.address, "GET", "entries")[1]:
                if entry["state"] == "paused":
                    order(life.address, "POST", f"entries/{entry['id']}/resume")
            for subject in self._world.subjects:
                self._have(client, life, subject)
            life.come_to_rest(self._door, self._weather)
            life.end()
        self._examiner.examine(life.log, killed=False)

    def _have(self, client: Client, life: Life, subject: Subject) -> None:
        deadline_s = time.monotonic() + RECOVERY_S
        while not client.has_whole(life.address, subject):
            if self._report.over.wait(0.1):
                return
            if time.monotonic() > deadline_s:
                life.complain(f"{subject.name} cannot be had any more", *subject.history)
                return
