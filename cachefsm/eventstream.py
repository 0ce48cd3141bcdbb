"""Events as a body of server-sent events, for browsers' ``EventSource`` and for scripts.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any, Final

from .clientwatch import ClientWatch
from .events import Event, Mailbox, Progress
from .web import Request, Response

__all__ = ["event_response"]

HEARTBEAT_S: Final = 15.0
"""Where no watch tells that the client has left, a write in vain does; and proxies
between tend to cut what is silent for a minute."""

_FIRST: Final = b"retry: 2000\n\n"
"""Sent at once, so that the client knows that it is heard: how soon to come back, in ms."""


def event_response(request: Request, mailbox: Mailbox) -> Response:
    """Return the endless answer; it takes over *mailbox*, and ends when that is closed."""
    resources = ExitStack()
    resources.enter_context(mailbox)
    watch: ClientWatch | None = request.environ.get("cachefsm.clientwatch")
    if watch is not None:
        # The client's leaving ends the wait at once.
        resources.enter_context(watch.register(request.environ["werkzeug.socket"], mailbox.close))
    return Response(
        HTTPStatus.OK,
        [
            ("Content-Type", "text/event-stream"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
        ],
        _body(mailbox),
        on_close=resources.close,
    )


def _body(mailbox: Mailbox) -> Iterator[bytes]:
    yield _FIRST
    while True:
        event = mailbox.get(HEARTBEAT_S)
        if event is not None:
            yield f"event: {_name(event)}\ndata: {json.dumps(_facts(event))}\n\n".encode()
        elif mailbox.is_closed:
            return
        else:
            yield b":\n\n"


def _name(event: Event) -> str:
    return "progress" if isinstance(event, Progress) else "transition"


def _facts(event: Event) -> dict[str, Any]:
    """Return an event under the names that an entry's description has."""
    facts: dict[str, Any] = {"id": event.entry_id, "url": event.url}
    if isinstance(event, Progress):
        return facts | {
            "downloaded_bytes": event.downloaded_bytes,
            "total_size": event.total_bytes,
            "rate_bytes_s": event.rate_bytes_s,
        }
    return facts | {
        "event": event.event,
        "source": event.source.value,
        "state": event.target.value,
        "reason": event.reason,
    }
