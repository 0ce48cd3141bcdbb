"""A process of its own that downloads one URL, to be killed at any moment.

The child imports everything, then waits to be let go, so that several can be
made ready beforehand. The download is asked for by the first child that finds it
not started; later ones only open the cache, which must go on by itself.

Another *program* may stand in for that: a module that is given the same two
arguments and *more*, waits for a line and says ``open``.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

from cachefsm import Cache, DownloadState

__all__ = ["Child"]

_ROOT = Path(__file__).parents[2]


class Child:
    """The process; a context manager that leaves none behind."""

    def __init__(
        self,
        directory: Path,
        url: str,
        *more: str,
        program: str = "tests.support.child",
        stderr: IO[bytes] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", program, str(directory), url, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=_ROOT,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def go(self) -> None:
        """Let it open the cache; return once that is open."""
        self.release()
        self.expect("open")

    def release(self) -> None:
        """Let it open the cache, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def expect(self, word: str) -> None:
        """Block until it says *word*; it says ``open``, then ``complete``."""
        said = self.line()
        assert said == word, f"the child said {said!r} instead of {word!r}"

    def line(self) -> str:
        """Return the next line that it says; an empty one if it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def terminate(self, timeout_s: float) -> int | None:
        """Ask it to end, with SIGTERM; return its exit status, None if it did not end in time."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self._process.returncode

    def kill(self) -> None:
        """End it with SIGKILL, if it has not ended already."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    directory, url = sys.argv[1:]
    sys.stdin.readline()
    finished = threading.Event()
    with Cache(directory) as cache:
        cache.subscribe(lambda move: finished.set() if move.event == "finish" else None)
        entry = cache.entry(url)
        if entry.state is DownloadState.NOT_STARTED:
            entry.start()
        print("open", flush=True)
        if entry.state is not DownloadState.COMPLETE:
            finished.wait()
        print("complete", flush=True)


if __name__ == "__main__":
    main()
