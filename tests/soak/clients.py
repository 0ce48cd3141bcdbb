"""Those who ask the proxy: players that seek, dawdle and leave. Each is one thread."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from tests.soak.judge import Asked, Judgement, Span, Wrong
from tests.soak.report import Report
from tests.soak.world import Subject, World

__all__ = ["MOUNT", "Client", "Door"]

MOUNT: Final = "/o"
"""Where the proxy mounts the origin."""

SILENCE_S: Final = 30.0
"""A client that hears nothing for so long, while the proxy lives, has been forgotten: the
proxy's own limits are a few seconds."""


class Door:
    """Where the proxy is now, if it is anywhere; clients wait before it while it is shut."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._address: str | None = None
        self._inside = 0
        self._lives = 0
        self._gone = False

    def open(self, address: str) -> None:
        with self._changed:
            self._address = address
            self._lives += 1
            self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._address = None

    def brick_up(self) -> None:
        """There will be no proxy any more: let those go who wait for one."""
        with self._changed:
            self._address, self._gone = None, True
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until those who came in have left; shut it first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, timeout_s)

    @property
    def life(self) -> int:
        """Changes with every proxy that has been here, and once more when it has gone."""
        with self._changed:
            return 2 * self._lives + (self._address is None)

    @contextmanager
    def entered(self) -> Iterator[str | None]:
        """Give the proxy's address as soon as there is one, None if there will be none."""
        with self._changed:
            while self._address is None and not self._gone:
                self._changed.wait()
            self._inside += 1
            address = self._address
        try:
            yield address
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()


class Client(threading.Thread):
    """Asks for random things in random ways until *over*; reports what it got.

    What is wrong ends the soak; see `Report.wrong`.
    """

    def __init__(
        self, number: int, world: World, door: Door, report: Report, over: threading.Event
    ) -> None:
        super().__init__(name=f"soak-client-{number}", daemon=True)
        self._world = world
        self._door = door
        self._report = report
        self._over = over
        self._dice = random.Random(f"{world.seed}/client/{number}")
        self._connection = _connect("http://localhost")
        self._last: Judgement | None = None

    def run(self) -> None:
        while not self._over.is_set():
            subject = self._world.choose(self._dice)
            with self._door.entered() as address:
                if address is not None:
                    self._call(address, subject, self._visit)
            self._over.wait(self._dice.expovariate(1 / 0.02))

    def has_whole(self, address: str, subject: Subject) -> bool:
        """Ask for all of *subject*; return whether all of it came."""
        whole = False

        def visit(subject: Subject) -> None:
            nonlocal whole
            self._last = None
            self._read_whole(subject)
            whole = self._last is not None and self._last.is_whole

        self._call(address, subject, visit)
        return whole

    def _call(self, address: str, subject: Subject, visit: Callable[[Subject], None]) -> None:
        """Connect, do what is to be done, and leave; report what should not have been."""
        life = self._door.life
        self._connection = _connect(address)
        try:
            visit(subject)
        except Wrong as wrong:
            self._report.wrong(str(wrong), subject)
        except TimeoutError:
            self._silent(life, subject)
        except (OSError, http.client.HTTPException) as error:
            self._broken(life, subject, error)
        finally:
            self._connection.close()

    def _visit(self, subject: Subject) -> None:
        """Do what one client does between connecting and leaving."""
        visits: tuple[Callable[[Subject], None], ...] = (
            self._read_whole,
            self._read_part,
            self._seek,
            self._dawdle,
            self._leave,
            self._look,
            self._revalidate,
        )
        self._dice.choices(visits, weights=(3, 3, 4, 1, 3, 1, 2))[0](subject)

    # -- visits ----------------------------------------------------------------

    def _read_whole(self, subject: Subject) -> None:
        self._ask(Asked(subject, time.monotonic()))

    def _read_part(self, subject: Subject) -> None:
        self._ask(Asked(subject, time.monotonic(), span=self._span(subject)))

    def _seek(self, subject: Subject) -> None:
        for _ in range(self._dice.randint(2, 8)):
            asked = Asked(subject, time.monotonic(), span=self._span(subject))
            if not self._ask(asked, at_most=self._dice.choice((1 << 16, 1 << 20, None))):
                return

    def _dawdle(self, subject: Subject) -> None:
        self._ask(
            Asked(subject, time.monotonic(), span=self._span(subject)),
            piece=self._dice.choice((5000, 50_000)),
            pause_s=0.02,
            patience_s=self._dice.uniform(0.5, 6.0),
        )

    def _leave(self, subject: Subject) -> None:
        limit = self._dice.choice((0, 1, self._dice.randrange(1 << 22)))
        self._ask(Asked(subject, time.monotonic()), at_most=limit)
        sock = self._connection.sock
        if sock is not None and self._dice.random() < 0.5:
            linger = struct.pack("ii", 1, 0)  # leave with a reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _look(self, subject: Subject) -> None:
        self._ask(Asked(subject, time.monotonic(), method="HEAD"))

    def _revalidate(self, subject: Subject) -> None:
        version = self._dice.choice(subject.allowed(0.0)[-3:])
        etag = version.etag or '"none"'
        now_s = time.monotonic()
        asked = (
            Asked(subject, now_s, if_none_match=etag),
            Asked(subject, now_s, if_none_match=etag, method="HEAD"),
            Asked(subject, now_s, if_match=etag),
            Asked(subject, now_s, span=self._span(subject), if_match=etag),
            Asked(subject, now_s, span=self._span(subject), if_range=etag),
            Asked(
                subject,
                now_s,
                span=self._span(subject),
                if_range=version.last_modified or etag,
            ),
        )
        self._ask(self._dice.choice(asked))

    def _span(self, subject: Subject) -> Span:
        dice, size = self._dice, max(1, subject.current.size)
        first = dice.randrange(size)
        return dice.choice(
            (
                Span(first, min(size, first + dice.randrange(1 << 20)) or None),
                Span(first, first),
                Span(first, None),
                Span(None, dice.randint(1, 1 << 18)),
                Span(0, None),
                Span(0, 1),
                Span(size - 1, size + 1000),
                Span(size + dice.randrange(5), None),
            )
        )

    # -- one request -----------------------------------------------------------

    def _ask(
        self,
        asked: Asked,
        *,
        at_most: int | None = None,
        piece: int = 1 << 18,
        pause_s: float = 0.0,
        patience_s: float = 60.0,
    ) -> bool:
        """Ask, read and judge; return whether the connection can carry another request."""
        connection, subject = self._connection, asked.subject
        self._report.count("requests")
        subject.note(self.name, str(asked))
        connection.request(asked.method, MOUNT + subject.path, headers=asked.fields)
        response = connection.getresponse()
        self._report.peak("milliseconds to a head", int(1000 * (time.monotonic() - asked.at_s)))
        judgement = Judgement(
            asked,
            response.status,
            response.getheaders(),
            sent_bodies=lambda: self._world.sent_bodies(subject),
            whence=self._world.whence,
        )
        self._last = judgement
        self._remember(judgement)
        self._report.count(f"status {response.status}")
        deadline_s = time.monotonic() + patience_s
        left = at_most
        while data := self._read(response, piece if left is None else max(1, min(piece, left))):
            self._report.count("bytes served", len(data))
            judgement.take(data)
            left = None if left is None else left - len(data)
            enough = left is not None and left <= 0
            if enough or self._over.is_set() or time.monotonic() > deadline_s:
                subject.note(self.name, f"leaves at {judgement.position}")
                return False
            self._over.wait(pause_s)
        return self._judge_end(judgement, response)

    def _read(self, response: http.client.HTTPResponse, size: int) -> bytes:
        began_s = time.monotonic()
        data = response.read1(size)
        self._report.peak("milliseconds of silence", int(1000 * (time.monotonic() - began_s)))
        return data

    def _judge_end(self, judgement: Judgement, response: http.client.HTTPResponse) -> bool:
        subject = judgement.asked.subject
        told = f"{judgement.status} up to {judgement.position}"
        if response.length and judgement.asked.method == "GET":  # what is left of Content-Length
            self._report.count("cuts")
            subject.note(self.name, f"cut after {told}")
            return False
        judgement.end()
        self._remember(judgement)
        subject.note(self.name, told)
        response.read()  # nothing, but then the connection is free
        return not response.will_close

    def _remember(self, judgement: Judgement) -> None:
        version = judgement.version()
        if version is not None:
            judgement.asked.subject.shown(version.number, time.monotonic())

    # -- what is no answer -----------------------------------------------------

    def _silent(self, life: int, subject: Subject) -> None:
        if self._door.life == life:
            self._report.wrong(f"{self.name} has heard nothing for {SILENCE_S:g} s", subject)

    def _broken(self, life: int, subject: Subject, error: Exception) -> None:
        """A connection ended before an answer did: fair, if visible; but not without reason."""
        subject.note(self.name, f"broken: {error!r}")
        garbled = isinstance(error, http.client.HTTPException) and not isinstance(
            error, http.client.RemoteDisconnected | http.client.IncompleteRead
        )
        if garbled:
            self._report.wrong(f"{self.name} could not read an answer: {error!r}", subject)
        elif self._door.life != life:
            self._report.count("ended by a kill")
        elif isinstance(error, http.client.RemoteDisconnected):
            self._report.count("unanswered")
        else:
            self._report.count("cuts")


def _connect(address: str) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=SILENCE_S)
