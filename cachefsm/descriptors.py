"""How many files and sockets the system lets this process have open."""

from __future__ import annotations

import resource
from typing import Final

__all__ = ["descriptors", "raise_descriptors"]

ENOUGH: Final = 65_536
"""More are never in use, and some systems' limits are too large to be taken at their word."""


def descriptors() -> int:
    """Return how many descriptors there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else min(soft, ENOUGH)


def raise_descriptors() -> None:
    """Take as many descriptors as a process may give itself: each program has to ask.

    The usual 1024 are for the sake of programs that use ``select``, which this is none of.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
