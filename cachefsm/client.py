"""Speaks to the control routes of the server that holds a cache directory.

Plain ``http.client``: it reads no proxies from the environment, and is there in a
tenth of the time that ``requests`` needs.
"""

from __future__ import annotations

import http.client
import io
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final
from urllib.parse import quote, urlsplit

from .dirlock import Holder
from .errors import CacheError, EntryNotFound, IllegalMove
from .parts import Parts

__all__ = ["ServedCache", "ServerGone"]

TIMEOUT_S: Final = 60.0
"""Longer than the server lets a reader wait: it explains itself, a timeout does not."""

PING_TIMEOUT_S: Final = 5.0

Facts = dict[str, Any]


class ServerGone(CacheError):
    """The server that holds the cache directory has ended, or does not answer."""

    status_hint = 503


class ServedCache:
    """A cache directory that a running server holds; see :class:`cachefsm.backend.Backend`."""

    def __init__(self, holder: Holder) -> None:
        parts = urlsplit(holder.address or "")
        self.address = holder.address
        self.stays = holder.stays
        self._pid = holder.pid
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._token = holder.token

    def close(self) -> None:
        """Do nothing: connections last for one request."""

    # -- looking ---------------------------------------------------------------

    def entries(self) -> list[Facts]:
        """Return every entry's description, oldest first."""
        found: list[Facts] = self._ask("GET", "/-/entries")
        return found

    def find(self, which: int | str) -> Facts:
        """Return the description of the entry with that id or URL, or raise EntryNotFound."""
        if isinstance(which, str):
            found: list[Facts] = self._ask("GET", f"/-/entries?url={quote(which, safe='')}")
            return found[0]
        facts: Facts = self._ask("GET", f"/-/entries/{which}")
        return facts

    def stats(self) -> Facts:
        """Return how much there is."""
        return {"server": self.address, **self._ask("GET", "/-/stats")}

    # -- changing --------------------------------------------------------------

    def add(self, url: str, priority: str) -> Facts:
        """Queue *url*; return its entry's description."""
        facts: Facts = self._ask("POST", "/-/entries", {"url": url, "priority": priority})
        return facts

    def prefetch(self, url: str, parts: Parts | None, within_s: float | None) -> Facts:
        """Queue *url*, or parts of it, as a prefetch; return its entry's description."""
        wanted = {"url": url, "priority": "prefetch", "ranges": parts, "within": within_s}
        facts: Facts = self._ask("POST", "/-/entries", wanted)
        return facts

    def order(self, name: str, which: int | str) -> Facts:
        """Do what the command *name* says to an entry; return its description after that."""
        facts = self.find(which)
        path = f"/-/entries/{facts['id']}"
        if name == "remove":
            self._ask("DELETE", path)
            return facts
        after: Facts = self._ask("POST", f"{path}/{name}")
        return after

    def start(self, entry_id: int, start: int, stop: int | None) -> Facts:
        """Queue an entry's bytes, as a person's wish; return its description after that."""
        wanted = {"start": start, "stop": stop}
        facts: Facts = self._ask("POST", f"/-/entries/{entry_id}/start", wanted)
        return facts

    def verify(self, entry_id: int, start: int, stop: int) -> Facts:
        """Have some of an entry's bytes compared with their checksums; return what was found."""
        within = {"start": start, "stop": stop}
        found: Facts = self._ask("POST", f"/-/entries/{entry_id}/verify", within)
        return found

    def collect(self, max_size: int | None) -> dict[str, int]:
        """Make room, by the server's own limit if *max_size* is None."""
        freed: dict[str, int] = self._ask("POST", "/-/gc", {"max_size": max_size})
        return freed

    def explain(self, which: int | str, offset: int) -> Facts:
        """Return what there is to be said of one byte of an entry."""
        path = f"/-/entries/{self.find(which)['id']}/explain?offset={offset}"
        found: Facts = self._ask("GET", path)
        return found

    def limits(self, changes: dict[str, int]) -> dict[str, int]:
        """Change the rates named; return those that hold."""
        found: dict[str, int] = (
            self._ask("POST", "/-/limits", changes) if changes else self._ask("GET", "/-/limits")
        )
        return found

    def wait(self, seconds: float) -> None:
        """Let that much time pass before looking again."""
        time.sleep(seconds)

    @contextmanager
    def open(self, entry_id: int) -> Iterator[io.RawIOBase]:
        """Give a stream of the entry's bytes, as they arrive; it raises if it is cut short."""
        with self._connection() as connection:
            response = self._send(connection, "GET", f"/-/entries/{entry_id}/content", None)
            if response.status != 200:
                raise _refusal(response)
            # What the caller does with it may raise as it likes: not our server's fault.
            yield _Body(response)

    # -- the wire --------------------------------------------------------------

    def ping(self) -> None:
        """Return if the server is there; raise ServerGone if not."""
        self._ask("GET", "/-/health", timeout_s=PING_TIMEOUT_S)

    def _ask(
        self, method: str, target: str, body: Facts | None = None, timeout_s: float = TIMEOUT_S
    ) -> Any:
        with self._connection(timeout_s) as connection:
            response = self._send(connection, method, target, body)
            if response.status >= 300:
                raise _refusal(response)
            with self._translated():
                data = response.read()
        try:
            return json.loads(data) if data else None
        except ValueError as error:
            raise ServerGone(f"what answers at {self.address} is no cachefsm") from error

    def _connection(self, timeout_s: float = TIMEOUT_S) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection(self._host, self._port, timeout=timeout_s))

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: Facts | None,
    ) -> http.client.HTTPResponse:
        fields = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        data = None if body is None else json.dumps(body).encode()
        with self._translated():
            connection.request(method, target, data, fields)
            return connection.getresponse()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        who = f"the server at {self.address} (process {self._pid})"
        try:
            yield
        except TimeoutError as error:
            raise ServerGone(f"{who} does not answer") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerGone(f"{who} has ended") from error


class _Body(io.RawIOBase):
    """A response's body that tells a cut from an end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__()
        self._response = response
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes as soon as there are any; b"" at the proper end.

        Raises:
            ServerGone: the stream was cut: the server ended, or the download failed.
        """
        try:
            data = self._response.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise self._cut() from error
        self._position += len(data)
        # A short body is no error to http.client: it looks like the end.
        if not data and self._response.length:
            raise self._cut()
        return data

    def _cut(self) -> ServerGone:
        return ServerGone(f"the server cut the stream after {self._position} bytes")


def _refusal(response: http.client.HTTPResponse) -> CacheError:
    """Return the error that an answer stands for."""
    data = response.read(64 << 10)
    try:
        told = json.loads(data)
    except ValueError:
        told = {"error": data.decode(errors="replace").strip() or f"status {response.status}"}
    if response.status == 409 and "event" in told:
        possible = told.get("possible", ())
        return IllegalMove(told["event"], told["state"], told["error"], possible)
    if response.status == 404:
        return EntryNotFound(told["error"])
    error = CacheError(told["error"])
    error.status_hint = response.status
    return error
