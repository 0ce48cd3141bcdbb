"""The tests' origin as a process of its own, with directories that can be listed.

``python -m benchmarks.origin`` serves one generated file at every path. Some
contenders look for a file in its directory before they open it, so a path that ends
in a slash is a page of links: the root's name directories, each of which has one
file, ``film``. That of directory 0 is a small one, to have something asked for first,
and so are the last ones, of which nothing is left to fetch once they have been read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Final
from urllib.parse import urlsplit

from tests.support.messages import Resource
from tests.support.origin import StandaloneOrigin, main

__all__ = ["NAMES", "SMALL", "RunningOrigin", "run_origin", "running"]

NAMES: Final = 64
"""How many directories there are: more than a measurement needs files."""

SMALL: Final = range(40, NAMES)
"""Those of the directories whose file has 64 KiB."""

_SMALL_PATHS: Final = frozenset(f"/{number}/film" for number in SMALL)

_HTML: Final = "text/html; charset=utf-8"


class ListedOrigin(StandaloneOrigin):
    """Every path is the one file, but for those that end in a slash, and the first."""

    def find(self, path: str) -> Resource | None:
        if path == "/0/film":
            return Resource(1024)
        if path in _SMALL_PATHS:
            return Resource(65536)
        if not path.endswith("/"):
            return super().find(path)
        names = [f"{number}/" for number in range(NAMES)] if path == "/" else ["film"]
        links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
        return Resource.of(f"<pre>{links}</pre>".encode(), content_type=_HTML)


class RunningOrigin:
    """An origin process as its observer knows it, over one connection that stays."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._control = HTTPConnection(urlsplit(url).netloc)
        self.stats()

    def stats(self) -> dict[str, int]:
        """Return its counters: requests, body_bytes_sent, peak_connections; not ours."""
        self._control.request("GET", "/-/stats")
        counters: dict[str, int] = json.load(self._control.getresponse())
        return {**counters, "peak_connections": counters["peak_connections"] - 1}

    def body_bytes_sent(self) -> int:
        """Return how many body bytes it has sent."""
        return self.stats()["body_bytes_sent"]

    def close(self) -> None:
        """Look no more."""
        self._control.close()


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run *command* with its stdout in a pipe, and end it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)


@contextmanager
def run_origin(*options: str) -> Iterator[RunningOrigin]:
    """Run an origin with the *options* of ``python -m tests.support.origin``."""
    with running(sys.executable, "-m", "benchmarks.origin", *options) as process:
        assert process.stdout is not None
        with closing(RunningOrigin(process.stdout.readline().strip())) as origin:
            yield origin


if __name__ == "__main__":
    main(ListedOrigin)
