"""The editor on the whole screen: keys do what they say, and nothing typed is lost."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pexpect
import pytest
import torch
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.utils import get_cwidth

from esogen.checkpoint.folder import Checkpoint
from esogen.editor.commands import Commands, Stopped
from esogen.editor.screen import EDITING_KEYS, TYPING_KEYS, Screen, folded
from esogen.editor.session import Session
from esogen.language_model import LanguageModel

LEFT, RIGHT, TAB, ENTER, FILL, CTRL_C = "\x1b[D", "\x1b[C", "\t", "\r", "\x06", "\x03"
TEMPLATE = "The [MASK:3] sat on the [MASK:2] cat."


class Typist:
    """Presses keys one after the other, each when the one before has been dealt with."""

    def __init__(self, lm: LanguageModel, folder: Path, typed: str = "") -> None:
        settings = lm.infill_settings(lm.settings(seed=1, steps=4), n=2)
        self.session = Session(lm, settings)
        self.said: list[str] = []
        self.saved: list[str] = []
        commands = Commands(self.session, lm.read_template, self.said.append)
        self.screen = Screen(
            commands,
            typed=typed,
            history=folder / "history",
            save=self.saved.append,
        )

    def press(self, *keys: str, then: Callable[[], None] = lambda: None) -> str | None:
        return asyncio.run(self._press(keys, then))

    async def _press(self, keys: tuple[str, ...], then: Callable[[], None]) -> str | None:
        with create_pipe_input() as pipe:
            running = asyncio.ensure_future(self.screen.run(keys=pipe, output=DummyOutput()))
            for key in keys:
                pipe.send_text(key)
                await asyncio.sleep(0.02)
                while self.screen._steps is not None and not running.done():
                    await asyncio.sleep(0.005)
            then()
            if not running.done():
                pipe.send_text("q")
            return await asyncio.wait_for(running, 10)


@pytest.fixture
def typist(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Typist:
    return Typist(LanguageModel(tiny_checkpoint, torch.device("cpu")), tmp_path)


def shown(typist: Typist) -> str:
    return "".join(item.text for item in typist.screen.items())


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("keys", [TYPING_KEYS, EDITING_KEYS])
def test_every_key_can_be_read_however_narrow_the_terminal(keys: str, columns: int) -> None:
    lines = folded(keys, columns).splitlines()
    assert " · ".join(lines) == keys
    assert max(map(get_cwidth, lines)) <= columns
    assert all(
        get_cwidth(f"{line} · {after.split(' · ')[0]}") > columns for line, after in pairwise(lines)
    )


def test_ctrl_z_suspends_and_types_nothing(typist: Typist, monkeypatch: pytest.MonkeyPatch) -> None:
    suspended: list[str] = []

    def suspend(app: object) -> None:
        suspended.append(typist.screen.template.text)

    monkeypatch.setattr("esogen.editor.screen.Application.suspend_to_background", suspend)
    with pytest.raises(Stopped):
        typist.press("The", "\x1a", " cat", CTRL_C)
    assert suspended == ["The"]
    assert typist.screen.template.text == "The cat"


def test_a_typed_template_is_filled_and_accepted(typist: Typist) -> None:
    accepted = typist.press(TEMPLATE, FILL, ENTER)
    assert accepted is not None
    assert accepted.startswith("The ")
    assert accepted.endswith(" cat.")
    assert accepted == typist.session.current.text(typist.session.engine.tokenizer)
    assert typist.saved == [TEMPLATE, ""]


def test_what_is_shown_is_the_text(typist: Typist) -> None:
    def look() -> None:
        assert shown(typist) == typist.session.current.text(typist.session.engine.tokenizer)

    typist.press(TEMPLATE, FILL, "r", "R", then=look)


def test_keys_go_to_blanks_and_words_and_do_what_they_say(typist: Typist) -> None:
    typist.press(TEMPLATE, FILL, TAB, "r", "u", "U", TAB, "+", "B", "n", "p", "l", "u", "-")
    whats = [state.what for state in typist.session.tree.states]
    assert whats == ["template", "fill", "reroll 1", "length 2 3", "branch", "branch", "lock",
                     "length 2 2"]  # fmt: skip
    assert typist.screen.message == ""


def test_values_are_asked_for(typist: Typist, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    typist.press(TEMPLATE, FILL, "a", "0.25" + ENTER, "t", "0.5" + ENTER, "s", "7" + ENTER, "w",
                 str(path) + ENTER, "a", "\x1b")  # fmt: skip
    knobs = typist.session.current.knobs
    assert (knobs.schedule.alpha_0, knobs.schedule.steps, knobs.draw.temperature) == (0.25, 7, 0.5)
    assert path.read_text() == shown(typist) + "\n"


def test_a_selection_becomes_a_blank(typist: Typist) -> None:
    def find() -> None:
        texts = [item.text for item in typist.screen.items()]
        typist.screen.place = texts.index(" sat")

    typist.press(TEMPLATE, FILL, then=find)
    typist.press("v", RIGHT, "b")
    state = typist.session.current
    assert state.what == "blank 'sat on'"
    assert state.layout.template.texts == ("The ", " ", " the ", " cat.")


def test_a_wrong_key_is_told_and_changes_nothing(typist: Typist) -> None:
    def told() -> None:
        assert "that word was given" in typist.screen.message

    typist.press(TEMPLATE, FILL, "l", then=told)
    assert len(typist.session.tree.states) == 2


def test_a_template_that_cannot_be_filled_can_be_mended(typist: Typist) -> None:
    accepted = typist.press("The [MASK:2 cat", FILL, "\x7f" * 4, "] cat", FILL, ENTER)
    assert accepted is not None
    assert accepted.endswith(" cat")


def test_ctrl_c_leaves_what_was_typed_in_the_working_file(typist: Typist) -> None:
    with pytest.raises(Stopped):
        typist.press("The [MASK", CTRL_C)
    assert typist.saved == ["The [MASK"]


def test_what_is_typed_is_written_when_typing_pauses(
    typist: Typist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esogen.editor.screen.PAUSE", 0)
    with pytest.raises(Stopped):
        typist.press("The", " cat", CTRL_C)
    assert typist.saved == ["The", "The cat"]


def test_what_was_typed_is_written_before_it_is_filled(typist: Typist) -> None:
    typist.press(TEMPLATE, FILL, "e", " Meow.", FILL)
    assert typist.saved[-2:] == [f" Meow.{TEMPLATE}", ""]


def test_an_edit_that_was_left_while_typing_is_resumed_there(
    typist: Typist, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        typist.press(TEMPLATE, FILL, "e", "Meow. ", CTRL_C)
    typist.screen = Screen(
        typist.screen.commands,
        typed=typist.saved[-1],
        history=tmp_path / "history",
        save=typist.saved.append,
    )
    typist.press(FILL)
    assert typist.session.current.what == "template"
    assert shown(typist).startswith("Meow. The ")


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_was_typed_in_the_working_file(
    tiny_folder: Path, tmp_path: Path, signal_: signal.Signals
) -> None:
    work = tmp_path / "work.json"
    child = pexpect.spawn(
        sys.executable,
        ["-m", "esogen", "infill", "--model", str(tiny_folder), "--work", str(work)],
        env={**os.environ, "TERM": "xterm-256color"},
        encoding="utf-8",
        timeout=60,
    )
    child.expect("Ctrl-F fill")
    child.send("The Ж")
    child.expect("Ж")
    child.kill(signal_)
    child.expect(f"kept in {work}")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert json.loads(work.read_text(encoding="utf-8"))["typed"] == "The Ж"


def test_the_last_key_before_a_suspension_is_written(
    typist: Typist, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    monkeypatch.setattr(
        "esogen.editor.screen.Application.suspend_to_background",
        lambda app: saved.extend(typist.saved),
    )
    with pytest.raises(Stopped):
        typist.press("The", "\x1a", CTRL_C)
    assert saved == ["The"]


def test_the_text_may_be_edited_again_and_the_change_undone(typist: Typist) -> None:
    typist.press(TEMPLATE, FILL, "e", " Meow.", FILL, "u")
    assert typist.session.tree.states[-1].what == "template"
    assert "Meow." in typist.session.tree.states[-1].text(typist.session.engine.tokenizer)
    assert typist.session.current.number == 1


def test_a_selection_ends_with_the_text_it_was_made_in(typist: Typist) -> None:
    typist.press(TEMPLATE, FILL, RIGHT, "v", "R", "u", "v", "u", "b", "q")
    assert typist.screen.anchor is None
