"""What web pages may have of the proxy, in a browser that tells where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cachefsm import Cache
from cachefsm.access import Rules, parse_mount
from cachefsm.errors import UsageError
from cachefsm.pages import Pages, parse_page
from cachefsm.proxy import Server
from tests.support.clients import Reply, ask, serve_mounted
from tests.support.faults import extra_headers, status
from tests.support.origin import Origin, Resource, content

SIZE = 1000
EVIL = "http://evil.test"
FILM = "application/octet-stream"

# What browsers say of a request that a page of another site made.
SANDBOX = "sandbox allow-scripts"
VIDEO = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "video"}
IMAGE = {**VIDEO, "sec-fetch-dest": "image"}
FETCH = {**VIDEO, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty", "origin": EVIL}
FRAME = {**VIDEO, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
LINK = {**VIDEO, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


# -- who is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({}, False),  # a program
        ({"origin": EVIL, "referer": f"{EVIL}/"}, False),  # one that pleases its CDN
        (VIDEO, True),
        (FETCH, True),
        (FRAME, True),
        (LINK, False),  # a person follows it, and sees that they do
        ({**VIDEO, "sec-fetch-site": "same-site"}, False),  # another server of this machine
        ({**VIDEO, "sec-fetch-site": "same-origin"}, False),
        ({**VIDEO, "sec-fetch-site": "none"}, False),  # typed
    ],
)
def test_other_sites_pages_are_refused(asked: dict[str, str], refused: bool) -> None:
    assert Pages().refuses(asked) is refused


@pytest.mark.parametrize(
    ("page", "asked", "refused"),
    [
        (EVIL, FETCH, False),
        (EVIL, {**VIDEO, "referer": f"{EVIL}/page?x"}, False),
        (EVIL, VIDEO, True),  # it keeps its address to itself
        (f"{EVIL}:8080", FETCH, True),
        ("https://evil.test", FETCH, True),
        ("http://test", FETCH, True),
        ("null", FETCH, True),
        ("null", {**FETCH, "origin": "null"}, False),
        ("*", VIDEO, False),
        (EVIL, {**VIDEO, "referer": "http://["}, True),
    ],
)
def test_a_page_that_was_named_is_not(page: str, asked: dict[str, str], refused: bool) -> None:
    assert Pages([page]).refuses(asked) is refused


@pytest.mark.parametrize(
    "text", ["HTTP://Evil.Test:80/", "null", "*", "app://player", "http://[::1]"]
)
def test_a_page_is_named_by_its_origin(text: str) -> None:
    assert parse_page(text) == text.lower().removesuffix("/")


@pytest.mark.parametrize(
    "text", ["", "evil.test", "http://", "http://a/b", "http://u@a", "a b://c"]
)
def test_what_is_no_origin_names_no_page(text: str) -> None:
    with pytest.raises(UsageError, match="no page's origin"):
        parse_page(text)


# -- what is told -------------------------------------------------------------------


def guarded(
    *fields: tuple[str, str], asked: dict[str, str] | None = None, pages: tuple[str, ...] = ()
) -> dict[str, str]:
    host = {"host": "127.0.0.1:8080"}
    return dict(Pages(pages).guard({**host, **(asked or {})}, 200, fields))


@pytest.mark.parametrize(
    ("media_type", "runs"),
    [
        *((kind, False) for kind in ("video/mp4", "audio/mpeg", "image/png", "font/woff2")),
        *((kind, False) for kind in (FILM, "text/plain; charset=x", "text/vtt", "Video/WebM")),
        *((kind, False) for kind in ("application/vnd.apple.mpegurl", "audio/x-mpegurl")),
        *((kind, True) for kind in ("text/html", "image/svg+xml", "application/xhtml+xml")),
        *((kind, True) for kind in ("text/xml", "application/dash+xml", "application/pdf")),
        *((kind, True) for kind in ("multipart/x-mixed-replace", "", "video", "x", "text/css")),
        *((kind, True) for kind in ("text/html, video/mp4", "video/mp4, text/html")),
    ],
)
def test_what_could_run_scripts_speaks_for_nobody(media_type: str, runs: bool) -> None:
    fields = guarded(("Content-Type", media_type), ("X-Content-Type-Options", "sniff"))
    assert (fields.get("Content-Security-Policy") == SANDBOX) is runs
    assert (fields["X-Content-Type-Options"] == "nosniff") is runs


def test_what_tells_no_type_could_be_anything() -> None:
    assert guarded()["Content-Security-Policy"] == SANDBOX


def test_a_304_leaves_what_the_browser_holds_as_it_is() -> None:
    told = dict(Pages().guard({"sec-fetch-site": "none"}, 304, [("ETag", '"x"')]))
    assert told == {"ETag": '"x"'}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, True),
        ({"referer": f"{EVIL}/page"}, True),
        ({"origin": EVIL}, True),
        ({"referer": "http://127.0.0.1.evil.test/"}, True),
        ({"referer": "http://127.0.0.1:3000/page"}, False),
        ({"origin": "https://127.0.0.1"}, False),
        # A browser that tells this has asked before: see refuses().
        ({"sec-fetch-site": "same-site"}, False),
    ],
)
def test_an_older_browser_is_told_to_keep_it_from_other_sites(
    asked: dict[str, str], told: bool
) -> None:
    fields = guarded(("Content-Type", "video/mp4"), asked=asked)
    assert ("Cross-Origin-Resource-Policy" in fields) is told


def test_only_a_page_that_was_named_may_read() -> None:
    asked = {**FETCH, "sec-fetch-site": "cross-site"}
    assert "Access-Control-Allow-Origin" not in guarded(asked=asked)
    fields = guarded(asked=asked, pages=(EVIL,))
    assert fields["Access-Control-Allow-Origin"] == EVIL
    assert fields["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in fields
    assert guarded(asked=asked, pages=("*",))["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Origin" not in guarded(asked=VIDEO, pages=("*",))


# -- on the wire --------------------------------------------------------------------


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin) as server:
        yield server


def assert_nothing_allowed(reply: Reply) -> None:
    assert not [name for name, _ in reply.fields if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "target", ["m/film", "m/none", "none", "-/", "-/entries", "-/entries/1/content", "-/events"]
)
@pytest.mark.parametrize("asked", [IMAGE, FETCH, FRAME], ids=["image", "fetch", "frame"])
def test_another_sites_page_gets_nothing_and_asks_the_origin_nothing(
    cache, origin, proxy, target: str, asked
) -> None:
    """The same for what is there and what is not, so that nothing can be learnt from it."""
    cache.entry(origin.url("/film"))
    reply = ask(proxy.url + target, asked)
    assert reply.status == 403
    assert reply.text == "another site's page may not have this; name that site with --page\n"
    assert_nothing_allowed(reply)
    assert origin.requests == []


def test_what_plays_in_another_sites_page_is_content_and_cannot_be_read(
    cache, origin, proxy
) -> None:
    reply = ask(f"{proxy.url}m/film", VIDEO)
    assert reply.body == content(0, SIZE)
    assert_nothing_allowed(reply)
    assert ask(f"{proxy.url}m/film", {**VIDEO, "sec-fetch-mode": "cors"}).status == 403
    for target in ("-/", "-/entries", "-/entries/1/content", "-/events"):
        assert ask(proxy.url + target, VIDEO).status == 403


def test_a_link_on_another_sites_page_can_be_followed(proxy) -> None:
    assert ask(f"{proxy.url}m/film", LINK).body == content(0, SIZE)


def test_what_an_origin_allows_for_itself_is_not_allowed_here(origin, proxy) -> None:
    fields = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Credentials": "true",
        "Timing-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Service-Worker-Allowed": "/",
        "Clear-Site-Data": "*",
        "Refresh": "0; url=/-/",
        "Report-To": "{}",
    }
    origin.script(extra_headers(*fields.items()))
    for _ in range(2):  # from the origin, then from the file
        reply = ask(f"{proxy.url}m/film", {"Origin": EVIL})
        assert reply.body == content(0, SIZE)
        assert_nothing_allowed(reply)
        assert reply["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not {name.lower() for name, _ in reply.fields} & {
            *("timing-allow-origin", "service-worker-allowed", "clear-site-data"),
            *("refresh", "report-to"),
        }


def test_an_origins_page_that_says_no_speaks_for_nobody_either(origin, proxy) -> None:
    html = (("Content-Type", "text/html"), ("Access-Control-Allow-Origin", "*"))
    origin.script(status(404, *html, body=b"<script>alert(1)</script>"), times=None)
    reply = ask(f"{proxy.url}m/none")
    assert reply.status == 404
    assert_nothing_allowed(reply)
    if reply["Content-Type"] == "text/html":
        assert reply["Content-Security-Policy"] == SANDBOX


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_browsers_cookies_and_passwords_are_no_origins_business(
    cache, origin, method: str
) -> None:
    """It has one jar for all servers of this host, and one address for all mounts."""
    asks = [("Set-Cookie", "session=theirs"), ("WWW-Authenticate", 'Basic realm="yours"')]
    origin.script(status(401, *asks), times=None)
    mount = replace(parse_mount(f"/m={origin.url()}"), rules=Rules(passes=True))
    with cache.serve(mounts=[mount]) as proxy:
        own = {"sec-fetch-site": "same-origin", "origin": proxy.url.rstrip("/")}
        for asked in (own, {}):
            reply = ask(f"{proxy.url}m/login", {"Cookie": "session=ours", **asked}, method=method)
            assert reply.status == 401
            assert (reply["Set-Cookie"] is None) == bool(asked)
            assert (reply["WWW-Authenticate"] is None) == bool(asked)
    browser, program = origin.requests
    assert browser.header("Cookie") is None
    assert program.header("Cookie") == "session=ours"


def test_an_entrys_content_is_guarded_by_its_id_as_well(cache, origin, proxy) -> None:
    origin.put("/page", Resource(SIZE, content_type="text/html"))
    number = cache.entry(origin.url("/page")).id
    reply = ask(f"{proxy.url}-/entries/{number}/content")
    assert reply["Content-Security-Policy"] == SANDBOX


PREFLIGHT = {**FETCH, "access-control-request-method": "GET", "sec-fetch-site": "cross-site"}


def test_a_preflight_is_answered_for_named_pages_and_content_only(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin, pages=[EVIL]) as proxy:
        private = {**PREFLIGHT, "access-control-request-private-network": "true"}
        told = ask(f"{proxy.url}m/film", private, method="OPTIONS")
        assert told.status == 204
        assert told["Access-Control-Allow-Origin"] == EVIL
        assert told["Access-Control-Allow-Methods"] == "GET, HEAD"
        assert told["Access-Control-Allow-Private-Network"] == "true"
        assert ask(f"{proxy.url}m/film", FETCH).body == content(0, SIZE)
        other = {**PREFLIGHT, "origin": "http://other.test"}
        for target, asked in (("m/film", other), ("-/entries", PREFLIGHT), ("-/", other)):
            reply = ask(proxy.url + target, asked, method="OPTIONS")
            assert reply.status in (403, 404)
            assert_nothing_allowed(reply)


def test_a_named_page_gives_no_orders_and_reads_no_lists(cache, origin) -> None:
    with serve_mounted(cache, origin, pages=["*"]) as proxy:
        entry = cache.entry(origin.url("/film"))
        assert_nothing_allowed(ask(f"{proxy.url}-/entries", FETCH))
        assert ask(f"{proxy.url}-/entries/{entry.id}/pin", FETCH, method="POST").status == 403
        assert ask(f"{proxy.url}-/entries/{entry.id}", FETCH, method="DELETE").status == 403
