"""What a terminal shows of a batch while it is sampled: the text itself, or a status line."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esogen.cli.terminal import Console, takes_escape_codes
from esogen.errors import UsageError
from esogen.view.theme import ColorBy, Theme

if TYPE_CHECKING:
    from esogen.generate.denoise import Step
    from esogen.view.canvas import Decode
    from esogen.view.live import Watched

INTERVAL = 1 / 12
"""Seconds between two updates of the status line, at least."""

_TERMINAL = "/dev/tty"


@dataclass(frozen=True, slots=True)
class Audience:
    """Who looks on: `drawn_on` is the file descriptor of a terminal for the live view, or None."""

    console: Console
    drawn_on: int | None
    theme: Theme
    color_by: ColorBy


@contextmanager
def audience(
    console: Console, *, live: bool | None, theme: Theme, color_by: ColorBy
) -> Iterator[Audience]:
    """Whoever looks at the terminal of this process, by its streams and by `--live`.

    Raises `UsageError` when a live view is asked for where none can be drawn.
    """
    if live is False or (live is None and not console.steerable):
        yield Audience(console, None, theme, color_by)
    elif console.steerable and console.stream is not None:
        yield Audience(console, console.stream.fileno(), theme, color_by)
    else:
        terminal = _open_terminal(console)
        try:
            yield Audience(console, terminal, theme, color_by)
        finally:
            os.close(terminal)


def _open_terminal(console: Console) -> int:
    """The terminal of this process, though stderr goes elsewhere."""
    if console.quiet:
        raise UsageError("--live and --quiet exclude each other; give one of them")
    if not takes_escape_codes():
        raise UsageError(
            "--live needs a terminal that understands escape codes, and TERM or CI says that this"
            " is none; leave it out"
        )
    try:
        return os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        raise UsageError("--live needs a terminal, and there is none; leave it out") from None


def drive(batch: "Watched", decode: "Decode", who: Audience, n: int) -> None:
    """Run `batch`, of a run of `n` texts, to its end; show `who` looks on how far it is."""
    if who.drawn_on is not None:
        _watch(batch, decode, who, who.drawn_on, n)
    elif who.console.steerable:
        _count(batch, who.console, n)
    else:
        for _ in batch.steps():
            pass


def _watch(
    batch: "Watched",
    decode: "Decode",
    who: Audience,
    terminal: int,
    n: int,
) -> None:
    from esogen.view.live import Look, watch
    from esogen.view.screen import Screen

    who.console.clear()
    look = Look(who.theme, who.color_by)
    watch(batch, decode, Screen(terminal), look, texts=n)


def _count(batch: "Watched", console: Console, n: int) -> None:
    due, decided = 0.0, 0
    for step in batch.steps():
        decided += step.tokens_BK.numel()
        if time.monotonic() >= due:
            console.status(_position(batch, step, n, decided))
            due = time.monotonic() + INTERVAL
    console.clear()


def _position(batch: "Watched", step: "Step", n: int, decided: int) -> str:
    counts_S = batch.plan.counts_S
    of, left = f" of {len(counts_S)}", counts_S[step.index + 1 :].sum()
    if step.examined:  # how many calls there will be is found on the way
        of, left = "", counts_S.sum() - decided // len(batch.indices)
    first, last = batch.indices[0] + 1, batch.indices[-1] + 1
    several = "" if first == last else f"-{last}"
    texts = "" if n == 1 else f" · text {first}{several} of {n}"
    return (
        f"{'sequential' if step.sequential else 'diffusion'} phase"
        f" · step {step.index + 1}{of} · {left} masks left{texts}"
    )
