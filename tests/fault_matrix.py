"""Writes ``docs/faults.md``: which faults there are, what each costs, which tests prove it.

A test that proves what a fault costs says so itself::

    @pytest.mark.fault(
        "network", "the connection breaks in mid-body",
        client="…", kept="…", next_reader="…",
    )

Others that prove the same fault name it, without saying it again. The page is made
of these marks; they are read, not imported. The table of retries is computed from
the code that decides about them.

    python -m tests.fault_matrix [--write]
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cachefsm.content import Content
from cachefsm.errors import (
    BadAnswer,
    DownloadCancelled,
    OriginError,
    OriginRefused,
    OriginStatus,
    OriginTimeout,
    OriginUnreachable,
    OriginUntrusted,
    RepresentationChanged,
    StorageError,
)
from cachefsm.ranges import RangeSet
from cachefsm.representation import Representation
from cachefsm.retries import Attempts, RetryPolicy, Verdict, judge
from cachefsm.semantics import Validator
from cachefsm.storage import ContentFile

__all__ = ["PAGE", "Fault", "faults", "page"]

_TESTS = Path(__file__).parent
PAGE = _TESTS.parent / "docs" / "faults.md"

GROUPS = {
    "origin": "The origin misbehaves",
    "network": "The network",
    "file": "The content file",
    "disk": "The disk",
    "database": "The database",
    "process": "The process and its machine",
    "capacity": "The space there is",
}
_CLAIMS = ("client", "kept", "next_reader")

_INTRODUCTION = """\
# What happens when something fails

A client gets the origin's exact bytes of one version, or an error status, or a
connection that is visibly cut short (called a *cut* below). The tables say, fault by
fault, what a client that is being served sees, which stored bytes are kept, and what the
next reader gets. Every line is proven by the tests named under its table; this page is
generated from their marks (`python -m tests.fault_matrix --write`), and a test fails when
it is out of date.
"""


# -- the tests' marks --------------------------------------------------------------


@dataclass
class Fault:
    """One thing that goes wrong; ``proofs`` are tests as ``file::name``."""

    group: str
    name: str
    claims: dict[str, str] = field(default_factory=dict)
    proofs: list[str] = field(default_factory=list)


def faults(directory: Path = _TESTS) -> list[Fault]:
    """Return the faults that tests below *directory* prove, by group.

    Raises:
        ValueError: a mark makes no sense, or a fault is claimed twice or not at all.
    """
    found: dict[tuple[str, str], Fault] = {}
    for file in sorted(directory.glob("test_*.py")):
        for test, mark in _marks(ast.parse(file.read_text(encoding="utf-8"))):
            proof = f"{file.name}::{test.name}"
            group, name = (ast.literal_eval(argument) for argument in mark.args)
            fault = found.setdefault((group, name), Fault(group, name))
            fault.proofs.append(proof)
            claims = {word.arg or "": ast.literal_eval(word.value) for word in mark.keywords}
            if claims and (fault.claims or tuple(claims) != _CLAIMS):
                raise ValueError(f"{proof}: a fault says once what it costs: {', '.join(_CLAIMS)}")
            fault.claims |= claims
    for fault in found.values():
        if fault.group not in GROUPS or not fault.claims:
            raise ValueError(f"{fault.proofs[0]}: nobody says what it costs if {fault.name}")
    order = list(GROUPS)
    return sorted(found.values(), key=lambda fault: order.index(fault.group))


def _marks(module: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.Call]]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    yield node, mark


# -- retries -----------------------------------------------------------------------

POLICY = RetryPolicy(dice=lambda: 1.0)

_PASSING = [status for status in range(400, 600) if not OriginStatus(status).permanent]

_CAUSES: dict[str, tuple[OriginError | StorageError | DownloadCancelled, ...]] = {
    "no connection: refused, reset, no route, no such name": (OriginUnreachable(""),),
    "the connection breaks, or the body is shorter than promised": (OriginUnreachable(""),),
    "silence for too long, or bytes below the floor of speed": (OriginTimeout(""),),
    "a 200 or 206 that cannot be trusted": (BadAnswer(""),),
    f"status {', '.join(map(str, _PASSING))}": tuple(map(OriginStatus, _PASSING)),
    "any other status of 4xx or 5xx, but 416": tuple(
        OriginStatus(status) for status in range(400, 600) if status not in (*_PASSING, 416)
    ),
    "an address, a scheme or a redirect that is not allowed": (OriginRefused(""),),
    "a certificate that is not to be trusted": (OriginUntrusted(""),),
    "another version than the one that is stored": (RepresentationChanged(""),),
    "the disk or the database refuses": (StorageError(""),),
    "a person cancels": (DownloadCancelled(""),),
}
"""Causes in words, with the errors that stand for each."""


def _content() -> Content:
    """Return content of which something is known and the beginning is here."""
    known = Representation(1000, Validator.from_fields((("ETag", '"v0"'),)), (), True)
    return Content(ContentFile(Path("nowhere")), RangeSet([(0, 500)]), representation=known)


def verdict_on(cause: str) -> Verdict:
    """Return what the code makes of *cause*, the same for all errors that it stands for."""
    (verdict,) = {judge(error, _content(), 500) for error in _CAUSES[cause]}
    return verdict


def retry_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield cause, kind, what happens, and when a new reader may have it tried again."""
    for cause, errors in _CAUSES.items():
        verdict = verdict_on(cause)
        (rest_s,) = {POLICY.rest_s(error) for error in errors}
        kind, happens, again = {
            Verdict.TRY_AGAIN: (
                "transient",
                "asked again for the first missing byte; then failed",
                f"{rest_s:g} s after the failure",
            ),
            Verdict.FAIL: (
                "permanent",
                "failed at once; whoever waits is told",
                f"{rest_s:g} s after the failure",
            ),
            Verdict.INVALIDATE: (
                "neither",
                "what is stored is dropped, and fetching begins anew",
                "at once",
            ),
            Verdict.CANNOT_STORE: (
                "not the origin's",
                "clients are served straight from the origin; storing is tried again",
                f"{POLICY.exhausted_s:g} s after the refusal, while somebody reads",
            ),
        }[verdict]
        if isinstance(errors[0], DownloadCancelled):
            again = f"{POLICY.cancelled_s:g} s after it; a person, at once"
        yield cause, kind, happens, again


def waits_s(*, begun: bool) -> list[float]:
    """Return the longest waits between attempts that bring nothing, in seconds."""
    attempts, waits = Attempts(POLICY), []
    while True:
        wait_s = attempts.failed(OriginUnreachable(""), 0.0, begun=begun, progressed=False)
        if wait_s is None:
            return waits
        waits.append(wait_s)


# -- the page ----------------------------------------------------------------------


def page() -> str:
    """Return the text of ``docs/faults.md``."""
    parts = [_INTRODUCTION]
    known = faults()
    for group, title in GROUPS.items():
        parts.append("\n".join(_section(title, [f for f in known if f.group == group])))
    parts.append("\n".join(_retries()))
    return "\n".join(parts) + "\n"


def _section(title: str, found: list[Fault]) -> Iterator[str]:
    yield f"## {title}\n"
    header = ("", "fault", "the client", "is kept", "the next reader")
    numbered = enumerate(found, 1)
    yield from _table(
        header,
        [(str(n), f.name, *(f.claims[claim] for claim in _CLAIMS)) for n, f in numbered],
    )
    yield "\nProven by:\n"
    for number, fault in enumerate(found, 1):
        by_file: dict[str, list[str]] = {}
        for proof in fault.proofs:
            file, _, test = proof.partition("::")
            by_file.setdefault(file, []).append(f"`{test}`")
        proofs = "; ".join(f"{file}: {', '.join(tests)}" for file, tests in by_file.items())
        yield _wrapped(f"{number}. {proofs}", subsequent_indent="   ")
    yield ""


def _retries() -> Iterator[str]:
    yield "## What is tried again, and when\n"
    header = ("cause", "kind", "what happens", "tried again for a new reader")
    yield from _table(header, retry_rows())
    yield ""
    for begun, when in ((False, "has not answered yet"), (True, "has answered before")):
        waits = waits_s(begun=begun)
        seconds = ", ".join(f"{wait_s:g}" for wait_s in waits)
        yield _wrapped(
            f"An origin that {when} for the file is asked {len(waits) + 1} times. The waits in "
            f"between are random, at most {seconds} s: {sum(waits):g} s together at the "
            "longest, and half of that on average."
        )
        yield ""
    yield _wrapped(
        "Each received byte that can be kept starts the count anew. The origin's `Retry-After` "
        f"replaces these waits, up to {POLICY.longest_retry_after_s:g} s; a reader that would "
        "time out before that is told at once. A 416 is judged by what is known of the file: it "
        "tells the length, that there is another version, or that the file is empty."
    )


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


_wrapped = partial(textwrap.fill, width=88, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fault_matrix")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    if parser.parse_args().write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
