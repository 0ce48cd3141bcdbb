"""Readers of an entry that moves on to another generation under them; found by the soak."""

from __future__ import annotations

from contextlib import closing

import pytest

from cachefsm import Cache
from cachefsm.errors import RepresentationChanged
from cachefsm.scheduler import Open, Priority
from tests.support.caches import WAIT_S, OpenCache
from tests.support.clients import ask, serve_mounted
from tests.support.faults import Hold
from tests.support.messages import pattern
from tests.support.origin import Origin, Resource

SIZE = 100_000


@pytest.mark.parametrize("etag", [None, 'W/"v{version}"'], ids=["no validator", "weak"])
def test_what_cannot_be_joined_never_comes_from_two_answers_though_the_first_had_no_body(
    cache: Cache, origin: Origin, etag: str | None
) -> None:
    origin.put("/film", Resource(SIZE, etag=etag))
    hold = origin.script(Hold(0))  # the head, and then not one byte
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        assert reader.representation().complete_length == SIZE
        assert hold.reached.wait(WAIT_S)
        origin.put("/film", Resource(SIZE + 10_000, etag=etag, version=7))
        with origin.outage():
            origin.wait_until(lambda: origin.open_connections == 0)
        with pytest.raises(RepresentationChanged):
            reader.read(0, SIZE)


@pytest.mark.parametrize(
    ("asked", "start", "stop", "asks"),
    [
        (None, 0, SIZE, 2),
        ("bytes=5-60000", 5, 60_001, 2),
        ("bytes=5-9999", 5, 10_000, 1),
    ],
    ids=["whole", "more than the window", "within it"],
)
def test_what_cannot_be_joined_is_asked_for_as_far_as_its_client_reads(
    open_cache: OpenCache, origin: Origin, asked: str | None, start: int, stop: int, asks: int
) -> None:
    """The first question is no longer than the window: of it nothing more could be had."""
    origin.put("/film", Resource(SIZE, etag=None))
    cache = open_cache(fill="requested", read_ahead=10_000)
    with serve_mounted(cache, origin) as proxy:
        reply = ask(f"{proxy.url}m/film", {"Range": asked} if asked else {})
    assert reply.body == pattern()(start, stop)
    assert len(origin.requests) == asks


def test_a_python_reader_of_what_cannot_be_joined_gets_all_of_it(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    film = open_cache(fill="requested", read_ahead=10_000).entry(origin.url("/film"))
    with film.open() as file:
        assert file.read() == pattern()(0, SIZE)


def test_a_reader_that_is_ready_keeps_what_was_stored_though_the_entry_moves_on(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    cache = open_cache()
    assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
    cache.close()
    cache = open_cache()  # in which nobody has opened the file yet
    film = cache.entry(origin.url("/film"))
    with closing(cache.open_reader(film.id)) as reader:
        reader.ready(0, SIZE)
        with cache.registry.lease(film.id) as live:
            live.invalidate("changed at the origin")
        assert b"".join(reader.pieces(0, SIZE)) == pattern()(0, SIZE)


def test_a_plan_that_was_made_before_the_last_byte_came_takes_nothing_away(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE, etag=None))
    film = cache.entry(origin.url("/film"))
    film.start()
    assert film.wait_complete(WAIT_S)
    with cache.registry.lease(film.id) as live:
        assert live.grant(Open(film.id, 0, SIZE, Priority.BLOCKED)) is None
        assert live.has(0, SIZE)
