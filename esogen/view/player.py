"""A replay in the terminal: the same view as live, and keys to move about in it."""

import os
import re
import select
import signal
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self

from esogen.view import theme
from esogen.view.flow import Line, cells
from esogen.view.scene import LEAD
from esogen.view.screen import Screen
from esogen.view.stage import Painter, Report, Size, Stage
from esogen.view.tape import Tape

SPEEDS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
JUMP = 10
"""Steps that a jump skips."""

_IDLE = 0.5
"""Seconds after which the screen is looked at again, for it may have another size."""
_FRAME = 1 / 25
_HELP = (
    *("space {play}", "←→ step", "↑↓ speed", "[ ] jump {jump}", "home end", "7 ⏎ go to step 7"),
    *("n p text", "q quit"),
)
_HELP_ORDER = (0, 7, 1, 2, 6, 3, 4, 5)
"""Which of these are told first where there is little room."""

_KEYS: Mapping[str, str] = {
    "\x1b[C": "forward",
    "\x1bOC": "forward",
    "l": "forward",
    "\x1b[D": "back",
    "\x1bOD": "back",
    "h": "back",
    "\x1b[A": "faster",
    "\x1bOA": "faster",
    "+": "faster",
    "\x1b[B": "slower",
    "\x1bOB": "slower",
    "-": "slower",
    "]": "ahead",
    "\x1b[6~": "ahead",
    "[": "behind",
    "\x1b[5~": "behind",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    " ": "play",
    "n": "next",
    "p": "previous",
    "q": "quit",
    "\x04": "quit",
    "\r": "go",
    "\n": "go",
    "\x7f": "erase",
}
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|[^\x1b]")
_BEGUN = re.compile(r"\x1b(?:\[[0-9;]*|O)?\Z")
_DIGITS = 9


class Player:
    """Where a replay stands, apart from any terminal: keys and seconds in, rows of lines out.

    `tape` gives text number i of `texts`, which are read as they are come to.
    """

    def __init__(
        self, tape: Callable[[int], Tape], texts: int, stage: Stage, speed: float = 1.0
    ) -> None:
        self._tape_of, self._texts, self._stage = tape, texts, stage
        self._actions: Mapping[str, Callable[[], None]] = {
            "forward": lambda: self._go(self.after + 1),
            "back": lambda: self._go(self.after - 1),
            "ahead": lambda: self._go(self.after + JUMP),
            "behind": lambda: self._go(self.after - JUMP),
            "home": lambda: self._go(0),
            "end": lambda: self._go(self.tape.calls),
            "faster": lambda: self._accelerate(1),
            "slower": lambda: self._accelerate(-1),
            "play": self._toggle,
            "next": lambda: self._open(self.number + 1),
            "previous": lambda: self._open(self.number - 1),
            "go": self._go_typed,
            "erase": self._erase,
            "quit": self._quit,
        }
        self.speed = speed
        self.playing = self.over = False
        self._typed = ""
        self._open(0)

    def press(self, key: str) -> None:
        """Do what a key is for; a key that is for nothing does nothing."""
        if key.isascii() and key.isdigit():
            self._typed = (self._typed + key)[:_DIGITS]
            return
        action = _KEYS.get(key)
        if action not in ("go", "erase"):
            self._typed = ""
        if action:
            self._actions[action]()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if not self.playing:
            return
        self._second += seconds * self.speed
        while self.after < self.tape.calls and self._starts(self.after) <= self._second:
            self.after += 1
        self.playing = self.after < self.tape.calls

    @property
    def due(self) -> float | None:
        """Seconds until something changes by itself; None if nothing does."""
        if not self.playing:
            return None
        return max(0.0, (self._starts(self.after) - self._second) / self.speed)

    def rows(self, size: Size, seconds: float) -> list[Line]:
        """What stands on a screen of this size, so many seconds after the beginning."""
        report = Report(seconds, 0, note=" · ".join(self._notes()))
        spare = 1 if size.rows >= 6 else 0
        view = Size(size.columns, size.rows - spare)
        rows = self._stage.rows([self.tape.frame(self.after)], report, view)
        if spare:
            rows += [Line([], 0)] * (view.rows - len(rows))
            rows.append(self._help(size.columns))
        return rows

    def _notes(self) -> Iterator[str]:
        if self._typed:
            yield f"go to step {self._typed}"
        if not self.playing:
            yield "end" if self.after == self.tape.calls else "paused"
        if self.speed != 1:
            yield f"{self.speed:g}×"
        if self._texts > 1:
            yield f"text {self.number + 1} of {self._texts}"

    def _help(self, columns: int) -> Line:
        """As many of the keys as fit, the most needed first, in their usual order."""
        margin, gap = (2 if columns >= 60 else 0), "   "
        kept: set[int] = set()
        for number in _HELP_ORDER:
            if "text" not in _HELP[number] or self._texts > 1:
                wider = kept | {number}
                if margin + cells(gap.join(self._words(wider))) <= columns:
                    kept = wider
        text = " " * margin + gap.join(self._words(kept))
        return Line([(text, theme.QUIET)], cells(text))

    def _words(self, numbers: set[int]) -> Sequence[str]:
        fill = {"play": "pauses" if self.playing else "plays", "jump": JUMP}
        return [_HELP[number].format(**fill) for number in sorted(numbers)]

    def _starts(self, call: int) -> float:
        return self.tape.timeline.starts[call]

    def _open(self, number: int) -> None:
        self.number = number % self._texts
        self.tape = self._tape_of(self.number)
        self._start()

    def _start(self) -> None:
        self.after, self._second = 0, 0.0
        self.playing = self.tape.calls > 0

    def _go(self, after: int) -> None:
        self.playing = False
        self.after = min(max(after, 0), self.tape.calls)
        self._second = self._starts(self.after - 1) if self.after else LEAD

    def _go_typed(self) -> None:
        if self._typed:
            self._go(int(self._typed))
        self._typed = ""

    def _erase(self) -> None:
        self._typed = self._typed[:-1]

    def _accelerate(self, by: int) -> None:
        near = min(range(len(SPEEDS)), key=lambda i: abs(SPEEDS[i] - self.speed))
        self.speed = SPEEDS[min(max(near + by, 0), len(SPEEDS) - 1)]

    def _toggle(self) -> None:
        if self.after == self.tape.calls:
            self._start()
        else:
            self.playing = not self.playing

    def _quit(self) -> None:
        self.over = True


def play(player: Player, screen: Screen, painter: Painter, keyboard: int) -> None:
    """Play until somebody quits; `keyboard` is the file descriptor of a terminal.

    Screen and keyboard are given back however it ends.
    """
    began = last = time.monotonic()
    keys = Keyboard(keyboard)

    def leave() -> None:
        screen.leave()
        keys.leave()

    with screen, keys, _stopping(leave, keys.enter):
        while not player.over:
            now = time.monotonic()
            player.advance(now - last)
            last = now
            rows = player.rows(screen.size(), now - began)
            screen.draw(map(painter.text, rows))
            due = player.due
            pause = _IDLE if due is None else min(max(due, _FRAME), _IDLE)
            for key in keys.pressed(pause):
                player.press(key)


@contextmanager
def _stopping(leave: Callable[[], None], enter: Callable[[], None]) -> Iterator[None]:
    """Before a signal stops or ends the process, `leave`; should it go on, `enter`."""

    def hand_back(number: int, frame: FrameType | None) -> None:
        leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, hand_back)
        enter()

    numbers = (signal.SIGTSTP, signal.SIGHUP, signal.SIGQUIT)
    usual = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if usual[number] is signal.SIG_DFL:
                signal.signal(number, hand_back)
        yield
    finally:
        for number in numbers:
            signal.signal(number, usual[number])


class Keyboard:
    """Keys as they are pressed, without Enter and unechoed; Ctrl-C still interrupts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._usual = termios.tcgetattr(descriptor)
        self._begun = ""

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Take the keys one by one."""
        tty.setcbreak(self._descriptor, termios.TCSADRAIN)

    def leave(self) -> None:
        """Give the keyboard back as it was."""
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._usual)

    def pressed(self, seconds: float) -> Sequence[str]:
        """The keys that were pressed; waits for the first of them so many seconds at most."""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return ()
        data = os.read(self._descriptor, 1024)
        if not data:  # the terminal has hung up
            return ("q",)
        text = self._begun + data.decode(errors="ignore")
        begun = _BEGUN.search(text)
        self._begun = begun[0] if begun else ""
        return _SEQUENCE.findall(text.removesuffix(self._begun))
