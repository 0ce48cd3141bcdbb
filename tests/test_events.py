"""What subscribers are told, and that telling them costs nobody anything."""

from __future__ import annotations

import queue
import threading
from itertools import pairwise
from typing import Any

import pytest

from cachefsm import Cache, DownloadState, Progress, Transition
from cachefsm.errors import OriginStatus
from cachefsm.events import PROGRESS_EVERY_S, Event, EventHub, Mailbox
from tests.support.caches import WAIT_S, Clock, OpenCache, fetch
from tests.support.faults import hold_after, status
from tests.support.origin import Origin, Resource, content

SIZE = 1_000_000


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


class Heard:
    """A subscriber that keeps the moves that it hears of."""

    def __init__(self, cache: Cache) -> None:
        self._moves: queue.Queue[Transition] = queue.Queue()
        self.unsubscribe = cache.subscribe(self._keep)

    def _keep(self, event: Event) -> None:
        if isinstance(event, Transition):
            self._moves.put(event)

    def until(self, event: str) -> list[Transition]:
        """Return what was heard up to and including the next *event*."""
        moves = [self._moves.get(timeout=WAIT_S)]
        while moves[-1].event != event:
            moves.append(self._moves.get(timeout=WAIT_S))
        return moves

    def rest(self) -> list[Transition]:
        """Return what is still to be read, without waiting."""
        moves = []
        while not self._moves.empty():
            moves.append(self._moves.get())
        return moves


def _told(moves: list[Transition]) -> list[tuple[str, str, str]]:
    return [(move.event, str(move.source), str(move.target)) for move in moves]


def test_every_transition_of_a_download_is_told_in_order(cache: Cache, url: str) -> None:
    heard = Heard(cache)
    film = cache.entry(url)
    film.start()
    moves = heard.until("finish")
    assert _told(moves) == [
        ("initialize", "not_started", "initializing"),
        ("begin", "initializing", "downloading"),
        ("finish", "downloading", "complete"),
    ]
    assert {(move.entry_id, move.url) for move in moves} == {(film.id, film.url)}


def test_orders_and_their_reasons_are_told(cache: Cache, url: str, origin: Origin) -> None:
    hold = origin.script(hold_after(1000))
    heard = Heard(cache)
    film = cache.entry(url)
    film.start()
    assert hold.reached.wait(WAIT_S)
    heard.until("begin")
    film.pause()
    film.resume()
    heard_pause = heard.until("resume")
    film.cancel()
    film.retry()
    moves = heard_pause + heard.until("finish")
    assert [(event, target) for event, _, target in _told(moves) if event != "begin"] == [
        ("pause", "paused"),
        ("resume", "initializing"),
        ("cancel", "failed"),
        ("retry", "initializing"),
        ("finish", "complete"),
    ]
    reasons = {move.event: move.reason for move in moves}
    assert (reasons["pause"], reasons["cancel"], reasons["resume"]) == ("person", "cancelled", None)


def test_a_failure_is_told_with_its_cause(cache: Cache, url: str, origin: Origin) -> None:
    origin.script(status(404))
    heard = Heard(cache)
    with pytest.raises(OriginStatus):
        cache.entry(url).wait_for(0, 1)
    *_, failed = heard.until("fail")
    assert failed.target is DownloadState.FAILED
    assert "404" in (failed.reason or "")


def test_an_idle_pause_and_a_shutdown_are_told(
    open_cache: OpenCache, url: str, origin: Origin
) -> None:
    origin.script(hold_after(1000))
    origin.script(hold_after(1000), nth=2)
    cache = open_cache(grace=0)
    heard = Heard(cache)
    film = cache.entry(url)
    fetch(cache, film, 0, 1000)
    assert heard.until("pause")[-1].reason == "idle"
    film.start()
    heard.until("begin")
    cache.close()
    assert heard.until("pause")[-1].reason == "shutdown"
    assert heard.rest() == []


def test_every_subscriber_is_told_everything(cache: Cache, url: str) -> None:
    first, second = Heard(cache), Heard(cache)
    cache.entry(url).start()
    assert first.until("finish") == second.until("finish")


def test_events_of_several_entries_keep_each_ones_order(cache: Cache, origin: Origin) -> None:
    heard = Heard(cache)
    entries = []
    for number in range(10):
        origin.put(f"/{number}", Resource(10_000))
        entries.append(cache.entry(origin.url(f"/{number}")))
    for entry in entries:
        entry.start()
    moves = [move for _ in entries for move in heard.until("finish")]
    for entry in entries:
        made = [move for move in moves if move.entry_id == entry.id]
        assert [move.event for move in made] == ["initialize", "begin", "finish"]
        for move, following in pairwise(made):
            assert move.target is following.source


def test_a_move_is_told_after_it_was_made(cache: Cache, url: str) -> None:
    film = cache.entry(url)
    seen: queue.Queue[DownloadState] = queue.Queue()
    cache.subscribe(lambda move: seen.put(film.state) if move.event == "finish" else None)
    film.start()
    assert seen.get(timeout=WAIT_S) is DownloadState.COMPLETE


def test_a_slow_callback_slows_nobody(cache: Cache, url: str) -> None:
    release, entered = threading.Event(), threading.Event()
    slowly: queue.Queue[str] = queue.Queue()

    def slow(move: Event) -> None:
        entered.set()
        release.wait(WAIT_S)
        slowly.put(move.event)

    cache.subscribe(slow)
    quick = Heard(cache)
    film = cache.entry(url)
    # The download ends, and another subscriber hears of it, while the first hangs.
    assert film.wait_complete(WAIT_S)
    quick.until("finish")
    assert entered.wait(WAIT_S)
    assert slowly.empty()
    assert fetch(cache, film) == content(0, SIZE)
    release.set()
    told = [slowly.get(timeout=WAIT_S) for _ in range(3)]
    assert told == ["initialize", "begin", "finish"]


def test_a_callback_that_raises_is_logged_and_told_the_next_event(
    cache: Cache, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: queue.Queue[str] = queue.Queue()

    def broken(event: Event) -> None:
        if isinstance(event, Transition):
            told.put(event.event)
        raise RuntimeError("a subscriber's bug")

    cache.subscribe(broken)
    film = cache.entry(url)
    film.start()
    assert [told.get(timeout=WAIT_S) for _ in range(3)] == ["initialize", "begin", "finish"]
    assert film.wait_complete(WAIT_S)
    cache.close()
    assert "a subscriber's bug" in caplog.text


def test_a_callback_may_use_the_cache(cache: Cache, url: str, origin: Origin) -> None:
    origin.put("/next", Resource(1000))
    heard = Heard(cache)

    def prefetch_next(move: Event) -> None:
        if move.event == "finish" and move.url == url:
            cache.entry(origin.url("/next")).start(priority="prefetch")

    cache.subscribe(prefetch_next)
    cache.entry(url).start()
    heard.until("finish")
    assert heard.until("finish")[-1].url == origin.url("/next")


def test_who_has_unsubscribed_is_told_nothing_more(cache: Cache, url: str) -> None:
    leaver, stayer = Heard(cache), Heard(cache)
    leaver.unsubscribe()
    leaver.unsubscribe()
    cache.entry(url).start()
    stayer.until("finish")
    assert leaver.rest() == []


def test_a_callback_may_end_its_own_subscription_and_hears_nothing_more(
    cache: Cache, url: str
) -> None:
    told: queue.Queue[str] = queue.Queue()
    others_are_waiting = threading.Event()

    def once(move: Event) -> None:
        told.put(move.event)
        others_are_waiting.wait(WAIT_S)
        leave()

    leave = cache.subscribe(once)
    stayer = Heard(cache)
    cache.entry(url).start()
    stayer.until("finish")
    others_are_waiting.set()
    cache.close()
    assert told.get(timeout=WAIT_S) == "initialize"
    assert told.empty()


def test_closing_tells_what_is_still_to_be_told(cache: Cache, url: str) -> None:
    heard = Heard(cache)
    assert cache.entry(url).wait_complete(WAIT_S)
    cache.close()
    assert [move.event for move in heard.rest()] == ["initialize", "begin", "finish"]


# -- progress ----------------------------------------------------------------------


def test_progress_is_told_while_bytes_arrive_and_when_they_are_all_here(
    cache: Cache, url: str, origin: Origin
) -> None:
    hold = origin.script(hold_after(300_000))
    told: queue.Queue[Progress] = queue.Queue()
    cache.subscribe(lambda event: told.put(event) if isinstance(event, Progress) else None)
    film = cache.entry(url)
    film.start()
    for here in (300_000, SIZE):
        progress = told.get(timeout=WAIT_S)
        while progress.downloaded_bytes < here:
            progress = told.get(timeout=WAIT_S)
        assert progress.downloaded_bytes == here
        assert (progress.entry_id, progress.url, progress.total_bytes) == (film.id, url, SIZE)
        hold.release()


class Growing:
    """An entry whose bytes grow, as a mailbox sees it."""

    def __init__(self, entry_id: int) -> None:
        self.id = entry_id
        self.size = 0

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "url": "http://example.test/",
            "downloaded_bytes": self.size,
            "total_size": None,
            "rate_bytes_s": 0,
        }


def _sizes(mailbox: Mailbox) -> list[tuple[int, int]]:
    found = []
    while isinstance(event := mailbox.get(timeout_s=0), Progress):
        found.append((event.entry_id, event.downloaded_bytes))
    return found


def test_progress_is_told_now_and_then_and_is_then_the_newest() -> None:
    clock = Clock(0.0)
    first, second = Growing(1), Growing(2)
    with Mailbox(clock=clock) as mailbox:
        for size in range(1, 1000):
            first.size = size
            mailbox.mark(first)
        assert _sizes(mailbox) == [(1, 999)]
        first.size = 5000
        mailbox.mark(first)
        mailbox.mark(second)
        assert _sizes(mailbox) == [(2, 0)]  # each entry at its own pace
        clock.now_s += PROGRESS_EVERY_S
        assert _sizes(mailbox) == [(1, 5000)]
        clock.now_s += PROGRESS_EVERY_S
        assert _sizes(mailbox) == []  # nothing new


def test_moves_are_told_before_progress() -> None:
    move = Transition(
        1, "", "begin", DownloadState.INITIALIZING, DownloadState.DOWNLOADING, reason=None
    )
    with Mailbox() as mailbox:
        mailbox.mark(Growing(1))
        mailbox.put(move)
        assert mailbox.get(timeout_s=0) is move
        assert _sizes(mailbox) == [(1, 0)]


def test_a_closed_mailbox_says_so_and_takes_nothing_more() -> None:
    mailbox = Mailbox()
    mailbox.mark(Growing(1))
    mailbox.close()
    mailbox.mark(Growing(2))
    assert mailbox.is_closed
    assert mailbox.get() is None  # at once, without a timeout


def test_who_cannot_be_given_a_thread_is_no_subscriber(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    hub = EventHub()
    told: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            hub.subscribe(told.append)
    hub.close()  # which waits for those that there are
    assert told == []
