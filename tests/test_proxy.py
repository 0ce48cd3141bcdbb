"""The proxy while files are still arriving, and when they stop arriving.

Real sockets on both sides. Ranges and conditions are in test_proxy_http, refusals in
test_proxy_safety.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState
from cachefsm.proxy import Server
from cachefsm.retries import RetryPolicy
from tests.support.caches import HASTY, WAIT_S, OpenCache, eventually, recorded
from tests.support.clients import (
    ask,
    at_once,
    blocked,
    connect,
    exchange,
    opened,
    read_all,
    readers,
    request_bytes,
    reset,
    serve_mounted,
    split,
)
from tests.support.faults import Hold, cut_after, hold_after, hold_before_headers, status
from tests.support.origin import Exchange, Origin, Resource, content, pattern
from tests.support.threads import in_thread

MIB = 1 << 20
SIZE = 3_000_000
HALF = SIZE // 2
NEVER_S = 600.0  # a patience that a passing test must not use up


@pytest.fixture
def film(origin: Origin) -> str:
    origin.put("/film", Resource(SIZE))
    return origin.url("/film")


@pytest.fixture
def proxy(cache: Cache, origin: Origin, film: str) -> Iterator[Server]:
    with serve_mounted(cache, origin) as server:
        yield server


@pytest.fixture
def url(proxy: Server) -> str:
    return f"{proxy.url}m/film"


@pytest.fixture
def patient(open_cache: OpenCache, origin: Origin, film: str) -> Iterator[Server]:
    """A proxy whose readers wait for longer than any test."""
    cache = open_cache(first_byte_timeout=NEVER_S, stall_timeout=NEVER_S)
    with serve_mounted(cache, origin) as server:
        yield server


def ranged(start: int, stop: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{stop - 1}"}


# -- reading while downloading --------------------------------------------------


@pytest.mark.parametrize("sent", [1, HALF])
def test_a_client_is_served_what_came_while_the_rest_has_not(origin, url, sent: int) -> None:
    hold = origin.script(hold_after(sent))
    with opened(url) as response:
        assert response.read(sent) == content(0, sent)
        assert hold.reached.wait(WAIT_S)
        (request,) = origin.requests
        assert not request.finished
        hold.release()
        assert response.read() == content(sent, SIZE)
    assert request.finished


def test_clients_of_a_cold_file_share_one_transfer(origin, url) -> None:
    size = 8 * MIB
    origin.put("/film", Resource(size))
    expected = content(0, size)
    assert at_once(16, lambda _: ask(url).body == expected) == [True] * 16
    assert origin.body_bytes_sent <= 1.02 * size
    assert [request.range for request in origin.requests] == ["bytes=0-"]


def test_a_far_seek_is_fetched_at_once_and_kept(origin, url) -> None:
    size, seek, read = 256 * MIB, 192 * MIB, 2 * MIB
    origin.put("/film", Resource(size))
    hold = origin.script(hold_after(MIB))
    origin.script(hold_after(2 * read), nth=2)
    with opened(url) as playing:
        assert playing.read(MIB) == content(0, MIB)
        assert hold.reached.wait(WAIT_S)
        with opened(url, {"Range": f"bytes={seek}-"}) as seeking:
            assert seeking.status == 206
            assert seeking.getheader("Content-Range") == f"bytes {seek}-{size - 1}/{size}"
            assert seeking.read(read) == content(seek, seek + read)
        assert [request.range for request in origin.requests] == [
            "bytes=0-",
            f"bytes={seek}-{size - 1}",
        ]
        later = ask(url, ranged(seek, seek + read))
        assert later.body == content(seek, seek + read)
        assert later["Cache-Status"] == "cachefsm; hit"
        assert len(origin.requests) == 2


@pytest.mark.fault(
    "network",
    "a client does not read",
    client="its bytes when it reads again",
    kept="all that comes",
    next_reader="is not slowed by it",
)
def test_a_client_that_reads_nothing_holds_up_nobody(origin, proxy, url) -> None:
    size = 32 * MIB
    origin.put("/film", Resource(size))
    origin.put("/other", Resource(SIZE, version=7))
    with connect(proxy.url, receive_buffer_bytes=4096) as stalled:
        stalled.sendall(request_bytes("/m/film"))
        begun = stalled.recv(1)
        assert ask(url).body == content(0, size)
        assert ask(f"{proxy.url}m/other").body == pattern(7)(0, SIZE)
        code, _, body = split(begun + read_all(stalled))
    assert code == 200
    assert body == content(0, size)
    assert origin.body_bytes_sent <= 1.02 * (size + SIZE)


# -- clients that leave ---------------------------------------------------------


@pytest.mark.fault(
    "network",
    "a client leaves",
    client="nothing more",
    kept="all that has come",
    next_reader="is not touched by it",
)
@pytest.mark.parametrize("leave", [lambda sock: sock.close(), reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("sent", [None, 1000], ids=["before the head", "in the body"])
def test_a_client_that_leaves_while_it_waits_is_let_go(origin, patient, leave, sent) -> None:
    hold = origin.script(Hold(sent))
    with connect(patient.url) as client:
        client.sendall(request_bytes("/m/film"))
        assert hold.reached.wait(WAIT_S)
        received = b""
        while sent and len(split(received)[2] if received else b"") < sent:
            received += client.recv(65536)
        assert readers(patient) == 1
        leave(client)
    eventually(lambda: readers(patient) == 0)
    (request,) = origin.requests
    assert not request.finished


@pytest.mark.fault("network", "a client leaves")
def test_a_client_that_leaves_takes_nothing_from_the_others(origin, patient) -> None:
    hold = origin.script(hold_after(HALF))
    with opened(f"{patient.url}m/film") as staying:
        with opened(f"{patient.url}m/film") as leaving:
            assert leaving.read(HALF) == content(0, HALF)
        eventually(lambda: readers(patient) == 1)
        hold.release()
        assert staying.read() == content(0, SIZE)
    assert len(origin.requests) == 1


# -- failures that can still be said --------------------------------------------


@pytest.mark.fault(
    "origin",
    "it refuses for good (403, 404, 410)",
    client="that status, at once; in mid-body a cut",
    kept="what was stored before",
    next_reader=(
        "what is stored; for the rest that status, and for 404 and 410 the origin is not asked "
        "until the failure has rested"
    ),
)
@pytest.mark.parametrize("code", [404, 410])
def test_a_permanent_refusal_is_passed_on_without_asking_twice(origin, url, code: int) -> None:
    origin.script(status(code), times=None)
    for _ in range(2):
        reply = ask(url)
        assert reply.status == code
        assert reply.text == ""  # as the origin sent it
    assert len(origin.requests) == 1


@pytest.mark.fault("origin", "it refuses for good (403, 404, 410)")
def test_a_refusal_that_may_end_any_moment_is_asked_for_anew(origin, url) -> None:
    origin.script(status(403), times=2)
    assert [ask(url).status for _ in range(3)] == [403, 403, 200]


@pytest.mark.fault(
    "origin",
    "it refuses for now (429, 500, 503)",
    client=(
        "its answer, at once; where that names a Retry-After, the right bytes if it passes "
        "within the attempts"
    ),
    kept="what was stored before",
    next_reader="tries again at once, or when the origin's Retry-After is over",
)
@pytest.mark.parametrize("code", [429, 500, 503])
def test_an_answer_that_may_pass_is_passed_on(origin, url, code: int) -> None:
    origin.script(status(code), times=2)
    for asked in (1, 2):
        assert ask(url).status == code
        assert len(origin.requests) == asked
    assert ask(url).body == content(0, SIZE)


@pytest.mark.fault("origin", "it refuses for now (429, 500, 503)")
def test_an_origin_that_stays_busy_is_asked_until_patience_ends(origin, url) -> None:
    origin.script(status(503, ("Retry-After", "0")), times=None)
    assert ask(url).status == 503
    assert len(origin.requests) == HASTY.first_attempts


@pytest.mark.parametrize("fault", [Exchange.reset, Exchange.close], ids=["reset", "closed"])
def test_an_origin_that_keeps_breaking_off_is_a_502(origin, url, fault) -> None:
    origin.script(fault, times=None)
    reply = ask(url)
    assert reply.status == 502
    assert int(reply["Retry-After"]) >= 1
    assert reply["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.text.count("\n") == 1
    assert len(origin.requests) == HASTY.first_attempts


@pytest.mark.fault(
    "network",
    "the origin cannot be reached",
    client="502 with Retry-After",
    kept="what was stored before",
    next_reader="the same once the failure has rested",
)
def test_an_origin_that_cannot_be_reached_is_a_502(open_cache: OpenCache) -> None:
    with Origin() as gone:
        pass
    with serve_mounted(open_cache(), gone) as proxy:
        reply = ask(f"{proxy.url}m/film")
    assert reply.status == 502
    assert reply["Retry-After"]


@pytest.mark.fault(
    "network",
    "the origin accepts the request and says nothing",
    client="504 when its patience ends",
    kept="nothing",
    next_reader="asks again, or waits for the same answer",
)
def test_an_origin_that_says_nothing_is_a_504(origin, open_cache: OpenCache, film: str) -> None:
    origin.script(hold_before_headers())
    with serve_mounted(open_cache(first_byte_timeout=0.05), origin) as proxy:
        reply = ask(f"{proxy.url}m/film")
        assert reply.status == 504
        assert int(reply["Retry-After"]) >= 1
        assert reply.text == "the origin has not answered within 0.05 s\n"
        eventually(lambda: readers(proxy) == 0)


def test_a_cancelled_download_is_a_503(cache, url, film: str) -> None:
    cache.entry(film).cancel()
    reply = ask(url)
    assert reply.status == 503
    assert int(reply["Retry-After"]) >= 1
    assert reply.text == "a person cancelled the download\n"


@pytest.mark.fault("process", "it is told to end (SIGTERM, SIGINT, SIGHUP)")
def test_a_client_that_waits_when_the_cache_closes_is_told_503(origin, cache, url) -> None:
    hold = origin.script(hold_before_headers())
    waiting = in_thread(ask, url)
    assert hold.reached.wait(WAIT_S)
    cache.close()
    reply = waiting.result(WAIT_S)
    assert reply.status == 503
    assert int(reply["Retry-After"]) >= 1
    assert reply.text == "the cache is shutting down\n"


@pytest.mark.fault("origin", "it refuses for now (429, 500, 503)")
def test_the_origins_retry_after_is_passed_on(origin, open_cache: OpenCache, film: str) -> None:
    origin.script(status(503, ("Retry-After", "77")), times=None)
    with serve_mounted(open_cache(retries=RetryPolicy(first_attempts=1)), origin) as proxy:
        reply = ask(f"{proxy.url}m/film")
    assert (reply.status, reply["Retry-After"]) == (503, "77")


def test_an_origin_that_was_busy_for_a_moment_is_asked_again(origin, url) -> None:
    origin.script(status(503, ("Retry-After", "0")))
    assert ask(url).body == content(0, SIZE)
    assert len(origin.requests) == 2


@pytest.mark.fault("origin", "it refuses for good (403, 404, 410)")
def test_a_permanent_failure_wakes_every_waiting_client(origin, patient) -> None:
    origin.script(status(404))
    hold = origin.script(hold_before_headers())
    waiting = [in_thread(ask, f"{patient.url}m/film") for _ in range(8)]
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: blocked(patient) == 8)
    hold.release()
    replies = [client.result(WAIT_S) for client in waiting]
    assert [(reply.status, reply.text) for reply in replies] == [(404, "")] * 8
    assert len(origin.requests) == 1


@pytest.mark.fault("origin", "it refuses for good (403, 404, 410)")
def test_a_permanent_failure_in_mid_body_cuts_every_waiting_client(origin, patient) -> None:
    hold = origin.script(hold_after(HALF))
    origin.script(cut_after(HALF))
    origin.script(status(410), nth=2)
    clients = [in_thread(_cut_body, f"{patient.url}m/film") for _ in range(8)]
    eventually(lambda: blocked(patient) == 8)
    hold.release()
    assert [client.result(WAIT_S) == content(0, HALF) for client in clients] == [True] * 8
    assert ask(f"{patient.url}-/entries/1").json()["reason"] == "the origin answered 410"


def _cut_body(url: str) -> bytes:
    """Return what came of a body that was cut short; fails if it was not."""
    with opened(url) as response:
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    return caught.value.partial


# -- bodies that stop arriving --------------------------------------------------


def _leave_for_good(origin: Origin) -> None:
    origin.script(cut_after(HALF))
    origin.script(Exchange.reset, nth=2, times=None)


@pytest.mark.fault(
    "network",
    "the origin stays away in mid-body",
    client="a cut, when the attempts are used up",
    kept="what came",
    next_reader="what is stored; for the rest 502 until the failure has rested",
)
@pytest.mark.parametrize("framing", [None, "chunked"])
@pytest.mark.parametrize("accepts_ranges", [True, False])
def test_an_origin_that_does_not_come_back_leaves_a_visibly_short_body(
    origin, url, framing, accepts_ranges: bool
) -> None:
    origin.put("/film", Resource(SIZE, framing=framing, accepts_ranges=accepts_ranges))
    hold = origin.script(hold_after(HALF))
    _leave_for_good(origin)
    with opened(url) as response:
        assert response.read(HALF) == content(0, HALF)  # so that it is too late for a status
        hold.release()
        with pytest.raises(http.client.IncompleteRead):
            response.read()


@pytest.mark.fault("network", "the origin stays away in mid-body")
def test_an_http_1_0_client_sees_fewer_bytes_than_promised(origin, url) -> None:
    _leave_for_good(origin)
    code, lines, body = split(exchange(url, request_bytes("/m/film", version="1.0")))
    assert code == 200
    assert f"Content-Length: {SIZE}" in lines
    assert body == content(0, HALF)


@pytest.mark.fault("network", "the origin stays away in mid-body")
def test_an_http_1_0_client_of_an_unknown_length_sees_a_reset(origin, url) -> None:
    origin.put("/film", Resource(SIZE, framing="chunked", accepts_ranges=False))
    hold = origin.script(hold_after(HALF))
    _leave_for_good(origin)
    with connect(url) as sock:
        sock.sendall(request_bytes("/m/film", version="1.0"))
        assert sock.recv(15) == b"HTTP/1.1 200 OK"  # so that it is too late for another
        hold.release()
        with pytest.raises(ConnectionResetError):
            read_all(sock)


@pytest.mark.fault("network", "a connection falls silent, or dribbles")
def test_an_origin_that_stalls_leaves_a_visibly_short_body(
    origin, open_cache: OpenCache, film: str
) -> None:
    cache = open_cache(stall_timeout=0.05)
    origin.script(hold_after(HALF))
    with serve_mounted(cache, origin) as proxy:
        # All that comes is here before its reader grows impatient.
        assert cache.entry(film).wait_for(0, HALF, WAIT_S)
        assert _cut_body(f"{proxy.url}m/film") == content(0, HALF)


@pytest.mark.fault("network", "the connection breaks in mid-body")
def test_an_origin_that_comes_back_is_resumed_from_the_break(origin, url) -> None:
    origin.script(cut_after(HALF))
    origin.script(Exchange.reset, nth=2, times=2)
    assert ask(url).body == content(0, SIZE)
    assert [request.range for request in origin.requests] == [
        "bytes=0-",
        *[f"bytes={HALF}-{SIZE - 1}"] * 3,
    ]
    assert origin.body_bytes_sent == SIZE


def test_what_was_stored_before_a_failure_is_not_fetched_again(origin, proxy, url) -> None:
    origin.script(cut_after(HALF))
    origin.script(status(410), nth=2)
    assert _cut_body(url) == content(0, HALF)
    assert ask(f"{proxy.url}-/entries/1/retry", method="POST").status == 200
    assert ask(url).body == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE


@pytest.mark.fault("origin", "it refuses for good (403, 404, 410)")
def test_what_is_stored_is_served_while_a_failure_rests(origin, url) -> None:
    origin.script(cut_after(HALF))
    origin.script(status(410), nth=2)
    assert _cut_body(url) == content(0, HALF)
    here = ask(url, ranged(1000, HALF))
    assert (here.status, here.body) == (206, content(1000, HALF))
    assert ask(url, ranged(HALF, SIZE)).status == 410
    assert len(origin.requests) == 2


@pytest.mark.fault(
    "origin",
    "it serves another version than before",
    client="before the head is out: the new version; in mid-body: a cut",
    kept="nothing of the old version",
    next_reader="the new version, all of it",
)
def test_a_file_that_changes_in_mid_body_is_never_mixed(origin, url) -> None:
    hold = origin.script(hold_after(HALF))
    origin.script(cut_after(HALF))
    with opened(url) as response:
        assert hold.reached.wait(WAIT_S)
        origin.put("/film", Resource(SIZE, version=1))
        hold.release()
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    assert caught.value.partial == content(0, HALF)
    assert ask(url).body == pattern(1)(0, SIZE)


@pytest.mark.fault(
    "process",
    "an entry is removed while it is read",
    client="a cut",
    kept="nothing",
    next_reader="the right bytes, fetched anew",
)
def test_an_entry_removed_under_a_reader_cuts_it_and_begins_anew(origin, cache, url, film) -> None:
    hold = origin.script(hold_after(HALF))
    with opened(url) as response:
        assert response.read(HALF) == content(0, HALF)
        assert hold.reached.wait(WAIT_S)
        cache.entry(film).remove()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert ask(url).body == content(0, SIZE)


# -- a paused download ----------------------------------------------------------


def test_a_paused_entry_serves_what_is_here_and_lets_the_rest_wait(
    origin, patient, open_cache, film
) -> None:
    url = f"{patient.url}m/film"
    hold = origin.script(hold_after(HALF))
    with opened(url) as first:
        assert first.read(HALF) == content(0, HALF)
        assert hold.reached.wait(WAIT_S)
        assert ask(f"{patient.url}-/entries/1/pause", method="POST").json()["state"] == "paused"
        here = ask(url, ranged(1000, HALF))
        assert (here.status, here.body) == (206, content(1000, HALF))
        missing = in_thread(ask, url, ranged(HALF, SIZE))
        eventually(lambda: blocked(patient) == 2)
        assert not missing.done()
        assert len(origin.requests) == 1
        assert ask(f"{patient.url}-/entries/1/resume", method="POST").status == 200
        assert missing.result(WAIT_S).body == content(HALF, SIZE)
        assert first.read() == content(HALF, SIZE)


# -- restart, damage and an origin that is away -------------------------------------


def _fill(cache: Cache, origin: Origin, size: int = SIZE) -> Path:
    """Complete the film through a proxy; return its content file."""
    with serve_mounted(cache, origin) as proxy:
        assert ask(f"{proxy.url}m/film").body == content(0, size)
        assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
    return recorded(cache.directory).file


DAMAGES = pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: os.truncate(path, 0), lambda path: os.truncate(path, HALF)],
    ids=["deleted", "emptied", "truncated"],
)


@pytest.mark.fault("file", "it is gone or cut off when the cache starts")
@DAMAGES
def test_a_file_damaged_between_two_runs_is_fetched_again(
    origin, film, open_cache: OpenCache, damage: Callable[[Path], object]
) -> None:
    cache = open_cache()
    path = _fill(cache, origin)
    cache.close()
    damage(path)
    left = path.stat().st_size if path.exists() else 0
    _fill(open_cache(), origin)
    again = f"bytes={left}-{SIZE - 1}" if left else "bytes=0-"
    assert [request.range for request in origin.requests] == ["bytes=0-", again]


@pytest.mark.fault("file", "it is gone, emptied, cut off or replaced while the cache runs")
@DAMAGES
def test_a_file_damaged_under_a_running_proxy_is_never_served_as_zeros(
    origin, film, open_cache: OpenCache, damage: Callable[[Path], object]
) -> None:
    cache = open_cache()
    path = _fill(cache, origin)
    damage(path)
    with serve_mounted(cache, origin) as proxy:
        for _ in range(2):
            try:
                assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
            except http.client.IncompleteRead as cut:
                assert cut.partial == content(0, len(cut.partial))  # noqa: PT017
        assert ask(f"{proxy.url}m/film").body == content(0, SIZE)


@pytest.mark.fault("network", "the origin is away, and all of the file is here")
def test_a_complete_file_is_served_when_its_origin_is_away(open_cache: OpenCache) -> None:
    cache = open_cache()
    with Origin() as origin:
        origin.put("/film", Resource(SIZE))
        _fill(cache, origin)
        origin.leave()
        _fill(cache, origin)
        cache.close()
        cache = open_cache()
        _fill(cache, origin)
        assert cache.entry(origin.url("/film")).state is DownloadState.COMPLETE


def test_what_a_stopped_run_had_is_not_fetched_again(origin, film, open_cache: OpenCache) -> None:
    cache = open_cache()
    hold = origin.script(hold_after(HALF))
    with serve_mounted(cache, origin) as proxy:
        with opened(f"{proxy.url}m/film") as response:
            assert response.read(HALF) == content(0, HALF)
            assert hold.reached.wait(WAIT_S)
    cache.close()
    _fill(open_cache(), origin)
    assert [request.range for request in origin.requests] == [
        "bytes=0-",
        f"bytes={HALF}-{SIZE - 1}",
    ]
