"""What most tests start from: a scripted origin, and caches with little patience."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache
from tests.support.caches import HASTY, UNHURRIED, WAIT_S, OpenCache, live_threads
from tests.support.origin import Origin


@pytest.fixture(scope="session", autouse=True)
def _signals() -> Iterator[None]:
    """Have commands begin as in a terminal, even where the tests run under nohup, or behind `&`.

    What is ignored stays ignored in every command that is started, which those that say how
    they end then would not do; a handler does not outlive its program.
    """
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda _number, _frame: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A scripted origin; a script that failed fails the test."""
    with Origin() as running:
        yield running


@pytest.fixture
def open_cache(tmp_path: Path) -> Iterator[OpenCache]:
    """Opens caches below *tmp_path*, and closes those that the test left open.

    The same name is the same directory: close a cache and open it again to see
    what a restart sees. Closing must leave no thread behind.
    """
    opened: list[Cache] = []

    def open_one(name: str = "cache", **options: Any) -> Cache:
        patience = {
            "first_byte_timeout": WAIT_S,
            "stall_timeout": WAIT_S,
            "speed": UNHURRIED,
            "retries": HASTY,
        }
        cache = Cache(tmp_path / name, **{**patience, **options})
        opened.append(cache)
        return cache

    yield open_one
    for cache in opened:
        cache.close()
    assert live_threads() == []


@pytest.fixture
def cache(open_cache: OpenCache) -> Cache:
    """An empty cache with the default options but little patience."""
    return open_cache()
