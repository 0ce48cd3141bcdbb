"""What an error means, when to ask again and when to stop."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.content import Content
from cachefsm.errors import (
    BadAnswer,
    CacheError,
    EntryNotFound,
    OriginError,
    OriginRefused,
    OriginStatus,
    OriginTimeout,
    OriginUnreachable,
    RepresentationChanged,
    StorageError,
    UnsatisfiedByOrigin,
)
from cachefsm.ranges import RangeSet
from cachefsm.representation import Representation
from cachefsm.retries import Attempts, RetryPolicy, Verdict, judge
from cachefsm.semantics import Validator
from cachefsm.storage import ContentFile

UNLUCKY = RetryPolicy(dice=lambda: 1.0)
"""Always waits as long as it may."""
PASSING = OriginUnreachable("connection refused")
PERMANENT = OriginStatus(404)


def content_of(*, length: int | None, present: int, answered: bool = True) -> Content:
    """Return content that holds its first *present* bytes."""
    representation = Representation(length, Validator(None, None, None), (), accepts_ranges=True)
    return Content(
        ContentFile(Path("never opened")),
        present=RangeSet([(0, present)]),
        representation=representation if answered else None,
    )


# -- what an error means ------------------------------------------------------

PASSING_STATUSES = [408, 421, 425, 429, 500, 502, 503, 504, 507, 509]
LASTING_STATUSES = [400, 401, 403, 404, 405, 406, 410, 411, 414, 451, 501, 505, 508, 511]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (OriginUnreachable("no route"), Verdict.TRY_AGAIN),
        (OriginTimeout("silent"), Verdict.TRY_AGAIN),
        (BadAnswer("asked 5-, origin sent 0-"), Verdict.TRY_AGAIN),
        *((OriginStatus(status), Verdict.TRY_AGAIN) for status in PASSING_STATUSES),
        *((OriginStatus(status), Verdict.FAIL) for status in LASTING_STATUSES),
        (OriginRefused("not allowed"), Verdict.FAIL),
        (RepresentationChanged("another ETag"), Verdict.INVALIDATE),
        (StorageError("disk full"), Verdict.CANNOT_STORE),
        (EntryNotFound("removed"), Verdict.FAIL),
        (ZeroDivisionError("a bug"), Verdict.FAIL),
    ],
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_errors_pass_or_last(error: Exception, verdict: Verdict) -> None:
    for content in (
        content_of(length=None, present=0, answered=False),
        content_of(length=100, present=40),
    ):
        assert judge(error, content, 40) is verdict


@pytest.mark.parametrize(
    ("length", "present", "position", "told", "verdict"),
    [
        # The length was unknown, and every byte before this one is stored: that was the end.
        (None, 40, 40, None, Verdict.LENGTH_TOLD),
        (None, 40, 40, 40, Verdict.LENGTH_TOLD),
        # A seek past the end tells the length too, as long as no stored byte contradicts it.
        (None, 40, 90, 50, Verdict.LENGTH_TOLD),
        (None, 40, 90, 40, Verdict.LENGTH_TOLD),
        (None, 40, 90, 39, Verdict.FAIL),
        (None, 40, 90, None, Verdict.FAIL),  # somewhere in between, but where?
        (None, 40, 90, 91, Verdict.FAIL),  # there is such a byte, it says, and refuses it
        # The length is known: it has changed, or the refusal makes no sense.
        (100, 40, 40, 90, Verdict.INVALIDATE),
        (100, 40, 40, 110, Verdict.INVALIDATE),
        (100, 40, 40, 100, Verdict.FAIL),
        (100, 40, 40, None, Verdict.FAIL),
    ],
)
def test_a_416_is_weighed_against_what_is_known(
    length: int | None, present: int, position: int, told: int | None, verdict: Verdict
) -> None:
    content = content_of(length=length, present=present)
    assert judge(UnsatisfiedByOrigin(told), content, position) is verdict


@pytest.mark.parametrize(("told", "verdict"), [(None, Verdict.FAIL), (0, Verdict.LENGTH_TOLD)])
def test_a_416_to_the_very_first_byte_is_asked_about_plainly_once(
    told: int | None, verdict: Verdict
) -> None:
    content = content_of(length=None, present=0, answered=False)
    assert judge(UnsatisfiedByOrigin(told), content, 0) is Verdict.ASK_PLAINLY
    content.ask_plainly = True
    assert judge(UnsatisfiedByOrigin(told), content, 0) is verdict


def test_a_first_question_past_the_end_is_put_again_from_the_front() -> None:
    content = content_of(length=None, present=0, answered=False)
    assert judge(UnsatisfiedByOrigin(500), content, 900) is Verdict.ASK_FROM_FRONT
    assert judge(UnsatisfiedByOrigin(None), content, 900) is Verdict.FAIL


# -- how long to wait ---------------------------------------------------------


def test_the_wait_doubles_up_to_a_ceiling() -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=6.0, dice=lambda: 1.0)
    waits = [policy.delay_s(attempt, PASSING) for attempt in range(1, 8)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0, 6.0]


@given(attempt=st.integers(1, 10_000), dice=st.floats(0, 1))
def test_every_wait_is_between_nothing_and_the_ceiling(attempt: int, dice: float) -> None:
    policy = RetryPolicy(dice=lambda: dice)
    longest = UNLUCKY.delay_s(attempt, PASSING)
    assert 0.0 <= policy.delay_s(attempt, PASSING) <= longest <= policy.cap_s


def test_equal_clients_do_not_come_back_together() -> None:
    waits = {RetryPolicy().delay_s(5, PASSING) for _ in range(20)}
    assert len(waits) > 1


@pytest.mark.parametrize(
    ("asked_s", "waits_s"),
    [(0.0, 0.0), (7.0, 7.0), (300.0, 300.0), (86_400.0, 300.0), (-5.0, 0.0)],
)
def test_retry_after_is_honoured_within_reason(asked_s: float, waits_s: float) -> None:
    error = OriginStatus(503, retry_after_s=asked_s)
    assert RetryPolicy().delay_s(1, error) == waits_s
    assert RetryPolicy().rest_s(error) == waits_s


@pytest.mark.parametrize(
    ("error", "rest_s"),
    [(PASSING, 3.0), (PERMANENT, 10.0), (StorageError("full"), 3.0), (ValueError("bug"), 3.0)],
)
def test_a_failed_entry_rests_longer_if_the_failure_will_last(
    error: Exception, rest_s: float
) -> None:
    assert RetryPolicy().rest_s(error) == rest_s


# -- how often to try ---------------------------------------------------------


def tries(policy: RetryPolicy, *, begun: bool, progressed: bool = False) -> int:
    """Return how many failing attempts it takes to give up."""
    attempts = Attempts(policy)
    for number in count(1):
        if attempts.failed(PASSING, 0.0, begun=begun, progressed=progressed) is None:
            return number
        assert number < 1000, "it never gives up"
    raise AssertionError


def test_a_wrong_address_is_given_up_sooner_than_one_that_has_answered() -> None:
    policy = RetryPolicy(first_attempts=2, attempts=7)
    assert tries(policy, begun=False) == 2
    assert tries(policy, begun=True) == 7


def test_an_outage_of_half_a_minute_is_lived_through() -> None:
    attempts = Attempts(UNLUCKY)
    waits = [attempts.failed(PASSING, 0.0, begun=True, progressed=False) for _ in range(9)]
    assert sum(wait for wait in waits if wait is not None) > 30.0


def test_one_received_byte_starts_the_count_anew() -> None:
    attempts = Attempts(RetryPolicy(attempts=3))
    for _ in range(20):
        for progressed in (False, True):
            assert attempts.failed(PASSING, 0.0, begun=True, progressed=progressed) is not None
    assert attempts.count == 1


def test_an_attempt_that_progressed_and_then_failed_counts_as_the_first() -> None:
    attempts = Attempts(RetryPolicy(attempts=3))
    outcomes = [
        attempts.failed(PASSING, 0.0, begun=True, progressed=progressed) is None
        for progressed in (False, True, False, False)
    ]
    assert outcomes == [False, False, False, True]


def test_connections_that_were_asked_for_together_are_one_attempt() -> None:
    attempts = Attempts(UNLUCKY)
    for round_s in (10.0, 20.0):
        for later_s in (1.0, 2.0, 9.0):
            now_s = round_s + later_s
            attempts.failed(PASSING, now_s, begun=True, progressed=False, asked_s=round_s)
    assert attempts.count == 2


def test_the_next_attempt_is_not_before_the_wait_is_over() -> None:
    attempts = Attempts(UNLUCKY)
    delay_s = attempts.failed(PASSING, 100.0, begun=True, progressed=False)
    assert delay_s == 0.25
    assert attempts.not_before_s == 100.25
    assert attempts.cause is PASSING


def test_a_rest_holds_back_without_counting() -> None:
    attempts = Attempts(UNLUCKY)
    cause = StorageError("disk full")
    attempts.rest(100.0, cause)
    assert (attempts.count, attempts.not_before_s, attempts.cause) == (0, 103.0, cause)


def test_a_reset_forgets_everything() -> None:
    attempts = Attempts(UNLUCKY)
    attempts.failed(PASSING, 100.0, begun=True, progressed=False)
    attempts.reset()
    assert (attempts.count, attempts.not_before_s, attempts.cause) == (0, 0.0, None)


@pytest.mark.parametrize(
    "error", [PASSING, PERMANENT, UnsatisfiedByOrigin(5), StorageError("full")], ids=repr
)
def test_an_error_that_is_raised_once_more_says_the_same(error: CacheError) -> None:
    again = error.again()
    assert again is not error
    assert type(again) is type(error)
    assert (str(again), again.status_hint) == (str(error), error.status_hint)
    assert again.__traceback__ is None
    if isinstance(error, OriginError):
        assert isinstance(again, OriginError)
        assert again.permanent == error.permanent
