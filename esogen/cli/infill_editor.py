"""`esogen infill` as an editor: on the whole screen, or line by line with --plain."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esogen.cli.infill_run import Place, Run, Setup, load
from esogen.cli.output import opened
from esogen.cli.terminal import is_terminal, takes_escape_codes
from esogen.errors import EsogenError, Interrupted, UsageError
from esogen.visible import visible

if TYPE_CHECKING:
    from esogen.editor.commands import Commands
    from esogen.generate.template import Tokens


@dataclass(frozen=True, slots=True)
class Desk:
    """Where the working file is, how the editor is worked, and the seed if one was asked for."""

    work: Path
    plain: bool
    resume: bool
    seed: int | None


def default_work_file() -> Path:
    """`esogen/infill.json` in the folder for what programs remember."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "esogen" / "infill.json"


def edit(
    setup: Setup, desk: Desk, place: Place, text: str, read: Callable[[Run, str], "Tokens"]
) -> None:
    """Let a text be edited; what is accepted goes where texts go."""
    if desk.resume and text:
        raise UsageError("--resume goes on with the text of the working file; leave TEMPLATE out")
    run = load(setup, place.console)
    place.console.clear()
    paper = _Paper(desk.work, run, begun=desk.resume)
    try:
        accepted, wrong = _at(desk, paper, place, text, lambda template: read(run, template))
    except KeyboardInterrupt:
        place.console.clear()
        raise Interrupted(f"interrupted: {paper.kept}") from None
    if accepted is not None:
        with opened(place.output) as out:
            out.write(accepted + "\n")
    else:
        place.console.say(paper.kept)
    if wrong and not is_terminal(sys.stdin):
        raise EsogenError(f"{wrong} of the commands went wrong; they are named above")


class _Paper:
    """What is edited, and its working file.

    That is not begun, and the one of an earlier session not moved, before there is something to
    keep.
    """

    def __init__(self, work: Path, run: Run, *, begun: bool) -> None:
        from esogen.editor.session import Session

        self.session, self.name = Session(run.lm, run.settings), run.lm.checkpoint.name
        self._work, self._begun = work, begun

    @property
    def kept(self) -> str:
        """What is said when it is left."""
        if not self._begun:
            return "nothing was written, so nothing is kept"
        return f"kept in {self._work}; --resume returns to it"

    def save(self, unfilled: str) -> None:
        """Write all of it, with a template that is not filled yet."""
        from esogen.editor import work_file

        if not self._begun:
            if not unfilled and not self.session.tree.states:
                return
            work_file.set_aside(self._work)
            self._begun = True
        work_file.write(self._work, self.session, self.name, typed=unfilled)


def _at(
    desk: Desk, paper: _Paper, place: Place, text: str, read: Callable[[str], "Tokens"]
) -> tuple[str | None, int]:
    from esogen.editor import work_file
    from esogen.editor.commands import Commands, Stopped

    session, typed = paper.session, text
    if desk.resume:
        value = work_file.read(desk.work, paper.name, desk.seed)
        work_file.resume(value, session, desk.work)
        typed = str(value.get("typed", ""))
    else:
        work_file.check_ours(desk.work)

    def say(line: str) -> None:
        place.console.show(visible(line))

    commands = Commands(session, read, say)
    try:
        if desk.plain:
            return _plain(commands, typed, paper.save)
        return _screen(commands, typed, desk, paper.save), 0
    except Stopped:
        raise KeyboardInterrupt from None


def _plain(commands: "Commands", typed: str, save: Callable[[str], None]) -> tuple[str | None, int]:
    from esogen.editor import plain

    session = commands.session
    if not session.tree.states:
        if not typed:
            raise UsageError("--plain needs a TEMPLATE, or --file, or --resume; give one")
        save(typed)  # from here on there is something to resume
        for _ in session.open(commands.read(typed)):
            pass
        save("")
    return plain.edit(commands, _lines(), lambda: save(""))


def _lines() -> Iterator[str]:
    if sys.stdin is not None:
        yield from sys.stdin


def _screen(
    commands: "Commands", typed: str, desk: Desk, save: Callable[[str], None]
) -> str | None:
    if not takes_escape_codes():
        raise UsageError(
            "the editor draws on the whole terminal, and TERM or CI says that this one cannot be"
            " drawn on; edit line by line with --plain"
        )
    from esogen.editor.screen import Screen

    screen = Screen(commands, typed=typed, history=desk.work.with_name("history"), save=save)
    save(typed)
    if hasattr(signal, "SIGHUP"):  # a terminal that is closed leaves the editor as Ctrl-C does
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    return asyncio.run(screen.run())
