"""When an entry is playable: a head and a tail are here, or as much of that as can be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefsm.content import Content
from cachefsm.facts import is_playable
from cachefsm.ranges import RangeSet
from cachefsm.representation import Representation
from cachefsm.semantics import Validator
from cachefsm.storage import ContentFile
from cachefsm.surroundings import EntryPolicy

POLICY = EntryPolicy(playable_head_bytes=100, playable_tail_bytes=10)
STRONG, WEAK = '"1"', 'W/"1"'


def content(length: int | None, etag: str, *present: tuple[int, int]) -> Content:
    """Return what is stored of a file of *length* bytes; nothing is read of it here."""
    known = Representation(
        complete_length=length,
        validator=Validator(etag=etag),
        fields=(),
        accepts_ranges=True,
    )
    return Content(ContentFile(Path("unused")), RangeSet(present), representation=known)


@pytest.mark.parametrize(
    ("stored", "playable"),
    [
        (content(1000, STRONG, (0, 100), (990, 1000)), True),
        (content(1000, STRONG, (0, 100)), False),
        (content(1000, STRONG, (0, 99), (990, 1000)), False),
        (content(1000, STRONG, (0, 100), (991, 1000)), False),
        (content(50, STRONG, (0, 50)), True),
        (content(50, STRONG, (0, 49)), False),
        (content(0, STRONG), True),
        (content(None, STRONG, (0, 100)), True),  # nobody knows where the tail is
        (content(1000, WEAK, (0, 100)), True),  # and here it comes last, whatever is asked
        (content(1000, WEAK, (0, 99)), False),
    ],
)
def test_a_head_and_a_tail_make_a_file_playable(stored: Content, playable: bool) -> None:
    assert is_playable(stored, POLICY) is playable


def test_what_nothing_is_known_of_is_not_playable() -> None:
    assert not is_playable(Content(ContentFile(Path("unused"))), POLICY)
