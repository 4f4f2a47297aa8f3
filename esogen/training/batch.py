"""One training batch: which rows, corrupted how, counted with what weight; a function of the step.

A batch is a list of `Share`s, one for each term of each `alpha_0`. The loss of a batch is the sum
over its shares of `scale * sum of row losses`; shares are cut into passes of any size (gradient
accumulation) or dealt out to several processes without changing that sum.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esogen.generate.streams import Purpose, stream
from esogen.model.config import ModelConfig
from esogen.model.families import ALPHA_0
from esogen.training.data import Rows, batch_indices
from esogen.training.objective import (
    TIME_EPS,
    Forward,
    Noise,
    diffusion_loss,
    diffusion_noise,
    sequential_loss,
    sequential_noise,
)
from esogen.training.peer_objectives import (
    bd3lm_loss,
    block_noise,
    mdlm_loss,
    next_token_loss,
    whole_noise,
)
from esogen.training.settings import TrainingSettings

RowLoss = Callable[[Forward, Tensor, Noise], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The rows of a batch that take one term of the objective at one `alpha_0`."""

    x_BL: Tensor
    noise: Noise
    row_loss: RowLoss
    scale: float

    def passes(self, rows: int) -> Iterator["Share"]:
        """This share cut into pieces of at most `rows` rows."""
        for first in range(0, len(self.x_BL), rows):
            part = slice(first, first + rows)
            yield Share(self.x_BL[part], self.noise.rows(part), self.row_loss, self.scale)

    def to(self, device: torch.device) -> "Share":
        """The same share on another device."""
        return Share(self.x_BL.to(device), self.noise.to(device), self.row_loss, self.scale)

    def loss(self, network: Forward) -> Tensor:
        """This share's part of the batch's loss, a scalar in nats per token."""
        return self.row_loss(network, self.x_BL, self.noise).sum() * self.scale


def shares(rows: Rows, settings: TrainingSettings, step: int, config: ModelConfig) -> list[Share]:
    """The batch of step `step`, by the objective of the network's family."""
    indices = batch_indices(len(rows), settings.batch_size, step, settings.seed)
    parts = np.array_split(indices, len(settings.alphas))
    batch = []
    for i, (alpha_0, part) in enumerate(zip(settings.alphas, parts, strict=True)):
        random = stream(settings.seed, Purpose.TRAINING, 1, step, i)
        x_BL = torch.from_numpy(rows.ids_RL[part].astype(np.int64))
        share_of_batch = len(part) / len(indices)
        if config.family in ALPHA_0:
            batch.append(_peer_term(x_BL, random, share_of_batch, config))
        else:
            batch += _terms(x_BL, alpha_0, random, share_of_batch)
    return batch


def diffusion_rows(rows: int, alpha_0: float) -> int:
    """How many of `rows` take the diffusion term: all, none, or half (kappa = 0.5)."""
    if alpha_0 in (0.0, 1.0):
        return rows if alpha_0 else 0
    return rows // 2


def _terms(
    x_BL: Tensor, alpha_0: float, random: np.random.Generator, share_of_batch: float
) -> list[Share]:
    (rows, length), split = x_BL.shape, diffusion_rows(len(x_BL), alpha_0)
    uniforms = torch.from_numpy(random.random((rows, length, 2)))
    times = torch.from_numpy(low_discrepancy_times(random, split))
    terms = []
    if split:
        # alpha_0 = 1 trains with weight 1, as published: the bound's own 1 / t has more variance.
        noise = diffusion_noise(uniforms[:split], times, alpha_0, true_weight=alpha_0 < 1.0)
        scale = share_of_batch / (split * length)
        terms.append(Share(x_BL[:split], noise, diffusion_loss, scale))
    if split < rows:
        noise = sequential_noise(uniforms[split:], alpha_0)
        scale = share_of_batch / ((rows - split) * length)
        terms.append(Share(x_BL[split:], noise, sequential_loss, scale))
    return terms


def _peer_term(
    x_BL: Tensor, random: np.random.Generator, share_of_batch: float, config: ModelConfig
) -> Share:
    """All rows under the one term that the families beside Eso-LM have."""
    (rows, length), scale = x_BL.shape, share_of_batch / x_BL.numel()
    if config.family == "ar":
        return Share(x_BL, whole_noise(x_BL), next_token_loss, scale)
    uniforms = torch.from_numpy(random.random((rows, length, 2)))
    if config.family == "mdlm":
        times = torch.from_numpy(low_discrepancy_times(random, rows))
        return Share(x_BL, diffusion_noise(uniforms, times, alpha_0=1.0), mdlm_loss, scale)
    blocks = -(-length // config.block_size)
    in_turn = low_discrepancy_times(random, rows * blocks)
    shuffled = in_turn[random.random(rows * blocks).argsort()]  # or a row's blocks would be alike
    t_BG = torch.from_numpy(shuffled.reshape(rows, blocks))
    noise = block_noise(uniforms[..., 0], t_BG, config.block_size)
    return Share(x_BL, noise, bd3lm_loss, scale)


def low_discrepancy_times(random: np.random.Generator, rows: int) -> np.ndarray:
    """Times `[rows]`, each uniform on [TIME_EPS, 1], one in every stretch of length 1 / rows."""
    u = (np.arange(rows) + random.random()) / max(rows, 1)
    return TIME_EPS + (1.0 - TIME_EPS) * (u % 1.0)
