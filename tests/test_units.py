"""Sizes and durations: what is accepted, what is refused, and that both ways agree."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.errors import CacheError, UsageError
from cachefsm.units import format_size, parse_duration, parse_size

_DAY_S = 86_400


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("500k", 500 * 1024),
        ("1K", 1024),
        ("20G", 20 * 2**30),
        ("1T", 2**40),
        ("1.5GiB", 3 * 2**29),
        ("1.5 GiB", 3 * 2**29),
        (" 2mib ", 2 * 2**20),
        ("1kB", 1000),
        ("20GB", 20 * 10**9),
        ("2.5TB", 25 * 10**11),
        ("0.5K", 512),
        (20_000_000_000, 20_000_000_000),
    ],
)
def test_a_size_is_read_in_bytes(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_a_bare_letter_is_binary_and_a_letter_with_b_is_decimal() -> None:
    assert parse_size("1G") == parse_size("1GiB") == 2**30
    assert parse_size("1GB") == 10**9


def test_a_fraction_of_a_byte_is_dropped() -> None:
    assert parse_size("0.3K") == 307


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "G", "-1", "+1", "-1G", "nan", "inf", "infinity", "1e9", "1_000", "0x10"),
        *("1,5G", ".5G", "5.", "1.5", "0.5B", "1 2", "20 X", "20Gi", "20GiBs", "20G\n", "\t20G"),
        *("٣G", "9" * 5000, "8EiB", "9999999P", "20G20G", "1h"),
        *(-1, 2**63, 1.5, float("nan"), True, None),
    ],
)
def test_anything_else_is_not_a_size(text: object) -> None:
    with pytest.raises(UsageError, match="is not a size: write one such as 500M") as caught:
        parse_size(text)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("0.25", 0.25),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1.5h", 5400.0),
        ("30d", 30.0 * _DAY_S),
        ("2w", 14.0 * _DAY_S),
        ("1d2h3m4s5ms", 93_784.005),
        (2.5, 2.5),
        (7, 7.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str | float, duration_s: float) -> None:
    assert parse_duration(text) == duration_s


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "s", "-1", "-5s", "+5s", "nan", "inf", "1e3", "1e400", "30D", "5M", "1y"),
        *("30m1h", "1h1h", "1h30", "5 0s", ".5s", "1,5s", "5s\n", "٣s", "9" * 5000, "9" * 90 + "d"),
        *("36501d", "20G"),
        *(-1, -0.5, math.nan, math.inf, -math.inf, 10**400, True),
        *(None, b"5s", [], 1j),
    ],
)
def test_anything_else_is_not_a_duration(text: object) -> None:
    with pytest.raises(UsageError, match="is not a duration: write one such as 500ms") as caught:
        parse_duration(text)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1 MiB"),
        (129_394_278, "123.4 MiB"),
        (20 * 2**30, "20 GiB"),
        (2**63 - 1, "8 EiB"),
    ],
)
def test_a_size_is_shown_with_one_decimal_at_most(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 2**63 - 1))
def test_a_size_in_bytes_is_read_exactly(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == parse_size(f"{size_bytes}B") == size_bytes


@given(st.integers(0, 7 * 2**60))
def test_a_size_shown_reads_back_to_within_its_last_digit(size_bytes: int) -> None:
    shown = format_size(size_bytes)
    last_digit = parse_size("1" + shown.split(" ")[1]) / 10
    assert abs(parse_size(shown) - size_bytes) <= last_digit / 2 + 1
    assert format_size(parse_size(shown)) == shown


@given(st.integers(1, 1023), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_a_whole_number_of_units_reads_back_exactly(number: int, unit: str) -> None:
    assert format_size(parse_size(f"{number} {unit}")) == f"{number} {unit}"


@given(st.text())
def test_random_text_raises_nothing_but_cache_errors(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(CacheError):
            assert parse(text) >= 0
