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
    `nfe_B`: calls until each row was done, the first `diffusion_steps_B` of them the diffusion
    phase. `rounds`: of each row, for each of its calls, how many drafts it verified and how many of
    them stood, int64 `[calls, 2]`; empty where nothing was drafted.
    """

    tokens_BL: NDArray[np.int64]
    steps_BL: NDArray[np.int64]
    log_probs_BL: NDArray[np.float64]
    nfe_B: NDArray[np.int64]
    diffusion_steps_B: NDArray[np.int64]
    rounds: tuple[NDArray[np.int64], ...]


class Recorder:
    """Collects the steps of one batch without reading anything back from the device."""

    def __init__(self, plan: "Plan", given_L: NDArray[np.int64], *, drafted: bool = False) -> None:
        """With `drafted`, rows may be done before the diffusion phase is over."""
        self._plan, self._given_L = plan, given_L
        self._least_steps = 0 if drafted else plan.diffusion_steps
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
        steps_BL = np.full(plan.order_BL.shape, GIVEN)
        if self._steps:
            rows, positions, steps, tokens, log_probs = self._flat()
            tokens_BL[rows, positions] = tokens
            steps_BL[rows, positions] = steps
            log_probs_BL[rows, positions] = log_probs
        nfe_B = self._calls_needed(tokens_BL, steps_BL, end_of_text)
        late_BL = steps_BL >= nfe_B[:, None]
        return Trace(
            np.where(late_BL, UNDECIDED, tokens_BL),
            np.where(late_BL, GIVEN, steps_BL),
            np.where(late_BL, 0.0, log_probs_BL),
            nfe_B,
            np.minimum(self._diffusion_steps(), nfe_B),
            self._rounds(nfe_B),
        )

    def _diffusion_steps(self) -> NDArray[np.int64]:
        """Calls of each row until the last that decided for its diffusion phase."""
        steps_B = np.zeros(len(self._plan.order_BL), np.int64)
        for step in self._steps:
            if not step.sequential:
                steps_B[step.rows] = step.index + 1
        return steps_B

    def _rounds(self, nfe_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        rounds_BS2 = np.zeros((len(nfe_B), int(nfe_B.max(initial=0)), 2), np.int64)
        drafted = False
        for step in self._steps:
            if step.examined and step.index < rounds_BS2.shape[1]:
                drafted = True
                pairs = (step.examined.drafts_B, step.examined.accepted_B)
                rounds_BS2[step.rows, step.index] = np.stack(pairs, -1)
        return tuple(r[:n] if drafted else r[:0] for r, n in zip(rounds_BS2, nfe_B, strict=True))

    def _flat(self) -> tuple[NDArray[np.int64], ...]:
        import torch  # here, so that a replay, which has no steps, is quick

        rows = [np.repeat(step.rows, step.tokens_BK.shape[1]) for step in self._steps]
        columns = (
            torch.cat([getattr(step, name).flatten() for step in self._steps]).cpu().numpy()
            for name in ("positions_BK", "tokens_BK", "log_probs_BK")
        )
        steps = [np.full(step.tokens_BK.numel(), step.index) for step in self._steps]
        positions, tokens, log_probs = columns
        return np.concatenate(rows), positions, np.concatenate(steps), tokens, log_probs

    def _calls_needed(
        self, tokens_BL: NDArray[np.int64], steps_BL: NDArray[np.int64], end_of_text: int | None
    ) -> NDArray[np.int64]:
        nfe_B: NDArray[np.int64] = steps_BL.max(1, initial=-1) + 1
        if end_of_text is None:
            return nfe_B
        for row in np.flatnonzero((tokens_BL == end_of_text).any(1)):
            end = first_end(tokens_BL[row], end_of_text)
            needed = steps_BL[row, :end].max(initial=-1) + 1
            nfe_B[row] = min(nfe_B[row], max(needed, self._least_steps))
        return nfe_B


def first_end(tokens_L: NDArray[np.int64], end_of_text: int) -> int:
    """Number of tokens up to and including the first end-of-text, or all of them."""
    ends = np.flatnonzero(tokens_L == end_of_text)
    return int(ends[0]) + 1 if len(ends) else len(tokens_L)
