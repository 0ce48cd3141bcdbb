"""The command line as people run it: a process of its own, with pipes to read from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["CommandLine", "Outcome", "Running"]

ROOT = Path(__file__).parents[2]
WAIT_S = 15.0  # bounds a failing test; nothing that passes comes near it


@dataclass(frozen=True)
class Outcome:
    """How a command ended; the streams as bytes, for what ``-o -`` writes."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()

    def json(self) -> Any:
        return json.loads(self.stdout)

    def failed_in_one_line(self, status: int = 1) -> str:
        """Return what it said, having failed as commands should."""
        assert self.status == status, self
        assert self.stderr.startswith("cachefsm"), self
        assert self.stderr.endswith("\n"), self
        assert self.stderr.count("\n") == 1, self
        return self.stderr


class Running:
    """A command that has not ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.address = ""  # a server's
        # Whatever a test waits for in vain, it does not wait for ever; but for more than one thing.
        self._guard = threading.Timer(3 * WAIT_S, process.kill)
        self._guard.daemon = True
        self._guard.start()

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def line(self) -> str:
        """Return the next line of stdout, as soon as it is there."""
        return self.stdout.readline().decode().rstrip("\n")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> Outcome:
        """Return how it ended; stdout is what nobody has read yet."""
        assert self.process.stderr is not None
        # Small enough for the pipe, so the two can be read one after the other.
        stdout = b"" if self.stdout.closed else self.stdout.read()
        stderr = self.process.stderr.read().decode()
        status = self.process.wait()
        self._guard.cancel()
        self.stdout.close()
        self.process.stderr.close()
        return Outcome(status, stdout, stderr)

    def end(self, number: signal.Signals) -> Outcome:
        self.send(number)
        return self.wait()


class CommandLine:
    """Runs ``python -m cachefsm`` on one cache directory, away from the tester's own."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.home = home
        self.cache_dir = home / "cache"
        self.python: str | Path = sys.executable
        unwanted = ("CACHEFSM_", "PYTHONUNBUFFERED")  # the latter hides a forgotten flush
        mine = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        self.environ = {
            **mine,
            "HOME": str(home),
            "XDG_CACHE_HOME": "",
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "CACHEFSM_CACHE_DIR": str(self.cache_dir),
            **environ,
        }

    @contextmanager
    def started(self, *arguments: str | Path, **environ: str) -> Iterator[Running]:
        """Start a command; kill it if the block leaves it running."""
        process = subprocess.Popen(
            [self.python, "-m", "cachefsm", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.home,
            env={**self.environ, **environ},
        )
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            if not running.stdout.closed:
                running.wait()

    def run(self, *arguments: str | Path, **environ: str) -> Outcome:
        """Run a command to its end."""
        with self.started(*arguments, **environ) as running:
            return running.wait()

    @contextmanager
    def serving(self, *arguments: str, **environ: str) -> Iterator[Running]:
        """Run ``serve`` on a free port, until the block ends."""
        with self.started("serve", "--port", "0", *arguments, **environ) as server:
            first = server.line()
            assert first.startswith("cachefsm serving at http://"), server.wait()
            server.address = first.removeprefix("cachefsm serving at ")
            yield server
