"""What people are told when there is no answer: why, and what can be done about it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cachefsm import Cache, DownloadState
from cachefsm.errors import CacheError, OriginUntrusted
from cachefsm.origin import OriginOptions
from tests.support.blackhole import black_hole
from tests.support.caches import WAIT_S, OpenCache
from tests.support.programs import needs, run

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nyes"


@contextmanager
def server(answer: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Give the port of what reads a request, says *answer*, and closes the connection."""

    def talk() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the test is over
            with connection, suppress(OSError):
                sock = context.wrap_socket(connection, server_side=True) if context else connection
                with sock:
                    sock.recv(65536)
                    sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT_S)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody has signed, for localhost, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "certificate"
    words = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext"
    named = "subjectAltName=DNS:localhost"
    run("openssl", *words.split(), named, "-keyout", path, "-out", f"{path}.pem")
    path.write_bytes(path.read_bytes() + Path(f"{path}.pem").read_bytes())
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def told(cache: Cache, url: str) -> str:
    """Return what is said of a download that fails, which its entry says, too."""
    entry = cache.entry(f"{url}?sig=secret")
    with pytest.raises(CacheError) as caught:
        entry.wait_complete(WAIT_S)
    assert entry.reason == str(caught.value)
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the origin closed the connection before it had answered"),
        (b"220 mail.test ESMTP\r\n", "the origin answered with something that is not HTTP"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(cache: Cache, answer: bytes, words: str) -> None:
    with server(answer) as port:
        assert told(cache, f"http://127.0.0.1:{port}/film") == words


def test_a_name_that_leads_nowhere_is_named_as_the_cause(cache: Cache) -> None:
    words = told(cache, "http://nowhere.invalid/film")
    assert words.startswith("the origin's name leads nowhere (")


def test_a_port_where_nobody_listens_is_named_as_the_cause(cache: Cache) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        port = unused.getsockname()[1]
        words = "the origin cannot be reached (Connection refused)"
        assert told(cache, f"http://127.0.0.1:{port}/film") == words


def test_where_no_connection_is_made_that_is_said(open_cache: OpenCache) -> None:
    cache = open_cache(origin=OriginOptions(connect_timeout_s=0.05))
    with black_hole() as url:
        words = "the origin was silent for too long: no connection could be made"
        assert told(cache, f"{url}film") == words


def test_who_does_not_speak_tls_is_said_not_to(cache: Cache) -> None:
    with server(ANSWER) as port:
        words = told(cache, f"https://localhost:{port}/film")
    assert words.startswith("the origin does not speak TLS as it should (")
    assert "_ssl.c" not in words


@needs("openssl")
def test_a_certificate_that_is_not_trusted_is_refused_with_what_helps(
    cache: Cache, tls: ssl.SSLContext
) -> None:
    with server(ANSWER, tls) as port:
        words = told(cache, f"https://localhost:{port}/film")
    assert words == (
        "the origin's certificate is not to be trusted (self-signed certificate); "
        "REQUESTS_CA_BUNDLE can name a file of authorities that are"
    )


@needs("openssl")
def test_a_certificate_that_the_environment_vouches_for_is_trusted(
    cache: Cache, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with server(ANSWER, tls) as port:
        entry = cache.entry(f"https://localhost:{port}/film")
        assert entry.wait_complete(WAIT_S)
        assert told(cache, f"https://127.0.0.1:{port}/film").startswith(
            "the origin's certificate is not to be trusted (IP address mismatch"
        )
    assert entry.state is DownloadState.COMPLETE


def test_authorities_that_are_not_there_are_named(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
    with pytest.raises(OriginUntrusted, match=f"REQUESTS_CA_BUNDLE names {tmp_path}/none"):
        cache.entry("https://localhost/film").wait_complete(WAIT_S)
