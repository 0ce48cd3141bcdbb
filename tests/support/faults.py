"""Ready-made scripts for `Origin.script`: the ways in which origins misbehave.

Each edits the prepared answer, so several may apply to one request, in the order in which
they were given. Those that replace the answer (`status`, `redirect`, `ignore_range`) come first.
Offsets count body bytes of the answer, not of the representation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate

from tests.support.connection import Gate
from tests.support.messages import ENDLESS, Answer
from tests.support.origin import Exchange, Script


class Hold:
    """Parks an answer until `release`; the client's or the origin's closing ends it too.

    Args:
        after_bytes: body bytes sent before; None holds before the head.
        gate: opened by `release`; pass one to let several holds go together.
        offset: of the representation, in place of *after_bytes*.
    """

    def __init__(
        self, after_bytes: int | None, gate: Gate | None = None, *, offset: int | None = None
    ) -> None:
        self.reached = threading.Event()
        self.gate = gate or Gate()
        self._after_bytes = after_bytes
        self._offset = offset

    def release(self) -> None:
        self.gate.set()

    def __call__(self, exchange: Exchange) -> None:
        after_bytes = self._after_bytes
        if self._offset is not None:
            after_bytes = max(0, self._offset - exchange.answer.start)
        if after_bytes is None:
            exchange.answer.before_head.append(self._park)
        else:
            exchange.answer.at(after_bytes, self._park)

    def _park(self, exchange: Exchange) -> None:
        self.reached.set()
        exchange.wait(self.gate)


def hold_before_headers(gate: Gate | None = None) -> Hold:
    return Hold(None, gate)


def hold_after(body_bytes: int, gate: Gate | None = None) -> Hold:
    """Send *body_bytes*, set ``reached``, go on after ``release()``."""
    return Hold(body_bytes, gate)


def hold_from(offset: int) -> Hold:
    """Send nothing of the representation from *offset* on until ``release()``.

    For whichever answers it applies to, however many connections share the file.
    """
    return Hold(None, offset=offset)


def stall_after(body_bytes: int) -> Hold:
    """The same for an answer that is not meant to go on: it ends with either side."""
    return Hold(body_bytes)


def cut_after(body_bytes: int) -> Script:
    """Close in mid-body, orderly (FIN)."""
    return lambda exchange: exchange.answer.at(body_bytes, Exchange.close)


def reset_after(body_bytes: int) -> Script:
    """Reset in mid-body (RST). The client may lose received bytes that it had not read."""
    return lambda exchange: exchange.answer.at(body_bytes, Exchange.reset)


def chunked_cut_after(body_bytes: int) -> Script:
    """Send chunked, and close before the last chunk."""

    def script(exchange: Exchange) -> None:
        exchange.answer.drop("Content-Length", "Transfer-Encoding")
        exchange.answer.headers.append(("Transfer-Encoding", "chunked"))
        exchange.answer.at(body_bytes, Exchange.close)

    return script


def short_body(missing_bytes: int) -> Script:
    """Promise the whole body, close (FIN) *missing_bytes* before its end."""
    return lambda exchange: exchange.answer.at(
        exchange.answer.length - missing_bytes, Exchange.close
    )


def long_body(extra: bytes) -> Script:
    """Send *extra* behind the promised body, in one piece with its end, and stay connected."""

    def script(exchange: Exchange) -> None:
        answer = exchange.answer
        body, end = answer.content, answer.stop

        def longer(start: int, stop: int, /) -> bytes:
            tail = extra[max(0, start - end) : max(0, stop - end)]
            return bytes(body(min(start, end), min(stop, end))) + tail

        answer.content, answer.stop = longer, end + len(extra)

    return script


def status(code: int, *fields: tuple[str, str], body: bytes = b"") -> Script:
    return lambda exchange: exchange.answer.become(Answer.fixed(code, list(fields), body))


def page(code: int, *fields: tuple[str, str], size: int | None, chunked: bool = False) -> Script:
    """Answer with that status and a body of *size* bytes; with one that never ends, if None."""
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))
    stop = ENDLESS if size is None else size
    return lambda exchange: exchange.answer.become(Answer(code, [*fields, framing], stop=stop))


def redirect(url: str, code: int = 302) -> Script:
    return status(code, ("Location", url))


def ignore_range(exchange: Exchange) -> None:
    """Answer 200 with everything, although ranges are announced."""
    if exchange.resource is not None:
        unwilling = replace(exchange.resource, accepts_ranges="lie")
        exchange.answer.become(unwilling.answer(exchange.request))


def wrong_content_range(text: str) -> Script:
    """Send *text*, with ``{start}``, ``{last}``, ``{stop}`` and ``{size}`` filled in."""

    def script(exchange: Exchange) -> None:
        answer, resource = exchange.answer, exchange.resource
        value = text.format(
            start=answer.start,
            last=answer.stop - 1,
            stop=answer.stop,
            size=resource.size if resource else 0,
        )
        answer.drop("Content-Range")
        answer.headers.append(("Content-Range", value))

    return script


def extra_headers(*fields: tuple[str, str]) -> Script:
    """Add fields; a name already there is then sent twice."""
    return lambda exchange: exchange.answer.headers.extend(fields)


def drop_headers(*names: str) -> Script:
    """Leave fields out; without ``Content-Length`` the body ends with the connection."""
    return lambda exchange: exchange.answer.drop(*names)


def early_hints(*fields: tuple[str, str]) -> Script:
    """Send a 103 before the answer."""
    return lambda exchange: exchange.answer.before_head.append(
        lambda sender: sender.send_head(103, list(fields))
    )


def dated(clock: Callable[[], float]) -> Script:
    """Send the Date of *clock*, Unix time, whatever else becomes of the answer."""

    def script(exchange: Exchange) -> None:
        exchange.answer.before_head.append(date)

    def date(exchange: Exchange) -> None:
        exchange.answer.drop("Date")
        exchange.answer.headers.append(("Date", formatdate(clock(), usegmt=True)))

    return script


def trickle(piece_bytes: int = 1, pause_s: float = 0.0) -> Script:
    """Send the body in pieces, one packet each, with a pause between them."""

    def script(exchange: Exchange) -> None:
        exchange.answer.piece_bytes, exchange.answer.pause_s = piece_bytes, pause_s

    return script


def raw(data: bytes) -> Script:
    """Write exactly *data* and close (FIN)."""

    def script(exchange: Exchange) -> None:
        exchange.send(data)
        exchange.close()

    return script
