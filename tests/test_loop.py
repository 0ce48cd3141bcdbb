"""Threads that work in rounds, and those that do one piece of work: alone, without a cache."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cachefsm.flusher import Flusher
from cachefsm.loop import Loop
from cachefsm.workers import KEPT, Workers
from tests.support.caches import WAIT_S, eventually

Due = Callable[[int], "float | None"]


class Rounds(Loop):
    """Counts its rounds; *due* says when the next one is, by the number of the last."""

    def __init__(self, due: Due = lambda _number: None) -> None:
        super().__init__("cachefsm-rounds")
        self._due = due
        self._begun = threading.Semaphore(0)
        self.count = 0

    def step(self) -> float | None:
        self.count += 1
        self._begun.release()
        return self._due(self.count)

    def has_begun_another(self) -> bool:
        return self._begun.acquire(timeout=WAIT_S)


@pytest.fixture
def started() -> Iterator[Callable[[Rounds], Rounds]]:
    running: list[Rounds] = []

    def start(rounds: Rounds) -> Rounds:
        running.append(rounds)
        rounds.start()
        return rounds

    yield start
    assert all(rounds.stop(WAIT_S) for rounds in running)


Started = Callable[[Rounds], Rounds]


def test_a_round_that_is_due_in_millions_of_years_is_waited_for(started: Started) -> None:
    """As when a clock was set back, or a row was spoilt: longer than a lock can wait."""
    rounds = started(Rounds(lambda _number: 1e18))
    assert rounds.has_begun_another()
    rounds.poke()
    assert rounds.has_begun_another()


def test_a_round_is_made_at_once_and_whenever_it_is_asked_for(started: Started) -> None:
    rounds = started(Rounds())
    for _ in range(100):
        assert rounds.has_begun_another()
        rounds.poke()


def test_a_round_that_is_asked_for_during_another_follows_it(started: Started) -> None:
    def poke_once(number: int) -> None:
        if number == 1:
            rounds.poke()

    rounds = started(Rounds(poke_once))
    assert rounds.has_begun_another()
    assert rounds.has_begun_another()


def test_a_round_is_made_when_it_is_due(started: Started) -> None:
    rounds = started(Rounds(lambda number: time.monotonic() if number < 5 else None))
    assert all(rounds.has_begun_another() for _ in range(5))


def test_a_round_that_fails_is_said_and_is_not_the_last(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(number: int) -> None:
        if number == 1:
            raise ValueError("nobody foresaw this")

    rounds = started(Rounds(fail_once))
    assert rounds.has_begun_another()
    rounds.poke()
    assert rounds.has_begun_another()
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.ERROR,
        "cachefsm-rounds: a round failed",
    )


def test_a_loop_that_never_ran_is_stopped_at_once() -> None:
    assert Rounds().stop(0.0)


def held_up(workers: Workers) -> threading.Event:
    """Start a piece of work that goes on until the event that is returned."""
    go_on = threading.Event()

    def work() -> None:
        assert go_on.wait(WAIT_S)

    workers.start("work", work)
    return go_on


def test_workers_are_waited_for_and_forgotten() -> None:
    workers = Workers()
    go_on = held_up(workers)
    assert len(workers) == 1
    go_on.set()
    workers.join(time.monotonic() + WAIT_S)
    assert len(workers) == 0


def test_a_worker_that_does_not_end_in_time_is_named(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers()
    go_on = held_up(workers)
    workers.join(time.monotonic())
    assert "cachefsm-work is still in a call" in caplog.text
    go_on.set()
    workers.join(time.monotonic() + WAIT_S)


def test_a_thread_that_has_done_its_work_does_the_next() -> None:
    workers, by = Workers(), []

    def work() -> None:
        by.append(threading.current_thread())

    for done in range(1, 4):
        workers.start("work", work)
        eventually(lambda done=done: len(by) == done and len(workers) == 0)
    workers.join(time.monotonic() + WAIT_S)
    assert len(set(by)) == 1
    assert not by[0].is_alive()


def test_work_that_is_waited_for_gets_a_thread_of_its_own_while_others_are_held_up() -> None:
    workers, done = Workers(), threading.Event()
    workers.start("first", done.set)
    eventually(lambda: len(workers) == 0)
    done.clear()
    held = [held_up(workers) for _ in range(KEPT + 2)]
    workers.start("last", done.set)
    assert done.wait(WAIT_S)
    for go_on in held:
        go_on.set()
    eventually(lambda: len(workers) == 0)
    workers.join(time.monotonic() + WAIT_S)


def test_no_more_than_a_few_threads_without_work_are_kept() -> None:
    workers = Workers()
    before = threading.active_count()
    for go_on in [held_up(workers) for _ in range(KEPT + 2)]:
        go_on.set()
    eventually(lambda: len(workers) == 0)
    eventually(lambda: threading.active_count() - before <= KEPT)
    workers.join(time.monotonic() + WAIT_S)
    eventually(lambda: threading.active_count() == before)


def test_a_piece_of_work_that_fails_ends_its_thread_and_no_other_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    workers, done = Workers(), threading.Event()

    def fail() -> None:
        raise RuntimeError("no more")

    workers.start("bad", fail)
    eventually(lambda: len(workers) == 0)
    workers.start("good", done.set)
    assert done.wait(WAIT_S)
    workers.join(time.monotonic() + WAIT_S)
    assert told == [RuntimeError]


class Dirty:
    """An entry that has something to flush."""

    def __init__(self, error: Exception | None = None) -> None:
        self.shown_url = "http://origin.test/film"
        self.flushed = 0
        self._error = error

    def flush(self) -> None:
        self.flushed += 1
        if self._error is not None:
            raise self._error


def test_a_fault_with_one_entry_keeps_no_other_from_being_flushed() -> None:
    looked: list[str] = []
    flusher = Flusher(after=lambda: looked.append("for room"))
    faulty, sound = Dirty(RuntimeError("a bug")), Dirty()
    for entry in (faulty, sound):
        flusher.note(entry, True)
    flusher.step()
    assert (faulty.flushed, sound.flushed, looked) == (1, 1, ["for room"])
    flusher.flush_all([faulty, sound])
    assert (faulty.flushed, sound.flushed) == (2, 2)
