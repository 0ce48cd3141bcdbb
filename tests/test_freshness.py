"""RFC 9111 as a private cache: storing, age, freshness, Vary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.fields import format_http_date
from cachefsm.freshness import (
    UNDATED_LIFETIME_S,
    current_age_s,
    freshness_lifetime_s,
    invalidates,
    may_serve_stale,
    may_store,
    needs_validation,
    parse_cache_control,
    vary_key,
    with_age,
)

NOW_S = 1_700_000_000
DAY_S = 86_400

Fields = list[tuple[str, str]]


def control(*values: str) -> Fields:
    return [("Cache-Control", value) for value in values]


def date(name: str, ago_s: int) -> tuple[str, str]:
    return name, format_http_date(NOW_S - ago_s)


# -- Cache-Control ------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "directives"),
    [
        ([], {}),
        ([""], {}),
        (["no-store"], {"no-store": None}),
        (["No-Store, MAX-AGE=5"], {"no-store": None, "max-age": "5"}),
        (["no-store", "max-age=5"], {"no-store": None, "max-age": "5"}),
        (["max-age=5, max-age=9"], {"max-age": "5"}),
        (["max-age=5", "max-age=9"], {"max-age": "5"}),
        (['max-age="5"'], {"max-age": "5"}),
        (["max-age="], {"max-age": ""}),
        (["max-age = 5"], {"max-age": None}),
        (['no-cache="a, no-store", public'], {"no-cache": "a, no-store", "public": None}),
        (['x="a\\"b, no-store"'], {"x": 'a"b, no-store'}),
        (['x="", public'], {"x": "", "public": None}),
        (["ext=1, public"], {"ext": "1", "public": None}),
        (["immutable,,\tpublic,"], {"immutable": None, "public": None}),
        (['x="unclosed, no-store'], {"x": "", "no-store": None}),
        (["=, no-store"], {"no-store": None}),
    ],
)
def test_cache_control_is_read(values: list[str], directives: dict[str, str | None]) -> None:
    assert parse_cache_control(control(*values)) == directives


@pytest.mark.parametrize("piece", [",", " ", "\t,", "=", '"', 'a="', 'a="\\",', '\\"', 'a="\\\n,'])
def test_long_cache_control_is_read_in_linear_time(piece: str) -> None:
    parse_cache_control(control("x," + piece * 50_000 + ",no-store"))


# -- storing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "may"),
    [
        ("GET", 200, True),
        ("GET", 206, True),
        ("GET", 404, False),
        ("GET", 304, False),
        ("HEAD", 200, False),
        ("POST", 200, False),
    ],
)
def test_only_200_and_206_to_get_are_stored(method: str, status: int, may: bool) -> None:
    assert may_store(method, status, [], []) is may


@pytest.mark.parametrize(
    ("request_control", "response_control", "may"),
    [
        ("", "private, max-age=5", True),
        ("", "no-cache", True),
        ("", "max-age=0", True),
        ("", "no-store", False),
        ("", "no-store, must-understand", True),
        ("no-store", "", False),
        ("no-store, must-understand", "", False),
        ("no-cache", "", True),
    ],
)
def test_no_store_forbids_storing(request_control: str, response_control: str, may: bool) -> None:
    assert may_store("GET", 200, control(request_control), control(response_control)) is may


def test_what_varies_on_everything_is_not_stored() -> None:
    assert not may_store("GET", 200, [], [("Vary", "accept, *")])
    assert may_store("GET", 200, [], [("Vary", "accept")])


# -- freshness lifetime -------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "lifetime_s"),
    [
        (control("max-age=60"), 60),
        (control("max-age=0"), 0),
        (control("s-maxage=99, max-age=60"), 60),  # shared caches only
        (control("s-maxage=99"), UNDATED_LIFETIME_S),
        (control("max-age=" + "9" * 5000), 2**31),
        (control("max-age=-5"), 0),
        (control("max-age=1.5"), 0),
        (control("max-age"), 0),
        ([*control("max-age=60"), date("Expires", -999)], 60),  # max-age comes first
        ([date("Date", 100), date("Expires", 40)], 60),
        ([date("Expires", -60)], 60),  # no Date: from when it was received
        ([date("Date", 0), date("Expires", 60)], 0),
        ([("Expires", "0"), date("Last-Modified", DAY_S)], 0),  # malformed: expired
        ([date("Expires", -60), date("Expires", -90)], 0),  # which of them?
        ([date("Date", 0), date("Last-Modified", 1000)], 100),
        ([date("Date", 500), date("Last-Modified", 1000)], 50),
        ([date("Last-Modified", 1000)], 100),
        ([date("Last-Modified", 10 * DAY_S - 10)], DAY_S - 1),
        ([date("Last-Modified", 999 * DAY_S)], DAY_S),
        ([date("Last-Modified", -1000)], 0),
        ([("Last-Modified", "long ago")], UNDATED_LIFETIME_S),
        ([], UNDATED_LIFETIME_S),
        ([("Content-Type", "video/mp4")], UNDATED_LIFETIME_S),
        ([("Content-Type", "text/html")], 0),
        ([("Content-Type", "text/plain; charset=utf-8")], 0),
        ([("Content-Type", "text/xml")], 0),
        ([("Content-Type", "application/json")], 0),
        ([("Content-Type", "application/problem+json; charset=utf-8")], 0),
        ([("Content-Type", "application/xml")], 0),
        ([("Content-Type", "text/csv")], UNDATED_LIFETIME_S),
        ([("Content-Type", "application/vnd.apple.mpegurl"), date("Last-Modified", 1000)], 1),
        ([("Content-Type", "audio/mpegurl")], 1),
        ([("Content-Type", "application/dash+xml; charset=utf-8")], 1),
        ([("Content-Type", "Video/MP2T"), date("Last-Modified", 1000)], 100),
    ],
)
def test_the_lifetime_is_explicit_or_a_tenth_of_the_age(fields: Fields, lifetime_s: int) -> None:
    assert freshness_lifetime_s(200, fields, received_s=NOW_S) == lifetime_s


@pytest.mark.parametrize(
    ("status", "extra", "lifetime_s"),
    [
        *((status, [], 100) for status in (200, 203, 204, 206, 300, 301, 308)),
        *((status, [], 100) for status in (404, 405, 410, 414, 501)),
        *((status, [], 0) for status in (201, 302, 307, 400, 403, 500, 503)),
        (302, control("public"), 100),
    ],
)
def test_the_heuristic_is_for_some_statuses(status: int, extra: Fields, lifetime_s: int) -> None:
    fields = [date("Last-Modified", 1000), *extra]
    assert freshness_lifetime_s(status, fields, received_s=NOW_S) == lifetime_s


# -- age ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "age_s"),
    [
        ([date("Date", 0)], 2 + 10),  # two seconds on the way, ten here
        ([date("Date", 30)], 30 + 10),
        ([date("Date", 30), ("Age", "100")], 100 + 2 + 10),
        ([date("Date", 300), ("Age", "100")], 300 + 10),
        ([date("Date", -300)], 2 + 10),  # a clock that is ahead
        ([("Age", "100, 7")], 100 + 2 + 10),
        ([("Age", "-5")], 2 + 10),
        ([("Age", "old")], 2 + 10),
        ([("Age", "")], 2 + 10),
        ([], 2 + 10),
    ],
)
def test_the_age_is_the_oldest_that_can_be_argued(fields: Fields, age_s: int) -> None:
    asked_s, got_s = NOW_S - 2, NOW_S
    age = current_age_s(fields, requested_s=asked_s, received_s=got_s, now_s=NOW_S + 10)
    assert age == age_s


def test_an_answer_that_came_at_once_is_as_old_as_it_has_been_here() -> None:
    received = {"requested_s": NOW_S, "received_s": NOW_S}
    assert current_age_s([date("Date", 0)], **received, now_s=NOW_S) == 0
    assert current_age_s([date("Date", 0)], **received, now_s=NOW_S + 10) == 10


def test_age_is_replaced_when_served() -> None:
    assert with_age([("age", "7"), ("X", "1")], 12.9) == (("X", "1"), ("Age", "12"))
    assert with_age([], -3.0) == (("Age", "0"),)


# -- use ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_control", "response_control", "age_s", "needed"),
    [
        ("", "", 59, False),
        ("", "", 60, True),  # fresh is older than its age, not as old
        ("", "no-cache", 0, True),
        ("", 'no-cache="Set-Cookie"', 0, True),
        ("", "no-store", 0, True),
        ("", "no-store, must-understand", 59, False),
        ("", "must-revalidate", 59, False),
        ("no-cache", "", 0, True),
        ("max-age=10", "", 10, False),
        ("max-age=10", "", 11, True),
        ("max-age=x", "", 1, True),
        ("max-age=0", "", 0, False),
        ("min-fresh=20", "", 39, False),
        ("min-fresh=20", "", 40, True),
        ("min-fresh=x", "", 59, False),
        ("max-stale", "", 9999, False),
        ("max-stale=10", "", 70, False),
        ("max-stale=10", "", 71, True),
        ("max-stale=x", "", 61, True),
        ("max-stale", "must-revalidate", 60, True),
        ("max-stale, max-age=65", "", 66, True),
    ],
)
def test_when_the_origin_must_be_asked_first(
    request_control: str, response_control: str, age_s: int, needed: bool
) -> None:
    request, response = control(request_control), control(response_control)
    assert needs_validation(request, response, lifetime_s=60, age_s=age_s) is needed


def test_pragma_is_heard_where_cache_control_is_absent() -> None:
    pragma = [("Pragma", "No-Cache")]
    assert needs_validation(pragma, [], lifetime_s=60, age_s=0)
    assert not needs_validation(pragma + control("max-age=9"), [], lifetime_s=60, age_s=0)
    assert not needs_validation([], pragma, lifetime_s=60, age_s=0)


@pytest.mark.parametrize(
    ("directive", "may"),
    [
        ("", True),
        ("max-age=5, private", True),
        ("proxy-revalidate", True),
        ("must-revalidate", False),
        ("no-cache", False),
        ("no-store", False),
        ("no-store, must-understand", True),
    ],
)
def test_some_directives_forbid_serving_stale(directive: str, may: bool) -> None:
    assert may_serve_stale(control(directive)) is may


@pytest.mark.parametrize(
    ("method", "status", "doubtful"),
    [
        ("PUT", 204, True),
        ("DELETE", 200, True),
        ("POST", 303, True),
        ("FROBNICATE", 200, True),
        ("PUT", 400, False),
        ("PUT", 500, False),
        ("GET", 200, False),
        ("HEAD", 200, False),
        ("OPTIONS", 200, False),
        ("TRACE", 200, False),
    ],
)
def test_a_successful_unsafe_request_invalidates(method: str, status: int, doubtful: bool) -> None:
    assert invalidates(method, status) is doubtful


# -- Vary ---------------------------------------------------------------------


def test_a_response_without_vary_matches_every_request() -> None:
    assert vary_key([], [("Accept", "a")]) == vary_key([], []) == ()


def test_the_key_is_the_fields_that_vary_names() -> None:
    stored = [("Vary", "Origin, accept"), ("vary", "Accept")]
    asked = [("ACCEPT", " a "), ("accept", "b"), ("Cookie", "c")]
    assert vary_key(stored, asked) == (("accept", "a, b"), ("origin", None))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("Accept-Language", ["de,fr;q=0.5"], ["de , \tfr;q=0.5"]),
        ("Accept-Language", ["de, fr"], ["de", " fr"]),
        ("accept", ['a/b;c="d,e",f/g'], ['a/b;c="d,e" ,f/g']),
        ("Accept", ['a/b;c="d\\",e"', "f"], ['a/b;c="d\\",e",f']),
        ("Prefer", ["wait=1,x"], ["wait=1, x"]),
    ],
)
def test_white_space_between_members_and_lines_of_a_list_make_no_difference(
    name: str, one: list[str], other: list[str]
) -> None:
    stored = [("Vary", name)]
    asked = [[(name, value) for value in values] for values in (one, other)]
    assert vary_key(stored, asked[0]) == vary_key(stored, asked[1])


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("Accept-Language", "de, fr", "fr, de"),
        ("Accept-Language", "de", "DE"),
        ("Accept-Language", "de, fr", "de fr"),
        ("Accept", 'a/b;c="d,e"', 'a/b;c="d, e"'),
        ("Accept", 'a/b;c="d,e', 'a/b;c="d, e'),
        ("User-Agent", "Player (a,b)", "Player (a, b)"),
        ("X-Kind", "a,b", "a, b"),
    ],
)
def test_any_other_difference_is_one(name: str, one: str, other: str) -> None:
    stored = [("Vary", name)]
    assert vary_key(stored, [(name, one)]) != vary_key(stored, [(name, other)])


def test_what_varies_on_everything_matches_nothing() -> None:
    assert vary_key([("Vary", "Accept, *")], []) is None


@given(st.text(), st.text(st.sampled_from('max-age="\\,5 =no'), max_size=30))
def test_no_text_makes_freshness_raise(text: str, directives: str) -> None:
    for value in (text, directives):
        names = ("Cache-Control", "Age", "Date", "Expires", "Last-Modified", "Vary", "Pragma")
        fields = [(name, value) for name in names]
        lifetime_s = freshness_lifetime_s(200, fields, received_s=NOW_S)
        age_s = current_age_s(fields, requested_s=NOW_S, received_s=NOW_S, now_s=NOW_S)
        assert lifetime_s >= 0
        assert age_s >= 0
        needs_validation(fields, fields, lifetime_s=lifetime_s, age_s=age_s)
        may_store("GET", 200, fields, fields)
        vary_key(fields, fields)
