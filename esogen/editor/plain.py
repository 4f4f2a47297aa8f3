"""The editor line by line: commands as words in, lines of text out. No keys, no full screen."""

from collections.abc import Callable, Iterable

from esogen.editor.commands import Commands, Leave, rendered
from esogen.errors import UsageError


def edit(
    commands: Commands, lines: Iterable[str], save: Callable[[], None]
) -> tuple[str | None, int]:
    """Carry out a command from each line, telling after each what the text is now.

    `save` is called after every change. Returns the accepted text, None where none was, and how
    many commands went wrong.
    """
    session, wrong = commands.session, 0
    tell(commands, session.cache.computed)
    for line in lines:
        if not line.strip():
            continue
        before = session.cache.computed
        try:
            for _ in commands.run(line):
                pass
        except Leave as leave:
            return leave.accepted, wrong
        except UsageError as error:
            commands.say(f"{line.split()[0]}: {error}")
            wrong += 1
            continue
        save()
        if line.split()[0] not in ("show", "states", "help", "write"):
            tell(commands, session.cache.computed - before)
    return None, wrong


def tell(commands: Commands, computed: int) -> None:
    """The text, the state's number, and what the last command cost."""
    state = commands.session.current
    commands.say(rendered(state, commands.session))
    commands.say(f"state {state.number} ({state.what}) · {computed} tokens computed")
