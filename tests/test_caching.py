"""A stored response is fresh, validated, replaced, or served stale: RFC 9111 §4 on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate

import pytest

from cachefsm import registry
from cachefsm.freshness import HEURISTIC_LIMIT_S, UNDATED_LIFETIME_S
from cachefsm.proxy import Server
from tests.support.caches import Clock, OpenCache, eventually
from tests.support.clients import Reply, ask, serve_mounted
from tests.support.faults import dated, status
from tests.support.messages import Request
from tests.support.origin import Exchange, Origin, Resource, content, pattern

SIZE = 100_000
NOW_S = Clock().now_s
LONG_AGO = formatdate(NOW_S - 1000, usegmt=True)

Field = tuple[str, str]


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


def film(control: str | None = None, *headers: Field, version: int = 0, **told: object) -> Resource:
    """Return a film whose origin says *control* of caching."""
    named = [("Cache-Control", control)] if control is not None else []
    return Resource(SIZE, headers=(*named, *headers), version=version, **told)  # type: ignore[arg-type]


def conditions(request: Request) -> dict[str, str]:
    return {
        name: value
        for name, value in request.headers
        if name in ("If-None-Match", "If-Modified-Since", "If-Range")
    }


# -- fresh ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "lifetime_s"),
    [
        ([("Cache-Control", "max-age=60")], 60),
        ([("Cache-Control", "max-age=60"), ("Expires", "0")], 60),
        ([("Expires", formatdate(NOW_S + 60, usegmt=True))], 60),
        ([("Cache-Control", "private, max-age=60")], 60),
        ([("Cache-Control", "s-maxage=5, max-age=60")], 60),
        ([("Last-Modified", LONG_AGO)], 100),
        ([("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT")], int(HEURISTIC_LIMIT_S)),
        ([], int(UNDATED_LIFETIME_S)),
    ],
    ids=["max-age", "max-age first", "Expires", "private", "s-maxage", "a tenth", "a day", "none"],
)
def test_a_response_is_served_without_asking_while_it_is_fresh(
    origin, clock, url, headers: list[Field], lifetime_s: int
) -> None:
    origin.put("/film", film(None, *headers))
    ask(url)
    clock.now_s += lifetime_s - 1
    reply = ask(url)
    assert (reply["Cache-Status"], reply.body) == ("cachefsm; hit", content(0, SIZE))
    assert len(origin.requests) == 1
    clock.now_s += 1
    assert ask(url)["Cache-Status"] == "cachefsm; fwd=stale; fwd-status=304"
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "text/plain", "application/json", "text/event-stream"],
)
def test_what_may_be_another_the_next_second_is_not_guessed_fresh(
    origin, url, content_type: str
) -> None:
    origin.put("/film", film(content_type=content_type))
    assert [ask(url).body, ask(url).body] == [content(0, SIZE)] * 2
    assert conditions(origin.requests[1]) == {"If-None-Match": '"v0"'}


@pytest.mark.parametrize("content_type", ["application/vnd.apple.mpegurl", "application/dash+xml"])
def test_a_playlist_may_have_grown_a_second_later(origin, url, clock, content_type: str) -> None:
    origin.put("/film", film(content_type=content_type))
    assert [ask(url).body, ask(url).body] == [content(0, SIZE)] * 2
    assert len(origin.requests) == 1
    clock.now_s += 1
    assert ask(url).body == content(0, SIZE)
    assert conditions(origin.requests[1]) == {"If-None-Match": '"v0"'}


@pytest.mark.parametrize("name", ["live.m3u8", "LIVE.M3U8", "live.m3u", "live.mpd"])
def test_a_playlist_that_only_its_name_tells_of_may_have_grown(origin, url, clock, name) -> None:
    """Many servers don't know the type of such a file, and one made anew has no date."""
    origin.put(f"/{name}", film(content_type="application/octet-stream"))
    url = url.replace("film", name) + "?token=1"
    assert [ask(url).body, ask(url).body] == [content(0, SIZE)] * 2
    assert len(origin.requests) == 1
    clock.now_s += 1
    assert ask(url).body == content(0, SIZE)
    assert conditions(origin.requests[1]) == {"If-None-Match": '"v0"'}


@pytest.mark.parametrize("control", ["max-age=0", "no-cache", 'no-cache="X-A"', "max-age=rubbish"])
def test_what_must_be_asked_about_is_asked_about_each_time(origin, url, control: str) -> None:
    origin.put("/film", film(control))
    for _ in range(3):
        assert ask(url).body == content(0, SIZE)
    assert [conditions(request) for request in origin.requests] == [
        {},
        {"If-None-Match": '"v0"'},
        {"If-None-Match": '"v0"'},
    ]
    assert origin.body_bytes_sent == SIZE


def test_a_fresh_film_is_not_asked_about_on_each_seek(origin, url) -> None:
    origin.put("/film", film("max-age=60"))
    ask(url)
    for start in range(0, SIZE, 10_000):
        reply = ask(url, {"Range": f"bytes={start}-{start + 9}"})
        assert reply.body == content(start, start + 10)
    assert len(origin.requests) == 1


# -- Age and Date ----------------------------------------------------------------


def test_the_age_is_told_of_what_comes_from_the_cache_only(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    assert ask(url)["Age"] is None
    clock.now_s += 7
    assert ask(url)["Age"] == "7"
    assert ask(url, {"If-None-Match": '"v0"'})["Age"] == "7"


def test_the_age_from_upstream_is_added_to_ours(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60", ("Age", "50")))
    assert ask(url)["Age"] == "50"
    clock.now_s += 9
    assert ask(url)["Age"] == "59"
    clock.now_s += 1
    ask(url)
    assert len(origin.requests) == 2


def test_the_age_begins_anew_when_the_origin_has_confirmed_it(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    ask(url)
    clock.now_s += 61
    assert ask(url)["Age"] == "0"
    clock.now_s += 5
    assert ask(url)["Age"] == "5"
    assert len(origin.requests) == 2


def test_a_new_version_comes_without_an_age(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    ask(url)
    origin.put("/film", film("max-age=60", version=1))
    clock.now_s += 61
    assert ask(url)["Age"] is None


def test_a_response_without_a_date_is_dated_when_it_came(origin, clock, url) -> None:
    def undated(exchange: Exchange) -> None:
        exchange.answer.drop("Date")

    origin.put("/film", film("max-age=60"))
    origin.script(lambda exchange: exchange.answer.before_head.append(undated))
    ask(url)
    clock.now_s += 30
    reply = ask(url)
    assert (reply["Date"], reply["Age"]) == (formatdate(NOW_S, usegmt=True), "30")


# -- validation ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validators", "asked"),
    [
        ({"etag": '"v0"'}, {"If-None-Match": '"v0"'}),
        ({"etag": 'W/"v0"'}, {"If-None-Match": 'W/"v0"'}),
        ({"etag": None, "last_modified": LONG_AGO}, {"If-Modified-Since": LONG_AGO}),
        (
            {"etag": '"v0"', "last_modified": LONG_AGO},
            {"If-None-Match": '"v0"', "If-Modified-Since": LONG_AGO},
        ),
    ],
    ids=["strong", "weak", "date", "both"],
)
def test_a_stale_response_is_validated_with_what_it_has(
    origin, clock, url, validators: dict[str, str], asked: dict[str, str]
) -> None:
    origin.put("/film", film("max-age=60", **validators))
    ask(url)
    clock.now_s += 61
    reply = ask(url)
    assert (reply.status, reply.body) == (200, content(0, SIZE))
    assert conditions(origin.requests[1]) == asked
    assert origin.body_bytes_sent == SIZE


def test_a_304_updates_the_stored_fields_and_how_long_they_are_fresh(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60", ("X-Kept", "1"), ("X-Changed", "1")))
    ask(url)
    clock.now_s += 61
    fields = [("Cache-Control", "max-age=600"), ("X-Changed", "2"), ("X-New", "3")]
    origin.script(status(304, ("ETag", '"v0"'), *fields))
    reply = ask(url)
    assert [reply[name] for name in ("X-Kept", "X-Changed", "X-New")] == ["1", "2", "3"]
    assert reply["Content-Type"] == "application/octet-stream"
    assert reply["ETag"] == '"v0"'
    clock.now_s += 599
    assert ask(url)["Cache-Status"] == "cachefsm; hit"
    assert len(origin.requests) == 2


def test_what_a_304_says_is_known_after_a_restart(origin, clock, open_cache: OpenCache) -> None:
    origin.put("/film", film("max-age=60"))
    with open_cache(clock=clock) as cache, serve_mounted(cache, origin) as first:
        ask(f"{first.url}m/film")
        clock.now_s += 61
        origin.script(status(304, ("Cache-Control", "max-age=600"), ("X-New", "3")))
        ask(f"{first.url}m/film")
    clock.now_s += 100
    with open_cache(clock=clock) as cache, serve_mounted(cache, origin) as second:
        reply = ask(f"{second.url}m/film")
    assert (reply["X-New"], reply["Age"], len(origin.requests)) == ("3", "100", 2)


@pytest.mark.parametrize(
    "validators",
    [{"etag": '"v{version}"'}, {"etag": 'W/"v{version}"'}, {"etag": None}],
    ids=["strong", "weak", "none"],
)
def test_a_200_to_a_question_is_the_answer(origin, clock, url, validators: dict[str, str]) -> None:
    origin.put("/film", film("max-age=60", **validators))
    ask(url)
    clock.now_s += 61
    origin.put("/film", film("max-age=60", ("X-New", "1"), version=1, **validators))
    for _ in range(2):
        reply = ask(url)
        assert (reply["X-New"], reply.body) == ("1", pattern(1)(0, SIZE))
    assert len(origin.requests) == 2


def test_an_answer_that_came_at_once_is_not_asked_for_again(
    origin, clock, open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever begins again with it finds it done, and so no longer kept in memory by anybody."""
    monkeypatch.setattr(registry, "IDLE_ENTRIES", 0)
    cache = open_cache(clock=clock, grace=0)
    find = cache.find_variant

    def find_at_rest(*args: object) -> int:
        eventually(lambda: all(not entry.is_busy for entry in cache.registry.live()))
        cache.registry.drop_idle()
        return find(*args)

    monkeypatch.setattr(cache, "find_variant", find_at_rest)
    origin.put("/film", film("no-cache"))
    with serve_mounted(cache, origin) as proxy:
        ask(f"{proxy.url}m/film")
        origin.put("/film", film("no-cache", version=1))
        assert ask(f"{proxy.url}m/film").body == pattern(1)(0, SIZE)
    assert len(origin.requests) == 2


def test_an_origin_that_knows_no_conditions_says_that_it_is_the_same(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    ask(url)
    clock.now_s += 61

    def forgetful(exchange) -> None:
        bare = Request("GET", "/film", "HTTP/1.1", (), b"", 0, origin.changed)
        exchange.answer.become(film("max-age=600", ("X-New", "1")).answer(bare))

    origin.script(forgetful)
    reply = ask(url)
    assert (reply["X-New"], reply.body) == ("1", content(0, SIZE))
    clock.now_s += 599
    assert ask(url)["Cache-Status"] == "cachefsm; hit"
    assert len(origin.requests) == 2


def test_a_304_about_another_version_is_no_confirmation(origin, clock, url) -> None:
    origin.put("/film", film("max-age=60"))
    ask(url)
    clock.now_s += 61
    origin.put("/film", film("max-age=60", version=1))
    origin.script(status(304, ("ETag", '"v1"')))
    assert ask(url).body == pattern(1)(0, SIZE)
    assert len(origin.requests) == 3


def test_a_304_that_nobody_asked_for_is_an_error(origin, url) -> None:
    origin.put("/film", film())
    origin.script(status(304, ("ETag", '"v0"')))
    reply = ask(url)
    assert reply.status == 502


@pytest.mark.parametrize("code", [404, 410, 403, 500])
def test_an_error_in_answer_to_a_question_is_passed_on(origin, clock, url, code: int) -> None:
    origin.put("/film", film("max-age=60, stale-if-error=0"))
    ask(url)
    clock.now_s += 61
    origin.script(status(code, ("X-Why", "so"), body=b"no more"))
    reply = ask(url)
    assert (reply.status, reply["X-Why"], reply.body) == (code, "so", b"no more")
    assert reply["Cache-Status"] == f"cachefsm; fwd=stale; fwd-status={code}"
    assert ask(url).body == content(0, SIZE)  # it is back


# -- what the client asks of a stale response --------------------------------------


def stale(origin: Origin, clock: Clock, url: str) -> None:
    """Have the whole film stored, and let it grow old."""
    origin.put("/film", film("max-age=60"))
    ask(url)
    clock.now_s += 61


@pytest.mark.parametrize(
    ("fields", "code", "bytes_"),
    [
        ({"If-None-Match": '"v0"'}, 304, (0, 0)),
        ({"If-None-Match": '"old"'}, 200, (0, SIZE)),
        ({"If-Match": '"v0"'}, 200, (0, SIZE)),
        ({"If-Match": '"old"'}, 412, (0, 0)),
        ({"Range": "bytes=50-59"}, 206, (50, 60)),
        ({"Range": "bytes=-10"}, 206, (SIZE - 10, SIZE)),
        ({"Range": f"bytes={SIZE}-"}, 416, None),
        ({"Range": "bytes=50-59", "If-Range": '"v0"'}, 206, (50, 60)),
        ({"Range": "bytes=50-59", "If-Range": '"old"'}, 200, (0, SIZE)),
        ({"Range": "bytes=50-59", "If-None-Match": '"v0"'}, 304, (0, 0)),
        ({"Range": "bytes=50-59", "If-Match": '"old"'}, 412, (0, 0)),
    ],
)
def test_conditions_and_ranges_are_answered_from_what_was_confirmed(
    origin, clock, url, fields: dict[str, str], code: int, bytes_: tuple[int, int] | None
) -> None:
    stale(origin, clock, url)
    reply = ask(url, fields)
    assert reply.status == code
    assert bytes_ is None or reply.body == content(*bytes_)
    assert conditions(origin.requests[1]) == {"If-None-Match": '"v0"'}
    assert (len(origin.requests), origin.body_bytes_sent) == (2, SIZE)


@pytest.mark.parametrize(
    ("fields", "code", "bytes_"),
    [
        ({"If-None-Match": '"v0"'}, 200, (0, SIZE)),
        ({"If-None-Match": '"v1"'}, 304, (0, 0)),
        ({"If-Match": '"v0"'}, 412, (0, 0)),
        ({"Range": "bytes=50-59"}, 206, (50, 60)),
        ({"Range": "bytes=50-59", "If-Range": '"v0"'}, 200, (0, SIZE)),
        ({"Range": "bytes=50-59", "If-Range": '"v1"'}, 206, (50, 60)),
        ({"Range": f"bytes={SIZE}-"}, 416, None),
    ],
)
def test_conditions_and_ranges_are_answered_from_what_replaced_it(
    origin, clock, url, fields: dict[str, str], code: int, bytes_: tuple[int, int] | None
) -> None:
    stale(origin, clock, url)
    origin.put("/film", film("max-age=60", version=1))
    reply = ask(url, fields)
    assert reply.status == code
    assert bytes_ is None or reply.body == pattern(1)(*bytes_)
    assert ask(url).body == pattern(1)(0, SIZE)


def test_a_shorter_version_is_found_out_by_a_range_behind_its_end(origin, clock, url) -> None:
    stale(origin, clock, url)
    origin.put("/film", Resource(1000, version=1))
    reply = ask(url, {"Range": "bytes=5000-5009"})
    assert (reply.status, reply["Content-Range"]) == (416, "bytes */1000")
    assert ask(url).body == pattern(1)(0, 1000)


def test_a_head_confirms_and_renews_as_a_get_does(origin, clock, url) -> None:
    stale(origin, clock, url)
    reply = ask(url, method="HEAD")
    assert (reply.status, reply["Content-Length"]) == (200, str(SIZE))
    assert ask(url)["Cache-Status"] == "cachefsm; hit"
    assert len(origin.requests) == 2
    clock.now_s += 61
    origin.put("/film", film("max-age=60", version=1))
    assert ask(url, method="HEAD")["ETag"] == '"v1"'
    assert ask(url).body == pattern(1)(0, SIZE)


def test_a_cold_conditional_request_asks_for_the_file_once(origin, url) -> None:
    origin.put("/film", film("max-age=60"))
    assert ask(url, {"If-None-Match": '"v0"'}).status == 304
    assert conditions(origin.requests[0]) == {}
    assert ask(url).body == content(0, SIZE)
    assert len(origin.requests) == 1


def test_a_304_has_the_fields_that_a_200_would_have(origin, url) -> None:
    fields = [("Content-Location", "/there"), ("Expires", LONG_AGO), ("Vary", "Accept")]
    origin.put("/film", film("max-age=60", *fields, last_modified=LONG_AGO))
    whole, current = ask(url), ask(url, {"If-None-Match": '"v0"'})
    assert (current.status, current.body, current["Content-Length"]) == (304, b"", None)
    names = ["Cache-Control", "Content-Location", "Date", "ETag", "Expires", "Last-Modified",
             "Vary", "Via"]  # fmt: skip
    assert [current[name] for name in names] == [whole[name] for name in names]
    assert None not in [current[name] for name in names]


def test_a_miss_is_one_request(origin, url) -> None:
    origin.put("/film", film("max-age=60"))
    reply: Reply = ask(url)
    assert reply["Cache-Status"] == "cachefsm; fwd=miss; stored"
    assert [request.method for request in origin.requests] == ["GET"]
