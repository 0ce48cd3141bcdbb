"""Answers that are no file: passed on as they are, given again for as long as they may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate

import pytest

from cachefsm.bodies import SHORT_BODY_BYTES
from cachefsm.proxy import Server
from cachefsm.retries import RetryPolicy
from tests.support.caches import HASTY, WAIT_S, Clock, OpenCache, eventually
from tests.support.clients import ask, at_once, blocked, serve_mounted
from tests.support.faults import dated, hold_before_headers, short_body, status
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 1000
GUESS_S = RetryPolicy.permanent_s


@pytest.fixture
def clock(origin: Origin) -> Clock:
    """The clock of the cache and of the origin."""
    clock = Clock()
    origin.script(dated(clock), times=None)
    return clock


@pytest.fixture
def proxy(open_cache: OpenCache, origin: Origin, clock: Clock) -> Iterator[Server]:
    retries = replace(HASTY, permanent_s=GUESS_S)
    with serve_mounted(open_cache(clock=clock, retries=retries), origin) as running:
        yield running


@pytest.fixture
def url(proxy: Server, origin: Origin) -> str:
    origin.put("/film", Resource(SIZE))
    return f"{proxy.url}m/film"


# -- passed on ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [201, 202, 203, 204, 205, 226, 299, 300, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410,
     418, 421, 422, 425, 429, 451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 599],
)  # fmt: skip
def test_any_status_comes_through_as_it_is(origin, url, code: int) -> None:
    body = b"" if code == 204 else b"because"
    origin.script(status(code, ("Content-Type", "text/x-why"), ("X-Why", "so"), body=body))
    reply = ask(url)
    assert (reply.status, reply.body) == (code, body)
    assert (reply["Content-Type"], reply["X-Why"]) == ("text/x-why", "so")
    assert reply["Cache-Status"] == f"cachefsm; fwd=miss; fwd-status={code}"
    assert len(origin.requests) == 1


def test_a_416_to_all_of_a_file_does_not_make_it_empty(origin, url) -> None:
    origin.script(status(416, body=b"because"), times=None)
    reply = ask(url)
    assert (reply.status, reply.body) == (416, b"because")
    assert [request.range for request in origin.requests] == ["bytes=0-", None]


@pytest.mark.parametrize("code", [204, 404])
def test_the_head_of_any_status_is_the_same(origin, url, code: int) -> None:
    origin.script(status(code, ("X-Why", "so"), body=b"because"))
    reply = ask(url, method="HEAD")
    assert (reply.status, reply["X-Why"], reply.body) == (code, "so", b"")


def test_a_demand_for_credentials_reaches_the_client(origin, url) -> None:
    challenges = [("WWW-Authenticate", 'Basic realm="a"'), ("WWW-Authenticate", "Bearer")]
    origin.script(status(401, *challenges, body=b"who?"))
    reply = ask(url)
    assert (reply.status, reply.body) == (401, b"who?")
    assert [field for field in reply.fields if field[0] == "WWW-Authenticate"] == challenges


def test_the_origins_wish_for_patience_reaches_the_client(origin, url) -> None:
    origin.script(status(503, ("Retry-After", "120"), body=b"later"))
    reply = ask(url)
    assert (reply.status, reply["Retry-After"], reply.body) == (503, "120", b"later")
    assert len(origin.requests) == 1


def test_a_cookie_with_a_refusal_reaches_nobody(origin, url) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60"), ("Set-Cookie", "user=a")))
    assert [ask(url)["Set-Cookie"] for _ in range(2)] == [None, None]


@pytest.mark.parametrize("code", [300, 401, 404, 500, 503, 599])
def test_a_body_that_breaks_off_is_left_out_and_the_answer_is_the_origins_all_the_same(
    origin, url, code: int
) -> None:
    told = [("Content-Type", "text/x-why"), ("ETag", '"page"'), ("WWW-Authenticate", "Bearer")]
    origin.script(status(code, *told, body=b"because"))
    origin.script(short_body(1))
    for _ in range(2 if code == 404 else 1):
        reply = ask(url)
        assert (reply.status, reply["WWW-Authenticate"]) == (code, "Bearer")
        assert reply.text == f"the origin answered {code}; its body did not come\n"
        assert (reply["Content-Type"], reply["ETag"]) == ("text/plain; charset=utf-8", None)
        assert reply["Cache-Status"] is not None
    assert len(origin.requests) == 1


def test_a_success_without_its_body_is_none(origin, url) -> None:
    origin.script(status(203, body=b"because"))
    origin.script(short_body(1))
    reply = ask(url)
    assert (reply.status, reply.text) == (502, "the origin answered 203\n")


def test_everyone_who_waits_is_told(origin, proxy, url) -> None:
    origin.script(status(418, ("X-Why", "so"), body=b"teapot"))
    hold = origin.script(hold_before_headers())
    waiting = in_thread(at_once, 4, lambda _: ask(url))
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(proxy) == 4)
    hold.release()
    replies = waiting.result(WAIT_S)
    assert {(reply.status, reply["X-Why"], reply.body) for reply in replies} == {
        (418, "so", b"teapot")
    }
    told = [reply["Cache-Status"] for reply in replies]
    assert told.count("cachefsm; fwd=miss; fwd-status=418") == 1
    assert told.count("cachefsm; fwd=miss; fwd-status=418; collapsed") == 3
    assert len(origin.requests) == 1


# -- given again -------------------------------------------------------------------


@pytest.mark.parametrize("code", [203, 204, 299, 404, 403, 410, 500, 503])
def test_an_answer_is_given_again_for_as_long_as_it_says(origin, clock, url, code: int) -> None:
    fields = [("Cache-Control", "max-age=60"), ("X-Why", "so")]
    body = b"" if code == 204 else b"because"
    origin.script(status(code, *fields, body=body))
    ask(url)
    clock.now_s += 59
    reply = ask(url)
    assert (reply.status, reply["X-Why"], reply.body) == (code, "so", body)
    assert (reply["Cache-Status"], reply["Age"]) == ("cachefsm; hit", "59")
    assert len(origin.requests) == 1
    clock.now_s += 1
    assert ask(url).body == content(0, SIZE)


@pytest.mark.parametrize(
    ("code", "lifetime_s"),
    [(203, GUESS_S), (204, GUESS_S), (300, GUESS_S), (404, GUESS_S), (405, GUESS_S),
     (410, GUESS_S), (414, GUESS_S), (501, GUESS_S),
     (201, 0), (202, 0), (400, 0), (401, 0), (403, 0), (429, 0), (500, 0), (503, 0)],
)  # fmt: skip
def test_what_is_known_to_last_is_given_again_for_a_moment(
    origin, clock, url, code: int, lifetime_s: float
) -> None:
    origin.script(status(code))
    ask(url)
    if lifetime_s:
        clock.now_s += lifetime_s - 1
        assert ask(url)["Cache-Status"] == "cachefsm; hit"
        clock.now_s += 1
    assert ask(url).status == 200
    assert len(origin.requests) == 2


def test_any_status_is_given_again_for_a_moment_that_is_called_public(origin, clock, url) -> None:
    origin.script(status(599, ("Cache-Control", "public"), body=b"because"))
    assert [ask(url).body for _ in range(2)] == [b"because"] * 2
    clock.now_s += GUESS_S
    assert ask(url).status == 200
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    "fields",
    [
        [("Cache-Control", "no-store")],
        [("Cache-Control", "no-cache, max-age=60")],
        [("Cache-Control", "max-age=0")],
        [("Expires", "0")],
        [("Vary", "*")],
    ],
)
def test_what_may_not_be_given_again_is_not(origin, url, fields: list[tuple[str, str]]) -> None:
    origin.script(status(404, *fields))
    assert [ask(url).status for _ in range(2)] == [404, 200]


def test_what_says_nothing_of_itself_is_not_given_again_stale_either(origin, url) -> None:
    origin.script(status(503), times=2)
    stale = {"Cache-Control": "max-stale"}
    assert [ask(url, stale).status for _ in range(3)] == [503, 503, 200]


def test_a_time_to_expire_counts_as_a_lifetime_does(origin, clock, url) -> None:
    origin.script(status(500, ("Expires", formatdate(clock() + 60, usegmt=True))))
    ask(url)
    clock.now_s += 59
    assert ask(url).status == 500
    clock.now_s += 1
    assert ask(url).status == 200


@pytest.mark.parametrize(
    ("asked", "code"),
    [("no-cache", 200), ("max-age=9", 200), ("max-age=10", 404), ("min-fresh=50", 200),
     ("min-fresh=49", 404), ("only-if-cached", 404), ("no-store", 404)],
)  # fmt: skip
def test_a_client_may_want_none_that_old(origin, clock, url, asked: str, code: int) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60")))
    ask(url)
    clock.now_s += 10
    assert ask(url, {"Cache-Control": asked}).status == code


def test_who_wants_only_what_is_stored_gets_no_old_refusal(origin, clock, url) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60")))
    ask(url)
    clock.now_s += 60
    assert ask(url, {"Cache-Control": "only-if-cached"}).status == 504
    assert ask(url).status == 200
    assert len(origin.requests) == 2


def test_an_answer_to_who_wants_nothing_stored_is_his_alone(origin, url) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60")))
    assert ask(url, {"Cache-Control": "no-store"}).status == 404
    assert ask(url).status == 200


def test_an_answer_is_given_again_to_those_whose_fields_chose_it(origin, url) -> None:
    german, french = {"Accept-Language": "de"}, {"Accept-Language": "fr"}
    vary = ("Vary", "Accept-Encoding, Accept-Language")
    origin.script(status(404, ("Cache-Control", "max-age=60"), vary))
    assert [ask(url, german).status for _ in range(2)] == [404, 404]
    assert ask(url, french).status == 200


def test_a_new_process_asks_anew(origin, clock, open_cache: OpenCache) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60")), times=None)
    for asked in (1, 2):
        with open_cache(clock=clock) as cache, serve_mounted(cache, origin) as proxy:
            replies = [ask(f"{proxy.url}m/film") for _ in range(2)]
        assert [reply.status for reply in replies] == [404, 404]
        assert len(origin.requests) == asked


def test_an_answer_is_given_again_though_others_came_since(origin, proxy) -> None:
    films = [f"{proxy.url}m/film-{number}" for number in range(100)]
    for film in films:
        origin.script(status(404, ("Cache-Control", "max-age=60"), body=film.encode()))
        ask(film)
    for film in films:
        reply = ask(film)
        assert (reply.status, reply.text, reply["Cache-Status"]) == (404, film, "cachefsm; hit")


def test_answers_take_no_more_room_than_they_may(origin, proxy) -> None:
    films = [f"{proxy.url}m/film-{number}" for number in range(20)]
    body = b"x" * SHORT_BODY_BYTES
    origin.script(status(404, ("Cache-Control", "max-age=60"), body=body), times=None)
    for film in films:
        ask(film)
    assert ask(films[-1])["Cache-Status"] == "cachefsm; hit"
    reply = ask(films[0])  # was forgotten
    assert (reply["Cache-Status"], reply.body) == ("cachefsm; fwd=miss; fwd-status=404", body)


def test_a_status_that_must_be_understood_is_not_given_again(origin, url) -> None:
    origin.script(status(599, ("Cache-Control", "max-age=60, no-store, must-understand")))
    assert [ask(url).status for _ in range(2)] == [599, 200]


def test_a_failure_to_ask_takes_the_place_of_an_answer(origin, clock, url) -> None:
    origin.script(status(404, ("Cache-Control", "max-age=60")))
    ask(url)
    origin.leave()
    assert ask(url, {"Cache-Control": "no-cache"}).status == 502
    assert ask(url).status == 502


@pytest.mark.parametrize(
    "fields", [{"If-None-Match": "*"}, {"If-Match": '"x"'}, {"Range": "bytes=0-9"}]
)
def test_conditions_do_not_count_beside_an_answer_that_is_no_file(
    origin, url, fields: dict[str, str]
) -> None:
    etag = ("ETag", '"why"')
    origin.script(status(404, ("Cache-Control", "max-age=60"), etag, body=b"gone"))
    for _ in range(2):
        reply = ask(url, fields)
        assert (reply.status, reply.body) == (404, b"gone")
