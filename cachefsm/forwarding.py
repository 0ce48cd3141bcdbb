"""Decides which fields of a client's request go on to the origin, and as what. Pure.

The proxy's own requests ask for other bytes, and at other times, than the client's; and
their answers are served to other clients as well. So each field of a client's request is

- kept back, because it is about this message or this proxy; or
- a secret, judging by its name: passed on, and the answer is served only to clients that
  send the same secrets; or
- any other field: passed on.
"""

from __future__ import annotations

import re
from typing import Final

from .access import Rules
from .fields import (
    Fields,
    connection_fields,
    end_to_end,
    is_sendable,
    parse_digits,
    value_of,
    values_of,
    without,
)
from .terms import Terms

__all__ = ["one_hop_less", "relayed_fields", "terms_of", "visited"]

#: About this exchange with this proxy, or about which bytes are wanted.
_KEPT_BACK: Final = frozenset(
    {
        "accept-encoding",  # always identity: ranges are counted in the bytes themselves
        "cache-control",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "icy-metadata",  # would put titles in between the bytes
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "pragma",
        "range",
        "upgrade-insecure-requests",
    }
)
_KEPT_BACK_PREFIXES: Final = ("sec-", "access-control-")

#: What tells one user from another, going by the name. Everything else, known or not,
#: harms nobody: what an answer was chosen by, it says in Vary (RFC 9111 §4.1), and players
#: send fields that differ with every request (CMCD, traces), each of which would otherwise
#: fetch the file anew.
_SECRET = re.compile(
    r"access|account|assert|auth|cert|cookie|cred|customer|dpop|identity|jwt|key|licen[cs]e|login"
    r"|member|passw|principal|private|pwd|saml|secret|sess|sign|subscriber|tenant|ticket|token"
    r"|user(?!-agent)|[cx]srf|(?:\A|[_-])(?:otp|pin|s?sid|uid)(?:\Z|[_-])"
)
#: A playback is told apart by these, not a user.
_NO_SECRETS: Final = frozenset({"cmcd-session", "x-playback-session-id"})


def terms_of(request_fields: Fields, rules: Rules, *, host: str, since_s: float) -> Terms:
    """Return the terms of a client's request for content.

    *host* is the client's Host field. The rules' own fields replace the client's of the
    same names. *since_s* is the monotonic time of the request.
    """
    passed = _passed_on(request_fields, rules, host)
    secrets = tuple(field for field in passed if _is_secret(field[0].lower()))
    return Terms(
        request_fields=request_fields,
        forwarded=tuple(field for field in passed if field not in secrets),
        secrets=(*secrets, *rules.fields),
        fresh_s=rules.fresh_s,
        offline=rules.offline,
        hands_on=rules.hands_on,
        cookies=_passes_cookies(request_fields, rules),
        since_s=since_s,
    )


def relayed_fields(request_fields: Fields, rules: Rules, *, host: str) -> Fields:
    """Return the fields of a request that is passed on as it is, body and all.

    Source: RFC 9110 §7.6.1.
    """
    held = {"host", "expect", "content-length", *_own_names(rules)}
    if _from_browser(request_fields):
        held.add("cookie")
    return (
        *(
            (name, value)
            for name, value in end_to_end(request_fields)
            if name.lower() not in held
            and not _is_about_us(name, value, host)
            and _is_sendable(name, value)
        ),
        *rules.fields,
    )


def one_hop_less(fields: Fields) -> tuple[Fields, bool]:
    """Return *fields* with Max-Forwards counted down, and whether there may be a next hop.

    For OPTIONS. Source: RFC 9110 §7.6.2.
    """
    hops = parse_digits(value_of(fields, "Max-Forwards"))
    if hops is None:
        return fields, True
    return (*without(fields, {"max-forwards"}), ("Max-Forwards", str(hops - 1))), hops > 0


def _passed_on(fields: Fields, rules: Rules, host: str) -> Fields:
    held = _KEPT_BACK | connection_fields(fields) | _own_names(rules)
    if _passes_cookies(fields, rules):
        held -= {"cookie"}
    return tuple(
        (name, value)
        for name, value in fields
        if (lower := name.lower()) not in held
        and not lower.startswith(_KEPT_BACK_PREFIXES)
        and not _is_about_us(name, value, host)
        and _is_sendable(name, value)
    )


def _is_secret(name: str) -> bool:
    return name not in _NO_SECRETS and _SECRET.search(name) is not None


def _own_names(rules: Rules) -> frozenset[str]:
    """Return the lower-case names of the fields that the mount's rules set."""
    return frozenset(name.lower() for name, _ in rules.fields)


def _passes_cookies(fields: Fields, rules: Rules) -> bool:
    return rules.passes and not _from_browser(fields)


def _from_browser(fields: Fields) -> bool:
    """Say whether a browser asks: its cookies for this host may be another server's."""
    return any(name.lower().startswith("sec-fetch-") for name, _ in fields)


def _is_about_us(name: str, value: str, host: str) -> bool:
    """Say whether a field names a page of this proxy's own, which means nothing to origins."""
    if name.lower() not in ("referer", "origin"):
        return False
    return value == "null" or re.match(rf"https?://{re.escape(host)}(?:/|\Z)", value) is not None


def _is_sendable(name: str, value: str) -> bool:
    """Say whether the field can go out; requests refuses values that begin with any white space."""
    return is_sendable(name, value) and not value[:1].isspace()


def visited(request_fields: Fields, name: str) -> bool:
    """Say whether a request has passed the proxy *name* before (a loop). RFC 9110 §7.6.3."""
    return any(
        member.split()[1:2] == [name]
        for value in values_of(request_fields, "Via")
        for member in value.split(",")
    )
