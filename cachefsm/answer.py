"""One WSGI answer on its way out: the head, the framing, and whether it was kept.

What the application promised in ``Content-Length`` is checked against what it
gives. Whenever the two part, or it raises, this raises too, and the connection
must then be closed without another byte: that is how a client tells a short
body from a whole one.

Source: PEP 3333; RFC 9112 §6-§7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clientsocket import ClientSocket, FileSlice, RequestBody
from .wire import RequestHead, ResponseHead, check_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
    # Any in the iterable: bytes, or FileSlice where the server says it may.
    Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[Any]]

__all__ = ["Answer"]


class Answer:
    """Runs an application for one request and sends what it gives.

    Public facts: ``status``; ``started``, bytes may have gone out; ``complete``,
    the client has a whole answer; ``sent_bytes`` of the body; ``keep_alive``,
    the connection may carry another.
    """

    def __init__(
        self, client: ClientSocket, request: RequestHead, body: RequestBody | None
    ) -> None:
        self.status = 499  # nginx's word for: the client left before there was one
        self.keep_alive = request.keep_alive
        self.started = False
        self.complete = False
        self.sent_bytes = 0
        self._client = client
        self._request = request
        self._request_body = body
        self._head: ResponseHead | None = None
        self._chunked = False
        self._ends_with_close = False

    def run(self, app: Application, environ: dict[str, Any]) -> None:
        """Call *app* and send all it yields; its ``close()`` runs whatever happens.

        Raises:
            ClientGone: there is nobody left to answer.
            RuntimeError: PEP 3333 was broken, or the length was not as promised.
            Exception: whatever the application raised.
        """
        pieces = app(environ, self.start_response)
        try:
            # HEAD, 204 and 304 aren't iterated, unless to have start_response called.
            if not self._bodiless():
                known_bytes = _known_bytes(pieces)
                for piece in pieces:
                    self.write(piece, known_bytes)
                    if self._bodiless():
                        break
            self._finish()
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> Callable[[bytes], None]:
        """PEP 3333's. ValueError for a head that would not be valid HTTP."""
        if exc_info is not None and self.started:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self._head is not None:
            raise RuntimeError("start_response was called twice")
        self._head = check_response(status, headers)
        self.status = self._head.code
        return self.write

    def write(self, piece: Any, known_bytes: int | None = None) -> None:
        """Send bytes, any contiguous buffer, or a FileSlice; the head before the first.

        *known_bytes* is the length of the whole body, if this piece is all of it.
        """
        if type(piece) is bytes:
            size = len(piece)
        elif isinstance(piece, FileSlice):
            size = piece.count
        else:
            piece = memoryview(piece).cast("B")  # TypeError for str
            size = len(piece)
        head = self._head
        if head is None:
            raise RuntimeError("the application yielded before it called start_response")
        if not size or self._bodiless():
            return
        promised = head.content_length
        if promised is not None and self.sent_bytes + size > promised:
            # Not even the promised part of this piece goes out: the client would
            # take the result for a whole body.
            raise _wrong_length(promised, self.sent_bytes + size)
        prefix = b"" if self.started else self._begin(head, known_bytes)
        suffix = b""
        if self._chunked:
            prefix += b"%x\r\n" % size
            suffix = b"\r\n"
        if isinstance(piece, FileSlice):
            self._client.send(prefix, more=True)
            self._client.send_file(piece)
            self._client.send(suffix)
        else:
            self._client.send(prefix, piece, suffix)
        self.sent_bytes += size

    def _bodiless(self) -> bool:
        """HEAD, 204 and 304 are answered by a head only. Source: RFC 9112 §6.3."""
        if self._head is None:
            return False
        return self._request.method == "HEAD" or self._head.code in (204, 304)

    def _begin(self, head: ResponseHead, known_bytes: int | None) -> bytes:
        """Return the head with the framing that fits. Source: RFC 9112 §6, §9.3."""
        length = known_bytes if head.content_length is None else head.content_length
        framing = b""
        if head.code == 204 or (length is None and self._bodiless()):
            pass
        elif length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif self._request.minor == 1:
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self._ends_with_close = True
            self._client.reset_on_close(True)
        if head.close or self._ends_with_close:
            self.keep_alive = False
        if self._request_body is not None and self._request_body.interim:
            # Too late for 100 Continue now; the client may send its body or not.
            self._request_body.interim = False
            self.keep_alive = False
        if self._request_body is not None and self._request_body.is_faulty:
            self.keep_alive = False
        if not self.keep_alive:
            framing += b"Connection: close\r\n"
        elif self._request.minor == 0:
            framing += b"Connection: keep-alive\r\n"
        self.started = True
        return head.render(framing)

    def _finish(self) -> None:
        head = self._head
        if head is None:
            raise RuntimeError("the application never called start_response")
        promised = head.content_length
        if promised is not None and self.sent_bytes < promised and not self._bodiless():
            raise _wrong_length(promised, self.sent_bytes)
        if not self.started:
            self._client.send(self._begin(head, None if self._bodiless() else 0))
        elif self._chunked:
            self._client.send(b"0\r\n\r\n")
        if self._ends_with_close:
            self._client.reset_on_close(False)
        self.complete = True


def _known_bytes(pieces: Iterable[Any]) -> int | None:
    """The length of a body given as a list of one piece, as PEP 3333 allows to use."""
    if isinstance(pieces, list | tuple) and len(pieces) == 1:
        piece = pieces[0]
        return piece.count if isinstance(piece, FileSlice) else memoryview(piece).nbytes
    return None


def _wrong_length(promised: int, given: int) -> RuntimeError:
    return RuntimeError(f"the application promised {promised} bytes and gave {given}")
