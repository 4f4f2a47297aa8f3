"""What `esogen train` shows on stderr: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from esogen.cli.terminal import is_terminal
from esogen.model.families import ALPHA_0
from esogen.visible import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from esogen.model.config import Family
    from esogen.training.evaluate import Evaluation
    from esogen.training.loop import StepReport

PLAIN_SECONDS = 30.0
"""Between two lines where stderr is no terminal."""

_RECENT = 100
"""Steps that the speed is averaged over."""


class Progress(Protocol):
    """Where a run tells what happens."""

    def step(self, report: "StepReport") -> None:
        """One step is done."""
        ...

    def say(self, line: str) -> None:
        """Something worth a line that stays."""
        ...


@contextmanager
def shown(steps: int, *, quiet: bool, peak: float | None = None) -> Iterator[Progress]:
    """The progress of a run of `steps` steps, as this process's stderr can show it.

    `peak`: operations a second that the device can reach, where that is known.
    """
    if quiet:
        yield _Silent()
    elif is_terminal(sys.stderr):
        from rich.console import Console

        with on_bar(steps, Console(stderr=True), peak) as bar:
            yield bar
    else:
        yield _Lines(steps, peak)


def measured(evaluations: list["Evaluation"], family: "Family") -> str:
    """What a validation found, in one line; it is exact, and no bound, left to right only."""
    figures = (
        ("" if family in ALPHA_0 else f"alpha_0 {found.alpha_0:g}: ") + f"{found.bits_per_byte:.4f}"
        for found in evaluations
    )
    return f"bits per byte{'' if family == 'ar' else ' at most'} · {' · '.join(figures)}"


class Meter:
    """One line on the last step: loss, speed, and the time left at that speed.

    Where the device's `peak` is known, the speed also as a share of it.
    """

    def __init__(self, steps: int, peak: float | None = None) -> None:
        self._steps, self._peak = steps, peak
        self._recent: deque[StepReport] = deque(maxlen=_RECENT)

    def line(self, report: "StepReport") -> str:
        """Say where the run is after `report`."""
        self._recent.append(report)
        seconds = sum(step.seconds for step in self._recent) or 1e-9
        speed = sum(step.tokens for step in self._recent) / seconds
        left = (self._steps - report.step) * seconds / len(self._recent)
        flops = sum(step.flops for step in self._recent) / seconds
        used = f" · {flops / self._peak:.0%} of peak" if self._peak else ""
        return (
            f"step {report.step}/{self._steps} · loss {report.loss:.4f}"
            f" · {speed:.0f} tokens/s{used} · {duration(left)} left"
        )


def duration(seconds: float) -> str:
    """A time to wait, as people say it."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Silent:
    def step(self, report: "StepReport") -> None:
        pass

    def say(self, line: str) -> None:
        pass


class _Lines:
    """A line for the first and the last step, and every `PLAIN_SECONDS` between them."""

    def __init__(self, steps: int, peak: float | None) -> None:
        self._steps, self._meter, self._next = steps, Meter(steps, peak), 0.0

    def step(self, report: "StepReport") -> None:
        line = self._meter.line(report)
        if time.monotonic() >= self._next or report.step == self._steps:
            self._next = time.monotonic() + PLAIN_SECONDS
            self.say(line)

    def say(self, line: str) -> None:
        print(one_line(line), file=sys.stderr, flush=True)


@contextmanager
def on_bar(steps: int, console: "Console", peak: float | None = None) -> Iterator[Progress]:
    """A bar on this console; it goes when the run ends, and what was said stays."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=console, transient=True) as bar:
        yield _OnBar(bar, steps, peak)


class _OnBar:
    def __init__(self, bar: "Bar", steps: int, peak: float | None) -> None:
        self._bar, self._meter = bar, Meter(steps, peak)
        self._task = bar.add_task("", total=steps)

    def step(self, report: "StepReport") -> None:
        line = self._meter.line(report)
        self._bar.update(self._task, completed=report.step, description=line)

    def say(self, line: str) -> None:
        self._bar.console.print(one_line(line), markup=False, highlight=False)
