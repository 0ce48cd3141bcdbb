"""``cachefsm.keys``: which URLs are one entry."""

from __future__ import annotations

import pytest

from cachefsm import Cache, DownloadState, KeyRule
from cachefsm.errors import OriginStatus, UsageError
from cachefsm.keys import KeyRules, parse_key_rule
from cachefsm.urls import parse_url
from tests.support.caches import WAIT_S, OpenCache, fetch, rows
from tests.support.clients import ask
from tests.support.faults import hold_before_headers, status
from tests.support.origin import Origin, Resource, content, pattern
from tests.support.threads import in_thread

SIZE = 1_000_000
HALF = SIZE // 2


def key(rules: list[KeyRule], url: str) -> str:
    return KeyRules(rules).key(parse_url(url))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://cdn.example/film?token=1", "https://cdn.example/film"),
        ("https://cdn.example/film?a=1&token=2&b=3", "https://cdn.example/film?a=1&b=3"),
        ("https://cdn.example/film?to%6ben=1&token", "https://cdn.example/film"),
        ("https://cdn.example/film?Token=1", "https://cdn.example/film?Token=1"),
        ("https://cdn.example/film?tokens=1", "https://cdn.example/film?tokens=1"),
        ("https://cdn.example/f?X-Amz-Date=1&X-Amz=2&x=%2F", "https://cdn.example/f?X-Amz=2&x=%2F"),
        ("https://cdn.example/film?&a&&token=1", "https://cdn.example/film?&a&"),
        ("https://cdn.example/film?", "https://cdn.example/film?"),
        ("https://cdn.example/film", "https://cdn.example/film"),
        ("https://cdn.example:444/film?token=1", "https://cdn.example:444/film"),
        ("https://other.example/film?token=1", "https://other.example/film?token=1"),
        ("https://me:pw@cdn.example/film?token=1", "https://me:pw@cdn.example/film"),
    ],
)
def test_what_a_rule_names_is_left_out_and_nothing_else(url: str, found: str) -> None:
    assert key([KeyRule("cdn.example", ("token", "X-Amz-*"))], url) == found


@pytest.mark.parametrize(
    ("host", "url", "applies"),
    [
        ("*.example", "http://a.b.example/?t=1", True),
        ("*.example", "http://example/?t=1", False),
        ("*", "http://anything.test/?t=1", True),
        ("CDN.example", "http://cdn.example/?t=1", True),
        ("cdn.example:80", "http://cdn.example/?t=1", True),
        ("cdn.example:80", "https://cdn.example/?t=1", False),
        ("cdn.example:*", "https://cdn.example:9/?t=1", True),
    ],
)
def test_a_rule_is_for_the_hosts_it_names(host: str, url: str, applies: bool) -> None:
    assert (key([KeyRule(host, ("t",))], url) != url) is applies


def test_all_rules_for_a_host_count() -> None:
    rules = [KeyRule("*", ("a",)), KeyRule("cdn.example", ("b",))]
    assert key(rules, "http://cdn.example/?a=1&b=2&c=3") == "http://cdn.example/?c=3"


def test_rules_are_written_as_host_and_parameters() -> None:
    assert parse_key_rule("*.example:8080=token,X-Amz-*") == KeyRule(
        "*.example:8080", ("token", "X-Amz-*")
    )
    for text in ("", "cdn.example", "cdn.example=", "=token", "cdn example=token", "a/b=token"):
        with pytest.raises(UsageError):
            parse_key_rule(text)
    for names in ((), ("",), ("*",)):
        with pytest.raises(UsageError):
            KeyRule("cdn.example", names)


# -- two URLs with one key ---------------------------------------------------------


@pytest.fixture
def cache(open_cache: OpenCache) -> Cache:
    return open_cache(fill="requested", grace=0, key_rules=[KeyRule("127.0.0.1", ["token"])])


def film(origin: Origin, token: int) -> str:
    return origin.url(f"/film?part=1&token={token}")


def test_two_tokens_lead_to_one_entry(cache: Cache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    first = cache.entry(film(origin, 1))
    assert fetch(cache, first, 0, HALF) == content(0, HALF)
    second = cache.entry(film(origin, 2))
    assert second.id == first.id
    assert fetch(cache, second) == content(0, SIZE)
    assert [request.target for request in origin.requests] == [
        "/film?part=1&token=1",
        "/film?part=1&token=2",  # the latest, for the half that was missing
    ]
    assert origin.body_bytes_sent == SIZE
    told = rows(cache.directory, "SELECT key, url FROM cache_entries")
    assert told == [(origin.url("/film?part=1"), film(origin, 2))]


def test_an_entry_is_found_by_any_of_its_urls(cache: Cache, origin: Origin) -> None:
    entry = cache.entry(film(origin, 1))
    assert cache.find(film(origin, 2)).id == cache.find(film(origin, 1)).id == entry.id
    assert cache.find(origin.url("/film?part=1")).id == entry.id
    assert cache.entry(origin.url("/film?part=2&token=1")).id != entry.id


def test_bytes_of_two_urls_are_joined_only_under_one_validator(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    first = cache.entry(film(origin, 1))
    assert fetch(cache, first, 0, HALF) == content(0, HALF)
    origin.put("/film", Resource(SIZE, version=1))  # what the second token leads to
    second = cache.entry(film(origin, 2))
    second.start()
    assert second.wait_complete(10)
    assert fetch(cache, second) == bytes(pattern(1)(0, SIZE))
    assert second.describe()["generation"] == 1


def test_a_newer_url_ends_the_rest_after_the_older_ones_failure(
    cache: Cache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(status(403), when=lambda request: "token=1" in request.target, times=None)
    with pytest.raises(OriginStatus):
        fetch(cache, cache.entry(film(origin, 1)))
    assert cache.find(film(origin, 1)).state is DownloadState.FAILED
    assert fetch(cache, cache.entry(film(origin, 2))) == content(0, SIZE)


def test_who_goes_on_naming_an_old_url_does_not_undo_its_renewal(
    open_cache: OpenCache, origin: Origin
) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(status(403), when=lambda request: "token=1" in request.target, times=None)
    asked = []

    def renew(url: str, _error: OriginStatus) -> str:
        asked.append(url)
        return film(origin, 2)

    rules = [KeyRule("127.0.0.1", ["token"])]
    cache = open_cache(fill="requested", grace=0, key_rules=rules, resolver=renew)
    for start in range(0, SIZE, HALF):
        entry = cache.entry(film(origin, 1))
        assert fetch(cache, entry, start, start + HALF) == content(start, start + HALF)
    assert asked == [film(origin, 1)]


def test_what_the_older_url_is_answered_late_fails_nobody(cache: Cache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(status(403), when=lambda request: "token=1" in request.target, times=None)
    hold = origin.script(hold_before_headers())
    reader = in_thread(fetch, cache, cache.entry(film(origin, 1)))
    assert hold.reached.wait(WAIT_S)
    cache.entry(film(origin, 2))
    hold.release()
    assert reader.result(WAIT_S) == content(0, SIZE)


def test_clients_of_the_proxy_share_an_entry(cache: Cache, origin: Origin) -> None:
    origin.put("/film", Resource(SIZE, headers=(("Cache-Control", "max-age=60"),)))
    with cache.serve(mounts=[f"/m={origin.url()}"]) as server:
        for token in range(3):
            assert ask(f"{server.url}m/film?token={token}").body == content(0, SIZE)
    assert {request.target for request in origin.requests} == {"/film?token=0"}
    assert origin.body_bytes_sent <= 1.01 * SIZE


def test_without_a_rule_every_query_is_a_file_of_its_own(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = open_cache(start=False)
    assert cache.entry(film(origin, 1)).id != cache.entry(film(origin, 2)).id


def test_a_restart_keeps_the_latest_url(open_cache: OpenCache, origin: Origin) -> None:
    rules = [KeyRule("*", ("token",))]
    origin.put("/film", Resource(SIZE))
    cache = open_cache(start=False, key_rules=rules)
    cache.entry(film(origin, 1))
    cache.entry(film(origin, 2)).start()
    cache.close()
    cache = open_cache(key_rules=rules)
    assert cache.find(film(origin, 1)).wait_complete(10)
    assert {request.target for request in origin.requests} == {"/film?part=1&token=2"}
