"""When stored bytes are synced, at each level of durability.

That the order holds wherever the power fails is test_power_loss's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from cachefsm import ByteRange
from cachefsm.errors import StorageError
from cachefsm.scheduler import Open, Priority
from cachefsm.storage import ContentFile
from cachefsm.surroundings import Durability
from tests.support.databases import aborting
from tests.support.entries import SIZE, OneEntry
from tests.support.origin import content


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


def test_what_is_removed_while_it_is_synced_is_recorded_nowhere(tmp_path: Path) -> None:
    class Slow(ContentFile):
        def flush(self) -> None:
            super().flush()
            one.entry.remove()  # as a person does meanwhile

    with closing(OneEntry(tmp_path, Durability.POWER, Slow)) as one:
        one.entry.detach(one.entry.attach())  # which is to be written down, too
        one.fetch(0, SIZE)
        one.entry.flush()
        assert one.rows() == {}


class Refusal:
    """A disk that fails to sync once it is told to, and then no more."""

    def __init__(self) -> None:
        self.is_due = False

    def file(self, path: Path) -> ContentFile:
        refusal = self

        class Refused(ContentFile):
            def flush(self) -> None:
                super().flush()
                if refusal.is_due:
                    refusal.is_due = False
                    raise StorageError("the disk refused")

        return Refused(path)


@pytest.fixture
def refusal() -> Refusal:
    return Refusal()


@pytest.fixture
def one(tmp_path: Path, refusal: Refusal) -> Iterator[OneEntry]:
    with closing(OneEntry(tmp_path, Durability.POWER, refusal.file)) as one:
        yield one


def test_what_was_written_before_a_failed_sync_is_not_claimed_after_it(
    one: OneEntry, refusal: Refusal
) -> None:
    """The system may have lost it, and the next sync says nothing of that."""
    entry = one.entry
    one.fetch(0, 1000)
    claim = entry.grant(Open(entry.id, 1000, 2000, Priority.PERSON))
    assert claim is not None
    claim.content.file.write_at(1000, content(1000, 2000))
    refusal.is_due = True
    with pytest.raises(StorageError):
        entry.flush()
    entry.wrote(claim, 2000, [ByteRange(1000, 2000)])  # its thread had not come so far
    entry.ended(claim, None)
    entry.flush()
    assert one.rows() == {}


def test_what_was_not_synced_is_not_claimed_either_if_the_database_refused_to_drop_it(
    one: OneEntry, refusal: Refusal
) -> None:
    one.fetch(0, 1000)
    refusal.is_due = True
    with aborting(one.database, "BEFORE UPDATE ON cache_entries"), pytest.raises(StorageError):
        one.entry.flush()
    for _ in range(2):  # the first of them drops it
        with suppress(StorageError):
            one.entry.flush()
    assert one.rows() == {}
    assert one.entry.ranges() == []
