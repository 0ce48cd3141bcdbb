"""Requests that are not the cache's business, passed on as they are by mounts that do so."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from cachefsm import Cache
from cachefsm.access import Rules, parse_mount
from cachefsm.origin import OriginOptions
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, OpenCache, eventually
from tests.support.clients import (
    ask,
    connect,
    exchange,
    opened,
    read_all,
    request_bytes,
    reset,
    split,
)
from tests.support.faults import (
    chunked_cut_after,
    cut_after,
    early_hints,
    hold_after,
    hold_before_headers,
    raw,
    redirect,
    status,
)
from tests.support.messages import Answer, Request
from tests.support.origin import Exchange, Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 100_000
SECRET = "sesame"


@pytest.fixture
def cache(open_cache: OpenCache) -> Cache:
    """One that fetches nothing by itself."""
    return open_cache(fill="requested")


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    mount = replace(parse_mount(f"/m={origin.url('/base/')}"), rules=Rules(passes=True))
    with cache.serve(mounts=[mount, f"/plain={origin.url('/base/')}"]) as running:
        yield running


@pytest.fixture
def url(proxy: Server) -> str:
    return f"{proxy.url}m/film"


def film(control: str = "max-age=60") -> Resource:
    return Resource(SIZE, headers=(("Cache-Control", control),))


# -- what reaches the origin ---------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "M-SEARCH", "x"])
def test_a_request_is_passed_on_as_it_is(origin, proxy, url, method: str) -> None:
    origin.script(status(200, body=b"done"))
    fields = {"Content-Type": "text/x", "X-Anything": "else", "If-Match": '"v0"', "Range": "x=1"}
    target = "/a%2fb/../film?q=%41".replace("../", "")
    reply = ask(f"{proxy.url}m{target}", fields, method=method, body=b"a body")
    assert (reply.status, reply.body) == (200, b"done")
    (request,) = origin.requests
    assert (request.method, request.target) == (method, f"/base{target}")
    assert request.body == b"a body"
    assert {name: request.header(name) for name in fields} == fields
    assert request.header("Content-Length") == "6"


def test_a_body_without_a_length_is_passed_on_without_one(origin, proxy) -> None:
    origin.script(status(200))
    chunks = "Transfer-Encoding: chunked"
    head = request_bytes("/m/film", chunks, method="POST")
    answer = exchange(proxy.url, head + b"3\r\na b\r\n4;x=y\r\nody \r\n0\r\n\r\n")
    assert split(answer)[0] == 200
    (request,) = origin.requests
    assert request.body == b"a body "
    assert request.header("Content-Length") is None


@pytest.mark.parametrize("method", ["DELETE", "POST", "OPTIONS"])
def test_no_body_is_passed_on_as_none(origin, proxy, method: str) -> None:
    origin.script(status(204))
    assert split(exchange(proxy.url, request_bytes("/m/film", method=method)))[0] == 204
    (request,) = origin.requests
    assert request.body == b""
    assert request.header("Transfer-Encoding") is None


def test_an_empty_body_keeps_its_length(origin, proxy) -> None:
    origin.script(status(204))
    exchange(proxy.url, request_bytes("/m/film", "Content-Length: 0", method="PUT"))
    assert origin.requests[0].header("Content-Length") == "0"


def test_nothing_is_said_that_the_client_did_not_say(origin, proxy) -> None:
    origin.script(status(204))
    exchange(proxy.url, request_bytes("/m/film", method="DELETE"))
    (request,) = origin.requests
    names = {name.lower() for name, _ in request.headers}
    assert names <= {"host", "via", "connection"}


def test_the_origin_is_told_who_passed_it_on(origin, cache: Cache, url) -> None:
    origin.script(status(204), times=None)
    ask(url, method="POST")
    ask(url, {"Via": "1.0 fred"}, method="POST")
    via = [request.header("Via") for request in origin.requests]
    assert via == [cache.via, f"1.0 fred, {cache.via}"]


def test_what_is_for_one_hop_goes_no_further(origin, proxy, url) -> None:
    origin.script(status(204))
    fields = {
        "Connection": "close, X-Hop",
        "X-Hop": "1",
        "Keep-Alive": "timeout=5",
        "Proxy-Authorization": "Basic eDp5",
        "TE": "trailers",
        "Upgrade": "h2c",
        "Origin": proxy.url.rstrip("/"),
        "Referer": f"{proxy.url}page",
    }
    ask(url, fields, method="POST", body=b"x")
    (request,) = origin.requests
    assert [request.header(name) for name in fields if name != "Connection"] == [None] * 7
    assert request.header("Connection") in (None, "keep-alive")
    assert request.header("Host") == f"{origin.host}:{origin.port}"


def test_cookies_and_credentials_are_passed_on(origin, url) -> None:
    origin.script(status(204))
    fields = {"Cookie": "a=1; b=2", "Authorization": "Basic eDp5"}
    ask(url, fields, method="POST")
    assert {name: origin.requests[0].header(name) for name in fields} == fields


class Listener:
    """An origin of raw bytes: one connection, read as far as a test says."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(WAIT_S)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"

    def accept(self) -> socket.socket:
        connection, _ = self.socket.accept()
        connection.settimeout(WAIT_S)
        return connection


def received(connection: socket.socket, size: int) -> bytes:
    """Return what comes until *size* bytes of a body are there."""
    data = b""
    while len(data.partition(b"\r\n\r\n")[2]) < size:
        piece = connection.recv(65536)
        assert piece
        data += piece
    return data


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]], ids=["plain", "expects"])
def test_an_upload_is_passed_on_as_it_comes(cache: Cache, expect: list[str]) -> None:
    listener = Listener()
    mount = replace(parse_mount(f"/m={listener.url}"), rules=Rules(passes=True))
    with closing(listener.socket), cache.serve(mounts=[mount]) as proxy:
        with connect(proxy.url) as client:
            half = content(0, 500_000)
            lines = [f"Content-Length: {2 * len(half)}", *expect]
            client.sendall(request_bytes("/m/film", *lines, method="PUT"))
            if expect:
                assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(half)
            with listener.accept() as connection:
                assert received(connection, len(half)).endswith(half)
                client.sendall(half)
                body = b""
                while len(body) < len(half):
                    body += connection.recv(65536)
                assert body == half
                connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok")
                code, _, told = split(read_all(client))
            assert (code, told) == (201, b"ok")


@pytest.mark.parametrize("body", [b"4\r\nhalf\r\nx\r\n", b"4\r\nhalf!\r\n0\r\n\r\n", b"-1\r\n"])
def test_an_upload_in_doubtful_chunks_is_the_clients_fault(
    origin, proxy, caplog, body: bytes
) -> None:
    head = request_bytes("/m/film", "Transfer-Encoding: chunked", method="PUT")
    answer = exchange(proxy.url, head + body)
    assert split(answer)[0] == 400
    assert origin.requests == []  # none that was whole
    assert "Traceback" not in caplog.text


def test_a_client_that_leaves_in_mid_upload_ends_the_transfer(cache: Cache) -> None:
    listener = Listener()
    mount = replace(parse_mount(f"/m={listener.url}"), rules=Rules(passes=True))
    with closing(listener.socket), cache.serve(mounts=[mount]) as proxy:
        client = connect(proxy.url)
        client.sendall(request_bytes("/m/film", "Content-Length: 1000", method="PUT") + b"half")
        with listener.accept() as connection:
            received(connection, 4)
            reset(client)
            assert connection.recv(100) == b""


# -- what comes back -----------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 201, 202, 204, 205, 207, 300, 303, 304, 400, 401, 403, 404,
                                  409, 412, 418, 422, 423, 500, 501, 503, 599])  # fmt: skip
def test_any_answer_comes_back_as_it_is(origin, url, code: int) -> None:
    body = b"" if code in (204, 304) else b"because"
    fields = [("Content-Type", "text/x-why"), ("X-Why", "so"), ("Age", "3"), ("ETag", '"v9"')]
    origin.script(status(code, *fields, body=body))
    reply = ask(url, method="POST")
    assert (reply.status, reply.body) == (code, body)
    assert [(name, reply[name]) for name, _ in fields] == fields
    assert reply["Cache-Status"] == f"cachefsm; fwd=method; fwd-status={code}"


def test_several_cookies_stay_apart(origin, url) -> None:
    cookies = [("Set-Cookie", "a=1; Expires=Wed, 09 Jun 2027 10:18:14 GMT"), ("Set-Cookie", "b=2")]
    origin.script(status(204, *cookies))
    reply = ask(url, method="POST")
    assert [field for field in reply.fields if field[0] == "Set-Cookie"] == cookies


def test_what_the_origin_says_of_its_connection_stays_there(origin, cache: Cache, url) -> None:
    fields = [("Connection", "X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5")]
    origin.script(status(204, *fields, ("Via", "1.0 fred")))
    reply = ask(url, method="POST")
    assert [reply["X-Hop"], reply["Keep-Alive"]] == [None, None]
    assert [value for name, value in reply.fields if name == "Via"] == ["1.0 fred", cache.via]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_body_comes_back_as_it_arrives(origin, url, framing: str) -> None:
    origin.put("/base/film", Resource(SIZE, framing=framing))
    origin.script(lambda exchange: exchange.answer.become(_got(origin)))
    hold = origin.script(hold_after(SIZE // 2))
    with opened(url, method="POST") as response:
        assert hold.reached.wait(WAIT_S)
        told = response.getheader("Content-Length")
        assert told == (str(SIZE) if framing == "length" else None)
        assert response.read(SIZE // 2) == content(0, SIZE // 2)
        hold.release()
        assert response.read() == content(SIZE // 2, SIZE)


def _got(origin: Origin) -> Answer:
    """Return what the origin would answer to a GET."""
    resource = origin.find("/base/film")
    assert resource is not None
    return resource.answer(Request("GET", "/base/film", "HTTP/1.1", (), b"", 0, origin.changed))


@pytest.mark.parametrize("fault", [cut_after(500), chunked_cut_after(500)], ids=["cut", "chunked"])
def test_a_body_that_breaks_off_is_a_visible_cut(origin, url, fault) -> None:
    origin.script(status(200, body=content(0, 1000)))
    origin.script(fault)
    with opened(url, method="POST") as response:
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    assert caught.value.partial == content(0, 500)


def test_early_hints_are_not_the_answer(origin, url) -> None:
    origin.script(status(201, body=b"done"))
    origin.script(early_hints(("Link", "</a>; rel=preload")))
    reply = ask(url, method="POST")
    assert (reply.status, reply.body, reply["Link"]) == (201, b"done", None)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_an_answer_whose_framing_is_faulty_is_a_502(origin, url, answer: bytes) -> None:
    origin.script(raw(answer))
    assert ask(url, method="POST").status == 502


def test_a_folded_field_starts_no_other_line(origin, proxy) -> None:
    origin.script(raw(b"HTTP/1.1 204 No\r\nX-A: 1\r\n X-B: 2\r\nX-C: 3\r\n\r\n"))
    code, lines, _ = split(exchange(proxy.url, request_bytes("/m/film", method="POST")))
    assert (code, "X-C: 3" in lines) == (204, True)
    assert not any(line.startswith((" ", "X-B")) for line in lines)


def test_nothing_is_asked_twice(origin, url) -> None:
    origin.script(Exchange.close, times=None)
    assert ask(url, method="POST", body=b"x").status == 502
    assert len(origin.requests) == 1


def test_an_origin_that_is_silent_is_a_504(origin, open_cache: OpenCache) -> None:
    cache = open_cache("patient", origin=OriginOptions(read_timeout_s=0.05))
    mount = replace(parse_mount(f"/m={origin.url()}"), rules=Rules(passes=True))
    with cache.serve(mounts=[mount]) as proxy:
        origin.script(hold_before_headers())
        assert ask(f"{proxy.url}m/film", method="POST").status == 504


def test_a_client_that_leaves_ends_the_wait(origin, proxy) -> None:
    hold = origin.script(hold_before_headers())
    client = connect(proxy.url)
    client.sendall(request_bytes("/m/film", method="POST"))
    assert hold.reached.wait(WAIT_S)
    reset(client)
    origin.wait_until(lambda: origin.requests[0].ended)


@pytest.mark.parametrize("lines", [["Content-Length: 9"], ["Transfer-Encoding: chunked"], []])
def test_a_client_that_leaves_is_not_called_the_origins_fault(origin, proxy, lines) -> None:
    origin.script(hold_before_headers())
    with connect(proxy.url) as client:
        client.sendall(request_bytes("/m/film", *lines, method="PUT") + b"5\r\nhal" * bool(lines))
        client.shutdown(socket.SHUT_WR)  # so that it can be told what it is taken for
        code, _, line = split(read_all(client))
    assert (code, line) == (503, b"the client has left\n")


def test_a_cache_that_closes_ends_the_wait(origin, cache: Cache, proxy, url) -> None:
    hold = origin.script(hold_before_headers())
    waiting = in_thread(ask, url, method="POST")
    assert hold.reached.wait(WAIT_S)
    proxy.close()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        waiting.result(WAIT_S)


def test_a_redirect_is_handed_on_and_leads_here(origin, proxy, url) -> None:
    origin.script(redirect("/base/there?a=1#b", 303), times=None)
    reply = ask(url, method="POST")
    assert (reply.status, reply["Location"]) == (303, "/m/there?a=1#b")
    assert len(origin.requests) == 1


# -- methods ---------------------------------------------------------------------------


def test_a_get_is_the_caches_business(origin, url) -> None:
    origin.put("/base/film", film())
    assert ask(url).body == ask(url).body == content(0, SIZE)
    assert ask(url, method="HEAD")["Content-Length"] == str(SIZE)
    assert [request.method for request in origin.requests] == ["GET"]


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_what_no_mount_passes_is_refused(origin, proxy, method: str) -> None:
    answer = exchange(proxy.url, request_bytes("/m/film", method=method))
    assert split(answer)[0] in (405, 501)
    assert origin.requests == []


def test_what_a_refusal_says_is_allowed_is_passed(origin, url) -> None:
    refused = ask(url, method="TRACE")
    assert refused.text == "TRACE is never passed on\n"
    allowed = str(refused["Allow"]).split(", ")
    assert allowed[:2] == ["GET", "HEAD"]
    assert {"OPTIONS", "POST", "PUT", "PATCH", "DELETE"} == set(allowed[2:])
    for method in allowed[2:]:
        ask(url, method=method)
    assert [request.method for request in origin.requests] == allowed[2:]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_a_mount_that_does_not_pass_methods_refuses_them(origin, proxy, method: str) -> None:
    reply = ask(f"{proxy.url}plain/film", method=method, body=b"x")
    assert (reply.status, reply["Allow"]) == (405, "GET, HEAD")
    assert origin.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_another_sites_page_may_not_drive_it(origin, url, method, fields: dict[str, str]) -> None:
    assert ask(url, fields, method=method).status == 403
    assert origin.requests == []


# -- hops ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_request_that_comes_round_is_ended(cache: Cache, open_cache, method: str) -> None:
    other = open_cache("other")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    here = replace(parse_mount(f"/m=http://127.0.0.1:{port}/m/"), rules=Rules(passes=True))
    with other.serve(mounts=[here]) as second:
        there = replace(parse_mount(f"/m={second.url}m/"), rules=Rules(passes=True))
        with cache.serve(port=port, mounts=[there]) as first:
            assert ask(f"{first.url}m/film", method=method).status == 508


@pytest.mark.parametrize(("hops", "passed"), [("3", "2"), ("1", "0"), ("x", "x")])
def test_a_question_for_options_is_passed_on_so_many_times(
    origin, url, hops: str, passed: str
) -> None:
    origin.script(status(204, ("Allow", "GET")))
    assert ask(url, {"Max-Forwards": hops}, method="OPTIONS")["Allow"] == "GET"
    assert origin.requests[0].header("Max-Forwards") == passed


def test_a_question_for_options_may_end_here(origin, url) -> None:
    reply = ask(url, {"Max-Forwards": "0"}, method="OPTIONS")
    assert (reply.status, reply.body) == (204, b"")
    assert reply["Allow"] == ask(url, method="TRACE")["Allow"]
    assert origin.requests == []


# -- what is outdated --------------------------------------------------------------------


def stored(origin: Origin, proxy: Server, *paths: str) -> None:
    for path in paths:
        origin.put(f"/base/{path}", film())
        ask(f"{proxy.url}m/{path}")


def is_fresh(origin: Origin, proxy: Server, path: str) -> bool:
    """Say whether what was stored once is served without having been fetched since."""
    assert ask(f"{proxy.url}m/{path}").status == 200
    asked = [(request.method, request.path) for request in origin.requests]
    return asked.count(("GET", f"/base/{path}")) == 1


@pytest.mark.parametrize(
    ("method", "code", "outdated"),
    [
        ("POST", 200, True),
        ("PUT", 204, True),
        ("DELETE", 200, True),
        ("PATCH", 303, True),
        ("FROB", 200, True),
        ("POST", 400, False),
        ("PUT", 412, False),
        ("DELETE", 500, False),
        ("OPTIONS", 200, False),
    ],
)
def test_a_success_outdates_what_is_stored(origin, proxy, method, code, outdated: bool) -> None:
    stored(origin, proxy, "film", "song")
    origin.script(status(code, ("Location", "/elsewhere")))
    ask(f"{proxy.url}m/film", method=method)
    assert is_fresh(origin, proxy, "film") is not outdated
    assert is_fresh(origin, proxy, "song")


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("place", "outdated"),
    [("song", True), ("/base/song", True), ("{origin}/base/song", True), ("//evil.test/base/song",
     False), ("http://[", False)],
)  # fmt: skip
def test_what_a_success_names_is_outdated_too(
    origin, proxy, name: str, place: str, outdated: bool
) -> None:
    stored(origin, proxy, "film", "song")
    origin.script(status(201, (name, place.format(origin=origin.url("")))))
    ask(f"{proxy.url}m/film", method="POST")
    assert not is_fresh(origin, proxy, "film")
    assert is_fresh(origin, proxy, "song") is not outdated


def test_what_another_origin_has_is_not_outdated(cache: Cache, origin, proxy) -> None:
    with Origin() as other:
        other.put("/song", film())
        with cache.serve(mounts=[f"/o={other.url()}"]) as second:
            ask(f"{second.url}o/song")
            origin.script(status(201, ("Location", other.url("/song"))))
            ask(f"{proxy.url}m/film", method="POST")
            assert ask(f"{second.url}o/song")["Cache-Status"] == "cachefsm; hit"


def test_those_who_read_what_is_outdated_are_never_given_a_mixture(origin, proxy, url) -> None:
    origin.put("/base/film", film())
    hold = origin.script(hold_after(SIZE // 2), when=lambda request: request.method == "GET")
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        origin.script(status(204), when=lambda request: request.method == "PUT")
        ask(url, method="PUT", body=b"new")
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    assert caught.value.partial == content(0, len(caught.value.partial))


def test_what_was_changed_elsewhere_is_fetched_anew(origin, url) -> None:
    origin.put("/base/film", film())
    assert ask(url).body == content(0, SIZE)
    origin.script(status(204), when=lambda request: request.method == "PUT")
    ask(url, method="PUT", body=b"new")
    origin.put("/base/film", replace(film(), version=1))
    assert ask(url)["ETag"] == '"v1"'


# -- what nobody is told -------------------------------------------------------------------


def test_secrets_of_a_relayed_request_stay_secret(origin, proxy, caplog) -> None:
    caplog.set_level("DEBUG")
    origin.script(status(500, body=b"no"))
    fields = {"Authorization": f"Bearer {SECRET}", "Cookie": f"a={SECRET}"}
    url = f"{proxy.url}m/film?token={SECRET}"
    for _ in range(2):
        ask(url, fields, method="POST", body=SECRET.encode())
        origin.script(Exchange.close)
    seen = caplog.text + ask(f"{proxy.url}-/entries").text + ask(f"{proxy.url}-/metrics").text
    assert SECRET not in seen


def test_a_kept_connection_outlives_a_relayed_request(origin, proxy) -> None:
    origin.script(status(200, body=b"done"), times=None)
    parts = urlsplit(proxy.url)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)) as kept:
        kept.connect()
        sock = kept.sock
        for method in ("POST", "OPTIONS", "PUT", "DELETE"):
            kept.request(method, "/m/film", body=b"x" if method != "OPTIONS" else None)
            assert kept.getresponse().read() == b"done"
            assert kept.sock is sock
    eventually(lambda: origin.open_connections == 0)
