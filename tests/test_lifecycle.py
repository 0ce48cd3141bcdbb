"""Every (state, event) pair, every guard, and every way a database can refuse a move.

Rows are read through a second connection: what counts is what is committed.
"""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cachefsm.errors import EntryNotFound, IllegalMove, StorageError
from cachefsm.lifecycle import PERSON, DownloadLifecycle, Lifecycle, Move
from cachefsm.models import QueueRecord, StaleRow, Store
from cachefsm.ranges import ByteRange, RangeSet
from cachefsm.states import ACTIVE, DownloadState
from tests.support.caches import WAIT_S
from tests.support.databases import (
    FAULTS,
    aborting,
    add_entry,
    execute,
    open_store,
    stored,
    stored_chunks,
    stored_entry,
)
from tests.support.disks import fill, small_disk
from tests.support.threads import in_thread

# The contract's table, written out: event, the states it leaves, where it leads.
TABLE: Final = {
    "initialize": ({"not_started"}, "initializing"),
    "begin": ({"initializing"}, "downloading"),
    "pause": ({"initializing", "downloading"}, "paused"),
    "resume": ({"paused"}, "initializing"),
    "finish": ({"initializing", "downloading"}, "complete"),
    "fail": ({"initializing", "downloading", "paused"}, "failed"),
    "cancel": ({"not_started", "initializing", "downloading", "paused"}, "failed"),
    "retry": ({"failed"}, "initializing"),
    "invalidate": (
        {"initializing", "downloading", "paused", "complete", "failed"},
        "not_started",
    ),
    "recover": ({"initializing", "downloading"}, "paused"),
}
STATES: Final = {
    "not_started": "NotStarted",
    "initializing": "Initializing",
    "downloading": "Downloading",
    "paused": "Paused",
    "complete": "Complete",
    "failed": "Failed",
}
LEGAL: Final = [
    (source, event, target) for event, (sources, target) in TABLE.items() for source in sources
]
ILLEGAL: Final = [
    (state, event) for event, (sources, _) in TABLE.items() for state in STATES.keys() - sources
]

# The shortest way to each state.
WAY: Final = {
    "not_started": [],
    "initializing": ["initialize"],
    "downloading": ["initialize", "begin"],
    "paused": ["initialize", "pause"],
    "complete": ["initialize", "finish"],
    "failed": ["cancel"],
}
# Facts with which every guard is content.
WELCOME: Final = Move(asked_by=PERSON, durable_bytes=10, complete_length=10, now_s=5.0)
EVERY: Final = range(32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(path)
    yield store
    store.close()


def entry_in(store: Store, state: str, *, key: str = "film", **facts: Any) -> Lifecycle:
    """Return a new entry that has been sent to *state*; *facts* go with the last event."""
    lifecycle = Lifecycle(store, add_entry(store, key))
    for event in WAY[state]:
        last = event == WAY[state][-1]
        lifecycle.send(event, replace(WELCOME, **(facts if last else {})))
    assert lifecycle.state == state
    return lifecycle


def machines() -> int:
    gc.collect()
    return sum(isinstance(thing, DownloadLifecycle) for thing in gc.get_objects())


# -- the table ----------------------------------------------------------------


def test_there_are_the_contract_s_states_and_events_and_no_more() -> None:
    assert {state.value: state.name for state in DownloadLifecycle.states} == STATES
    moves = [move for state in DownloadLifecycle.states for move in state.transitions]
    assert {move.event for move in moves} == TABLE.keys()
    assert {state.value for state in DownloadState} == STATES.keys()
    assert len(LEGAL) + len(ILLEGAL) == len(STATES) * len(TABLE)


@pytest.mark.parametrize(("source", "event", "target"), sorted(LEGAL))
def test_a_legal_event_moves_memory_and_row(
    store: Store, path: Path, source: str, event: str, target: str
) -> None:
    lifecycle = entry_in(store, source)
    returned = lifecycle.send(event, replace(WELCOME, reason="because", now_s=42.0))
    assert lifecycle.state == target
    assert (returned.state, returned.state_reason, returned.state_since) == (
        target,
        "because",
        42.0,
    )
    assert lifecycle.record == returned == stored_entry(path, returned.id)


@pytest.mark.parametrize(("state", "event"), sorted(ILLEGAL))
def test_an_illegal_event_is_named_and_changes_neither_memory_nor_row(
    store: Store, path: Path, state: str, event: str
) -> None:
    lifecycle = entry_in(store, state)
    before = lifecycle.record
    with pytest.raises(IllegalMove, match=f"cannot {event} .* {state}") as caught:
        lifecycle.send(event, replace(WELCOME, reason="no", columns={"priority": 7}))
    assert (caught.value.event, caught.value.state) == (event, state)
    assert lifecycle.record is before
    assert stored_entry(path, before.id) == before


HELP: Final = {
    ("resume", "failed"): "; retry it",
    ("resume", "not_started"): "; prefetch it",
    ("resume", "initializing"): " already",
    ("resume", "downloading"): "; possible: pause, cancel",
    ("retry", "paused"): "; resume it",
    ("retry", "not_started"): "; prefetch it",
    ("retry", "initializing"): " already",
    ("retry", "downloading"): "; possible: pause, cancel",
    ("pause", "paused"): " already",
    ("pause", "not_started"): "; possible: prefetch, cancel",
    ("pause", "failed"): "; possible: retry",
    ("cancel", "failed"): " (why) already",
    ("cancel", "complete"): "",
    ("pause", "complete"): "",
    ("resume", "complete"): "",
    ("retry", "complete"): "",
}


@pytest.mark.parametrize(("event", "state"), HELP)
def test_an_illegal_order_says_what_would_help(store: Store, event: str, state: str) -> None:
    lifecycle = entry_in(store, state, reason="why" if state == "failed" else PERSON)
    possible = {name for source, name, _ in LEGAL if source == state}
    with pytest.raises(IllegalMove) as caught:
        lifecycle.send(event, WELCOME)
    assert str(caught.value) == f"cannot {event} an entry that is {state}{HELP[event, state]}"
    people_say = {"initialize", "pause", "resume", "retry", "cancel"}
    named = {"initialize": "prefetch"}
    assert set(caught.value.possible) == {named.get(n, n) for n in possible & people_say}


def test_every_illegal_order_is_in_that_table() -> None:
    orders = {"pause", "resume", "retry", "cancel"}
    assert {(event, state) for state, event in ILLEGAL if event in orders} == HELP.keys()


@pytest.mark.parametrize("state", STATES)
def test_an_event_that_does_not_exist_is_refused_like_any_other(store: Store, state: str) -> None:
    lifecycle = entry_in(store, state)
    with pytest.raises(IllegalMove, match="cannot explode"):
        lifecycle.send("explode", WELCOME)


@pytest.mark.parametrize("state", STATES)
def test_a_refused_move_is_followed_by_a_legal_one(store: Store, path: Path, state: str) -> None:
    lifecycle = entry_in(store, state)
    refused = next(event for where, event in ILLEGAL if where == state)
    accepted = next(event for where, event, _ in LEGAL if where == state)
    with pytest.raises(IllegalMove):
        lifecycle.send(refused, WELCOME)
    lifecycle.send(accepted, WELCOME)
    assert lifecycle.state == TABLE[accepted][1]
    assert stored_entry(path, lifecycle.record.id) == lifecycle.record


def test_the_machine_s_docstring_shows_every_move() -> None:
    text = DownloadLifecycle.__doc__ or ""
    assert all(event.capitalize() in text or event in text for event in TABLE)
    assert all(name in text for name in STATES.values())


# -- what goes with a move ----------------------------------------------------


def test_columns_and_chunks_are_written_with_the_move(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "initializing")
    chunks = (ByteRange(0, 10), ByteRange(20, 30))
    lifecycle.send("begin", Move(columns={"etag": '"v1"', "complete_length": 90}, chunks=chunks))
    stored = stored_entry(path, lifecycle.record.id)
    assert stored == lifecycle.record
    assert stored is not None
    assert (stored.etag, stored.complete_length) == ('"v1"', 90)
    assert stored_chunks(path, stored.id) == [(0, 10), (20, 30)]


def test_facts_cannot_say_another_state_than_the_machine_s(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "initializing")
    lifecycle.send("begin", Move(columns={"state": "complete", "state_reason": "smuggled"}))
    assert lifecycle.state == "downloading"
    assert lifecycle.record.state_reason is None
    assert stored_entry(path, lifecycle.record.id) == lifecycle.record


@pytest.mark.parametrize("state", ["initializing", "downloading", "paused", "complete", "failed"])
def test_an_invalidated_entry_starts_a_generation_without_chunks(
    store: Store, path: Path, state: str
) -> None:
    lifecycle = entry_in(store, state, chunks=(ByteRange(0, 10),))
    assert stored_chunks(path, lifecycle.record.id)
    before = lifecycle.record.generation
    lifecycle.send("invalidate", Move(reason="it changed"))
    assert lifecycle.record.generation == before + 1
    assert stored_entry(path, lifecycle.record.id) == lifecycle.record
    assert stored_chunks(path, lifecycle.record.id) == []


@pytest.mark.parametrize("state", ["downloading", "paused", "failed"])
def test_a_failure_and_its_retry_keep_the_stored_bytes(
    store: Store, path: Path, state: str
) -> None:
    lifecycle = entry_in(store, state, chunks=(ByteRange(0, 10),))
    if state != "failed":
        lifecycle.send("fail", Move(reason="gave up"))
    lifecycle.send("retry", WELCOME)
    assert stored_chunks(path, lifecycle.record.id) == [(0, 10)]


def test_a_move_keeps_what_was_written_in_between(store: Store) -> None:
    lifecycle = entry_in(store, "downloading")
    lifecycle.update({"pinned": True})
    assert lifecycle.send("pause", Move()).pinned


def test_what_somebody_else_moved_is_seen_when_it_is_written(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "paused")
    execute(path, "UPDATE cache_entries SET generation = generation + 1, state = 'not_started'")
    with pytest.raises(StaleRow):
        lifecycle.update({"pinned": True})
    assert lifecycle.state == "not_started"


def test_a_move_takes_demands_in_and_out_of_the_queue(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "paused")
    order = QueueRecord(lifecycle.record.id, PERSON, 0, 0, None, 0, None, None, 1.0)
    lifecycle.send("resume", Move(asked_by=PERSON, demands=(order,)))
    assert store.queue() == [order]
    lifecycle.send("cancel", Move(ends_demands=True))
    assert store.queue() == []


@pytest.mark.parametrize(
    ("when", "move"),
    [("INSERT", "resume"), ("DELETE", "cancel")],
)
def test_a_queue_that_refuses_is_a_move_that_did_not_happen(
    store: Store, path: Path, when: str, move: str
) -> None:
    lifecycle = entry_in(store, "paused")
    order = QueueRecord(lifecycle.record.id, "prefetch", 0, 0, None, 0, None, None, 1.0)
    store.enqueue(order)
    before = lifecycle.record
    facts = {"resume": Move(demands=(replace(order, asked_by=PERSON),))}
    with aborting(path, f"BEFORE {when} ON cache_download_queue"), pytest.raises(StorageError):
        lifecycle.send(move, facts.get(move, Move(ends_demands=True)))
    assert lifecycle.record == before == stored_entry(path, before.id)
    assert store.queue() == [order]


# -- guards -------------------------------------------------------------------


@pytest.mark.parametrize("source", ["initializing", "downloading"])
@pytest.mark.parametrize(
    ("durable_bytes", "complete_length", "finishes"),
    [
        (10, 10, True),
        (0, 0, True),  # a representation without bytes
        (9, 10, False),  # the last byte is not durable
        (0, 10, False),
        (11, 10, False),  # more than there is: something is wrong
        (10, None, False),  # the length is unknown
        (0, None, False),
    ],
)
def test_it_finishes_only_when_the_length_is_known_and_every_byte_durable(
    store: Store,
    path: Path,
    source: str,
    durable_bytes: int,
    complete_length: int | None,
    finishes: bool,
) -> None:
    lifecycle = entry_in(store, source)
    move = Move(durable_bytes=durable_bytes, complete_length=complete_length)
    assert_sent(lifecycle, path, "finish", move, legal=finishes)


@pytest.mark.parametrize(
    ("retry_at", "now_s", "asked_by", "retries"),
    [
        (100.0, 99.9, None, False),
        (100.0, 100.0, None, True),
        (100.0, 100.1, None, True),
        (100.0, 0.0, PERSON, True),  # a person need not wait
        (100.0, 99.9, "reader", False),
        (None, 0.0, None, True),  # no back-off was set
    ],
)
def test_a_reader_retries_only_after_the_back_off(
    store: Store,
    path: Path,
    retry_at: float | None,
    now_s: float,
    asked_by: str | None,
    retries: bool,
) -> None:
    lifecycle = entry_in(store, "failed", columns={"retry_at": retry_at})
    assert_sent(lifecycle, path, "retry", Move(now_s=now_s, asked_by=asked_by), legal=retries)


@pytest.mark.parametrize(
    ("paused_because", "asked_by", "resumes"),
    [
        (PERSON, None, False),
        (PERSON, "reader", False),
        (PERSON, "prefetch", False),
        (PERSON, PERSON, True),
        ("idle", None, True),
        ("shutdown", "prefetch", True),
        (None, None, True),
    ],
)
def test_a_person_s_pause_is_ended_by_a_person_only(
    store: Store, path: Path, paused_because: str | None, asked_by: str | None, resumes: bool
) -> None:
    lifecycle = entry_in(store, "paused", reason=paused_because)
    assert_sent(lifecycle, path, "resume", Move(asked_by=asked_by), legal=resumes)


def test_a_person_s_pause_outlives_a_restart(store: Store, path: Path) -> None:
    held = entry_in(store, "paused", reason=PERSON).record
    again = open_store(path)
    try:
        with pytest.raises(IllegalMove):
            Lifecycle(again, again.entry(held.id)).send("resume", Move())
    finally:
        again.close()


def assert_sent(lifecycle: Lifecycle, path: Path, event: str, move: Move, *, legal: bool) -> None:
    """Send and see that the guard lets it through, or that nothing has changed."""
    before = lifecycle.record
    if legal:
        lifecycle.send(event, move)
        assert lifecycle.state == TABLE[event][1]
    else:
        with pytest.raises(IllegalMove, match=f"cannot {event}"):
            lifecycle.send(event, move)
        assert lifecycle.record is before
    assert stored_entry(path, before.id) == lifecycle.record


# -- a database that refuses --------------------------------------------------


@pytest.mark.fault("database", "it refuses a transition")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("source", "event"), [("initializing", "begin"), ("paused", "resume")])
def test_a_refused_move_did_not_happen_and_can_be_made_again(
    store: Store, path: Path, fault: str, source: str, event: str
) -> None:
    lifecycle = entry_in(store, source)
    before = lifecycle.record
    move = replace(WELCOME, columns={"etag": '"new"'}, chunks=(ByteRange(0, 4), ByteRange(8, 9)))
    with FAULTS[fault](path):
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                lifecycle.send(event, move)
            assert_one_line(caught.value)
            assert lifecycle.record is before
    assert stored_entry(path, before.id) == before
    assert stored_chunks(path, before.id) == []
    lifecycle.send(event, move)
    assert lifecycle.state == TABLE[event][1]
    assert stored_entry(path, before.id) == lifecycle.record
    assert stored_chunks(path, before.id) == [(0, 4), (8, 9)]


def test_a_failing_commit_names_its_own_reason(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "initializing")
    with FAULTS["commit"](path), pytest.raises(StorageError, match="FOREIGN KEY"):
        lifecycle.send("begin", Move())


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(Move(reason="\udcff"), id="text that is no Unicode"),
        pytest.param(Move(columns={"complete_length": 2**70}), id="too large an integer"),
        pytest.param(Move(columns={"complete_length": -1}), id="a negative length"),
        pytest.param(Move(now_s=float("nan")), id="no time at all"),
    ],
)
def test_what_the_database_cannot_hold_is_an_error_of_storage(
    store: Store, path: Path, move: Move
) -> None:
    lifecycle = entry_in(store, "initializing")
    before = lifecycle.record
    with pytest.raises(StorageError) as caught:
        lifecycle.send("begin", move)
    assert_one_line(caught.value)
    assert stored_entry(path, before.id) == lifecycle.record == before


def test_a_full_disk_refuses_the_move_and_nothing_else_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "cache.sqlite3"
        store = open_store(path)
        lifecycle = entry_in(store, "initializing")
        move = Move(columns={"response_fields": "x" * 100_000})
        filler = fill(disk)
        before = lifecycle.record
        with pytest.raises(StorageError, match="full") as caught:
            lifecycle.send("begin", move)
        assert_one_line(caught.value)
        assert lifecycle.record is before
        assert store.entry(before.id) == before
        filler.unlink()
        assert lifecycle.send("begin", move).state == "downloading"
        assert stored_entry(path, before.id) == lifecycle.record
        store.close()


@pytest.mark.parametrize(
    "change", ["state = 'failed', state_reason = 'theirs'", "generation = generation + 1"]
)
def test_a_row_that_somebody_else_moved_is_taken_over_not_overwritten(
    store: Store, path: Path, change: str
) -> None:
    lifecycle = entry_in(store, "downloading")
    entry_id = lifecycle.record.id
    execute(path, f"UPDATE cache_entries SET {change} WHERE id = {entry_id}")
    theirs = stored_entry(path, entry_id)
    with pytest.raises(StaleRow, match=f"entry {entry_id} "):
        lifecycle.send("pause", replace(WELCOME, chunks=(ByteRange(0, 4),)))
    assert lifecycle.record == theirs == stored_entry(path, entry_id)
    assert stored_chunks(path, entry_id) == []
    lifecycle.send("invalidate", WELCOME)
    assert lifecycle.state == "not_started"
    assert stored_entry(path, entry_id) == lifecycle.record


def test_a_row_that_somebody_else_deleted_is_said_to_be_gone(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "downloading")
    execute(path, "DELETE FROM cache_entries")
    for _ in range(2):
        with pytest.raises(EntryNotFound, match=f"{lifecycle.record.id}"):
            lifecycle.send("pause", Move())
    assert execute(path, "SELECT count(*) FROM cache_entries") == [(0,)]


def test_a_closed_database_refuses_and_memory_stays(store: Store, path: Path) -> None:
    lifecycle = entry_in(store, "downloading")
    before = lifecycle.record
    store.close()
    with pytest.raises(StorageError, match="closed"):
        lifecycle.send("pause", Move())
    assert lifecycle.record is before
    assert stored_entry(path, before.id) == before


def test_a_move_inside_a_transaction_that_fails_leaves_the_row_alone(
    store: Store, path: Path
) -> None:
    lifecycle = entry_in(store, "downloading")
    before = lifecycle.record

    def move_and_fail() -> None:
        with store.transaction():
            lifecycle.send("pause", Move())
            raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        move_and_fail()
    assert stored_entry(path, before.id) == before
    lifecycle.reload()
    assert lifecycle.send("pause", Move()).state == "paused"


def assert_one_line(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


# -- restarts and memory ------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_a_restart_finds_the_state_that_was_committed(path: Path, state: str) -> None:
    store = open_store(path)
    record = entry_in(store, state).record
    store.close()
    store = open_store(path)
    restored = Lifecycle(store, store.entry(record.id))
    assert restored.record == record
    assert restored.state == state
    event = next(event for where, event, _ in LEGAL if where == state)
    assert restored.send(event, WELCOME).state == TABLE[event][1]
    store.close()


def test_a_state_that_no_version_knows_is_an_error_of_storage(store: Store) -> None:
    damaged = replace(add_entry(store), state="dreaming")
    with pytest.raises(StorageError, match="dreaming"):
        Lifecycle(store, damaged).send("initialize", Move())


def test_many_active_entries_need_no_machine_each(store: Store) -> None:
    entry_in(store, "downloading")
    before = machines()
    active = [entry_in(store, state, key=state) for state in STATES]
    assert machines() == before
    with pytest.raises(IllegalMove):
        active[0].send("begin", Move())
    assert machines() <= before


def test_moves_of_several_entries_take_turns_each_from_its_own_state(
    store: Store, path: Path
) -> None:
    states = ("downloading", "paused", "complete")
    entries = [entry_in(store, state, key=state) for state in states]
    for moves in (["pause", "resume", "invalidate"], ["resume", "begin", "initialize"]):
        for lifecycle, event in zip(entries, moves, strict=True):
            with pytest.raises(IllegalMove):
                lifecycle.send("retry", WELCOME)
            assert lifecycle.send(event, WELCOME).state == TABLE[event][1]
            assert stored_entry(path, lifecycle.record.id) == lifecycle.record


# -- threads ------------------------------------------------------------------


@pytest.fixture
def steps(store: Store, path: Path) -> Callable[[], list[tuple[str, str]]]:
    """Returns every (from, to) that the rows have really made, in order."""
    execute(
        path,
        "CREATE TABLE steps (source, target)",
        "CREATE TRIGGER witness AFTER UPDATE OF state ON cache_entries "
        "BEGIN INSERT INTO steps VALUES (old.state, new.state); END",
    )
    return lambda: execute(path, "SELECT source, target FROM steps ORDER BY rowid")


def test_eight_threads_under_one_lock_move_the_entry_in_single_steps(
    store: Store, path: Path, steps: Callable[[], list[tuple[str, str]]]
) -> None:
    lifecycle = Lifecycle(store, add_entry(store))
    lock = threading.Lock()
    made: list[tuple[str, str]] = []

    def send(event: str) -> None:
        with lock:
            source = lifecycle.record.state
            if source in TABLE[event][0]:
                lifecycle.send(event, WELCOME)
                made.append((source, lifecycle.record.state))
            else:
                with pytest.raises(IllegalMove, match=f"cannot {event} .* {source}"):
                    lifecycle.send(event, WELCOME)

    race(8, lambda number: drive(number, send))
    assert made == steps()
    assert_walk(made, lifecycle.record.state)
    assert stored_entry(path, lifecycle.record.id) == lifecycle.record


def test_programs_that_share_only_the_database_never_both_make_one_move(
    store: Store, path: Path, steps: Callable[[], list[tuple[str, str]]]
) -> None:
    record = add_entry(store)
    made: list[tuple[str, str]] = []

    def program(number: int) -> None:
        own = Store.open(path)
        lifecycle = Lifecycle(own, own.entry(record.id))

        def send(event: str) -> None:
            source = lifecycle.reload().state
            try:
                made.append((source, lifecycle.send(event, WELCOME).state))
            except (IllegalMove, StaleRow):
                pass

        drive(number, send)
        own.close()

    race(4, program)
    assert Counter(made) == Counter(steps())
    assert_walk(steps(), store.entry(record.id).state)


def race(threads: int, work: Callable[[int], None]) -> None:
    for done in [in_thread(work, number) for number in range(threads)]:
        done.result(WAIT_S)


def drive(seed: int, send: Callable[[str], None]) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        send(dice.choice(list(TABLE)))


def assert_walk(steps: list[tuple[str, str]], final: str) -> None:
    """See that the steps are the table's, and that each begins where the last one ended."""
    assert steps
    assert set(steps) <= {(source, target) for source, _, target in LEGAL}
    ends = ["not_started", *(target for _, target in steps)]
    assert [source for source, _ in steps] == ends[:-1]
    assert ends[-1] == final


# -- against a model ----------------------------------------------------------

facts = st.fixed_dictionaries(
    {
        "reason": st.sampled_from([None, PERSON, "idle", "ünïcode ☂"]),
        "asked_by": st.sampled_from([None, PERSON, "reader"]),
        "now_s": st.integers(0, 20).map(float),
        "retry_at": st.none() | st.integers(0, 20).map(float),
        "durable_bytes": st.sampled_from([len(EVERY), 1]),
        "complete_length": st.sampled_from([len(EVERY), None]),
    }
)
spans = st.tuples(st.sampled_from(EVERY), st.sampled_from(EVERY)).map(
    lambda pair: (min(pair), max(pair) + 1)
)


class LifecycleMachine(RuleBasedStateMachine):
    """Random events, facts, refusals, meddlers and restarts; row == record == model."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.store = open_store(path)
        for old in self.store.entries():
            self.store.delete(old.id)
        self.model = self.restarted_with = add_entry(self.store)
        self.bytes: set[int] = set()
        self.lifecycle = Lifecycle(self.store, self.model)

    def teardown(self) -> None:
        self.store.close()

    @rule(facts=facts, span=st.none() | spans, choice=st.randoms(use_true_random=False))
    def make_a_move_of_the_table(
        self, facts: dict[str, Any], span: tuple[int, int] | None, choice: random.Random
    ) -> None:
        event = choice.choice(
            [e for e, (sources, _) in TABLE.items() if self.model.state in sources]
        )
        self.send(event, self.move(event, facts, span), None)

    @rule(
        event=st.sampled_from(sorted(TABLE)),
        facts=facts,
        span=st.none() | spans,
        fault=st.sampled_from([None, *FAULTS]),
    )
    def send_anything_to_a_database_that_may_refuse(
        self,
        event: str,
        facts: dict[str, Any],
        span: tuple[int, int] | None,
        fault: str | None,
    ) -> None:
        self.send(event, self.move(event, facts, span), fault)

    def send(self, event: str, move: Move, fault: str | None) -> None:
        legal = self.is_legal(event, move)
        # "chunk" refuses chunks only; without one there is nothing to refuse.
        refused = fault is not None and (fault != "chunk" or bool(move.chunks))
        with FAULTS[fault](self.path) if fault else nullcontext():
            if legal and not refused:
                self.lifecycle.send(event, move)
                self.moved(event, move)
            elif legal:
                with pytest.raises(StorageError):
                    self.lifecycle.send(event, move)
            else:
                # Which of two reasons is found first does not matter.
                with pytest.raises((IllegalMove, StorageError) if refused else IllegalMove):
                    self.lifecycle.send(event, move)

    def move(self, event: str, facts: dict[str, Any], span: tuple[int, int] | None) -> Move:
        columns = {"retry_at": facts["retry_at"]}
        others = {name: value for name, value in facts.items() if name not in columns}
        chunks = () if event == "invalidate" else self.grown(span)
        return Move(**others, columns=columns, chunks=chunks)

    def grown(self, span: tuple[int, int] | None) -> tuple[ByteRange, ...]:
        """The coalesced run that *span* becomes a part of, as an entry would report it."""
        if span is None:
            return ()
        runs = RangeSet((offset, offset + 1) for offset in self.bytes)
        runs.add(*span)
        return tuple(run for run in runs if run.start <= span[0] < run.stop)

    def is_legal(self, event: str, move: Move) -> bool:
        if self.model.state not in TABLE[event][0]:
            return False
        if event == "finish":
            return move.complete_length is not None and move.durable_bytes == move.complete_length
        if event == "resume":
            return self.model.state_reason != PERSON or move.asked_by == PERSON
        if event == "retry":
            due, since = self.model.retry_at, self.model.state_since
            put_back = move.now_s < since  # the clock was, and nobody waits for that
            return move.asked_by == PERSON or due is None or due <= move.now_s or put_back
        return True

    def moved(self, event: str, move: Move) -> None:
        self.model = replace(
            self.model,
            state=TABLE[event][1],
            state_reason=move.reason,
            state_since=move.now_s,
            generation=self.model.generation + (event == "invalidate"),
            **move.columns,
        )
        if event == "invalidate":
            self.bytes.clear()
        for start, stop in move.chunks:
            self.bytes.update(range(start, stop))

    @rule(span=spans)
    def save_progress(self, span: tuple[int, int]) -> None:
        chunks = self.grown(span)
        self.bytes.update(range(*span))
        self.lifecycle.save_chunks(
            tuple(chunks), bytes_present=len(self.bytes), now_s=0.0, checksums={}
        )
        self.model = replace(self.model, bytes_present=len(self.bytes))

    @precondition(lambda self: self.model.state != "not_started")
    @rule(state=st.sampled_from(sorted(STATES)))
    def have_somebody_else_move_it(self, state: str) -> None:
        if state == self.model.state:
            return
        execute(self.path, f"UPDATE cache_entries SET state = '{state}'")
        with pytest.raises(StaleRow):
            self.lifecycle.send("invalidate", WELCOME)
        self.model = replace(self.model, state=state)

    @precondition(lambda self: self.lifecycle.record is not self.restarted_with)
    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = open_store(self.path)
        self.restarted_with = self.store.entry(self.model.id)
        self.lifecycle = Lifecycle(self.store, self.restarted_with)

    @invariant()
    def row_record_and_model_agree(self) -> None:
        assert self.lifecycle.record == self.model
        assert self.lifecycle.state == self.model.state
        row, chunks = stored(self.path, self.model.id)
        assert row == self.model
        assert chunks == list(RangeSet((offset, offset + 1) for offset in self.bytes))


def test_row_record_and_model_agree_whatever_happens(path: Path) -> None:
    run_state_machine_as_test(
        lambda: LifecycleMachine(path),  # type: ignore[arg-type]  # any factory will do
        settings=settings(max_examples=50, stateful_step_count=25, deadline=None),
    )


def test_active_are_the_states_that_a_stopped_process_is_recovered_from() -> None:
    assert {str(state) for state in ACTIVE} == TABLE["recover"][0]
