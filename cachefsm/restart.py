"""Brings what earlier processes left to a defined state, and goes on with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .demands import READER
from .errors import CacheError
from .models import Store
from .registry import Registry
from .urls import OriginUrl, parse_url

__all__ = ["queued_urls", "recover", "restore_queue"]

_log = logging.getLogger(__name__)


def recover(store: Store, registry: Registry) -> None:
    """Send ``recover`` to the entries that a stopped process left active."""
    for record in store.active_entries():
        with _tolerant(record.id), registry.lease(record.id) as entry:
            entry.recover()


def restore_queue(store: Store, registry: Registry) -> None:
    """Go on with the downloads that earlier processes left in the queue."""
    for queued in store.queue():
        with _tolerant(queued.entry_id), registry.lease(queued.entry_id) as entry:
            entry.restore(queued)


def queued_urls(store: Store) -> list[OriginUrl]:
    """Return the URLs that people and prefetches wait for, the most urgent first."""
    queued = [queued for queued in store.queue() if queued.asked_by != READER]
    ids = dict.fromkeys(each.entry_id for each in queued)
    return [parse_url(store.entry(entry_id).url) for entry_id in ids]


@contextmanager
def _tolerant(entry_id: int) -> Iterator[None]:
    """Log an error in the block about one entry, so that the others are still taken up."""
    try:
        yield
    except CacheError as error:
        _log.warning("entry %s could not be taken up: %s", entry_id, error)
