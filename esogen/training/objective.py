"""The hybrid objective of Eso-LM (arXiv 2506.01928, section 3), written as two terms per row.

Variant (A) differs from (B) in who sees whom: its clean tokens see each other both ways.

    NELBO per token = diffusion term + autoregressive term

Each term is estimated from rows of its own, and every row is corrupted by a `Noise` that was drawn
beforehand, so a term is a pure function and a batch can be cut into passes of any size.

Shapes: B rows, L positions, K decided tokens, D model width, V vocabulary. Sorted order: clean
tokens, then masks, then what is not part of the text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.network import Hidden, hidden_after_bos, with_bos
from esogen.model.two_halves import TwoHalves

TIME_EPS = 1e-3
"""Times are drawn from [TIME_EPS, 1]: the weight of the diffusion term grows as 1 / t."""


class Forward(Hidden, Protocol):
    """The calls of a network that a loss makes: the network itself has them, or it compiled."""

    def logits(self, hidden_KD: Tensor, /) -> Tensor:
        """The output layer over the given rows: `[K, V]`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """How rows are corrupted, in sorted order.

    `order_BL` int64: natural position at each sorted index. `masked_BL` bool: sorted indices whose
    token is hidden and has a loss. `weight_BL` float32: factor of each loss, `[B, 1]` where all of
    a row have one. `counted_B` int64: sorted indices that are part of the text, all if None.
    """

    order_BL: Tensor
    masked_BL: Tensor
    weight_BL: Tensor
    counted_B: Tensor | None = None

    def to(self, device: torch.device) -> "Noise":
        """The same noise on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, part: slice) -> "Noise":
        """The noise of some of the rows."""
        return self._each(lambda tensor: tensor[part])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Noise":
        counted_B = None if self.counted_B is None else change(self.counted_B)
        order_BL, masked_BL = change(self.order_BL), change(self.masked_BL)
        return Noise(order_BL, masked_BL, change(self.weight_BL), counted_B)

    @property
    def clean_B(self) -> Tensor:
        """How many tokens of each text are not hidden."""
        hidden_B = self.masked_BL.sum(1)
        counted = self.masked_BL.shape[1] if self.counted_B is None else self.counted_B
        return counted - hidden_B


def diffusion_noise(
    uniforms_BL2: Tensor, t_B: Tensor, alpha_0: float, *, true_weight: bool = True
) -> Noise:
    """Hide each token with probability `1 - alpha_t`, `alpha_t = alpha_0 (1 - t)`: for training.

    Two uniforms a position: one hides it, one ranks it within its group. The weight is
    `-alpha'_t / (1 - alpha_t)`, or 1 where `true_weight` is off (lower variance, `alpha_0` = 1).
    """
    hidden_share_B = 1.0 - alpha_0 * (1.0 - t_B)
    masked_BL = uniforms_BL2[..., 0] < hidden_share_B[:, None]
    weight_B = alpha_0 / hidden_share_B if true_weight else torch.ones_like(t_B)
    return _sorted(masked_BL, uniforms_BL2[..., 1], weight_B)


def decision_noise(
    uniforms_BL2: Tensor, place_B: Tensor, alpha_0: float, counted_BL: Tensor
) -> Noise:
    """The state just before one decision of the diffusion phase, for evaluation.

    With the time integrated out, the diffusion term is a mean over decisions: of N tokens, X are
    left to the sequential phase (binomial); one of the other N - X decisions is picked, before
    which k > X tokens are hidden, and `(N - X) / k` times their loss has the term as its mean. So
    no weight is as large as 1 / t can be.

    Two uniforms a position: the time of its decision (diffusion phase: below `alpha_0`) and its
    rank within its group. `place_B` in (0, 1]: which decision, 1 the first. Positions outside
    `counted_BL` (bool) come last and have no loss.
    """
    time_BL = uniforms_BL2[..., 0].masked_fill(~counted_BL, -1.0)
    decisions_B = (counted_BL & (time_BL < alpha_0)).sum(1)
    sequential_B = counted_BL.sum(1) - decisions_B
    hidden_B = sequential_B + (place_B * decisions_B).ceil().long()
    latest_first_BL = time_BL.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    masked_BL = latest_first_BL < hidden_B[:, None]
    return _sorted(masked_BL, uniforms_BL2[..., 1], decisions_B / hidden_B, counted_BL)


def sequential_noise(
    uniforms_BL2: Tensor, alpha_0: float, counted_BL: Tensor | None = None
) -> Noise:
    """Keep each token with probability `alpha_0`; what is hidden stands left to right.

    Uniforms and `counted_BL` as in `decision_noise`: equal ones leave the same tokens hidden.
    """
    masked_BL = uniforms_BL2[..., 0] >= alpha_0
    length = masked_BL.shape[1]
    left_to_right = torch.arange(length, device=masked_BL.device) / length
    rank_BL = torch.where(masked_BL, left_to_right.to(uniforms_BL2.dtype), uniforms_BL2[..., 1])
    weight_B = torch.ones(len(masked_BL), device=masked_BL.device)
    return _sorted(masked_BL, rank_BL, weight_B, counted_BL)


def _sorted(
    masked_BL: Tensor, rank_BL: Tensor, weight_B: Tensor, counted_BL: Tensor | None = None
) -> Noise:
    group_BL = masked_BL.to(rank_BL.dtype)
    if counted_BL is not None:
        group_BL = torch.where(counted_BL, group_BL, 2.0)
        masked_BL = masked_BL & counted_BL
    order_BL = (group_BL + rank_BL).argsort(dim=1, stable=True)
    counted_B = None if counted_BL is None else counted_BL.sum(1)
    return Noise(order_BL, masked_BL.gather(1, order_BL), weight_B.float()[:, None], counted_B)


def diffusion_loss(network: Forward, x_BL: Tensor, noise: Noise) -> Tensor:
    """Weighted `-log p(x_l | z_t)` of the hidden tokens, nats, `[B, L]` in sorted order.

    One pass over the text with its hidden tokens replaced by masks, causal in sorted order; in (A)
    clean tokens see each other both ways.
    """
    clean_BL = x_BL.gather(1, noise.order_BL)
    z_BL = clean_BL.masked_fill(noise.masked_BL, network.config.mask_id)
    prefixed = network.config.family == "esolm-a"
    attend = Dense(_prefix(noise)) if prefixed else Dense(causal=True)
    hidden_BLD = hidden_after_bos(network, z_BL, noise.order_BL, attend)
    return hidden_nats(network, hidden_BLD, clean_BL, noise)


def sequential_loss(network: Forward, x_BL: Tensor, noise: Noise) -> Tensor:
    """`-log p(x_l | z_0, x before l)` of the hidden tokens, nats, `[B, L]` in sorted order.

    One pass over masks and text together: a mask sees itself and the clean tokens of all earlier
    sorted indices.
    """
    clean_BL = x_BL.gather(1, noise.order_BL)
    z_BL = clean_BL.masked_fill(noise.masked_BL, network.config.mask_id)
    hidden = _hidden_both_ways if network.config.family == "esolm-a" else _hidden_causal
    hidden_BLD = hidden(network, z_BL, clean_BL, noise)
    return hidden_nats(network, hidden_BLD, clean_BL, noise)


def _hidden_causal(network: Forward, z_BL: Tensor, clean_BL: Tensor, noise: Noise) -> Tensor:
    """Behind a bos token or not, the text is as long as the masks: nothing sees its last token."""
    length = z_BL.shape[1]
    text_BM, places_BM = with_bos(network.config, clean_BL, noise.order_BL)
    return network.hidden(
        torch.cat([z_BL, text_BM[:, :length]], 1),
        torch.cat([noise.order_BL, places_BM[:, :length]], 1),
        TwoHalves(length, given=text_BM.shape[1] - length),
        slice(length),
    )


def _hidden_both_ways(network: Forward, z_BL: Tensor, clean_BL: Tensor, noise: Noise) -> Tensor:
    mask = patterns.two_halves(_prefix(noise))
    ids_BM, positions_BM = torch.cat([z_BL, clean_BL], 1), torch.cat([noise.order_BL] * 2, 1)
    return hidden_after_bos(network, ids_BM, positions_BM, Dense(mask), z_BL.shape[1])


def _prefix(noise: Noise) -> Tensor:
    """Clean tokens of (A) see each other both ways, `[B, 1, L, L]`."""
    return patterns.prefix(noise.clean_B, noise.order_BL.shape[1])


def hidden_nats(network: Forward, hidden_BLD: Tensor, clean_BL: Tensor, noise: Noise) -> Tensor:
    """Weighted `-log p` of the hidden tokens, nats, `[B, L]`, from their hidden states."""
    logits_KV = network.logits(hidden_BLD[noise.masked_BL])
    nats_K = F.cross_entropy(logits_KV, clean_BL[noise.masked_BL], reduction="none")
    nats_BL = torch.zeros_like(noise.masked_BL, dtype=nats_K.dtype)
    return nats_BL.masked_scatter(noise.masked_BL, nats_K) * noise.weight_BL
