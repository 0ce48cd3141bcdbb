"""A headless Chromium, driven over its DevTools protocol on a pair of pipes.

    with Chromium.started(tmp_path) as browser:
        with browser.page("http://127.0.0.1:8080/m/film.webm") as page:
            page.evaluate("document.title")

Messages are JSON objects that end in NUL, so no websocket is needed.
Source: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Chromium", "Page", "ScriptError"]

WAIT_S = 60.0  # bounds a failing test

_SWITCHES = (
    "--headless",
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--no-proxy-server",
    # It is to talk to nobody but to the tests' own servers.
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--host-resolver-rules=MAP rebound.test 127.0.0.1, MAP * ~NOTFOUND, "
    "EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-pipe",
)


class ScriptError(Exception):
    """A page's script has thrown."""


class Chromium:
    """The browser; used by one thread."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = bytearray()
        self._number = 0

    @classmethod
    @contextmanager
    def started(cls, directory: Path) -> Iterator[Chromium]:
        """Run one with an empty profile in *directory* until the block ends."""
        theirs_in, ours_out = _pipe()
        ours_in, theirs_out = _pipe()
        try:
            process = subprocess.Popen(
                (
                    # It reads descriptor 3 and writes to 4; dash could not say so.
                    *("bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash"),
                    *("chromium", *_SWITCHES, f"--user-data-dir={directory}", "about:blank"),
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        browser = cls(ours_in, ours_out)
        try:
            yield browser
        finally:
            browser._end(process)
            os.close(ours_in)
            os.close(ours_out)

    @contextmanager
    def page(self, url: str) -> Iterator[Page]:
        """Have a tab that shows *url*, until the block ends."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.go(url)
        yield page
        # A tab that stays would go on asking for what it shows.
        self.call("Target.closeTarget", targetId=target)

    def call(self, method: str, session: str | None = None, /, **params: Any) -> Any:
        """Return the result of a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> Any:
        deadline_s = time.monotonic() + WAIT_S
        while b"\0" not in self._buffer:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([self._reader], [], [], left_s)[0]:
                raise TimeoutError(f"Chromium has said nothing for {WAIT_S} s")
            data = os.read(self._reader, 1 << 16)
            if not data:
                raise EOFError("Chromium has ended")
            self._buffer += data
        message, _, rest = self._buffer.partition(b"\0")
        self._buffer = rest
        return json.loads(message)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            self.call("Browser.close")
            process.wait(WAIT_S)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session

    def go(self, url: str) -> None:
        """Navigate; returns once the document has a body."""
        told = self._browser.call("Page.navigate", self._session, url=url)
        assert "errorText" not in told, told["errorText"]
        self.evaluate(
            "document.body !== null || new Promise(done =>"
            " document.addEventListener('DOMContentLoaded', () => done(true)))"
        )

    def evaluate(self, script: str) -> Any:
        """Return what the expression *script* gives, or what its promise is resolved with.

        Raises:
            ScriptError: it threw, or the promise was rejected.
        """
        told = self._browser.call(
            "Runtime.evaluate",
            self._session,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise ScriptError(details.get("exception", {}).get("description", details["text"]))
        return told["result"].get("value")


def _pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are well above those that the browser wants."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20))
        os.close(end)
    return ends[0], ends[1]
