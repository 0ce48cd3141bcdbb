"""The proxy inside other programs: `Cache.serve`, and the application under any WSGI server."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref import simple_server, validate

import pytest

from cachefsm import Cache
from cachefsm.proxy import create_app
from tests.support.caches import WAIT_S, OpenCache, eventually
from tests.support.clients import ask, at_once, connect, opened, request_bytes, serve_mounted
from tests.support.faults import Hold, cut_after, hold_after
from tests.support.origin import Exchange, Origin, Resource, content

MIB = 1 << 20
SIZE = 3_000_000
HALF = SIZE // 2
NEVER_S = 600.0


@pytest.fixture
def film(origin: Origin) -> str:
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


# -- Cache.serve --------------------------------------------------------------------


def test_a_player_gets_the_url_that_it_was_given(cache, film: str) -> None:
    with cache.serve() as server:
        assert ask(server.url_for(film)).body == content(0, SIZE)


def test_the_port_is_one_that_was_free(cache, open_cache: OpenCache) -> None:
    with cache.serve() as one, open_cache("other").serve(port=0) as two:
        assert one.url != two.url
        assert one.url.startswith("http://127.0.0.1:")
        for server in (one, two):
            assert ask(f"{server.url}-/health").status == 200


def test_a_mounted_url_goes_through_its_mount(cache, origin, film: str) -> None:
    with serve_mounted(cache, origin) as server:
        assert server.url_for(film) == f"{server.url}m/film"
        assert server.url_for(f"{film}?a=%2f") == f"{server.url}m/film?a=%2f"
        named = f"{server.url}http/{origin.host}:{origin.port}/film"
        assert ask(named).status == 403


def test_a_url_outside_of_every_mount_is_allowed_by_asking_for_it(cache, origin, film) -> None:
    with serve_mounted(cache, origin, "/elsewhere/") as server:
        named = f"{server.url}http/{origin.host}:{origin.port}/film"
        assert ask(named).status == 403
        assert server.url_for(film) == named
        assert ask(named).body == content(0, SIZE)


def test_the_url_for_a_player_keeps_the_query(cache, origin, film: str) -> None:
    with cache.serve() as server:
        assert ask(server.url_for(f"{film}?token=%2f&x")).status == 200
    assert [request.target for request in origin.requests] == ["/film?token=%2f&x"]


@pytest.mark.parametrize("base", ["/", "/elsewhere/"])
def test_a_url_with_credentials_plays_and_shows_none(cache, origin, film: str, base) -> None:
    url = film.replace("http://", "http://user:sesame@")
    with serve_mounted(cache, origin, base) as server:
        given = server.url_for(url)
        assert "sesame" not in given
        assert ask(given).body == content(0, SIZE)
    # "user:sesame", as Basic has it.
    assert origin.requests[0].header("Authorization") == "Basic dXNlcjpzZXNhbWU="


def test_the_entry_and_the_proxy_share_one_download(cache, origin, film: str) -> None:
    hold = origin.script(hold_after(HALF))
    entry = cache.entry(film)
    with cache.serve() as server, opened(server.url_for(film)) as response, entry.open() as file:
        assert response.read(HALF) == content(0, HALF)
        assert file.read(HALF) == content(0, HALF)
        hold.release()
        assert response.read() == content(HALF, SIZE)
        assert file.read() == content(HALF, SIZE)
    assert len(origin.requests) == 1


def test_a_closed_server_answers_nobody_and_leaves_the_cache_usable(cache, film: str) -> None:
    with cache.serve() as server:
        url = server.url_for(film)
        assert ask(url).status == 200
    with pytest.raises(ConnectionRefusedError):
        ask(url)
    assert cache.entry(film).wait_complete(WAIT_S)
    with cache.serve() as again:
        assert ask(again.url_for(film)).body == content(0, SIZE)


def test_two_servers_share_one_cache(cache, origin, film: str) -> None:
    with cache.serve() as one, cache.serve() as two:
        assert ask(one.url_for(film)).body == content(0, SIZE)
        assert ask(two.url_for(film)).body == content(0, SIZE)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("cache_first", [True, False])
def test_server_and_cache_may_be_closed_in_any_order_under_a_client(
    cache, origin, film: str, cache_first: bool
) -> None:
    hold = origin.script(hold_after(HALF))
    server = cache.serve()
    with opened(server.url_for(film)) as response:
        assert response.read(HALF) == content(0, HALF)
        assert hold.reached.wait(WAIT_S)
        for ending in (cache, server) if cache_first else (server, cache):
            ending.close()
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()
    server.close()


# -- any WSGI server ------------------------------------------------------------------


class _Threaded(ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True


class _Quiet(simple_server.WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def under_wsgiref(app: Any) -> Iterator[str]:
    """Serve *app* with the standard library's server; yield its URL."""
    with simple_server.make_server("127.0.0.1", 0, app, _Threaded, _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(WAIT_S)


@pytest.fixture
def wsgiref(cache: Cache, origin: Origin, film: str) -> Iterator[str]:
    app = create_app(cache, mounts=[f"/m={origin.url()}"])
    with closing(app), under_wsgiref(validate.validator(app)) as url:
        yield url


def test_the_application_keeps_the_rules_of_wsgi(wsgiref: str) -> None:
    """The validator stands between the two and raises where PEP 3333 is broken."""
    url = f"{wsgiref}m/film"
    assert ask(url, {"Range": "bytes=10-19"}).body == content(10, 20)
    assert ask(url).body == content(0, SIZE)
    told = ask(url, method="HEAD")
    assert (told["Content-Length"], told.body) == (str(SIZE), b"")
    assert ask(url, {"If-None-Match": '"v0"'}).status == 304
    assert ask(url, {"Range": f"bytes={SIZE}-"}).status == 416
    assert ask(f"{wsgiref}nothing/x").status == 404
    assert ask(f"{wsgiref}-/entries").json()[0]["downloaded_bytes"] == SIZE
    assert ask(f"{wsgiref}-/entries/1/pin", method="POST", body=b"{}").json()["pinned"] is True


def test_another_server_streams_while_the_file_arrives(origin, wsgiref: str) -> None:
    hold = origin.script(hold_after(HALF))
    with opened(f"{wsgiref}m/film") as response:
        assert response.read(HALF) == content(0, HALF)
        assert hold.reached.wait(WAIT_S)
        hold.release()
        assert response.read() == content(HALF, SIZE)


def test_under_another_server_a_short_body_is_visibly_short(origin, wsgiref, capfd) -> None:
    origin.script(cut_after(HALF))
    origin.script(Exchange.reset, nth=2, times=None)
    with opened(f"{wsgiref}m/film") as response:
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    assert caught.value.partial == content(0, HALF)


def test_a_path_that_only_the_decoded_environ_knows_is_encoded_again(origin, wsgiref) -> None:
    origin.put("/caf%C3%A9%20x", Resource(SIZE))
    assert ask(f"{wsgiref}m/caf%c3%a9%20x").body == content(0, SIZE)
    assert ask(f"{wsgiref}m/%2e%2e/film").status == 400
    assert ask(f"{wsgiref}m/film?a=%2f").status == 200
    assert origin.requests[-1].target == "/film?a=%2f"


# -- gunicorn -------------------------------------------------------------------------

_APP = """
from cachefsm import Cache
from cachefsm.proxy import create_app

def make(directory, origin):
    # Called in the worker, where the cache's threads have to start.
    cache = Cache(directory, first_byte_timeout={patience}, stall_timeout={patience})
    return create_app(cache, mounts=["/m=" + origin])
"""


@pytest.fixture
def gunicorn(origin: Origin, film: str, tmp_path: Path) -> Iterator[str]:
    """The application under gunicorn's thread worker, as a deployment has it."""
    if find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    (tmp_path / "served.py").write_text(_APP.format(patience=NEVER_S))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            *(sys.executable, "-m", "gunicorn", "-k", "gthread", "-w", "1", "--threads", "24"),
            *("--bind", f"fd://{listener.fileno()}", "--graceful-timeout", "1"),
            *("--chdir", str(tmp_path), f"served:make('cache', '{origin.url()}')"),
        ]
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with subprocess.Popen(
            command,
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                # The socket listens already: whoever asks now waits until it is served.
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
            finally:
                process.terminate()
                process.wait(WAIT_S)


def test_gunicorn_serves_players(origin, gunicorn: str) -> None:
    url = f"{gunicorn}m/film"
    assert at_once(16, lambda _: ask(url).body == content(0, SIZE)) == [True] * 16
    assert origin.body_bytes_sent == SIZE
    part = ask(url, {"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, content(10, 20))
    assert part["Cache-Status"] == "cachefsm; hit"
    assert ask(f"{url}?a=%2f%41").status == 200
    assert origin.requests[-1].target == "/film?a=%2f%41"


def test_gunicorn_cuts_what_cannot_be_finished(origin, gunicorn: str) -> None:
    hold = origin.script(hold_after(HALF))
    with opened(f"{gunicorn}m/film") as response:
        assert response.read(HALF) == content(0, HALF)
        assert hold.reached.wait(WAIT_S)
        assert ask(f"{gunicorn}-/entries/1", method="DELETE").status == 204
        with pytest.raises(http.client.IncompleteRead):
            response.read()


@pytest.mark.parametrize("sent", [None, 1000], ids=["before the head", "in the body"])
def test_gunicorns_clients_are_let_go_when_they_leave(origin, gunicorn: str, sent) -> None:
    hold = origin.script(Hold(sent))
    with connect(gunicorn) as client:
        client.sendall(request_bytes("/m/film"))
        assert hold.reached.wait(WAIT_S)
    eventually(lambda: ask(f"{gunicorn}-/entries/1").json()["readers"] == 0)
    assert not origin.requests[0].finished
