"""A scripted HTTP/1.1 origin on loopback: correct by default, wrong on demand.

    with Origin() as origin:
        origin.put("/film", Resource(1_000_000))
        hold = origin.script(hold_after(500_000), path="/film")
        ...                               # start a client on origin.url("/film")
        assert hold.reached.wait(5)       # half is sent, the other half is not
        hold.release()
        (request,) = origin.wait_for_requests(1)

`messages` says what is asked and answered, `faults` holds ready-made scripts, `shaping` models a
slow network. ``python -m tests.support.origin --help`` runs an origin as its own process.

Theory of operation: one thread per connection, sockets that never block. Whatever waits, waits in
`Connection.poll` for its own socket too, so that a client's leaving and `Origin.close` end every
wait at once. All counters live under one condition, `Origin.changed`, and bytes are handed to the
socket under it: nobody can see a byte that is not counted yet.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import unquote

from tests.support.connection import HANGUP, ClientGone, Connection, Gate
from tests.support.messages import Answer, Content, Fields, Request, Resource, content, pattern
from tests.support.shaping import Bucket, Shaping

__all__ = [
    "Answer",
    "ClientGone",
    "Content",
    "Exchange",
    "Gate",
    "Origin",
    "Request",
    "Resource",
    "Shaping",
    "content",
    "pattern",
]

WAIT_S = 30.0  # bounds a failing test; nothing that passes comes near it


@dataclass(eq=False)
class Exchange:
    """One request and its answer, in the hands of a script.

    A script edits `answer`, or sends by itself; if it sent nothing and did not close, the
    answer is sent after it.
    """

    request: Request
    resource: Resource | None
    answer: Answer
    _connection: Connection
    _shaping: Shaping
    _buckets: list[Bucket]
    started: bool = False

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def send(self, data: bytes | memoryview, *, counted: bool = True) -> None:
        """Write *data* as it is; *counted* as body."""
        self.started = True
        view = memoryview(data)
        while view:
            if self.closed:
                raise ClientGone("closed by the script")
            with self.request.changed:
                try:
                    sent = self._connection.sock.send(view)
                except BlockingIOError:
                    sent = 0
                if counted:
                    self.request.count(sent)
            view = view[sent:]
            if view:
                self._connection.poll(select.POLLOUT)

    def send_head(self, status: int, fields: Fields) -> None:
        """Write a status line and exactly *fields*."""
        known = status in HTTPStatus._value2member_map_
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase if known else ''}"]
        lines += [f"{name}: {value}" for name, value in fields]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"), counted=False)

    def send_answer(self) -> None:
        """Send `answer`, shaped and with its milestones."""
        self.started = True
        answer, request = self.answer, self.request
        self.pause(self._shaping.first_byte_latency_s)
        for action in answer.before_head:
            action(self)
        has_body = answer.may_have_body and request.method != "HEAD"
        encoding = (answer.header("Transfer-Encoding") or "").lower()
        chunked = has_body and encoding.endswith("chunked")
        unframed = has_body and not chunked and answer.header("Content-Length") is None
        if unframed or not request.keep_alive:
            answer.headers.append(("Connection", "close"))
        if not chunked:
            request.promise(answer.length if has_body else 0)
        self.send_head(answer.status, answer.headers)
        if has_body:
            self._send_body(chunked)
        if unframed:
            self.close()

    def _send_body(self, chunked: bool) -> None:
        answer, position = self.answer, self.answer.start
        milestones = sorted(answer.milestones, key=lambda milestone: milestone[0])
        stops = [(answer.start + count, action) for count, action in milestones]
        for stop, action in [*stops, (answer.stop, None)]:
            if stop > answer.stop:
                continue
            while position < stop:
                piece_bytes = self._shaping.slice_bytes(answer.piece_bytes)
                piece = answer.content(position, min(stop, position + piece_bytes))
                self._send_piece(piece, chunked)
                position += len(piece)
            if action is not None:
                action(self)
            if self.closed:
                return
        if chunked:
            self.request.promise(answer.length)
            self.send(b"0\r\n\r\n", counted=False)

    def _send_piece(self, piece: bytes | memoryview, chunked: bool) -> None:
        self.pause(max((bucket.reserve(len(piece)) for bucket in self._buckets), default=0.0))
        if chunked:
            self.send(b"%x\r\n" % len(piece), counted=False)
        self.send(piece)
        if chunked:
            self.send(b"\r\n", counted=False)
        self.pause(self.answer.pause_s)

    def wait(self, gate: Gate) -> None:
        """Block until *gate* is set.

        Raises:
            ClientGone: the client left, or the origin closes.
        """
        if self._connection.poll(HANGUP, gate):
            raise ClientGone("while waiting for a gate")

    def pause(self, seconds: float) -> None:
        """Let the modelled network take its time; ends early as `wait` does."""
        if seconds > 0 and self._connection.poll(HANGUP, timeout_s=seconds):
            raise ClientGone("while pausing")

    def close(self) -> None:
        """Close in order (FIN). What was sent still arrives."""
        self._connection.close()

    def reset(self) -> None:
        """Close with RST."""
        self._connection.close(reset=True)


Script = Callable[[Exchange], None]
S = TypeVar("S", bound=Script)


@dataclass
class _Rule:
    """When a script applies. Call `takes` with `Origin.changed` held."""

    script: Script
    when: Callable[[Request], bool]
    first: int
    times: int | None
    seen: int = field(default=0, init=False)

    def takes(self, request: Request) -> bool:
        if not self.when(request):
            return False
        self.seen += 1
        behind_last = self.times is not None and self.seen >= self.first + self.times
        return self.seen >= self.first and not behind_last


class Origin:
    """The server. Listens from construction to `close`; a context manager.

    Args:
        shaping: the modelled network; default: none.
        port: 0 lets the kernel choose. To be away, use `outage` or `leave`: a port that was
            given back by `close` may be somebody else's.
        send_buffer_bytes: small, so that bytes sent are close to bytes received. What the
            client's own receive buffer takes counts as sent all the same.
    """

    def __init__(
        self,
        shaping: Shaping | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        send_buffer_bytes: int | None = None,
    ) -> None:
        # Write once.
        self.shaping = shaping or Shaping()
        self.changed = threading.Condition(threading.RLock())
        # Never listens: it keeps the port from everybody else when the listener has gone. Two
        # sockets may have one port as long as both say so and the other does not listen yet.
        self._keeper = socket.socket()
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._keeper.bind((host, port))
        port = self._keeper.getsockname()[1]
        self._listener = socket.create_server((host, port), backlog=1024)
        if send_buffer_bytes is not None:  # accepted sockets inherit it
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        self.host, self.port = self._listener.getsockname()[:2]
        total = self.shaping.rate_total
        self._total_bucket = [Bucket(total)] if total else []
        self._accepter = self._thread(self._accept, f"origin:{self.port}")
        # Read and written under `changed`.
        self._resources: dict[str, Resource] = {}
        self._rules: list[_Rule] = []
        self._requests: list[Request] = []
        self._errors: list[Exception] = []
        self._connections: dict[Connection, threading.Thread] = {}
        self._accepted = 0
        self._peak = 0
        self._away = False
        self._closing = False
        self._accepter.start()

    def __enter__(self) -> Origin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if error is None and self._errors:
            raise self._errors[0]  # a script failed, or a request was malformed

    def __repr__(self) -> str:
        with self.changed:
            return (
                f"<Origin {self.port}: {len(self._requests)} requests, "
                f"{self.open_connections} open, {self.body_bytes_sent} body bytes>"
            )

    def close(self) -> None:
        """End every connection, also held ones, and every thread; give the port back."""
        self.leave()
        self._keeper.close()

    def leave(self) -> None:
        """Be gone for good, as `close`; whoever connects is refused, for the port is kept."""
        with self.changed:
            if self._closing:
                return
            self._closing = True
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            threads = [self._accepter, *self._connections.values()]
            for connection in self._connections:
                connection.shutdown()
        for thread in threads:
            thread.join(WAIT_S)
        self._listener.close()
        stuck = [thread.name for thread in threads if thread.is_alive()]
        if stuck:
            raise RuntimeError(f"a script waits for something other than a Gate: {stuck}")

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Cut every connection and reset every new one until the block ends."""
        with self.changed:
            self._away = True
            for connection in self._connections:
                connection.shutdown()
        try:
            yield
        finally:
            with self.changed:
                self._away = False

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def put(self, path: str, resource: Resource) -> None:
        """Serve *resource* at *path* (as on the wire, without query) from now on."""
        with self.changed:
            self._resources[path] = resource

    def remove(self, path: str) -> None:
        with self.changed:
            del self._resources[path]

    def find(self, path: str) -> Resource | None:
        with self.changed:
            return self._resources.get(path)

    def script(
        self,
        script: S,
        *,
        path: str | None = None,
        when: Callable[[Request], bool] = lambda request: True,
        nth: int = 1,
        times: int | None = 1,
    ) -> S:
        """Apply *script* to matching requests, from the *nth*, *times* times (None: always).

        Returns:
            *script* itself.
        """

        def matches(request: Request) -> bool:
            return path in (None, request.path) and when(request)

        with self.changed:
            self._rules.append(_Rule(script, matches, nth, times))
        return script

    @property
    def requests(self) -> list[Request]:
        """The requests so far, in order of arrival."""
        with self.changed:
            return list(self._requests)

    @property
    def body_bytes_sent(self) -> int:
        with self.changed:
            return sum(request.body_bytes_sent for request in self._requests)

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        with self.changed:
            poller = select.poll()
            for connection in self._connections:
                if not connection.closed:
                    poller.register(connection.sock, HANGUP)
            alive = sum(not connection.closed for connection in self._connections)
            return alive - len(poller.poll(0))

    @property
    def peak_connections(self) -> int:
        with self.changed:
            return self._peak

    def wait_until(self, predicate: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Block until *predicate*, looked at whenever something happens here.

        Raises:
            TimeoutError: it did not come true.
        """
        with self.changed:
            if not self.changed.wait_for(predicate, timeout_s):
                raise TimeoutError(f"waited {timeout_s} s; {self!r}")

    def wait_for_requests(self, count: int, timeout_s: float = WAIT_S) -> list[Request]:
        """Block until *count* requests have arrived; return all.

        Raises:
            TimeoutError: fewer came.
        """
        self.wait_until(lambda: len(self._requests) >= count, timeout_s)
        return self.requests

    @staticmethod
    def _thread(target: Callable[[], None], name: str) -> threading.Thread:
        return threading.Thread(target=target, name=name, daemon=True)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # close() shut the listener down
                return
            with self.changed:
                if self._closing:
                    sock.close()
                    return
                self._accepted += 1
                connection = Connection(sock, self._accepted, self.changed)
                if self._away:
                    connection.close(reset=True)
                    continue
                name = f"origin:{self.port}#{connection.number}"
                thread = self._thread(partial(self._serve, connection), name)
                self._connections[connection] = thread
                opened = self.open_connections
                limit = self.shaping.max_connections
                connection.refused = limit is not None and opened > limit
                self._peak = max(self._peak, opened)
                self.changed.notify_all()
                thread.start()

    def _serve(self, connection: Connection) -> None:
        rate = self.shaping.rate_per_connection
        try:
            while (request := connection.read_request()) is not None:
                buckets = self._total_bucket + ([Bucket(rate)] if rate else [])
                try:
                    self._answer(connection, request, buckets)
                finally:
                    request.end()
                if connection.closed or connection.refused or not request.keep_alive:
                    return
        except ConnectionError:
            pass  # the client left, or close() was called: both end the connection
        except Exception as error:  # noqa: BLE001 - the test's own; __exit__ raises it
            with self.changed:
                self._errors.append(error)
        finally:
            with self.changed:
                connection.close()
                del self._connections[connection]

    def _answer(self, connection: Connection, request: Request, buckets: list[Bucket]) -> None:
        with self.changed:
            self._requests.append(request)
            resource = self.find(request.path)
            scripts = [rule.script for rule in self._rules if rule.takes(request)]
            self.changed.notify_all()
        if connection.refused:
            retry_after = ("Retry-After", str(self.shaping.retry_after_s))
            fields = [retry_after, ("Connection", "close")]
            answer = Answer.fixed(self.shaping.refusal_status, fields)
        else:
            answer = resource.answer(request) if resource else Answer.fixed(404)
        exchange = Exchange(request, resource, answer, connection, self.shaping, buckets)
        for script in scripts:
            script(exchange)
        if not exchange.started and not exchange.closed:
            exchange.send_answer()
        elif not exchange.closed:
            request.promise(request.body_bytes_sent)  # the script sent what it wanted to


class StandaloneOrigin(Origin):
    """Serves one generated resource at every path, or the files below a directory.

    ``GET /-/stats`` answers with counters, which leave itself out.
    """

    STATS_PATH = "/-/stats"

    def __init__(
        self, resource: Resource, root: Path | None, shaping: Shaping, *, port: int = 0
    ) -> None:
        self._resource = resource
        self._root = root and root.resolve()
        super().__init__(shaping, port=port)

    def find(self, path: str) -> Resource | None:
        if path == self.STATS_PATH:
            return Resource.of(json.dumps(self.stats()).encode(), content_type="application/json")
        if self._root is None:
            return self._resource
        file = (self._root / unquote(path).lstrip("/")).resolve()
        if not file.is_relative_to(self._root) or not file.is_file():
            return None
        return Resource.of(file, etag=f'"{file.stat().st_mtime_ns}-{file.stat().st_size}"')

    def stats(self) -> dict[str, int]:
        counted = [request for request in self.requests if request.path != self.STATS_PATH]
        return {
            "requests": len(counted),
            "body_bytes_sent": sum(request.body_bytes_sent for request in counted),
            "peak_connections": self.peak_connections,
        }


def parse_bytes(text: str) -> int:
    """Return the number that ``256M`` stands for; K, M and G are powers of 1024."""
    unit = "KMG".find(text[-1:].upper()) + 1
    return int(float(text[:-1] if unit else text) * 1024**unit)


def main(kind: type[StandaloneOrigin] = StandaloneOrigin) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.origin")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--size", type=parse_bytes, default="256M", help="of every path")
    parser.add_argument("--root", type=Path, metavar="DIR", help="serve its files instead")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="to the head")
    parser.add_argument("--rate-per-connection", type=parse_bytes, help="bytes/s, as 20M")
    parser.add_argument("--rate-total", type=parse_bytes, help="bytes/s over all connections")
    parser.add_argument("--max-connections", type=int, help="503 past it")
    options = parser.parse_args()
    shaping = Shaping(
        first_byte_latency_s=options.latency,
        rate_per_connection=options.rate_per_connection,
        rate_total=options.rate_total,
        max_connections=options.max_connections,
    )
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before threads start: they inherit it
    resource = Resource(options.size)
    with kind(resource, options.root, shaping, port=options.port) as origin:
        print(origin.url("/"), flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
