"""Turns a cache's arguments, which are text or numbers, into its options and policies."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TypeVar

from .buckets import RateLimits
from .claims import SpeedLimits
from .demands import Fill
from .errors import UsageError
from .reader import ReaderOptions, VerifyReads
from .retries import RetryPolicy
from .scheduler import Abandoned, Limits
from .surroundings import Durability, EntryPolicy
from .units import parse_duration, parse_size

__all__ = ["entry_policy", "rate_limits", "reader_options"]


def reader_options(
    first_byte_timeout: str | float,
    stall_timeout: str | float,
    read_ahead: str | int,
    verify_reads: VerifyReads | str,
) -> ReaderOptions:
    """Return the options of all readers; UsageError if a value makes no sense."""
    return ReaderOptions(
        first_byte_timeout_s=parse_duration(first_byte_timeout),
        stall_timeout_s=parse_duration(stall_timeout),
        read_ahead_bytes=parse_size(read_ahead),
        verify_reads=_choice(VerifyReads, verify_reads, "choice of reads to verify"),
    )


def entry_policy(
    *,
    fill: Fill | str,
    durability: Durability | str,
    grace: str | float,
    playable_head: str | int,
    playable_tail: str | int,
    retries: RetryPolicy | None,
    speed: SpeedLimits | None,
    limits: Limits | None,
    abandoned: Abandoned | str,
    max_size: int | None,
) -> EntryPolicy:
    """Return the policy of all entries; UsageError if a value makes no sense."""
    way = _choice(Abandoned, abandoned, "way with abandoned fetches")
    return EntryPolicy(
        fill=_choice(Fill, fill, "fill policy"),
        durability=_choice(Durability, durability, "durability"),
        grace_s=parse_duration(grace),
        playable_head_bytes=parse_size(playable_head),
        playable_tail_bytes=parse_size(playable_tail),
        retries=retries or RetryPolicy(),
        speed=speed or SpeedLimits(),
        limits=replace(limits or Limits(), abandoned=way),
        max_bytes=max_size,
    )


def rate_limits(
    known: RateLimits,
    rate: str | int | None,
    rate_per_host: str | int | None,
    background_rate: str | int | None,
) -> RateLimits:
    """Return *known* with the limits that are given; UsageError if a value makes no sense."""
    given = {"rate": rate, "rate_per_host": rate_per_host, "background_rate": background_rate}
    return replace(
        known, **{name: parse_size(text) for name, text in given.items() if text is not None}
    )


_Choice = TypeVar("_Choice", bound=Enum)


def _choice(kind: type[_Choice], value: _Choice | str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in kind)
        raise UsageError(f"{value!r} is no {what}; use one of {choices}") from None
