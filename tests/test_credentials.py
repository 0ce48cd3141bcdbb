"""What was fetched with one set of credentials is served to those who send the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from cachefsm import Cache
from cachefsm.access import Rules, parse_mount
from cachefsm.credentials import REMEMBERED, Credentials, variant_key
from tests.support.caches import WAIT_S, Clock, OpenCache, eventually, rows
from tests.support.clients import ask, opened
from tests.support.faults import dated, extra_headers, hold_after, hold_before_headers, status
from tests.support.origin import Exchange, Origin, Resource, content, pattern
from tests.support.threads import in_thread

SIZE = 100_000
ANN, BOB = {"Authorization": "Basic YW5uOnNlc2FtZQ=="}, {"Authorization": "Bearer sesame-bob"}
SECRETS = ("YW5uOnNlc2FtZQ==", "sesame")
USERS = {None: 0, ANN["Authorization"]: 1, BOB["Authorization"]: 2, "Bearer mount": 3}


@pytest.fixture
def clock(origin: Origin) -> Clock:
    """The clock of the cache and of the origin."""
    clock = Clock()
    origin.script(dated(clock), times=None)
    origin.script(personal, times=None, path="/film")
    return clock


def personal(exchange: Exchange) -> None:
    """Answer each user with a version of his own, and say nothing of that."""
    version = USERS[exchange.request.header("Authorization")]
    film = Resource(SIZE, version=version, headers=(("Cache-Control", "max-age=60"),))
    exchange.answer.become(film.answer(exchange.request))


def of(user: dict[str, str]) -> bytes:
    """Return the user's film."""
    return bytes(pattern(USERS[user.get("Authorization")])(0, SIZE))


@pytest.fixture
def cache(open_cache: OpenCache, clock: Clock) -> Cache:
    return open_cache(clock=clock)


class Mounted:
    """The origin below ``/m`` by given rules; a server for each choice of them."""

    def __init__(self, origin: Origin, stack: ExitStack) -> None:
        self._origin = origin
        self._stack = stack

    def __call__(self, cache: Cache, **rules: object) -> str:
        mount = replace(parse_mount(f"/m={self._origin.url()}"), rules=Rules(**rules))  # type: ignore[arg-type]
        return f"{self._stack.enter_context(cache.serve(mounts=[mount])).url}m/film"


@pytest.fixture
def serve(origin: Origin) -> Iterator[Mounted]:
    with ExitStack() as stack:
        yield Mounted(origin, stack)


# -- users ---------------------------------------------------------------------------


def test_two_users_never_share(origin, cache, serve) -> None:
    url = serve(cache)
    for _ in range(2):
        for user in (ANN, BOB, {}):
            assert ask(url, user).body == of(user)
    assert len(origin.requests) == 3


def test_two_users_who_come_at_once_do_not_share_a_question(origin, cache, serve) -> None:
    url = serve(cache)
    hold = origin.script(hold_before_headers())
    ann = in_thread(ask, url, ANN)
    assert hold.reached.wait(WAIT_S)
    assert ask(url, BOB).body == of(BOB)
    assert ask(url).body == of({})
    hold.release()
    assert ann.result(WAIT_S).body == of(ANN)


def test_the_rest_of_a_users_film_is_fetched_as_that_user(origin, cache, serve) -> None:
    url = serve(cache)
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url, ANN) as response:
        assert hold.reached.wait(WAIT_S)
        assert ask(url, BOB).body == of(BOB)
        far = ask(url, {**ANN, "Range": "bytes=90000-90099"})
        assert far.body == of(ANN)[90_000:90_100]
        hold.release()
        assert response.read() == of(ANN)
    asked = [request.header("Authorization") for request in origin.requests]
    assert asked == [ANN["Authorization"], BOB["Authorization"], ANN["Authorization"]]


def test_a_users_film_is_confirmed_as_that_user(origin, cache, clock, serve) -> None:
    url = serve(cache)
    ask(url, ANN), ask(url, BOB)
    clock.now_s += 61
    for user in (BOB, ANN):
        assert ask(url, user)["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"
        assert origin.requests[-1].header("Authorization") == user["Authorization"]


def test_a_refusal_of_one_user_is_not_given_to_another(origin, cache, serve) -> None:
    url = serve(cache)
    origin.script(status(404, ("Cache-Control", "max-age=60")))
    assert [ask(url, user).status for user in (ANN, BOB, ANN)] == [404, 200, 404]


@pytest.mark.parametrize("name", ["X-Api-Key", "X-Auth-Token", "X-Session-Id"])
def test_other_fields_tell_users_apart_as_well(origin, cache, serve, name: str) -> None:
    url = serve(cache)
    for value in ("a", "b", "a"):
        assert ask(url, {name: value}).status == 200
    assert [request.header(name) for request in origin.requests] == ["a", "b"]


def test_users_are_told_apart_after_a_restart(origin, clock, open_cache, serve) -> None:
    for _ in range(2):
        with open_cache(clock=clock) as cache:
            url = serve(cache)
            for user in (ANN, BOB, {}):
                assert ask(url, user).body == of(user)
    assert len(origin.requests) == 3


def test_a_users_download_waits_for_that_user_after_a_restart(
    origin, clock, open_cache, serve
) -> None:
    hold = origin.script(hold_after(SIZE // 2))
    with open_cache(clock=clock, fill="finish") as cache:
        with opened(serve(cache), ANN) as response:
            assert hold.reached.wait(WAIT_S)
            response.read(100)
    with open_cache(clock=clock, fill="finish") as cache:
        url = serve(cache)
        assert ask(url).body == of({})  # nobody has asked with other fields meanwhile
        assert "locked" in {entry.explain(SIZE - 1)["status"] for entry in cache.entries()}
        assert ask(url, ANN).body == of(ANN)
    assert {request.header("Authorization") for request in origin.requests} == {
        None,
        ANN["Authorization"],
    }


# -- mounts --------------------------------------------------------------------------


def test_a_mounts_field_is_sent_for_everyone_and_shared_by_its_clients(
    origin, cache, serve
) -> None:
    url = serve(cache, fields=(("Authorization", "Bearer mount"),))
    for user in (ANN, BOB, {}):
        assert ask(url, user).body == bytes(pattern(3)(0, SIZE))
    assert len(origin.requests) == 1


def test_mounts_with_and_without_a_field_never_share(origin, cache, serve) -> None:
    with_field = serve(cache, fields=(("Authorization", "Bearer mount"),))
    without = serve(cache)
    for _ in range(2):
        assert ask(with_field).body == bytes(pattern(3)(0, SIZE))
        assert ask(without).body == content(0, SIZE)
    assert len(origin.requests) == 2


def test_a_mounts_download_goes_on_by_itself_after_a_restart(
    origin, clock, open_cache, serve
) -> None:
    fields = (("Authorization", "Bearer mount"),)
    hold = origin.script(hold_after(SIZE // 2))
    with open_cache(clock=clock, fill="finish") as cache:
        with opened(serve(cache, fields=fields)) as response:
            assert hold.reached.wait(WAIT_S)
            response.read(100)
    with open_cache(clock=clock, fill="finish", secrets=[fields]) as cache:
        (entry,) = cache.entries()
        assert entry.wait_complete(WAIT_S)
        assert ask(serve(cache, fields=fields)).body == bytes(pattern(3)(0, SIZE))


def test_credentials_in_a_mounts_address_take_the_place_of_the_clients(origin, cache) -> None:
    base = origin.url().replace("://", "://ann:sesame@")
    with cache.serve(mounts=[f"/m={base}"]) as proxy:
        for user in (BOB, {}):
            assert ask(f"{proxy.url}m/film", user).body == of(ANN)
    assert len(origin.requests) == 1


def test_an_entry_asked_for_by_its_number_is_fetched_with_its_own(
    origin, cache, clock, serve
) -> None:
    url = serve(cache)
    ask(url, ANN)
    clock.now_s += 61
    by_number = url.replace("m/film", "-/entries/1/content")
    assert ask(by_number, BOB).body == of(ANN)
    assert origin.requests[-1].header("Authorization") == ANN["Authorization"]


# -- cookies -------------------------------------------------------------------------


def test_a_browsers_cookies_stay_here_and_tell_nobody_apart(origin, cache, serve) -> None:
    url = serve(cache)
    for cookie in ("a=1", "a=2"):
        assert ask(url, {"Cookie": cookie}).body == content(0, SIZE)
    assert [request.header("Cookie") for request in origin.requests] == [None]


def test_where_methods_are_passed_cookies_are_and_tell_users_apart(origin, cache, serve) -> None:
    url = serve(cache, passes=True)
    for cookie in ("a=1", "a=2", "a=1"):
        assert ask(url, {"Cookie": cookie}).body == content(0, SIZE)
    assert [request.header("Cookie") for request in origin.requests] == ["a=1", "a=2"]


def test_a_cookie_is_set_for_nobody_by_what_is_stored(origin, cache, clock, serve) -> None:
    url = serve(cache)
    origin.script(extra_headers(("Set-Cookie", "user=ann"), ("Set-Cookie2", "user=ann")))
    assert [ask(url)[name] for name in ("Set-Cookie", "Set-Cookie2")] == [None, None]
    clock.now_s += 61
    origin.script(status(304, ("Set-Cookie", "user=bob")))
    assert ask(url)["Set-Cookie"] is None
    assert "user=" not in str(rows(cache.directory, "SELECT * FROM cache_entries"))


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda *cookies: extra_headers(*cookies), 200),
        (lambda *cookies: status(404, ("Cache-Control", "max-age=60"), *cookies), 404),
        (lambda *cookies: status(302, ("Location", "/x"), *cookies), 302),
    ],
    ids=["a film", "a refusal", "a redirect"],
)
def test_where_methods_are_passed_cookies_are_set_for_the_one_who_asked(
    origin, cache, serve, script, code: int
) -> None:
    url = serve(cache, passes=True, hands_on=True)
    cookies = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Expires=Thu, 01 Jan 2099")]
    origin.script(script(*cookies))
    hold = origin.script(hold_before_headers())
    first = in_thread(ask, url)
    assert hold.reached.wait(WAIT_S)
    second = in_thread(ask, url)
    eventually(lambda: ask(url.replace("m/film", "-/entries/1")).json()["readers"] == 2)
    hold.release()
    mine, another = first.result(WAIT_S), second.result(WAIT_S)
    assert (mine.status, another.status) == (code, code)
    assert [field for field in mine.fields if field in cookies] == cookies
    assert another["Set-Cookie"] is None
    assert ask(url)["Set-Cookie"] is None


def test_a_cookie_is_set_by_the_answer_to_a_question(origin, cache, clock, serve) -> None:
    url = serve(cache, passes=True)
    ask(url)
    clock.now_s += 61
    origin.script(status(304, ("Set-Cookie", "a=1")))
    reply = ask(url)
    assert (reply.status, reply["Set-Cookie"]) == (200, "a=1")
    assert ask(url)["Set-Cookie"] is None


# -- what nobody is told ---------------------------------------------------------------


def test_secrets_are_kept_nowhere_and_shown_to_nobody(origin, cache, clock, serve, caplog) -> None:
    caplog.set_level(logging.DEBUG, "cachefsm")
    url = serve(cache, fields=(("X-Api-Key", "sesame-mount"),))
    base = url.removesuffix("m/film")
    for user in (ANN, BOB):
        ask(url, user)
        origin.script(Exchange.reset, when=lambda request: request.path == "/broken", times=None)
        ask(f"{base}m/broken?token=sesame-query", user)
    eventually(lambda: rows(cache.directory, "SELECT * FROM cache_chunks") != [])
    shown = [ask(f"{base}-/{page}").text for page in ("", "entries", "stats", "metrics")]
    kept = str(rows(cache.directory, "SELECT key, response_fields, vary FROM cache_entries"))
    for secret in SECRETS:
        assert secret not in caplog.text
        assert secret not in "".join(shown)
    assert SECRETS[0] not in kept
    assert "sesame-mount" not in kept


# -- keys ------------------------------------------------------------------------------


def test_a_key_names_the_set_whatever_its_order_and_case() -> None:
    known = Credentials()
    key = known.key("url", (("A", "1"), ("B", "2")))
    assert key == known.key("url", (("b", "2"), ("a", "1")))
    assert key != known.key("url", (("A", "2"), ("B", "1")))
    assert known.key("url", ()) == "url"
    assert known.of(variant_key(key, (("accept", "x"),))) == (("b", "2"), ("a", "1"))


def test_sets_are_forgotten_but_for_those_that_last() -> None:
    lasting = (("X-Api-Key", "mount"),)
    known = Credentials([lasting, ()])
    keys = [known.key("url", (("A", str(n)),)) for n in range(REMEMBERED + 1)]
    assert known.of(keys[0]) is None
    assert known.of(keys[1]) == (("A", "1"),)
    assert known.of(known.key("url", lasting)) == lasting
    assert Credentials().of("url") == ()
