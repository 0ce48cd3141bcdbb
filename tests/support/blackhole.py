"""An address at which connections are neither made nor refused."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["black_hole"]


@contextmanager
def black_hole() -> Iterator[str]:
    """Give the base URL of a port whose queue of connections is full: connecting hangs."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # nobody accepts
        for _ in range(16):
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this system's queue of connections does not fill up")
        host, port = listener.getsockname()
        yield f"http://{host}:{port}/"
