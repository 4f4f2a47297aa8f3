"""The training bound (NELBO) of windows: masks drawn as in evaluation, each a function of its key.

Shapes: B draws read together, L positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esogen.generate.streams import Purpose, stream
from esogen.likelihood import Ids, Numbers
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.scoring.settings import ScoreSettings
from esogen.training.batch import RowLoss
from esogen.training.objective import (
    Noise,
    decision_noise,
    diffusion_loss,
    sequential_loss,
    sequential_noise,
)
from esogen.training.peer_objectives import bd3lm_loss, block_decision_noise, mdlm_loss

_KEY = 3
"""Of the streams of evaluation, those of this module; `orders` has 2."""


class Draw(NamedTuple):
    """One draw of masks for one window: two uniforms a position, and a place in (0, 1]."""

    tokens_L: Ids
    uniforms_L2: Numbers
    place: float


def draw_of(settings: ScoreSettings, tokens_L: Ids, key: tuple[int, ...], number: int) -> Draw:
    """Draw number `number` of the `time_samples` of a window, its place in a stretch of its own."""
    random = stream(settings.seed, Purpose.EVALUATION, _KEY, *key, number)
    uniforms = random.random((len(tokens_L) + 1, 2))
    place = (number + 1.0 - float(uniforms[-1, 0])) / settings.time_samples
    return Draw(tokens_L, uniforms[:-1], place)


@torch.inference_mode()
def nats_of(network: Network, draws: Sequence[Draw], settings: ScoreSettings) -> Numbers:
    """The bound of each draw, by its family's own terms, nats, `[B]`.

    `training.evaluate` estimates the same bound; here every draw is reported by itself.
    """
    counted_B = torch.tensor([len(draw.tokens_L) for draw in draws])
    longest = int(counted_B.max())
    counted_BL = torch.arange(longest) < counted_B[:, None]
    x_BL = _stack([draw.tokens_L for draw in draws], longest)
    uniforms_BL2 = _stack([draw.uniforms_L2 for draw in draws], longest)
    place_B = torch.tensor([draw.place for draw in draws], dtype=torch.float64)
    terms = _terms(network.config, settings, uniforms_BL2, place_B, counted_BL)
    device = network.vocab_embed.embedding.device
    nats_B = torch.zeros(len(draws), dtype=torch.float64)
    for row_loss, noise in terms:
        nats_B += row_loss(network, x_BL.to(device), noise.to(device)).sum(1).cpu()
    found: Numbers = nats_B.numpy()
    return found


def _terms(
    config: ModelConfig,
    settings: ScoreSettings,
    uniforms_BL2: Tensor,
    place_B: Tensor,
    counted_BL: Tensor,
) -> list[tuple[RowLoss, Noise]]:
    """The terms of a family's bound, each with its masks."""
    if config.family == "mdlm":
        return [(mdlm_loss, decision_noise(uniforms_BL2, place_B, 1.0, counted_BL))]
    if config.family == "bd3lm":
        size = config.block_size
        return [(bd3lm_loss, block_decision_noise(uniforms_BL2, place_B, counted_BL, size))]
    terms: list[tuple[RowLoss, Noise]] = []
    if settings.alpha_0 > 0.0:
        noise = decision_noise(uniforms_BL2, place_B, settings.alpha_0, counted_BL)
        terms.append((diffusion_loss, noise))
    if settings.alpha_0 < 1.0:
        noise = sequential_noise(uniforms_BL2, settings.alpha_0, counted_BL)
        terms.append((sequential_loss, noise))
    return terms


def _stack(rows: Sequence[np.ndarray], length: int) -> Tensor:
    stacked = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(stacked)
