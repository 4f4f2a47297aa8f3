"""The commands of the editor as words: what `--plain` reads, and what keys stand for."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from esogen.atomic import replacing
from esogen.editor.session import Session
from esogen.editor.state import State, Word
from esogen.errors import UsageError
from esogen.generate.denoise import Step
from esogen.generate.template import Tokens

T = TypeVar("T")
Steps = Iterator[Step]
NOTHING: Steps = iter(())

HELP: dict[str, str] = {
    "show": "show",
    "reroll": "reroll [BLANK]           fill one blank again, or all that is not locked",
    "next": "next                     the next candidate, made where there is none yet",
    "previous": "previous                 the candidate before",
    "lock": "lock BLANK [WORD]        keep a blank, or one of its words (by number)",
    "unlock": "unlock BLANK [WORD]",
    "blank": "blank TEXT               make a blank where TEXT is given",
    "length": "length BLANK TOKENS      give a blank another length",
    "branch": "branch BLANK [WORD]      back to before that word was decided, and on anew",
    "undo": "undo",
    "redo": "redo",
    "states": "states                   all states, as a tree",
    "goto": "goto STATE               to any of them",
    "steps": "steps N                  decide from here on in N steps",
    "alpha-0": "alpha-0 SHARE            with this share of diffusion",
    "temperature": "temperature T            with this temperature",
    "template": "template TEXT            begin with another text with blanks",
    "write": "write FILE               write the text to a file",
    "accept": "accept                   write the text to stdout and leave",
    "quit": "quit                     leave; --resume returns here",
    "help": "help",
}


class Leave(Exception):  # noqa: N818 - nobody's error
    """The editor is left; `accepted` is the text that was accepted, if one was."""

    def __init__(self, accepted: str | None) -> None:
        super().__init__("left")
        self.accepted = accepted


class Stopped(Exception):  # noqa: N818 - nobody's error
    """Ctrl-C in the editor: all is in the working file."""


@dataclass(frozen=True, slots=True)
class Commands:
    """What each command does. `read` makes tokens of a template, `say` tells the user a line."""

    session: Session
    read: Callable[[str], Tokens]
    say: Callable[[str], None]

    def run(self, line: str) -> Steps:
        """Carry out one command; yields the steps of the network. Raises `UsageError`, `Leave`."""
        name, _, rest = line.strip().partition(" ")
        if name not in HELP:
            raise UsageError(f"there is no command {name!r}; help lists them")
        method: Callable[[str], Steps | None] = getattr(self, f"_{name.replace('-', '_')}")
        steps = method(rest.strip())
        return NOTHING if steps is None else steps

    def _show(self, rest: str) -> None:
        self.say(rendered(self.session.current, self.session))

    def _reroll(self, rest: str) -> Steps:
        return self.session.reroll(_number(rest, "a blank") if rest else None)

    def _next(self, rest: str) -> Steps:
        return self.session.next()

    def _previous(self, rest: str) -> None:
        self.session.previous()

    def _lock(self, rest: str) -> None:
        self.session.lock(self._positions(rest), locked=True)

    def _unlock(self, rest: str) -> None:
        self.session.lock(self._positions(rest), locked=False)

    def _blank(self, rest: str) -> Steps:
        return self.session.blank_out(rest)

    def _length(self, rest: str) -> Steps:
        blank, _, tokens = rest.partition(" ")
        return self.session.resize(_number(blank, "a blank"), _number(tokens, "a length"))

    def _branch(self, rest: str) -> Steps:
        return self.session.branch(self._positions(rest)[0])

    def _undo(self, rest: str) -> None:
        self.session.undo()

    def _redo(self, rest: str) -> None:
        self.session.redo()

    def _states(self, rest: str) -> None:
        self.say(tree(self.session))

    def _goto(self, rest: str) -> None:
        self.session.go_to(_number(rest, "a state"))

    def _steps(self, rest: str) -> None:
        knobs = self.session.current.knobs
        schedule = _valid(lambda: replace(knobs.schedule, steps=_number(rest, "steps")))
        self.session.turn(replace(knobs, schedule=schedule), f"steps {rest}")

    def _alpha_0(self, rest: str) -> None:
        knobs = self.session.current.knobs
        schedule = _valid(lambda: replace(knobs.schedule, alpha_0=_real(rest, "alpha-0")))
        self.session.turn(replace(knobs, schedule=schedule), f"alpha-0 {rest}")

    def _temperature(self, rest: str) -> None:
        knobs = self.session.current.knobs
        draw = _valid(lambda: replace(knobs.draw, temperature=_real(rest, "temperature")))
        self.session.turn(replace(knobs, draw=draw), f"temperature {rest}")

    def _template(self, rest: str) -> Steps:
        return self.session.open(self.read(rest))

    def _write(self, rest: str) -> None:
        try:
            (name,) = shlex.split(rest)
        except ValueError as error:
            raise UsageError(
                'write takes the name of one file; put one with spaces or quotes into "..."'
            ) from error
        path = Path(name)
        try:
            with replacing(path) as scratch:
                scratch.write_text(self._text() + "\n", encoding="utf-8", newline="")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        self.say(f"written to {path}")

    def _accept(self, rest: str) -> None:
        raise Leave(self._text())

    def _quit(self, rest: str) -> None:
        raise Leave(None)

    def _help(self, rest: str) -> None:
        self.say("\n".join(HELP.values()))

    def _text(self) -> str:
        if self.session.current.undecided:
            raise UsageError(
                "there are blanks to be filled yet; reroll fills them, redo goes forward"
            )
        return self.session.current.text(self.session.engine.tokenizer)

    def _positions(self, rest: str) -> tuple[int, ...]:
        """Positions of a blank, or of one of its words, as in `2` and `2 3`."""
        numbers = [_number(each, "a blank and a word") for each in rest.split()]
        if len(numbers) not in (1, 2):
            raise UsageError("give the number of a blank, and of a word in it if you like")
        state = self.session.current
        if len(numbers) == 1:
            return tuple(state.blank(numbers[0]))
        words = state.words(numbers[0], self.session.engine.tokenizer)
        if not 1 <= numbers[1] <= len(words):
            raise UsageError(f"blank {numbers[0]} has {len(words)} words")
        return words[numbers[1] - 1].positions


def rendered(state: State, session: Session) -> str:
    """The text with its blanks numbered in brackets, `*` on words that are locked."""
    shown, blank = [], 0
    for part in state.parts(session.engine.tokenizer):
        if isinstance(part, Word):
            if part.blank != blank:
                blank = part.blank
                shown.append(f"[{blank}: ")
            shown.append(part.text + ("*" if part.locked else ""))
        else:
            shown.append(("]" if blank else "") + part)
    return "".join(shown)


def tree(session: Session) -> str:
    """All states, indented under the one each was made from; the current one is marked."""
    lines: list[str] = []
    children: dict[int | None, list[int]] = {}
    for each in session.tree.states:
        children.setdefault(each.parent, []).append(each.number)
    rest = [(number, 0) for number in reversed(children.get(None, []))]
    while rest:
        number, depth = rest.pop()
        state = session.tree.states[number]
        mark = ">" if number == session.current.number else " "
        text = state.text(session.engine.tokenizer)
        lines.append(f"{mark} {number:>3} {'  ' * depth}{state.what}: {text!r}")
        rest += [(child, depth + 1) for child in reversed(children.get(number, []))]
    return "\n".join(lines)


_DIGITS = 9
"""Of the largest number that a command takes; no text has that many of anything."""


def _number(word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= _DIGITS):
        raise UsageError(f"{word!r} is not {what}; give a whole number")
    return int(word)


def _real(word: str, what: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"{what} is {word!r}; it must be a number") from None


def _valid(make: Callable[[], T]) -> T:
    """What `make` makes; a value out of range is a wrong use."""
    try:
        return make()
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
