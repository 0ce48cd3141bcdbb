"""What was fetched with one set of credentials is an entry of its own.

The key of such an entry names the set by a digest; the set itself stays in memory.
Thread-safe. No I/O.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from .fields import Fields
from .freshness import VaryKey

__all__ = ["Credentials", "variant_key"]

REMEMBERED: Final = 4096
"""How many sets of credentials are known at a time: each costs about 1 KiB."""

_SECRET_KEY = re.compile(r"secret:([0-9a-f]{32}) ")


class Credentials:
    """The sets of secret request fields that entries are fetched with."""

    def __init__(self, sets: Iterable[Fields] = ()) -> None:
        self._lock = threading.Lock()
        self._passing: OrderedDict[str, Fields] = OrderedDict()
        self._lasting = {_digest(fields): fields for fields in sets if fields}

    def key(self, key: str, secrets: Fields) -> str:
        """Return *key* as the entry has it that is fetched with *secrets*; remember them."""
        if not secrets:
            return key
        name = _digest(secrets)
        if name not in self._lasting:
            with self._lock:
                self._passing[name] = secrets
                self._passing.move_to_end(name)
                while len(self._passing) > REMEMBERED:
                    self._passing.popitem(last=False)
        return f"secret:{name} {key}"

    def of(self, key: str) -> Fields | None:
        """Return the secrets of the entry with *key*, None if they are not known any more."""
        match = _SECRET_KEY.match(key)
        if match is None:
            return ()
        with self._lock:
            return self._lasting.get(match[1]) or self._passing.get(match[1])


def variant_key(key: str, chosen: VaryKey) -> str:
    """Return *key* as the variant has it that these request fields select."""
    text = json.dumps(chosen).encode()
    return f"{key} vary:{hashlib.blake2b(text, digest_size=16).hexdigest()}"


def _digest(fields: Fields) -> str:
    text = json.dumps(sorted((name.lower(), value) for name, value in fields)).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()
