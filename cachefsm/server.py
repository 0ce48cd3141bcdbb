"""Runs a WSGI application: Werkzeug's threaded server, made fit to face players.

Werkzeug accepts and gives each connection a thread; a pool would starve, since
a paused player holds its thread for as long as it is paused. What Werkzeug's
request handler does is replaced: it closes every connection, sets no time
limit, parses laxly and shows tracebacks.

One connection::

    read_head ──► run the application ──► drain the body ──► read_head …
        │                   │                    │
    BadRequest:         raised, or          too much left:
    one plain answer    wrong length:       close after the
    and close           cut, visibly        answer was read

Lock: ``_Server._lock`` guards who is connected; nothing blocks under it.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from .answer import Answer
from .clientsocket import ClientGone, ClientSocket, FileSlice, Limits, RequestBody, StopSignal
from .clientwatch import ClientWatch
from .descriptors import descriptors
from .errors import CacheError, UsageError, WaitCancelled
from .metrics import Traffic
from .wire import BadRequest, RequestHead, plain_answer

if TYPE_CHECKING:
    from .answer import Application

__all__ = ["ClientWatch", "FileSlice", "Limits", "ProxyServer"]

_log = logging.getLogger(__name__)

# A body that the application left unread is worth less than a new connection.
_DRAIN_BYTES = 65536
_BACKLOG = 128
_RETRY_AFTER_S = "2"
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_USERINFO = re.compile(r"\A(/https?/)[^/]*@")
_CONTROLS = {c: f"\\x{c:02x}" for c in [*range(0x20), *range(0x7F, 0xA0)]}


class _Handler(WSGIRequestHandler):
    """Serves one connection, request after request, on a thread of its own."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        sock: socket.socket = self.request
        # Without it kept-alive ranges stall 44 ms on loopback.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = ClientSocket(sock, self.server.stop, self.server.limits)
        self._peer = _shown(str(self.client_address[0]))
        self._environ: dict[str, Any] = {
            **self.server.environ,
            "REMOTE_ADDR": self.client_address[0],
            "REMOTE_PORT": str(self.client_address[1]),
            "werkzeug.socket": sock,
        }

    def finish(self) -> None:
        """Close nothing: there are no rfile and wfile here."""

    def handle(self) -> None:
        client = self._client
        try:
            request = client.read_head(first=True)
            while request is not None and self._answer(request):
                request = client.read_head(first=False)
        except BadRequest as refusal:
            _log.info("%s refused: %d %s", self._peer, refusal.status_hint, refusal)
            self.server.traffic.count(refusal.status_hint)
            self._say(plain_answer(refusal.status_hint, str(refusal)))
        except ClientGone as gone:
            _log.debug("%s: %s", self._peer, gone)

    def _answer(self, request: RequestHead) -> bool:
        """Serve one request; True when the connection can carry another."""
        body = None
        if request.body_bytes != 0:
            body = RequestBody(self._client, request, self.server.limits)
        answer = Answer(self._client, request, body)
        try:
            answer.run(self.server.app, self._make_environ(request, body))
        except (ClientGone, WaitCancelled) as gone:
            _log.debug("%s: %s", self._peer, gone)
            return False
        except Exception as error:  # noqa: BLE001 - applications raise anything
            self._failed(request, answer, error)
            return False
        finally:
            self.server.traffic.count(answer.status, answer.sent_bytes)
            if _log.isEnabledFor(logging.INFO):
                self._log_access(request, answer)
        if answer.keep_alive and (body is None or body.drain(_DRAIN_BYTES)):
            return True
        self._client.linger()
        return False

    def _failed(self, request: RequestHead, answer: Answer, error: Exception) -> None:
        """Log *error*, and tell the client if nothing was sent; else closing tells it."""
        expected = isinstance(error, CacheError)  # its message says it all
        _log.log(
            logging.WARNING if expected else logging.ERROR,
            "%s %s: %s after %d bytes: %s",
            request.method,
            _without_query(request.target),
            "cut" if answer.started else "failed",
            answer.sent_bytes,
            _shown(str(error) or type(error).__name__),
            exc_info=None if expected else error,
        )
        if answer.started:
            return
        answer.status, text = 500, ""
        if isinstance(error, CacheError):  # met while a body was read, or begun
            answer.status, text = error.status_hint, str(error)
        self._say(plain_answer(answer.status, text, body=request.method != "HEAD"))

    def _say(self, answer: bytes) -> None:
        with suppress(ClientGone):
            self._client.send(answer)
            self._client.linger()

    def _make_environ(self, request: RequestHead, body: RequestBody | None) -> dict[str, Any]:
        path, _, query = request.target.partition("?")
        environ = self._environ.copy()
        environ["REQUEST_METHOD"] = request.method
        environ["SERVER_PROTOCOL"] = f"HTTP/1.{request.minor}"
        # latin-1 as PEP 3333 has it: one character per byte, whatever the bytes mean.
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["QUERY_STRING"] = query
        environ["REQUEST_URI"] = environ["RAW_URI"] = request.target
        environ["wsgi.input"] = io.BytesIO() if body is None else io.BufferedReader(body)
        environ.update(request.fields)
        return environ

    def _log_access(self, request: RequestHead, answer: Answer) -> None:
        _log.info(
            '%s "%s %s HTTP/1.%d" %d %d%s',
            self._peer,
            request.method,
            _without_query(request.target),
            request.minor,
            answer.status,
            answer.sent_bytes,
            "" if answer.complete else " cut",
        )


class _Server(ThreadedWSGIServer):
    """Accepts; keeps count of connections and their threads; lets all of them go."""

    def __init__(self, listener: socket.socket, app: Application, limits: Limits) -> None:
        self.limits = limits
        self.stop = StopSignal()
        self.watch = ClientWatch()
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._live: dict[socket.socket, threading.Thread] = {}
        self._ending: list[threading.Thread] = []  # let go, perhaps not quite ended
        self._full = False
        self._short = False  # of descriptors
        host, port = listener.getsockname()[:2]
        # Handing over the descriptor keeps Werkzeug from printing and exiting.
        super().__init__(host, port, app, _Handler, fd=listener.fileno())
        self.socket.setblocking(False)  # a client may leave between poll and accept
        self._server_version = "cachefsm"
        self.environ: dict[str, Any] = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "SERVER_SOFTWARE": "cachefsm",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SCRIPT_NAME": "",
            "cachefsm.sendfile": hasattr(os, "sendfile"),
            "cachefsm.clientwatch": self.watch,
            "cachefsm.traffic": self.traffic,
        }

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept until ``stop`` is set; ``poll_interval`` is not needed, nothing is polled for."""
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        poller.register(self.stop, select.POLLIN)
        try:
            while not self.stop.is_set:
                poller.poll()
                if not self.stop.is_set:
                    self._handle_request_noblock()  # type: ignore[attr-defined]
        finally:
            self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            accepted = self.socket.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                # The connection stays in the backlog and would be reported at
                # once again; give others a moment to end.
                if not self._short:
                    self._short = True
                    _log.warning("cannot accept connections: %s", error.strerror)
                poller = select.poll()
                poller.register(self.stop, select.POLLIN)
                poller.poll(100)
            raise
        self._short = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name=f"cachefsm-client-{client_address[1]}",
            daemon=True,  # an embedder that forgets close() can still exit
        )
        with self._lock:
            self._ending = [ended for ended in self._ending if ended.is_alive()]
            full = len(self._live) >= self.limits.max_connections
            if not full and not self.stop.is_set:
                self._live[request] = thread
                self._full = False
        if full:
            self._turn_away(request)
        elif self.stop.is_set:
            self.shutdown_request(request)
        else:
            try:
                thread.start()
            except RuntimeError as error:
                _log.warning("cannot serve a connection: %s", error)
                with self._lock:
                    del self._live[request]
                self._turn_away(request)

    def _turn_away(self, sock: socket.socket) -> None:
        """Answer 503 from the accepting thread, so never wait for anything."""
        self.traffic.count(503)
        if not self._full:
            self._full = True
            _log.warning("all %d connections are in use", self.limits.max_connections)
        headers = [("Retry-After", _RETRY_AFTER_S)]
        with suppress(OSError):
            sock.setblocking(False)
            sock.send(plain_answer(503, "all connections are in use", headers=headers))
            sock.shutdown(socket.SHUT_WR)
            # Closing on unread bytes would be a reset and might destroy the answer.
            sock.recv(65536)
        sock.close()

    def shutdown_request(self, request: Any) -> None:
        """Forget and close; no ``shutdown()``: its FIN would come before a reset."""
        with self._lock:
            thread = self._live.pop(request, None)
            if thread is not None:
                self._ending.append(thread)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.exception("the connection of %s failed", client_address[0])

    def hang_up(self) -> None:
        """End receiving on every connection, which also tells whoever watches its socket."""
        with self._lock:  # a socket is closed only after it has left _live
            for sock in self._live:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)

    def threads(self) -> list[threading.Thread]:
        with self._lock:
            return [*self._live.values(), *self._ending]


class ProxyServer:
    """Serves a WSGI application over HTTP/1.1, one thread per connection.

    Listens from construction on; ``start()`` or ``serve_forever()`` answers.
    As a context manager it starts and closes. *limits* are the fields of
    ``Limits``, in seconds and bytes.

    To the application's environ it adds ``REQUEST_URI`` and ``RAW_URI`` (the
    target as it came), ``werkzeug.socket``, ``cachefsm.sendfile`` (whether
    ``FileSlice`` objects may be yielded among the bytes),
    ``cachefsm.clientwatch`` (a ``ClientWatch`` that closes with the server) and
    ``cachefsm.traffic`` (a ``Traffic`` that counts what it answers).

    A body that cannot be finished must *raise*: the client then sees a
    connection cut short. So it does when fewer or more bytes come than
    ``Content-Length`` says.

    Raises:
        UsageError: the address cannot be listened on.
    """

    def __init__(
        self,
        app: Application,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        idle_timeout_s: float = Limits.idle_timeout_s,
        header_timeout_s: float = Limits.header_timeout_s,
        send_timeout_s: float = Limits.send_timeout_s,
        max_connections: int = Limits.max_connections,
        max_header_bytes: int = Limits.max_header_bytes,
        max_target_bytes: int = Limits.max_target_bytes,
    ) -> None:
        limits = Limits(
            idle_timeout_s=idle_timeout_s,
            header_timeout_s=header_timeout_s,
            send_timeout_s=send_timeout_s,
            max_connections=min(max_connections, descriptors() // 2),
            max_header_bytes=max_header_bytes,
            max_target_bytes=max_target_bytes,
        )
        with _listen(host, port) as listener:
            self._server = _Server(listener, app, limits)
        self.host: str = self._server.server_address[0]  # type: ignore[assignment]
        self.port: int = self._server.server_address[1]
        self._accepting: threading.Thread | None = None  # whichever thread accepts
        self._accept_thread: threading.Thread | None = None  # the one that start() made
        self._ended = threading.Event()
        self._closed = False

    @property
    def url(self) -> str:
        """Where a client on this machine finds it, ending in a slash."""
        wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
        host = wildcards.get(self.host, self.host)
        if ":" in host:
            host = f"[{host.replace('%', '%25')}]"  # RFC 6874
        return f"http://{host}:{self.port}/"

    def __repr__(self) -> str:
        connected, waiting = len(self._server._live), self._server.watch.count
        state = "closed" if self._closed else f"{connected} connected, {waiting} waiting"
        return f"<ProxyServer {self.url} {state}>"

    def __enter__(self) -> ProxyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Answer in a thread of its own; returns at once."""
        thread = threading.Thread(target=self._accept, name="cachefsm-accept", daemon=True)
        self._claim(thread)
        self._accept_thread = thread
        thread.start()

    def serve_forever(self) -> None:
        """Answer in this thread until ``stop()`` or ``close()``, or a KeyboardInterrupt."""
        self._claim(threading.current_thread())
        self._accept()

    def stop(self) -> None:
        """Have ``serve_forever`` return and every answer cut; ``close()`` does the rest.

        Takes no lock and waits for nothing, so a signal handler may call it.
        """
        self._server.stop.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop accepting, cut every connection, end every thread; at most *timeout_s*.

        Threads that are still inside the application after that are named in
        the log; they end when it returns. May be called twice, and from any
        thread; a signal handler uses ``stop()``.
        """
        server = self._server
        deadline = time.monotonic() + timeout_s
        self._closed = True
        server.stop.set()
        if self._accepting is None:
            server.server_close()
        else:
            self._ended.wait(timeout_s)
        server.hang_up()
        server.watch.close(_left_s(deadline))
        threads = server.threads()
        if self._accept_thread is not None:
            threads.append(self._accept_thread)
        me = threading.current_thread()
        others = [thread for thread in threads if thread is not me]
        for thread in others:
            thread.join(_left_s(deadline))
        left = [thread.name for thread in others if thread.is_alive()]
        if left:
            _log.warning("still inside the application after close: %s", ", ".join(left))
        elif len(others) == len(threads) and (self._accepting is not me or self._ended.is_set()):
            server.stop.close()  # nobody polls it any more

    def _claim(self, thread: threading.Thread) -> None:
        if self._closed or self._accepting is not None:
            raise RuntimeError("this server was started before")
        self._accepting = thread

    def _accept(self) -> None:
        try:
            self._server.serve_forever()
        finally:
            self._ended.set()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, or raise UsageError with the reason in one line."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not host:
        raise UsageError("cannot listen on an empty host name; 0.0.0.0 is every IPv4 address")
    if not 0 <= port <= 65535:
        raise UsageError(f"cannot listen on {shown}: ports go from 0 to 65535")
    # As Werkzeug takes it: a name means IPv4, since not every machine has both.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"cannot listen on {shown}: no such host name") from error
    except OSError as error:
        raise UsageError(f"cannot listen on {shown}: {_bind_problem(error)}") from error


def _bind_problem(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses this port; port 0 takes a free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "not permitted (ports below 1024 need privileges)"
    return os.strerror(error.errno or 0)


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _without_query(target: str) -> str:
    """*target* for the log: queries carry tokens, and ``/http/…`` may hold a URL's
    credentials. Visible ASCII only, by the parser.
    """
    # The query goes first: an "@" in it must not take the "?" for part of a host.
    path, mark, _ = target.partition("?")
    path = _USERINFO.sub(r"\1", path)
    return f"{path}?…" if mark else path


def _shown(text: str) -> str:
    return text.translate(_CONTROLS)
