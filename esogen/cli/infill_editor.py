"""`esogen infill` as an editor: on the whole screen, or line by line with --plain."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esogen.cli.infill_run import Place, Run, Setup, load
from esogen.cli.output import opened
from esogen.cli.terminal import is_terminal
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
    accepted, wrong = _at(desk, run, place, text, lambda template: read(run, template))
    if accepted is not None:
        with opened(place.output) as out:
            out.write(accepted + "\n")
    else:
        place.console.say(f"kept in {desk.work}; --resume returns to it")
    if wrong and not is_terminal(sys.stdin):
        raise EsogenError(f"{wrong} of the commands went wrong; they are named above")


def _at(
    desk: Desk, run: Run, place: Place, text: str, read: Callable[[str], "Tokens"]
) -> tuple[str | None, int]:
    from esogen.editor import work_file
    from esogen.editor.commands import Commands, Stopped
    from esogen.editor.session import Session

    session, typed = Session(run.lm, run.settings), text
    name = run.lm.checkpoint.name
    if desk.resume:
        value = work_file.read(desk.work, name, desk.seed)
        work_file.resume(value, session, desk.work)
        typed = str(value.get("typed", ""))
    else:
        work_file.set_aside(desk.work)

    def save(unfilled: str) -> None:
        work_file.write(desk.work, session, name, typed=unfilled)

    def say(line: str) -> None:
        place.console.show(visible(line))

    commands = Commands(session, read, say)
    try:
        if desk.plain:
            return _plain(commands, typed, save)
        return _screen(commands, typed, desk, save), 0
    except (KeyboardInterrupt, Stopped):
        place.console.clear()
        raise Interrupted(f"interrupted: kept in {desk.work}; --resume returns to it") from None


def _plain(commands: "Commands", typed: str, save: Callable[[str], None]) -> tuple[str | None, int]:
    from esogen.editor import plain

    session = commands.session
    if not session.states:
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
    from esogen.editor.screen import Screen

    screen = Screen(commands, typed=typed, history=desk.work.with_name("history"), save=save)
    save(typed)
    return screen.application().run()
