"""Conditional requests of clients: RFC 9110 §13, in the order of §13.2.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.preconditions import evaluate_preconditions, if_range_holds

BEFORE = "Sun, 06 Nov 1994 08:00:00 GMT"
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
AFTER = "Sun, 06 Nov 1994 09:00:00 GMT"


def evaluate(
    method: str = "GET",
    *,
    etag: str | None = '"a"',
    last_modified: str | None = MODIFIED,
    date: str | None = None,
    **conditions: str,
) -> int | None:
    fields = [(name.replace("_", "-"), value) for name, value in conditions.items()]
    return evaluate_preconditions(method, fields, etag=etag, last_modified=last_modified, date=date)


def test_an_unconditional_request_goes_on() -> None:
    assert evaluate() is None


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        ('"a"', None),
        ('"b", "a"', None),
        ("*", None),
        ('"b"', 412),
        ('W/"a"', 412),  # strong comparison
        ("a", 412),
        ('"a', 412),
    ],
)
def test_if_match_compares_strongly(if_match: str, status: int | None) -> None:
    assert evaluate(if_match=if_match) == status


def test_if_match_fails_without_an_etag() -> None:
    assert evaluate(etag=None, if_match='"a"') == 412
    assert evaluate(etag='W/"a"', if_match='W/"a"') == 412


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [
        ('"a"', 304),
        ('W/"a"', 304),  # weak comparison
        ('"b", "a"', 304),
        ("*", 304),
        ('"b"', None),
        ("a", None),
        ('"a" "b"', None),
    ],
)
def test_if_none_match_compares_weakly(if_none_match: str, status: int | None) -> None:
    assert evaluate(if_none_match=if_none_match) == status


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 304), ("HEAD", 304), ("PUT", 412), ("DELETE", 412)]
)
def test_a_matched_if_none_match_is_304_for_reading_only(method: str, status: int) -> None:
    assert evaluate(method, if_none_match='"a"') == status


@pytest.mark.parametrize(
    ("since", "status"),
    [(BEFORE, None), (MODIFIED, 304), (AFTER, 304), ("yesterday", None), ("", None)],
)
def test_if_modified_since_compares_dates(since: str, status: int | None) -> None:
    assert evaluate(if_modified_since=since) == status


def test_if_modified_since_is_for_reading_only() -> None:
    assert evaluate("HEAD", if_modified_since=AFTER) == 304
    assert evaluate("PUT", if_modified_since=AFTER) is None


def test_the_date_stands_in_for_a_missing_last_modified() -> None:
    assert evaluate(last_modified=None, date=MODIFIED, if_modified_since=MODIFIED) == 304
    assert evaluate(last_modified=None, date=MODIFIED, if_modified_since=BEFORE) is None
    assert evaluate(last_modified=BEFORE, date=AFTER, if_modified_since=MODIFIED) == 304
    assert evaluate(last_modified=None, if_modified_since=AFTER) is None


@pytest.mark.parametrize(
    ("since", "status"), [(BEFORE, 412), (MODIFIED, None), (AFTER, None), ("yesterday", None)]
)
def test_if_unmodified_since_compares_dates(since: str, status: int | None) -> None:
    assert evaluate(if_unmodified_since=since) == status


def test_if_unmodified_since_needs_a_last_modified() -> None:
    assert evaluate(last_modified=None, date=AFTER, if_unmodified_since=BEFORE) is None


def test_if_match_silences_if_unmodified_since() -> None:
    assert evaluate(if_match='"a"', if_unmodified_since=BEFORE) is None
    assert evaluate(if_match='"b"', if_unmodified_since=AFTER) == 412


def test_if_none_match_silences_if_modified_since() -> None:
    assert evaluate(if_none_match='"b"', if_modified_since=AFTER) is None
    assert evaluate(if_none_match='"a"', if_modified_since=BEFORE) == 304


def test_a_failed_if_match_comes_before_a_matched_if_none_match() -> None:
    assert evaluate(if_match='"b"', if_none_match='"a"') == 412
    assert evaluate(if_match='"a"', if_none_match='"a"') == 304


def test_repeated_condition_fields_make_one_list() -> None:
    fields = [("If-None-Match", '"b"'), ("if-none-match", '"a"')]
    assert evaluate_preconditions("GET", fields, etag='"a"', last_modified=None) == 304


@pytest.mark.parametrize(
    ("text", "etag", "last_modified", "holds"),
    [
        ('"a"', '"a"', None, True),
        (' "a"\t', '"a"', None, True),
        ('"a"', '"b"', None, False),
        ('W/"a"', 'W/"a"', None, False),
        ('"a"', 'W/"a"', None, False),
        ('W/"a"', '"a"', None, False),
        ('"a", "b"', '"a"', None, False),
        ("*", '"a"', None, False),
        ("a", "a", None, False),
        ('"a"', None, None, False),
        (BEFORE, '"a"', BEFORE, True),
        (BEFORE, None, BEFORE, True),
        (BEFORE, None, None, False),
        (MODIFIED, None, BEFORE, False),  # later is not equal
        (BEFORE, None, MODIFIED, False),
        (AFTER, None, AFTER, False),  # not strong: modified when it was sent
        ("Sun Nov  6 08:00:00 1994", None, BEFORE, False),  # the same moment, not the text
        ("", None, None, False),
    ],
)
def test_if_range_holds_for_an_exact_strong_match_only(
    text: str, etag: str | None, last_modified: str | None, holds: bool
) -> None:
    assert if_range_holds(text, etag=etag, last_modified=last_modified, date=AFTER) is holds


def test_if_range_with_a_date_needs_the_date_of_the_answer() -> None:
    assert not if_range_holds(BEFORE, etag=None, last_modified=BEFORE, date=None)


_texts = st.text(st.sampled_from('W/"*,- \tabGMT0123456789:\x00'), max_size=20) | st.text()
_names = st.sampled_from(["If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"])


@given(st.lists(st.tuples(_names, _texts)), _texts, _texts)
def test_no_text_makes_a_precondition_raise(
    fields: list[tuple[str, str]], etag: str, last_modified: str
) -> None:
    status = evaluate_preconditions("GET", fields, etag=etag, last_modified=last_modified)
    assert status in (None, 304, 412)
    assert if_range_holds(etag, etag=last_modified, last_modified=None, date=None) in (True, False)
