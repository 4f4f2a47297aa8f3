"""The objectives of the families that esogen is compared with, each as it was published.

    MDLM            mean over t of `1 / t` times the loss of the hidden tokens, all in one input
    BD3-LM          the same in every block, with a time of its own, given the blocks before
    left to right   `-log p` of every token given those before: exact, no bound

A `Noise` says which tokens are hidden, as in `objective.py`. Times are drawn from [TIME_EPS, 1].

Shapes: B rows, L positions, G blocks, S tokens of a block, D model width.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.network import hidden_after_bos, with_bos
from esogen.training.objective import Forward, Noise, decision_noise, hidden_nats


def mdlm_loss(network: Forward, x_BL: Tensor, noise: Noise) -> Tensor:
    """Weighted `-log p(x_l | z_t)` of the hidden tokens, nats, `[B, L]` in sorted order.

    One pass in which everything sees everything (arXiv 2406.07524), so the order is of no account.
    """
    clean_BL = x_BL.gather(1, noise.order_BL)
    z_BL = clean_BL.masked_fill(noise.masked_BL, network.config.mask_id)
    ids_BM, positions_BM = with_bos(network.config, z_BL, noise.order_BL)
    ahead = ids_BM.shape[1] - z_BL.shape[1]
    mask = None
    if noise.counted_B is not None:
        places_M = torch.arange(ids_BM.shape[1], device=x_BL.device)
        mask = (places_M < noise.counted_B[:, None] + ahead)[:, None, None]
    hidden_BMD = network.hidden(ids_BM, positions_BM, Dense(mask))
    return hidden_nats(network, hidden_BMD[:, ahead:], clean_BL, noise)


def block_noise(uniforms_BL: Tensor, t_BG: Tensor, block_size: int) -> Noise:
    """Hide each token of a block with probability t, weight `1 / t`: for training BD3-LM."""
    t_BL = t_BG.repeat_interleave(block_size, dim=1)[:, : uniforms_BL.shape[1]]
    return _natural(uniforms_BL < t_BL, 1.0 / t_BL)


def block_decision_noise(
    uniforms_BL2: Tensor, place_B: Tensor, counted_BL: Tensor, block_size: int
) -> Noise:
    """The state just before one decision of every block, for evaluating BD3-LM.

    `decision_noise` of each block; the places of a row's blocks lie evenly apart.
    """
    rows, length = counted_BL.shape
    blocks = -(-length // block_size)
    extra = blocks * block_size - length
    place_BG = (place_B[:, None] + torch.arange(blocks) / blocks) % 1.0
    found = decision_noise(
        pad(uniforms_BL2, (0, 0, 0, extra)).view(-1, block_size, 2),
        place_BG.flatten(),
        1.0,
        pad(counted_BL, (0, extra)).view(-1, block_size),
    )
    masked = torch.zeros_like(found.masked_BL).scatter_(1, found.order_BL, found.masked_BL)
    weight = found.weight_BL.nan_to_num().expand(-1, block_size)  # 0 / 0 behind a text's end
    masked_BL, weight_BL = (x.reshape(rows, -1)[:, :length] for x in (masked, weight))
    return _natural(masked_BL, weight_BL, counted_BL)


def bd3lm_loss(network: Forward, x_BL: Tensor, noise: Noise) -> Tensor:
    """Weighted `-log p(x_l | its block, blocks before)` of the hidden tokens, nats, `[B, L]`.

    One pass over the noisy text and the clean one together (arXiv 2503.09573, section 3).
    """
    config, length = network.config, x_BL.shape[1]
    z_BL = x_BL.masked_fill(noise.masked_BL, config.mask_id)
    clean_half = patterns.block_causal(length, config.block_size, x_BL.device)
    mask = patterns.two_halves(clean_half, config.block_size)
    if noise.counted_B is not None:
        seen_BL = noise.order_BL < noise.counted_B[:, None]
        mask = mask & torch.cat([seen_BL, seen_BL], 1)[:, None, None]
    ids_BM, positions_BM = torch.cat([z_BL, x_BL], 1), torch.cat([noise.order_BL] * 2, 1)
    hidden_BLD = hidden_after_bos(network, ids_BM, positions_BM, Dense(mask), length)
    return hidden_nats(network, hidden_BLD, x_BL, noise)


def whole_noise(x_BL: Tensor, counted_BL: Tensor | None = None) -> Noise:
    """Every token of the text has a loss, each once: for left-to-right models."""
    masked_BL = torch.ones_like(x_BL, dtype=torch.bool) if counted_BL is None else counted_BL
    return _natural(masked_BL, torch.ones(len(x_BL), 1, device=x_BL.device), counted_BL)


def next_token_loss(network: Forward, x_BL: Tensor, noise: Noise) -> Tensor:
    """`-log p(x_l | x before l)` of every token, nats, `[B, L]`.

    One causal pass over the text from its bos token on, without its last token.
    """
    ids_BL, positions_BL = with_bos(network.config, x_BL, noise.order_BL)
    hidden_BLD = network.hidden(ids_BL[:, :-1], positions_BL[:, :-1], Dense(causal=True))
    return hidden_nats(network, hidden_BLD, x_BL, noise)


def _natural(masked_BL: Tensor, weight_BL: Tensor, counted_BL: Tensor | None = None) -> Noise:
    """Noise of a text that stands in natural order."""
    order_BL = torch.arange(masked_BL.shape[1], device=masked_BL.device).expand_as(masked_BL)
    counted_B = None if counted_BL is None else counted_BL.sum(1)
    return Noise(order_BL, masked_BL, weight_BL.float(), counted_B)
