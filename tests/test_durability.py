"""When stored bytes are synced, at each level of durability.

That the order holds wherever the power fails is test_power_loss's.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from cachefsm import ByteRange
from cachefsm.storage import ContentFile
from cachefsm.surroundings import Durability
from tests.support.entries import SIZE, OneEntry


def _entry(directory: Path, durability: Durability) -> tuple[OneEntry, list[list[ByteRange]]]:
    """Return an entry, and the rows that there were at each sync of its content."""
    syncs: list[list[ByteRange]] = []

    class Noted(ContentFile):
        def flush(self) -> None:
            syncs.append(list(entry.rows()))
            super().flush()

    entry = OneEntry(directory, durability, Noted)
    return entry, syncs


def test_bytes_are_synced_before_a_row_claims_them(tmp_path: Path) -> None:
    entry, syncs = _entry(tmp_path, Durability.POWER)
    with closing(entry):
        entry.fetch(0, 1000)
        entry.entry.flush()
        assert list(entry.rows()) == [ByteRange(0, 1000)]
        entry.fetch(1000, SIZE)
        entry.entry.flush()
        assert list(entry.rows()) == [ByteRange(0, SIZE)]
    assert syncs == [[], [ByteRange(0, 1000)]]


def test_to_outlive_the_process_nothing_is_synced(tmp_path: Path) -> None:
    entry, syncs = _entry(tmp_path, Durability.PROCESS)
    with closing(entry):
        entry.fetch(0, SIZE)
        entry.entry.flush()
        assert list(entry.rows()) == [ByteRange(0, SIZE)]
        assert entry.entry.state == "complete"
    assert syncs == []


@pytest.mark.parametrize("durability", Durability)
def test_what_is_recorded_already_is_not_synced_again(
    tmp_path: Path, durability: Durability
) -> None:
    entry, syncs = _entry(tmp_path, durability)
    with closing(entry):
        entry.fetch(0, 1000)
        for _ in range(3):
            entry.entry.flush()
    assert len(syncs) == (1 if durability is Durability.POWER else 0)
