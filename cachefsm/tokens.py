"""The token by which a proxy knows who runs it. Pure."""

from __future__ import annotations

import base64
import binascii
import hmac

__all__ = ["CHALLENGES", "carries"]

CHALLENGES = (("WWW-Authenticate", 'Bearer, Basic realm="cachefsm", charset="UTF-8"'),)
"""How a client may give it: a program as a bearer, a person as what a browser asks for."""


def carries(authorization: str, token: str | None) -> bool:
    """Say whether an Authorization field carries *token*: as a bearer (RFC 6750), or as a
    password under any name (RFC 7617), which a browser can ask a person for."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        given = _password(given.strip())
    elif scheme.lower() != "bearer":
        return False
    return token is not None and hmac.compare_digest(given.encode(), token.encode())


def _password(credentials: str) -> str:
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return text.partition(":")[2]
