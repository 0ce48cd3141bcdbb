"""Server-sent events: what a browser's ``EventSource`` gets, and that nobody is kept for it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from cachefsm import Cache
from cachefsm.proxy import Server, create_app
from tests.support.caches import eventually
from tests.support.clients import ask, connect, exchange, opened, request_bytes, split
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource

SIZE = 1_000_000
HALF = SIZE // 2


@pytest.fixture
def url(origin: Origin) -> str:
    """Where SIZE bytes are served, to whom has the signature."""
    origin.put("/film", Resource(SIZE))
    return origin.url("/film?sig=secret")


@pytest.fixture
def proxy(cache: Cache) -> Iterator[Server]:
    with cache.serve() as server:
        yield server


@dataclass(frozen=True)
class Told:
    """One event as it came."""

    name: str
    data: dict[str, Any]


def events(response: http.client.HTTPResponse) -> Iterator[Told]:
    """Yield the events of a stream, as its standard has them read."""
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if line == b"\n":
            if "data" in fields:
                yield Told(fields["event"], json.loads(fields["data"]))
            fields = {}
        fields[name] = value


def test_a_download_is_told_move_by_move(cache: Cache, proxy: Server, url: str) -> None:
    with opened(f"{proxy.url}-/events") as response:
        assert response.getheader("Content-Type") == "text/event-stream"
        assert response.getheader("Cache-Control") == "no-store"
        assert response.readline().startswith(b"retry: ")  # at once: it is listened to
        film = cache.entry(url)
        film.start()
        moves = []
        for told in events(response):
            if told.name == "transition":
                moves.append(told.data)
                if told.data["event"] == "finish":
                    break
    assert [(move["event"], move["source"], move["state"]) for move in moves] == [
        ("initialize", "not_started", "initializing"),
        ("begin", "initializing", "downloading"),
        ("finish", "downloading", "complete"),
    ]
    for move in moves:
        assert (move["id"], move["url"], move["reason"]) == (film.id, film.url, None)


def test_progress_is_told_with_the_names_that_entries_have(
    cache: Cache, proxy: Server, origin: Origin, url: str
) -> None:
    hold = origin.script(hold_after(HALF))
    with opened(f"{proxy.url}-/events") as response:
        response.readline()
        film = cache.entry(url)
        film.start()
        for told in events(response):
            if told.name == "progress" and told.data["downloaded_bytes"] == HALF:
                break
    facts = film.describe()
    names = ("id", "url", "downloaded_bytes", "total_size")
    assert {name: told.data[name] for name in names} == {name: facts[name] for name in names}
    assert told.data.keys() == {*names, "rate_bytes_s"}
    hold.release()


def _listeners() -> list[str]:
    """Return the threads that serve clients."""
    return [t.name for t in threading.enumerate() if t.name.startswith("cachefsm-client-")]


def test_a_client_that_leaves_is_forgotten_at_once(proxy: Server) -> None:
    with closing(connect(proxy.url)) as sock:
        sock.sendall(request_bytes("/-/events"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert len(_listeners()) == 1
    # Sooner than the heartbeat, which would find out too.
    eventually(lambda: _listeners() == [])


def test_the_end_of_the_cache_is_the_end_of_the_stream(cache: Cache, proxy: Server) -> None:
    with opened(f"{proxy.url}-/events") as response:
        response.readline()
        cache.close()
        # A proper end, after which a browser comes back.
        assert list(islice(response, 10)) == [b"\n"]


def test_the_server_ends_whoever_listens(cache: Cache) -> None:
    server = cache.serve()
    with opened(f"{server.url}-/events") as response:
        response.readline()
        server.close()
        assert _listeners() == []


def test_a_server_without_a_watch_finds_out_by_writing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefsm.eventstream.HEARTBEAT_S", 0.0)
    environ = {"PATH_INFO": "/-/events", "HTTP_HOST": "localhost", "wsgi.errors": io.StringIO()}
    setup_testing_defaults(environ)
    with closing(create_app(cache)) as app:
        body: Any = app(environ, lambda *_: lambda _: None)
        pieces = iter(body)
        assert next(pieces).startswith(b"retry: ")
        assert [next(pieces), next(pieces)] == [b":\n\n", b":\n\n"]
        body.close()
        assert list(pieces) == []


def test_a_head_ends(proxy: Server) -> None:
    code, lines, body = split(exchange(proxy.url, request_bytes("/-/events", method="HEAD")))
    assert (code, body) == (200, b"")
    assert "Content-Type: text/event-stream" in lines


def test_listening_needs_the_token_where_control_does(cache: Cache) -> None:
    with cache.serve(token="sesame", require_token=True) as server:
        assert ask(f"{server.url}-/events").status == 401
        bearer = {"Authorization": "Bearer sesame"}
        with opened(f"{server.url}-/events", bearer) as response:
            assert response.status == 200
