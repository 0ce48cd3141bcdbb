"""The numbers for Prometheus: in its format, right, and without a word of what is watched."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cachefsm import Cache, __version__
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, OpenCache, eventually
from tests.support.clients import ask, exchange, opened, request_bytes, serve_mounted
from tests.support.faults import hold_after
from tests.support.origin import Origin, Resource

SIZE = 300_000
HALF = SIZE // 2

# Source: the grammar of the text format, for what is written here.
_COMMENT = re.compile(r"# (HELP|TYPE) (cachefsm_[a-z_]+) (\S.*)")
_SAMPLE = re.compile(r'(cachefsm_[a-z_]+)(\{[a-z]+="[^"\\\n]*"\})? ([0-9]+)')


def samples(proxy: Server) -> dict[str, int]:
    """Return every sample by name and labels; fail where the format is broken."""
    reply = ask(f"{proxy.url}-/metrics")
    assert reply["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.text.endswith("\n")
    kinds: dict[str, str] = {}
    found = {}
    for line in reply.text.splitlines():
        if comment := _COMMENT.fullmatch(line):
            if comment[1] == "TYPE":
                assert comment[2] not in kinds
                kinds[comment[2]] = comment[3]
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        assert kinds[sample[1]] == ("counter" if sample[1].endswith("_total") else "gauge")
        assert f"{sample[1]}{sample[2] or ''}" not in found
        found[f"{sample[1]}{sample[2] or ''}"] = int(sample[3])
    return found


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin) as server:
        yield server


def test_an_empty_cache_has_all_its_numbers(proxy: Server) -> None:
    found = samples(proxy)
    assert found[f'cachefsm_build_info{{version="{__version__}"}}'] == 1
    states = ("not_started", "initializing", "downloading", "paused", "complete", "failed")
    assert [found[f'cachefsm_entries{{state="{state}"}}'] for state in states] == [0] * 6
    for name in ("stored_bytes", "pinned_bytes", "streams", "readers"):
        assert found[f"cachefsm_{name}"] == 0
    assert found["cachefsm_origin_received_bytes_total"] == 0
    assert found["cachefsm_disk_free_bytes"] > 0
    assert "cachefsm_max_bytes" not in found


def test_a_limit_is_told(open_cache: OpenCache) -> None:
    with open_cache(max_size="1M").serve() as proxy:
        assert samples(proxy)["cachefsm_max_bytes"] == 1 << 20


def test_bytes_are_counted_as_they_come_and_go(cache: Cache, proxy: Server, origin: Origin) -> None:
    hold = origin.script(hold_after(HALF))
    with opened(f"{proxy.url}m/film") as response:
        response.read(HALF)
        found = samples(proxy)
        assert found["cachefsm_origin_received_bytes_total"] == HALF
        assert (found["cachefsm_streams"], found["cachefsm_readers"]) == (1, 1)
        assert found['cachefsm_entries{state="downloading"}'] == 1
        hold.release()
        response.read()
    assert cache.find(1).wait_complete(WAIT_S)
    ask(f"{proxy.url}m/film", {"Range": "bytes=10-19"})
    eventually(lambda: samples(proxy).get('cachefsm_responses_total{status="206"}') == 1)
    found = samples(proxy)
    assert found["cachefsm_origin_received_bytes_total"] == SIZE  # the second answer was a hit
    assert found["cachefsm_client_sent_bytes_total"] >= SIZE + 10
    assert (found["cachefsm_stored_bytes"], found["cachefsm_readers"]) == (SIZE, 0)
    assert found['cachefsm_entries{state="complete"}'] == 1


def test_refusals_are_counted_too(proxy: Server) -> None:
    ask(f"{proxy.url}nothing/here")
    exchange(proxy.url, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    exchange(proxy.url, request_bytes("/-/health", method="HEAD"))
    names = [f'cachefsm_responses_total{{status="{status}"}}' for status in (200, 400, 404)]
    eventually(lambda: all(samples(proxy).get(name, 0) >= 1 for name in names))


def test_no_origin_is_named(cache: Cache, proxy: Server, origin: Origin) -> None:
    cache.entry("http://me:secret@example.test/film?sig=secret")
    ask(f"{proxy.url}m/film")
    text = ask(f"{proxy.url}-/metrics").text
    for word in ("example", "film", "secret", str(origin.port), "127.0.0.1"):
        assert word not in text


def test_the_numbers_need_the_token_where_control_does(cache: Cache) -> None:
    with cache.serve(token="sesame", require_token=True) as server:
        assert ask(f"{server.url}-/metrics").status == 401
        assert ask(f"{server.url}-/metrics", {"Authorization": "Bearer sesame"}).status == 200
