"""Rate limits: the arithmetic with a clock of the test's, then transfers that keep to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm import Cache
from cachefsm.buckets import LEAST_BYTES, SLICE_S, Bucket, RateLimits
from cachefsm.claims import SpeedLimits
from cachefsm.errors import UsageError
from cachefsm.throttle import Throttle
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

MIB = 1 << 20
RATE = 1_000_000
CRAWL = 1  # byte per second: what is allowed at once comes, and the rest not today


def received(bucket: Bucket, seconds: float, *, background: bool, most: int = MIB) -> int:
    """Take as much as is given for so long, from the beginning; return how much that was."""
    now_s, total = 0.0, 0
    while now_s <= seconds:
        wait_s = bucket.delay_s(now_s, background=background)
        if wait_s:
            now_s += wait_s
            continue
        size = min(most, bucket.portion)
        bucket.take(size, now_s, background=background)
        total += size
    return total


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("most", [100, 10_000, MIB])
def test_in_the_long_run_no_more_is_given_than_the_rate(background: bool, most: int) -> None:
    total = received(Bucket(RATE, 0.0), 10.0, background=background, most=most)
    # But for the slice that was there at the beginning, and the one that was under way.
    assert 10 * RATE * 0.99 <= total <= 10 * RATE + 2 * SLICE_S * RATE


def test_nothing_is_saved_up_over_a_pause() -> None:
    bucket = Bucket(RATE, 0.0)
    now_s, at_once = 1000.0, 0
    while not bucket.delay_s(now_s, background=False):
        bucket.take(bucket.portion, now_s, background=False)
        at_once += bucket.portion
    assert at_once == SLICE_S * RATE


def test_readers_never_wait_for_what_the_background_took() -> None:
    bucket = Bucket(RATE, 0.0)
    while not bucket.delay_s(0.0, background=True):
        bucket.take(bucket.portion, 0.0, background=True)
    bucket.take(100 * RATE, 0.0, background=True)
    assert bucket.delay_s(0.0, background=False) == 0
    assert received(bucket, 1.0, background=False) >= RATE


def test_the_background_makes_up_for_what_readers_took() -> None:
    bucket = Bucket(RATE, 0.0)
    bucket.take(RATE, 0.0, background=False)
    assert bucket.delay_s(0.0, background=True) == pytest.approx(1 - SLICE_S, abs=0.01)


def test_what_did_not_come_is_given_back() -> None:
    bucket = Bucket(RATE, 0.0)
    bucket.take(bucket.portion, 0.0, background=False)
    assert bucket.delay_s(0.0, background=False) > 0
    bucket.take(-bucket.portion, 0.0, background=False)
    assert bucket.delay_s(0.0, background=False) == 0


def test_a_rate_below_a_packet_gives_a_packet_at_a_time() -> None:
    bucket = Bucket(10, 0.0)
    assert bucket.portion == LEAST_BYTES
    bucket.take(LEAST_BYTES, 0.0, background=False)
    assert bucket.delay_s(0.0, background=False) == pytest.approx(0.1)


@given(
    st.integers(1, 10**9),
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 10**6), st.booleans()), max_size=50),
)
def test_whoever_waits_as_told_is_given_something(
    rate: int, steps: list[tuple[float, int, bool]]
) -> None:
    bucket, now_s = Bucket(rate, 0.0), 0.0
    for pause_s, size, background in steps:
        now_s += pause_s + bucket.delay_s(now_s + pause_s, background=background)
        assert bucket.delay_s(now_s + 1e-6, background=background) == 0
        bucket.take(size, now_s, background=background)


# -- several limits at once --------------------------------------------------------


class Ticks:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_every_limit_that_applies_holds() -> None:
    ticks = Ticks()
    throttle = Throttle(RateLimits(rate=10 * RATE, rate_per_host=RATE), ticks)
    slice_bytes = int(SLICE_S * RATE)
    assert throttle.try_take("a", MIB, background=False) == (slice_bytes, 0.0)
    size, wait_s = throttle.try_take("a", MIB, background=False)
    assert (size, wait_s > 0) == (0, True)
    assert throttle.try_take("b", MIB, background=False) == (slice_bytes, 0.0)
    ticks.now_s += wait_s
    assert throttle.try_take("a", MIB, background=False) == (slice_bytes, 0.0)


def test_the_background_s_limit_is_its_own() -> None:
    throttle = Throttle(RateLimits(background_rate=RATE), Ticks())
    assert throttle.try_take("a", MIB, background=False) == (MIB, 0.0)
    throttle.try_take("a", MIB, background=True)
    assert throttle.try_take("b", MIB, background=True)[0] == 0
    assert throttle.try_take("b", MIB, background=False) == (MIB, 0.0)


# -- transfers ---------------------------------------------------------------------


def serve(origin: Origin, path: str = "/film", size: int = 4 * MIB) -> str:
    origin.put(path, Resource(size))
    return origin.url(path)


@pytest.mark.parametrize("option", ["limit_rate", "limit_rate_per_host"])
def test_a_limit_holds_readers_back_until_it_is_lifted(
    open_cache: OpenCache, origin: Origin, option: str
) -> None:
    cache = open_cache(**{option: CRAWL})
    film = cache.entry(serve(origin))
    reading = in_thread(fetch, cache, film)
    eventually(lambda: film.downloaded_bytes > 0)
    assert film.downloaded_bytes <= 2 * LEAST_BYTES
    assert not reading.done()
    cache.set_rate_limits(**{option.removeprefix("limit_"): "0"})
    assert reading.result(WAIT_S) == content(0, 4 * MIB)


def test_when_what_is_held_back_comes_is_told_by_the_limit(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limit_rate=CRAWL)
    film = cache.entry(serve(origin))
    film.start()

    def is_held_back() -> bool:
        return "limit on the rate" in film.explain(MIB)["why"]

    eventually(lambda: film.downloaded_bytes > 0 and is_held_back())
    told = film.explain(MIB)
    assert told["in_s"] == pytest.approx((told["stream"]["distance_bytes"] + 1) / CRAWL)


def test_the_background_is_held_back_and_readers_are_not(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limit_background_rate=CRAWL)
    later = cache.entry(serve(origin, "/later"))
    later.start(priority="prefetch")
    eventually(lambda: later.downloaded_bytes > 0)
    film = cache.entry(serve(origin))
    assert fetch(cache, film) == content(0, 4 * MIB)
    assert later.downloaded_bytes <= 2 * LEAST_BYTES
    # It is the background no more when somebody reads it.
    assert fetch(cache, later, 0, MIB) == content(0, MIB)


def test_a_reader_does_not_wait_for_what_the_background_has_taken(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(limit_rate=CRAWL, fill="requested")
    later = cache.entry(serve(origin, "/later"))
    later.start(priority="prefetch")
    eventually(lambda: later.downloaded_bytes > 0)
    film = cache.entry(serve(origin))
    assert fetch(cache, film, 0, 1000) == content(0, 1000)


def test_a_connection_that_is_held_back_is_not_replaced_as_silent(
    open_cache: OpenCache, origin: Origin
) -> None:
    speed = SpeedLimits(silence_s=0.05, floor_bytes_s=MIB, window_s=0.05)
    cache = open_cache(limit_background_rate=CRAWL, speed=speed)
    later = cache.entry(serve(origin, "/later"))
    later.start(priority="prefetch")
    # Until then a slow machine may well be taken for a silent connection, and replaced.
    eventually(lambda: "held back by a limit" in later.explain(MIB)["why"])
    asked = _asked(origin, "/later")
    for number in range(20):  # meanwhile the conductor has looked at it, again and again
        assert fetch(cache, cache.entry(serve(origin, f"/{number}", MIB))) == content(0, MIB)
    assert _asked(origin, "/later") == asked
    cache.set_rate_limits(background_rate=0)
    assert later.wait_complete(WAIT_S)


def _asked(origin: Origin, path: str) -> int:
    return sum(request.path == path for request in origin.requests)


def test_limits_are_changed_one_by_one(cache: Cache) -> None:
    assert cache.rate_limits() == RateLimits()
    assert cache.set_rate_limits(rate="5M", background_rate=1000) == RateLimits(5 * MIB, 0, 1000)
    assert cache.set_rate_limits(rate_per_host="1M") == RateLimits(5 * MIB, MIB, 1000)
    with pytest.raises(UsageError):
        cache.set_rate_limits(rate="fast")
    assert cache.set_rate_limits(rate=0) == cache.rate_limits() == RateLimits(0, MIB, 1000)
