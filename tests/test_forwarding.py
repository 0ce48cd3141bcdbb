"""What of a client's request reaches the origin, and what tells entries apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.access import Rules
from cachefsm.fields import Fields
from cachefsm.forwarding import relayed_fields, terms_of, visited
from cachefsm.terms import Terms

HOST = "127.0.0.1:8080"
PLAIN, PASSING = Rules(), Rules(passes=True)


def terms(*fields: tuple[str, str], rules: Rules = PLAIN) -> Terms:
    return terms_of(fields, rules, host=HOST, since_s=0.0)


# -- what is kept back ---------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["Accept-Encoding", "Cache-Control", "Content-Length", "Cookie", "Expect", "Host",
     "Icy-MetaData", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
     "If-Unmodified-Since", "Pragma", "Range", "Sec-Fetch-Site", "Access-Control-Request-Method",
     "Upgrade-Insecure-Requests", "Connection", "Keep-Alive", "Proxy-Authorization", "TE",
     "Trailer", "Transfer-Encoding", "Upgrade"],
)  # fmt: skip
def test_what_is_about_this_message_or_this_proxy_stays_here(name: str) -> None:
    told = terms((name, "x"))
    assert (told.forwarded, told.secrets) == ((), ())


def test_fields_that_connection_names_stay_here() -> None:
    told = terms(("Connection", "close, X-Hop"), ("X-Hop", "1"), ("X-End", "2"))
    assert told.forwarded == (("X-End", "2"),)


@pytest.mark.parametrize(
    ("name", "value", "goes"),
    [
        ("Referer", f"http://{HOST}/page", False),
        ("Referer", f"https://{HOST}", False),
        ("Referer", f"http://{HOST}.evil.test/", True),
        ("Referer", "http://page.test/", True),
        ("Origin", f"http://{HOST}", False),
        ("Origin", "null", False),
        ("Origin", "http://page.test", True),
    ],
)
def test_pages_of_this_proxy_are_not_told_of(name: str, value: str, goes: bool) -> None:
    assert terms((name, value)).forwarded == (((name, value),) if goes else ())
    assert relayed_fields([(name, value)], PASSING, host=HOST) == (((name, value),) if goes else ())


def test_what_could_start_another_header_line_goes_nowhere() -> None:
    odd = [("X-A", "1\r\nX-B: 2"), ("X C", "3")]
    assert terms(*odd).forwarded == ()
    assert relayed_fields(odd, PASSING, host=HOST) == ()


# -- what goes on, and what partitions -----------------------------------------


@pytest.mark.parametrize(
    "name",
    ["Accept", "Accept-Language", "User-Agent", "X-User-Agent", "DNT", "Priority", "Via",
     "traceparent", "X-Request-Id", "X-Requested-With", "X-Forwarded-For", "From", "Save-Data",
     "getcontentFeatures.dlna.org", "CMCD-Request", "CMCD-Session", "X-Playback-Session-Id",
     "X-Anything", "Req-Num"],
)  # fmt: skip
def test_what_tells_nothing_of_who_asks_is_passed_on_for_all(name: str) -> None:
    told = terms((name, "x"))
    assert (told.forwarded, told.secrets) == (((name, "x"),), ())


@pytest.mark.parametrize(
    "name",
    ["Authorization", "X-Api-Key", "apikey", "X-Auth-Token", "Private-Token", "X-Plex-Token",
     "X-Emby-Authorization", "X-Amz-Security-Token", "X-Session-Id", "X-SID", "X-CSRF-Token",
     "X-Forwarded-User", "Remote-User", "X-Tenant", "Cf-Access-Jwt-Assertion", "X-SSL-Client-Cert",
     "X-MS-Client-Principal", "DPoP", "Signature", "X-Password", "X-Account-Id", "X-OTP"],
)  # fmt: skip
def test_what_may_tell_users_apart_is_a_secret(name: str) -> None:
    told = terms((name, "x"))
    assert (told.forwarded, told.secrets) == ((), ((name, "x"),))


def test_cookies_go_only_where_every_method_does() -> None:
    cookie = ("Cookie", "user=a")
    assert terms(cookie).secrets == ()
    assert terms(cookie, rules=PASSING).secrets == (cookie,)


def test_a_mounts_own_field_takes_the_place_of_the_clients() -> None:
    own = Rules(fields=(("Authorization", "Bearer mount"), ("X-Kind", "film")))
    told = terms(("authorization", "Bearer client"), ("x-kind", "song"), rules=own)
    assert (told.forwarded, told.secrets) == ((), own.fields)


def test_the_mounts_rules_become_terms() -> None:
    told = terms(rules=Rules(fresh_s=9.0, offline=True, hands_on=True))
    assert (told.fresh_s, told.offline, told.hands_on) == (9.0, True, True)


def test_the_clients_own_directives_are_repeated_to_the_origin() -> None:
    asked = [("cache-control", "no-cache"), ("pragma", "no-cache")]
    assert terms(("x-a", "1"), *asked).directives == tuple(asked)


# -- what is relayed -----------------------------------------------------------


def test_a_relayed_request_keeps_all_but_what_is_for_one_hop() -> None:
    kept = [
        ("accept-encoding", "gzip"),
        ("cookie", "a=b"),
        ("content-type", "text/plain"),
        ("range", "bytes=0-1"),
        ("if-match", '"x"'),
        ("cache-control", "no-cache"),
        ("authorization", "Basic eDp5"),
        ("x-anything", "else"),
        ("via", "1.1 other"),
    ]
    gone = [
        ("host", HOST),
        ("expect", "100-continue"),
        ("content-length", "3"),
        ("te", "trailers"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("proxy-authorization", "Basic eDp5"),
    ]
    assert relayed_fields([*kept, *gone], PASSING, host=HOST) == tuple(kept)


def test_a_relayed_request_carries_the_mounts_own_fields() -> None:
    own = Rules(passes=True, fields=(("Authorization", "Bearer mount"),))
    assert relayed_fields([("authorization", "Basic eDp5")], own, host=HOST) == own.fields


# -- loops ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("via", "was_here"),
    [
        ([], False),
        (["1.1 me"], True),
        (["HTTP/1.1 me"], True),
        (["1.0 fred, 1.1 me (a comment)"], True),
        (["1.0 fred", "1.1 me"], True),
        (["1.1 mee"], False),
        (["1.1 other (me)"], False),
        (["me"], False),
        ([" , ,1.1"], False),
    ],
)
def test_a_request_that_comes_round_is_known(via: list[str], was_here: bool) -> None:
    assert visited([("Via", value) for value in via], "me") is was_here


FIELDS = st.lists(st.tuples(st.text(max_size=12), st.text(max_size=20)), max_size=6)


@given(FIELDS, st.sampled_from([PLAIN, PASSING]))
def test_every_field_goes_on_once_or_stays(fields: Fields, rules: Rules) -> None:
    told = terms_of(fields, rules, host=HOST, since_s=0.0)
    passed = [*told.forwarded, *told.secrets]
    assert sorted(passed) == sorted(field for field in fields if field in passed)
    visited(fields, "me")
    relayed_fields(fields, rules, host=HOST)
