"""The watch on clients that leave, with each way of watching."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from cachefsm import clientwatch
from cachefsm.clientwatch import ClientWatch

WAIT_S = 10.0  # only bounds a failure

POLLERS = [clientwatch._PeekPoller]
if clientwatch._HAS_EPOLL:
    POLLERS.append(clientwatch._EpollPoller)


@pytest.fixture(params=POLLERS)
def watch(request: pytest.FixtureRequest) -> Iterator[ClientWatch]:
    watch = ClientWatch(request.param)
    yield watch
    watch.close()
    assert "cachefsm-clientwatch" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's socket and its client, over TCP."""
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        closing(socket.create_connection(listener.getsockname())) as client,
        closing(listener.accept()[0]) as sock,
    ):
        yield sock, client


class Calls:
    """A callback that counts, and an event for the first call."""

    def __init__(self) -> None:
        self.count = 0
        self.event = threading.Event()

    def __call__(self) -> None:
        self.count += 1
        self.event.set()


def round_trip(watch: ClientWatch) -> None:
    """Return when the watch has looked at everything that happened before."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calls = Calls()
        watch.register(ours, calls)
        theirs.close()
        assert calls.event.wait(WAIT_S)


def test_nothing_is_started_before_it_is_needed(watch: ClientWatch) -> None:
    assert watch._thread is None


@pytest.mark.parametrize("how", ["close", "reset", "shutdown", "server's shutdown"])
def test_a_client_that_leaves_is_reported_once(watch: ClientWatch, pair, how: str) -> None:
    sock, client = pair
    calls = Calls()
    handle = watch.register(sock, calls)
    if how == "shutdown":
        client.shutdown(socket.SHUT_WR)
    elif how == "server's shutdown":
        sock.shutdown(socket.SHUT_RD)
    else:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    assert calls.event.wait(WAIT_S)
    round_trip(watch)
    assert calls.count == 1
    assert handle.cancel() is False
    assert "0 watched" in repr(watch)


def test_a_client_that_has_left_before_is_reported(watch: ClientWatch, pair) -> None:
    sock, client = pair
    client.close()
    calls = Calls()
    watch.register(sock, calls)
    assert calls.event.wait(WAIT_S)


def test_a_cancelled_registration_is_not_called(watch: ClientWatch, pair) -> None:
    sock, client = pair
    calls = Calls()
    with watch.register(sock, calls) as handle:
        pass
    assert handle.cancel() is True
    client.close()
    round_trip(watch)
    assert calls.count == 0


def test_one_of_two_registrations_can_be_cancelled(watch: ClientWatch, pair) -> None:
    sock, client = pair
    first, second = Calls(), Calls()
    handle = watch.register(sock, first)
    watch.register(sock, second)
    handle.cancel()
    client.close()
    assert second.event.wait(WAIT_S)
    assert first.count == 0


def test_a_socket_can_be_watched_again(watch: ClientWatch, pair) -> None:
    sock, client = pair
    watch.register(sock, Calls()).cancel()
    calls = Calls()
    watch.register(sock, calls)
    client.close()
    assert calls.event.wait(WAIT_S)


def counting(make: type) -> type:
    """A poller that counts how often its thread woke."""

    class Counting(make):  # type: ignore[misc]
        turns = 0

        def wait(self) -> list[int]:
            type(self).turns += 1
            return super().wait()

    return Counting


@pytest.mark.parametrize("make", POLLERS)
def test_pipelined_bytes_are_no_hang_up_and_no_busy_loop(make: type, pair) -> None:
    sock, client = pair
    poller = counting(make)
    with closing(ClientWatch(poller)) as watch:
        client.sendall(b"GET / HTTP/1.1\r\n")
        calls = Calls()
        handle = watch.register(sock, calls)
        for _ in range(50):
            round_trip(watch)
        assert calls.count == 0
        assert handle.cancel()
        # A round trip wakes the thread at most 4 times: added, readable, gone, removed.
        assert poller.turns <= 4 * 51


@pytest.mark.parametrize("make", POLLERS)
def test_a_client_that_leaves_after_the_cancel_is_no_busy_loop(make: type, pair) -> None:
    sock, client = pair
    poller = counting(make)
    with closing(ClientWatch(poller)) as watch:
        watch.register(sock, Calls()).cancel()
        client.close()
        for _ in range(50):
            round_trip(watch)
        assert poller.turns <= 4 * 51


@pytest.mark.parametrize("make", POLLERS)
def test_a_report_that_has_become_untrue_is_dropped(make: type, pair) -> None:
    """As when a descriptor is closed and used again between report and lock."""
    sock, _ = pair

    class Late(make):  # type: ignore[misc]
        def wait(self) -> list[int]:
            return [*super().wait(), sock.fileno()]

    with closing(ClientWatch(Late)) as watch:
        calls = Calls()
        handle = watch.register(sock, calls)
        round_trip(watch)
        assert calls.count == 0
        assert handle.cancel()


@pytest.mark.skipif(not clientwatch._HAS_EPOLL, reason="elsewhere it cannot be seen")
def test_a_client_that_pipelined_and_left_is_reported(pair) -> None:
    sock, client = pair
    with closing(ClientWatch()) as watch:
        calls = Calls()
        watch.register(sock, calls)
        client.sendall(b"GET / HTTP/1.1\r\n")
        client.close()
        assert calls.event.wait(WAIT_S)


def test_a_descriptor_used_again_belongs_to_the_new_client(watch: ClientWatch, pair) -> None:
    """Even when its first owner forgot to cancel."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    watch.register(ours, Calls())
    ours.close()
    theirs.close()
    calls = Calls()
    with pair[0].dup() as again:
        assert again.fileno() == number
        handle = watch.register(again, calls)
        round_trip(watch)
        assert calls.count == 0
        assert handle.cancel()


def test_a_callback_that_raises_stops_nobody_else(watch: ClientWatch, pair, caplog) -> None:
    sock, client = pair

    def fail() -> None:
        raise ZeroDivisionError

    calls = Calls()
    watch.register(sock, fail)
    watch.register(sock, calls)
    client.close()
    assert calls.event.wait(WAIT_S)
    assert "callback" in caplog.text


def test_the_callback_may_register_and_cancel(watch: ClientWatch, pair) -> None:
    """It is called off the lock."""
    sock, client = pair
    calls = Calls()

    def again() -> None:
        watch.register(sock, calls)

    watch.register(sock, again)
    client.close()
    assert calls.event.wait(WAIT_S)


def test_closing_calls_those_that_still_wait(watch: ClientWatch, pair) -> None:
    calls = Calls()
    handle = watch.register(pair[0], calls)
    watch.close()
    watch.close()
    assert calls.count == 1
    assert handle.cancel() is False


def test_a_closed_watch_calls_back_at_once(watch: ClientWatch, pair) -> None:
    watch.close()
    calls = Calls()
    watch.register(pair[0], calls)
    assert calls.count == 1


def test_a_closed_socket_has_no_client(watch: ClientWatch, pair) -> None:
    pair[0].close()
    calls = Calls()
    watch.register(pair[0], calls)
    assert calls.count == 1
