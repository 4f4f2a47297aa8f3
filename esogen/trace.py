"""What one run decided, where, when and how surely: three arrays per sample, nothing else.

Each position is decided exactly once, so tokens, steps and log-probabilities replay the whole run.

Shapes: B rows of the batch, L positions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from esogen.generate.denoise import Step
    from esogen.generate.plan import Plan

UNDECIDED = -1
"""Token of a position behind the end of a text that its run never decided."""
GIVEN = -1
"""Step of a token that the user gave, and of one that was never decided."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A finished batch.

    `tokens_BL` int64, `UNDECIDED` where a row ended early. `steps_BL` int64: network call that
    decided each position, `GIVEN` where none did. `log_probs_BL` float64, nats: the model's own,
    before temperature and truncation, when the token was decided; 0 where none was.
    `nfe_B`: calls until each row was done.
    """

    tokens_BL: NDArray[np.int64]
    steps_BL: NDArray[np.int64]
    log_probs_BL: NDArray[np.float64]
    nfe_B: NDArray[np.int64]


class Recorder:
    """Collects the steps of one batch without reading anything back from the device."""

    def __init__(self, plan: "Plan", given_L: NDArray[np.int64]) -> None:
        self._plan, self._given_L = plan, given_L
        self._steps: list[Step] = []

    def record(self, step: "Step") -> None:
        """Remember what one step decided."""
        self._steps.append(step)

    def finish(self, *, end_of_text: int | None) -> Trace:
        """The trace so far; with `end_of_text`, rows are cut where they were done.

        How often the sampler looks for ended rows leaves no mark here: what it decided for a row
        after that row's end is dropped.
        """
        plan = self._plan
        tokens_BL = np.full(plan.order_BL.shape, UNDECIDED, np.int64)
        given = plan.order_BL[:, : plan.given]
        np.put_along_axis(tokens_BL, given, self._given_L[given], axis=1)
        log_probs_BL = np.zeros(plan.order_BL.shape)
        if self._steps:
            rows, positions, tokens, log_probs = self._flat()
            tokens_BL[rows, positions] = tokens
            log_probs_BL[rows, positions] = log_probs
        steps_BL = np.where(tokens_BL == UNDECIDED, GIVEN, plan.step_of_each())
        nfe_B = self._calls_needed(tokens_BL, steps_BL, end_of_text)
        late_BL = steps_BL >= nfe_B[:, None]
        return Trace(
            np.where(late_BL, UNDECIDED, tokens_BL),
            np.where(late_BL, GIVEN, steps_BL),
            np.where(late_BL, 0.0, log_probs_BL),
            nfe_B,
        )

    def _flat(self) -> tuple[NDArray[np.int64], ...]:
        import torch  # here, so that a replay, which has no steps, is quick

        rows = [np.repeat(step.rows, step.tokens_BK.shape[1]) for step in self._steps]
        columns = (
            torch.cat([getattr(step, name).flatten() for step in self._steps]).cpu().numpy()
            for name in ("positions_BK", "tokens_BK", "log_probs_BK")
        )
        return np.concatenate(rows), *columns

    def _calls_needed(
        self, tokens_BL: NDArray[np.int64], steps_BL: NDArray[np.int64], end_of_text: int | None
    ) -> NDArray[np.int64]:
        made = self._steps[-1].index + 1 if self._steps else 0
        nfe_B = np.full(len(tokens_BL), made)
        if end_of_text is None:
            return nfe_B
        for row in np.flatnonzero((tokens_BL == end_of_text).any(1)):
            end = first_end(tokens_BL[row], end_of_text)
            needed = steps_BL[row, :end].max(initial=-1) + 1
            nfe_B[row] = min(made, max(needed, self._plan.diffusion_steps))
        return nfe_B


def first_end(tokens_L: NDArray[np.int64], end_of_text: int) -> int:
    """Number of tokens up to and including the first end-of-text, or all of them."""
    ends = np.flatnonzero(tokens_L == end_of_text)
    return int(ends[0]) + 1 if len(ends) else len(tokens_L)
