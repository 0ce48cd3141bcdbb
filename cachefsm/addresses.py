"""Which addresses a name may lead to. Pure.

A name that is allowed says nothing about where it leads: whoever owns its zone
can point it at this machine or at the network behind it. So what a name resolves
to is checked when the connection is made, address by address. An address written
out in a mount or an ``--allow`` is meant; so is ``localhost``. That none of them is
reached by a mere ``*`` is for the allow list to see to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

__all__ = ["AddressGuard", "host_matches", "is_inside"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


class AddressGuard:
    """Says whether a host may be connected to at an address.

    *private* are the hosts, or ``*.suffix`` patterns, that may lead to addresses
    of private networks.
    """

    def __init__(self, private: Iterable[str] = ()) -> None:
        self._private = tuple(pattern.lower() for pattern in private)

    def __call__(self, host: str, address: str) -> bool:
        """Say whether *host*, as a URL names it, may lead to *address*."""
        found = _parse(address)
        if found is None:
            return False
        inner = _inner(found)
        if _is_public(inner):
            return True
        if _parse(host) == found:
            return True
        if host == "localhost":
            return inner.is_loopback
        return any(host_matches(pattern, host) for pattern in self._private)


def host_matches(pattern: str, host: str) -> bool:
    """Say whether *host* is what *pattern* names: a host, ``*.suffix`` or ``*``."""
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern


def is_inside(host: str) -> bool:
    """Say whether a URL's *host*, as it stands, means this machine or its network."""
    address = _parse(host)
    return host == "localhost" if address is None else not _is_public(_inner(address))


def _is_public(address: _Address) -> bool:
    return address.is_global and not address.is_multicast


def _parse(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _inner(address: _Address) -> _Address:
    """Return the IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):  # also ::a.b.c.d
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
