"""What is learnt of an origin, and what it changes: pure where it can be, and over sockets."""

from __future__ import annotations

from collections import Counter

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.errors import OriginError, OriginStatus, OriginTimeout, OriginUnreachable
from cachefsm.origins import (
    BLAME_S,
    FIRST_REST_S,
    LONGEST_REST_S,
    ONE_REASON_S,
    REMEMBERED,
    SUSPECTED_S,
    OriginBook,
    OriginFacts,
    OriginRecord,
)
from cachefsm.ranges import END
from cachefsm.scheduler import Limits
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually, fetch, rows
from tests.support.databases import execute
from tests.support.faults import hold_after, reset_after, status
from tests.support.origin import Exchange, Gate, Origin, Resource, Script, Shaping, content
from tests.support.threads import in_thread

MIB = 1 << 20
TOO_MANY = OriginStatus(429)
UNAVAILABLE = OriginStatus(503, retry_after_s=3600)
RESET = OriginUnreachable("reset")
FILM, OTHER = 1, 2


@pytest.fixture
def clock() -> Clock:
    return Clock()


def facts_with(standing: int, clock: Clock) -> OriginFacts:
    facts = OriginBook(clock=clock).of("http://origin.test")
    for number in range(standing):
        facts.begin(number)
    return facts


# -- how many connections it bears -------------------------------------------------


@pytest.mark.parametrize(
    "error", [OriginStatus(429), OriginStatus(503), OriginUnreachable("connection refused")]
)
def test_a_refusal_while_others_stand_is_one_too_many(clock: Clock, error: Exception) -> None:
    facts = facts_with(4, clock)
    assert facts.view().most == END
    assert facts.refused(error, FILM, others_come=True)
    clock.now_s += FIRST_REST_S - 1
    assert facts.view().most == 3


@pytest.mark.parametrize(
    "error", [OriginStatus(404), OriginStatus(500), OriginTimeout("silent"), ValueError()]
)
def test_other_errors_say_nothing_of_connections(clock: Clock, error: Exception) -> None:
    facts = facts_with(4, clock)
    assert not facts.refused(error, FILM, others_come=True)
    assert facts.view().most == END


def test_what_a_lone_connection_is_told_is_said_to_anybody(clock: Clock) -> None:
    facts = facts_with(1, clock)
    assert not facts.refused(TOO_MANY, FILM, others_come=False)
    assert facts.view().most == END


def test_an_outage_that_cuts_all_connections_is_one_refusal(clock: Clock) -> None:
    facts = facts_with(4, clock)
    told = []
    for number in range(4):
        told.append(facts.refused(RESET, FILM, others_come=True))
        facts.end(number)
    # The others are failures like any other: they are to be tried again after a while.
    assert told == [True, False, False, False]
    assert facts.view().most == 3


def test_what_is_begun_after_another_broke_and_breaks_beside_others_is_one_too_many(
    clock: Clock,
) -> None:
    facts = facts_with(4, clock)
    for number in (0, 1):
        facts.answered(0.1, accepts_ranges=True, connection=number)
    assert facts.refused(RESET, FILM, others_come=True, connection=3)
    clock.now_s += 0.1
    assert not facts.refused(RESET, FILM, others_come=True, connection=2)
    for number in (2, 3):
        facts.end(number)
    clock.now_s += 0.1
    facts.begin(4)
    assert facts.refused(RESET, FILM, others_come=True, connection=4)
    assert facts.view().most == 2
    # But an outage leaves none that brings anything.
    for number in (0, 1, 4):
        facts.end(number)
    clock.now_s += 0.1
    for number in (5, 6):
        facts.begin(number)
    assert not facts.refused(RESET, FILM, others_come=True, connection=5)
    assert facts.view().most == 2


@pytest.mark.parametrize("error", [UNAVAILABLE, RESET])
def test_what_is_refused_beyond_the_number_that_is_known_is_no_fault_of_the_file(
    clock: Clock, error: Exception
) -> None:
    """It was refused before, beside more than there are now: that tells nothing of it."""
    facts = facts_with(6, clock)
    assert facts.refused(error, OTHER, others_come=False)
    assert not facts.knows_most
    for number in range(5, 1, -1):
        assert facts.refused(TOO_MANY, FILM, others_come=False)
        facts.end(number)
    for _ in range(3):
        clock.now_s += LONGEST_REST_S
        facts.begin(2)
        assert facts.view().most == 3
        assert facts.refused(error, OTHER, others_come=False)
        assert facts.knows_most
        facts.end(2)


def test_each_of_several_refusals_counts(clock: Clock) -> None:
    facts = facts_with(4, clock)
    for number in (3, 2):
        assert facts.refused(TOO_MANY, FILM, others_come=False)
        facts.end(number)
    assert facts.view().most == 2
    clock.now_s += FIRST_REST_S
    assert facts.view().most == 3


def test_a_connection_that_breaks_long_after_the_last_one_began_just_broke(clock: Clock) -> None:
    facts = facts_with(4, clock)
    clock.now_s += BLAME_S + 1
    assert not facts.refused(RESET, FILM, others_come=True)
    assert facts.refused(TOO_MANY, FILM, others_come=False)


def test_one_more_is_tried_after_a_rest_which_grows_with_each_refusal(clock: Clock) -> None:
    facts = facts_with(4, clock)
    rest_s = FIRST_REST_S
    for _ in range(4):
        assert facts.refused(TOO_MANY, FILM, others_come=False)
        clock.now_s += rest_s - 1
        assert facts.view().most == 3
        clock.now_s += 1
        assert facts.view().most == 4
        rest_s *= 2
    for _ in range(20):
        facts.refused(TOO_MANY, FILM, others_come=False)
        clock.now_s += LONGEST_REST_S
    assert facts.view().most == 4


def test_the_origin_s_own_wish_is_the_shortest_rest(clock: Clock) -> None:
    facts = facts_with(2, clock)
    facts.refused(OriginStatus(503, retry_after_s=10 * FIRST_REST_S), FILM, others_come=True)
    clock.now_s += 9 * FIRST_REST_S
    assert facts.view().most == 1


# -- whether it is the file --------------------------------------------------------


@pytest.mark.parametrize("error", [UNAVAILABLE, RESET])
def test_a_file_of_which_nothing_comes_is_a_suspicion_for_seconds(
    clock: Clock, error: Exception
) -> None:
    facts = facts_with(4, clock)
    assert facts.refused(error, FILM, others_come=False)
    assert facts.view().most == 3
    clock.now_s += SUSPECTED_S
    assert facts.view().most == 4
    facts.begin(4)
    facts.answered(0.1, accepts_ranges=True, file=OTHER)
    assert facts.view().most == 5
    assert facts.record.rest_s == FIRST_REST_S


@pytest.mark.parametrize("error", [UNAVAILABLE, RESET])
@pytest.mark.parametrize("left", [1, 3])
def test_what_is_refused_with_fewer_as_well_is_no_matter_of_their_number(
    clock: Clock, error: Exception, left: int
) -> None:
    facts = facts_with(4, clock)
    facts.refused(error, FILM, others_come=False)
    for number in range(left, 4):
        facts.end(number)
    assert not facts.refused(error, FILM, others_come=False)
    assert facts.view().most == END
    for number in range(left, 4):
        facts.begin(number)
    assert not facts.refused(error, FILM, others_come=False)
    assert facts.view().most == END


def test_what_was_known_before_is_known_again(clock: Clock) -> None:
    facts = facts_with(4, clock)
    facts.refused(TOO_MANY, OTHER, others_come=True)
    clock.now_s += FIRST_REST_S
    known = facts.view().most
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    facts.end(3)
    assert not facts.refused(UNAVAILABLE, FILM, others_come=False)
    assert facts.view().most == known == 4


def test_a_file_that_comes_again_may_be_refused_for_the_others_sake(clock: Clock) -> None:
    facts = facts_with(4, clock)
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    facts.end(3)
    assert not facts.refused(UNAVAILABLE, FILM, others_come=False)
    facts.answered(0.1, accepts_ranges=True, file=FILM)
    assert facts.refused(UNAVAILABLE, FILM, others_come=False)
    assert facts.view().most == 2


def test_one_file_makes_one_suspicion(clock: Clock) -> None:
    facts = facts_with(4, clock)
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    clock.now_s += SUSPECTED_S
    assert not facts.refused(UNAVAILABLE, FILM, others_come=False)
    assert facts.view().most == 4


def test_what_comes_with_fewer_and_not_with_more_is_a_matter_of_their_number(
    clock: Clock,
) -> None:
    facts = facts_with(4, clock)
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    facts.end(3)
    facts.answered(0.1, accepts_ranges=True, file=FILM)
    clock.now_s += SUSPECTED_S
    facts.begin(3)
    assert facts.refused(UNAVAILABLE, FILM, others_come=False)
    clock.now_s += LONGEST_REST_S - 1
    assert facts.view().most == 3


def test_two_files_that_are_refused_are_a_matter_of_their_number(clock: Clock) -> None:
    facts = facts_with(4, clock)
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    clock.now_s += SUSPECTED_S
    facts.refused(UNAVAILABLE, OTHER, others_come=False)
    clock.now_s += LONGEST_REST_S - 1
    assert facts.view().most == 3


def test_two_files_that_are_refused_a_while_apart_have_reasons_of_their_own(clock: Clock) -> None:
    facts = facts_with(4, clock)
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    clock.now_s += ONE_REASON_S
    facts.refused(UNAVAILABLE, OTHER, others_come=False)
    clock.now_s += SUSPECTED_S
    assert facts.view().most == 4


def test_two_files_of_which_neither_comes_are_no_matter_of_their_number(clock: Clock) -> None:
    facts = facts_with(4, clock)
    facts.refused(UNAVAILABLE, FILM, others_come=False)
    facts.end(3)
    assert not facts.refused(UNAVAILABLE, FILM, others_come=False)
    facts.begin(3)
    facts.refused(UNAVAILABLE, OTHER, others_come=False)
    clock.now_s += SUSPECTED_S
    assert facts.view().most == 4


def test_what_is_borne_after_all_raises_the_limit_again(clock: Clock) -> None:
    facts = facts_with(3, clock)
    facts.refused(TOO_MANY, FILM, others_come=False)
    facts.end(2)
    facts.answered(0.1, accepts_ranges=True)
    assert facts.view().most == 2
    for most in (3, 4):
        clock.now_s += FIRST_REST_S
        assert facts.view().most == most
        facts.begin(most)
        facts.answered(0.1, accepts_ranges=True)
        assert facts.view().most == most


# -- what else ---------------------------------------------------------------------


def test_speed_and_latency_are_averages_that_follow(clock: Clock) -> None:
    facts = facts_with(0, clock)
    facts.answered(0.2, accepts_ranges=True)
    facts.brought(1000.0)
    assert (facts.view().latency_s, facts.view().rate_bytes_s) == (0.2, 1000.0)
    for _ in range(50):
        facts.answered(0.1, accepts_ranges=True)
        facts.brought(3000.0)
    assert facts.view().latency_s == pytest.approx(0.1)
    assert facts.view().rate_bytes_s == pytest.approx(3000.0)


def test_what_has_changed_is_told_once(clock: Clock) -> None:
    known = OriginRecord("http://known.test", connections=3, updated_at=clock())
    book = OriginBook([known], clock)
    assert book.of("http://known.test").record.connections == 3
    assert book.changes() == []
    book.of("http://new.test").proved(4)
    assert [(record.origin, record.connections) for record in book.changes()] == [
        ("http://new.test", 4)
    ]
    assert book.changes() == []


def test_of_very_many_origins_those_are_known_that_were_last_asked(clock: Clock) -> None:
    book = OriginBook(
        [OriginRecord(f"http://{number}.test", True, updated_at=number) for number in range(2)],
        clock,
    )
    kept = book.of("http://0.test")
    for number in range(REMEMBERED - 1):
        book.of(f"http://new-{number}.test")
    assert book.of("http://0.test") is kept
    assert book.of("http://1.test").record.accepts_ranges is None  # it is met anew


# -- over sockets ------------------------------------------------------------------


def test_connections_are_added_where_each_has_its_share(open_cache: OpenCache) -> None:
    cache = open_cache()
    with Origin(Shaping(rate_per_connection=8 * MIB)) as origin:
        origin.put("/film", Resource(24 * MIB))
        film = cache.entry(origin.url("/film"))
        assert fetch(cache, film) == content(0, 24 * MIB)
        assert 2 <= origin.peak_connections <= Limits().per_entry
        assert film.wait_complete(WAIT_S)
        # What a connection had asked for beyond its part is lost with it: little.
        assert origin.body_bytes_sent <= 24 * MIB + len(origin.requests) * 256 * 1024


def test_an_origin_that_refuses_connections_is_asked_over_fewer(open_cache: OpenCache) -> None:
    cache = open_cache()
    with Origin(Shaping(rate_per_connection=8 * MIB, max_connections=2)) as origin:
        for path in ("/first", "/second"):
            origin.put(path, Resource(24 * MIB))
            film = cache.entry(origin.url(path))
            assert fetch(cache, film) == content(0, 24 * MIB)
            assert film.wait_complete(WAIT_S)
            _await_rest(film)
        # That was found out once, on the way from two to four.
        empty = [request.path for request in origin.requests if not request.body_bytes_sent]
        assert empty in (["/first"], ["/first", "/first"])


def test_who_is_refused_for_the_others_sake_tries_again_at_once(
    open_cache: OpenCache,
) -> None:
    cache = open_cache(fill="requested")
    with Origin(Shaping(max_connections=1, retry_after_s=3600)) as origin:
        origin.put("/film", Resource(4 * MIB))
        later = cache.entry(origin.url("/later"))
        origin.put("/later", Resource(4 * MIB))
        assert fetch(cache, later, 0, 1) == content(0, 1)
        _await_rest(later)
        hold = origin.script(_Stay(), path="/later")
        later.start(priority="prefetch")
        origin.wait_until(lambda: hold.seen == 1)
        film = cache.entry(origin.url("/film"))
        assert fetch(cache, film) == content(0, 4 * MIB)
        assert later.wait_complete(WAIT_S)


@pytest.mark.parametrize("refusal", [status(503), status(429)])
def test_orders_beyond_what_the_origin_bears_wait_until_it_bears_them(
    open_cache: OpenCache, origin: Origin, refusal: Script
) -> None:
    """As nginx's limit_conn answers: 503, without a word of when to come again."""
    cache = open_cache()
    first, *others = (cache.entry(origin.url(f"/{name}")) for name in "abcd")
    for name in "abcd":
        origin.put(f"/{name}", Resource(4 * MIB))
    hold = origin.script(hold_after(MIB), path="/a")
    first.start(priority="prefetch")
    assert hold.reached.wait(WAIT_S)
    origin.script(
        refusal,
        when=lambda asked: any(not each.ended for each in origin.requests if each is not asked),
        times=None,
    )
    for other in others:
        other.start(priority="prefetch")
    origin.wait_until(lambda: {request.path for request in origin.requests} >= {"/b", "/c"})
    hold.release()
    assert all(entry.wait_complete(WAIT_S) for entry in (first, *others))


def _await_rest(film: Entry) -> None:
    """Return when none of its connections counts any more, at either end."""
    eventually(lambda: film.describe()["streams"] == [])


def test_a_file_that_is_unavailable_holds_up_no_other(cache: Cache, origin: Origin) -> None:
    """One page's trouble says nothing of how many connections its origin bears."""
    for path in ("/film", "/broken", "/other"):
        origin.put(path, Resource(4 * MIB))
    hold = origin.script(hold_after(MIB), path="/film")
    origin.script(status(503), path="/broken", times=None)
    reading = in_thread(fetch, cache, cache.entry(origin.url("/film")))
    assert hold.reached.wait(WAIT_S)
    with pytest.raises(OriginStatus, match="503"):
        fetch(cache, cache.entry(origin.url("/broken")))
    assert fetch(cache, cache.entry(origin.url("/other")), 0, 1) == content(0, 1)
    assert not reading.done()
    hold.release()
    assert reading.result(WAIT_S) == content(0, 4 * MIB)


@pytest.mark.parametrize("failing", [status(503, ("Retry-After", "3600")), reset_after(0)])
def test_a_file_that_fails_holds_up_no_other_for_long(
    open_cache: OpenCache, origin: Origin, failing: Script
) -> None:
    for path in ("/film", "/broken", "/other"):
        origin.put(path, Resource(4 * MIB))
    # Whoever reads the film keeps his connection, however long another one waits.
    cache = open_cache(limits=Limits(per_entry=1, turn_s=3600.0))
    hold = origin.script(hold_after(MIB), path="/film")
    origin.script(failing, path="/broken", times=None)
    reading = in_thread(fetch, cache, cache.entry(origin.url("/film")))
    assert hold.reached.wait(WAIT_S)
    trying = in_thread(fetch, cache, cache.entry(origin.url("/broken")))
    origin.wait_until(lambda: origin.requests[-1].path == "/broken" and origin.requests[-1].ended)
    assert fetch(cache, cache.entry(origin.url("/other")), 0, 1) == content(0, 1)
    with pytest.raises(OriginError):
        trying.result(WAIT_S)
    assert not reading.done()
    hold.release()
    assert reading.result(WAIT_S) == content(0, 4 * MIB)


class _Stay:
    """Sends half, and the rest never: the connection stands until the client leaves."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, exchange: Exchange) -> None:
        self.seen += 1
        exchange.answer.at(1000, self._stay)

    def _stay(self, exchange: Exchange) -> None:
        exchange.wait(Gate())


def test_a_lone_connection_that_is_reset_is_no_sign(cache: Cache, origin: Origin) -> None:
    origin.put("/film", Resource(4 * MIB))
    origin.script(reset_after(MIB))
    film = cache.entry(origin.url("/film"))
    assert fetch(cache, film) == content(0, 4 * MIB)
    assert film.wait_complete(WAIT_S)
    assert film.state is DownloadState.COMPLETE
    assert Counter(request.path for request in origin.requests) == {"/film": 2}


@pytest.mark.parametrize(("code", "kept"), [(404, True), (429, False), (503, False)])
def test_a_connection_that_may_be_one_too_many_is_not_kept(
    cache: Cache, origin: Origin, code: int, kept: bool
) -> None:
    """To an origin that bears few it would be in the way, and be taken for the next attempt."""
    origin.put("/film", Resource(1000))
    origin.script(status(code))
    with pytest.raises(OriginStatus):
        fetch(cache, cache.entry(origin.url("/none")))
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, 1000)
    refused, *_, last = origin.requests
    assert (refused.connection == last.connection) is kept


# -- from one run to the next ------------------------------------------------------


def test_the_next_run_begins_with_what_was_learnt(open_cache: OpenCache, clock: Clock) -> None:
    with Origin(Shaping(rate_per_connection=8 * MIB, max_connections=2)) as origin:
        for path in ("/first", "/second"):
            origin.put(path, Resource(24 * MIB))
        cache = open_cache(clock=clock)
        assert fetch(cache, cache.entry(origin.url("/first"))) == content(0, 24 * MIB)
        cache.close()
        asked = len(origin.requests)
        cache = open_cache(clock=clock)
        hold = origin.script(hold_after(MIB), path="/second")
        reading = in_thread(fetch, cache, cache.entry(origin.url("/second")))
        origin.wait_for_requests(asked + 2)  # before one of them has come far
        hold.release()
        assert reading.result(WAIT_S) == content(0, 24 * MIB)
        cache.close()
        found = rows(
            cache.directory,
            "SELECT origin, accepts_ranges, connections, most, rate_bytes_s > 0, latency_s > 0"
            " FROM cache_origins",
        )
        assert found == [(origin.url().rstrip("/"), 1, 2, 2, 1, 1)]
        # Both connections at once, and no third one.
        first, second = sorted(request.range or "" for request in origin.requests[asked:])[:2]
        assert first == "bytes=0-"
        begun = int(second.removeprefix("bytes=").partition("-")[0])
        assert 11 * MIB < begun < 14 * MIB  # half of what was missing just then
        assert all(request.body_bytes_sent for request in origin.requests[asked:])


@pytest.mark.parametrize(("days", "connections"), [(6, 4), (8, 1)])
def test_how_many_connections_is_found_out_anew_after_a_week(
    clock: Clock, days: int, connections: int
) -> None:
    record = OriginRecord(
        "http://known.test", True, 4, most=5, rate_bytes_s=1e6, updated_at=clock()
    )
    clock.now_s += days * 86_400
    facts = OriginBook([record], clock).of(record.origin)
    assert facts.record.connections == connections
    assert facts.record.rate_bytes_s == 1e6


@pytest.mark.parametrize(
    "nonsense",
    ["connections = 'many'", "rate_bytes_s = x'00'", "most_until = 'x'", "latency_s = -1"],
)
def test_what_makes_no_sense_is_forgotten(
    open_cache: OpenCache, origin: Origin, nonsense: str
) -> None:
    origin.put("/film", Resource(MIB))
    cache = open_cache()
    fetch(cache, cache.entry(origin.url("/film")))
    cache.close()
    execute(
        cache.directory / "cache.sqlite3",
        "PRAGMA ignore_check_constraints = 1",
        f"UPDATE cache_origins SET {nonsense}",
    )
    cache = open_cache()
    assert rows(cache.directory, "SELECT * FROM cache_origins") == []
    assert fetch(cache, cache.entry(origin.url("/film"))) == content(0, MIB)
