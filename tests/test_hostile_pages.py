"""Hostile pages in a real browser, against the proxy of the same machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cachefsm import Cache
from cachefsm.proxy import Server
from tests.support.chromium import Chromium, Page
from tests.support.clients import serve_mounted
from tests.support.origin import Origin, Resource
from tests.support.programs import needs

pytestmark = needs("chromium", "bash")

PIXEL = (
    b"<svg xmlns='http://www.w3.org/2000/svg' width='7' height='7'>"
    b"<script>parent.postMessage('ran', '*')</script></svg>"
)
SCRIPT = b"window.ran = 'ran'"
DOCUMENT = b"""<!doctype html><p>shown<script>
document.title = 'ran'; fetch('/-/entries/1', {method: 'DELETE'});
</script>"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium.started(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/pixel.svg", Resource.of(PIXEL, content_type="image/svg+xml"))
    origin.put("/script.js", Resource.of(SCRIPT, content_type="text/javascript"))
    page = Resource.of(DOCUMENT, content_type="text/html; charset=utf-8")
    origin.put("/document", page)
    with serve_mounted(cache, origin) as server:
        yield server


@pytest.fixture
def evil() -> Iterator[str]:
    """The address of another site's page; to the browser localhost is not 127.0.0.1."""
    with Origin() as server:
        server.put("/", Resource.of(b"<!doctype html><body>", content_type="text/html"))
        yield server.url().replace("127.0.0.1", "localhost")


def loading(page: Page, tag: str, url: str) -> Any:
    """Return how a *tag* that shows *url* fares in *page*: "load" or "error"."""
    return page.evaluate(
        "new Promise(done => {"
        f"const element = document.createElement({tag!r});"
        "for (const name of ['load', 'loadedmetadata', 'error'])"
        "  element.addEventListener(name, event => done(event.type));"
        f"element.src = {json.dumps(url)}; document.body.append(element); }})"
    )


def fetching(page: Page, url: str, **options: str) -> str:
    """Return the text that *page* reads from *url*, or what keeps it from that."""
    text: str = page.evaluate(
        f"fetch({json.dumps(url)}, {json.dumps(options)})"
        ".then(async answer => `${answer.type} ${answer.status} ${await answer.text()}`)"
        ".catch(error => String(error))"
    )
    return text


def test_another_sites_page_runs_and_reads_nothing(chromium, origin, proxy, evil) -> None:
    with chromium.page(evil) as page:
        assert loading(page, "img", f"{proxy.url}m/pixel.svg") == "error"
        assert loading(page, "script", f"{proxy.url}m/script.js") == "error"
        assert page.evaluate("window.ran") is None
        for target in ("m/script.js", "-/entries", "-/events", "nothing"):
            assert fetching(page, proxy.url + target).startswith("TypeError: ")
            no_cors = fetching(page, proxy.url + target, mode="no-cors")
            assert no_cors.startswith("TypeError: ")
    assert origin.requests == []


def test_another_sites_page_changes_nothing(chromium, cache, origin, proxy, evil) -> None:
    entry = cache.entry(origin.url("/script.js"))
    with chromium.page(evil) as page:
        for method, mode in (("POST", "no-cors"), ("POST", "cors"), ("DELETE", "cors")):
            fetching(page, f"{proxy.url}-/entries/{entry.id}/pin", method=method, mode=mode)
            fetching(page, f"{proxy.url}-/entries/{entry.id}", method=method, mode=mode)
        page.evaluate("fetch('/').then(answer => answer.text())")  # the ones before have ended
    described = entry.describe()
    assert (described["pinned"], described["state"]) == (False, "not_started")


def test_an_origins_document_speaks_for_nobody_under_the_proxys_address(
    chromium, cache, origin, proxy
) -> None:
    entry = cache.entry(origin.url("/script.js"))
    with chromium.page(f"{proxy.url}m/document") as page:
        assert page.evaluate("document.body.innerText") == "shown"
        assert page.evaluate("document.title") == "ran"
        # Its own address is not the proxy's, so what it asks for is a stranger's wish.
        assert page.evaluate("self.origin") == "null"
        for target in ("-/entries", "m/script.js"):
            assert fetching(page, proxy.url + target).startswith("TypeError: ")
        remove = f"{proxy.url}-/entries/{entry.id}"
        assert fetching(page, remove, method="DELETE").startswith("TypeError: ")
    assert cache.find(entry.id).id == entry.id


def test_a_page_of_this_machine_shows_but_reads_nothing(chromium, origin, proxy, evil) -> None:
    neighbour = evil.replace("localhost", "127.0.0.1")
    with chromium.page(neighbour) as page:
        assert loading(page, "img", f"{proxy.url}m/pixel.svg") == "load"
        assert fetching(page, f"{proxy.url}m/script.js").startswith("TypeError: ")
        assert fetching(page, f"{proxy.url}-/entries").startswith("TypeError: ")


def test_a_page_that_was_named_shows_and_reads(chromium, cache, origin, evil) -> None:
    origin.put("/text", Resource.of(b"hello", content_type="text/plain"))
    with serve_mounted(cache, origin, pages=[evil]) as proxy, chromium.page(evil) as page:
        assert fetching(page, f"{proxy.url}m/text") == "cors 200 hello"
        assert fetching(page, f"{proxy.url}-/entries").startswith("TypeError: ")


def test_a_name_that_was_pointed_at_this_machine_is_not_the_proxys(chromium, proxy) -> None:
    """DNS rebinding: the page's own address, and the proxy behind it."""
    port = proxy.url.rstrip("/").rpartition(":")[2]
    with chromium.page(f"http://rebound.test:{port}/-/entries") as page:
        assert "not known by that Host" in fetching(page, "/-/entries")
