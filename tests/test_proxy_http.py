"""What the proxy answers by the rules of HTTP: ranges, conditions, methods, fields."""

from __future__ import annotations

import email
import email.policy
import gzip
import http.client
import re
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cachefsm import Cache
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, eventually
from tests.support.clients import (
    Reply,
    ask,
    blocked,
    exchange,
    opened,
    request_bytes,
    serve_mounted,
    split,
    whole,
)
from tests.support.faults import extra_headers, hold_after, hold_before_headers
from tests.support.messages import Request
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 1000
ETAG = '"v0"'
MODIFIED = "Wed, 01 Jan 2025 00:00:00 GMT"
EARLIER = "Tue, 31 Dec 2024 23:59:59 GMT"
FUTURE = formatdate(4e9, usegmt=True)
FILM = Resource(SIZE, etag=ETAG, last_modified=MODIFIED, content_type="video/mp4")


# One proxy for all: each test has a path, and so an entry, of its own.


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Cache(tmp_path_factory.mktemp("cache")) as cache, serve_mounted(cache, origin) as server:
        yield server


NUMBERS = count()


@pytest.fixture
def path(origin: Origin) -> str:
    """Where the origin has the film, for this test alone."""
    path = f"/film-{next(NUMBERS)}"
    origin.put(path, FILM)
    return path


@pytest.fixture
def url(proxy: Server, path: str) -> str:
    return f"{proxy.url}m{path}"


@pytest.fixture
def client(proxy: Server) -> Iterator[http.client.HTTPConnection]:
    """A connection that is kept."""
    parts = urlsplit(proxy.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)
    with closing(connection):
        connection.connect()
        yield connection


@pytest.fixture(params=["cold", "warm"])
def film(request: pytest.FixtureRequest, url: str) -> str:
    """The film's URL at the proxy, once with nothing stored and once with all of it."""
    if request.param == "warm":
        assert ask(url).body == content(0, SIZE)
    return url


def asked_of(origin: Origin, path: str) -> list[Request]:
    """The requests for *path*, queries aside, that the origin has had."""
    return [request for request in origin.requests if request.path == path]


# -- ranges ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=0-0", 0, 1),
        ("bytes=0-1", 0, 2),
        ("bytes=500-599", 500, 600),
        ("bytes=999-", 999, SIZE),
        ("bytes=-1", 999, SIZE),
        ("bytes=-100", 900, SIZE),
        ("bytes=-1000", 0, SIZE),
        ("bytes=-5000", 0, SIZE),
        ("bytes=900-5000", 900, SIZE),
        ("bytes=0-99999999999999999999999", 0, SIZE),
        ("BYTES=0-1", 0, 2),
        ("bytes=10-19,5000-", 10, 20),
    ],
)
def test_one_satisfiable_range_is_a_206(film, asked: str, start: int, stop: int) -> None:
    reply = ask(film, {"Range": asked})
    assert reply.status == 206
    assert reply["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert reply["Content-Length"] == str(stop - start)
    assert reply.body == content(start, stop)
    assert reply["Content-Type"] == "video/mp4"


@pytest.mark.parametrize(
    "asked",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=,",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=0x0-0x5",
        "bytes=1-2-3",
        "bytes=+1-2",
        "bytes=0-1,x",
        "seconds=0-1",
        "0-1",
        "bytes=0-,0-,0-,0-",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(200)),
    ],
)
def test_what_is_no_range_that_makes_sense_is_answered_with_everything(
    film, asked: str | None
) -> None:
    reply = ask(film, {} if asked is None else {"Range": asked})
    assert reply.status == 200
    assert reply["Content-Range"] is None
    assert reply["Content-Length"] == str(SIZE)
    assert reply.body == content(0, SIZE)


@pytest.mark.parametrize(
    "asked",
    ["bytes=1000-", "bytes=1000-1000", "bytes=5000-", "bytes=-0", f"bytes={'9' * 5000}-"],
    ids=lambda asked: asked[:20],
)
def test_a_range_without_a_byte_is_a_416(film, asked: str) -> None:
    reply = ask(film, {"Range": asked})
    assert reply.status == 416
    assert reply["Content-Range"] == f"bytes */{SIZE}"
    assert reply.text.count("\n") == 1


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=0-0", "bytes=-5"])
def test_no_range_of_an_empty_file_can_be_satisfied(origin, path, url, asked: str) -> None:
    origin.put(path, Resource(0))
    whole_file = ask(url)
    assert (whole_file.status, whole_file.body) == (200, b"")
    assert whole_file["Content-Length"] == "0"
    reply = ask(url, {"Range": asked})
    assert (reply.status, reply["Content-Range"]) == (416, "bytes */0")


OFFSETS = st.one_of(
    st.integers(0, SIZE + 50), st.sampled_from([SIZE - 1, SIZE, SIZE + 1, 2**63, 10**30])
)
SPECS = st.one_of(
    st.builds("{}-{}".format, OFFSETS, OFFSETS),
    st.builds("{}-".format, OFFSETS),
    st.builds("-{}".format, OFFSETS),
)
SEPARATORS = st.sampled_from([",", ", ", " ,", "\t,\t", ",,", ", ,"])
RANGES = st.builds(
    lambda specs, separator: "bytes=" + separator.join(specs),
    st.lists(SPECS, min_size=1, max_size=5),
    SEPARATORS,
)
VISIBLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
NEARLY = st.builds("bytes={}".format, st.text("0123456789-, =bytes", max_size=20))


def resolve(spec: str) -> tuple[int, int] | str | None:
    """The bytes that one range-spec means, None for none there are, "invalid" for no spec."""
    match = re.fullmatch(r"([0-9]*)-([0-9]*)", spec)
    if match is None or spec == "-":
        return "invalid"
    # What lies beyond any file's end is one place: there, "first > last" is not seen.
    first, last = (min(int(offset), 2**63 - 1) if offset else None for offset in match.groups())
    if first is None:
        start, stop = max(0, SIZE - (last or 0)), SIZE
    elif last is not None and last < first:
        return "invalid"
    else:
        start, stop = first, SIZE if last is None else min(SIZE, last + 1)
    return (start, stop) if start < stop else None


def permitted(value: str) -> list[tuple[int, str | None, bytes]]:
    """Status, Content-Range and body (b"" for a refusal's) that RFC 9110 §14.2 allows here."""
    everything = (200, None, content(0, SIZE))
    unit, equals, rest = value.strip(" \t").partition("=")
    specs = [spec for part in rest.split(",") if (spec := part.strip(" \t"))]
    meant = [resolve(spec) for spec in specs]
    if unit.lower() != "bytes" or not equals or not meant or "invalid" in meant:
        return [everything]
    satisfiable = [found for found in meant if isinstance(found, tuple)]
    if not satisfiable:
        answer: tuple[int, str | None, bytes] = (416, f"bytes */{SIZE}", b"")
    else:
        merged = merge(satisfiable)
        if len(merged) == 1:
            ((start, stop),) = merged
            answer = (206, f"bytes {start}-{stop - 1}/{SIZE}", content(start, stop))
        else:
            answer = (206, None, tuple((start, content(start, stop)) for start, stop in merged))
    # Only a list may be ignored for being unreasonable; a single range may not.
    return [answer] if len(meant) == 1 else [answer, everything]


def merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join what overlaps or touches, each group at its first member's place."""
    merged: list[tuple[int, int]] = []
    for start, stop in ranges:
        touching = [known for known in merged if known[0] <= stop and start <= known[1]]
        if not touching:
            merged.append((start, stop))
            continue
        group = [*touching, (start, stop)]
        place = merged.index(touching[0])
        merged = [known for known in merged if known not in touching]
        merged.insert(place, (min(a for a, _ in group), max(b for _, b in group)))
    return merged


def parts_of(reply: Reply) -> tuple[tuple[int, bytes], ...]:
    """Take a multipart/byteranges answer apart: each part's offset and bytes."""
    text = b"Content-Type: " + (reply["Content-Type"] or "").encode() + b"\r\n\r\n" + reply.body
    message = email.message_from_bytes(text, policy=email.policy.HTTP)
    found = []
    for part in message.iter_parts():
        start, last, length = re.findall(r"\d+", part["Content-Range"])
        assert length == str(SIZE)
        data = part.get_payload(decode=True)
        assert len(data) == int(last) + 1 - int(start)
        found.append((int(start), data))
    return tuple(found)


def test_several_ranges_are_answered_as_parts_in_the_order_asked(film) -> None:
    reply = ask(film, {"Range": "bytes=900-,0-1,10-19, 20-29,-0"})
    assert reply.status == 206
    assert reply["Content-Range"] is None
    assert reply["Content-Length"] == str(len(reply.body))
    assert parts_of(reply) == (
        (900, content(900, SIZE)),
        (0, content(0, 2)),
        (10, content(10, 30)),
    )
    assert b"Content-Type: video/mp4" in reply.body


def test_several_ranges_of_which_one_is_there_are_a_plain_206(film) -> None:
    reply = ask(film, {"Range": "bytes=5-6,5000-"})
    assert (reply.status, reply["Content-Range"]) == (206, f"bytes 5-6/{SIZE}")
    assert reply.body == content(5, 7)


@pytest.fixture
def stored(url: str) -> str:
    """The target of a film of which everything is stored."""
    assert ask(url).body == content(0, SIZE)
    return urlsplit(url).path


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=st.one_of(RANGES, NEARLY, VISIBLE))
@example(value="bytes=0-0")
@example(value="bytes=-0")
@example(value=f"bytes=-{10**30}")
@example(value=f"bytes={10**30}-")
@example(value=f"bytes={10**30}-{2**63}")
def test_every_range_field_is_answered_as_the_rfc_says(client, stored: str, value: str) -> None:
    client.request("GET", stored, headers={"Range": value})
    reply = whole(client.getresponse())
    body: Any = b"" if reply.status == 416 else reply.body
    if (reply["Content-Type"] or "").startswith("multipart/byteranges"):
        body = parts_of(reply)
    assert (reply.status, reply["Content-Range"], body) in permitted(value)
    assert reply["Content-Length"] == str(len(reply.body))


# -- conditions -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"If-None-Match": ETAG}, 304),
        ({"If-None-Match": f"W/{ETAG}"}, 304),
        ({"If-None-Match": f'"other", {ETAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": FUTURE}, 200),
        ({"If-Modified-Since": MODIFIED}, 304),
        ({"If-Modified-Since": EARLIER}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": ETAG}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": f"W/{ETAG}"}, 412),
        ({"If-Unmodified-Since": MODIFIED}, 200),
        ({"If-Unmodified-Since": EARLIER}, 412),
        # Conditions come before ranges.
        ({"If-None-Match": ETAG, "Range": "bytes=0-9"}, 304),
        ({"If-None-Match": ETAG, "Range": "bytes=5000-"}, 304),
        ({"If-Match": '"other"', "Range": "bytes=0-9"}, 412),
        ({"If-Match": ETAG, "Range": "bytes=0-9"}, 206),
        ({"If-None-Match": '"other"', "Range": "bytes=5000-"}, 416),
    ],
)
def test_conditions_decide_before_ranges(film, fields: dict[str, str], status: int) -> None:
    reply = ask(film, fields)
    assert reply.status == status
    if status in (304, 412):
        assert reply.body == b""
        assert reply["ETag"] == ETAG
        assert (reply["Content-Range"], reply["Content-Type"]) == (None, None)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        (ETAG, 206),
        (f"W/{ETAG}", 200),
        ('"other"', 200),
        (MODIFIED, 206),
        (EARLIER, 200),
        (FUTURE, 200),
        ("nonsense", 200),
    ],
)
def test_if_range_holds_for_the_exact_version_only(film, if_range: str, status: int) -> None:
    reply = ask(film, {"Range": "bytes=10-19", "If-Range": if_range})
    assert reply.status == status
    assert reply.body == (content(10, 20) if status == 206 else content(0, SIZE))


def test_a_weak_validator_of_the_origins_is_no_reason_to_send_a_part(origin, path, url) -> None:
    origin.put(path, Resource(SIZE, etag='W/"v0"', last_modified=FUTURE))
    for condition in ('W/"v0"', FUTURE):
        reply = ask(url, {"Range": "bytes=10-19", "If-Range": condition})
        assert (reply.status, reply.body) == (200, content(0, SIZE))


def test_if_range_without_a_range_means_nothing(film) -> None:
    assert ask(film, {"If-Range": ETAG}).status == 200


# -- methods and versions -------------------------------------------------------


def without_varying(reply: Reply) -> list[tuple[str, str]]:
    varying = ("Age", "Date", "Cache-Status")
    return sorted(field for field in reply.fields if field[0] not in varying)


def test_a_head_says_what_a_get_would(url) -> None:
    got, told = ask(url), ask(url, method="HEAD")
    assert told.status == 200
    assert told.body == b""
    assert without_varying(told) == without_varying(got)


@pytest.mark.parametrize("asked", ["bytes=0-9", "bytes=5000-", "bytes=-1"])
def test_a_head_has_no_ranges(film, asked: str) -> None:
    reply = ask(film, {"Range": asked}, method="HEAD")
    assert reply.status == 200
    assert reply["Content-Length"] == str(SIZE)
    assert reply["Content-Range"] is None
    assert reply.body == b""


def test_a_head_of_what_is_missing_is_as_bodiless_as_any(proxy) -> None:
    answer = exchange(proxy.url, request_bytes("/m/nothing", method="HEAD"))
    code, _, body = split(answer)
    assert (code, body) == (404, b"")


def test_a_miss_is_one_get_and_no_head_before_it(origin, path, url) -> None:
    assert ask(url).status == 200
    assert [request.method for request in asked_of(origin, path)] == ["GET"]


def test_a_cold_head_leaves_the_get_after_it_nothing_to_ask_anew(origin, path, url) -> None:
    assert ask(url, method="HEAD")["Content-Length"] == str(SIZE)
    assert ask(url).body == content(0, SIZE)
    assert [request.method for request in asked_of(origin, path)] == ["GET"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_a_mount_takes_get_and_head_only(origin, path, url, method: str) -> None:
    reply = ask(url, method=method)
    assert (reply.status, reply["Allow"]) == (405, "GET, HEAD")
    assert asked_of(origin, path) == []


def test_every_answer_leaves_the_connection_usable(client, path) -> None:
    film = f"/m{path}"
    asked = [
        ("GET", film, {}, 200),
        ("HEAD", film, {}, 200),
        ("GET", film, {"Range": "bytes=0-9"}, 206),
        ("GET", film, {"Range": "bytes=5000-"}, 416),
        ("GET", film, {"If-None-Match": ETAG}, 304),
        ("GET", film, {"If-Match": '"x"'}, 412),
        ("GET", "/m/nothing", {}, 404),
        ("HEAD", "/m/nothing", {}, 404),
        ("GET", "/nowhere/film", {}, 404),
        ("POST", film, {}, 405),
        ("GET", "/m/%2e%2e/film", {}, 400),
        ("GET", "/-/entries", {}, 200),
        ("GET", film, {}, 200),
    ]
    sock = client.sock
    for method, target, fields, status in asked:
        client.request(method, target, headers=fields)
        assert (target, whole(client.getresponse()).status) == (target, status)
        assert client.sock is sock


def test_http_1_0_gets_a_length_and_ranges(url) -> None:
    target = urlsplit(url).path
    answer = exchange(url, request_bytes(target, "Range: bytes=10-19", version="1.0"))
    code, lines, body = split(answer)
    assert code == 206
    assert f"Content-Range: bytes 10-19/{SIZE}" in lines
    assert "Content-Length: 10" in lines
    assert body == content(10, 20)


@pytest.mark.parametrize("accepts_ranges", [True, False])
@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_a_file_of_unknown_length_is_chunked_and_whole(
    origin, path, url, framing, accepts_ranges: bool
) -> None:
    origin.put(path, Resource(SIZE, framing=framing, accepts_ranges=accepts_ranges))
    hold = origin.script(hold_after(SIZE // 2), path=path)
    with opened(url, {"Range": "bytes=9-"}) as response:  # to where, nobody knows
        assert hold.reached.wait(WAIT_S)
        assert response.status == 200
        assert response.getheader("Transfer-Encoding") == "chunked"
        assert response.getheader("Content-Length") is None
        hold.release()
        assert response.read() == content(0, SIZE)


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_a_range_that_says_where_it_ends_needs_no_length(origin, path, url, framing) -> None:
    origin.put(path, Resource(SIZE, framing=framing, accepts_ranges=False))
    hold = origin.script(hold_after(SIZE // 2), path=path)
    reply = ask(url, {"Range": "bytes=10-19"})
    assert (reply.status, reply["Content-Range"]) == (206, "bytes 10-19/*")
    assert reply.body == content(10, 20)
    beyond = in_thread(ask, url, {"Range": f"bytes={SIZE - 10}-{SIZE + 5}"})
    past_it = in_thread(ask, url, {"Range": f"bytes={SIZE}-{SIZE}"})
    hold.release()
    reply = beyond.result(WAIT_S)
    assert (reply.status, reply.body) == (206, content(SIZE - 10, SIZE))
    assert reply["Content-Range"] == f"bytes {SIZE - 10}-{SIZE - 1}/{SIZE}"
    assert past_it.result(WAIT_S).status == 416
    assert len(asked_of(origin, path)) == 1


def test_a_file_of_unknown_length_ends_http_1_0_by_closing(origin, path, url) -> None:
    origin.put(path, Resource(SIZE, framing="chunked"))
    code, lines, body = split(exchange(url, request_bytes(f"/m{path}", version="1.0")))
    assert code == 200
    assert not any(line.startswith(("Content-Length", "Transfer-Encoding")) for line in lines)
    assert body == content(0, SIZE)


# -- fields ---------------------------------------------------------------------


def test_content_carries_the_origins_fields(origin, path, url) -> None:
    fields = [("Content-Language", "de"), ("X-Film", "yes"), ("Cache-Control", "max-age=9")]
    origin.script(extra_headers(*fields), path=path)
    reply = ask(url)
    assert reply["Content-Type"] == "video/mp4"
    assert reply["ETag"] == ETAG
    assert reply["Last-Modified"] == MODIFIED
    assert reply["Accept-Ranges"] == "bytes"
    assert [(name, reply[name]) for name, _ in fields] == fields


def test_fields_about_one_connection_or_one_user_are_not_passed_on(origin, path, url) -> None:
    fields = {
        "X-Hop": "1",
        "Keep-Alive": "timeout=5",
        "Proxy-Authenticate": "Basic",
        "Upgrade": "h2c",
        "Set-Cookie": "user=a",
        "Strict-Transport-Security": "max-age=1",
    }
    hops = ("Connection", "X-Hop, keep-alive")
    origin.script(extra_headers(hops, *fields.items()), path=path)
    for _ in range(2):
        reply = ask(url)
        assert [reply[name] for name in fields] == [None] * len(fields)
        assert reply.body == content(0, SIZE)


def test_what_is_between_client_and_proxy_does_not_reach_the_origin(
    origin, path, url, proxy
) -> None:
    fields = {
        "Cookie": "user=a",
        "Referer": f"{proxy.url}page",
        "Origin": proxy.url.rstrip("/"),
        "Connection": "close, X-Hop",
        "Keep-Alive": "timeout=5",
        "Proxy-Authorization": "Basic eDp5",
        "TE": "trailers",
        "X-Hop": "1",
        "If-None-Match": '"theirs"',
        "Sec-Fetch-Site": "same-origin",
        "Icy-MetaData": "1",
        "Accept-Encoding": "gzip",
    }
    assert ask(url, fields).status == 200
    (request,) = asked_of(origin, path)
    sent = {name.lower(): value for name, value in request.headers}
    assert sent.keys() <= {
        "host", "user-agent", "accept", "accept-encoding", "range", "connection", "via",
    }  # fmt: skip
    assert sent["accept-encoding"] == "identity"


def test_what_is_between_client_and_origin_is_passed_on(origin, path, url) -> None:
    fields = {
        "Authorization": "Basic eDp5",
        "User-Agent": "player/1.0",
        "Accept": "video/*",
        "Accept-Language": "fr",
        "Referer": "http://page.test/",
        "X-Anything": "else",
        "Cache-Control": "no-transform",
    }
    assert ask(url, fields).status == 200
    (request,) = asked_of(origin, path)
    assert {name: request.header(name) for name in fields} == fields


@pytest.mark.parametrize(
    "target",
    ["/m/a%2fb", "/m/a%2Fb", "/m/%41", "/m/a+b%20c", "/m/x?a=%2f&b=%41&c", "/m/x?", "/m/a;b=1",
     "/m//x", "/m/~a(b)!$'*,:@", "/m/caf%c3%a9", "/m/x?u=http://y.test/../z"],
)  # fmt: skip
def test_the_origin_sees_the_target_as_the_client_spelled_it(origin, proxy, target: str) -> None:
    exchange(proxy.url, request_bytes(target))
    assert origin.requests[-1].target == target.removeprefix("/m")


def test_the_query_is_part_of_what_is_cached(origin, path, url) -> None:
    for query in ("?a=1", "?a=2", "?a=1", ""):
        assert ask(url + query).status == 200
    asked = [request.target for request in asked_of(origin, path)]
    assert asked == [f"{path}?a=1", f"{path}?a=2", path]


def test_bytes_coded_against_our_wish_are_served_as_what_they_are(origin, path, url) -> None:
    coded = gzip.compress(content(0, SIZE), mtime=0)
    gzipped = ("Content-Encoding", "gzip")
    origin.put(path, Resource.of(coded, headers=(gzipped,), accepts_ranges=False))
    for _ in range(2):
        reply = ask(url)
        assert reply["Content-Encoding"] == "gzip"
        assert reply.body == coded


def test_cache_status_says_how_a_request_was_answered(origin, path, url) -> None:
    origin.put(path, Resource(32 << 20))
    hold = origin.script(hold_after(1 << 20), path=path)
    near, far = {"Range": "bytes=0-99"}, {"Range": "bytes=30000000-30000099"}
    assert ask(url, near)["Cache-Status"] == "cachefsm; fwd=miss; stored"
    assert hold.reached.wait(WAIT_S)
    assert ask(url, near)["Cache-Status"] == "cachefsm; hit"
    assert ask(url, far)["Cache-Status"] == "cachefsm; fwd=partial; stored; collapsed"
    hold.release()


def test_a_client_that_joins_a_transfer_is_told_so(origin, proxy, path, url) -> None:
    hold = origin.script(hold_before_headers(), path=path)
    first = in_thread(ask, url)
    assert hold.reached.wait(WAIT_S)
    second = in_thread(ask, url)
    eventually(lambda: blocked(proxy) == 2)
    hold.release()
    assert first.result(WAIT_S)["Cache-Status"] == "cachefsm; fwd=miss; stored"
    assert second.result(WAIT_S)["Cache-Status"] == "cachefsm; fwd=miss; stored; collapsed"
