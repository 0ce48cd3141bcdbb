"""Decides how many connections an entry has, from measured throughput. Pure.

Nobody can know beforehand whether a second connection helps: some origins limit each
connection, others share one line among all. So it is tried. While all of an entry's
connections are at work, their throughput is measured over a short window; then their
number is quadrupled and measured again. If so many bring at least half of what as many
single ones would, they are kept and the next number is tried. If not, as many are kept
as their throughput justifies, and more are tried after a rest that grows each time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["WINDOW_BYTES", "WINDOW_S", "Seen", "Trial", "next_look_s", "step"]

WINDOW_S: Final = 0.2
"""The shortest window in which throughput is measured: a few round trips."""

LONGEST_WINDOW_S: Final = 3.0

WINDOW_BYTES: Final = 256 << 10
"""A window lasts until each connection has brought this much: a few packets are noise."""

PILED: Final = 0.5
"""If this fraction of what came had been waiting in socket buffers, not the line is slow but
this program: more connections would not help, and each that ends loses its buffer."""

WORTHWHILE: Final = 0.5
"""The fraction of a single connection's throughput that each further one has to add."""

GROWTH: Final = 4
"""By which factor the number is raised: each try costs the time of an answer and a window,
in which the line is not full."""

FIRST_REST_S: Final = 15.0
LONGEST_REST_S: Final = 600.0


@dataclass(frozen=True)
class Seen:
    """What the entry's connections do: how many have been answered, all that ever came,
    when the last of it did, and how much of it had been waiting to be received.
    """

    now_s: float
    at_work: int
    received_bytes: int
    heard_s: float
    piled_bytes: int = 0


@dataclass(frozen=True)
class Trial:
    """How many connections there are to be, and what is known of that number.

    ``width`` is the number and ``proven`` the last one that was worth it. ``base_rate``
    is the throughput that ``base`` connections had, with which more are compared: more
    than the number may have been at work, for readers. The window began with ``since``;
    ``rate_each`` is what one connection brought in the last.
    """

    width: int = 1
    proven: int = 1
    base: int = 0
    base_rate: float = 0.0
    since: Seen | None = None
    rest_until_s: float = 0.0
    rest_s: float = FIRST_REST_S
    rate_each: float = 0.0

    @property
    def is_trying(self) -> bool:
        """Whether the number has yet to show that it is worth it."""
        return self.width > self.proven


def step(trial: Trial, seen: Seen, most: int) -> Trial:
    """Return the trial as it stands now; *most* is the largest number allowed."""
    if trial.width > most:
        trial = replace(trial, width=most, since=None)
    if trial.proven > most:
        trial = replace(trial, proven=most)
    since = trial.since
    if since is None or since.at_work != seen.at_work:
        return replace(trial, since=seen if seen.at_work else None)
    if not _is_over(since, seen):
        return trial
    elapsed_s = seen.now_s - since.now_s
    rate = (seen.received_bytes - since.received_bytes) / elapsed_s
    trial = replace(trial, since=seen, rate_each=rate / seen.at_work)
    if rate == 0 or seen.now_s - seen.heard_s >= WINDOW_S:
        return trial
    piled = (seen.piled_bytes - since.piled_bytes) / elapsed_s
    if not trial.is_trying and piled >= PILED * rate:
        return trial
    return _judge(trial, rate, seen, most)


def _judge(trial: Trial, rate: float, seen: Seen, most: int) -> Trial:
    # Fewer than the number are at work where there are no connections left, or no parts.
    tried = seen.at_work
    if not trial.is_trying:
        if tried < trial.proven:
            return trial
        return _try_more(replace(trial, base=tried, base_rate=rate), seen.now_s, most)
    if tried <= trial.base:
        return trial
    alone = trial.base_rate * tried / trial.base
    if rate - trial.base_rate >= WORTHWHILE * (alone - trial.base_rate):
        proven = min(tried, most)
        better = replace(trial, width=max(trial.width, proven), proven=proven, rest_s=FIRST_REST_S)
        return _try_more(replace(better, base=tried, base_rate=rate), seen.now_s, most)
    worth = int(rate * trial.base / trial.base_rate)
    proven = min(worth, most) if worth > trial.base else trial.proven
    return replace(
        trial,
        width=proven,
        proven=proven,
        rest_until_s=seen.now_s + trial.rest_s,
        rest_s=min(LONGEST_REST_S, 2 * trial.rest_s),
        since=None,
    )


def next_look_s(trial: Trial, now_s: float, most: int) -> float | None:
    """Return when there may be something to decide, or None."""
    if trial.since is None or (trial.width >= most and not trial.is_trying):
        return None
    look_s = trial.since.now_s + WINDOW_S
    if look_s <= now_s:  # too little has come for a short window
        look_s = trial.since.now_s + LONGEST_WINDOW_S
    return look_s if trial.is_trying else max(look_s, trial.rest_until_s)


def _is_over(since: Seen, seen: Seen) -> bool:
    elapsed_s = seen.now_s - since.now_s
    enough = seen.received_bytes - since.received_bytes >= WINDOW_BYTES * seen.at_work
    # A line that has fallen silent is no measure of what it carries.
    is_flowing = seen.now_s - seen.heard_s <= WINDOW_S / 2
    return elapsed_s >= LONGEST_WINDOW_S or (elapsed_s >= WINDOW_S and enough and is_flowing)


def _try_more(trial: Trial, now_s: float, most: int) -> Trial:
    if trial.is_trying or now_s < trial.rest_until_s or trial.base >= most:
        return trial
    return replace(trial, width=min(GROWTH * trial.base, most), since=None)
