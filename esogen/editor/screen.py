"""The editor on the whole screen: type a text with blanks, see it filled, change it by keys.

The only file with prompt_toolkit: it reads keys, edits lines and draws. What keys do is said in the
words of `commands`.
"""

import asyncio
import math
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    ConditionalContainer,
    DynamicContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    Window,
)
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.widgets import TextArea

from esogen.editor.commands import Commands, Leave, Steps, Stopped
from esogen.editor.state import State, Word
from esogen.errors import EsogenError
from esogen.visible import visible

TYPING_KEYS = (
    "Ctrl-F fill · Ctrl-C leave"
    " · [MASK] one token · [MASK:8] eight · [MASK:2-8] a length to be found · ___ a short one"
)
EDITING_KEYS = (
    "←→ word · Tab blank · r reroll · R all · n/p candidate · l/L lock word/blank"
    " · v select · b make a blank · +/- length · B branch here · u undo · U redo"
    " · a alpha_0 · s steps · t temperature · e text · w write · Enter accept · q quit"
)
_BETWEEN = " · "
STYLE = Style.from_dict(
    {
        "mask": "ansibrightblack",
        "unsure": "ansired",
        "fair": "ansiyellow",
        "sure": "ansigreen",
        "earlier": "bold",
        "locked": "underline",
        "cursor": "reverse",
        "message": "bold",
        "keys": "ansibrightblack",
    }
)
_CERTAINTY = ((0.3, "class:unsure"), (0.7, "class:fair"), (math.inf, "class:sure"))
"""Probability of a token, in the geometric mean over a word, below which it has each colour."""
PAUSE = 0.5
"""Seconds without a key until what is typed is written: that takes 0.1 s in a long edit."""
_GIVEN_WORDS = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Given:
    """A word of a given text: which of the texts, and where in it."""

    which: int
    start: int
    text: str


Item = Given | Word


class Screen:
    """What is on the screen, and what the keys do. `typed` is the template being typed.

    `save` is called after every change and when typing pauses, with what is typed and not filled
    yet.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        typed: str,
        history: Path,
        save: Callable[[str], None],
    ) -> None:
        self.commands = replace(commands, say=self._tell)
        self._save = save
        self.message, self.place = "", 0
        self.anchor: int | None = None
        self._steps: Steps | None = None
        self._asked = ""
        self._cancelled = False
        history.parent.mkdir(parents=True, exist_ok=True)
        self.template = TextArea(typed, multiline=True, history=FileHistory(str(history)))
        self.template.buffer.on_text_changed += self._typed
        self._pause: asyncio.TimerHandle | None = None
        self.answer = TextArea(multiline=False, height=1, accept_handler=self._answered)
        self.typing = bool(typed) or not commands.session.tree.states

    async def run(self, *, keys: Input | None = None, output: Output | None = None) -> str | None:
        """Edit until it is left: the accepted text, or None. Raises `Stopped`.

        However it is left, what is typed is written then.
        """
        try:
            return await self._application(keys, output).run_async()
        finally:
            self._save_typed()

    def _application(self, keys: Input | None, output: Output | None) -> "Application[str | None]":
        text = Window(FormattedTextControl(self._text, focusable=True), wrap_lines=True)
        body = DynamicContainer(lambda: self.template if self.typing else text)
        asking = ConditionalContainer(self.answer, Condition(lambda: bool(self._asked)))
        layout = HSplit(
            [
                body,
                Window(
                    FormattedTextControl(self._status), dont_extend_height=True, wrap_lines=True
                ),
                asking,
                Window(
                    FormattedTextControl(self._keys), dont_extend_height=True, style="class:keys"
                ),
            ]
        )
        self._editing_window = text
        return Application(
            layout=Layout(layout, focused_element=self.template if self.typing else text),
            key_bindings=self._bindings(),
            style=STYLE,
            full_screen=True,
            input=keys,
            output=output or create_output(always_prefer_tty=True),
        )

    def _tell(self, line: str) -> None:
        self.message = line

    def _typed(self, _: object) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._pause = asyncio.get_running_loop().call_later(PAUSE, self._save_typed)

    def _save_typed(self) -> None:
        """Write what is typed, if it is not written yet."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._save(self.template.text)

    # What is drawn

    @property
    def state(self) -> State:
        """What is shown: the state that is being decided, or the current one."""
        session = self.commands.session
        return session.live or session.current

    def items(self) -> list[Item]:
        """The text as words, those of blanks and those that are given."""
        found: list[Item] = []
        if not self.commands.session.tree.states:
            return found
        which = 0
        for part in self.state.parts(self.commands.session.engine.tokenizer):
            if isinstance(part, Word):
                found.append(part)
                continue
            found += [Given(which, m.start(), m[0]) for m in _GIVEN_WORDS.finditer(part)]
            which += 1
        return found

    def _text(self) -> StyleAndTextTuples:
        fragments: StyleAndTextTuples = []
        columns, column = get_app().output.get_size().columns, 0
        for place, item in enumerate(self.items()):
            style = _style(item, self.state)
            if place in self._selected():
                style += " class:cursor"
            text = visible(item.text)
            if column + get_cwidth(text) > columns:
                if text[:1] == " ":
                    text, column = "\n" + text[1:], 0
                elif fragments and fragments[-1][1] == " ":
                    fragments[-1], column = ("", "\n"), 0
            last_line = text.rpartition("\n")[2]
            column = get_cwidth(last_line) + (0 if "\n" in text else column)
            if place == self.place:
                fragments.append(("[SetCursorPosition]", ""))
            fragments.append((style, text))
        return fragments

    def _selected(self) -> range:
        anchor = self.place if self.anchor is None else self.anchor
        return range(min(anchor, self.place), max(anchor, self.place) + 1)

    def _status(self) -> StyleAndTextTuples:
        session = self.commands.session
        if self._asked:
            return [("class:message", f"{self._asked}: type a value, then Enter; Escape leaves it")]
        if not session.tree.states:
            told = "" if self._steps is None else "looking for the best lengths ..."
            return [("class:message", visible(self.message) or told)]
        state = self.state
        knobs = state.knobs
        told = (
            f"state {state.number} · {session.cache.computed} tokens computed"
            f" · alpha_0 {knobs.schedule.alpha_0:g} · steps {knobs.schedule.steps}"
            f" · temperature {knobs.draw.temperature:g}"
        )
        return [("class:message", visible(self.message) or told)]

    def _keys(self) -> str:
        columns = get_app().output.get_size().columns
        return folded(TYPING_KEYS if self.typing else EDITING_KEYS, columns)

    # What keys do

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        typing = Condition(lambda: self.typing)
        asking = Condition(lambda: bool(self._asked))
        editing = ~typing & ~asking & Condition(lambda: self._steps is None)

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if self._steps is None:
                event.app.exit(exception=Stopped())
            self._cancelled = True

        @keys.add("c-z")
        def _(event: KeyPressEvent) -> None:
            self._save_typed()
            event.app.suspend_to_background()

        @keys.add("c-f", filter=typing)
        def _(event: KeyPressEvent) -> None:
            self._fill(event)

        @keys.add("escape", filter=asking, eager=True)
        def _(event: KeyPressEvent) -> None:
            self._stop_asking()

        for key, action in self._actions().items():
            keys.add(key, filter=editing)(action)
        return keys

    def _actions(self) -> dict[str, Callable[[KeyPressEvent], None]]:
        def does(line: Callable[[], str]) -> Callable[[KeyPressEvent], None]:
            return lambda event: self._start(event, lambda: self.commands.run(line()))

        def asks(what: str) -> Callable[[KeyPressEvent], None]:
            return lambda event: self._ask(event, what)

        return {
            "r": does(lambda: f"reroll {self._blank()}"),
            "R": does(lambda: "reroll"),
            "n": does(lambda: "next"),
            "p": does(lambda: "previous"),
            "l": does(lambda: self._locking(whole=False)),
            "L": does(lambda: self._locking(whole=True)),
            "+": does(lambda: f"length {self._blank()} {self._length() + 1}"),
            "-": does(lambda: f"length {self._blank()} {self._length() - 1}"),
            "B": does(lambda: f"branch {self._blank()} {self._word()}"),
            "u": does(lambda: "undo"),
            "U": does(lambda: "redo"),
            "q": does(lambda: "quit"),
            "enter": does(lambda: "accept"),
            "a": asks("alpha-0"),
            "s": asks("steps"),
            "t": asks("temperature"),
            "w": asks("write"),
            "b": self._make_blank,
            "v": self._select,
            "e": self._edit_text,
            "left": lambda event: self._move(-1),
            "right": lambda event: self._move(1),
            "tab": lambda event: self._next_blank(),
        }

    def _move(self, by: int) -> None:
        self.place = max(0, min(self.place + by, len(self.items()) - 1))
        self.message = ""

    def _next_blank(self) -> None:
        items = self.items()
        here = items[self.place] if items else None
        blank = here.blank if isinstance(here, Word) else 0
        order = [*range(self.place + 1, len(items)), *range(self.place + 1)]
        for place in order:
            item = items[place]
            if isinstance(item, Word) and item.blank != blank:
                self.place = place
                return

    def _select(self, event: KeyPressEvent) -> None:
        self.anchor = self.place if self.anchor is None else None

    def _item(self) -> Word:
        items = self.items()
        item = items[self.place] if self.place < len(items) else None
        if not isinstance(item, Word):
            raise EsogenError("that word was given; go to a blank with Tab, or make one with b")
        return item

    def _blank(self) -> int:
        return self._item().blank

    def _word(self) -> int:
        item = self._item()
        words = [each for each in self.items() if isinstance(each, Word)]
        return [each for each in words if each.blank == item.blank].index(item) + 1

    def _length(self) -> int:
        return self.state.layout.lengths[self._blank() - 1]

    def _locking(self, *, whole: bool) -> str:
        item = self._item()
        word = "" if whole else f" {self._word()}"
        return f"{'unlock' if item.locked else 'lock'} {item.blank}{word}"

    def _make_blank(self, event: KeyPressEvent) -> None:
        chosen = [self.items()[place] for place in self._selected()]
        given = [each for each in chosen if isinstance(each, Given)]
        self.anchor = None
        if len(given) < len(chosen) or len({each.which for each in given}) != 1:
            self.message = "a blank is made of given words that stand together; select such"
            return
        length = sum(len(each.text) for each in given)
        first = given[0]
        self._start(
            event, lambda: self.commands.session.blank_part(first.which, first.start, length)
        )

    def _edit_text(self, event: KeyPressEvent) -> None:
        self.template.text = str(self.commands.session.current.layout.template)
        self.typing = True
        event.app.layout.focus(self.template)

    def _fill(self, event: KeyPressEvent) -> None:
        text = self.template.text
        try:
            tokens = self.commands.read(text)
        except EsogenError as error:
            self.message = str(error)
            return
        self._save_typed()
        self.template.buffer.append_to_history()
        self.typing, self.place = False, 0
        event.app.layout.focus(self._editing_window)
        self._start(event, lambda: self.commands.session.open(tokens))

    def _ask(self, event: KeyPressEvent, what: str) -> None:
        self._asked, self.answer.text = what, ""
        event.app.layout.focus(self.answer)
        self._event = event

    def _answered(self, _: object) -> bool:
        line, event = f"{self._asked} {self.answer.text}", self._event
        self._stop_asking()
        self._start(event, lambda: self.commands.run(line))
        return False

    def _stop_asking(self) -> None:
        self._asked = ""
        self._event.app.layout.focus(self._editing_window)

    def _start(self, event: KeyPressEvent, make: Callable[[], Steps]) -> None:
        """Begin something; the network works in a thread, and every step is drawn."""
        self.message, self.anchor, self._cancelled = "", None, False
        try:
            self._steps = make()
        except Leave as leave:
            event.app.exit(result=leave.accepted)
        except EsogenError as error:
            self.message = str(error)
        else:
            event.app.create_background_task(self._go_on(event.app))

    async def _go_on(self, app: "Application[str | None]") -> None:
        steps, loop = self._steps, asyncio.get_running_loop()
        try:
            while steps is not None and not self._cancelled:
                if not await loop.run_in_executor(None, _one_more, steps):
                    break
                app.invalidate()
        except EsogenError as error:
            self.message = str(error)
        finally:
            if self._cancelled and isinstance(steps, Generator):
                steps.close()
                self.message = "stopped; the text is as it was before"
            self._steps = None
            if not self.commands.session.tree.states:
                self.typing = True
                app.layout.focus(self.template)
            else:
                self.place = min(self.place, len(self.items()) - 1)
                self._save("")
            app.invalidate()


def folded(keys: str, columns: int) -> str:
    """The keys in lines of so many columns, each key with what it does on one line."""
    first, *others = keys.split(_BETWEEN)
    lines = [first]
    for key in others:
        longer = f"{lines[-1]}{_BETWEEN}{key}"
        if get_cwidth(longer) <= columns:
            lines[-1] = longer
        else:
            lines.append(key)
    return "\n".join(lines)


def _one_more(steps: Iterator[object]) -> bool:
    return next(steps, None) is not None


def _style(item: Item, state: State) -> str:
    """Given words plain; just decided by certainty, earlier ones calm, masks grey."""
    if isinstance(item, Given):
        return ""
    style = "class:locked " if item.locked else ""
    if (state.tokens_L[[*item.positions]] < 0).any():
        return "class:mask"
    if not set(item.positions) & set(state.decided):
        return style + "class:earlier"
    certainty = math.exp(item.log_prob / len(item.positions))
    return style + next(name for limit, name in _CERTAINTY if certainty < limit)
