"""Speaking to the server that holds a cache directory, and finding out that it has gone."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from cachefsm.backend import open_backend
from cachefsm.client import ServedCache, ServerGone
from cachefsm.dirlock import Holder
from cachefsm.errors import CacheBusy, CacheError, EntryNotFound, IllegalMove
from tests.support.faults import chunked_cut_after, cut_after, hold_after, raw, status
from tests.support.origin import Origin, Resource, content


@pytest.fixture
def server(origin: Origin) -> ServedCache:
    """Whatever *origin* is scripted to be."""
    return ServedCache(Holder(7, origin.url(), "token"))


def test_every_request_carries_the_token(origin: Origin, server: ServedCache) -> None:
    origin.script(status(200, body=b"[]"))
    assert server.entries() == []
    (request,) = origin.requests
    assert (request.method, request.target) == ("GET", "/-/entries")
    assert request.header("Authorization") == "Bearer token"


def test_refusals_come_as_the_errors_that_they_were(origin: Origin, server: ServedCache) -> None:
    move = {"error": "cannot; resume it", "event": "retry", "state": "paused"}
    move["possible"] = ["resume"]  # type: ignore[assignment]
    origin.script(status(409, body=json.dumps(move).encode()), nth=1)
    origin.script(status(404, body=b'{"error": "there is no entry 1"}'), nth=2)
    origin.script(status(401, body=b"control needs the token\n"), nth=3)
    with pytest.raises(IllegalMove) as illegal:
        server.find(1)
    assert (illegal.value.event, illegal.value.state) == ("retry", "paused")
    assert (illegal.value.possible, str(illegal.value)) == (("resume",), "cannot; resume it")
    with pytest.raises(EntryNotFound, match="there is no entry 1"):
        server.find(1)
    with pytest.raises(CacheError, match="control needs the token") as refused:
        server.find(1)
    assert refused.value.status_hint == 401


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", b"?\r\n"]
)
def test_a_broken_answer_is_a_server_that_has_gone(
    origin: Origin, server: ServedCache, answer: bytes
) -> None:
    origin.script(raw(answer))
    with pytest.raises(ServerGone, match=r"the server at http.* \(process 7\) has ended"):
        server.entries()


def test_something_else_on_the_port_is_told(origin: Origin, server: ServedCache) -> None:
    origin.script(status(200, body=b"<html>"))
    with pytest.raises(ServerGone, match="is no cachefsm"):
        server.entries()


def test_nobody_on_the_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerGone):
        ServedCache(Holder(7, f"http://127.0.0.1:{port}/")).ping()


@pytest.mark.parametrize("cut", [cut_after(1000), chunked_cut_after(1000)])
def test_a_stream_that_is_cut_does_not_look_like_its_end(
    origin: Origin, server: ServedCache, cut: object
) -> None:
    origin.put("/-/entries/1/content", Resource(5000))
    origin.script(cut)  # type: ignore[type-var]
    with server.open(1) as stream:
        read = b""
        while len(read) < 1000:
            read += stream.read(300)
        assert read == content(0, 1000)
        with pytest.raises(ServerGone, match="after 1000 bytes"):
            stream.read(300)
    with server.open(1) as stream:
        assert b"".join(iter(lambda: stream.read(300), b"")) == content(0, 5000)


def test_a_stream_gives_bytes_as_they_arrive(origin: Origin, server: ServedCache) -> None:
    origin.put("/-/entries/1/content", Resource(5000))
    hold = origin.script(hold_after(1000))
    with server.open(1) as stream:
        assert stream.read(1 << 20) == content(0, 1000)
        hold.release()
        assert stream.read(1 << 20) == content(1000, 5000)


def test_what_the_reader_does_wrong_is_not_the_servers_fault(
    origin: Origin, server: ServedCache
) -> None:
    origin.put("/-/entries/1/content", Resource(5000))

    def read_one() -> None:
        with server.open(1) as stream:
            stream.read(1)
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        read_one()


def test_a_directory_in_other_hands_is_waited_for_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefsm.backend.PATIENCE_S", 0.0)
    from cachefsm import Cache

    with Cache(tmp_path, start=False), pytest.raises(CacheBusy, match="in use by process"):
        with open_backend(tmp_path):
            raise AssertionError("opened what is in use")
    with open_backend(tmp_path) as backend:
        assert backend.entries() == []
