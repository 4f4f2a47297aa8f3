"""Watch a batch being sampled: a consumer of its steps that draws now and then.

Tokens are read back from the device when a frame is drawn, and a frame is drawn when one is due: at
most `RATE` a second, and only while the view has used no more than `SHARE` of the CPU time.

Shapes: B rows of the batch, L positions, K tokens of a step.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from esogen.generate.denoise import Step
from esogen.generate.plan import Plan
from esogen.trace import GIVEN, UNDECIDED
from esogen.view.canvas import Decode, Frame, Pieces
from esogen.view.flow import Line
from esogen.view.screen import Screen
from esogen.view.stage import Painter, Report, Size, Stage
from esogen.view.theme import ColorBy, Theme

RATE = 12.0
"""Frames a second, at most."""
SHARE = 0.02
"""Of the CPU time of a run, what drawing may use before it is done less often.

Less than watching may cost: a frame also takes the network's place in the processor's caches.
"""
FRESH = 0.2
"""Seconds for which a token counts as just decided, at least: long enough to be seen."""


class Watched(Protocol):
    """What the view needs of a batch."""

    plan: Plan
    indices: range

    @property
    def given_L(self) -> NDArray[np.int64]:
        """Id of the given token at each position; what stands elsewhere means nothing."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The token behind which nothing is text, or None if everything is."""
        ...

    def steps(self) -> Iterator[Step]:
        """Run, yielding what each call decided."""
        ...

    def drafts(self) -> NDArray[np.int64] | None:
        """Drafts to be verified, `[B, L]` by position, else -1; None if nothing is drafted."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """How the view looks."""

    theme: Theme
    color_by: ColorBy = "certainty"


def watch(batch: Watched, decode: Decode, screen: Screen, look: Look, *, texts: int) -> None:
    """Run `batch`, of a run of so many `texts`, to its end, and draw it on `screen`.

    The screen is given back when it ends, however it ends.
    """
    pace = Pace()
    with screen, _old_left_alone():
        view = LiveView(batch, decode, screen, look, texts)
        if screen.ready():
            with pace.counted():
                view.draw()
        for step in batch.steps():
            view.take(step)
            if pace.due() and screen.ready():
                with pace.counted():
                    view.draw()


@contextmanager
def _old_left_alone() -> Iterator[None]:
    """Keep the garbage collector from what is there already.

    Drawing makes many small objects, and so brings on a collection now and then; to go through all
    that was imported takes longer than a hundred frames.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Pace:
    """Says when a frame is due, by the clock and by what frames have cost until now."""

    def __init__(self) -> None:
        self._began = time.process_time()
        self._next = 0.0
        self._used = self._latest = 0.0

    def due(self) -> bool:
        """Whether to draw now."""
        if time.monotonic() < self._next:
            return False
        return self._used + self._latest <= SHARE * (time.process_time() - self._began)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Draw a frame in here, so that its cost is known."""
        self._next = time.monotonic() + 1 / RATE
        began = time.thread_time()
        yield
        self._latest = time.thread_time() - began
        self._used += self._latest


class LiveView:
    """What has been decided of a batch until now, and where it is drawn."""

    def __init__(
        self, batch: Watched, decode: Decode, screen: Screen, look: Look, texts: int
    ) -> None:
        self._batch, self._texts, self._screen = batch, texts, screen
        self._canvas = _Canvas(batch)
        self._stage = Stage(Pieces(decode), look.color_by)
        self._painter = Painter(look.theme)
        self._began = time.monotonic()
        self._drawn: list[tuple[float, int]] = []

    def take(self, step: Step) -> None:
        """Remember what a step decided, without reading it back."""
        self._canvas.pending.append(step)

    def draw(self) -> None:
        """Read back what is new, and show all."""
        size = self._screen.size()
        self._screen.draw(map(self._painter.text, self._rows(size)))

    def frames(self) -> list[Frame]:
        """Read back what is new; every text as it stands now."""
        self._canvas.catch_up()
        return self._canvas.frames(self._fresh(time.monotonic() - self._began))

    def _rows(self, size: Size) -> Sequence[Line]:
        frames = self.frames()
        seconds = time.monotonic() - self._began
        decided = sum(int((frame.steps_L >= 0).sum()) for frame in frames)
        return self._stage.rows(frames, Report(seconds, decided, *self._names()), size)

    def _fresh(self, seconds: float) -> int:
        """First call that counts as just now: since the last frame, and for a moment at least."""
        self._drawn.append((seconds, self._canvas.step + 1))
        while len(self._drawn) > 2 and self._drawn[1][0] <= seconds - FRESH:
            self._drawn.pop(0)
        return self._drawn[0][1] if len(self._drawn) > 1 else 0

    def _names(self) -> tuple[Sequence[str], str]:
        indices = self._batch.indices
        if len(indices) > 1:
            return [f"text {index + 1}" for index in indices], self._note()
        return (), self._note()

    def _note(self) -> str:
        indices = self._batch.indices
        if len(indices) == self._texts:
            return ""
        first, last = indices[0] + 1, indices[-1] + 1
        return f"text {first}{'' if first == last else f'-{last}'} of {self._texts}"


class _Canvas:
    """The texts of a batch as they stand; `pending` are steps that have not been read back."""

    def __init__(self, batch: Watched) -> None:
        self._plan, self._end_of_text = batch.plan, batch.end_of_text
        self._drafts = batch.drafts
        given = self._plan.order_BL[:, : self._plan.given]
        shape = self._plan.order_BL.shape
        self._tokens_BL = np.full(shape, UNDECIDED, np.int64)
        self._given_BL = np.zeros(shape, np.bool_)
        np.put_along_axis(self._tokens_BL, given, batch.given_L[given], axis=1)
        np.put_along_axis(self._given_BL, given, np.True_, axis=1)
        self._steps_BL = np.full(shape, GIVEN, np.int64)
        self._certainty_BL = np.ones(shape)
        self.pending: list[Step] = []
        self.step = -1

    def catch_up(self) -> None:
        """Read back what the pending steps decided: once for all of them."""
        if not self.pending:
            return
        steps, self.pending = self.pending, []
        widths = [step.tokens_BK.shape[1] for step in steps]
        rows = np.concatenate(
            [np.repeat(step.rows, width) for step, width in zip(steps, widths, strict=True)]
        )
        positions, tokens, log_probs = (
            torch.cat([getattr(step, name).flatten() for step in steps]).cpu().numpy()
            for name in ("positions_BK", "tokens_BK", "log_probs_BK")
        )
        self._tokens_BL[rows, positions] = tokens
        self._certainty_BL[rows, positions] = np.exp(log_probs)
        self._steps_BL[rows, positions] = np.repeat(
            [step.index for step in steps],
            [len(step.rows) * width for step, width in zip(steps, widths, strict=True)],
        )
        self.step = max(self.step, *(step.index for step in steps))

    def frames(self, since: int) -> list[Frame]:
        """Every text as it stands now."""
        drafts_BL = self._drafts()
        steps, diffusion_steps = self._plan.nfe, self._plan.diffusion_steps
        if drafts_BL is not None:
            steps, diffusion_steps = (
                self._calls_for(tokens) for tokens in (steps, diffusion_steps)
            )
        return [
            Frame(
                self._tokens_BL[row],
                self._steps_BL[row],
                self._certainty_BL[row],
                self._given_BL[row],
                self.step,
                steps,
                diffusion_steps,
                since,
                drafts_L=None if drafts_BL is None else drafts_BL[row],
            ).until(self._end_of_text)
            for row in range(len(self._tokens_BL))
        ]

    def _calls_for(self, tokens: int) -> int:
        """Calls in which so many tokens of a text will be decided, at the pace until now."""
        decided = np.count_nonzero(self._steps_BL != GIVEN)
        calls = int((self._steps_BL.max(1) + 1).sum())
        return round(tokens * calls / decided) if decided else tokens
