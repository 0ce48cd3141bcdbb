"""The gate on an origin's answers: what is let through, and what never is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.acceptance import Answer, parse_retry_after, read_answer, read_not_modified
from cachefsm.errors import (
    BadAnswer,
    CacheError,
    OriginStatus,
    RepresentationChanged,
    UnsatisfiedByOrigin,
)
from cachefsm.fields import value_of
from cachefsm.ranges import END, ByteRange
from cachefsm.representation import Representation
from cachefsm.semantics import Validator

ALL = ByteRange(0, END)
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATE_S = 784_111_777
LONG_AGO = "Sat, 05 Nov 1994 08:49:37 GMT"
YESTERDAY = "Sat, 05 Nov 1994 09:00:00 GMT"

Fields = list[tuple[str, str]]


def fields(**values: str | None) -> Fields:
    """Return fields named like the keywords, less those that are None."""
    pairs = ((name.replace("_", "-"), value) for name, value in values.items())
    return [(name, value) for name, value in pairs if value is not None]


def whole(**values: str | None) -> Fields:
    return fields(**{"Content_Length": "1000", "Date": DATE, "ETag": '"a"', **values})


def part(interval: str = "100-199", total: str = "1000", **values: str | None) -> Fields:
    content_range = f"bytes {interval}/{total}"
    return fields(**{"Content_Range": content_range, "Date": DATE, "ETag": '"a"', **values})


def read(
    status: int,
    answer_fields: Fields,
    *,
    asked: tuple[int, int] = ALL,
    held: Representation | None = None,
    sent_if_range: bool = False,
    now_s: float = DATE_S,
    http_version: int = 11,
) -> Answer:
    return read_answer(
        status,
        answer_fields,
        asked=ByteRange(*asked),
        held=held,
        sent_if_range=sent_if_range,
        now_s=now_s,
        http_version=http_version,
    )


def read_part(answer_fields: Fields, **options: object) -> Answer:
    return read(206, answer_fields, **{"asked": (100, 200), **options})  # type: ignore[arg-type]


#: 1000 bytes under a strong ETag, learnt from a 206.
HELD = Representation(
    complete_length=1000,
    validator=Validator('"a"', None, DATE),
    fields=(("Date", DATE), ("ETag", '"a"'), ("Content-Type", "video/mp4")),
    accepts_ranges=True,
)
HELD_BY_DATE = replace(
    HELD,
    validator=Validator(None, LONG_AGO, DATE),
    fields=(("Date", DATE), ("Last-Modified", LONG_AGO)),
)


# -- 200 ----------------------------------------------------------------------


def test_a_200_starts_at_0_and_tells_the_length() -> None:
    answer = read(200, whole())
    assert (answer.start, answer.stop, answer.close_delimited) == (0, 1000, False)
    assert answer.representation.complete_length == 1000
    assert answer.representation.validator == Validator('"a"', None, DATE)


def test_a_200_starts_at_0_whatever_was_asked() -> None:
    answer = read(200, whole(), asked=(500, 600))
    assert (answer.start, answer.stop) == (0, 1000)


def test_a_content_range_on_a_200_means_nothing() -> None:
    answer = read(200, whole(Content_Range="bytes 500-599/1000"), asked=(500, 600))
    assert (answer.start, answer.stop) == (0, 1000)


def test_an_empty_200_is_complete_at_0() -> None:
    answer = read(200, whole(Content_Length="0"))
    assert (answer.stop, answer.representation.complete_length) == (0, 0)


def test_a_200_without_length_ends_when_the_connection_does() -> None:
    answer = read(200, whole(Content_Length=None))
    assert (answer.stop, answer.close_delimited) == (END, True)
    assert answer.representation.complete_length is None


@pytest.mark.parametrize("length", [None, "5", "-5", "3abc"])
@pytest.mark.parametrize("coding", ["chunked", "Chunked"])
def test_content_length_beside_chunked_is_ignored(coding: str, length: str | None) -> None:
    answer = read(200, whole(Transfer_Encoding=coding, Content_Length=length))
    assert (answer.stop, answer.close_delimited) == (END, False)
    assert answer.representation.complete_length is None


@pytest.mark.parametrize(
    ("accept_ranges", "asked", "accepts_ranges"),
    [
        ("bytes", ALL, True),
        ("Bytes", ALL, True),
        ("none", ALL, False),
        (None, ALL, False),
        # A 200 to a real part disproves what the field says.
        ("bytes", (500, END), False),
        ("bytes", (0, 500), False),
    ],
)
def test_a_200_tells_whether_ranges_are_accepted(
    accept_ranges: str | None, asked: tuple[int, int], accepts_ranges: bool
) -> None:
    answer = read(200, whole(Accept_Ranges=accept_ranges), asked=asked)
    assert answer.representation.accepts_ranges is accepts_ranges


def test_coded_bytes_are_stored_with_their_header_but_never_joined() -> None:
    stored = read(200, whole(Content_Encoding="gzip", Accept_Ranges="bytes")).representation
    assert value_of(stored.fields, "Content-Encoding") == "gzip"
    assert stored.validator.strong == '"a"'
    assert not stored.joinable


def test_identity_is_no_coding() -> None:
    stored = read(200, whole(Content_Encoding="identity", Accept_Ranges="bytes")).representation
    assert stored.joinable
    assert read_part(part(Content_Encoding="Identity")).representation.joinable


# -- framing ------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths",
    [["-5"], ["3abc"], [""], ["+5"], ["5 5"], ["5,"], ["5, 6"], ["5", "6"], ["0x5"], ["\u0665"]],
)
def test_a_bad_or_conflicting_content_length_is_refused(lengths: list[str]) -> None:
    with pytest.raises(BadAnswer, match="Content-Length"):
        read(200, [("Content-Length", length) for length in lengths])


@pytest.mark.parametrize("length", [str(END), "9" * 5000])
def test_an_absurd_content_length_is_refused(length: str) -> None:
    with pytest.raises(BadAnswer, match="Content-Length"):
        read(200, whole(Content_Length=length))


@pytest.mark.parametrize("lengths", [["5", "5"], ["5, 5"], ["5,5", "5"], [" 5\t"]])
def test_a_repeated_content_length_may_agree(lengths: list[str]) -> None:
    assert read(200, [("Content-Length", length) for length in lengths]).stop == 5


@pytest.mark.parametrize(("status", "framed"), [(200, whole()), (206, part("0-999"))])
@pytest.mark.parametrize(
    "codings",
    [
        ["gzip, chunked"],
        ["chunked, chunked"],
        ["chunked", "chunked"],
        ["gzip"],
        ["identity"],
        ["chunked "],
        ["chunked,"],
        [""],
    ],
)
def test_any_transfer_coding_but_plain_chunked_is_refused(
    codings: list[str], status: int, framed: Fields
) -> None:
    with pytest.raises(BadAnswer, match="Transfer-Encoding"):
        read(status, [*framed, *(("Transfer-Encoding", coding) for coding in codings)])


def test_chunked_in_http_1_0_is_refused() -> None:
    with pytest.raises(BadAnswer, match="Transfer-Encoding"):
        read(200, whole(Transfer_Encoding="chunked"), http_version=10)
    assert read(200, whole(), http_version=10).stop == 1000


# -- 206 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "interval", "total", "bounds", "complete_length"),
    [
        ((100, 200), "100-199", "1000", (100, 200), 1000),
        ((100, 200), "100-199", "*", (100, 200), None),
        ((100, 200), "100-149", "150", (100, 150), 150),  # the end of the file
        ((100, 200), "100-149", "1000", (100, 150), 1000),  # less than asked
        ((100, END), "100-999", "1000", (100, 1000), 1000),
        ((100, END), "100-149", "*", (100, 150), None),
        (ALL, "0-999", "1000", (0, 1000), 1000),
        ((5 * 2**30, END), f"{5 * 2**30}-{6 * 2**30}", "*", (5 * 2**30, 6 * 2**30 + 1), None),
    ],
)
def test_a_206_starts_where_asked_and_ends_no_later(
    asked: tuple[int, int],
    interval: str,
    total: str,
    bounds: tuple[int, int],
    complete_length: int | None,
) -> None:
    answer = read(206, part(interval, total), asked=asked)
    assert (answer.start, answer.stop) == bounds
    assert answer.representation.complete_length == complete_length
    assert answer.representation.accepts_ranges
    assert answer.representation.validator == Validator('"a"', None, DATE)


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "bytes 99-199/1000",
        "bytes 101-199/1000",
        "bytes 0-99/1000",
        "bytes 100-200/1000",  # one byte too many
        "bytes 100-999/1000",
        "bytes 199-100/1000",
        "bytes 100-199/199",
        "bytes 100-199",
        "bytes */1000",
        "bytes */*",
        "seconds 100-199/1000",
        "100-199/1000",
        "",
    ],
)
def test_a_206_with_a_wrong_content_range_is_refused(content_range: str | None) -> None:
    with pytest.raises(BadAnswer):
        read_part(part(Content_Range=content_range))


def test_two_different_content_ranges_are_refused() -> None:
    with pytest.raises(BadAnswer, match="Content-Range"):
        read_part([*part(), ("Content-Range", "bytes 100-199/1001")])


def test_messages_say_what_was_asked_and_what_came() -> None:
    with pytest.raises(BadAnswer, match=r"asked for \[100, 200\), the origin sent bytes 0-99/"):
        read_part(part("0-99"))


@pytest.mark.parametrize("length", ["99", "101", "1000"])
def test_a_206_whose_length_is_not_its_interval_is_refused(length: str) -> None:
    with pytest.raises(BadAnswer, match="Content-Length"):
        read_part(part(Content_Length=length))


def test_a_206_may_be_delimited_in_three_ways() -> None:
    assert not read_part(part(Content_Length="100")).close_delimited
    assert not read_part(part(Transfer_Encoding="chunked", Content_Length="7")).close_delimited
    answer = read_part(part())
    assert (answer.stop, answer.close_delimited) == (200, True)


@pytest.mark.parametrize("media_type", ["multipart/byteranges", "Multipart/ByteRanges; boundary=x"])
def test_multipart_is_refused(media_type: str) -> None:
    with pytest.raises(BadAnswer, match="multipart"):
        read_part(part(Content_Type=media_type))


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_a_part_of_coded_bytes_is_refused(coding: str) -> None:
    with pytest.raises(BadAnswer, match="coded"):
        read_part(part(Content_Encoding=coding))


# -- joining with what is held ------------------------------------------------


def test_a_206_of_the_same_version_is_joined() -> None:
    answer = read_part(part(X_New="1", Content_Type="video/webm"), held=HELD)
    stored = answer.representation
    assert (answer.start, answer.stop) == (100, 200)
    assert stored.complete_length == 1000
    assert stored.validator == HELD.validator
    assert stored.joinable
    assert value_of(stored.fields, "X-New") == "1"
    assert value_of(stored.fields, "Content-Type") == "video/webm"


def test_a_206_of_unknown_total_keeps_the_known_one() -> None:
    answer = read_part(part(total="*"), held=HELD)
    assert answer.representation.complete_length == 1000


def test_a_206_may_tell_the_length_first() -> None:
    answer = read_part(part(), held=replace(HELD, complete_length=None))
    assert answer.representation.complete_length == 1000


@pytest.mark.parametrize("sent_if_range", [True, False])
@pytest.mark.parametrize("etag", ['"b"', 'W/"a"', "a"])
def test_a_206_under_another_etag_is_another_version(etag: str, sent_if_range: bool) -> None:
    with pytest.raises(RepresentationChanged):
        read_part(part(ETag=etag), held=HELD, sent_if_range=sent_if_range)


@pytest.mark.parametrize("sent_if_range", [True, False])
@pytest.mark.parametrize("total", ["999", "1001"])
def test_a_206_of_another_length_is_another_version(total: str, sent_if_range: bool) -> None:
    with pytest.raises(RepresentationChanged, match="1000 bytes"):
        read_part(part(total=total), held=HELD, sent_if_range=sent_if_range)


def test_a_206_past_the_known_end_is_another_version() -> None:
    with pytest.raises(RepresentationChanged, match="1000 bytes"):
        read(206, part("900-1000", "*"), asked=(900, END), held=HELD, sent_if_range=True)
    answer = read(206, part("900-999", "*"), asked=(900, END), held=HELD, sent_if_range=True)
    assert answer.stop == 1000


def test_after_if_range_a_missing_validator_keeps_the_known_one() -> None:
    answer = read_part(part(ETag=None, Date=None), held=HELD, sent_if_range=True)
    assert answer.representation.validator == HELD.validator
    assert value_of(answer.representation.fields, "ETag") == '"a"'


def test_without_if_range_a_missing_validator_proves_nothing() -> None:
    with pytest.raises(RepresentationChanged):
        read_part(part(ETag=None), held=HELD)


def test_if_range_proves_nothing_without_a_strong_validator() -> None:
    weak = replace(HELD, validator=Validator('W/"a"', None, DATE))
    with pytest.raises(RepresentationChanged):
        read_part(part(ETag=None), held=weak, sent_if_range=True)
    with pytest.raises(RepresentationChanged):
        read_part(part(ETag='W/"a"'), held=weak, sent_if_range=True)


def test_a_strong_last_modified_joins_where_there_is_no_etag() -> None:
    same = part(ETag=None, Last_Modified=LONG_AGO)
    assert read_part(same, held=HELD_BY_DATE).start == 100
    undated = part(ETag=None, Last_Modified=LONG_AGO, Date=None)
    assert read_part(undated, held=HELD_BY_DATE, sent_if_range=True).start == 100
    with pytest.raises(RepresentationChanged):
        read_part(undated, held=HELD_BY_DATE)
    silent = part(ETag=None)
    assert read_part(silent, held=HELD_BY_DATE, sent_if_range=True).start == 100
    with pytest.raises(RepresentationChanged):
        read_part(silent, held=HELD_BY_DATE)


@pytest.mark.parametrize("etag", [None, '"b"'])
def test_another_last_modified_is_another_version(etag: str | None) -> None:
    other = part(ETag=etag, Last_Modified=YESTERDAY)
    with pytest.raises(RepresentationChanged):
        read_part(other, held=HELD_BY_DATE, sent_if_range=True)


def test_stored_bytes_are_never_labelled_with_a_later_validator() -> None:
    later = part(ETag='"b"', Last_Modified=LONG_AGO)
    stored = read_part(later, held=HELD_BY_DATE, sent_if_range=True).representation
    assert stored.validator == HELD_BY_DATE.validator
    assert value_of(stored.fields, "ETag") is None


def test_nothing_is_joined_with_coded_bytes() -> None:
    coded = replace(HELD, fields=(*HELD.fields, ("Content-Encoding", "gzip")))
    with pytest.raises(RepresentationChanged):
        read_part(part(), held=coded, sent_if_range=True)
    with pytest.raises(RepresentationChanged):
        read(200, whole(), held=coded)
    with pytest.raises(RepresentationChanged):
        read(200, whole(Content_Encoding="gzip"), held=HELD)


def test_a_200_of_the_same_version_shows_that_ranges_are_not_honoured() -> None:
    answer = read(
        200, whole(Accept_Ranges="bytes"), asked=(500, 600), held=HELD, sent_if_range=True
    )
    assert (answer.start, answer.stop) == (0, 1000)
    assert not answer.representation.accepts_ranges
    assert not answer.representation.joinable
    assert answer.representation.validator == HELD.validator


def test_a_chunked_200_of_the_same_version_keeps_the_known_length() -> None:
    chunked = whole(Content_Length=None, Transfer_Encoding="chunked")
    answer = read(200, chunked, held=HELD, sent_if_range=True)
    assert (answer.stop, answer.representation.complete_length) == (END, 1000)


@pytest.mark.parametrize("sent_if_range", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{"ETag": '"b"'}, {"ETag": 'W/"a"'}, {"ETag": None}, {"Content_Length": "999"}],
)
def test_a_200_not_provably_of_the_stored_version_is_another(
    changes: dict[str, str | None], sent_if_range: bool
) -> None:
    with pytest.raises(RepresentationChanged):
        read(200, whole(**changes), asked=(500, 600), held=HELD, sent_if_range=sent_if_range)


def test_faulty_framing_is_noticed_before_another_version() -> None:
    with pytest.raises(BadAnswer):
        read(200, whole(ETag='"b"', Content_Length="-5"), held=HELD)


# -- other statuses -----------------------------------------------------------


@pytest.mark.parametrize(
    ("content_range", "complete_length"),
    [
        ("bytes */1000", 1000),
        ("bytes */0", 0),
        ("bytes */*", None),
        ("*/1000", None),
        (None, None),
        ("bytes 0-1/10", 10),
    ],
)
def test_a_416_may_tell_the_complete_length(
    content_range: str | None, complete_length: int | None
) -> None:
    with pytest.raises(UnsatisfiedByOrigin) as caught:
        read(416, fields(Content_Range=content_range))
    assert caught.value.complete_length == complete_length


@pytest.mark.parametrize("status", [201, 204, 203, 226, 302, 304, 403, 404, 410, 429, 500, 503])
def test_every_other_status_is_an_error(status: int) -> None:
    with pytest.raises(OriginStatus) as caught:
        read(status, whole())
    assert caught.value.status == status
    assert caught.value.retry_after_s is None


def test_retry_after_is_heard() -> None:
    with pytest.raises(OriginStatus) as caught:
        read(503, fields(Retry_After="120"))
    assert caught.value.retry_after_s == 120.0


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        ("9" * 5000, 2.0**31),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        (DATE, 37.5),
        (LONG_AGO, 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.5),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, delay_s: float | None) -> None:
    assert parse_retry_after(text, now_s=DATE_S - 37.5) == delay_s


# -- 304 ----------------------------------------------------------------------


def test_a_304_freshens_the_stored_fields() -> None:
    told = fields(Date=LONG_AGO, Cache_Control="max-age=5", ETag='"a"')
    stored = read_not_modified(told, held=HELD)
    assert value_of(stored.fields, "Cache-Control") == "max-age=5"
    assert value_of(stored.fields, "Date") == LONG_AGO
    assert value_of(stored.fields, "Content-Type") == "video/mp4"
    assert replace(stored, fields=HELD.fields) == HELD


def test_a_304_compares_weakly() -> None:
    stored = read_not_modified(fields(ETag='W/"a"'), held=HELD)
    assert value_of(stored.fields, "ETag") == '"a"'
    assert read_not_modified(fields(Date=DATE), held=HELD).validator == HELD.validator


@pytest.mark.parametrize(
    ("told", "held"),
    [
        (fields(ETag='"b"'), HELD),
        (fields(ETag='W/"b"'), HELD),
        (fields(Last_Modified=YESTERDAY), HELD_BY_DATE),
    ],
)
def test_a_304_for_another_version_freshens_nothing(told: Fields, held: Representation) -> None:
    with pytest.raises(RepresentationChanged):
        read_not_modified(told, held=held)


# -- anything at all ----------------------------------------------------------

_names = st.sampled_from(
    [
        "Accept-Ranges",
        "Connection",
        "Content-Encoding",
        "Content-Length",
        "Content-Range",
        "Content-Type",
        "Date",
        "ETag",
        "Last-Modified",
        "Retry-After",
        "Transfer-Encoding",
    ]
)
_values = st.one_of(
    st.sampled_from(
        (
            *("chunked", "gzip", "bytes", '"a"', 'W/"a"', DATE, LONG_AGO, "100", "1000", "ETag"),
            *("bytes 100-199/1000", "bytes 100-199/*", "bytes */1000", "bytes 0-999/1000"),
        )
    ),
    st.text(st.sampled_from('bytes-/*,=W"0123456789 \t\r\n\x00\xe9'), max_size=20),
    st.text(),
)


@given(
    status=st.sampled_from([200, 206, 304, 416, 503]),
    random_fields=st.lists(st.tuples(_names | st.text(), _values), max_size=8),
    asked=st.sampled_from([ALL, (100, 200), (100, END)]),
    held=st.sampled_from([None, HELD, HELD_BY_DATE]),
    sent_if_range=st.booleans(),
)
def test_whatever_comes_is_a_sound_answer_or_a_cache_error(
    status: int,
    random_fields: Fields,
    asked: tuple[int, int],
    held: Representation | None,
    sent_if_range: bool,
) -> None:
    try:
        answer = read(status, random_fields, asked=asked, held=held, sent_if_range=sent_if_range)
    except CacheError:
        return
    stored = answer.representation
    assert answer.start == (0 if status == 200 else asked[0])
    assert answer.start <= answer.stop
    if status == 206:
        assert answer.start < answer.stop <= asked[1]
    if held is not None:
        assert stored.validator == held.validator
        assert stored.complete_length == held.complete_length
    if stored.complete_length is not None and answer.stop != END:
        assert answer.stop <= stored.complete_length
