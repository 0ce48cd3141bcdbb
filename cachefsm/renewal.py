"""Links that expire: a resolver is asked for a fresh one, which has to prove itself.

Signed URLs are good for a while; then their origin answers 401, 403 or 410. Whoever
issued the link can name another for the same file, so that what is stored need not be
fetched again. But he may also be mistaken, or the file have changed. The rule:

- If the file behind the fresh link has the strong validator of what is stored, it is the
  same. The origin itself says so, in answer to ``If-Range``.
- Validators are one server's own, and the fresh link may lead to another one, where the
  same file has another ETag. So if it has a strong validator that differs, it is the same
  if its complete length is equal, and so are SAMPLES pieces of what is stored: the first
  bytes, the last, and others at places that nobody can foresee. Another cut, quality or
  encoding of a film differs in all of them; a file of the same length in which a few bytes
  were changed in place may pass, which is why the validator is believed first.
- Anything else is another version: what is stored is dropped.

The resolver runs in a thread of its own, holding nothing, so it may take its time; the
proof is made by the first connection to the fresh link.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .content import Content
from .errors import CacheError, OriginStatus, RepresentationChanged, UnsatisfiedByOrigin, UsageError
from .linked import LinkedEntry
from .origin import Fetch, Fetches, Sent
from .ranges import ByteRange
from .representation import Representation
from .resolvers import Resolver
from .settings import hide_secrets
from .transport import Canceller
from .urls import OriginUrl, parse_url

__all__ = ["ProvenOrigin", "Renewals"]

_log = logging.getLogger(__name__)

SAMPLES: Final = 4
SAMPLE_BYTES: Final = 64 << 10


class Renewals:
    """Renews links with *resolver*, each in a thread of its own.

    *in_thread* is called with a name for the thread and what to run in it.
    """

    def __init__(
        self, resolver: Resolver, in_thread: Callable[[str, Callable[[], None]], None]
    ) -> None:
        self._resolver = resolver
        self._in_thread = in_thread

    def renew(self, entry: LinkedEntry, error: OriginStatus) -> None:
        """Begin to renew the entry's link; *error* is the answer that showed it to be expired."""
        self._in_thread(f"renewal-{entry.id}", lambda: self._run(entry, error))

    def _run(self, entry: LinkedEntry, error: OriginStatus) -> None:
        fresh = self._ask(entry, error)
        try:
            if fresh is None:
                entry.not_renewed(error)
            else:
                entry.renewed(fresh)
        except CacheError as refusal:
            _log.warning("%s: %s", entry.shown_url, refusal)

    def _ask(self, entry: LinkedEntry, error: OriginStatus) -> OriginUrl | None:
        old = entry.url
        try:
            text = self._resolver(str(old), error)
            if text is None:
                raise UsageError("the resolver knows no other")
            fresh = parse_url(text)
            if fresh == old:
                raise UsageError("the resolver knows only the same")
            if entry.has_secrets and fresh.origin != old.origin:
                raise UsageError("the fresh link leads to where the credentials are not for")
        except (Exception, SystemExit) as failure:  # noqa: BLE001 - it is somebody else's code
            told = hide_secrets(" ".join(str(failure).split())) or type(failure).__name__
            _log.warning("%s: %s, and the link is not renewed: %s", entry.shown_url, error, told)
            return None
        _log.info("%s: %s; the link is renewed", entry.shown_url, error)
        return fresh


class ProvenOrigin:
    """Fetches for one entry; a fresh link has to prove itself before its first use."""

    def __init__(
        self,
        entry: LinkedEntry,
        origin: Fetches,
        randrange: Callable[[int, int], int] = random.randrange,
    ) -> None:
        self._entry = entry
        self._origin = origin
        self._randrange = randrange

    def fetch(
        self,
        url: OriginUrl,
        asked: ByteRange | None,
        *,
        held: Representation | None,
        canceller: Canceller,
        sent: Sent,
    ) -> Fetch:
        """Ask as :meth:`cachefsm.origin.OriginClient.fetch` does.

        Raises:
            RepresentationChanged: a fresh link leads to another file.
        """
        if self._entry.is_unproven:
            content, stored = self._entry.stored()
            told = self._prove(content, self._samples(stored), url, canceller, sent)
            self._entry.proven(content, told)
            if held is not None and told is not None:
                held = told
        return self._origin.fetch(url, asked, held=held, canceller=canceller, sent=sent)

    def _prove(
        self,
        content: Content,
        samples: list[ByteRange],
        url: OriginUrl,
        canceller: Canceller,
        sent: Sent,
    ) -> Representation | None:
        """Return what the origin says of the file behind *url*, after proving it is the same.

        Raises:
            RepresentationChanged: it is not.
        """
        held = content.representation
        if held is None or not held.joinable or not samples:
            return None  # there is nothing to be joined
        sent = Sent(sent.forwarded, sent.secrets, hands_on=sent.hands_on)

        def ask(sample: ByteRange, known: Representation | None) -> Fetch:
            try:
                return self._origin.fetch(url, sample, held=known, canceller=canceller, sent=sent)
            except UnsatisfiedByOrigin as error:
                raise RepresentationChanged("the fresh link leads to a shorter file") from error

        # Changed by its validator, that is: its bytes may still be the same.
        with suppress(RepresentationChanged), ask(samples[0], held) as fetch:
            _read(fetch, samples[0])  # so that the connection can be used again
            return None
        told: Representation | None = None
        for sample in samples:
            with ask(sample, told) as fetch:
                told = told or _comparable(fetch, held)
                if _read(fetch, sample) != content.file.read_at(sample.start, sample.size):
                    raise RepresentationChanged("the fresh link leads to other bytes")
        return told

    def _samples(self, runs: list[ByteRange]) -> list[ByteRange]:
        if not runs:
            return []
        last = runs[-1]
        samples = [
            ByteRange(runs[0].start, min(runs[0].stop, runs[0].start + SAMPLE_BYTES)),
            ByteRange(max(last.start, last.stop - SAMPLE_BYTES), last.stop),
        ]
        for _ in range(SAMPLES - len(samples)):
            run = runs[self._randrange(0, len(runs))]
            start = self._randrange(run.start, max(run.start, run.stop - SAMPLE_BYTES) + 1)
            samples.append(ByteRange(start, min(run.stop, start + SAMPLE_BYTES)))
        return samples


def _comparable(fetch: Fetch, held: Representation) -> Representation:
    """Return what the answer says of its file.

    Raises:
        RepresentationChanged: that is of another length, or cannot be joined with anything.
    """
    told = fetch.answer.representation
    known = told.complete_length is not None
    if not (told.joinable and known and told.complete_length == held.complete_length):
        raise RepresentationChanged("the fresh link leads to what cannot be compared")
    return told


def _read(fetch: Fetch, sample: ByteRange) -> bytes:
    """Return the bytes of *sample* from the answer; b"" if it brings more or others."""
    if fetch.answer.stop > sample.stop:
        return b""
    return b"".join(iter(fetch.read, b""))
