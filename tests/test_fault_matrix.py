"""docs/faults.md says what the tests prove, and what the code does about errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefsm import errors
from cachefsm.errors import OriginError
from cachefsm.retries import Verdict
from tests.fault_matrix import (
    _CAUSES,
    GROUPS,
    PAGE,
    faults,
    page,
    retry_rows,
    verdict_on,
    waits_s,
)

CLAIMED = '@pytest.mark.fault("{group}", "{name}", client="a", kept="b", next_reader="c")\n'
NAMED = '@pytest.mark.fault("{group}", "{name}")\n'


def _tests(directory: Path, *marks: str) -> Path:
    """Write a test with *marks* each."""
    source = "".join(f"{mark}def test_{number}(): ...\n" for number, mark in enumerate(marks))
    (directory / "test_sample.py").write_text(source)
    return directory


def test_the_page_is_current() -> None:
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    assert found == page(), "run: python -m tests.fault_matrix --write"


def test_there_are_faults_of_every_kind() -> None:
    assert {fault.group for fault in faults()} == set(GROUPS)


def test_a_fault_is_proven_by_every_test_that_names_it(tmp_path: Path) -> None:
    claimed, named = (
        CLAIMED.format(group="disk", name="full"),
        NAMED.format(group="disk", name="full"),
    )
    (fault,) = faults(_tests(tmp_path, named, claimed))
    assert fault.claims == {"client": "a", "kept": "b", "next_reader": "c"}
    assert fault.proofs == ["test_sample.py::test_0", "test_sample.py::test_1"]


@pytest.mark.parametrize(
    "marks",
    [
        [NAMED.format(group="disk", name="full")],
        [CLAIMED.format(group="disk", name="full")] * 2,
        [CLAIMED.format(group="weather", name="rain")],
        ['@pytest.mark.fault("disk", "full", client="a")\n'],
    ],
    ids=["nobody claims", "claimed twice", "no such group", "half a claim"],
)
def test_a_mark_that_makes_no_sense_is_refused(tmp_path: Path, marks: list[str]) -> None:
    with pytest.raises(ValueError, match=r"test_sample\.py::test_"):
        faults(_tests(tmp_path, *marks))


# -- retries -----------------------------------------------------------------------


def test_every_error_that_an_origin_can_cause_stands_in_the_table() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    # A 416 is judged by what is known, and told below the table.
    # A 304 is no fault.
    apart = {OriginError, errors.UnsatisfiedByOrigin, errors.NotModified}
    listed = {type(error) for errors_ in _CAUSES.values() for error in errors_}
    assert {kind for kind in kinds if issubclass(kind, OriginError)} - apart <= listed


def test_kinds_are_the_verdicts_of_the_code() -> None:
    kinds = {cause: kind for cause, kind, _, _ in retry_rows()}
    for cause, kind in kinds.items():
        assert (kind == "transient") == (verdict_on(cause) is Verdict.TRY_AGAIN)
        assert (kind == "permanent") == (verdict_on(cause) is Verdict.FAIL)


def test_waits_are_those_that_the_text_says() -> None:
    assert waits_s(begun=False) == [0.25, 0.5, 1, 2]
    assert waits_s(begun=True) == [0.25, 0.5, 1, 2, 4, 8, 8, 8, 8]
