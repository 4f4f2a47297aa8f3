"""The commands of esogen, each imported when it is typed, so that help stays quick."""

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from esogen.cli.command import Command, Group

COMMANDS: Mapping[str, str] = {
    "sample": "Write texts that begin with PROMPT, or from nothing.",
    "replay": "Play a recorded run again, or turn it into a file to show.",
    "infill": "Fill the blanks of TEMPLATE, or edit a text with blanks on the terminal.",
    "score": "Tell how likely texts are, word by word.",
    "train": "Train a model on text files, or train one further.",
    "tokenize": "Turn text files into tokens once, for many trainings.",
    "models": "List, show, download, remove, import, export models.",
    "bench": "Measure how fast texts are sampled, beside the other families.",
    "doctor": "Say what this machine can do, what is missing, and the command that mends it.",
}
"""Each is a function or a group of that name in the module of that name, and says this first."""


class _LateCommands(Group):
    """Knows its commands by name and one line; has the whole of one only when it is to run."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the command and its arguments, as Typer wants them."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and whole_command(str(found.name)), rest


def whole_command(name: str) -> Any:
    """The command or group of this name, with everything it takes."""
    command = getattr(import_module(f"esogen.cli.{name}"), name)
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=Command)(command)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="esogen",
    cls=_LateCommands,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"esogen {version('esogen')}")
        raise typer.Exit


@app.callback()
def esogen(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Write text with Esoteric Language Models, on your own machine."""
