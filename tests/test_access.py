"""Which origins may be visited, which paths may be asked for, who may give orders."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.access import (
    AllowList,
    check_path,
    is_same_origin,
    parse_mount,
    split_host,
)
from cachefsm.addresses import host_matches
from cachefsm.errors import UsageError
from cachefsm.urls import parse_url
from tests.support.caches import WAIT_S
from tests.support.threads import in_thread

# -- mounts -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "base"),
    [
        ("/films=http://origin.test/base/", "/films", "http://origin.test/base/"),
        ("/films=http://origin.test/base", "/films", "http://origin.test/base/"),
        ("/f.1_~-=https://origin.test:8443", "/f.1_~-", "https://origin.test:8443/"),
        ("/https2=http://a:b@origin.test/", "/https2", "http://a:b@origin.test/"),
        ("/eq=http://origin.test/a=b/", "/eq", "http://origin.test/a=b/"),
    ],
)
def test_a_mount_is_a_name_and_a_base_that_ends_in_a_slash(text: str, name: str, base: str) -> None:
    mount = parse_mount(text)
    assert (mount.name, str(mount.base)) == (name, base)


def test_what_follows_the_mount_s_name_follows_the_base_unchanged() -> None:
    mount = parse_mount("/films=http://origin.test/base")
    assert str(mount.url("a%20b/c.mkv?x=%2F")) == "http://origin.test/base/a%20b/c.mkv?x=%2F"
    assert str(mount.url("")) == "http://origin.test/base/"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/films",
        "films=http://origin.test/",
        "/=http://origin.test/",
        "/a/b=http://origin.test/",
        "/a b=http://origin.test/",
        "/%41=http://origin.test/",
        "/-=http://origin.test/",  # the proxy's own routes
        "/http=http://origin.test/",
        "/https=http://origin.test/",
        "/.=http://origin.test/",
        "/..=http://origin.test/",
        "/films=",
        "/films=origin.test",
        "/films=ftp://origin.test/",
        "/films=http://origin.test/?a=b",
        "/films\n=http://origin.test/",
    ],
)
def test_what_is_no_mount_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount(text)
    assert "\n" not in str(caught.value)


# -- origins ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("origin.test", "http://origin.test/a", True),
        ("origin.test", "https://origin.test/a", True),
        ("origin.test", "http://origin.test:8080/a", False),  # another port, another service
        ("origin.test", "http://origin.test:443/a", False),  # https' own port, not http's
        ("Origin.Test", "http://oRiGiN.test/a", True),
        ("origin.test:8080", "http://origin.test:8080/a", True),
        ("origin.test:8080", "http://origin.test/a", False),
        ("origin.test:*", "http://origin.test:12345/a", True),
        ("origin.test", "http://sub.origin.test/a", False),
        ("origin.test", "http://origin.test.evil.test/a", False),
        ("origin.test", "http://evilorigin.test/a", False),
        ("origin.test", "http://origin.test@evil.test/a", False),
        ("*.origin.test", "http://a.origin.test/a", True),
        ("*.origin.test", "http://a.b.origin.test/a", True),
        ("*.origin.test", "http://origin.test/a", False),
        ("*.origin.test", "http://evilorigin.test/a", False),
        ("*.origin.test", "http://a.origin.test:81/a", False),
        ("*.origin.test:*", "http://a.origin.test:81/a", True),
        ("*", "http://anything.test/a", True),
        ("*", "https://anything.test/a", True),
        ("*", "http://anything.test:81/a", False),
        ("*:*", "http://anything.test:81/a", True),
        ("*:81", "http://anything.test:81/a", True),
        ("[::1]", "http://[::1]/a", True),
        ("::1", "http://[::1]/a", True),
        ("[::1]:8080", "http://[::1]:8080/a", True),
        ("[::1]:8080", "http://[::1]/a", False),
        ("127.0.0.1", "http://127.0.0.1/a", True),
        ("127.0.0.1", "http://127.0.0.1.evil.test/a", False),
    ],
)
def test_a_pattern_names_hosts_and_ports(pattern: str, url: str, allowed: bool) -> None:
    allow = AllowList([pattern])
    assert allow.names(parse_url(url)) is allowed
    assert (parse_url(url) in allow) is allowed


def test_nothing_is_allowed_that_was_not_named() -> None:
    assert parse_url("http://origin.test/") not in AllowList()
    assert parse_url("http://origin.test/") not in AllowList(["other.test"])
    assert parse_url("http://origin.test/") in AllowList(["other.test", "origin.test"])


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*.",
        "a*",
        "*a",
        "a.*.b",
        "**",
        "a b",
        "a/b",
        "http://origin.test",
        "origin.test:http",
        "origin.test:-1",
        "origin.test:8o",
        "user@origin.test",
        "[::1]x",
        "[::1]80",
        "[::1",
        "origin.test:²",
        ":80",
        "örigin.test",
    ],
)
def test_what_names_no_host_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"no host to allow|no port"):
        AllowList([pattern])


def test_a_mounted_origin_may_be_visited_but_not_named_by_clients() -> None:
    allow = AllowList()
    allow.add(parse_url("http://mounted.test/base/"), by_url=False)
    allow.add(parse_url("http://asked.test/"), by_url=True)
    mounted, asked = parse_url("http://mounted.test/x"), parse_url("http://asked.test/x")
    assert mounted in allow
    assert not allow.names(mounted)
    assert asked in allow
    assert allow.names(asked)


def test_one_allowed_origin_allows_no_other_scheme_or_port() -> None:
    allow = AllowList()
    allow.add(parse_url("http://origin.test/"), by_url=True)
    assert parse_url("https://origin.test/") not in allow
    assert parse_url("http://origin.test:81/") not in allow
    assert parse_url("http://name:word@origin.test/other") in allow


def test_origins_may_be_added_while_others_are_looked_up() -> None:
    allow = AllowList()
    urls = [parse_url(f"http://origin{number}.test/") for number in range(200)]
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(WAIT_S)
        for url in urls[number::8]:
            allow.add(url, by_url=bool(number % 2))
            assert url in allow

    for done in [in_thread(work, number) for number in range(8)]:
        done.result(WAIT_S)
    assert all(url in allow for url in urls)


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("*", "", True),
        ("*.test", "a.test", True),
        ("*.test", ".test", True),
        ("*.test", "test", False),
        ("test", "test", True),
        ("test", "Test", False),  # the caller brings lower case
    ],
)
def test_hosts_are_matched_whole_or_by_suffix(pattern: str, host: str, matches: bool) -> None:
    assert host_matches(pattern, host) is matches


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("origin.test", ("origin.test", "")),
        ("origin.test:80", ("origin.test", "80")),
        ("origin.test:", ("origin.test", "")),
        ("[::1]", ("::1", "")),
        ("[::1]:80", ("::1", "80")),
        ("::1", ("::1", "")),
        ("", ("", "")),
        ("[::1]80", ("[::1]80", "")),
        ("[::1", ("[::1", "")),
    ],
)
def test_a_host_is_parted_from_its_port(text: str, parts: tuple[str, str]) -> None:
    assert split_host(text) == parts


# -- paths --------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a/b.mkv",
        "/a//b/",
        "/a.b/..c/d../.../e",
        "/%20/%C3%BC/%25",
        "/a?../..",  # a query climbs nowhere
        "/a?x=%2e%2e/",
        "/a%3f/b",
        "/;a/b;c=d",
        "/100%",
        "/%zz%2",
        "/%c3%ae/%c3%80%af/%e0%a0%ae",  # letters, one byte away from overlong dots
        "/%252525",
    ],
)
def test_an_ordinary_path_passes(target: str) -> None:
    check_path(target)


CLIMBS = [
    *("..", ".", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "%2e", "..;x", "..;", ".;a=b"),
    *("%25252e%25252e", "%u002e%u002E", "%c0%ae%c0%AE", "%e0%80%ae.", "%f0%80%80%ae%2e"),
    *("x%c0%af..", "..%c1%9cx", "x%e0%81%9c..", "%25c0%25ae."),
]


@pytest.mark.parametrize("climb", CLIMBS)
@pytest.mark.parametrize("frame", ["/{}", "/a/{}", "/{}/b", "/a%2f{}%2fb", "/a%5c{}", "/a%252f{}"])
def test_a_path_that_climbs_is_refused_however_it_is_spelled(frame: str, climb: str) -> None:
    with pytest.raises(UsageError, match="segments"):
        check_path(frame.format(climb))


def test_a_path_that_is_escaped_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="many times"):
        check_path("/%" + "25" * 5000 + "2e")


@pytest.mark.parametrize("target", ["/a\\b", "/..\\a", "\\"])
def test_a_backslash_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="backslash"):
        check_path(target)


@pytest.mark.parametrize("target", ["/a%00", "/..%00/b", "/a%2500b"])
def test_an_escaped_nul_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="NUL"):
        check_path(target)


@given(st.text("./\\%25eEfFcC;a?", max_size=24))
def test_no_path_that_passes_climbs_once_it_is_decoded(target: str) -> None:
    try:
        check_path(target)
    except UsageError:
        return
    path = target.partition("?")[0]
    for _ in range(3):
        segments = path.replace("\\", "/").split("/")
        assert ".." not in segments
        assert "." not in segments
        path = decoded_once(path)
        if "%" not in path:
            break


def decoded_once(path: str) -> str:
    """Percent-decode by hand: another way than that of the code under test."""
    out, index = "", 0
    while index < len(path):
        digits = path[index + 1 : index + 3]
        if (
            path[index] == "%"
            and len(digits) == 2
            and set(digits.lower()) <= set("0123456789abcdef")
        ):
            out, index = out + chr(int(digits, 16)), index + 3
        else:
            out, index = out + path[index], index + 1
    return out


# -- orders -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({}, True),  # a program, not a page
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),  # typed by the person
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": ""}, False),
        ({"origin": "http://127.0.0.1:8080"}, True),
        ({"origin": "HTTP://127.0.0.1:8080"}, True),
        ({"origin": "https://127.0.0.1:8080"}, True),
        ({"origin": "http://127.0.0.1"}, False),
        ({"origin": "http://127.0.0.1:8081"}, False),
        ({"origin": "http://127.0.0.1:8080.evil.test"}, False),
        ({"origin": "http://evil.test"}, False),
        ({"origin": "null"}, False),  # a sandboxed frame, a data: page
        ({"origin": ""}, False),
        ({"origin": "http://127.0.0.1:8080", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "http://evil.test", "sec-fetch-site": "same-origin"}, False),
    ],
)
def test_no_other_site_s_page_may_give_orders(fields: dict[str, str], same: bool) -> None:
    assert is_same_origin(fields, "127.0.0.1:8080") is same


def test_the_host_s_case_does_not_matter() -> None:
    assert is_same_origin({"origin": "http://player.test"}, "Player.TEST")
