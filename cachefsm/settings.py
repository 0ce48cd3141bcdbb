"""An argument parser whose options have twins in the environment. No grammar here.

Every *setting* can also be given in the environment: ``--cache-dir`` as
``CACHEFSM_CACHE_DIR``, a repeatable one as a list separated by white space. The
command line wins.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from .errors import UsageError
from .urls import redact

__all__ = ["YES", "Parser", "hide_secrets", "typed"]

YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})
_NO_COMMAND = re.compile(r"argument COMMAND: invalid choice: ('.*?')(?: |$)")
# To the last character that doesn't rather belong to the sentence around it.
_URL = re.compile(r"https?://[^\s'\"]*[^\s'\",;:.]", re.IGNORECASE)


def hide_secrets(text: str) -> str:
    """Return *text* with the secrets of every URL in it left out."""
    return _URL.sub(lambda match: redact(match[0]), text)


@dataclass(frozen=True)
class _Setting:
    """An option with a twin in the environment; *read* parses one value of it."""

    name: str
    read: Callable[[str], Any] | None  # None: a switch
    default: Any
    many: bool
    separator: str | None = None  # of a list in the environment: any white space
    stands_alone: bool = False  # a list that may be given without a value, as a switch

    @property
    def twin(self) -> str:
        return f"CACHEFSM_{self.name.upper()}"

    def from_text(self, text: str) -> Any:
        if self.read is None:
            if text.lower() not in YES | _NO:
                raise argparse.ArgumentTypeError(f"{text!r} is neither 1 nor 0")
            return text.lower() in YES
        if not self.many:
            return self.read(text)
        if self.stands_alone and text.lower() in _NO:
            return []
        return [self.read(part.strip()) for part in text.split(self.separator) if part.strip()]


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line, and whose options may have twins."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)
        self._settings: list[_Setting] = []

    def error(self, message: str) -> NoReturn:
        """Print *message* as one line, without the usage that argparse would add, and exit."""
        unknown = _NO_COMMAND.match(message)
        if unknown:
            message = f"there is no command {unknown[1]}"
        line = " ".join(hide_secrets(message).split())
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")

    def setting(
        self,
        flag: str,
        *,
        help: str,  # noqa: A002 - argparse's word for it
        read: Callable[[str], Any] | None = str,
        default: Any = None,
        many: bool = False,
        separator: str | None = None,
        **more: Any,
    ) -> None:
        """Add an option that the environment can set as well; a switch if *read* is None.

        A repeatable one's values stand in the environment between *separator*s.
        """
        name, stands_alone = flag[2:].replace("-", "_"), more.get("nargs") == "?"
        setting = _Setting(name, read, default, many, separator, stands_alone)
        self._settings.append(setting)
        if read is None:
            more["action"] = "store_true"
        else:
            more["type"] = typed(read)
            if many:
                more["action"] = "append"
        # Absent unless given, so that settle() can tell.
        more["default"] = argparse.SUPPRESS
        self.add_argument(flag, help=f"{help} [{setting.twin}]", **more)

    def settle(self, options: argparse.Namespace, environ: Mapping[str, str]) -> None:
        """Set options that the command line did not: from the environment, or by default."""
        for setting in self._settings:
            if hasattr(options, setting.name):
                continue
            text = environ.get(setting.twin, "").strip()
            value = setting.default() if callable(setting.default) else setting.default
            if text:
                try:
                    value = setting.from_text(text)
                except (UsageError, argparse.ArgumentTypeError) as error:
                    self.error(f"{setting.twin}: {error}")
            setattr(options, setting.name, value)


def typed(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return *read* with errors as argparse wants them."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
