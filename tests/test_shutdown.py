"""The end, whatever is under way: soon, in order, and with no thread left.

What is bounded here is waiting, generously; how soon is soon is not measured.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache
from cachefsm.errors import CacheClosed, CacheError
from cachefsm.retries import RetryPolicy
from tests.support.blackhole import black_hole
from tests.support.caches import (
    HASTY,
    WAIT_S,
    OpenCache,
    eventually,
    fetch,
    live_threads,
    recorded,
    rows,
)
from tests.support.clients import connect, request_bytes, serve_mounted
from tests.support.commands import CommandLine, Running
from tests.support.disks import file_size_limit
from tests.support.entries import OneEntry
from tests.support.faults import cut_after, hold_after, hold_before_headers
from tests.support.origin import Origin, Resource, content
from tests.support.threads import in_thread

MIB = 1 << 20
SIZE = 8 * MIB
MANY = 100
LONG_S = 600.0  # a patience that a passing test must not use up

Waits = list[Future[Any]]


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An origin of films, one at every path that the scenes ask for."""
    with Origin() as running:
        for number in range(MANY):
            running.put(f"/{number}", Resource(SIZE))
        yield running


@pytest.fixture
def hole() -> Iterator[str]:
    with black_hole() as url:
        yield url


# -- what may be under way ---------------------------------------------------------

# Each brings a cache into its situation and returns who waits there.


def _nothing(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    return []


def _silence(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """The origin has accepted the request and says nothing."""
    hold = origin.script(hold_before_headers())
    film = cache.entry(origin.url("/0"))
    waits = [in_thread(fetch, cache, film), in_thread(film.wait_playable)]
    assert hold.reached.wait(WAIT_S)
    return waits


def _stall(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """The body has stopped coming; some bytes of it are not recorded yet."""
    hold = origin.script(hold_after(1000))
    film = cache.entry(origin.url("/0"))
    waits = [
        in_thread(fetch, cache, film),
        in_thread(film.wait_for, 0, 2000),
        in_thread(film.wait_complete),
    ]
    assert hold.reached.wait(WAIT_S)
    assert film.wait_for(0, 1000, WAIT_S)
    return waits


def _connecting(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """The connection to the origin is not being made."""
    film = cache.entry(f"{hole}film")
    waits = [in_thread(fetch, cache, film)]
    eventually(lambda: film.state == "initializing")
    return waits


def _back_off(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """The next attempt is a long time off."""
    origin.script(cut_after(1000), times=None)
    film = cache.entry(origin.url("/0"))
    waits = [in_thread(fetch, cache, film)]
    eventually(lambda: bool(rows(cache.directory, _BACKING_OFF)))
    return waits


_BACKING_OFF = "SELECT 1 FROM cache_download_queue WHERE attempts > 0"


def _held(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """A person has paused what a reader waits for."""
    hold = origin.script(hold_after(1000))
    film = cache.entry(origin.url("/0"))
    film.start()
    assert hold.reached.wait(WAIT_S)
    film.pause()
    return [in_thread(fetch, cache, film)]


def _full_queue(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """Far more is wanted than there are connections."""
    origin.script(hold_after(1000), times=None)
    films = [cache.entry(origin.url(f"/{number}")) for number in range(MANY)]
    for film in films:
        film.start("prefetch")
    origin.wait_for_requests(4)
    return [in_thread(film.wait_complete) for film in films[:10]]


def _straight(cache: Cache, origin: Origin, hole: str, stack: ExitStack) -> Waits:
    """Nothing can be stored; a reader gets its bytes from a stalled origin itself."""
    stack.enter_context(file_size_limit(MIB))
    film = cache.entry(origin.url("/0"))
    hold = origin.script(hold_after(1000), nth=2)
    waits = [in_thread(fetch, cache, film)]
    assert hold.reached.wait(WAIT_S)
    return waits


_SCENES = [_nothing, _silence, _stall, _connecting, _back_off, _held, _full_queue, _straight]
_scenes = pytest.mark.parametrize("scene", _SCENES, ids=lambda scene: scene.__name__.strip("_"))
Scene = Callable[[Cache, Origin, str, ExitStack], Waits]


def _patient(open_cache: OpenCache) -> Cache:
    """Open a cache whose readers and back-offs wait for longer than any test."""
    long = RetryPolicy(base_s=LONG_S / 2, cap_s=LONG_S / 2, dice=lambda: 1.0)
    return open_cache(
        first_byte_timeout=LONG_S, stall_timeout=LONG_S, retries=long, scrub_rate="1M"
    )


# -- a cache -----------------------------------------------------------------------


@pytest.mark.fault(
    "process",
    "the cache is closed while somebody waits",
    client="is told at once",
    kept="everything that had come",
    next_reader="downloads go on when it is opened again",
)
@_scenes
def test_closing_a_cache_tells_whoever_waits_and_leaves_no_thread(
    open_cache: OpenCache,
    origin: Origin,
    hole: str,
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = _patient(open_cache)
    with ExitStack() as stack:
        waits = scene(cache, origin, hole, stack)
        in_thread(cache.close).result(WAIT_S)
        for waiting in waits:
            with pytest.raises(CacheError) as caught:
                waiting.result(WAIT_S)
            assert scene is _straight or isinstance(caught.value, CacheClosed)
    assert live_threads() == []
    assert "cannot be interrupted" not in caplog.text
    origin.wait_until(lambda: origin.open_connections == 0)
    assert _states(cache.directory) <= {"not_started", "paused"}


def _states(directory: Path) -> set[str]:
    return {state for (state,) in rows(directory, "SELECT state FROM cache_entries")}


@pytest.mark.fault("process", "the cache is closed while somebody waits")
def test_closing_records_what_no_flush_has_recorded_yet(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = _patient(open_cache)
    with ExitStack() as stack:
        waits = _stall(cache, origin, "", stack)
        cache.close()
        for waiting in waits:
            assert isinstance(waiting.exception(WAIT_S), CacheClosed)
    found = recorded(cache.directory)
    assert (found.state, found.reason) == ("paused", "shutdown")
    assert found.stored() == [(0, content(0, 1000))]


def test_closing_from_several_threads_is_closing_once(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = _patient(open_cache)
    with ExitStack() as stack:
        waits = _stall(cache, origin, "", stack)
        for closing in [in_thread(cache.close) for _ in range(4)]:
            closing.result(WAIT_S)
        for waiting in waits:
            assert isinstance(waiting.exception(WAIT_S), CacheClosed)
    assert live_threads() == []


def test_a_listener_that_does_not_return_holds_up_nobody(
    open_cache: OpenCache, origin: Origin
) -> None:
    cache = _patient(open_cache)
    called, release = threading.Event(), threading.Event()

    def listen(_transition: object) -> None:
        called.set()
        release.wait(WAIT_S * 2)

    cache.subscribe(listen)
    cache.entry(origin.url("/0")).start()
    assert called.wait(WAIT_S)
    in_thread(cache.close).result(WAIT_S)
    release.set()
    assert live_threads() == []


def test_who_begins_to_read_while_the_entry_closes_is_cut_off(tmp_path: Path) -> None:
    with closing(OneEntry(tmp_path)) as one:
        cut_off: list[str] = []
        one.entry.cancel_on_close(lambda: cut_off.append("before"))
        leave = one.entry.cancel_on_close(lambda: cut_off.append("gone"))
        leave()
        one.entry.close(CacheClosed("the cache is shutting down"))
        assert cut_off == ["before"]
        one.entry.cancel_on_close(lambda: cut_off.append("after"))
        assert cut_off == ["before", "after"]


@pytest.mark.parametrize("thread", ["conductor", "flusher", "scrubber"])
def test_a_cache_that_cannot_start_a_thread_lets_its_directory_go(
    tmp_path: Path, open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == f"cachefsm-{thread}":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CacheError, match="can't start new thread"):
            Cache(tmp_path / "cache")
        assert live_threads() == []
    assert open_cache().describe_all() == []


# -- a proxy in the same process ---------------------------------------------------


@pytest.mark.fault("process", "it is told to end (SIGTERM, SIGINT, SIGHUP)")
@pytest.mark.parametrize("order", ["server first", "cache first"])
@pytest.mark.parametrize("scene", ["silence", "stall", "connecting", "straight", "slow client"])
def test_closing_a_proxy_lets_every_client_go_and_leaves_no_thread(
    open_cache: OpenCache, origin: Origin, hole: str, scene: str, order: str
) -> None:
    cache = _patient(open_cache)
    proxy = serve_mounted(cache, origin)
    path = "m/0"
    with ExitStack() as stack:
        if scene == "connecting":
            path = proxy.url_for(f"{hole}film").removeprefix(proxy.url)
        elif scene == "straight":
            stack.enter_context(file_size_limit(MIB))
            hold = origin.script(hold_after(1000), nth=2)
        elif scene == "silence":
            hold = origin.script(hold_before_headers())
        elif scene == "stall":
            hold = origin.script(hold_after(1000))
        client = stack.enter_context(connect(proxy.url, receive_buffer_bytes=4096))
        client.sendall(request_bytes(f"/{path}"))
        if scene == "connecting":
            eventually(lambda: "initializing" in _states(cache.directory))
        elif scene == "slow client":
            assert cache.entry(origin.url("/0")).wait_complete(WAIT_S)
        else:
            _read_until(client, hold.reached)
        first, second = (proxy, cache) if order == "server first" else (cache, proxy)
        in_thread(first.close).result(WAIT_S)
        in_thread(second.close).result(WAIT_S)
        assert live_threads() == []
        client.settimeout(WAIT_S)
        try:
            while client.recv(65536):
                pass  # what was underway; then the end, not silence
        except ConnectionResetError:
            pass


def _read_until(client: socket.socket, event: threading.Event) -> None:
    """Take what comes until *event*, so that nothing waits for this client."""
    client.settimeout(0.05)
    silent = 0
    while not event.is_set():
        try:
            client.recv(65536)
        except TimeoutError as error:
            silent += 1
            if silent * 0.05 > WAIT_S:
                raise TimeoutError("the scene was not reached") from error


# -- the program -------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def _busy(cli: CommandLine, origin: Origin, hole: str, server: Running, stack: ExitStack) -> None:
    """Have clients wait in every way there is, and much more in the queue."""
    silent = origin.script(hold_before_headers(), path="/0")
    # Nor does any other come to its end, so that the queue stays as long as it is.
    stalled = origin.script(hold_after(1000), when=lambda asked: asked.path != "/0", times=None)
    for path in ("m/0", "m/1", "h/film"):
        client = stack.enter_context(connect(server.address))
        client.sendall(request_bytes(f"/{path}"))
    assert silent.reached.wait(WAIT_S)
    assert stalled.reached.wait(WAIT_S)
    urls = [origin.url(f"/{number}") for number in range(2, 30)]
    assert cli.run("prefetch", *urls).status == 0
    eventually(lambda: bool(rows(cli.cache_dir, _RECORDED)))
    eventually(lambda: bool(rows(cli.cache_dir, _CONNECTING, f"{hole}film")))


_RECORDED = "SELECT 1 FROM cache_entries WHERE bytes_present = 1000"
_CONNECTING = "SELECT 1 FROM cache_entries WHERE state = 'initializing' AND url = ?"


@pytest.mark.fault(
    "process",
    "it is told to end (SIGTERM, SIGINT, SIGHUP)",
    client="503 if the head is not out; else a cut",
    kept="everything that had come",
    next_reader="what is stored; downloads go on by themselves",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_busy_server_in_order(
    cli: CommandLine, origin: Origin, hole: str, number: signal.Signals
) -> None:
    mounts = ["--mount", f"/m={origin.url()}", "--mount", f"/h={hole}"]
    with cli.serving(*mounts) as server, ExitStack() as stack:
        _busy(cli, origin, hole, server, stack)
        ended = server.end(number)
    assert ended.status == 0, ended
    assert f"{number.name}: closing" in ended.stderr
    for sign in ("Traceback", "cannot be interrupted", "still"):
        assert sign not in ended.stderr
    assert _states(cli.cache_dir) <= {"not_started", "paused", "complete"}
    assert (cli.cache_dir / "lock").read_bytes().strip() == b""
    origin.wait_until(lambda: origin.open_connections == 0)


def test_a_second_signal_changes_nothing(cli: CommandLine, origin: Origin, hole: str) -> None:
    mounts = ["--mount", f"/m={origin.url()}", "--mount", f"/h={hole}"]
    with cli.serving(*mounts) as server, ExitStack() as stack:
        _busy(cli, origin, hole, server, stack)
        for _ in range(3):
            server.send(signal.SIGTERM)
        ended = server.end(signal.SIGINT)
    assert ended.status == 0, ended
    assert "Traceback" not in ended.stderr
    assert (cli.cache_dir / "lock").read_bytes().strip() == b""


@pytest.mark.fault("process", "it is told to end (SIGTERM, SIGINT, SIGHUP)")
def test_what_a_signal_broke_off_goes_on_with_the_next_start(
    cli: CommandLine, origin: Origin, open_cache: OpenCache
) -> None:
    hold = origin.script(hold_after(1000))
    with cli.serving("--mount", f"/m={origin.url()}") as server:
        with connect(server.address) as client:
            client.sendall(request_bytes("/m/0"))
            assert hold.reached.wait(WAIT_S)
            server.end(signal.SIGTERM)
    cache = open_cache(retries=HASTY)
    film = cache.entry(origin.url("/0"))
    eventually(lambda: film.state == "complete")
    assert fetch(cache, film) == content(0, SIZE)
