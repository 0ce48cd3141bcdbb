"""The proxies that are compared, each as its users would run it for this job."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTENDERS", "Contender", "run_origin"]


@dataclass(frozen=True)
class Contender:
    """A program, and how to put it before an origin in an empty directory."""

    name: str
    program: str
    run: Callable[[str, Path], AbstractContextManager[str]]

    def is_installed(self) -> bool:
        """Say whether the program can be run here."""
        return shutil.which(self.program) is not None


@contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def run_origin(*options: str) -> Iterator[str]:
    """Run the tests' origin as a process of its own; give its URL."""
    with _process(sys.executable, "-m", "tests.support.origin", *options) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def _cachefsm(origin: str, directory: Path) -> Iterator[str]:
    with _process(
        *(sys.executable, "-m", "cachefsm", "serve", "--port", "0", "--quiet"),
        *("--cache-dir", str(directory), "--mount", f"/m={origin}"),
    ) as process:
        assert process.stdout is not None
        yield f"{process.stdout.readline().split()[-1]}m/"


_NGINX = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nodelay on;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  proxy_cache_path {directory}/cache keys_zone=c:10m max_size=4g;
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
def _nginx(origin: str, directory: Path) -> Iterator[str]:
    # nginx can't tell which port it took, so one is chosen for it; another program
    # might take it first, and then this run fails and says so.
    with closing(socket.create_server(("127.0.0.1", 0))) as chosen:
        port = chosen.getsockname()[1]
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(directory=directory, port=port, origin=origin.rstrip("/"))
    )
    with _process("nginx", "-c", str(configuration), "-p", str(directory)):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def _rclone(origin: str, directory: Path) -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as chosen:
        port = chosen.getsockname()[1]
    with _process(
        *("rclone", "serve", "http", f":http,url='{origin}':", "--quiet"),
        *("--addr", f"127.0.0.1:{port}", "--cache-dir", str(directory)),
        *("--vfs-cache-mode", "full", "--config", str(directory / "none")),
    ):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/"


def _wait_for(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            subprocess.run(["sleep", "0.02"], check=True)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


CONTENDERS = (
    Contender("cachefsm", sys.executable, _cachefsm),
    Contender("nginx slice", "nginx", _nginx),
    Contender("rclone", "rclone", _rclone),
)
