"""Tells a thread that waits for bytes when the client it waits for has gone.

No WSGI server interrupts a generator, so whoever blocks on something other
than the socket would hold its entry until the wait ends by itself. One thread
watches the sockets of all such waits; on Linux the kernel reports only the
hang-up (``EPOLLRDHUP``), so bytes that a client pipelines wake nobody.

A client that ends its sending side alone (``shutdown(SHUT_WR)``) counts as
gone: to TCP both look the same until something is sent.
"""

from __future__ import annotations

import logging
import select
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol, cast

__all__ = ["ClientWatch", "WatchHandle", "watching"]

_log = logging.getLogger(__name__)

_HAS_EPOLL = sys.platform == "linux"


class _Poller(Protocol):
    """Waits for hang-ups. All but ``wait`` are called with the watch's lock held."""

    def add(self, sock: socket.socket) -> None: ...
    def remove(self, sock: socket.socket) -> None: ...
    def wait(self) -> list[int]: ...
    def is_gone(self, sock: socket.socket) -> bool: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class WatchHandle:
    """One registration; ``with`` cancels it at the end of the block."""

    def __init__(
        self, watch: ClientWatch, sock: socket.socket, callback: Callable[[], object]
    ) -> None:
        self._watch = watch
        self._sock = sock
        self._fd = sock.fileno()  # kept, because a closed socket forgets its number
        self._callback = callback
        self._called = False

    def cancel(self) -> bool:
        """Return True when the callback has not been and will not be called.

        False: it was called, or another thread is about to. Never waits, so it
        may be called under a lock that the callback takes.
        """
        return self._watch._cancel(self)

    def __enter__(self) -> WatchHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def _call(self) -> None:
        try:
            self._callback()
        except Exception:  # noqa: BLE001 - one bad callback must not end the watch
            _log.exception("a callback for a client that left failed")


class ClientWatch:
    """Calls back when clients hang up; one daemon thread, started at first use."""

    def __init__(self, poller: Callable[[], _Poller] | None = None) -> None:
        self._make_poller = poller or (_EpollPoller if _HAS_EPOLL else _PeekPoller)
        self._lock = threading.Lock()
        # All below with the lock held. Handles by descriptor: a socket may be
        # registered more than once.
        self._handles: dict[int, list[WatchHandle]] = {}
        self._poller: _Poller | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def count(self) -> int:
        """For how many waits a client is watched."""
        with self._lock:
            return sum(map(len, self._handles.values()))

    def __repr__(self) -> str:
        return f"<ClientWatch: {self.count} watched{', closed' if self._closed else ''}>"

    def register(self, sock: socket.socket, callback: Callable[[], object]) -> WatchHandle:
        """Have *callback* called once, from the watch's thread, when *sock*'s peer goes.

        It must be quick (set a flag, notify). If the watch is closed or *sock*
        is, it is called before this returns, so hold no lock that it takes.
        Cancel before the socket is closed.
        """
        handle = WatchHandle(self, sock, callback)
        with self._lock:
            if not self._closed and handle._fd >= 0:
                poller = self._poller or self._start()
                poller.add(sock)
                self._handles.setdefault(handle._fd, []).append(handle)
                return handle
            handle._called = True
        handle._call()
        return handle

    def close(self, timeout_s: float = 2.0) -> None:
        """Call every callback still registered, for nobody will watch any more; end the thread."""
        with self._lock:
            self._closed = True
            handles = [handle for same in self._handles.values() for handle in same]
            self._handles.clear()
            for handle in handles:
                handle._called = True
            thread = self._thread
            if self._poller is not None:
                self._poller.wake()
        for handle in handles:
            handle._call()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _start(self) -> _Poller:
        """Call with lock held."""
        self._poller = poller = self._make_poller()
        self._thread = threading.Thread(
            target=self._run, args=(poller,), name="cachefsm-clientwatch", daemon=True
        )
        self._thread.start()
        return poller

    def _cancel(self, handle: WatchHandle) -> bool:
        with self._lock:
            same = self._handles.get(handle._fd, [])
            if handle in same:
                same.remove(handle)
                if not same:
                    self._forget(handle)
            return not handle._called

    def _forget(self, handle: WatchHandle) -> None:
        """Call with lock held."""
        self._handles.pop(handle._fd, None)
        if self._poller is not None:
            self._poller.remove(handle._sock)

    def _run(self, poller: _Poller) -> None:
        try:
            while True:
                reported = poller.wait()
                gone: list[WatchHandle] = []
                with self._lock:
                    if self._closed:
                        return
                    for fd in reported:
                        same = self._handles.get(fd)
                        # Ask again: since the report, that number may have been
                        # closed and given to another client.
                        if same and poller.is_gone(same[-1]._sock):
                            self._forget(same[-1])
                            gone += same
                    for handle in gone:
                        handle._called = True
                for handle in gone:
                    handle._call()
        finally:
            with self._lock:
                self._poller = None
                poller.close()


def watching(
    environ: Mapping[str, Any], otherwise: ClientWatch
) -> Callable[[Callable[[], object]], AbstractContextManager[object]]:
    """Return what makes a context for a wait: in it, a client's leaving calls what it is given.

    The client is that of a WSGI request, if its server gives the socket away; it is
    watched by the server's own watch or, for servers that have none, by *otherwise*.
    """
    sock = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
    if sock is None:
        return lambda _callback: nullcontext()
    watch: ClientWatch = environ.get("cachefsm.clientwatch") or otherwise
    return lambda callback: watch.register(sock, callback)


class _EpollPoller:
    """Linux: the kernel tells hang-ups from bytes. epoll takes changes while it waits."""

    def __init__(self) -> None:
        self._events = select.EPOLLRDHUP  # HUP and ERR come unasked
        self._epoll = select.epoll()
        self._reader, self._writer = socket.socketpair()
        self._epoll.register(self._reader, select.EPOLLIN)

    def add(self, sock: socket.socket) -> None:
        with suppress(FileExistsError):
            self._epoll.register(sock, self._events)

    def remove(self, sock: socket.socket) -> None:
        with suppress(OSError, ValueError):  # closed too early: the kernel has removed it
            self._epoll.unregister(sock)

    def wait(self) -> list[int]:
        return [fd for fd, _ in self._epoll.poll()]

    def is_gone(self, sock: socket.socket) -> bool:
        if sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def wake(self) -> None:
        with suppress(OSError):
            self._writer.send(b"x")

    def close(self) -> None:
        self._epoll.close()
        self._reader.close()
        self._writer.close()


class _PeekPoller:
    """Elsewhere: a readable socket is peeked at; no byte there means that it ended.

    Where bytes are waiting (a pipelined request) the end behind them cannot be
    seen, so such a socket is not watched any further rather than asked in a loop.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Not every selector takes changes while it waits: they are queued for it.
        self._changes: deque[tuple[bool, socket.socket]] = deque()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._selector.register(self._reader, selectors.EVENT_READ)

    def add(self, sock: socket.socket) -> None:
        self._changes.append((True, sock))
        self.wake()

    def remove(self, sock: socket.socket) -> None:
        self._changes.append((False, sock))
        self.wake()

    def wait(self) -> list[int]:
        gone: list[int] = []
        while self._changes:
            adding, changed = self._changes.popleft()
            with suppress(OSError, ValueError, KeyError):  # closed, or twice the same
                if adding:
                    self._selector.register(changed, selectors.EVENT_READ)
                else:
                    self._selector.unregister(changed)
        for key, _ in self._selector.select():
            sock = cast("socket.socket", key.fileobj)
            if sock is self._reader:
                sock.recv(4096)
            elif (peeked := _peek(sock)) is not None:
                self._selector.unregister(sock)
                if not peeked:
                    gone.append(key.fd)
        return gone

    def is_gone(self, sock: socket.socket) -> bool:
        return _peek(sock) == b""

    def wake(self) -> None:
        with suppress(OSError):  # full: it will wake anyway
            self._writer.send(b"x")

    def close(self) -> None:
        self._selector.close()
        self._reader.close()
        self._writer.close()


def _peek(sock: socket.socket) -> bytes | None:
    """The next byte, b"" at the end of the stream, None when nothing has come."""
    try:
        return sock.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""
