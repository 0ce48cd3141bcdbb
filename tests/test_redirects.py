"""Redirects: followed on the client's behalf, or handed on so that they lead here again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from cachefsm.access import Rules, parse_mount
from tests.support.caches import Clock, OpenCache
from tests.support.clients import ask
from tests.support.faults import dated, redirect, status
from tests.support.origin import Origin, Resource, content

SIZE = 1000
KINDS = [301, 302, 303, 307, 308]


@pytest.fixture
def clock(origin: Origin) -> Clock:
    """The clock of the cache and of the origin."""
    clock = Clock()
    origin.script(dated(clock), times=None)
    return clock


@pytest.fixture
def other() -> Iterator[Origin]:
    with Origin() as running:
        running.put("/film", Resource(SIZE))
        running.put("/a/film", Resource(SIZE))
        yield running


@pytest.fixture
def serve(open_cache: OpenCache, origin: Origin, other: Origin, clock: Clock) -> Iterator[object]:
    """Serves /m and /other, one below the other; the second has only what is below /a/."""
    with ExitStack() as stack:

        def start(*, hands_on: bool, allow: tuple[str, ...] = ()) -> str:
            rules = Rules(hands_on=hands_on)
            mounts = [f"/m={origin.url('/base/')}", f"/other={other.url('/a/')}"]
            parsed = [replace(parse_mount(mount), rules=rules) for mount in mounts]
            cache = stack.enter_context(open_cache(clock=clock))
            return stack.enter_context(cache.serve(mounts=parsed, allow=allow)).url

        yield start


# -- followed ------------------------------------------------------------------------


@pytest.mark.parametrize("code", KINDS)
def test_a_redirect_is_followed_and_its_end_is_stored(origin, serve, code: int) -> None:
    origin.put("/base/new", Resource(SIZE, headers=(("Cache-Control", "max-age=60"),)))
    origin.script(redirect("new", code), path="/base/film")
    url = f"{serve(hands_on=False)}m/film"
    for _ in range(2):
        reply = ask(url)
        assert (reply.status, reply.body, reply["Location"]) == (200, content(0, SIZE), None)
    assert [request.target for request in origin.requests] == ["/base/film", "/base/new"]


def test_a_name_written_as_it_is_is_asked_for_as_a_url_has_it(origin, serve) -> None:
    origin.put("/base/n%C3%A9w%20film", Resource(SIZE))
    origin.script(redirect("n\xc3\xa9w film"), path="/base/film")  # UTF-8, as the wire has it
    assert ask(f"{serve(hands_on=False)}m/film").body == content(0, SIZE)


def test_where_a_redirect_leads_is_asked_anew_when_it_is_stale(origin, clock, serve) -> None:
    origin.put("/base/new", Resource(SIZE, headers=(("Cache-Control", "max-age=60"),)))
    origin.script(redirect("new"), path="/base/film", times=None)
    url = f"{serve(hands_on=False)}m/film"
    ask(url)
    clock.now_s += 61
    assert ask(url)["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"
    assert [request.target for request in origin.requests[2:]] == ["/base/film", "/base/new"]


def test_what_is_for_its_own_origin_does_not_follow_to_another(origin, other, serve) -> None:
    origin.script(redirect(other.url("/a/film")), path="/base/film")
    secret = {"Authorization": "Basic eDp5", "X-Api-Key": "k", "User-Agent": "player"}
    assert ask(f"{serve(hands_on=False)}m/film", secret).status == 200
    (there,) = other.requests
    assert [there.header(name) for name in secret] == [None, None, "player"]


# -- handed on -----------------------------------------------------------------------


@pytest.mark.parametrize("code", KINDS)
def test_a_redirect_that_is_handed_on_is_an_answer_like_any_other(origin, serve, code) -> None:
    fields = [("Location", "new"), ("X-Why", "so")]
    origin.script(status(code, *fields, body=b"over there"), path="/base/film")
    reply = ask(f"{serve(hands_on=True)}m/film")
    assert (reply.status, reply["Location"], reply["X-Why"]) == (code, "/m/new", "so")
    assert reply.body == b"over there"
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("location", "led_to"),
    [
        ("new", "/m/new"),
        ("../base/x/new?a=%2f#t=5", "/m/x/new?a=%2f#t=5"),
        ("/base/new", "/m/new"),
        ("n\xc3\xa9w film", "/m/n%C3%A9w%20film"),
        ("/elsewhere", "/elsewhere"),
        ("{origin}/base/new", "/m/new"),
        ("//{authority}/base/new", "/m/new"),
        ("{other}/a/film", "/other/film"),
        ("{other}/film", "{other}/film"),
        ("https://elsewhere.test/film", "https://elsewhere.test/film"),
        ("mailto:me@elsewhere.test", "mailto:me@elsewhere.test"),
        ("http://[", "http://["),
    ],
)
def test_it_leads_through_the_proxy_where_that_serves_what_is_there(
    origin, other, serve, location: str, led_to: str
) -> None:
    names = {
        "origin": origin.url(""),
        "other": other.url(""),
        "authority": f"{origin.host}:{origin.port}",
    }
    origin.script(redirect(location.format(**names)), path="/base/film")
    assert ask(f"{serve(hands_on=True)}m/film")["Location"] == led_to.format(**names)


def test_it_leads_through_the_proxy_to_what_is_allowed(origin, other, serve) -> None:
    origin.script(redirect(other.url("/film")), path="/base/film")
    base = serve(hands_on=True, allow=("127.0.0.1:*",))
    location = ask(f"{base}m/film")["Location"]
    assert location == f"/http/127.0.0.1:{other.port}/film"
    assert ask(f"{base}{location[1:]}").body == content(0, SIZE)


def test_it_is_given_again_for_as_long_as_it_says(origin, clock, serve) -> None:
    fields = [("Location", "new"), ("Cache-Control", "max-age=60")]
    origin.script(status(302, *fields), path="/base/film", times=None)
    url = f"{serve(hands_on=True)}m/film"
    ask(url)
    clock.now_s += 59
    reply = ask(url)
    assert (reply.status, reply["Location"], reply["Age"]) == (302, "/m/new", "59")
    assert len(origin.requests) == 1
    clock.now_s += 1
    ask(url)
    assert len(origin.requests) == 2


def test_a_stored_film_may_move(origin, clock, serve) -> None:
    origin.put("/base/film", Resource(SIZE, headers=(("Cache-Control", "max-age=60"),)))
    url = f"{serve(hands_on=True)}m/film"
    ask(url)
    clock.now_s += 61
    origin.script(redirect("new", 301), path="/base/film")
    reply = ask(url)
    assert (reply.status, reply["Location"]) == (301, "/m/new")
    assert reply["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=301"
