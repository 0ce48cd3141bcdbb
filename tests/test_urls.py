"""URLs taken apart, put together again and shown: one spelling each, nothing rewritten."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachefsm.errors import UsageError
from cachefsm.urls import OriginUrl, parse_url, redact

SECRET = "s3cr3t"


# -- taken apart --------------------------------------------------------------


def test_a_url_is_taken_apart() -> None:
    url = parse_url("https://name:word@origin.test:8443/a/b.mkv?x=1&y=2")
    assert url == OriginUrl("https", "name:word", "origin.test", 8443, "/a/b.mkv?x=1&y=2")
    assert url.authority == "origin.test:8443"
    assert url.origin == "https://origin.test:8443"
    assert str(url) == "https://name:word@origin.test:8443/a/b.mkv?x=1&y=2"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("HTTP://Origin.TEST/", "http://origin.test/"),
        ("http://origin.test", "http://origin.test/"),
        ("http://origin.test:80/a", "http://origin.test/a"),
        ("https://origin.test:443/a", "https://origin.test/a"),
        ("https://origin.test:80/a", "https://origin.test:80/a"),
        ("http://origin.test:/a", "http://origin.test/a"),
        ("http://origin.test/a#part", "http://origin.test/a"),
        ("http://origin.test#part", "http://origin.test/"),
        ("http://origin.test?a=b", "http://origin.test/?a=b"),
        ("http://origin.test/a?b#c?d", "http://origin.test/a?b"),
        ("http://[2001:DB8::1]:8080/", "http://[2001:db8::1]:8080/"),
        ("http://[::1]/", "http://[::1]/"),
    ],
)
def test_what_is_safe_to_normalise_is_normalised(text: str, normal: str) -> None:
    assert str(parse_url(text)) == normal
    assert parse_url(text) == parse_url(normal)


@pytest.mark.parametrize(
    "target",
    [
        "/%2e%2e/x/../y",  # decoding it would leave a mount
        "/%41%7e~",
        "/a?",  # an empty query is not no query
        "/a?sig=%2B+/=&b=c?d",
        "//a///b",
        "/a;b=c",
        "/a:b@c",
        "/@scope/film",
    ],
)
def test_path_and_query_stay_byte_for_byte(target: str) -> None:
    assert parse_url(f"http://origin.test{target}").target == target


@pytest.mark.parametrize(
    ("text", "userinfo", "host"),
    [
        ("http://name@origin.test/", "name", "origin.test"),
        ("http://name:@origin.test/", "name:", "origin.test"),
        ("http://:word@origin.test/", ":word", "origin.test"),
        ("http://@origin.test/", "", "origin.test"),
        ("http://origin.test/", None, "origin.test"),
        ("http://Na%40me:W%3Ard@[::1]:81/", "Na%40me:W%3Ard", "::1"),
    ],
)
def test_credentials_stand_before_the_host(text: str, userinfo: str | None, host: str) -> None:
    url = parse_url(text)
    assert (url.userinfo, url.host) == (userinfo, host)


# -- refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin.test/film",
        "//origin.test/film",
        "/film",
        "http:film",
        "http:/origin.test/film",
        "http://",
        "http:///film",
        "http://:80/film",
        "http://name@/film",
        "ftp://origin.test/film",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http+unix://socket/",
        "http://origin.test:99999/",
        "http://origin.test:-1/",
        "http://origin.test:0/",
        "http://origin.test:8o/",
        "http://origin.test:80:80/",
        "http://[::1/",
        "http://::1/",
        "http://[::1]origin.test/",
        "http://origin.test[::1]/",
        "http://[::1][::2]/",
        "http://[::1]@[::2]x/",
        "http://%31%32%37.0.0.1/",
        "http://loc%61lhost/",
        "http://origin..test/",
        "http://.test/",
        "http://*.test/",
        f"http://{'a' * 64}.test/",
        "http://a b/",
        "http://origin.test/a b",
        "http://origin.test/\t",
        "http://origin.test/a\nb",
        "http://origin.test/a\r\nHost: b",
        "http://origin.test/\x00",
        "http://origin.test/\x7f",
        "http://origin.test\\@elsewhere.test/",
        "http:\\\\origin.test\\film",
        "http://origin.test/ü",
        "http://örigin.test/",
        "http://origin.test/\ud800",
        " http://origin.test/",
        "http://or<igin>.test/",
        'http://or"igin.test/',
        "http://or^igin.test/",
    ],
)
def test_what_is_no_url_of_an_origin_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    assert "\n" not in str(caught.value)


@given(
    text=st.text(max_size=40) | st.text("htps:/@[]#?.%\\a0 \t", max_size=30).map("http://".__add__)
)
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    try:
        url = parse_url(text)
    except UsageError:
        return
    assert parse_url(str(url)) == url
    assert str(parse_url(str(url))) == str(url)


HOST = st.from_regex(r"[a-z0-9-]{1,6}(\.[a-z0-9-]{1,6}){0,2}", fullmatch=True) | st.just("[::1]")
PATH = st.text(string.ascii_letters + string.digits + "/%~;@:&=+,.!*'()-_", max_size=20)


@given(
    scheme=st.sampled_from(["http", "https"]),
    host=HOST,
    port=st.none() | st.integers(1, 65535),
    path=PATH,
    query=st.none() | PATH,
)
@example(scheme="http", host="origin.test", port=None, path="", query="")
def test_every_well_formed_url_is_taken_apart_and_put_together(
    scheme: str, host: str, port: int | None, path: str, query: str | None
) -> None:
    target = f"/{path}" + ("" if query is None else f"?{query}")
    url = parse_url(f"{scheme}://{host}{'' if port is None else f':{port}'}{target}")
    assert url.target == target
    assert url.port == (port or {"http": 80, "https": 443}[scheme])
    assert url.host == host.strip("[]")
    assert parse_url(str(url)) == url


# -- shown --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://origin.test/a/b.mkv", "http://origin.test/a/b.mkv"),
        ("http://origin.test", "http://origin.test"),
        ("http://name:s3cr3t@origin.test:81/a", "http://origin.test:81/a"),
        ("http://s3cr3t@[::1]:81/a", "http://[::1]:81/a"),
        ("http://origin.test/a?sig=s3cr3t", "http://origin.test/a?…"),
        ("http://origin.test/a?", "http://origin.test/a?…"),
        ("http://origin.test/a#s3cr3t", "http://origin.test/a"),
        ("http://origin.test/@scope/a", "http://origin.test/@scope/a"),
        ("http://origin.test?s3cr3t", "http://origin.test?…"),
    ],
)
def test_a_url_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        f"name:{SECRET}@origin.test/film",
        f"http:/name:{SECRET}@origin.test/film",
        f"http:name:{SECRET}@origin.test/film",
        f"http:///name:{SECRET}@origin.test/film",
        f"http://name:{SECRET}/more@origin.test/film",
        f"http://name:{SECRET}?more@origin.test/film",
        f"http://name:{SECRET}#more@origin.test/film",
        f"http://name:{SECRET}@more@origin.test/film",
        f"http://name:{SECRET} more@origin.test/film",
        f"http:\\\\name:{SECRET}@origin.test\\film",
        f"ftp://name:{SECRET}@origin.test/film",
        f"http://origin.test:x/film?sig={SECRET}",
        f"http://origin.test /film?sig={SECRET}",
        f"http://origin.test:x/film#{SECRET}",
        f"origin.test/film?sig={SECRET}",
    ],
)
def test_not_even_a_refusal_shows_a_secret(text: str) -> None:
    assert SECRET not in redact(text)
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    assert SECRET not in str(caught.value)


@given(
    name=st.text(string.ascii_letters + ":%!$&'()*+,;=", max_size=8),
    path=PATH,
    query=st.text(string.ascii_letters + "?/@:", max_size=8),
)
def test_no_spelling_of_a_url_shows_its_credentials_or_query(
    name: str, path: str, query: str
) -> None:
    text = f"http://{name}{SECRET}@origin.test/{path}?{query}{SECRET}#{SECRET}"
    assert redact(text) == f"http://origin.test/{path}?…"
    assert redact(str(parse_url(text))) == f"http://origin.test/{path}?…"
