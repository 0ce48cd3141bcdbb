"""Programs that people download with, through the proxy, while files arrive."""

from __future__ import annotations

from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

import pytest

from cachefsm import Cache
from tests.support.caches import WAIT_S, OpenCache, eventually
from tests.support.clients import ask, serve_mounted
from tests.support.faults import cut_after, hold_after
from tests.support.origin import Exchange, Origin, Resource, content
from tests.support.programs import needs, run
from tests.support.threads import in_thread

SIZE = 3_000_000
HALF = SIZE // 2


@pytest.fixture
def url(cache: Cache, origin: Origin) -> Iterator[str]:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin) as server:
        yield f"{server.url}m/film"


CURL = ("curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*")
WGET = ("wget", "--no-config", "--quiet", "--no-proxy", "--tries=1")


@needs("curl")
def test_curl_gets_a_range_while_the_rest_is_held(origin, url) -> None:
    hold = origin.script(hold_after(HALF))
    assert run(*CURL, "--range", "1000-1999", url) == content(1000, 2000)
    assert run(*CURL, "--range", f"{HALF - 10}-{HALF - 1}", url) == content(HALF - 10, HALF)
    assert hold.reached.wait(WAIT_S)
    assert not origin.requests[0].finished


@needs("curl")
def test_curl_gets_several_ranges_of_an_arriving_file(origin, url) -> None:
    hold = origin.script(hold_after(HALF))
    got = run(*CURL, "--include", "--range", f"0-9,{HALF - 20}-{HALF - 11},-5", url)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: multipart/byteranges; boundary=" in head
    message = BytesParser().parsebytes(head.partition(b"\r\n")[2] + b"\r\n\r\n" + body)
    parts = [
        (part["Content-Range"], part.get_payload(decode=True)) for part in message.get_payload()
    ]
    assert parts == [
        (f"bytes {start}-{stop - 1}/{SIZE}", content(start, stop))
        for start, stop in ((0, 10), (HALF - 20, HALF - 10), (SIZE - 5, SIZE))
    ]
    assert not origin.requests[0].finished
    hold.release()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((*CURL, "--output"), marks=needs("curl"), id="curl"),
        pytest.param((*CURL, "--http1.0", "--output"), marks=needs("curl"), id="curl 1.0"),
        pytest.param((*CURL, "--continue-at", "-", "--output"), marks=needs("curl"), id="curl -C"),
        pytest.param((*WGET, "--output-document"), marks=needs("wget"), id="wget"),
        pytest.param((*WGET, "--continue", "--output-document"), marks=needs("wget"), id="wget -c"),
    ],
)
def test_a_download_of_an_arriving_file_is_whole(origin, url, tmp_path, command) -> None:
    hold = origin.script(hold_after(HALF))
    target = tmp_path / "film"
    if "--continue" in command or "--continue-at" in command:
        target.write_bytes(content(0, 1_000_000))
    download = in_thread(run, *command, target, url)
    assert hold.reached.wait(WAIT_S)
    assert not download.done()
    hold.release()
    download.result(WAIT_S)
    assert target.read_bytes() == content(0, SIZE)
    assert origin.body_bytes_sent <= SIZE  # what a resumed one did not ask for may be on its way


@needs("curl")
@pytest.mark.parametrize("framing", [None, "chunked"])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_knows_that_a_body_was_cut(origin, url, framing, version: str) -> None:
    origin.put("/film", Resource(SIZE, framing=framing, accepts_ranges=framing is None))
    hold = hold_after(HALF)

    def cut(exchange: Exchange) -> None:
        hold(exchange)
        exchange.answer.at(HALF, Exchange.close)

    origin.script(cut)
    origin.script(Exchange.reset, nth=2, times=None)
    # 18 is "partial file", 56 "failure with receiving".
    download = in_thread(run, *CURL, version, url, codes=(18, 56))
    entries = f"{url.partition('/m/')[0]}/-/entries"
    eventually(lambda: [entry["downloaded_bytes"] for entry in ask(entries).json()] == [HALF])
    hold.release()
    assert content(0, HALF).startswith(download.result(WAIT_S))


@needs("curl", "wget")
def test_downloaders_resume_what_was_cut(origin, open_cache: OpenCache, tmp_path: Path) -> None:
    origin.put("/film", Resource(SIZE))
    origin.script(cut_after(HALF))
    origin.script(Exchange.reset, nth=2, times=3)
    target = tmp_path / "film"
    with serve_mounted(open_cache(), origin) as proxy:
        url = f"{proxy.url}m/film"
        run(*CURL, "--output", target, url, codes=(18,))
        assert target.read_bytes() == content(0, HALF)
        run(*CURL, "--request", "POST", f"{proxy.url}-/entries/1/retry")
        run(*WGET, "--continue", "--output-document", target, url)
    assert target.read_bytes() == content(0, SIZE)
    assert origin.body_bytes_sent == SIZE
