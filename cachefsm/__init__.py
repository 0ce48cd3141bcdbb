"""A progressive-download cache for media and other big files, with a proxy in front."""

from __future__ import annotations

from .cache import Cache, Entry
from .demands import Fill
from .errors import CacheError
from .ranges import ByteRange
from .states import DownloadState
from .stored import Transition

__all__ = [
    "ByteRange",
    "Cache",
    "CacheError",
    "DownloadState",
    "Entry",
    "Fill",
    "Transition",
    "__version__",
]

__version__ = "0.1.0"
