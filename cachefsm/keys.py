"""Keys, by which entries are found: decides which URLs are one entry. Pure, no I/O.

The key is the URL, query and all, because only the origin knows which parts of it matter.
Only what a rule names is left out: a guess could serve one user's bytes, or another
version's, to somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus

from .access import check_pattern, split_host
from .addresses import host_matches
from .errors import UsageError
from .urls import OriginUrl

__all__ = ["KeyRule", "KeyRules", "check_key", "parse_key_rule"]


@dataclass(frozen=True)
class KeyRule:
    """Leaves query parameters out of the keys of URLs at *host*.

    *host* is ``host``, ``host:port``, ``host:*`` or ``*.suffix``, or ``*``; without a
    port any will do. *drop* are the parameters' names, exact but for a ``*`` at the end.
    They say who may have the bytes and for how long, never which bytes: whoever can
    reach the cache gets what is stored, whatever token he shows.

    Raises:
        UsageError: there is nothing that it could apply to.
    """

    host: str
    drop: Sequence[str]

    def __post_init__(self) -> None:
        check_pattern(self.host)
        if isinstance(self.drop, str):  # a tuple of it would be letters
            raise UsageError(f"the key rule for {self.host} takes a list of parameters")
        object.__setattr__(self, "drop", tuple(self.drop))  # a list is as good
        if not self.drop or not all(name.strip("*") for name in self.drop):
            raise UsageError(f"the key rule for {self.host} names no parameter to leave out")

    def applies(self, url: OriginUrl) -> bool:
        """Say whether it is about *url*."""
        host, port = split_host(self.host.lower())
        return host_matches(host, url.host) and port in ("", "*", str(url.port))

    def drops(self, parameter: str) -> bool:
        """Say whether ``name=value``, as it stands in a query, is left out."""
        name = unquote_plus(parameter.partition("=")[0])
        return any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
            for pattern in self.drop
        )


def check_key(key: object) -> None:
    """Return if *key* is one that an entry can be found by: text, which a database takes.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(key, str) or any("\ud800" <= character <= "\udfff" for character in key):
        raise UsageError(f"{key!r} is no key")


class KeyRules:
    """The key rules of one cache."""

    def __init__(self, rules: Iterable[KeyRule] = ()) -> None:
        self._rules = tuple(rules)

    def key(self, url: OriginUrl) -> str:
        """Return the key of *url*; that is the URL itself if no rule applies."""
        rules = [rule for rule in self._rules if rule.applies(url)]
        path, mark, query = url.target.partition("?")
        if not rules or not mark:
            return str(url)
        kept = [
            parameter
            for parameter in query.split("&")
            if not any(rule.drops(parameter) for rule in rules)
        ]
        return str(url._replace(target=f"{path}?{'&'.join(kept)}" if kept else path))


def parse_key_rule(text: str) -> KeyRule:
    """Return the rule that ``cdn.example.org=token,X-Amz-*`` describes.

    Raises:
        UsageError: it does not.
    """
    host, equals, names = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no key rule; write HOST=PARAMETER,PARAMETER")
    return KeyRule(host, tuple(name for name in names.split(",") if name))
