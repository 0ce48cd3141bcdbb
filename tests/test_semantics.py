"""Ranges and validators on the wire: RFC 9110 §8.8 and §14, fact by fact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.ranges import END, ByteRange, RangeSet
from cachefsm.semantics import (
    ContentRange,
    RangeSpec,
    Validator,
    coalesce_ranges,
    format_range,
    parse_etags,
    parse_range,
    strong_match,
    weak_match,
)

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER_60_S = "Sun, 06 Nov 1994 08:48:37 GMT"
EARLIER_59_S = "Sun, 06 Nov 1994 08:48:38 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"

# -- Range --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("bytes=0-", [RangeSpec(0)]),
        ("bytes=0-1", [RangeSpec(0, 1)]),
        ("bytes=5-5", [RangeSpec(5, 5)]),
        ("bytes=-5", [RangeSpec(suffix_length=5)]),
        ("bytes=-0", [RangeSpec(suffix_length=0)]),
        ("BYTES=0-1", [RangeSpec(0, 1)]),
        (" bytes=0-1\t", [RangeSpec(0, 1)]),
        ("bytes=0-1,5-6", [RangeSpec(0, 1), RangeSpec(5, 6)]),
        ("bytes=0-1 ,\t5-6", [RangeSpec(0, 1), RangeSpec(5, 6)]),
        ("bytes=,0-1,,5-,", [RangeSpec(0, 1), RangeSpec(5)]),
        ("bytes=5-6,0-1", [RangeSpec(5, 6), RangeSpec(0, 1)]),
        (f"bytes={8 * 2**30}-", [RangeSpec(8 * 2**30)]),
    ],
)
def test_a_range_is_read(text: str, specs: list[RangeSpec]) -> None:
    assert parse_range(text) == tuple(specs)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=5-4",
        "bytes=0-1,5-4",
        "bytes=a-b",
        "bytes=0-1x",
        "bytes=0 - 1",
        "bytes =0-1",
        "bytes=--5",
        "bytes=+0-1",
        "bytes=1_0-",
        "bytes=0-1;5-6",
        "bytes=\u0660-\u0661",
        "bytes=0-\u00a0",
        "lines=0-1",
        "0-1",
        "bytes:0-1",
        "bytes=0-1, bytes=2-3",
    ],
)
def test_an_absent_malformed_or_foreign_range_is_ignored(text: str | None) -> None:
    assert parse_range(text) is None


@pytest.mark.parametrize(("count", "is_read"), [(64, True), (65, False)])
def test_more_than_64_ranges_are_ignored(count: int, is_read: bool) -> None:
    text = "bytes=" + ",".join(f"{10 * i}-{10 * i}" for i in range(count))
    assert (parse_range(text) is not None) is is_read


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("bytes=0-9,5-14", True),
        ("bytes=0-9,9-9", True),
        ("bytes=5-14,0-9", True),
        ("bytes=0-,5-", True),
        ("bytes=0-9,10-19,20-29", True),  # adjacent is not overlapping
        ("bytes=0-9,9-18,18-27", False),
        ("bytes=0-0,0-0,0-0", False),
        ("bytes=0-,1-2,4-5", False),  # both lie inside the first
        ("bytes=-1,-2", True),
        ("bytes=-1,-2,-3", False),  # suffixes all end at the end
        ("bytes=-1,-2,0-9,5-6", False),
        ("bytes=0-9,-5", True),
    ],
)
def test_more_than_two_overlapping_ranges_are_ignored(text: str, is_read: bool) -> None:
    assert (parse_range(text) is not None) is is_read


def test_absurd_digits_do_no_harm() -> None:
    huge = "9" * 100_000
    specs = parse_range(f"bytes=1-{huge}")
    assert specs is not None
    assert specs[0].resolve(10) == (1, 10)
    beyond = parse_range(f"bytes={huge}-")
    assert beyond is not None
    assert beyond[0].resolve(10) is None
    assert parse_range(f"bytes={huge}-5") is None


@pytest.mark.parametrize(
    ("spec", "complete_length", "resolved"),
    [
        (RangeSpec(0), 10, (0, 10)),
        (RangeSpec(0, 1), 10, (0, 2)),
        (RangeSpec(0, 9), 10, (0, 10)),
        (RangeSpec(9), 10, (9, 10)),
        (RangeSpec(5, 99), 10, (5, 10)),
        (RangeSpec(10), 10, None),
        (RangeSpec(10, 12), 10, None),
        (RangeSpec(11), 10, None),
        (RangeSpec(0), 0, None),
        (RangeSpec(suffix_length=3), 10, (7, 10)),
        (RangeSpec(suffix_length=10), 10, (0, 10)),
        (RangeSpec(suffix_length=11), 10, (0, 10)),
        (RangeSpec(suffix_length=0), 10, None),
        (RangeSpec(suffix_length=3), 0, None),
        (RangeSpec(5 * 2**30, 6 * 2**30), 7 * 2**30, (5 * 2**30, 6 * 2**30 + 1)),
    ],
)
def test_a_range_resolves_against_the_complete_length(
    spec: RangeSpec, complete_length: int, resolved: tuple[int, int] | None
) -> None:
    assert spec.resolve(complete_length) == resolved


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"last": 5},
        {"first": 5, "last": 4},
        {"first": 0, "suffix_length": 5},
        {"suffix_length": 5, "last": 4},
    ],
)
def test_a_range_spec_has_one_of_three_shapes(shape: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="range"):
        RangeSpec(**shape)


_specs = st.one_of(
    st.builds(RangeSpec, st.integers(0, END)),
    st.builds(RangeSpec, suffix_length=st.integers(0, END)),
    st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda p: RangeSpec(min(p), max(p))),
)


@given(_specs)
def test_a_printed_range_spec_is_read_back(spec: RangeSpec) -> None:
    assert parse_range(f"bytes={spec}") == (spec,)


@given(_specs, st.integers(0, 2**40))
def test_a_resolved_range_lies_inside_the_file(spec: RangeSpec, complete_length: int) -> None:
    resolved = spec.resolve(complete_length)
    assert resolved is None or 0 <= resolved.start < resolved.stop <= complete_length


@pytest.mark.parametrize(
    ("ranges", "coalesced"),
    [
        ([], []),
        ([(0, 5)], [(0, 5)]),
        ([(0, 5), (7, 9)], [(0, 5), (7, 9)]),
        ([(7, 9), (0, 5)], [(7, 9), (0, 5)]),  # in the order asked
        ([(0, 5), (5, 9)], [(0, 9)]),
        ([(0, 5), (3, 9)], [(0, 9)]),
        ([(0, 9), (3, 5)], [(0, 9)]),
        ([(3, 9), (0, 5)], [(0, 9)]),
        ([(20, 30), (3, 9), (0, 5)], [(20, 30), (0, 9)]),
        ([(3, 9), (20, 30), (0, 5)], [(0, 9), (20, 30)]),  # where its first part stood
        ([(5, 9), (20, 30), (0, 1), (3, 6)], [(3, 9), (20, 30), (0, 1)]),
    ],
)
def test_overlapping_and_adjacent_ranges_are_sent_once(
    ranges: list[tuple[int, int]], coalesced: list[tuple[int, int]]
) -> None:
    assert coalesce_ranges(ByteRange(*pair) for pair in ranges) == tuple(coalesced)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=10))
def test_coalescing_keeps_every_byte_once(pairs: list[tuple[int, int]]) -> None:
    ranges = [ByteRange(start, start + size) for start, size in pairs]
    coalesced = coalesce_ranges(ranges)
    assert RangeSet(coalesced) == RangeSet(ranges)
    assert len(RangeSet(coalesced)) == len(coalesced)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ((0, END), "bytes=0-"),
        ((500, END), "bytes=500-"),
        ((0, 500), "bytes=0-499"),
        ((5, 6), "bytes=5-5"),
    ],
)
def test_a_range_is_asked_for_in_inclusive_form(asked: tuple[int, int], text: str) -> None:
    assert format_range(ByteRange(*asked)) == text


def test_no_bytes_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="no bytes"):
        format_range(ByteRange(5, 5))


# -- Content-Range ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "interval", "complete_length"),
    [
        ("bytes 0-499/1234", (0, 500), 1234),
        ("bytes 0-499/500", (0, 500), 500),
        ("bytes 0-0/1", (0, 1), 1),
        ("bytes 0-499/*", (0, 500), None),
        ("bytes */1234", None, 1234),
        ("bytes */0", None, 0),
        ("Bytes 0-0/1", (0, 1), 1),
        (f"bytes 0-{END - 1}/*", (0, END), None),
    ],
)
def test_a_content_range_is_read(
    text: str, interval: tuple[int, int] | None, complete_length: int | None
) -> None:
    content_range = ContentRange.parse(text)
    assert content_range is not None
    assert content_range.interval == interval
    assert content_range.complete_length == complete_length


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "bytes",
        "bytes */*",
        "bytes 0-499",
        "bytes 5-4/10",
        "bytes 0-10/10",
        "bytes 0-499/-5",
        "bytes -5/10",
        "bytes 0-/10",
        "bytes=0-4/10",
        "bytes  0-4/10",
        "bytes 0-4/10 ",
        "bytes 0-4/10\n",
        "bytes 0 - 4/10",
        "bytes 0-4/10, bytes 0-4/11",
        "byte\u017f 0-4/10",
        "seconds 0-4/10",
        f"bytes 0-{END}/*",
        f"bytes 0-{'9' * 5000}/*",
        f"bytes {END - 1}-{END}/{'9' * 5000}",
    ],
)
def test_a_malformed_or_impossible_content_range_is_none(text: str | None) -> None:
    assert ContentRange.parse(text) is None


@given(st.integers(0, 2**60), st.integers(1, 2**60), st.none() | st.integers(0, 2**60))
def test_a_printed_content_range_is_read_back(start: int, size: int, more: int | None) -> None:
    interval = ByteRange(start, start + size)
    value = ContentRange(interval, None if more is None else interval.stop + more)
    assert ContentRange.parse(str(value)) == value


@given(st.integers(0, END))
def test_a_printed_unsatisfied_range_is_read_back(complete_length: int) -> None:
    value = ContentRange(None, complete_length)
    assert str(value) == f"bytes */{complete_length}"
    assert ContentRange.parse(str(value)) == value


# -- entity-tags --------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "strong", "weak"),
    [
        ('"1"', '"1"', True, True),
        ('W/"1"', 'W/"1"', False, True),
        ('W/"1"', '"1"', False, True),
        ('"1"', 'W/"1"', False, True),
        ('"1"', '"2"', False, False),
        ('W/"1"', 'W/"2"', False, False),
        ('""', '""', True, True),
        ('"a,b"', '"a,b"', True, True),
        ("1", "1", False, False),
        ("*", "*", False, False),
        ('w/"1"', 'w/"1"', False, False),
        ('"a b"', '"a b"', False, False),
        ('"a"b"', '"a"b"', False, False),
        ('"a", "b"', '"a", "b"', False, False),
        ('"1"', None, False, False),
        (None, '"1"', False, False),
        (None, None, False, False),
    ],
)
def test_entity_tags_compare_strongly_and_weakly(
    one: str | None, other: str | None, strong: bool, weak: bool
) -> None:
    assert strong_match(one, other) is strong
    assert weak_match(one, other) is weak


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ('"a"', ['"a"']),
        ('W/"a"', ['W/"a"']),
        (' "a"\t', ['"a"']),
        ('"a", W/"b","c"', ['"a"', 'W/"b"', '"c"']),
        (', "a",,\t"b" ,', ['"a"', '"b"']),
        ('"a,b", "c"', ['"a,b"', '"c"']),
        ('"caf\xe9"', ['"caf\xe9"']),
        ('""', ['""']),
        ("", []),
        ("a", []),
        ('"a" "b"', []),
        ('"a""b"', []),
        ('"a", b', []),
        ('"a", "b', []),
        ('"a b"', []),
        ('"a"\n', []),
        ("*", []),
    ],
)
def test_a_list_of_entity_tags_is_read_whole_or_not_at_all(text: str, tags: list[str]) -> None:
    assert parse_etags(text) == tuple(tags)


def test_long_lists_of_entity_tags_are_read_in_linear_time() -> None:
    assert parse_etags('"",' * 100_000) == ('""',) * 100_000
    assert parse_etags(" " * 300_000 + "x") == ()


# -- validators ---------------------------------------------------------------


def test_a_validator_is_read_from_fields() -> None:
    fields = [("etag", '"a"'), ("LAST-MODIFIED", EARLIER_60_S), ("Date", DATE), ("X", "y")]
    assert Validator.from_fields(fields) == Validator('"a"', EARLIER_60_S, DATE)
    assert Validator.from_fields([("ETag", "")]) == Validator()


@pytest.mark.parametrize(
    ("validator", "strong"),
    [
        (Validator('"a"'), '"a"'),
        (Validator('"a"', EARLIER_60_S, DATE), '"a"'),
        (Validator(None, EARLIER_60_S, DATE), EARLIER_60_S),
        (Validator(None, EARLIER_59_S, DATE), None),
        (Validator(None, DATE, DATE), None),
        (Validator(None, LATER, DATE), None),
        (Validator(None, EARLIER_60_S, None), None),
        (Validator(None, EARLIER_60_S, "now"), None),
        (Validator(None, "long ago", DATE), None),
        (Validator('W/"a"'), None),
        # Beside an ETag of any kind the date must not be sent.
        (Validator('W/"a"', EARLIER_60_S, DATE), None),
        (Validator("unquoted", EARLIER_60_S, DATE), None),
        (Validator(), None),
    ],
)
def test_only_a_strong_validator_may_be_sent_as_if_range(
    validator: Validator, strong: str | None
) -> None:
    assert validator.strong == strong


def test_two_different_etags_in_one_answer_are_none() -> None:
    assert Validator.from_fields([("ETag", '"a"'), ("ETag", '"b"')]).strong is None
    assert Validator.from_fields([("ETag", '"a"'), ("ETag", '"a"')]).strong == '"a"'


@pytest.mark.parametrize(
    ("one", "other", "same", "contradicts"),
    [
        (Validator('"a"'), Validator('"a"'), True, False),
        (Validator('"a"'), Validator('"b"'), False, True),
        (Validator('W/"a"'), Validator('W/"a"'), False, False),
        (Validator('W/"a"'), Validator('"a"'), False, True),
        (Validator('"a"'), Validator(), False, False),
        (Validator(), Validator(), False, False),
        # What one side does not say is no contradiction.
        (Validator('"a"', EARLIER_60_S, DATE), Validator(), False, False),
        (Validator(None, EARLIER_60_S, DATE), Validator(), False, False),
        (Validator(None, EARLIER_60_S, DATE), Validator('"b"'), False, False),
        (Validator('"a"', EARLIER_60_S), Validator('"a"', LATER), True, False),
        (Validator('"a"', EARLIER_60_S), Validator(None, LATER), False, True),
        (Validator('"a"', EARLIER_60_S, DATE), Validator(None, EARLIER_60_S, DATE), False, False),
        (Validator(None, EARLIER_60_S, DATE), Validator(None, EARLIER_60_S, DATE), True, False),
        (Validator(None, EARLIER_60_S, DATE), Validator(None, EARLIER_60_S, LATER), True, False),
        (Validator(None, EARLIER_60_S, DATE), Validator(None, EARLIER_59_S, LATER), False, True),
        (Validator(None, EARLIER_59_S, DATE), Validator(None, EARLIER_59_S, DATE), False, False),
        (Validator(None, EARLIER_60_S, DATE), Validator(None, EARLIER_60_S), False, False),
    ],
)
def test_bytes_are_joined_under_equal_strong_validators_only(
    one: Validator, other: Validator, same: bool, contradicts: bool
) -> None:
    assert one.same_version(other) is other.same_version(one) is same
    assert one.contradicts(other) is other.contradicts(one) is contradicts


def test_a_validator_asks_whether_it_is_still_current() -> None:
    assert Validator('W/"a"', DATE, LATER).request_fields == (
        ("If-None-Match", 'W/"a"'),
        ("If-Modified-Since", DATE),
    )
    assert Validator().request_fields == ()


# -- anything at all ----------------------------------------------------------

_texts = st.text(st.sampled_from("bytes=W/\"',-*0123456789 \tx\x00\xe9\u0661"), max_size=30)


@given(_texts | st.text())
def test_no_text_makes_the_parsers_raise(text: str) -> None:
    parse_range(text)
    parse_range(f"bytes={text}")
    ContentRange.parse(text)
    ContentRange.parse(f"bytes {text}")
    parse_etags(text)
    validator = Validator.from_fields([("ETag", text), ("Last-Modified", text), ("Date", text)])
    assert validator.same_version(validator) is (validator.strong is not None)
