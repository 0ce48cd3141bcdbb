"""The programs that are compared, each as its users would run it for this job."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .http import timed_get
from .origin import running

__all__ = ["CONTENDERS", "DIRECT", "Contender", "Subject", "direct"]

PATIENCE_S: Final = 10.0
DIRECT: Final = "direct"


class Subject:
    """A contender at work: *url* is where it serves what the origin has.

    ``pid`` is its process, None if it has none that lasts.
    """

    def __init__(self, url: str, pid: int | None = None) -> None:
        self._url = url
        self._pid = pid
        self._closed = threading.Event()

    def file(self, number: int) -> str:
        """Return the URL of a file; each number is another one."""
        return f"{self._url}{number}/film"

    def download(self, number: int) -> float:
        """Return the seconds until all of a file is here."""
        return timed_get(self.file(number)).total_s

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Have files fetched in the background: where there is no other way, by reading them."""
        for number in numbers:
            threading.Thread(target=self._read, args=(number,), daemon=True).start()

    def _read(self, number: int) -> None:
        with suppress(ConnectionError):  # it may end before this does
            timed_get(self.file(number), on_bytes=lambda _total: self._closed.is_set())

    def close(self) -> None:
        """End what is read in the background."""
        self._closed.set()

    def cpu_s(self) -> float | None:
        """Return the CPU time used so far, its children's included; None if that is unknown."""
        if self._pid is None or not Path("/proc/self/stat").exists():
            return None
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # another process, and over
                fields = stat.read_text().rpartition(")")[2].split()
                if self._pid in (int(stat.parent.name), int(fields[1])):
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def direct(origin: str, _directory: Path) -> Iterator[Subject]:
    """A client of the origin itself: what all others are compared with."""
    yield Subject(origin)


@dataclass(frozen=True)
class Contender:
    """A program, and how to put it before an origin in an empty directory."""

    name: str
    program: str
    run: Callable[[str, Path], AbstractContextManager[Subject]]
    only_downloads: bool = False

    def is_installed(self) -> bool:
        """Say whether the program can be run here."""
        return shutil.which(self.program) is not None


class _Cachefsm(Subject):
    def __init__(self, url: str, pid: int, origin: str, directory: Path) -> None:
        super().__init__(url, pid)
        self._origin = origin
        self._directory = directory

    def prefetch(self, numbers: Sequence[int]) -> None:
        urls = [f"{self._origin}{number}/film" for number in numbers]
        command = (sys.executable, "-m", "cachefsm", "prefetch", "--quiet", *urls)
        subprocess.run([*command, "--cache-dir", str(self._directory)], check=True)


@contextmanager
def _cachefsm(origin: str, directory: Path) -> Iterator[Subject]:
    with running(
        *(sys.executable, "-m", "cachefsm", "serve", "--port", "0", "--quiet"),
        *("--cache-dir", str(directory), "--mount", f"/m={origin}"),
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        yield _Cachefsm(f"{address}m/", process.pid, origin, directory)


_NGINX = """
daemon off; user {user}; worker_processes 1; pid pid; error_log error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path temp;
  fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  proxy_cache_path cache keys_zone=c:10m max_size=4g;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      slice 1m;
      proxy_cache c; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 1h;
      proxy_cache_lock on; proxy_set_header Range $slice_range; proxy_http_version 1.1;
      proxy_pass {origin};
    }}
  }}
}}
"""


@contextmanager
def _nginx(origin: str, directory: Path) -> Iterator[Subject]:
    port = _free_port()
    configuration = directory / "nginx.conf"
    # Paths are relative to -p: nginx has no way to write one with a space in it. Its
    # worker would be "nobody" under root, who may not enter a temporary directory.
    configuration.write_text(
        _NGINX.format(port=port, origin=origin.rstrip("/"), user=getpass.getuser())
    )
    log = str(directory / "error.log")
    with running("nginx", "-e", log, "-c", str(configuration), "-p", f"{directory}/") as process:
        _wait_for(port, process)
        yield Subject(f"http://127.0.0.1:{port}/", process.pid)


@contextmanager
def _rclone(origin: str, directory: Path) -> Iterator[Subject]:
    port = _free_port()
    with running(
        *("rclone", "serve", "http", f":http,url='{origin}':", "--quiet"),
        *("--addr", f"127.0.0.1:{port}", "--cache-dir", str(directory)),
        *("--vfs-cache-mode", "full", "--config", str(directory / "none")),
    ) as process:
        _wait_for(port, process)
        yield Subject(f"http://127.0.0.1:{port}/", process.pid)


class _Aria2(Subject):
    """Downloads into a directory, over as many connections as cachefsm may use."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(url)
        self._directory = directory

    def download(self, number: int) -> float:
        started_s = time.perf_counter()
        subprocess.run(
            [
                *("aria2c", "--quiet", "--no-conf", "--file-allocation=none"),
                *("--split=6", "--max-connection-per-server=6", "--min-split-size=1M"),
                *(f"--dir={self._directory}", f"--out={number}", self.file(number)),
            ],
            check=True,
        )
        return time.perf_counter() - started_s


@contextmanager
def _aria2(origin: str, directory: Path) -> Iterator[Subject]:
    yield _Aria2(origin, directory)


def _free_port() -> int:
    # For programs that cannot tell which port they took. Another one might take it
    # first; then this run fails and says so.
    with closing(socket.create_server(("127.0.0.1", 0))) as chosen:
        port: int = chosen.getsockname()[1]
    return port


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise ChildProcessError(f"{process.args!r} ended with status {process.returncode}")
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


CONTENDERS = (
    Contender(DIRECT, sys.executable, direct),
    Contender("cachefsm", sys.executable, _cachefsm),
    Contender("nginx-slice", "nginx", _nginx),
    Contender("rclone", "rclone", _rclone),
    Contender("aria2c", "aria2c", _aria2, only_downloads=True),
)
