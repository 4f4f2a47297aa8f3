"""`esogen replay`: play a trace again, or turn it into a file to show."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.atomic import replacing
from esogen.checkpoint import resolve
from esogen.cli import options
from esogen.cli.output import opened
from esogen.cli.progress import audience
from esogen.cli.terminal import Console, colors_refused, is_terminal
from esogen.errors import CheckpointError, EsogenError, TraceError, UsageError

if TYPE_CHECKING:
    from esogen.checkpoint.tokenizer import Tokenizer
    from esogen.trace_file import RecordedText, TraceFile
    from esogen.view.export import Reel
    from esogen.view.player import Player
    from esogen.view.theme import Theme

SUFFIXES = (".svg", ".html", ".cast", ".gif", ".txt")
"""What can be exported: those of `esogen.view.export`, which takes a while to import."""

_TERMINAL = "/dev/tty"
_FILE, _PLAYED = "What is made of it", "How it is shown"

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", show_default=False, help="A trace, as esogen sample --trace records one."
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        "--export",
        metavar="OUT",
        show_default="none",
        help=f"Write a file to show; its suffix says what: {', '.join(SUFFIXES)}.",
        rich_help_panel=_FILE,
    ),
]
Number = Annotated[
    int | None,
    options.whole_option(
        "--text",
        _FILE,
        "Only text number N of the trace.",
        show_default="all; pictures show the first",
    ),
]
Step = Annotated[
    int | None,
    options.whole_option(
        "--step", _FILE, "Print what stood there after N steps.", 0, show_default="none"
    ),
]
Speed = Annotated[
    float,
    options.real_option(
        "--speed",
        _PLAYED,
        "2 is twice as fast, also in files.",
        "a number from 0.1 to 10",
        lambda x: 0.1 <= x <= 10,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=options.complete_model,
        show_default="the trace's",
        help="Where the model of the trace is now.",
        rich_help_panel=_PLAYED,
    ),
]


_APART: options.Apart = {
    "--export": ("--step", "--live"),
    "--step": ("--live", "--speed"),
    "--no-live": ("--speed", "--theme", "--color-by"),
}


def replay(
    ctx: typer.Context,
    file: File,
    *,
    export: Export = None,
    text: Number = None,
    step: Step = None,
    live: options.Live = None,
    speed: Speed = 1.0,
    theme: options.Theme = "default",
    color_by: options.ColorBy = "certainty",
    model: From = None,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Play a recorded run again, or turn it into a file to show.

    On a terminal it plays, with keys; elsewhere it prints the texts.
    """
    options.keep_apart(ctx, _APART)
    _check_suffix(export)
    from esogen.trace_file import TraceFile
    from esogen.view.export import Reel

    trace = TraceFile(file)
    texts = _chosen(trace, text)
    tokenizer = _tokenizer(trace, model)
    reel = Reel(trace.header, texts, tokenizer, theme, color_by, speed)
    console = Console.stderr(quiet=quiet, no_color=no_color)
    if export:
        _export(reel, export, console)
    elif step is not None:
        _print_step(reel, step, no_color=no_color)
    elif _plays(live, console):
        _play(reel, texts, console, model=model, no_color=no_color)
    else:
        _print(reel)


def _check_suffix(export: Path | None) -> None:
    if export and export.suffix.lower() not in SUFFIXES:
        found = f"has the suffix {export.suffix!r}" if export.suffix else "has no suffix"
        raise UsageError(
            f"--export is {str(export)!r}, which {found}; it must be one of {', '.join(SUFFIXES)}"
        )


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One text of a trace, or all of them, read as they are asked for."""

    trace: "TraceFile"
    only: int | None

    def __len__(self) -> int:
        return len(self.trace) if self.only is None else 1

    def __iter__(self) -> "Iterator[RecordedText]":
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> "RecordedText":
        return self.trace[number if self.only is None else self.only]


def _chosen(trace: "TraceFile", text: int | None) -> _Chosen:
    if not len(trace):
        raise TraceError(f"{trace.path} holds no text; record one with esogen sample --trace FILE")
    if text is not None and text > len(trace):
        raise UsageError(f"--text is {text}; it must be from 1 to {len(trace)}, as the trace holds")
    return _Chosen(trace, None if text is None else text - 1)


def _tokenizer(trace: "TraceFile", model: str | None) -> "Tokenizer":
    """The tokenizer that the trace was made with; nothing else of the model is needed."""
    from esogen.checkpoint.tokenizer import Tokenizer
    from esogen.trace_file import digest

    header = trace.header
    name = header.model if model is None else model
    try:
        path = resolve.resolve_here(name).tokenizer
        found = digest(path)
    except CheckpointError as error:
        if model is not None:
            raise
        raise TraceError(
            f"{trace.path} needs the tokenizer of its model: {error};"
            " give the model's place now with --model"
        ) from error
    if found != header.tokenizer:
        raise TraceError(
            f"{trace.path} was made with the tokenizer {header.tokenizer!r}, and that of"
            f" {name!r} is {found}; give the folder of the model {header.model!r},"
            f" revision {header.revision!r}, with --model"
        )
    return Tokenizer.read(path, header.vocab_size)


def _export(reel: "Reel", path: Path, console: Console) -> None:
    from esogen.view.export import EXPORTS

    console.status(f"writing {path} ...")
    data = EXPORTS[path.suffix.lower()](reel)
    try:
        with replacing(path.resolve()) as scratch:
            scratch.write_bytes(data)
    except OSError as error:
        raise EsogenError(
            f"{path} cannot be written: {error.strerror or error}; choose another place"
        ) from error
    if console.shown:
        console.say(f"{path}: {len(data):,} bytes")


def _print(reel: "Reel") -> None:
    with opened(None) as out:
        for number, recorded in enumerate(reel.texts):
            before = "---\n" if number else ""
            out.write(f"{before}{reel.plain(recorded)}\n")


def _print_step(reel: "Reel", step: int, *, no_color: bool) -> None:
    """Masks and what was decided by then; in colour on a terminal."""
    from esogen.view.canvas import Pieces, layout
    from esogen.view.stage import Painter

    painter = Painter(_looks(reel, no_color=no_color or not is_terminal(sys.stdout)))
    pieces, columns = Pieces(reel.tokenizer.decode), get_terminal_size().columns
    with opened(None) as out:
        for number, recorded in enumerate(reel.texts):
            if step > recorded.calls:
                raise UsageError(
                    f"--step is {step}; it must be from 0 to {recorded.calls},"
                    f" the steps of text {recorded.index + 1}"
                )
            page = layout(reel.tape(recorded).frame(step), pieces, columns, reel.color_by)
            lines = [f"{painter.text(line)}\n" for line in page.lines]
            out.write_painted("".join(["---\n" if number else "", *lines]))


def _looks(reel: "Reel", *, no_color: bool) -> "Theme":
    from esogen.view.theme import THEMES, UNPAINTED

    return UNPAINTED if colors_refused(no_color=no_color) else THEMES[reel.theme]


def _plays(live: bool | None, console: Console) -> bool:
    """Whether to play: if asked to, else where somebody sees it and has a keyboard."""
    if live is not None:
        return live
    return console.steerable and is_terminal(sys.stdin) and is_terminal(sys.stdout)


def _play(
    reel: "Reel", texts: _Chosen, console: Console, *, model: str | None, no_color: bool
) -> None:
    """Play, then say which command made it, and whether it still does."""
    from esogen.view.player import play
    from esogen.view.screen import Screen
    from esogen.view.stage import Painter

    looks = _looks(reel, no_color=no_color)
    player = player_of(reel, texts)
    with (
        audience(console, live=True, theme=looks, color_by=reel.color_by) as who,
        _keyboard() as keyboard,
    ):
        assert who.drawn_on is not None
        play(player, Screen(who.drawn_on), Painter(looks), keyboard)
    console.say(f"made by {reel.header.command}")
    if (found := _revision(model or reel.header.model)) != reel.header.revision:
        console.say(
            f"the weights of {model or reel.header.model} are now {found}, and were"
            f" {reel.header.revision}: the command gives other texts"
        )


def player_of(reel: "Reel", texts: "_Chosen | Sequence[RecordedText]") -> "Player":
    """What plays these texts, as fast as the reel says."""
    from esogen.view.player import Player

    even = replace(reel, speed=1.0)  # the player itself goes faster or slower
    return Player(lambda number: even.tape(texts[number]), len(texts), reel.stage(), reel.speed)


def _revision(name: str) -> str:
    from esogen.trace_file import digest

    return digest(resolve.resolve_here(name).weights)


@contextmanager
def _keyboard() -> Iterator[int]:
    """The terminal that is typed on, though stdin may come from elsewhere."""
    if is_terminal(sys.stdin):
        yield sys.stdin.fileno()
        return
    try:
        terminal = os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        raise UsageError("--live needs a keyboard, and there is none; leave it out") from None
    try:
        yield terminal
    finally:
        os.close(terminal)
