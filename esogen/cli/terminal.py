"""What stderr may be shown: one status line, lines that stay, dim words."""

import os
import sys
from dataclasses import dataclass
from typing import TextIO

from esogen.visible import one_line

_START_OVER = "\r\x1b[2K"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal; a closed or missing one is not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def takes_escape_codes() -> bool:
    """Whether a terminal of this process understands them; what CI shows for one does not."""
    usual = "dumb" if os.name == "posix" else "windows"
    automatic = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return os.environ.get("TERM", usual) not in ("", "dumb", "unknown") and not automatic


def colors_refused(*, no_color: bool) -> bool:
    """Whether `--no-color` or the environment asks for one colour."""
    return no_color or bool(os.environ.get("NO_COLOR"))


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
        smart = takes_escape_codes()
        colored = shown and (smart or forced) and not colors_refused(no_color=no_color)
        return cls(sys.stderr, quiet, shown, shown and smart, colored)

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

    def show(self, text: str) -> None:
        """Write lines that stay, as they are, also where no terminal is."""
        if not self.quiet:
            self.clear()
            self._write(text + "\n")

    def report(self, problem: str) -> None:
        """Write a line about something that went wrong while the command goes on, even if quiet."""
        self.clear()
        self._write(f"esogen: {one_line(problem)}\n")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno() if self.stream else -1).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()
