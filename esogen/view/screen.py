"""The second screen of a terminal, borrowed while something moves and given back as it was.

What is drawn there leaves no trace in the scrollback, and a resize can spoil nothing that was
there before. Every way out gives the screen and the cursor back, as long as the process can act.
"""

import atexit
import os
import select
import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Self

from esogen.view.stage import Size

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows these shows the frame when it is whole; the others ignore them."""

_USUAL = Size(80, 24)
_LEAVING = [
    getattr(signal, name) for name in ("SIGTSTP", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
"""Signals that stop or end a process at once unless it listens."""


class Screen:
    """The terminal behind a file descriptor; a context that gives it back at its end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._entered = False
        self._listening: list[signal.Signals] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def size(self) -> Size:
        """Its size now; a terminal that does not know counts as 80 by 24."""
        try:
            found = os.get_terminal_size(self._descriptor)
        except OSError:
            return _USUAL
        return Size(found.columns or _USUAL.columns, found.lines or _USUAL.rows)

    def ready(self) -> bool:
        """Whether a frame would be seen at once: in the foreground, and not held up."""
        return self._in_foreground() and self._takes_output()

    def draw(self, rows: Iterable[str]) -> None:
        """Show these rows, one for each of the screen, in one write.

        A row is erased first: behind a full one the cursor still stands on its last character.
        """
        first = "" if self._entered else _ENTER
        lines = "".join(f"\x1b[{row};1H\x1b[2K{text}" for row, text in enumerate(rows, 1))
        if not self._entered:
            self._entered = True
            atexit.register(self.leave)
            self._listen()
        self._write(f"{first}{_BEGIN}{lines}\x1b[H{_END}")

    def leave(self) -> None:
        """Give the terminal back as it was before the first frame."""
        if self._entered:
            self._write(_LEAVE)
            self._entered = False
            atexit.unregister(self.leave)
            self._stop_listening()

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except (AttributeError, OSError):  # no such thing, or a terminal of another session
            return True

    def _takes_output(self) -> bool:
        try:
            return bool(select.select([], [self._descriptor], [], 0)[1])
        except (OSError, ValueError):  # cannot be asked
            return True

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "replace"))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # it has hung up; what is sampled is not lost by that
            return

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _LEAVING:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._hand_back)
                    self._listening.append(number)

    def _stop_listening(self) -> None:
        while self._listening:
            signal.signal(self._listening.pop(), signal.SIG_DFL)

    def _hand_back(self, number: int, frame: FrameType | None) -> None:
        """Leave, then let the signal do what it does; drawing again comes back here."""
        self.leave()
        os.kill(os.getpid(), number)
