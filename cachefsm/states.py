"""The six states of a download, as they stand in the database."""

from __future__ import annotations

from enum import Enum

__all__ = ["ACTIVE", "PERSON", "DownloadState"]

PERSON = "person"
"""Who asked, when a human did; also the reason of a pause that only a human ends."""


class DownloadState(str, Enum):
    """Where a download stands; equal to its lower-case name, as stored."""

    NOT_STARTED = "not_started"
    INITIALIZING = "initializing"
    DOWNLOADING = "downloading"
    PAUSED = "paused"
    COMPLETE = "complete"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


ACTIVE = frozenset({DownloadState.INITIALIZING, DownloadState.DOWNLOADING})
"""The states in which somebody is, or is about to be, fetching bytes."""
