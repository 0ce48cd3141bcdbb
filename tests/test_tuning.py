"""``limits`` and ``explain``, asked of a server and of an idle cache, and their routes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefsm import Cache
from cachefsm.buckets import RateLimits
from cachefsm.cli import main
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, OpenCache, eventually, fetch
from tests.support.clients import ask, serve_mounted
from tests.support.commands import Outcome
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource
from tests.support.threads import in_thread

MIB = 1 << 20
Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the directory that *open_cache* uses."""

    def command(name: str, *arguments: str | int) -> Outcome:
        try:
            words = [name, "--cache-dir", str(tmp_path / "cache"), *map(str, arguments)]
            ended = main(words)
        except SystemExit as end:
            ended = int(end.code or 0)
        stdout, stderr = capfd.readouterr()
        return Outcome(ended, stdout.encode(), stderr)

    return command


@pytest.fixture
def cache(open_cache: OpenCache) -> Cache:
    """A cache that fetches what is read, at once, and nothing else."""
    return open_cache(fill="requested", read_ahead=0)


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/film", Resource(4 * MIB))
    with serve_mounted(cache, origin) as server:
        yield server


# -- limits ------------------------------------------------------------------------


def test_limits_are_shown_and_changed_while_the_server_runs(
    run: Run, cache: Cache, proxy: Server
) -> None:
    assert run("limits", "--json").json() == {"rate": 0, "rate_per_host": 0, "background_rate": 0}
    assert run("limits").text.count("no limit") == 3
    changed = run("limits", "--limit-rate", "5M", "--limit-background-rate", "1.5K")
    assert "5 MiB/s  from all origins together" in changed.text
    assert cache.rate_limits() == RateLimits(5 * MIB, 0, 1536)
    assert run("limits", "--limit-rate", 0, "--json").json()["rate"] == 0
    assert cache.rate_limits() == RateLimits(0, 0, 1536)


def test_without_a_server_there_are_no_limits_to_change(run: Run, open_cache: OpenCache) -> None:
    for _ in range(2):  # no cache, then an idle one
        said = run("limits", "--limit-rate", "5M").failed_in_one_line()
        assert "no server runs in " in said
        open_cache().close()


@pytest.mark.parametrize(
    ("body", "status", "limits"),
    [
        ({"rate": 1000}, 200, RateLimits(1000, 0, 0)),
        ({"rate_per_host": "1K", "background_rate": "2K"}, 200, RateLimits(0, 1024, 2048)),
        ({}, 200, RateLimits()),
        ({"rate": -1}, 400, RateLimits()),
        ({"rate": "fast"}, 400, RateLimits()),
        ({"rate": True}, 400, RateLimits()),
        ({"rate": None}, 400, RateLimits()),
        ({"rate": 1.5}, 400, RateLimits()),
        ({"rate": 1000, "speed": 1}, 400, RateLimits()),
    ],
)
def test_a_request_changes_what_it_names_or_nothing(
    cache: Cache, proxy: Server, body: dict[str, object], status: int, limits: RateLimits
) -> None:
    reply = ask(f"{proxy.url}-/limits", method="POST", body=json.dumps(body).encode())
    assert reply.status == status
    assert cache.rate_limits() == limits
    assert ("error" in reply.json()) == (status == 400)


def test_another_site_s_page_changes_no_limit(cache: Cache, proxy: Server) -> None:
    body = json.dumps({"rate": 1}).encode()
    fields = {"Origin": "http://evil.test"}
    assert ask(f"{proxy.url}-/limits", fields, method="POST", body=body).status == 403
    assert cache.rate_limits() == RateLimits()


# -- explain -----------------------------------------------------------------------


def test_a_byte_is_explained_by_command_and_by_route(
    run: Run, cache: Cache, proxy: Server, origin: Origin
) -> None:
    film = cache.entry(origin.url("/film"))
    hold = origin.script(hold_after(MIB))
    reading = in_thread(fetch, cache, film, 0, 2 * MIB)
    here = [(MIB, True)]
    assert hold.reached.wait(WAIT_S)
    eventually(lambda: [(r["position"], r["waits"]) for r in film.explain(MIB)["readers"]] == here)
    said = run("explain", film.id, "1M").text.splitlines()
    assert said[0].startswith(f"byte {MIB}: coming (a stream is on its way to it")
    assert " is 0 B before it, at " in said[1]
    assert "  wanted: blocked, which waits" in said
    assert f"  a reader at {MIB}: it waits" in said
    assert run("explain", origin.url("/film"), 10).text.startswith("byte 10: here (it is stored)")
    found = run("explain", film.id, 3 * MIB, "--json").json()
    told = ask(f"{proxy.url}-/entries/{film.id}/explain?offset={3 * MIB}").json()
    assert {**found, "readers": []} == {**told, "readers": []}
    assert (found["status"], found["why"]) == ("unwanted", "nobody wants it")
    hold.release()
    reading.result(WAIT_S)


def test_an_idle_cache_explains_too(run: Run, open_cache: OpenCache, origin: Origin) -> None:
    origin.put("/film", Resource(MIB))
    cache = open_cache()
    fetch(cache, cache.entry(origin.url("/film")), 0, 1000)
    cache.close()
    assert run("explain", 1, 0).text == "byte 0: here (it is stored)\n"
    assert "byte 1048576: past end (the file has 1048576 bytes)" in run("explain", 1, "1M").text
    run("explain", 2, 0).failed_in_one_line()


@pytest.mark.parametrize(
    ("query", "status"),
    [("?offset=0", 200), ("", 400), ("?offset=-1", 400), ("?offset=x", 400)],
)
def test_the_route_wants_to_know_which_byte(
    cache: Cache, proxy: Server, origin: Origin, query: str, status: int
) -> None:
    film = cache.entry(origin.url("/film"))
    assert ask(f"{proxy.url}-/entries/{film.id}/explain{query}").status == status


def test_a_failure_tells_when_it_may_be_tried_again(
    run: Run, cache: Cache, proxy: Server, origin: Origin
) -> None:
    gone = cache.entry(origin.url("/gone"))
    assert ask(f"{proxy.url}m/gone").status == 404
    said = run("explain", gone.id, 0).text
    assert said.startswith("byte 0: failed (the origin answered 404)")
    assert "a new reader may try it again in " in said
