"""Few descriptors, which is what the system lets a process have of files and sockets."""

from __future__ import annotations

import resource
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from cachefsm import Cache
from cachefsm.origin import IDLE_MOST
from tests.support.caches import WAIT_S, eventually
from tests.support.clients import ask, connect, read_all, split
from tests.support.commands import CommandLine
from tests.support.origin import Origin, Resource

SIZE = 100_000


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@contextmanager
def soft_limit(count: int) -> Iterator[None]:
    """Let the processes that are started in the block begin with so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_takes_all_the_descriptors_that_it_may_have(cli: CommandLine) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= 256:
        pytest.skip("a process may not have more than 256 descriptors here")
    with soft_limit(256), cli.serving() as server:
        soft, _ = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    assert soft > 256


def test_with_few_descriptors_some_are_turned_away_and_the_others_served(
    cli: CommandLine, origin: Origin, tmp_path: Path
) -> None:
    origin.put("/film", Resource(SIZE))
    few = tmp_path / "few"
    few.write_text(f'#!/bin/sh\nulimit -n 48 && exec {shlex.quote(sys.executable)} "$@"\n')
    few.chmod(0o755)
    cli.python = few
    with cli.serving("--mount", f"/m={origin.url()}") as server, ExitStack() as stack:
        assert ask(f"{server.address}m/film").status == 200
        request = b"GET /m/film HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        host = server.address.split("/")[2].encode()
        socks = [stack.enter_context(closing(connect(server.address))) for _ in range(60)]
        for sock in socks[::-1]:
            sock.sendall(request.replace(b"Host: x", b"Host: " + host))
        statuses = Counter(split(read_all(sock))[0] for sock in socks)
        assert set(statuses) == {200, 503}
        eventually(lambda: ask(f"{server.address}m/film").status == 200)


def test_connections_to_very_many_origins_are_not_all_kept(cache: Cache) -> None:
    with ExitStack() as stack:
        origins = [stack.enter_context(Origin()) for _ in range(IDLE_MOST + 8)]
        for origin in origins:
            origin.put("/film", Resource(1000))
            assert cache.entry(origin.url("/film")).wait_complete(WAIT_S)
        eventually(lambda: sum(origin.open_connections for origin in origins) <= IDLE_MOST)
        # Those that were used last are.
        last = origins[-1]
        last.put("/song", Resource(1000))
        assert cache.entry(last.url("/song")).wait_complete(WAIT_S)
        assert last.peak_connections == 1
