"""The fuzz run: one ``cachefsm serve`` before a scripted origin, and clients that send cases."""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.fuzz.films import FILMS, put_films
from tests.fuzz.grammar import Case, make_case
from tests.fuzz.judge import Answer, Wrong, judge
from tests.soak.people import order
from tests.support.caches import eventually
from tests.support.clients import ask
from tests.support.origin import Origin

__all__ = ["Report", "fuzz"]

CLIENTS: Final = 8
BOUND_S: Final = 20.0
"""What a case may take. The server's own limits are 5 s here, on a machine that is busy."""

WARM_UP: Final = 0.3
"""The part of the run after which memory is to stay as it is."""
GROWTH_KIB: Final = 16 << 10
REST_S: Final = 20.0
THREADS_KEPT: Final = 12

# What would be a bug of ours whatever a client sends.
_BAD_LINE: Final = re.compile(r"\b(error|critical): |Traceback|internal error")


@dataclass
class Report:
    """What was counted, and what was wrong; thread-safe."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    warm_kib: int = 0
    last_kib: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, answers: list[Answer], seconds: float) -> None:
        with self._lock:
            self.counts["cases"] += 1
            self.counts["closed without an answer"] += not answers
            for answer in answers:
                self.counts[f"status {answer.status}"] += 1
                self.counts["body bytes"] += len(answer.body)
                self.counts["bodies cut"] += not answer.is_whole
            self.slowest_s = max(self.slowest_s, seconds)

    def left(self) -> None:
        with self._lock:
            self.counts["cases"] += 1
            self.counts["left without reading"] += 1

    def wrong(self, what: str) -> None:
        with self._lock:
            self.findings.append(what)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.seconds:.0f} s"]
        lines += [f"  {name}: {number}" for name, number in sorted(self.counts.items())]
        lines.append(f"  slowest case: {self.slowest_s:.2f} s")
        lines.append(f"  memory: {self.warm_kib >> 10} MiB warm, {self.last_kib >> 10} MiB last")
        lines.append(f"  wrong: {len(self.findings)}")
        return "\n".join(lines)


def fuzz(count: int, seed: int, *, only: int | None = None) -> Report:
    """Send *count* cases, or the one numbered *only*; return what came of it."""
    report = Report(seed)
    began_s = time.monotonic()
    with (
        Origin() as origin,
        tempfile.TemporaryDirectory(prefix="cachefsm-fuzz-") as name,
        _Server.running(Path(name), origin) as server,
    ):
        put_films(origin)
        numbers = range(count) if only is None else range(only, only + 1)
        cut = int(len(numbers) * WARM_UP)
        _send(numbers[:cut], server, report)
        report.warm_kib = server.memory_kib()
        _send(numbers[cut:], server, report)
        report.last_kib = server.memory_kib()
        _look_after(server, report)
    report.seconds = time.monotonic() - began_s
    return report


def _send(numbers: range, server: _Server, report: Report) -> None:
    threads = [
        threading.Thread(target=_client, args=[numbers[at::CLIENTS], server, report])
        for at in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _client(numbers: range, server: _Server, report: Report) -> None:
    for number in numbers:
        if report.findings:
            return
        case = make_case(random.Random(f"{report.seed}/{number}"), server.host)
        began_s = time.monotonic()
        try:
            received = _exchange(server.address, case)
            if received is None:
                report.left()
                continue
            report.answered(judge(received, case.wishes), time.monotonic() - began_s)
        except (Wrong, OSError) as error:
            report.wrong(f"case {number}: {error}\n{case.data[:2000]!r}")


def _exchange(address: tuple[str, int], case: Case) -> bytes | None:
    """Return what came back; None if the client left.

    Raises:
        Wrong: the server neither answered nor closed in time.
    """
    received = bytearray()
    deadline_s = time.monotonic() + BOUND_S
    with socket.create_connection(address, timeout=BOUND_S) as sock:
        try:
            for piece in case.pieces:
                sock.sendall(piece)
            if case.ends:
                sock.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # refused before all of it was sent; the answer says why
        if not case.stays:
            return None
        try:
            while data := sock.recv(1 << 16):
                received += data
                if time.monotonic() > deadline_s:
                    raise TimeoutError
        except ConnectionResetError:
            # It had enough of what was sent; what it answered to that may be lost.
            if case.wishes is not None:
                raise
            return _whole_answers(bytes(received))
        except TimeoutError:
            raise Wrong(f"no end within {BOUND_S:g} s; {bytes(received[:200])!r}") from None
    return bytes(received)


def _whole_answers(received: bytes) -> bytes:
    """Return *received* less a head that the reset has cut."""
    end = received.rfind(b"HTTP/1.1 ")
    return received[:end] if end >= 0 and b"\r\n\r\n" not in received[end:] else received


def _look_after(server: _Server, report: Report) -> None:
    """See that the server is as good as before: alive, at rest, lean, and still right."""
    if server.has_ended:
        report.wrong("the server has ended by itself")
        return
    try:
        eventually(lambda: not server.what_is_busy(), REST_S)
    except TimeoutError:
        report.wrong(f"it does not come to rest: {server.what_is_busy()}")
    for entry in order(server.url, "GET", "entries")[1]:
        for verb in ("resume", "retry"):
            order(server.url, "POST", f"entries/{entry['id']}/{verb}")
    for film in FILMS:
        reply = ask(f"{server.url}m{film.path}")
        if reply.body != film.read(0, film.size):
            report.wrong(f"{film.path} cannot be had any more: {reply.status}")
    if report.last_kib > report.warm_kib + GROWTH_KIB:
        report.wrong(f"memory has grown from {report.warm_kib} to {report.last_kib} KiB")
    for line in server.log.read_text(errors="replace").splitlines():
        if _BAD_LINE.search(line):
            report.wrong(f"its log says: {line}")


class _Server:
    """The program under test, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self._process = process
        self.url = url
        self.log = log
        self.host = urlsplit(url).netloc
        name, _, port = self.host.partition(":")
        self.address = (name, int(port))
        self._threads = self._status("Threads")

    @classmethod
    @contextmanager
    def running(cls, directory: Path, origin: Origin) -> Iterator[_Server]:
        log = directory / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                (
                    *(sys.executable, "-m", "cachefsm", "serve", "--port", "0"),
                    *("--cache-dir", str(directory / "cache"), "--mount", f"/m={origin.url()}"),
                    *("--mount", f"/p={origin.url()}", "--pass-methods", "/p"),
                    *("--first-byte-timeout", "5s", "--stall-timeout", "5s"),
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        with process:
            try:
                assert process.stdout is not None
                first = process.stdout.readline().strip()
                yield cls(process, first.removeprefix("cachefsm serving at "), log)
                process.terminate()
                status = process.wait(BOUND_S)
                assert status == 0, f"it ended with status {status}"
            finally:
                process.kill()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def memory_kib(self) -> int:
        return self._status("VmRSS")

    def what_is_busy(self) -> list[str]:
        """Return what it still does or holds for clients that are gone."""
        stats = order(self.url, "GET", "stats")[1]
        busy = [f"{stats[name]} {name}" for name in ("readers", "streams") if stats[name]]
        threads = self._status("Threads")
        if threads > self._threads + THREADS_KEPT:
            busy.append(f"{self._threads} threads at first, {threads} now")
        return busy

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(rf"^{name}:\s+([0-9]+)", text, re.MULTILINE)
        return int(match[1]) if match else 0
