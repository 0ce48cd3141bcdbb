"""Which entry answers a request for a URL: by key rules, credentials, and ``Vary``.

Finding out fetches nothing; at most a row is made.
"""

from __future__ import annotations

from .credentials import Credentials, variant_key
from .errors import EntryNotFound
from .freshness import chosen_by
from .keys import KeyRules
from .models import EntryRecord, Store
from .records import vary_from_json
from .registry import Registry
from .terms import Terms
from .urls import OriginUrl, parse_url, redact

__all__ = ["Catalogue"]


class Catalogue:
    """Finds the entries of one cache by URL; thread-safe."""

    def __init__(
        self, store: Store, registry: Registry, keys: KeyRules, credentials: Credentials
    ) -> None:
        self._store = store
        self._registry = registry
        self._keys = keys
        self._credentials = credentials

    def id_of(self, url: OriginUrl, key: str | None = None) -> int:
        """Return the id of the entry with *key*, creating it if it is new.

        It is fetched by *url* from now on. The key is that of *url* by default.
        """
        own_key = self._keys.key(url)
        entry_id = self._registry.find_or_create(url, own_key if key is None else key)
        if own_key != str(url):  # others have the same key
            with self._registry.lease(entry_id) as entry:
                entry.name(url)
        return entry_id

    def variant(self, url: OriginUrl, terms: Terms) -> int:
        """Return the id of the entry that answers a request for *url* on *terms*.

        One URL has an entry for each set of credentials, and for each choice of the
        request fields that its origin names in Vary (RFC 9111 §4.1).
        """
        key = self._credentials.key(self._keys.key(url), terms.secrets)
        while terms.fresh_s is None and (record := self._registry.find(key)) is not None:
            selected_by = vary_from_json(record.vary)
            chosen = chosen_by((name for name, _ in selected_by), terms.forwarded)
            if chosen == selected_by:
                break
            key = variant_key(key, chosen)
        return self.id_of(url, key)

    def all_of(self, url: OriginUrl) -> list[EntryRecord]:
        """Return all rows of *url*, with the one without credentials or Vary fields first."""
        return self._store.entries_of(str(url), self._keys.key(url))

    def find(self, which: int | str) -> EntryRecord:
        """Return the row with that id or URL, or raise EntryNotFound."""
        if isinstance(which, int):
            return self._store.entry(which)
        found = self.all_of(parse_url(which))
        if not found:
            raise EntryNotFound(f"there is no entry for {redact(which)}")
        return found[0]
