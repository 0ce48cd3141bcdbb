"""The control routes: what they tell, what they do, and for whom."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from cachefsm import Cache, DownloadState, Entry
from cachefsm.proxy import Server
from tests.support.caches import WAIT_S, OpenCache, eventually, recorded
from tests.support.clients import Reply, ask, exchange, opened, request_bytes, serve_mounted, split
from tests.support.damage import flip
from tests.support.faults import Hold, hold_after, hold_before_headers, status
from tests.support.origin import Exchange, Origin, Resource, content
from tests.support.threads import in_thread

SIZE = 3_000_000
HALF = SIZE // 2
ORDERS = ("pause", "resume", "cancel", "retry", "pin", "unpin")

# Every fact that the contract promises of an entry, and its JSON types.
SHAPE = {
    "id": int,
    "url": str,
    "state": str,
    "reason": (str, type(None)),
    "total_size": (int, type(None)),
    "downloaded_bytes": int,
    "ranges": list,
    "rate_bytes_s": int,
    "readers": int,
}


@pytest.fixture
def proxy(cache: Cache, origin: Origin) -> Iterator[Server]:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(cache, origin) as server:
        yield server


@pytest.fixture
def entry(cache: Cache, origin: Origin, proxy: Server) -> Entry:
    """The film's entry, of which nothing has been asked."""
    return cache.entry(origin.url("/film"))


@pytest.fixture
def half(origin: Origin, proxy: Server, entry: Entry) -> Iterator[Hold]:
    """The film's download, held half-way by its origin."""
    hold = origin.script(hold_after(HALF))
    entry.start()
    assert entry.wait_for(0, HALF, WAIT_S)
    yield hold
    hold.release()


def order(proxy: Server, verb: str, **fields: str) -> Reply:
    return ask(f"{proxy.url}-/entries/1/{verb}", fields, method="POST")


def standing(proxy: Server) -> dict[str, Any]:
    """The facts that only an order or the download changes; rates and counts go by themselves."""
    names = ("state", "reason", "since", "ranges", "pinned", "generation")
    found = facts(proxy)
    return {name: found[name] for name in names}


def facts(proxy: Server) -> dict[str, Any]:
    found: dict[str, Any] = ask(f"{proxy.url}-/entries/1").json()
    return found


# -- what they tell ---------------------------------------------------------------


def test_a_cache_without_entries_lists_none(proxy) -> None:
    reply = ask(f"{proxy.url}-/entries")
    assert reply["Content-Type"] == "application/json"
    assert reply["Cache-Control"] == "no-store"
    assert reply.json() == []


def test_an_entry_that_nobody_has_asked_for_is_all_unknown(origin, proxy, entry) -> None:
    found = facts(proxy)
    assert found["id"] == entry.id == 1
    assert found["url"] == origin.url("/film")
    assert found["state"] == "not_started"
    assert found["total_size"] is None
    assert (found["downloaded_bytes"], found["ranges"], found["readers"]) == (0, [], 0)
    assert origin.requests == []


def test_an_entry_half_way_is_told_as_it_is(proxy, half) -> None:
    with opened(f"{proxy.url}m/film") as response:
        assert response.read(HALF) == content(0, HALF)
        found = facts(proxy)
    assert found["state"] == "downloading"
    assert found["total_size"] == SIZE
    assert found["downloaded_bytes"] == HALF
    assert found["ranges"] == [[0, HALF]]
    assert found["readers"] == 1


def test_ranges_are_half_open_pairs_in_order(origin, open_cache: OpenCache) -> None:
    origin.put("/film", Resource(SIZE))
    with serve_mounted(open_cache(fill="requested"), origin) as proxy:
        for first, last in ((2_000_000, 2_000_099), (0, 9), (10, 19)):
            ask(f"{proxy.url}m/film", {"Range": f"bytes={first}-{last}"})
        found = facts(proxy)
    assert found["ranges"] == [[0, 20], [2_000_000, 2_000_100]]
    assert found["downloaded_bytes"] == 120
    assert found["total_size"] == SIZE


@pytest.mark.parametrize("moment", ["not_started", "downloading", "complete", "failed"])
def test_every_promised_fact_is_there_in_every_state(origin, proxy, entry, moment: str) -> None:
    if moment == "downloading":
        origin.script(hold_after(HALF))
    if moment == "failed":
        origin.script(status(404), times=None)
    if moment != "not_started":
        entry.start()
        eventually(lambda: facts(proxy)["state"] == moment)
    (listed,) = ask(f"{proxy.url}-/entries").json()
    found = facts(proxy)
    assert listed.keys() == found.keys()
    assert found["state"] == moment
    assert {name: found[name] for name in SHAPE if not isinstance(found[name], SHAPE[name])} == {}
    assert (found["reason"] == "the origin answered 404") == (moment == "failed")


def test_no_secret_is_told(cache, proxy) -> None:
    cache.entry("http://user:sesame@host.test/film?token=sesame#sesame")
    for route in ("", "entries", "entries/1"):
        reply = ask(f"{proxy.url}-/{route}", {"Accept": "text/html"})
        assert "http://host.test/film?" in reply.text
        assert "sesame" not in reply.text
        assert "user" not in reply.text


def test_the_overview_names_every_entry(cache, origin, proxy, entry) -> None:
    cache.entry("http://other.test/x")
    for accepted in ({}, {"Accept": "text/html"}):
        text = ask(f"{proxy.url}-/", accepted).text
        assert origin.url("/film") in text
        assert "http://other.test/x" in text


def test_health_is_told(proxy) -> None:
    assert ask(f"{proxy.url}-/health").json() == {"status": "ok"}


def test_a_head_of_a_control_route_has_no_body(proxy, entry) -> None:
    answer = exchange(proxy.url, request_bytes("/-/entries", method="HEAD"))
    code, lines, body = split(answer)
    assert (code, body) == (200, b"")
    assert "Content-Type: application/json" in lines


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("entries/2", 404),
        ("entries/999999999999999999", 404),
        ("entries/99999999999999999999", 400),
        ("entries/-1", 400),
        ("entries/1x", 400),
        ("entries/%31", 400),
        ("entries/\u00b2", 400),
        ("entries/1/nothing", 404),
        ("entries/1/pause", 405),
        ("nothing", 404),
    ],
)
def test_what_is_not_there_is_said_in_json(proxy, entry, target: str, code: int) -> None:
    reply = ask(f"{proxy.url}-/{target.replace(chr(0xB2), '%c2%b2')}")
    assert reply.status == code
    assert isinstance(reply.json()["error"], str)


def test_an_entrys_content_is_served_by_its_id(origin, proxy, entry) -> None:
    url = f"{proxy.url}-/entries/1/content"
    assert ask(url, {"Range": "bytes=10-19"}).body == content(10, 20)
    assert ask(url).body == content(0, SIZE)
    refused = ask(url, {"Range": f"bytes={SIZE}-"})
    assert (refused.status, refused["Content-Range"]) == (416, f"bytes */{SIZE}")


def test_a_failure_of_an_entrys_content_says_when_to_come_back(origin, proxy, entry) -> None:
    origin.script(Exchange.reset, times=None)
    reply = ask(f"{proxy.url}-/entries/1/content")
    assert reply.status == 502
    assert int(reply["Retry-After"]) >= 1


# -- what they do -----------------------------------------------------------------


def test_a_download_is_paused_and_resumed(origin, proxy, entry, half) -> None:
    paused = order(proxy, "pause").json()
    assert (paused["state"], paused["reason"]) == ("paused", "person")
    assert entry.state is DownloadState.PAUSED
    assert order(proxy, "resume").status == 200
    assert entry.wait_complete(WAIT_S)
    assert facts(proxy)["ranges"] == [[0, SIZE]]
    assert origin.body_bytes_sent == SIZE


def test_a_download_is_cancelled_and_retried(origin, proxy, entry, half) -> None:
    cancelled = order(proxy, "cancel").json()
    assert (cancelled["state"], cancelled["reason"]) == ("failed", "cancelled")
    assert order(proxy, "retry").status == 200
    assert entry.wait_complete(WAIT_S)
    assert origin.body_bytes_sent == SIZE


def test_an_entry_is_pinned_and_unpinned(proxy, entry) -> None:
    assert order(proxy, "pin").json()["pinned"] is True
    assert facts(proxy)["pinned"] is True
    assert order(proxy, "unpin").json()["pinned"] is False


def test_an_entry_is_removed(cache, origin, proxy, entry, half) -> None:
    reply = ask(f"{proxy.url}-/entries/1", method="DELETE")
    assert (reply.status, reply.body) == (204, b"")
    assert ask(f"{proxy.url}-/entries/1").status == 404
    assert ask(f"{proxy.url}-/entries").json() == []
    assert ask(f"{proxy.url}-/entries/1", method="DELETE").status == 404
    files = [path for path in (cache.directory / "content").rglob("*") if path.is_file()]
    assert files == []


def test_an_order_reaches_who_waits(origin, proxy, entry) -> None:
    hold = origin.script(hold_before_headers())
    waiting = in_thread(ask, f"{proxy.url}m/film")
    assert hold.reached.wait(WAIT_S)
    assert order(proxy, "cancel").status == 200
    reply = waiting.result(WAIT_S)
    assert (reply.status, reply.text) == (503, "a person cancelled the download\n")


@pytest.mark.parametrize(
    ("moment", "illegal"),
    [
        ("not_started", ["pause", "resume", "retry"]),
        ("downloading", ["resume", "retry"]),
        ("paused", ["pause", "retry"]),
        ("complete", ["pause", "resume", "cancel", "retry"]),
        ("failed", ["pause", "resume", "cancel"]),
    ],
)
def test_an_illegal_move_is_a_409_with_the_state(
    origin, proxy, entry, moment: str, illegal: list[str]
) -> None:
    if moment != "complete":
        origin.script(hold_after(HALF))
    if moment != "not_started":
        entry.start()
        assert entry.wait_for(0, HALF, WAIT_S)
    if moment == "paused":
        entry.pause()
    if moment == "failed":
        entry.cancel()
    if moment == "complete":
        assert entry.wait_complete(WAIT_S)
    before = standing(proxy)
    possible = {"not_started": ["prefetch", "cancel"], "downloading": ["pause", "cancel"]}
    possible |= {"paused": ["resume", "cancel"], "complete": [], "failed": ["retry"]}
    for verb in illegal:
        reply = order(proxy, verb)
        assert reply.status == 409
        told = reply.json()
        assert told.pop("error").startswith(f"cannot {verb} an entry that is {moment}")
        assert told == {"event": verb, "state": moment, "possible": possible[moment]}
    assert standing(proxy) == before


def order_with(proxy: Server, verb: str, body: dict[str, Any]) -> Reply:
    return ask(f"{proxy.url}-/entries/1/{verb}", method="POST", body=json.dumps(body).encode())


def test_an_entry_is_started_by_its_id(origin, proxy, entry) -> None:
    started = order(proxy, "start").json()
    assert (started["id"], started["asked_by"]) == (1, ["person"])
    assert entry.wait_complete(WAIT_S)
    assert order(proxy, "start").json()["state"] == "complete"
    assert origin.body_bytes_sent == SIZE


def test_a_part_of_an_entry_is_started(proxy, entry) -> None:
    wanted = {"start": 1000, "stop": 2000, "priority": "prefetch"}
    assert order_with(proxy, "start", wanted).json()["asked_by"] == ["prefetch"]
    eventually(lambda: facts(proxy)["state"] == "paused")
    assert facts(proxy)["ranges"] == [[1000, 2000]]


def test_an_entry_is_verified(cache, proxy, entry) -> None:
    assert entry.wait_complete(WAIT_S)
    sound = {"id": 1, "url": entry.url, "damaged_bytes": 0, "damaged": []}
    whole = sound | {"checked_bytes": SIZE, "unchecked_bytes": 0}
    assert order(proxy, "verify").json() == whole
    block = {"start": 1 << 20, "stop": 2 << 20}
    assert order_with(proxy, "verify", block).json() == whole | {"checked_bytes": 1 << 20}
    flip(recorded(cache.directory).file, [5])
    assert order_with(proxy, "verify", block).json()["damaged"] == []
    assert order(proxy, "verify").json() == {
        **whole,
        "damaged_bytes": 1 << 20,
        "damaged": [[0, 1 << 20]],
    }
    assert facts(proxy)["generation"] == 1  # which is how damaged bytes go


@pytest.mark.parametrize("verb", ["start", "verify"])
@pytest.mark.parametrize(
    "body",
    [{"start": "0"}, {"start": -1}, {"stop": 1.5}, {"stop": 2**63}, {"start": 5, "stop": 5}],
    ids=str,
)
def test_offsets_that_make_no_sense_are_refused(proxy, entry, verb: str, body: Any) -> None:
    reply = order_with(proxy, verb, body)
    assert reply.status == 400
    assert isinstance(reply.json()["error"], str)
    assert entry.state is DownloadState.NOT_STARTED


def test_a_priority_that_does_not_exist_starts_nothing(proxy, entry) -> None:
    assert order_with(proxy, "start", {"priority": "urgent"}).status == 400
    assert facts(proxy)["asked_by"] == []


def test_an_unknown_order_is_a_404(proxy, entry) -> None:
    for verb in ("finish", "invalidate", "fail", "__class__"):
        assert order(proxy, verb).status == 404
    assert entry.state is DownloadState.NOT_STARTED


# -- adding -----------------------------------------------------------------------


def add(proxy: Server, body: bytes, fields: dict[str, str] | None = None) -> Reply:
    return ask(f"{proxy.url}-/entries", fields or {}, method="POST", body=body)


def url_body(url: str, **more: object) -> bytes:
    return json.dumps({"url": url, **more}).encode()


def test_an_entry_of_an_allowed_origin_is_added_and_fetched(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    with cache.serve(allow=[f"{origin.host}:{origin.port}"]) as proxy:
        reply = add(proxy, url_body(origin.url("/film"), priority="prefetch"))
        assert reply.status == 201
        added = reply.json()
        assert added["url"] == origin.url("/film")
        assert cache.find(added["id"]).wait_complete(WAIT_S)
        again = add(proxy, url_body(origin.url("/film"))).json()
    assert again["id"] == added["id"]
    assert len(origin.requests) == 1


def test_parts_are_added_as_a_prefetch(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    with cache.serve(allow=[f"{origin.host}:{origin.port}"]) as proxy:
        wanted = {"priority": "prefetch", "ranges": [[0, 10], [SIZE - 10, None]], "within": 60}
        assert add(proxy, url_body(origin.url("/film"), **wanted)).status == 201
        film = cache.find(origin.url("/film"))
        eventually(lambda: film.describe()["asked_by"] == [])
        assert [tuple(run) for run in film.ranges] == [(0, 10), (SIZE - 10, SIZE)]
        for wrong in (
            {"ranges": [[0, 10]]},
            {"priority": "person", "within": 1},
            {"priority": "prefetch", "ranges": []},
            {"priority": "prefetch", "ranges": [[5, 5]]},
            {"priority": "prefetch", "ranges": [[-1, 5]]},
            {"priority": "prefetch", "ranges": [[0, 5, 6]]},
            {"priority": "prefetch", "ranges": [["0", 5]]},
            {"priority": "prefetch", "ranges": {"0": 5}},
            {"priority": "prefetch", "ranges": [[0, 2**70]]},
            {"priority": "prefetch", "within": "1h"},
            {"priority": "prefetch", "within": -1},
        ):
            assert add(proxy, url_body(origin.url("/film"), **wrong)).status == 400, wrong


def test_what_clients_may_not_name_is_not_added(cache, origin, proxy) -> None:
    reply = add(proxy, url_body(origin.url("/film")))
    assert reply.status == 403
    assert "--allow" in reply.json()["error"]
    assert cache.entries() == []


def test_the_token_adds_any_origin(cache, origin) -> None:
    origin.put("/film", Resource(SIZE))
    with cache.serve(token="sesame") as proxy:
        for token in (
            *("", "Bearer", "Bearer wrong", "Bearer sesam", "Bearer \xff", "Digest sesame"),
            *("Basic", "Basic sesame", "Basic c2VzYW1l", "Basic bWU6c2VzYW0=", "Basic \xff"),
        ):
            assert add(proxy, url_body(origin.url("/film")), {"Authorization": token}).status == 403
        reply = add(proxy, url_body(origin.url("/film")), {"Authorization": "Bearer sesame"})
        assert reply.status == 201
        assert cache.find(1).wait_complete(WAIT_S)
        # It may be visited now, but still not be named by whoever comes along.
        named = ask(f"{proxy.url}http/{origin.host}:{origin.port}/film")
        assert named.status == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"url": 1}',
        b'{"url": ""}',
        b'{"url": "ftp://x/"}',
        b'{"url": "file:///etc/passwd"}',
        b'{"url": "http://"}',
        b'{"url": "http://x/\\r\\nX: y"}',
        b'{"url": "http://127.0.0.1/", "priority": 5}',
        b"[" * 60_000,
        b'{"url": "' + b"x" * 70_000 + b'"}',
    ],
    ids=range(15),
)
def test_a_body_that_makes_no_sense_is_refused_in_json(cache, body: bytes) -> None:
    with cache.serve(allow=["127.0.0.1"]) as proxy:
        reply = add(proxy, body)
        assert reply.status in (400, 413)
        assert isinstance(reply.json()["error"], str)
    assert cache.entries() == []


def test_a_body_in_chunks_is_read_as_well(proxy) -> None:
    def order(body: bytes) -> tuple[int, bytes]:
        head = request_bytes("/-/limits", "Transfer-Encoding: chunked", method="POST")
        code, _, told = split(
            exchange(proxy.url, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        )
        return code, told

    code, told = order(b'{"rate": "5M"}')
    assert (code, json.loads(told)["rate"]) == (200, 5 << 20)
    assert order(b" " * 70_000 + b"{}")[0] == 400
    assert order(b"")[0] == 200


def test_a_priority_that_does_not_exist_is_refused_and_adds_nothing(cache, origin) -> None:
    with cache.serve(allow=[f"{origin.host}:{origin.port}"]) as proxy:
        reply = add(proxy, url_body(origin.url("/film"), priority="urgent"))
    assert reply.status == 400
    assert cache.entries() == []


# -- for whom ---------------------------------------------------------------------

FOREIGN = [
    {"Origin": "http://evil.test"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1.evil.test"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "{self}"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.test"},
]


def to_self(fields: dict[str, str], proxy: Server) -> dict[str, str]:
    return {name: value.format(self=proxy.url.rstrip("/")) for name, value in fields.items()}


@pytest.mark.parametrize("fields", FOREIGN, ids=str)
def test_another_sites_page_changes_nothing(cache, proxy, entry, half, fields) -> None:
    fields = to_self(fields, proxy)
    before = standing(proxy)
    for verb in ORDERS:
        reply = ask(f"{proxy.url}-/entries/1/{verb}", fields, method="POST")
        assert reply.status == 403
        assert not any(name.lower().startswith("access-control") for name, _ in reply.fields)
    assert ask(f"{proxy.url}-/entries/1", fields, method="DELETE").status == 403
    assert add(proxy, url_body("http://127.0.0.1/"), fields).status == 403
    assert standing(proxy) == before
    assert len(cache.entries()) == 1


@pytest.mark.parametrize(
    "fields",
    [{}, {"Origin": "{self}"}, {"Sec-Fetch-Site": "same-origin", "Origin": "{self}"},
     {"Sec-Fetch-Site": "none"}],
    ids=str,
)  # fmt: skip
def test_our_own_page_and_a_script_may_give_orders(proxy, entry, fields) -> None:
    reply = ask(f"{proxy.url}-/entries/1/pin", to_self(fields, proxy), method="POST")
    assert reply.status == 200
    assert not any(name.lower().startswith("access-control") for name, _ in reply.fields)


def test_a_preflight_is_not_answered_in_favour(proxy, entry) -> None:
    fields = {"Origin": "http://evil.test", "Access-Control-Request-Method": "DELETE"}
    reply = ask(f"{proxy.url}-/entries/1", fields, method="OPTIONS")
    assert reply.status >= 400
    assert not any(name.lower().startswith("access-control") for name, _ in reply.fields)


def test_a_foreign_host_gets_no_say(proxy, entry) -> None:
    for method, target in (("POST", "/-/entries/1/pin"), ("DELETE", "/-/entries/1")):
        request = request_bytes(target, method=method, host="evil.test")
        code, _, body = split(exchange(proxy.url, request))
        assert code == 421
        assert b"127.0.0.1" not in body
    assert facts(proxy)["pinned"] is False


def test_where_a_token_is_needed_nothing_but_health_goes_without(cache, origin) -> None:
    cache.entry(origin.url("/film"))
    with cache.serve(token="sesame", require_token=True) as proxy:
        bearer = {"Authorization": "Bearer sesame"}
        for route in ("", "entries", "entries/1", "entries/1/content", "nothing"):
            reply = ask(f"{proxy.url}-/{route}")
            assert reply.status == 401
            assert reply["WWW-Authenticate"].startswith("Bearer, Basic ")
        assert ask(f"{proxy.url}-/entries/1/pin", method="POST").status == 401
        assert ask(f"{proxy.url}-/entries/1", method="DELETE").status == 401
        assert ask(f"{proxy.url}-/entries/1", bearer).json()["pinned"] is False
        as_a_browser = {"Authorization": "Basic " + b64encode(b"me:sesame").decode()}
        assert ask(f"{proxy.url}-/", as_a_browser).status == 200
        assert ask(f"{proxy.url}-/entries/1/pin", bearer, method="POST").status == 200
        assert ask(f"{proxy.url}-/health").status == 200


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", "entries/1/pause", "POST"),
        ("PUT", "limits", "GET, HEAD, POST"),
        ("OPTIONS", "entries", "GET, HEAD, POST"),
        ("POST", "entries/1", "DELETE, GET, HEAD"),
        ("DELETE", "", "GET, HEAD"),
    ],
)
def test_a_method_that_does_not_fit_is_answered_with_those_that_do(
    proxy, entry, method: str, target: str, allowed: str
) -> None:
    reply = ask(f"{proxy.url}-/{target}", method=method)
    assert (reply.status, reply["Allow"]) == (405, allowed)
    assert allowed in reply.json()["error"]
