"""What ``requests``, ``urllib3`` and the socket raise, told as errors of the origin's.

Each message says what went wrong in words that lead somewhere, and quotes nothing that
could hold the URL and its query.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError, InvalidHeader, ReadTimeoutError

from .errors import BadAnswer, OriginError, OriginTimeout, OriginUnreachable, OriginUntrusted

__all__ = ["translated"]


@contextmanager
def translated() -> Iterator[None]:
    """Let what goes wrong in the block be an OriginError."""
    try:
        yield
    except (InvalidHeader, requests.exceptions.InvalidHeader) as error:
        raise BadAnswer("the origin sent a field that makes no sense") from error
    except (TimeoutError, requests.Timeout, ReadTimeoutError) as error:
        raise OriginTimeout(_silence(error)) from error
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        raise _told(error) from error


def _silence(error: BaseException) -> str:
    if any(isinstance(each, ConnectTimeoutError) for each in _causes(error)):
        return "the origin was silent for too long: no connection could be made"
    return "the origin was silent for too long"


def _told(error: BaseException) -> OriginError:
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case ssl.SSLCertVerificationError():
                return OriginUntrusted(
                    f"the origin's certificate is not to be trusted ({cause.verify_message}); "
                    "REQUESTS_CA_BUNDLE can name a file of authorities that are"
                )
            case ssl.SSLError():
                reason = _CODE_AND_LINE.sub("", cause.strerror or cause.reason or "").strip()
                return OriginUnreachable(f"the origin does not speak TLS as it should ({reason})")
            case socket.gaierror():
                return OriginUnreachable(f"the origin's name leads nowhere ({cause.strerror})")
            case ConnectionRefusedError():
                return OriginUnreachable("the origin cannot be reached (Connection refused)")
            case http.client.RemoteDisconnected():
                return OriginUnreachable("the origin closed the connection before it had answered")
            case http.client.BadStatusLine():
                return OriginUnreachable("the origin answered with something that is not HTTP")
    said = next((text for cause in causes if (text := getattr(cause, "strerror", None))), None)
    return OriginUnreachable(
        f"the connection to the origin broke ({said or type(causes[-1]).__name__})"
    )


_CODE_AND_LINE: Final = re.compile(r"^\[SSL[^\]]*\]|\(_ssl\.c:\d+\)")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it was made of, the origin of it all last.

    urllib3 keeps that as ``reason``, as an argument, or as what it was raised from.
    """
    found: BaseException | None = error
    while found is not None:
        yield found
        inner = (getattr(found, "reason", None), *found.args, found.__cause__)
        found = next((each for each in inner if isinstance(each, BaseException)), None)
