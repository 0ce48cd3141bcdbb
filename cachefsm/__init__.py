"""A progressive-download cache for media and other big files, with a proxy in front."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import Cache
    from .demands import Fill
    from .errors import CacheError
    from .events import Progress
    from .handle import Entry
    from .keys import KeyRule
    from .ranges import ByteRange
    from .states import DownloadState
    from .surroundings import Transition

__all__ = [
    "ByteRange",
    "Cache",
    "CacheError",
    "DownloadState",
    "Entry",
    "Fill",
    "KeyRule",
    "Progress",
    "Transition",
    "__version__",
]

__version__ = "0.1.0"

# Imported when first used (PEP 562): the command line comes through here as well,
# and `cachefsm --help` should not wait 200 ms for what it does not need.
_HOMES = {
    "ByteRange": "ranges",
    "Cache": "cache",
    "CacheError": "errors",
    "DownloadState": "states",
    "Entry": "handle",
    "Fill": "demands",
    "KeyRule": "keys",
    "Progress": "events",
    "Transition": "surroundings",
}


if not TYPE_CHECKING:  # mypy would believe in any name then

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
