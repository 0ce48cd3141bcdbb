"""What goes wrong at the origin: faults by the request, outages, new versions."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

from tests.soak.world import REFUSAL, Subject, World
from tests.support import faults
from tests.support.origin import Exchange
from tests.support.origin import Script as Fault

__all__ = ["FAULTS", "Weather"]

CALM: Final = 0.55
"""The share of requests that are answered as they should be."""


def _somewhere(exchange: Exchange, dice: random.Random) -> int:
    """Return how many body bytes to send before something happens: few, or any number."""
    length = max(1, min(exchange.answer.length, 1 << 40))
    return dice.choice((0, 1, dice.randrange(length), dice.randrange(length), length - 1))


def _cut(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.cut_after(_somewhere(exchange, dice))


def _reset(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.reset_after(_somewhere(exchange, dice))


def _stall(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.stall_after(_somewhere(exchange, dice))


def _hold(exchange: Exchange, dice: random.Random) -> Fault:
    after, pause_s = _somewhere(exchange, dice), dice.uniform(0.05, 1.0)
    return lambda held: held.answer.at(after, lambda sender: sender.pause(pause_s))


def _late(exchange: Exchange, dice: random.Random) -> Fault:
    pause_s = dice.uniform(0.05, 1.0)
    return lambda held: held.answer.before_head.append(lambda sender: sender.pause(pause_s))


def _refusal(code: int, *fields: tuple[str, str]) -> Callable[[Exchange, random.Random], Fault]:
    return lambda exchange, dice: faults.status(code, *fields, body=REFUSAL)


def _content_range(exchange: Exchange, dice: random.Random) -> Fault:
    texts = (
        "bytes {stop}-{stop}/{size}",
        "bytes 0-{last}/{size}" if exchange.answer.start else "bytes 1-{last}/{size}",
        "bytes {start}-{stop}/{size}",
        "bytes {start}-{last}/{start}",
        "bytes */{size}",
        "items {start}-{last}/{size}",
        "",
    )
    return faults.wrong_content_range(dice.choice(texts))


def _whole(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.ignore_range


def _short(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.short_body(dice.randint(1, 5000))


def _long(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.long_body(b"more than was promised" * 50)


def _unlabelled(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.drop_headers("ETag", "Last-Modified")


def _hints(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.early_hints(("Link", "</style.css>; rel=preload"))


def _chunked(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.chunked_cut_after(_somewhere(exchange, dice))


def _trickle(exchange: Exchange, dice: random.Random) -> Fault:
    pieces = dice.choice((50, 400))  # seconds, not minutes
    return faults.trickle(max(1000, exchange.answer.length // pieces), 0.01)


def _redirect(exchange: Exchange, dice: random.Random) -> Fault:
    code = dice.choice((301, 302, 303, 307, 308))
    return faults.redirect(f"/moved{exchange.request.path}", code)


def _circle(exchange: Exchange, dice: random.Random) -> Fault:
    return faults.redirect(exchange.request.path)


FAULTS: Final[dict[str, Callable[[Exchange, random.Random], Fault]]] = {
    "cut": _cut,
    "reset": _reset,
    "stall": _stall,
    "hold": _hold,
    "late": _late,
    "503": _refusal(503, ("Retry-After", "1")),
    "429": _refusal(429, ("Retry-After", "0")),
    "500": _refusal(500),
    "404": _refusal(404),
    "content-range": _content_range,
    "whole": _whole,
    "short": _short,
    "long": _long,
    "unlabelled": _unlabelled,
    "hints": _hints,
    "chunked": _chunked,
    "trickle": _trickle,
    "redirect": _redirect,
    "circle": _circle,
}
"""What may happen to one request, by name; the first argument is the answer as it should be."""


class Weather:
    """Rolls the dice for every request; from another thread, changes and takes away things.

    ``counts`` says how often what happened. *without* names faults that do not.
    """

    def __init__(self, world: World, without: Collection[str] = ()) -> None:
        self._world = world
        self._faults = [name for name in FAULTS if name not in without]
        self._without = without
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.calm = False
        world.origin.script(self._disturb, times=None)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _disturb(self, exchange: Exchange) -> None:
        request = exchange.request
        subject = self._world.at(request.path)
        with self._lock:
            self._asked[request.path] += 1
            number = self._asked[request.path]
        dice = random.Random(f"{self._world.seed}/{request.path}/{number}")
        name = "none" if self.calm or dice.random() < CALM else dice.choice(self._faults)
        if name != "none" and not _fits(name, exchange, subject):
            name = "none"
        resource = exchange.resource
        subject.note(
            "origin",
            f"{request.path} {request.range} if {request.header('If-Range')}: "
            f"version {resource.version if resource else '?'}, {name}",
        )
        if name != "none":
            self.count(name)
            FAULTS[name](exchange, dice)(exchange)

    def blow(self, over: threading.Event) -> None:
        """Change versions and have outages until *over*."""
        dice = random.Random(f"{self._world.seed}/weather")
        while not over.wait(dice.expovariate(1 / 0.4)):
            if self.calm:
                continue
            if dice.random() < 0.1 and "outage" not in self._without:
                self.count("outage")
                with self._world.origin.outage():
                    over.wait(dice.uniform(0.1, 3.0))
            elif "change" not in self._without:
                self.count("change")
                self._world.change(self._world.choose(dice), dice)


def _fits(name: str, exchange: Exchange, subject: Subject) -> bool:
    """Say whether the fault can be told from a proper answer by who gets it.

    A proxy cannot know better than its origin: a label left out where nothing is
    compared, and an end where no end is announced, are as good as true.
    """
    if name == "unlabelled":
        return exchange.request.header("If-Range") is not None and exchange.answer.status == 206
    if name == "content-range":
        return exchange.answer.status == 206 and exchange.answer.length > 1
    if name in ("redirect", "circle"):
        return exchange.request.path == subject.path
    return name != "long" or exchange.answer.header("Content-Length") is not None
