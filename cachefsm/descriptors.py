"""The number of files and sockets that this process may have open."""

from __future__ import annotations

import resource
from typing import Final

__all__ = ["descriptors", "raise_descriptors"]

ENOUGH: Final = 65_536
"""More are never used, and some systems have limits that are too large to be true."""


def descriptors() -> int:
    """Return how many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else min(soft, ENOUGH)


def raise_descriptors() -> None:
    """Raise this process's limit on descriptors as far as it may, up to ENOUGH.

    The usual limit of 1024 protects programs that use ``select``; this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
