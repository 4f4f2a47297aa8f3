"""A recorded text as frames: what stood on the canvas after each call.

Shapes: L positions.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esogen.trace import GIVEN, UNDECIDED
from esogen.trace_file import RecordedText
from esogen.view.canvas import Frame
from esogen.view.scene import Timeline

FRESH = 0.5
"""Seconds for which a token counts as just decided."""


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """One text. With `end_of_text`, what stands behind the first one of it is left out."""

    tokens_L: NDArray[np.int64]
    steps_L: NDArray[np.int64]
    certainty_L: NDArray[np.float64]
    calls: int
    diffusion_steps: int
    end_of_text: int | None
    timeline: Timeline

    @classmethod
    def of(cls, text: RecordedText, end_of_text: int | None, speed: float = 1.0) -> "Tape":
        """The tape of a text, to be played at `speed` times the usual pace."""
        late = text.calls - text.diffusion_steps
        return cls(
            np.array(text.tokens, np.int64),
            np.array(text.steps, np.int64),
            np.exp(np.minimum(np.array(text.log_probs, np.float64), 0.0)),
            text.calls,
            text.diffusion_steps,
            end_of_text,
            Timeline.of(text.diffusion_steps, late, speed),
        )

    def frame(self, after: int) -> Frame:
        """What stood there after so many calls; at the end, nothing counts as just decided."""
        ahead_L = self.steps_L >= after
        frame = Frame(
            np.where(ahead_L, UNDECIDED, self.tokens_L),
            np.where(ahead_L, GIVEN, self.steps_L),
            self.certainty_L,
            (self.steps_L == GIVEN) & (self.tokens_L != UNDECIDED),
            after - 1,
            self.calls,
            self.diffusion_steps,
            self._fresh(after),
        )
        return frame if self.end_of_text is None else frame.until(self.end_of_text)

    def _fresh(self, after: int) -> int:
        """The first call of the last moment."""
        if not 0 < after < self.calls:
            return after
        since = self.timeline.starts[after - 1] - FRESH
        return min(after - 1, bisect_right(self.timeline.starts, since))
