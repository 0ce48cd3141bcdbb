"""The exceptions of cachefsm, split by whose fault they are.

Foreign errors (``requests``, ``peewee``, the operating system's, the state
machine's) are translated once, where they are met, with ``raise ... from``.
Messages say what was asked and what came, in one line, and never hold
credentials or query strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

_Error = TypeVar("_Error", bound="CacheError")
_Status = TypeVar("_Status", bound="OriginStatus")

__all__ = [
    "AnotherVariant",
    "BadAnswer",
    "BadRange",
    "CacheBusy",
    "CacheClosed",
    "CacheError",
    "DatabaseDamaged",
    "DatabaseFull",
    "DownloadCancelled",
    "EntryNotFound",
    "IllegalMove",
    "NotModified",
    "NotStored",
    "OpenBody",
    "OriginError",
    "OriginRefused",
    "OriginStatus",
    "OriginTimeout",
    "OriginUnreachable",
    "OriginUntrusted",
    "RangeNotSatisfiable",
    "RepresentationChanged",
    "RowRefused",
    "SchemaTooNew",
    "StorageError",
    "UnsatisfiedByOrigin",
    "UsageError",
    "WaitCancelled",
    "WaitTimeout",
]


class CacheError(Exception):
    """Anything cachefsm raises on purpose.

    ``status_hint`` is the HTTP status that fits when a client has to be told.
    """

    status_hint: int = 500

    def again(self: _Error) -> _Error:
        """Return the same error to be raised once more, in another thread or later.

        Raising one instance twice would grow its traceback, and keep alive
        whatever the frames in it hold.
        """
        error = type(self).__new__(type(self), *self.args)
        error.args = self.args
        error.__dict__.update(self.__dict__)
        return error


class UsageError(CacheError):
    """An argument, option or address that cannot be used; the message says why."""

    status_hint = 400


class BadRange(UsageError, ValueError):
    """These offsets are no range of a file: one is negative, or the stop is before the start."""


class IllegalMove(CacheError):
    """The lifecycle has no such event in this state; nothing has changed.

    ``possible`` are the orders that this state allows.
    """

    status_hint = 409

    def __init__(
        self, event: str, state: str, message: str = "", possible: Sequence[str] = ()
    ) -> None:
        super().__init__(message or f"cannot {event} an entry that is {state}")
        self.event = event
        self.state = state
        self.possible = tuple(possible)


class EntryNotFound(CacheError):
    """No entry has that id or URL."""

    status_hint = 404


class CacheClosed(CacheError):
    """The cache is shutting down; ask again when it is back."""

    status_hint = 503


class CacheBusy(CacheError):
    """Another process holds the cache directory; the message names it."""

    status_hint = 503


class WaitTimeout(CacheError):
    """The bytes did not arrive in the time allowed; the download goes on."""

    status_hint = 504


class WaitCancelled(CacheError):
    """Whoever waited has left, so the wait was given up."""

    status_hint = 499


class DownloadCancelled(CacheError):
    """A person cancelled the download."""

    status_hint = 503


class RangeNotSatisfiable(CacheError):
    """No byte of the representation lies in the range asked for.

    ``complete_length`` is in bytes.
    Source: RFC 9110 §15.5.17.
    """

    status_hint = 416

    def __init__(self, complete_length: int) -> None:
        super().__init__(f"the range asked for lies outside the {complete_length} bytes there are")
        self.complete_length = complete_length


class StorageError(CacheError):
    """The disk or the database refused: full, read-only, gone, locked, changed."""


class DatabaseDamaged(StorageError):
    """The database file is no database, or not a whole one."""


class DatabaseFull(StorageError):
    """The disk has no room for what the database would write."""


class RowRefused(StorageError):
    """The database takes no such row: a constraint or a type is against it."""


class SchemaTooNew(StorageError):
    """The database was written by a newer cachefsm than this one."""


class OriginError(CacheError):
    """The origin could not be reached, or its answer cannot be used.

    ``permanent`` says that asking again soon will not help; ``retry_after_s`` is what the
    origin's Retry-After says, in seconds, or None.
    """

    status_hint = 502
    permanent: bool = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OriginUnreachable(OriginError):
    """No connection, or the connection broke before or while it answered."""


class OriginUntrusted(OriginError):
    """The origin is not known to be who it should be: its certificate says otherwise."""

    permanent = True


class OriginTimeout(OriginError):
    """The origin accepted the connection and then said nothing for too long."""

    status_hint = 504


class OriginRefused(OriginError):
    """An address, scheme or redirect that this cache may not follow."""

    status_hint = 403
    permanent = True


class OpenBody(Protocol):
    """A body that can be read once; ``length`` is in bytes, None if only its end will tell."""

    length: int | None

    def pieces(self) -> Iterator[bytes]:
        """Yield it as it arrives; raise OriginError if it breaks off."""

    def cancel(self) -> None:
        """Make whoever reads it stop now; called from any thread."""

    def close(self) -> None:
        """Let its connection go."""


class OriginStatus(OriginError):
    """The origin answered with a status other than 200 and 206.

    ``fields`` and ``body`` may be passed on to clients, ``cookies`` only to the client that
    asked. ``body`` is None if it did not come or ``is_long``; a long one may be ``open``, to
    be read by the first who takes it. ``age_s`` is the age in seconds of an answer that was
    remembered, None for a new one.

    4xx means that the request is at fault and is permanent, but for 408, 421,
    425 and 429; 5xx may pass, but for 501, 505, 506, 508, 510 and 511.
    Source: RFC 9110 §15.5, §15.6; RFC 6585; RFC 8470.
    """

    _PASSING = frozenset({408, 421, 425, 429, 500, 502, 503, 504, 507, 509})

    def __init__(
        self,
        status: int,
        *,
        retry_after_s: float | None = None,
        fields: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"the origin answered {status}", retry_after_s=retry_after_s)
        self.status = status
        self.fields = tuple(fields)
        self.body: bytes | None = None
        self.cookies: tuple[tuple[str, str], ...] = ()
        self.age_s: float | None = None
        self.is_long = False
        self.open: OpenBody | None = None
        self.permanent = status not in self._PASSING
        # A client may act on 4xx (log in, look elsewhere); an origin's 5xx is
        # ours to explain as a gateway.
        self.status_hint = status if 400 <= status < 500 else 502

    @property
    def says_too_many(self) -> bool:
        """Whether it may mean that the origin wants fewer connections.

        Source: RFC 6585 §4, RFC 9110 §15.6.4.
        """
        return self.status in (429, 503)

    @property
    def is_for_one(self) -> bool:
        """Whether clients that did not get the body should ask the origin themselves.

        They should not if the origin sent Retry-After, that is, asked to be left alone.
        """
        return self.is_long and self.retry_after_s is None

    def again(self: _Status) -> _Status:
        """Return the same error to be raised once more, without its open body."""
        error = super().again()
        error.open = None
        return error

    def take(self) -> OpenBody | None:
        """Return the open body, or None if it was taken; the caller has to close it."""
        body, self.open = self.open, None
        return body


class NotModified(OriginStatus):
    """The origin answered 304: what is stored is current. ``told`` are its fields."""

    def __init__(self, told: Sequence[tuple[str, str]]) -> None:
        super().__init__(304)
        self.told = tuple(told)


class NotStored(CacheError):
    """The origin would have to be asked, but cannot answer, or client or mount forbid it.

    Source: RFC 9111 §5.2.1.7, §5.2.2.2.
    """

    status_hint = 504


class AnotherVariant(CacheError):
    """What is stored is for requests with other fields than this one's: RFC 9111 §4.1."""

    status_hint = 503


class UnsatisfiedByOrigin(OriginStatus):
    """The origin answered 416; ``complete_length`` in bytes where it said so."""

    def __init__(self, complete_length: int | None) -> None:
        super().__init__(416)
        self.complete_length = complete_length
        self.status_hint = 502


class BadAnswer(OriginError):
    """A 200 or 206 whose interval, length, framing or coding cannot be trusted."""


class RepresentationChanged(OriginError):
    """The origin now serves another version than the one that is stored."""
