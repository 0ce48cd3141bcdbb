"""Bodies that are passed on without being stored: clients' to origins, and origins' answers.

If an answer is no file (a 404, say) and its body is short and comes soon, the body is read
to the end, for everybody who waits for it. A longer one is read by the one client that
gets it, as fast as that client takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import requests

from .acceptance import read_length
from .errors import OriginError, OriginUnreachable
from .fields import Fields
from .mishaps import translated
from .throttle import Pace

__all__ = ["PIECE_BYTES", "SHORT_BODY_BYTES", "Begun", "Relayed", "RequestBody", "begin_body"]

PIECE_BYTES: Final = 1 << 20
"""The most that one read returns. A read returns what has arrived, so a slow origin's first
bytes are not delayed; from a fast one, 1 MiB moves 1.9 times what 64 KiB does."""

SHORT_BODY_BYTES: Final = 1 << 20
"""The longest body of an answer that is no file (an error page, say) that is read to the end."""


class RequestBody(Protocol):
    """A body to pass on, in pieces; ``length`` in bytes, None if only its end will tell."""

    length: int | None

    def __iter__(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Begun:
    """The beginning of a body, which may be all of it, and its length if that is known."""

    length: int | None
    data: bytes = b""
    is_whole: bool = False


class Relayed:
    """An answer that is passed back unchanged; whoever holds it has to close it.

    ``fields`` are the end-to-end ones, repeated ones kept apart; ``length`` is in bytes,
    None if only the end of the body will tell. *begun* is what has been read already.
    """

    def __init__(
        self,
        status: int,
        fields: Fields,
        response: requests.Response,
        pace: Pace,
        *,
        begun: Begun,
        cancel: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self.status = status
        self.fields = fields
        self.length = begun.length
        self.cancel = cancel
        """Breaks the transfer off; called from another thread."""
        self.close = on_close
        """Closes its connection."""
        self._response = response
        self._pace = pace
        self._begun = begun.data

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives; raise OriginError if it breaks off."""
        begun, self._begun = self._begun, b""
        received = len(begun)
        if begun:
            yield begun
        del begun
        while True:
            with translated():
                size = self._pace.allow(PIECE_BYTES)
                data: bytes = self._response.raw.read1(size, decode_content=False)
            self._pace.came(len(data))
            if not data:
                break
            received += len(data)
            yield data
        if self.length is not None and received < self.length:
            raise OriginUnreachable(f"the body ended at {received}, {self.length} was promised")


def begin_body(
    response: requests.Response, ticks: Callable[[], float], within_s: float
) -> Begun | None:
    """Return the body of an answer that is no file, or its beginning; None if it breaks off.

    Nothing is read of a body that is known to be long, so that its client gets it at once.
    """
    data, until_s = bytearray(), ticks() + within_s
    try:
        told = list(response.raw.headers.items())
        length = read_length("GET", response.status_code, told, response.raw.version)
        if response.status_code == HTTPStatus.NO_CONTENT:
            length = 0  # whatever it says
        if length is not None and length > SHORT_BODY_BYTES:
            return Begun(length)
        while len(data) <= SHORT_BODY_BYTES and ticks() <= until_s:
            with translated():
                piece = response.raw.read1(PIECE_BYTES, decode_content=False)
            if not piece:
                is_whole = length in (None, len(data))
                return Begun(length, bytes(data), is_whole=True) if is_whole else None
            data += piece
    except OriginError:
        return None  # the status says the main thing, and that came
    return Begun(length, bytes(data))
