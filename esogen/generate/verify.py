"""Does one way of computing a run agree with another, token by token, and if not, why?

Both sides are shown the same tokens (those the reference draws), so every draw is compared on equal
terms. A token may differ only where its uniform lies nearer to an end of its interval than the two
cumulative distributions lie apart: an edge draw. Any other difference is unexplained, and a defect.

Shapes: B rows, K tokens of this step, M of all rows, D model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.errors import NumericalError
from esogen.generate.denoise import Calls, Progress, chunk_rows
from esogen.generate.draw import DrawSettings, draw, shape
from esogen.generate.plan import Plan
from esogen.model.network import Network


@dataclass(frozen=True, slots=True)
class Side:
    """A network and how its calls are made."""

    network: Network
    calls: Calls


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a comparison found; counts of draws, and the largest differences met.

    `log_prob_difference` is over every vocabulary entry that either side gives more than
    exp(-20), in nats; `cdf_difference` over the shaped, normalised cumulative distributions.
    """

    draws: int = 0
    different: int = 0
    edge: int = 0
    unexplained: int = 0
    log_prob_difference: float = 0.0
    cdf_difference: float = 0.0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.draws + other.draws,
            self.different + other.different,
            self.edge + other.edge,
            self.unexplained + other.unexplained,
            max(self.log_prob_difference, other.log_prob_difference),
            max(self.cdf_difference, other.cdf_difference),
        )


LEAST_LOG_PROB = -20.0


class RowByRow:
    """Calls that run every row of a batch alone, each with `calls` of its own."""

    def __init__(self, calls: Sequence[Calls]) -> None:
        self._calls = list(calls)

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]`, computed one row at a time."""
        alone = (
            Progress(canvas[None], order[None], uniforms[None], progress.rows[row : row + 1])
            for row, (canvas, order, uniforms) in enumerate(
                zip(progress.canvas_BL, progress.order_BL, progress.uniforms_BL, strict=True)
            )
        )
        pairs = zip(self._calls, alone, strict=True)
        return torch.cat([calls(row, decided, fresh, count) for calls, row in pairs])

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self._calls = [self._calls[row] for row in kept]


@torch.inference_mode()
def compare(
    reference: Side, candidate: Side, plan: Plan, progress: Progress, settings: DrawSettings
) -> Agreement:
    """Carry out `plan` on both sides at once, teacher-forced with the reference's tokens."""
    agreement, decided, fresh = Agreement(), plan.given, plan.given
    for count in plan.counts_S.tolist():
        positions_BK = progress.order_BL[:, decided : decided + count]
        uniforms_BK = progress.uniforms_BL.gather(1, positions_BK)
        expected_MD, found_MD = (
            side.calls(progress, decided, fresh, count).flatten(0, 1)
            for side in (reference, candidate)
        )
        rows, tokens = chunk_rows(reference.network, expected_MD), []
        parts = (torch.split(x, rows) for x in (expected_MD, found_MD, uniforms_BK.flatten()))
        for expected, found, uniforms in zip(*parts, strict=True):
            sides = reference.network.logits(expected), candidate.network.logits(found)
            tokens.append(draw(sides[0], uniforms, settings).tokens)
            agreement += compare_draws(*sides, tokens[-1], uniforms, settings)
        progress.canvas_BL.scatter_(1, positions_BK, torch.cat(tokens).view_as(positions_BK))
        decided, fresh = decided + count, count
    return agreement


def compare_draws(
    expected_KV: Tensor,
    found_KV: Tensor,
    tokens_K: Tensor,
    uniforms_K: Tensor,
    settings: DrawSettings,
) -> Agreement:
    """Judge the draws of some tokens, on both sides, with those that the reference drew."""
    expected_log, found_log = (x.log_softmax(-1) for x in (expected_KV, found_KV))
    if expected_log.isnan().any() or found_log.isnan().any():
        raise NumericalError("the network gave logits that are not finite; try --dtype fp32")
    likely = torch.maximum(expected_log, found_log) > LEAST_LOG_PROB
    log_prob_difference = (expected_log - found_log)[likely].abs().max()
    expected_cdf, found_cdf = (_normalised(x, settings) for x in (expected_log, found_log))
    apart_K = (expected_cdf - found_cdf).abs().amax(-1)
    other_K = draw(found_KV, uniforms_K, settings).tokens
    edge_K = _distance_to_end(expected_cdf, tokens_K, uniforms_K) <= apart_K
    different_K = tokens_K != other_K
    return Agreement(
        draws=tokens_K.numel(),
        different=int(different_K.sum()),
        edge=int(edge_K.sum()),
        unexplained=int((different_K & ~edge_K).sum()),
        log_prob_difference=float(log_prob_difference),
        cdf_difference=float(apart_K.max()),
    )


def _normalised(log_probs_KV: Tensor, settings: DrawSettings) -> Tensor:
    cdf_KV = shape(log_probs_KV, settings).cumsum(-1, dtype=torch.float64)
    return cdf_KV / cdf_KV[..., -1:]


def _distance_to_end(cdf_KV: Tensor, tokens_K: Tensor, uniforms_K: Tensor) -> Tensor:
    """How far each uniform is from the nearer end of its token's interval."""
    upper_K = cdf_KV.gather(-1, tokens_K[..., None])[..., 0]
    before_K1 = (tokens_K - 1).clamp(min=0)[..., None]
    lower_K = torch.where(tokens_K > 0, cdf_KV.gather(-1, before_K1)[..., 0], 0.0)
    return torch.minimum(uniforms_K - lower_K, upper_K - uniforms_K)
