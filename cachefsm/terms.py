"""Decides whether a stored response may be used for one request.

Pure: given the client's request fields and its mount's rules (together its *terms*), the
stored response and the time, it says whether the origin has to be asked first. The rules
are RFC 9111's for a private cache, unless the mount has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from .fields import Fields
from .freshness import (
    VaryKey,
    freshness_lifetime_s,
    initial_age_s,
    is_only_if_cached,
    may_serve_meanwhile,
    may_serve_on_error,
    may_store,
    needs_validation,
    parse_cache_control,
    vary_key,
)
from .playlists import is_playlist
from .representation import Representation

__all__ = ["ANY_TERMS", "Stored", "Terms", "Use"]


class Use(Enum):
    """What may be done with a stored response."""

    NOW = auto()
    """It may be served."""
    MEANWHILE = auto()
    """It may be served while the origin is asked."""
    AFTER_ASKING = auto()
    """The origin must be asked first."""
    NEVER = auto()
    """The origin would have to be asked first, but the client or the mount forbids that."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of a stored response: its representation, and when the origin told it.

    Times are Unix time, in seconds; *path* is the URL's.
    """

    representation: Representation
    requested_s: float
    received_s: float
    path: str = ""

    def age_s(self, now_s: float) -> float:
        """Return its age. RFC 9111 §4.2.3."""
        initial_s = _initial_age_s(self.representation.fields, self.requested_s, self.received_s)
        return initial_s + (now_s - self.received_s)

    def lifetime_s(self) -> float:
        """Return for how long it is fresh. RFC 9111 §4.2.1."""
        return _lifetime_s(self.representation.fields, self.received_s, self.path)


# Neither depends on the time that it is now: they are worked out once for each answer of
# an origin, not again and again for each request that is served from it.


@lru_cache(maxsize=256)
def _initial_age_s(
    fields: tuple[tuple[str, str], ...], requested_s: float, received_s: float
) -> float:
    return initial_age_s(fields, requested_s=requested_s, received_s=received_s)


@lru_cache(maxsize=256)
def _lifetime_s(fields: tuple[tuple[str, str], ...], received_s: float, path: str) -> float:
    return freshness_lifetime_s(
        HTTPStatus.OK, fields, received_s=received_s, may_grow=is_playlist(path, fields)
    )


@dataclass(frozen=True, slots=True)
class Terms:
    """What one request demands of stored responses, and which fields go to the origin for it.

    ``request_fields`` are the client's. ``forwarded`` go with every request to the origin
    that is made on the client's behalf; so do ``secrets``, but only to the origin of the
    URL itself. ``hands_on``: redirects are left to the client. ``fresh_s``: the mount's own
    lifetime, which replaces what the origin says. ``offline``: no origin is asked.
    ``cookies``: cookies are passed on between client and origin, both ways. ``since_s`` is
    the monotonic time at which the request came: an answer that came later is recent
    enough for it.
    """

    request_fields: Fields = ()
    forwarded: Fields = ()
    secrets: Fields = ()
    fresh_s: float | None = None
    offline: bool = False
    hands_on: bool = False
    cookies: bool = False
    since_s: float = float("inf")

    @property
    def directives(self) -> tuple[tuple[str, str], ...]:
        """The client's own directives, which a question to the origin must repeat.

        Source: RFC 9111 §5.2.
        """
        return tuple(
            (name, value)
            for name, value in self.request_fields
            if name.lower() in ("cache-control", "pragma")
        )

    @property
    def forbids_storing(self) -> bool:
        """Whether the client wants nothing stored of this exchange. RFC 9111 §5.2.1.5."""
        return "no-store" in parse_cache_control(self.request_fields)

    def use_of(self, stored: Stored, now_s: float) -> Use:
        """Return what may be done with *stored* now. RFC 9111 §4."""
        if self.offline:
            return Use.NOW
        told = () if self.fresh_s is not None else stored.representation.fields
        age_s, lifetime_s = stored.age_s(now_s), self.lifetime_s(stored)
        if not needs_validation(self.request_fields, told, lifetime_s=lifetime_s, age_s=age_s):
            return Use.NOW
        if self.only_stored:
            return Use.NEVER
        if may_serve_meanwhile(self.request_fields, told, lifetime_s=lifetime_s, age_s=age_s):
            return Use.MEANWHILE
        return Use.AFTER_ASKING

    @property
    def only_stored(self) -> bool:
        """Whether the client wants what is stored, or an error at once. RFC 9111 §5.2.1.7."""
        return is_only_if_cached(self.request_fields)

    def may_ask(self) -> bool:
        """Return whether the origin may be asked at all."""
        return not (self.offline or self.only_stored)

    def may_give_again(self, told: Fields, *, lifetime_s: float, age_s: float) -> bool:
        """Return whether a remembered answer without a file may be used again. RFC 9111 §4."""
        return self.offline or not needs_validation(
            self.request_fields, told, lifetime_s=lifetime_s, age_s=age_s
        )

    def may_use_on_error(self, stored: Stored, now_s: float) -> bool:
        """Return whether *stored* may stand in for an origin that cannot answer."""
        if self.fresh_s is not None:
            return True
        staleness_s = stored.age_s(now_s) - stored.lifetime_s()
        return may_serve_on_error(
            self.request_fields, stored.representation.fields, staleness_s=staleness_s
        )

    def may_store(self, status: int, response_fields: Fields) -> bool:
        """Return whether an answer to this request may be stored. RFC 9111 §3."""
        told = () if self.fresh_s is not None else response_fields
        return may_store("GET", status, self.request_fields, told)

    def vary_key(self, response_fields: Fields) -> VaryKey | None:
        """Return which of the forwarded fields, with which values, selected the response.

        Fields that are not forwarded, such as cookies, select nothing, and entries with
        other secrets have other keys already. Source: RFC 9111 §4.1.
        """
        if self.fresh_s is not None:
            return ()
        return vary_key(response_fields, self.forwarded)

    def left_s(self, stored: Stored, now_s: float) -> float:
        """Return for how long *stored* is still fresh, negative once it is stale."""
        return self.lifetime_s(stored) - stored.age_s(now_s)

    def lifetime_s(self, stored: Stored) -> float:
        """Return for how long *stored* is fresh, as the mount says or else its origin."""
        return stored.lifetime_s() if self.fresh_s is None else self.fresh_s


ANY_TERMS: Final = Terms()
"""The terms of a plain request without any fields."""
