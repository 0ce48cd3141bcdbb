"""Header fields as text: what is found, what is stripped, which dates are dates."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.fields import (
    end_to_end,
    format_http_date,
    is_sendable,
    members_of,
    parse_digits,
    parse_http_date,
    parse_seconds,
    value_of,
    values_of,
    without,
)
from cachefsm.ranges import END

_1994 = 784_111_777  # Sun, 06 Nov 1994 08:49:37 GMT, RFC 9110's example


def test_names_are_compared_without_case() -> None:
    assert values_of([("etag", '"a"'), ("ETAG", '"b"')], "ETag") == ['"a"', '"b"']


def test_only_spaces_and_tabs_are_stripped_from_values() -> None:
    assert values_of([("X", " \ta\u00a0 ")], "x") == ["a\u00a0"]


@pytest.mark.parametrize(
    ("values", "value"),
    [
        ([], None),
        ([""], None),
        ([" \t"], None),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["a", "a"], "a"),
        (["", "a"], "a"),
    ],
)
def test_repeated_fields_are_joined_and_identical_ones_count_once(
    values: list[str], value: str | None
) -> None:
    assert value_of([("X", text) for text in values], "x") == value


def test_list_members_are_lower_case_and_empty_ones_are_skipped() -> None:
    fields = [("Vary", ", Accept ,,\tOrigin"), ("vary", "cookie")]
    assert members_of(fields, "Vary") == ["accept", "origin", "cookie"]


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authentication-Info",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ],
)
def test_hop_by_hop_fields_are_stripped(name: str) -> None:
    assert end_to_end([(name, "x"), ("ETag", '"a"')]) == (("ETag", '"a"'),)


def test_fields_named_in_connection_are_stripped() -> None:
    fields = [("X-Trace", "1"), ("Connection", "close, x-trace"), ("A", "1"), ("Connection", "A")]
    assert end_to_end([*fields, ("B", "2")]) == (("B", "2"),)


def test_fields_are_left_out_by_lower_case_name() -> None:
    assert without([("Age", "1"), ("A", "2"), ("age", "3")], {"age"}) == (("A", "2"),)


@pytest.mark.parametrize(
    ("name", "value", "sendable"),
    [
        ("X-Name", "plain text", True),
        ("X-Name", "tab\there", True),
        ("X-Name", "caf\xe9", True),
        ("X-Name", "", True),
        ("X Name", "x", False),
        ("X-Name:", "x", False),
        ("", "x", False),
        ("X-Name\n", "x", False),
        ("X-Name", "folded\r\n line", False),
        ("X-Name", "bare\rcr", False),
        ("X-Name", "nul\0", False),
        ("X-Name", "del\x7f", False),
    ],
)
def test_only_one_whole_header_line_is_sendable(name: str, value: str, sendable: bool) -> None:
    assert is_sendable(name, value) is sendable


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        (str(END - 1), END - 1),
        (str(END), END),
        (str(END + 1), END),
        ("9" * 100_000, END),
        ("0" * 100_000 + "5", 5),
        (None, None),
        ("", None),
        ("-5", None),
        ("+5", None),
        ("5 ", None),
        ("5\n", None),
        ("1_000", None),
        ("3abc", None),
        ("\u0665", None),  # a digit, but an Arabic one
        ("\u00b2", None),
    ],
)
def test_digits_are_ascii_and_saturate(text: str | None, number: int | None) -> None:
    assert parse_digits(text) == number


def test_seconds_saturate_at_two_to_the_thirty_first() -> None:
    assert parse_seconds("2147483647") == 2**31 - 1
    assert parse_seconds("99999999999") == 2**31
    assert parse_seconds("9" * 5000) == 2**31
    assert parse_seconds("1.5") is None


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_three_forms_of_date_are_read(text: str) -> None:
    assert parse_http_date(text) == _1994


@pytest.mark.parametrize(
    ("text", "unix_s"),
    [
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
        ("Thu, 29 Feb 2024 12:00:00 GMT", 1_709_208_000),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800),  # a leap second
        ("Tuesday, 31-Dec-69 00:00:00 GMT", 3_155_673_600),  # 2069
        ("Thursday, 01-Jan-70 00:00:00 GMT", 0),  # 1970
        ("Fri Nov 18 08:49:37 1994", _1994 + 12 * 86_400),
    ],
)
def test_dates_are_unix_time(text: str, unix_s: int) -> None:
    assert parse_http_date(text) == unix_s


@pytest.mark.parametrize(
    "text",
    [
        "sUN, 06 nOV 1994 08:49:37 gMT",
        "SUNDAY, 06-NOV-94 08:49:37 GMT",
        "sun nov  6 08:49:37 1994",
        "Mon, 06 Nov 1994 08:49:37 GMT",  # it was a Sunday
        "Monday, 06-Nov-94 08:49:37 GMT",
        "Mon Nov  6 08:49:37 1994",
    ],
)
def test_a_date_may_be_a_little_wrong(text: str) -> None:
    assert parse_http_date(text) == _1994


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "0",
        "-1",
        "yesterday",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 AEST",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Son, 06 Nov 1994 08:49:37 GMT",
        "\u017fun, 06 Nov 1994 08:49:37 GMT",  # a long s
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Fri, 31 Feb 1995 08:49:37 GMT",
        "Sat, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun Nov   08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 GMT\n",
        " Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_date_is_none(text: str | None) -> None:
    assert parse_http_date(text) is None


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_dates_agree_with_the_standard_library(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    assert parse_http_date(format_datetime(moment, usegmt=True)) == moment.timestamp()


@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_a_formatted_date_is_read_back(unix_s: int) -> None:
    assert parse_http_date(format_http_date(unix_s)) == unix_s


@given(st.text())
def test_no_text_makes_the_parsers_raise(text: str) -> None:
    parse_digits(text)
    parse_http_date(text)
    end_to_end([(text, text), ("Connection", text)])
