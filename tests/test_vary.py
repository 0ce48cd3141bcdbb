"""One URL, several responses: which request fields chose each of them. RFC 9111 §4.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually
from tests.support.clients import ask, blocked, serve_mounted
from tests.support.faults import dated, hold_before_headers
from tests.support.origin import Exchange, Origin, Resource, content, pattern
from tests.support.threads import in_thread

SIZE = 10_000
VERSIONS = {None: 0, "de": 1, "fr": 2, "de-AT": 3}


@pytest.fixture
def clock(origin: Origin) -> Clock:
    """The clock of the cache and of the origin."""
    clock = Clock()
    origin.script(dated(clock), times=None)
    return clock


@pytest.fixture
def proxy(open_cache: OpenCache, origin: Origin, clock: Clock) -> Iterator[Server]:
    with serve_mounted(open_cache(clock=clock), origin) as running:
        yield running


@pytest.fixture
def url(proxy: Server) -> str:
    return f"{proxy.url}m/film"


def chosen(*varies: str, by: str = "Accept-Language") -> Callable[[Exchange], None]:
    """Answer with the version that the field *by* asks for, and say so in Vary."""
    names = [("Vary", name) for name in varies or (by,)]

    def script(exchange: Exchange) -> None:
        version = VERSIONS[exchange.request.header(by)]
        headers = (("Cache-Control", "max-age=60"), *names)
        film = Resource(SIZE, version=version, headers=headers)
        exchange.answer.become(film.answer(exchange.request))

    return script


def german(language: str = "de") -> dict[str, str]:
    return {"Accept-Language": language}


def test_each_choice_is_stored_beside_the_others(origin, url) -> None:
    origin.script(chosen(), times=None)
    for _ in range(2):
        for language in ("de", "fr", "de-AT"):
            reply = ask(url, german(language))
            assert reply.body == pattern(VERSIONS[language])(0, SIZE)
        assert ask(url).body == content(0, SIZE)  # none at all is a choice, too
    assert len(origin.requests) == 4


def test_fields_that_vary_does_not_name_choose_nothing(origin, url) -> None:
    origin.script(chosen(), times=None)
    for fields in ({"Accept": "video/*"}, {"User-Agent": "a"}, {"X-Trace": "1"}, {"X-Trace": "2"}):
        assert ask(url, german() | fields).body == pattern(1)(0, SIZE)
    assert len(origin.requests) == 1


def test_any_field_may_choose(origin, url) -> None:
    origin.script(chosen(by="X-Kind"), times=None)
    for _ in range(2):
        for kind in ("de", "fr"):
            assert ask(url, {"X-Kind": kind}).body == pattern(VERSIONS[kind])(0, SIZE)
    assert len(origin.requests) == 2


def test_how_a_choice_is_spaced_chooses_nothing(origin, clock, open_cache: OpenCache) -> None:
    for line in ("de,fr", "de , fr"):
        with open_cache(clock=clock) as cache, serve_mounted(cache, origin) as proxy:
            if line == "de,fr":
                vary = (("Vary", "Accept-Language"), ("Cache-Control", "max-age=60"))
                origin.put("/film", Resource(SIZE, headers=vary))
            for each in (line, line.replace(",", ",\t")):
                assert ask(f"{proxy.url}m/film", german(each)).body == content(0, SIZE)
            assert len(cache.entries()) == 1
    assert len(origin.requests) == 1


def test_what_this_proxy_decides_by_itself_chooses_nothing(origin, url) -> None:
    origin.script(chosen("Accept-Encoding"), times=None)
    for coding in ("gzip", "br", "identity"):
        assert ask(url, {"Accept-Encoding": coding}).body == content(0, SIZE)
    assert len(origin.requests) == 1


def test_each_choice_is_confirmed_by_itself(origin, clock, url) -> None:
    origin.script(chosen(), times=None)
    for language in ("de", "fr"):
        ask(url, german(language))
    clock.now_s += 61
    for language in ("fr", "de"):
        reply = ask(url, german(language))
        assert reply["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"
        request = origin.requests[-1]
        assert request.header("Accept-Language") == language
        assert request.header("If-None-Match") == f'"v{VERSIONS[language]}"'


def test_choices_are_told_apart_after_a_restart(origin, clock, open_cache: OpenCache) -> None:
    origin.script(chosen(), times=None)
    for _ in range(2):
        with open_cache(clock=clock) as cache, serve_mounted(cache, origin) as proxy:
            for language in ("de", "fr"):
                reply = ask(f"{proxy.url}m/film", german(language))
                assert reply.body == pattern(VERSIONS[language])(0, SIZE)
    assert len(origin.requests) == 2


def test_who_waited_for_another_choice_gets_his_own(origin, proxy, url) -> None:
    origin.script(chosen(), times=None)
    hold = origin.script(hold_before_headers())
    first = in_thread(ask, url, german("de"))
    assert hold.reached.wait(WAIT_S)
    second = in_thread(ask, url, german("fr"))
    eventually(lambda: blocked(proxy) == 2)
    hold.release()
    assert first.result(WAIT_S).body == pattern(1)(0, SIZE)
    assert second.result(WAIT_S).body == pattern(2)(0, SIZE)
    assert len(origin.requests) == 2


def test_an_origin_may_begin_to_choose(origin, clock, url) -> None:
    origin.put("/film", Resource(SIZE, headers=(("Cache-Control", "max-age=60"),)))
    assert ask(url, german("de")).body == ask(url, german("fr")).body == content(0, SIZE)
    clock.now_s += 61
    origin.script(chosen(), times=None)
    for _ in range(2):
        for language in ("de", "fr"):
            assert ask(url, german(language)).body == pattern(VERSIONS[language])(0, SIZE)
    assert len(origin.requests) == 3


def test_an_origin_may_cease_to_choose(origin, clock, url) -> None:
    choosing = origin.script(chosen(), times=2)
    for language in ("de", "fr"):
        ask(url, german(language))
    assert choosing
    clock.now_s += 61
    origin.put("/film", Resource(SIZE, version=9, headers=(("Cache-Control", "max-age=60"),)))
    for language in ("de", "fr", "de-AT"):
        assert ask(url, german(language)).body == pattern(9)(0, SIZE)


def test_a_choice_may_itself_depend_on_more(origin, url) -> None:
    origin.script(chosen(), when=lambda request: request.header("Accept") == "a")
    origin.script(chosen("Accept-Language", "Accept"), times=None, nth=2)
    for _ in range(2):
        for language, kind in (("de", "a"), ("fr", "a"), ("fr", "b"), ("fr", "c")):
            reply = ask(url, {"Accept-Language": language, "Accept": kind})
            assert (reply.status, reply.body) == (200, pattern(VERSIONS[language])(0, SIZE))
    assert len(origin.requests) == 4


def test_what_varies_on_everything_is_everyones_own(origin, url) -> None:
    origin.script(chosen("*"), times=None)
    for _ in range(2):
        assert ask(url, german()).body == pattern(1)(0, SIZE)
    assert len(origin.requests) == 2


def test_a_change_made_through_here_outdates_every_choice(
    origin, clock, open_cache: OpenCache
) -> None:
    origin.script(chosen(), when=lambda request: request.method == "GET", times=None)
    with open_cache(clock=clock) as cache, serve_mounted(cache, origin) as proxy:
        for language in ("de", "fr"):
            ask(f"{proxy.url}m/film", german(language))
        cache.outdate(origin.url("/film"), "changed")
        assert [entry.state for entry in cache.entries()] == ["not_started"] * 2


@pytest.mark.parametrize("language", ["de", "fr"])
def test_an_entry_is_served_by_its_number_whoever_asks(origin, proxy, url, language: str) -> None:
    origin.script(chosen(), times=None)
    ask(url, german("fr"))
    ask(url, german("de"))
    content_of = [f"{proxy.url}-/entries/{number}/content" for number in (1, 2)]
    bodies = [ask(entry, german(language)).body for entry in content_of]
    assert bodies == [pattern(2)(0, SIZE), pattern(1)(0, SIZE)]
    assert len(origin.requests) == 2
