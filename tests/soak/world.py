"""What the origin has and has had: versions whose every byte is known. Thread-safe."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from typing import Final, Literal

from tests.support.origin import Origin, Resource

__all__ = ["KINDS", "REFUSAL", "Kind", "Subject", "Version", "World"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20

REFUSAL: Final = b"<p>the origin's own words</p>\n"
"""What stands in an answer of the origin's that is no file."""

_CYCLE: Final = 65_521
"""A prime, so that a byte misplaced by any power of two is another byte."""

_EPOCH_S: Final = 1_500_000_000  # Last-Modified of the first version: long ago, so it is strong


@dataclass(frozen=True)
class Kind:
    """One sort of resource; ``{}`` in *etag* becomes the version's name.

    ``resizes`` lets versions differ in size; ``how_many`` there are of it.
    """

    name: str
    size: int
    etag: str | None = '"{}"'
    dated: bool = False
    accepts_ranges: bool | Literal["lie"] = True
    framing: Literal["length", "chunked", "close"] = "length"
    fields: tuple[tuple[str, str], ...] = ()
    resizes: bool = True
    how_many: int = 1


KINDS: Final = (
    Kind("film", 40 * MIB),
    Kind("strong", 16 * MIB),
    Kind("dated", 6 * MIB, etag=None, dated=True),
    Kind("both", 5 * MIB + 1, dated=True, fields=(("Cache-Control", "max-age=1"),)),
    Kind("weak", 3 * MIB, etag='W/"{}"'),
    Kind("bare", 2 * MIB, etag=None),
    Kind("rangeless", 4 * MIB, accepts_ranges=False),
    Kind("liar", 4 * MIB, accepts_ranges="lie"),
    Kind("unsized", 3 * MIB, framing="chunked"),
    Kind("chunked", MIB, framing="chunked", accepts_ranges=False),
    Kind("closing", MIB, framing="close", accepts_ranges=False, etag=None),
    Kind("small", 64 * KIB, fields=(("Cache-Control", "no-cache"),)),
    Kind("kib", KIB),
    Kind("empty", 0, resizes=False),
    Kind("byte", 1, resizes=False),
    # More than the entries that are kept in memory while idle.
    Kind("shelf", 3 * KIB, how_many=80),
)


@dataclass(frozen=True)
class Version:
    """One representation: its number, its labels, and every one of its bytes."""

    name: str
    number: int
    size: int
    etag: str | None
    last_modified: str | None
    seed: int

    def read(self, start: int, stop: int, /) -> bytes:
        """Return the bytes ``[start, stop)``, clipped to the size."""
        stop = min(stop, self.size)
        block = _block(self.seed, self.name)
        pieces = []
        while start < stop:
            phase = start % _CYCLE
            pieces.append(block[phase : phase + stop - start])
            start += len(pieces[-1])
        return b"".join(pieces)

    def find(self, data: bytes) -> int | None:
        """Return an offset, modulo the content's cycle, where *data* stands; None if nowhere."""
        offset = (_block(self.seed, self.name) * 2).find(data)
        return None if offset < 0 else offset

    def __str__(self) -> str:
        return f"{self.name} ({self.size} bytes)"


@lru_cache(maxsize=1024)
def _block(seed: int, name: str) -> bytes:
    return random.Random(f"{seed}/{name}").randbytes(_CYCLE)


class Subject:
    """One resource at the origin: its versions so far, and what may still be served.

    A proxy may serve an old version for as long as it likes, but never one that is
    older than what it has shown already, nor one that was gone from the origin
    before the entry was removed.
    """

    def __init__(self, name: str, kind: Kind, seed: int) -> None:
        self.name = name
        self.kind = kind
        self.path = f"/{name}"
        self.detour = f"/moved/{name}"  # where redirects lead
        self._seed = seed
        self._lock = threading.Lock()
        self._versions = [self._make(0, kind.size)]
        self._serving = 0
        self._floors: list[tuple[float, int]] = [(0.0, 0)]
        self._history: deque[str] = deque(maxlen=300)

    def _make(self, number: int, size: int) -> Version:
        name = f"{self.name}-{number}"
        etag, dated = self.kind.etag, self.kind.dated
        return Version(
            name=name,
            number=number,
            size=size,
            etag=etag and etag.format(name),
            last_modified=formatdate(_EPOCH_S + 3600 * number, usegmt=True) if dated else None,
            seed=self._seed,
        )

    # -- the origin's side -----------------------------------------------------

    @property
    def current(self) -> Version:
        with self._lock:
            return self._versions[-1]

    @property
    def serving(self) -> int:
        """The number of the version that the origin surely serves by now."""
        with self._lock:
            return self._serving

    def change(self, size: int) -> None:
        """Add a version of *size* bytes, which is allowed from now on; `put` it then."""
        with self._lock:
            version = self._make(len(self._versions), size)
            self._versions.append(version)
        self.note("origin", f"now has {version}")

    def put(self, origin: Origin) -> None:
        """Let *origin* serve the current version."""
        version, kind = self.current, self.kind
        resource = Resource(
            size=version.size,
            etag=version.etag,
            last_modified=version.last_modified,
            headers=kind.fields,
            accepts_ranges=kind.accepts_ranges,
            framing=kind.framing,
            version=version.number,
            content=version.read,
        )
        with origin.changed:  # at both paths at once
            origin.put(self.path, resource)
            origin.put(self.detour, resource)
        with self._lock:
            self._serving = version.number

    # -- the proxy's side ------------------------------------------------------

    def allowed(self, asked_at_s: float) -> list[Version]:
        """Return the versions that an answer to a request begun then may be of."""
        with self._lock:
            moments = [moment for moment, _ in self._floors]
            floor = self._floors[bisect_right(moments, asked_at_s) - 1][1]
            return self._versions[floor:]

    def shown(self, number: int, when_s: float) -> None:
        """Note that the proxy served version *number*: it may not go back from there."""
        with self._lock:
            if number > self._floors[-1][1]:
                self._floors.append((max(when_s, self._floors[-1][0]), number))

    def removed(self, serving: int) -> None:
        """Note that the entry was removed while the origin had version *serving* or later."""
        self.shown(serving, time.monotonic())

    def note(self, who: str, what: str) -> None:
        """Add a line to the history that is printed when something is wrong."""
        now_s = time.time()
        moment = time.strftime("%H:%M:%S", time.localtime(now_s))
        self._history.append(f"{moment}.{int(now_s * 1000) % 1000:03} {who}: {what}")

    @property
    def history(self) -> list[str]:
        return list(self._history)


@dataclass
class World:
    """All subjects, at the origin that serves them."""

    origin: Origin
    seed: int
    kinds: Iterable[Kind] = KINDS
    subjects: list[Subject] = field(init=False)

    def __post_init__(self) -> None:
        self.subjects = [
            Subject(kind.name if kind.how_many == 1 else f"{kind.name}-{n}", kind, self.seed)
            for kind in self.kinds
            for n in range(kind.how_many)
        ]
        self._by_path = {
            path: subject for subject in self.subjects for path in (subject.path, subject.detour)
        }
        for subject in self.subjects:
            subject.put(self.origin)

    def choose(self, dice: random.Random) -> Subject:
        """Return one of the subjects; those of which there are many share what is theirs."""
        subject = dice.choice(self.subjects)
        while subject.kind.how_many > 1 and dice.random() < 0.9:
            subject = dice.choice(self.subjects)
        return subject

    def change(self, subject: Subject, dice: random.Random) -> None:
        """Let the origin have another version of *subject* from now on."""
        size = subject.current.size
        if subject.kind.resizes and dice.random() < 0.4:
            size = max(1, int(subject.kind.size * dice.uniform(0.3, 1.2)))
        subject.change(size)
        subject.put(self.origin)

    def at(self, path: str) -> Subject:
        """Return the subject that the origin serves at *path*."""
        return self._by_path[path]

    def whence(self, data: bytes) -> str:
        """Say which version has *data*, to explain how it came where it is."""
        if not data.strip(b"\0"):
            return "zeros"
        for subject in self.subjects:
            for version in subject.allowed(0.0):
                offset = version.find(data)
                if offset is not None:
                    return f"{version} at {offset} modulo {_CYCLE}"
        return "of no version"

    def sent_bodies(self, subject: Subject) -> set[int]:
        """Return how many body bytes the origin's answers for *subject* have had."""
        return {
            request.body_bytes_sent
            for request in self.origin.requests
            if request.path in (subject.path, subject.detour)
        }
