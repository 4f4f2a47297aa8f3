"""What a terminal may be shown: text without control characters, one status line, dim words."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

_REPLACEMENT = "\ufffd"
_KEPT = "\n\t"
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_VISIBLE: Mapping[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys(map(ord, _BIDI), _REPLACEMENT),
    **dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT),
}
_BREAKS = re.compile(r"[\n\t]+")
_START_OVER = "\r\x1b[2K"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def visible(text: str) -> str:
    """`text` with every character that could steer a terminal replaced by a symbol for it.

    Newlines and tabs stay. ASCII controls become their pictures (ESC is ␛); 8-bit controls,
    marks that change the direction of writing and lone surrogates become U+FFFD.
    """
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """`text` made `visible`, on a single line."""
    return visible(_BREAKS.sub(" ", text))


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal; a closed or missing one is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Console:
    """What goes to stderr while a command works: nothing, unless somebody looks.

    `quiet` as in `--quiet`. `shown`: not quiet, and stderr is a terminal. `steerable`: one that
    understands escape codes. `colored`: it may be sent colours.
    """

    stream: TextIO | None
    quiet: bool
    shown: bool
    steerable: bool
    colored: bool

    @classmethod
    def stderr(cls, *, quiet: bool = False, no_color: bool = False) -> "Console":
        """The console of this process, by its streams, environment and these two flags."""
        shown = is_terminal(sys.stderr) and not quiet
        forced = bool(os.environ.get("FORCE_COLOR"))
        smart = os.environ.get("TERM") != "dumb"
        refused = no_color or bool(os.environ.get("NO_COLOR"))
        return cls(
            sys.stderr, quiet, shown, shown and smart, shown and (smart or forced) and not refused
        )

    def status(self, text: str) -> None:
        """Write `text` over the status line."""
        if self.steerable:
            self._write(_START_OVER + one_line(text)[: self._columns() - 1])

    def clear(self) -> None:
        """Take the status line away."""
        if self.steerable:
            self._write(_START_OVER)

    def say(self, text: str) -> None:
        """Write a line that stays, also where no terminal is; dim where there are colours."""
        if not self.quiet:
            self.clear()
            line = one_line(text)
            self._write((f"{_DIM}{line}{_PLAIN}" if self.colored else line) + "\n")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno() if self.stream else -1).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()
