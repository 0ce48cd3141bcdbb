"""On which terms a stored response may be used: RFC 9111 §4 and §5.2, RFC 5861, mounts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.representation import Representation
from cachefsm.semantics import Validator
from cachefsm.terms import Stored, Terms, Use

RECEIVED_S = 1_700_000_000.0

Field = tuple[str, str]


def stored(control: str = "", *fields: Field) -> Stored:
    """Return a response received, without delay, at RECEIVED_S."""
    told = (*fields, *([("Cache-Control", control)] if control else []))
    return Stored(Representation(10, Validator(), told, True), RECEIVED_S, RECEIVED_S)


def use(control: str, age_s: float, asked: str = "", **terms: object) -> Use:
    """Return what a client that says *asked* may do with a response of that age."""
    asks = [("Cache-Control", asked)] if asked else []
    return Terms(asks, **terms).use_of(stored(control), RECEIVED_S + age_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("control", "age_s", "asked", "expected"),
    [
        ("max-age=60", 59, "", Use.NOW),
        ("max-age=60", 60, "", Use.AFTER_ASKING),
        ("max-age=0", 0, "", Use.AFTER_ASKING),
        ("max-age=60, no-cache", 1, "", Use.AFTER_ASKING),
        ('max-age=60, no-cache="Set-Cookie"', 1, "", Use.AFTER_ASKING),
        ("max-age=60, private", 59, "", Use.NOW),
        ("max-age=60, no-store", 1, "", Use.AFTER_ASKING),
        ("max-age=60, no-store, must-understand", 1, "", Use.NOW),
        ("max-age=60", 1, "no-cache", Use.AFTER_ASKING),
        ("max-age=60", 1, "no-store", Use.NOW),
        ("max-age=60", 1, "max-age=0", Use.AFTER_ASKING),
        ("max-age=60", 5, "max-age=5", Use.NOW),
        ("max-age=60", 6, "max-age=5", Use.AFTER_ASKING),
        ("max-age=60", 1, "max-age=rubbish", Use.AFTER_ASKING),
        ("max-age=60", 49, "min-fresh=10", Use.NOW),
        ("max-age=60", 50, "min-fresh=10", Use.AFTER_ASKING),
        ("max-age=60", 61, "max-stale", Use.NOW),
        ("max-age=60", 70, "max-stale=10", Use.NOW),
        ("max-age=60", 71, "max-stale=10", Use.AFTER_ASKING),
        ("max-age=60, must-revalidate", 61, "max-stale", Use.AFTER_ASKING),
        ("max-age=60, no-cache", 61, "max-stale", Use.AFTER_ASKING),
        ("max-age=60", 1, "only-if-cached", Use.NOW),
        ("max-age=60", 60, "only-if-cached", Use.NEVER),
        ("max-age=60", 70, "only-if-cached, max-stale=10", Use.NOW),
        ("max-age=60, stale-while-revalidate=30", 90, "", Use.MEANWHILE),
        ("max-age=60, stale-while-revalidate=30", 91, "", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=x", 60, "", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30, must-revalidate", 61, "", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30, no-cache", 1, "", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30", 61, "no-cache", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30", 61, "max-age=60", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30", 61, "max-age=90", Use.MEANWHILE),
        ("max-age=60, stale-while-revalidate=30", 55, "min-fresh=10", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30", 61, "min-fresh=0", Use.AFTER_ASKING),
        ("max-age=60, stale-while-revalidate=30", 61, "only-if-cached", Use.NEVER),
    ],
)
def test_directives_decide_whether_the_origin_is_asked(
    control: str, age_s: float, asked: str, expected: Use
) -> None:
    assert use(control, age_s, asked) is expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([("Pragma", "no-cache")], Use.AFTER_ASKING),
        ([("Pragma", "other")], Use.NOW),
        ([("Pragma", "no-cache"), ("Cache-Control", "max-stale")], Use.NOW),
    ],
)
def test_pragma_is_heard_where_there_is_no_cache_control(asked: list[Field], expected: Use) -> None:
    assert Terms(asked).use_of(stored("max-age=60"), RECEIVED_S + 1) is expected


def test_an_age_from_upstream_counts() -> None:
    aged = stored("max-age=60", ("Age", "50"))
    assert Terms().use_of(aged, RECEIVED_S + 9) is Use.NOW
    assert Terms().use_of(aged, RECEIVED_S + 10) is Use.AFTER_ASKING


# -- mounts --------------------------------------------------------------------


def test_a_mounts_own_lifetime_takes_the_place_of_what_the_origin_says() -> None:
    for control in ("no-store", "no-cache", "max-age=0", "max-age=9999", "must-revalidate"):
        assert use(control, 29, fresh_s=30.0) is Use.NOW
        assert use(control, 30, fresh_s=30.0) is Use.AFTER_ASKING


def test_a_client_may_want_it_fresher_than_its_mount() -> None:
    assert use("", 1, "no-cache", fresh_s=30.0) is Use.AFTER_ASKING
    assert use("", 6, "max-age=5", fresh_s=30.0) is Use.AFTER_ASKING


def test_an_offline_mount_uses_whatever_is_there() -> None:
    assert use("no-store", 9999, "no-cache", offline=True) is Use.NOW
    assert not Terms(offline=True).may_ask()


@pytest.mark.parametrize(("asked", "may"), [("", True), ("only-if-cached", False)])
def test_who_wants_only_what_is_stored_lets_nobody_be_asked(asked: str, may: bool) -> None:
    assert Terms([("Cache-Control", asked)]).may_ask() is may


def test_a_mounts_own_lifetime_lets_everything_be_stored_but_what_the_client_forbids() -> None:
    forbidding = [("Cache-Control", "no-store"), ("Vary", "*")]
    assert not Terms().may_store(200, forbidding)
    assert Terms(fresh_s=1.0).may_store(200, forbidding)
    assert not Terms([("Cache-Control", "no-store")], fresh_s=1.0).may_store(200, [])


# -- when the origin cannot answer ---------------------------------------------


@pytest.mark.parametrize(
    ("control", "age_s", "asked", "may"),
    [
        ("max-age=60", 9999, "", True),
        ("max-age=60, must-revalidate", 61, "", False),
        ("max-age=60, no-cache", 61, "", False),
        ("max-age=60, stale-if-error=30", 90, "", True),
        ("max-age=60, stale-if-error=30", 91, "", False),
        ("max-age=60, stale-if-error=30, must-revalidate", 61, "", False),
        ("max-age=60", 90, "stale-if-error=30", True),
        ("max-age=60", 91, "stale-if-error=30", False),
        ("max-age=60, stale-if-error=30", 100, "stale-if-error=40", True),
        ("max-age=60, stale-if-error=x", 61, "", False),
    ],
)
def test_a_stale_response_may_stand_in_for_an_origin_that_is_away(
    control: str, age_s: float, asked: str, may: bool
) -> None:
    terms = Terms([("Cache-Control", asked)])
    assert terms.may_use_on_error(stored(control), RECEIVED_S + age_s) is may


def test_a_mounts_own_lifetime_lets_anything_stand_in() -> None:
    told = stored("must-revalidate, stale-if-error=0")
    assert Terms(fresh_s=1.0).may_use_on_error(told, RECEIVED_S + 9999)


# -- what selects --------------------------------------------------------------


def test_the_forwarded_fields_select_a_response() -> None:
    terms = Terms(forwarded=(("accept-language", "de"), ("accept", "*/*")))
    vary = [("Vary", "Accept-Language, Accept-Encoding")]
    assert terms.vary_key(vary) == (("accept-encoding", None), ("accept-language", "de"))
    assert terms.vary_key([("Vary", "*")]) is None
    assert replace(terms, fresh_s=1.0).vary_key(vary) == ()


# -- against a model -----------------------------------------------------------

SECONDS = st.integers(0, 8)


@dataclass(frozen=True)
class Case:
    """One stored response and one request, as numbers; None is an absent directive."""

    age: int
    max_age: int
    forbids_reuse: bool
    must_revalidate: bool
    meanwhile: int | None
    wants_new: bool
    oldest: int | None
    min_fresh: int | None
    max_stale: int | None
    only_stored: bool

    def control(self) -> str:
        return _listed(
            ("max-age", self.max_age),
            ("no-cache", self.forbids_reuse),
            ("must-revalidate", self.must_revalidate),
            ("stale-while-revalidate", self.meanwhile),
        )

    def asked(self) -> str:
        return _listed(
            ("no-cache", self.wants_new),
            ("max-age", self.oldest),
            ("min-fresh", self.min_fresh),
            ("max-stale", self.max_stale),
            ("only-if-cached", self.only_stored),
        )

    def model(self) -> Use:
        """Return what RFC 9111 lets a cache do, thought of as the seconds it may be late."""
        if self.forbids_reuse or self.wants_new:
            lenience = meanwhile = float("-inf")
        else:
            lenience = self.max_stale if self.max_stale is not None else -0.5
            lenience = min(lenience, -0.5) if self.must_revalidate else lenience
            meanwhile = self.meanwhile if self.meanwhile is not None else float("-inf")
            meanwhile = float("-inf") if self.must_revalidate else meanwhile
        if self.oldest is not None and self.age > self.oldest:
            lenience = meanwhile = float("-inf")
        if self.min_fresh is not None:
            meanwhile = float("-inf")
        if self.age + (self.min_fresh or 0) - self.max_age <= lenience:
            return Use.NOW
        if self.only_stored:
            return Use.NEVER
        return Use.MEANWHILE if self.age - self.max_age <= meanwhile else Use.AFTER_ASKING


def _listed(*directives: tuple[str, int | bool | None]) -> str:
    words = [
        name if value is True else f"{name}={value}"
        for name, value in directives
        if value is not None and value is not False
    ]
    return ", ".join(words)


CASES = st.builds(
    Case,
    age=SECONDS,
    max_age=SECONDS,
    forbids_reuse=st.booleans(),
    must_revalidate=st.booleans(),
    meanwhile=st.none() | SECONDS,
    wants_new=st.booleans(),
    oldest=st.none() | SECONDS,
    min_fresh=st.none() | SECONDS,
    max_stale=st.none() | SECONDS,
    only_stored=st.booleans(),
)


@given(CASES)
def test_every_mixture_of_directives_is_used_as_the_model_says(case: Case) -> None:
    assert use(case.control(), case.age, case.asked()) is case.model()


TEXT = st.text(max_size=30) | st.sampled_from(
    ["max-age", "max-age=", 'max-age="', "no-cache=", "stale-while-revalidate=-1", ",=,", "*"]
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["Cache-Control", "Pragma", "Vary", "Age", "Date", "Expires",
                         "Last-Modified", "Content-Type"]),
        TEXT,
    ),
    max_size=6,
)  # fmt: skip


@given(FIELDS, FIELDS, st.floats(0, 1e12))
def test_no_text_makes_a_decision_raise(
    asked: list[Field], told: list[Field], now_s: float
) -> None:
    kept = stored("", *told)
    terms = Terms(asked, forwarded=asked)
    assert terms.use_of(kept, now_s) in Use
    terms.may_use_on_error(kept, now_s)
    terms.may_store(200, told)
    terms.vary_key(told)
