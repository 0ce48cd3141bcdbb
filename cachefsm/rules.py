"""Turns the options that name a mount (``--fresh /name=30d``) into each mount's rules. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from .access import Mount, Rules, mount_name
from .errors import UsageError
from .fields import HOP_BY_HOP, OWS, is_sendable
from .settings import YES
from .units import parse_duration

__all__ = ["EVERY_MOUNT", "furnish", "parse_fresh", "parse_header", "parse_which"]

EVERY_MOUNT: Final = "*"

_SET_HERE: Final = frozenset({"accept-encoding", "content-length", "host", "range", "via"})


def parse_which(text: str) -> str:
    """Return the mount that *text* names; EVERY_MOUNT for a plain yes, as in the environment.

    Raises:
        UsageError: *text* is neither.
    """
    return EVERY_MOUNT if text.lower() in YES else mount_name(text)


def parse_fresh(text: str) -> tuple[str, float]:
    """Return the mount and the seconds of ``/name=30d``; for ``30d`` alone, EVERY_MOUNT's.

    Raises:
        UsageError: *text* is neither.
    """
    name, equals, duration = text.rpartition("=")
    return (mount_name(name) if equals else EVERY_MOUNT), parse_duration(duration)


def parse_header(text: str) -> tuple[str, tuple[str, str]]:
    """Return the mount and the field of ``/name: Field: value``.

    Raises:
        UsageError: *text* has another form, or the field cannot be set. The message does not
            repeat the value, which may be a secret.
    """
    mount, _, field = text.partition(":")
    name, colon, value = (part.strip(OWS) for part in field.partition(":"))
    if not colon or not is_sendable(name, value) or not value.isascii():
        raise UsageError(
            "a header for a mount's origin reads '/name: Field: value', in ASCII and on one line"
        )
    if name.lower() in HOP_BY_HOP | _SET_HERE:
        raise UsageError(f"{name} is set for each request by itself, not for a mount")
    return mount_name(mount.strip(OWS)), (name, value)


def furnish(
    mounts: Sequence[Mount],
    *,
    fresh: Iterable[tuple[str, float]] = (),
    offline: Iterable[str] = (),
    pass_methods: Iterable[str] = (),
    hand_on_redirects: Iterable[str] = (),
    headers: Iterable[tuple[str, tuple[str, str]]] = (),
) -> tuple[list[Mount], Rules]:
    """Return the mounts with their rules, and the rules for origins that clients name.

    Raises:
        UsageError: an option names what is not mounted, or two mounts have one name.
    """
    names = [mount.name for mount in mounts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"--mount: {min(twice)} is mounted twice")
    rules = {name: Rules() for name in (EVERY_MOUNT, *(mount.name for mount in mounts))}

    def change(option: str, name: str, **what: object) -> None:
        if name not in rules:
            raise UsageError(f"{option} names {name}, which is not mounted")
        for each in rules if name == EVERY_MOUNT else (name,):
            rules[each] = replace(rules[each], **what)  # type: ignore[arg-type]

    # What is for every mount comes first: what names one overrules it.
    for name, fresh_s in sorted(fresh, key=lambda each: each[0] != EVERY_MOUNT):
        change("--fresh", name, fresh_s=fresh_s)
    for name in offline:
        change("--offline", name, offline=True)
    for name in pass_methods:
        change("--pass-methods", name, passes=True)
    for name in hand_on_redirects:
        change("--hand-on-redirects", name, hands_on=True)
    for name, field in headers:
        change("--header", name, fields=(*rules.get(name, Rules()).fields, field))
    found = [replace(mount, rules=rules[mount.name]) for mount in mounts]
    return found, replace(rules[EVERY_MOUNT], passes=False)
