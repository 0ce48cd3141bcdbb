"""What the proxy refuses, and what it never tells: hosts, mounts, origins, secrets."""

from __future__ import annotations

import logging
import os
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachefsm import Cache
from cachefsm.access import AllowList
from cachefsm.addresses import AddressGuard
from cachefsm.errors import OriginRefused, UsageError
from cachefsm.origin import OriginClient, OriginOptions
from cachefsm.proxy import Server
from cachefsm.transport import Canceller
from cachefsm.urls import OriginUrl
from tests.support.caches import OpenCache
from tests.support.clients import ask, exchange, request_bytes, serve_mounted, split
from tests.support.faults import cut_after, extra_headers, redirect, status
from tests.support.origin import Exchange, Origin, Resource, content, pattern

SIZE = 1000
SECRET = "sesame"


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    """Mounts ``/base/`` of an origin that has something outside of it as well."""
    origin.put("/base/film", Resource(SIZE))
    origin.put("/secret", Resource(SIZE, version=9))
    with serve_mounted(cache, origin, "/base/") as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[Origin]:
    """Another origin, which nothing has allowed."""
    with Origin() as other:
        other.put("/film", Resource(SIZE, version=5))
        yield other


def raw(proxy: Server, target: str, *lines: str, **options: str) -> tuple[int, list[str], bytes]:
    return split(exchange(proxy.url, request_bytes(target, *lines, **options)))


# -- Host -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:80"]
)
def test_the_names_of_this_machines_loopback_are_known(proxy, host: str) -> None:
    assert raw(proxy, "/m/film", host=host)[0] == 200


@pytest.mark.parametrize("target", ["/m/film", "/-/", "/-/entries", "/-/health", "/nowhere"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:80",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "evil.localhost",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "localhost.",
    ],
)
def test_any_other_host_is_refused_whatever_it_asks_for(origin, proxy, host, target) -> None:
    code, lines, body = raw(proxy, target, host=host)
    assert code in (403, 421)
    assert body.count(b"\n") == 1
    assert host.encode() not in body
    assert not any(line.lower().startswith("access-control") for line in lines)
    assert origin.requests == []


@pytest.mark.parametrize("host", ["", " ", "localhost, evil.test", "user@localhost", "local host"])
def test_what_is_no_host_is_refused(origin, proxy, host: str) -> None:
    assert raw(proxy, "/m/film", host=host)[0] in (400, 421)
    assert origin.requests == []


def test_two_hosts_are_refused(origin, proxy) -> None:
    assert raw(proxy, "/m/film", "Host: localhost")[0] == 400
    assert origin.requests == []


def test_a_name_that_was_given_is_known(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin, hosts=["Player.lan"]) as proxy:
        assert raw(proxy, "/m/film", host="player.LAN:8080")[0] == 200
        assert raw(proxy, "/m/film", host="other.lan")[0] == 421


# -- mounts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/m/../secret",
        "/m/..",
        "/m/.",
        "/m/./../secret",
        "/m/a/../../secret",
        "/m/%2e%2e/secret",
        "/m/%2E./secret",
        "/m/.%2e/secret",
        "/m/%2e%2e",
        "/m/..%2fsecret",
        "/m/..%2Fsecret",
        "/m/a%2f..%2f..%2fsecret",
        "/m/..%5csecret",
        "/m/..\\secret",
        "/m\\..\\secret",
        "/m/%252e%252e/secret",
        "/m/%252e%252e%252fsecret",
        "/m/..%252fsecret",
        "/m/..;/secret",
        "/m/..;a=b/secret",
        "/m/%2e%2e%3b/secret",
        "/m/..%00/secret",
        "/m/../../../../etc/passwd?x=y",
        "/../m/film",
    ],
)
def test_no_spelling_of_dot_dot_leaves_a_mount(origin, proxy, target: str) -> None:
    code, _, body = raw(proxy, target)
    assert code in (400, 404)
    assert body.count(b"\n") == 1
    assert origin.requests == []


@pytest.mark.parametrize("name", ["..film", "film..", "a..b", "...", "....", "%2e%2e%2e", "a;b=.."])
def test_names_that_only_hold_dots_are_served(origin, proxy, name: str) -> None:
    origin.put(f"/base/{name}", Resource(SIZE))
    code, _, body = raw(proxy, f"/m/{name}?x=../..")
    assert (code, body) == (200, content(0, SIZE))


@pytest.mark.parametrize(
    "target",
    ["/", "/m", "/M/film", "/x/film", "/?url={url}", "/x?url={url}", "//{host}/film", "/{url}"],
)
def test_nothing_but_a_mount_leads_anywhere(origin, proxy, elsewhere, target: str) -> None:
    host = f"{elsewhere.host}:{elsewhere.port}"
    code, _, _ = raw(proxy, target.format(url=elsewhere.url("/film"), host=host))
    assert code in (400, 403, 404)
    assert origin.requests == elsewhere.requests == []


def test_what_follows_a_mount_never_names_another_host(origin, proxy, elsewhere) -> None:
    host = f"{elsewhere.host}:{elsewhere.port}"
    for rest in (f"/{host}/film", f"@{host}/film", f":80@{host}/film", f"?u=@{host}"):
        raw(proxy, f"/m/{rest}")
    assert elsewhere.requests == []
    assert [request.path.startswith("/base/") for request in origin.requests] == [True] * 4


def test_absolute_targets_and_tunnels_are_refused(origin, proxy, elsewhere) -> None:
    host = f"{elsewhere.host}:{elsewhere.port}"
    assert raw(proxy, elsewhere.url("/film"))[0] == 421
    assert raw(proxy, elsewhere.url("/film"), host=host)[0] == 421
    assert raw(proxy, f"http://localhost/http/{host}/film")[0] == 421
    assert raw(proxy, host, method="CONNECT")[0] == 501
    assert elsewhere.requests == []


# -- origins that clients name ----------------------------------------------------


def test_origins_are_named_by_clients_only_where_allowed(cache, elsewhere) -> None:
    host = f"{elsewhere.host}:{elsewhere.port}"
    with cache.serve() as closed:
        reply = ask(f"{closed.url}http/{host}/film")
        assert reply.status == 403
        assert "--allow" in reply.text
        assert elsewhere.requests == []
    with cache.serve(allow=[host]) as server:
        assert ask(f"{server.url}http/{host}/film").body == pattern(5)(0, SIZE)
        assert ask(f"{server.url}http/{host}/film?a=b").status == 200
        assert ask(f"{server.url}https/{host}x/film").status in (400, 403)
    assert [request.target for request in elsewhere.requests] == ["/film", "/film?a=b"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_this_machine_is_not_any_host(cache, elsewhere, host: str) -> None:
    """Whoever allows every host means the world's, and its pages can make requests here."""
    authority = f"{host}:{elsewhere.port}"
    with cache.serve(allow=["*:*", "*"]) as proxy:
        reply = ask(f"{proxy.url}http/{authority}/film")
        assert reply.status == 403
        assert reply.text.endswith(f" is not allowed here; name it with --allow {authority}\n")
    assert elsewhere.requests == []
    with cache.serve(allow=["*:*", authority]) as proxy:
        assert ask(f"{proxy.url}http/{authority}/film").status == 200


@pytest.mark.parametrize("pattern", ["127.0.0.1", "127.0.0.1:1", "*.0.0.1", "localhost:*"])
def test_what_is_allowed_is_one_host_and_port(cache, elsewhere, pattern: str) -> None:
    with cache.serve(allow=[pattern]) as proxy:
        reply = ask(f"{proxy.url}http/{elsewhere.host}:{elsewhere.port}/film")
    assert reply.status == 403
    assert elsewhere.requests == []


def test_a_mounts_origin_is_not_one_that_clients_may_name(origin, proxy) -> None:
    reply = ask(f"{proxy.url}http/{origin.host}:{origin.port}/secret")
    assert reply.status == 403
    assert origin.requests == []


@pytest.mark.parametrize(
    "rest",
    [
        "user:pw@{host}/film",
        "{host}@evil.test/film",
        "evil.test@{host}/film",
        "evil.test%40{host}/film",
        "evil.test\\@{host}/film",
        "/{host}/film",
        "{host}:/film",
        "{host}:99999/film",
        "/film",
        "",
    ],
)
def test_an_authority_that_can_be_read_in_two_ways_is_refused(cache, elsewhere, rest) -> None:
    host = f"{elsewhere.host}:{elsewhere.port}"
    with cache.serve(allow=[host]) as proxy:
        code, _, _ = raw(proxy, "/http/" + rest.format(host=host))
    assert code in (400, 403)
    assert elsewhere.requests == []


@pytest.mark.parametrize("scheme", ["ftp", "file", "gopher", "data", "HTTP", "http:"])
def test_no_scheme_but_http_and_https_is_spoken(cache, elsewhere, scheme: str) -> None:
    host = f"{elsewhere.host}:{elsewhere.port}"
    with cache.serve(allow=["*:*"]) as proxy:
        assert raw(proxy, f"/{scheme}/{host}/film")[0] == 404
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "mount",
    [
        "/m",
        "m=http://a.test/",
        "/m=ftp://a.test/",
        "/m=http://",
        "/-=http://a.test/",
        "/http=http://a.test/",
        "/..=http://a.test/",
        "/a/b=http://a.test/",
        "/m=http://a.test/?x=y",
    ],
)
def test_a_mount_that_cannot_be_meant_is_refused_at_the_start(cache, mount: str) -> None:
    with pytest.raises(UsageError):
        cache.serve(mounts=[mount])


@pytest.fixture
def rebound(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name in somebody's zone who has pointed it at this machine."""
    resolve = socket.getaddrinfo

    def resolve_all(host: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "films.example" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_all)
    return "films.example"


@pytest.mark.parametrize(("private", "code"), [((), 403), (("films.example",), 200)])
def test_an_allowed_name_does_not_lead_to_this_machine_unless_it_may(
    origin, open_cache: OpenCache, rebound: str, private: tuple[str, ...], code: int
) -> None:
    origin.put("/film", Resource(SIZE))
    options = OriginOptions(may_connect=AddressGuard(private))
    with open_cache(origin=options).serve(allow=[f"{rebound}:{origin.port}"]) as proxy:
        reply = ask(f"{proxy.url}http/{rebound}:{origin.port}/film")
    assert reply.status == code
    assert len(origin.requests) == (code == 200)


@pytest.mark.parametrize(
    "host", ["%31%32%37.0.0.1", "127.0.0.%31", "loc%61lhost", "127.1", "2130706433", "0x7f.1", "0"]
)
def test_no_spelling_of_this_machine_is_any_host(origin, open_cache: OpenCache, host: str) -> None:
    allow = AllowList(["*:*"])
    options = OriginOptions(may_visit=allow.__contains__, may_connect=AddressGuard())
    with open_cache(origin=options).serve(allow=allow) as proxy:
        assert ask(f"{proxy.url}http/{host}:{origin.port}/film").status in (400, 403)
    assert origin.requests == []


def test_an_address_is_judged_by_the_host_as_its_url_names_it(origin) -> None:
    client = OriginClient(OriginOptions(may_connect=AddressGuard()))
    spelled = OriginUrl("http", None, "%31%32%37.0.0.1", origin.port, "/film")
    with closing(client), pytest.raises(OriginRefused):
        client.fetch(spelled, None, held=None, canceller=Canceller())
    assert origin.requests == []


# -- redirects --------------------------------------------------------------------


def test_a_redirect_to_what_is_not_allowed_is_refused(
    origin, elsewhere, open_cache: OpenCache
) -> None:
    allow = AllowList()
    origin.script(redirect(elsewhere.url("/film?token=sesame")), times=None)
    cache = open_cache(origin=OriginOptions(may_visit=allow.__contains__))
    with serve_mounted(cache, origin, allow=allow) as proxy:
        reply = ask(f"{proxy.url}m/film")
    assert reply.status == 403
    assert reply.text.count("\n") == 1
    assert SECRET not in reply.text
    assert elsewhere.requests == []


def test_a_redirect_to_this_machine_is_refused_where_every_host_is_allowed(
    origin, elsewhere, open_cache: OpenCache
) -> None:
    allow = AllowList(["*:*"])
    origin.script(redirect(elsewhere.url("/film")), times=None)
    cache = open_cache(origin=OriginOptions(may_visit=allow.__contains__))
    with serve_mounted(cache, origin, allow=allow) as proxy:
        assert ask(f"{proxy.url}m/film").status == 403
    assert elsewhere.requests == []


def test_a_redirect_to_what_is_allowed_is_followed_without_credentials(
    origin, elsewhere, open_cache: OpenCache
) -> None:
    allow = AllowList([f"{elsewhere.host}:{elsewhere.port}"])
    origin.script(redirect(elsewhere.url("/film").replace("://", "://x:y@")), times=None)
    cache = open_cache(origin=OriginOptions(may_visit=allow.__contains__))
    mount = origin.url().replace("://", f"://user:{SECRET}@")
    with cache.serve(mounts=[f"/m={mount}"], allow=allow) as proxy:
        assert ask(f"{proxy.url}m/film").body == pattern(5)(0, SIZE)
    assert origin.requests[0].header("Authorization") is not None
    assert elsewhere.requests[0].header("Authorization") is None


def test_redirects_in_a_circle_end(origin, proxy) -> None:
    origin.script(redirect("/base/film"), times=None)
    reply = ask(f"{proxy.url}m/film")
    assert reply.status == 502
    assert reply.text.count("\n") == 1


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "javascript:1"])
def test_a_redirect_out_of_http_is_refused(origin, proxy, location: str) -> None:
    origin.script(redirect(location), times=None)
    assert ask(f"{proxy.url}m/film").status == 403


# -- lines and files --------------------------------------------------------------


@pytest.mark.parametrize("target", ["/m/x%0d%0aX-Evil:%201", "/m/film?a=%0d%0aX-Evil:%201"])
def test_encoded_line_ends_stay_encoded(origin, proxy, target: str) -> None:
    _, lines, _ = raw(proxy, target)
    assert not any(line.lower().startswith("x-evil") for line in lines)
    (request,) = origin.requests
    assert request.target == "/base" + target.removeprefix("/m")
    assert request.header("X-Evil") is None


def test_an_origins_folded_line_never_becomes_a_line_of_its_own(origin, proxy) -> None:
    origin.script(extra_headers(("X-Folded", "a\r\n X-Evil: 1")))
    code, lines, body = raw(proxy, "/m/film")
    assert (code, body) == (200, content(0, SIZE))
    assert not any(line.strip().lower().startswith("x-evil") for line in lines)


@pytest.mark.parametrize("value", ["a\rX-Evil: 1", "a\r", "a\r\rX-Evil: 1"])
def test_an_origins_bare_cr_never_begins_a_line_of_its_own(origin, proxy, value: str) -> None:
    origin.script(extra_headers(("X-Broken", value)))
    code, lines, _ = raw(proxy, "/m/film")
    assert code in (200, 502)  # the next answer has none
    assert not any(line.lower().startswith("x-evil") for line in lines)


def test_content_files_are_named_by_hashes_only(origin, proxy, cache) -> None:
    for target in ("/m/film", "/m/a%2fb..c", f"/m/{'x' * 3000}", "/m/x?../../y"):
        origin.put("/base" + target[2:].partition("?")[0], Resource(SIZE))
        assert raw(proxy, target)[0] == 200
    files = [path for path in (cache.directory / "content").rglob("*") if path.is_file()]
    assert len(files) == 4
    for path in files:
        name = path.relative_to(cache.directory / "content").as_posix()
        assert re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]+-[0-9a-f]+", name)


# -- secrets ----------------------------------------------------------------------


def test_credentials_are_told_to_their_origin_and_to_nobody_else(
    cache, origin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cachefsm")
    origin.put("/film", Resource(SIZE))
    origin.script(status(500), path="/bad", times=None)
    origin.script(cut_after(0), path="/cut", times=None)
    origin.script(redirect(f"ftp://{SECRET}@x/?{SECRET}"), path="/away", times=None)
    mount = origin.url().replace("http://", f"http://user:{SECRET}@")
    requests = [
        *(("GET", f"/m/{name}") for name in ("film", "bad", "cut", "away", "nothing", "../x")),
        ("GET", f"/http/user:{SECRET}@evil.test/"),
        ("GET", "/http/evil.test/"),
        *(("GET", f"/-/{route}") for route in ("", "entries", "entries/1", "entries/2", "health")),
        ("GET", "/-/metrics"),
        *(("POST", f"/-/entries/{number}/cancel") for number in range(1, 6)),
    ]
    fields = (f"Authorization: Bearer {SECRET}!", f"Cookie: {SECRET}")
    with cache.serve(mounts=[f"/m={mount}"], token=SECRET) as proxy:
        answers = [
            raw(proxy, f"{target}?token={SECRET}", *fields, method=method)
            for method, target in requests
        ]
    assert {code for code, _, _ in answers} >= {200, 400, 403, 404, 409, 500}
    assert [answer for answer in answers if SECRET in str(answer)] == []
    logged = [r.getMessage() for r in caplog.records if r.name.startswith("cachefsm")]
    assert len(logged) > len(requests)
    assert [line for line in logged if SECRET in line] == []
    assert f"/film?token={SECRET}" in {request.target for request in origin.requests}
    # "user:sesame", as Basic has it.
    assert {r.header("Authorization") for r in origin.requests} == {"Basic dXNlcjpzZXNhbWU="}


@pytest.mark.parametrize("field", ["Authorization", "X-Api-Key"])
def test_what_came_with_ones_credentials_is_served_to_nobody_else(
    cache, origin, field: str
) -> None:
    def answer_by_credentials(exchange: Exchange) -> None:
        version = {"Bearer a": 1, "Bearer b": 2}[exchange.request.header(field) or ""]
        exchange.answer.become(Resource(SIZE, version=version).answer(exchange.request))

    origin.put("/film", Resource(SIZE))
    origin.script(
        answer_by_credentials, when=lambda request: request.header(field) is not None, times=None
    )
    with serve_mounted(cache, origin) as proxy:
        for version, fields in ((1, {field: "Bearer a"}), (0, {}), (2, {field: "Bearer b"})) * 2:
            assert ask(f"{proxy.url}m/film", fields).body == pattern(version)(0, SIZE)
    assert len(origin.requests) == 3


@pytest.mark.parametrize("made", ["by us", "before, for all to see"])
def test_a_cache_is_for_its_owners_eyes(
    origin: Origin, open_cache: OpenCache, tmp_path: Path, made: str
) -> None:
    directory = tmp_path / "cache"
    if made != "by us":
        directory.mkdir(mode=0o755)
    origin.put("/film", Resource(SIZE))
    before = os.umask(0o022)
    try:
        cache = open_cache()
        with serve_mounted(cache, origin) as proxy:
            assert ask(f"{proxy.url}m/film").status == 200
            files = [path for path in directory.rglob("*") if path.is_file()]
            assert len(files) >= 3  # database, lock, content
            assert {oct(path.stat().st_mode & 0o077) for path in files} == {"0o0"}
    finally:
        os.umask(before)
    if made == "by us":
        assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_in_the_environment_is_not_used(
    origin, proxy, elsewhere, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(variable, elsewhere.url())
    assert ask(f"{proxy.url}m/film").body == content(0, SIZE)
    assert elsewhere.requests == []


def test_a_netrc_is_not_read(
    origin, proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {origin.host} login user password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert ask(f"{proxy.url}m/film").status == 200
    assert origin.requests[0].header("Authorization") is None


@pytest.mark.parametrize(
    "authorization", ["Bearer sesame", "Basic " + b64encode(b"me:sesame").decode()]
)
def test_the_token_is_between_client_and_proxy(
    cache: Cache, origin: Origin, authorization: str
) -> None:
    origin.put("/film", Resource(1000))
    with cache.serve(mounts=[f"/m={origin.url()}"], token=SECRET) as proxy:
        assert ask(f"{proxy.url}m/film", {"Authorization": authorization}).status == 200
        assert ask(f"{proxy.url}m/film", {"Authorization": "Bearer another"}).status == 200
    assert [request.header("Authorization") for request in origin.requests] == [
        None,
        "Bearer another",
    ]
