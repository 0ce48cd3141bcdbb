"""Checksums of blocks: which blocks there are, and what a row's text keeps of them."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefsm.integrity import BLOCK_BYTES, Digests, block_at, digest, whole_blocks
from cachefsm.ranges import END, ByteRange

MIB = 1 << 20

# Offsets around the borders of blocks, where mistakes are made.
offsets = st.builds(
    lambda block, near: max(0, block * BLOCK_BYTES + near), st.integers(0, 6), st.integers(-2, 2)
)
lengths = offsets | st.just(END)


def _known(*indexes: int) -> Digests:
    """Return checksums that tell by their value which block they are of."""
    digests = Digests()
    digests.update({index: 0xFFFF0000 + index for index in indexes})
    return digests


# -- blocks ------------------------------------------------------------------------


def test_a_checksum_is_crc_32() -> None:
    assert digest(b"123456789") == 0xCBF43926  # the check value in every catalogue of CRCs
    assert digest(b"") == 0


def test_blocks_are_aligned_and_the_last_one_ends_with_the_file() -> None:
    assert block_at(0, 10 * MIB) == ByteRange(0, MIB)
    assert block_at(9, 10 * MIB) == ByteRange(9 * MIB, 10 * MIB)
    assert block_at(2, 2 * MIB + 1) == ByteRange(2 * MIB, 2 * MIB + 1)
    assert block_at(2, END) == ByteRange(2 * MIB, 3 * MIB)


@pytest.mark.parametrize(
    ("start", "stop", "length", "blocks"),
    [
        # The file:            ####|####|####|##
        (0, 3 * MIB + 5, 3 * MIB + 5, [0, 1, 2, 3]),
        (0, 3 * MIB + 4, 3 * MIB + 5, [0, 1, 2]),
        (1, 3 * MIB, 3 * MIB + 5, [1, 2]),
        (MIB, 2 * MIB, 3 * MIB + 5, [1]),
        (MIB + 1, 2 * MIB, 3 * MIB + 5, []),
        (3 * MIB, 3 * MIB + 5, 3 * MIB + 5, [3]),
        (3 * MIB + 1, 3 * MIB + 5, 3 * MIB + 5, []),
        # While the length is unknown, so is whether a last block is whole.
        (0, 3 * MIB + 5, END, [0, 1, 2]),
        (0, 3 * MIB, END, [0, 1, 2]),
        (0, 0, END, []),
        (0, 0, 0, []),
    ],
)
def test_whole_blocks_lie_within_the_range(
    start: int, stop: int, length: int, blocks: list[int]
) -> None:
    assert list(whole_blocks(start, stop, length)) == blocks


@given(start=offsets, stop=offsets, length=lengths)
def test_a_block_is_whole_if_every_byte_of_it_is_in_the_range(
    start: int, stop: int, length: int
) -> None:
    stop = min(stop, length)
    start = min(start, stop)
    expected = [
        index
        for index in range(8)
        if index * BLOCK_BYTES < length
        and start <= block_at(index, length).start
        and block_at(index, length).stop <= stop
    ]
    assert list(whole_blocks(start, stop, length)) == expected


# -- what is known -----------------------------------------------------------------


def test_a_block_that_is_touched_at_all_is_forgotten() -> None:
    digests = _known(0, 1, 2, 3)
    digests.forget(2 * MIB - 1, 2 * MIB + 1)
    assert [index in digests for index in range(4)] == [True, False, False, True]
    digests.forget(MIB, MIB)  # nothing
    assert len(digests) == 2


@given(
    known=st.sets(st.integers(0, 9)),
    start=offsets,
    size=offsets,
    length=lengths,
    huge=st.booleans(),
)
def test_those_within_a_range_are_those_known_that_touch_it(
    known: set[int], start: int, size: int, length: int, huge: bool
) -> None:
    stop = END if huge else start + size
    digests = _known(*known)
    touched = [
        index
        for index in sorted(known)
        if index * BLOCK_BYTES < min(stop, length) and start < (index + 1) * BLOCK_BYTES
    ]
    # No byte is in an empty range, so it touches nothing.
    expected = touched if start < min(stop, length) else []
    assert list(digests.within(start, stop, length)) == expected
    if length == END:
        digests.forget(start, stop)
        assert list(digests.within(0, END, END)) == sorted(known - set(expected))


def test_a_range_of_exabytes_takes_no_time() -> None:
    digests = _known(0, 1, 1 << 40)
    assert list(digests.within(1, END, END)) == [0, 1, 1 << 40]
    digests.forget(2 * MIB, END)
    assert list(digests.within(0, END, END)) == [0, 1]


# -- rows --------------------------------------------------------------------------


def test_a_row_keeps_four_bytes_for_every_whole_block() -> None:
    run, length = ByteRange(5, 3 * MIB + 7), 3 * MIB + 7
    blob = _known(1, 2, 3).pack(run, length)
    assert blob == bytes.fromhex("FFFF0001 FFFF0002 FFFF0003")


def test_a_row_of_which_a_checksum_is_missing_keeps_none() -> None:
    assert _known(0, 2).pack(ByteRange(0, 3 * MIB), 3 * MIB) is None


def test_a_row_without_a_whole_block_keeps_nothing() -> None:
    assert Digests().pack(ByteRange(1, MIB), 3 * MIB) == b""


@given(known=st.sets(st.integers(0, 7)), start=offsets, stop=offsets, length=lengths)
def test_what_was_packed_is_learnt_again(
    known: set[int], start: int, stop: int, length: int
) -> None:
    stop = min(stop, length)
    run = ByteRange(min(start, stop), stop)
    known |= set(whole_blocks(*run, length))
    blob = _known(*known).pack(run, length)
    assert blob is not None
    digests = Digests()
    digests.unpack(run, blob, length)
    assert {index: digests[index] for index in digests.within(0, END, END)} == {
        index: 0xFFFF0000 + index for index in whole_blocks(*run, length)
    }


@given(blob=st.binary(max_size=40), start=offsets, size=offsets, length=lengths)
def test_a_text_of_another_size_teaches_nothing(
    blob: bytes, start: int, size: int, length: int
) -> None:
    run = ByteRange(start, start + size)
    digests = Digests()
    digests.unpack(run, blob, length)
    sizes = {4 * len(whole_blocks(*run, known)) for known in (length, END)}
    assert len(digests) == (len(blob) // 4 if len(blob) in sizes else 0)


def test_a_text_written_before_the_length_was_known_still_teaches() -> None:
    run, length = ByteRange(0, 2 * MIB + 5), 2 * MIB + 5
    blob = _known(0, 1).pack(run, END)
    assert blob is not None
    digests = Digests()
    digests.unpack(run, blob, length)
    assert list(digests.within(0, END, END)) == [0, 1]


@given(data=st.binary(min_size=1, max_size=64), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_flipped_bit_never_passes(data: bytes, place: int, bit: int) -> None:
    flipped = bytearray(data)
    flipped[place % len(data)] ^= 1 << bit
    assert digest(data) == zlib.crc32(data) != digest(bytes(flipped))
