"""A process of its own that downloads one URL, to be killed at any moment.

The child imports everything, then waits to be let go, so that several can be
made ready beforehand. The download is asked for once, by the first child that
finds no entry; later ones only open the cache, which must go on by itself.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from cachefsm import Cache, DownloadState

__all__ = ["Child"]

_ROOT = Path(__file__).parents[2]


class Child:
    """The process; a context manager that leaves none behind."""

    def __init__(self, directory: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.child", str(directory), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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

    def go(self) -> None:
        """Let it open the cache; return once that is open."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.expect("open")

    def expect(self, word: str) -> None:
        """Block until it says *word*; it says ``open``, then ``complete``."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said == word, f"the child said {said!r} instead of {word!r}"

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
        known = cache.entries()
        entry = cache.entry(url)
        if not known:
            entry.start()
        print("open", flush=True)
        if entry.state is not DownloadState.COMPLETE:
            finished.wait()
        print("complete", flush=True)


if __name__ == "__main__":
    main()
