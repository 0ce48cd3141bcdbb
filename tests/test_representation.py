"""What is kept of an origin's fields, how it changes, and when bytes may be joined."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.errors import StorageError
from cachefsm.representation import (
    Representation,
    fields_from_json,
    fields_to_json,
    is_coded,
    storable_fields,
    update_fields,
)
from cachefsm.semantics import Validator


@pytest.mark.parametrize(
    "name",
    [
        "Accept-Ranges",
        "Alt-Svc",
        "Clear-Site-Data",
        "Connection",
        "Content-Digest",
        "Content-Length",
        "Content-MD5",
        "Content-Range",
        "Set-Cookie",
        "Set-Cookie2",
        "Strict-Transport-Security",
        "Transfer-Encoding",
        "X-Named",
    ],
)
def test_what_belongs_to_one_message_user_or_connection_is_not_stored(name: str) -> None:
    received = [(name, "x"), ("Connection", "X-Named"), ("Content-Type", "video/mp4")]
    assert storable_fields(received) == (("Content-Type", "video/mp4"),)


@pytest.mark.parametrize(
    "name",
    [
        *("Age", "Cache-Control", "Content-Encoding", "Content-Type", "Date", "ETag", "Expires"),
        *("Last-Modified", "Vary", "X-Unknown"),
    ],
)
def test_what_describes_the_representation_is_stored(name: str) -> None:
    assert storable_fields([(name, "x"), (name, "y")]) == ((name, "x"), (name, "y"))


def test_a_value_that_could_start_a_header_line_is_not_stored() -> None:
    assert storable_fields([("X", "a\r\nSet-Cookie: b"), ("X Y", "a"), ("Z", "ok")]) == (
        ("Z", "ok"),
    )


def test_later_fields_replace_all_stored_ones_of_that_name() -> None:
    stored = [("Link", "a"), ("link", "b"), ("Content-Type", "video/mp4")]
    assert update_fields(stored, [("LINK", "c"), ("Link", "d")]) == (
        ("Content-Type", "video/mp4"),
        ("LINK", "c"),
        ("Link", "d"),
    )


@pytest.mark.parametrize(
    "name", ["Content-Encoding", "ETag", "Last-Modified", "Content-Length", "Set-Cookie", "TE"]
)
def test_later_fields_do_not_relabel_stored_bytes(name: str) -> None:
    assert update_fields([("X", "1")], [(name, "new")]) == (("X", "1"),)
    if name in ("Content-Encoding", "ETag", "Last-Modified"):
        assert update_fields([(name, "old")], [(name, "new")]) == ((name, "old"),)


def test_the_stored_age_goes_with_its_date() -> None:
    assert update_fields([("Age", "50"), ("X", "1")], [("X", "2")]) == (("X", "2"),)
    assert update_fields([("Age", "50")], [("Age", "3")]) == (("Age", "3"),)


@pytest.mark.parametrize(
    ("codings", "coded"),
    [
        ([], False),
        (["identity"], False),
        ([""], False),
        (["gzip"], True),
        (["identity", "br"], True),
    ],
)
def test_any_coding_but_identity_counts(codings: list[str], coded: bool) -> None:
    assert is_coded([("content-encoding", coding) for coding in codings]) is coded


@pytest.mark.parametrize(
    ("accepts_ranges", "etag", "fields", "joinable"),
    [
        (True, '"a"', (), True),
        (False, '"a"', (), False),
        (True, 'W/"a"', (), False),
        (True, None, (), False),
        (True, '"a"', (("Content-Encoding", "gzip"),), False),
    ],
)
def test_joining_takes_ranges_a_strong_validator_and_plain_bytes(
    accepts_ranges: bool, etag: str | None, fields: tuple[tuple[str, str], ...], joinable: bool
) -> None:
    stored = Representation(10, Validator(etag), fields, accepts_ranges)
    assert stored.joinable is joinable


@given(st.lists(st.tuples(st.text(), st.text())))
def test_fields_survive_the_database(fields: list[tuple[str, str]]) -> None:
    assert fields_from_json(fields_to_json(fields)) == tuple(fields)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "null", "{}", '{"ab": 1}', '["ab"]', '[["a"]]', '[["a", 1]]'),
        *('[["a", "b", "c"]]', '[["a", "b"], null]', "[" * 100_000, "1" * 10_000),
    ],
)
def test_damaged_json_is_a_storage_error(text: str) -> None:
    with pytest.raises(StorageError, match="damaged"):
        fields_from_json(text)
