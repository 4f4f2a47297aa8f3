"""One training batch: which rows, corrupted how, counted with what weight; a function of the step.

A batch is a list of `Share`s, one for each term of each `alpha_0`. The loss of a batch is the sum
over its shares of `scale * sum of losses`; shares are cut into passes of any size (gradient
accumulation) or dealt out to several processes without changing that sum.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
    """The rows of a batch that take one term of the objective at one `alpha_0`.

    `counted_B`: leading tokens of each row that belong to its text; what follows is padding, which
    has loss too, but in no figure that is shown. `scale` makes a mean over all tokens of the sum,
    `text_scale` one over those of the texts.
    """

    x_BL: Tensor
    counted_B: Tensor
    noise: Noise
    row_loss: RowLoss
    scale: float
    text_scale: float

    def passes(self, rows: int) -> Iterator["Share"]:
        """This share cut into pieces of at most `rows` rows."""
        for first in range(0, len(self.x_BL), rows):
            part = slice(first, first + rows)
            yield replace(
                self,
                x_BL=self.x_BL[part],
                counted_B=self.counted_B[part],
                noise=self.noise.rows(part),
            )

    def nats(self, network: Forward) -> Tensor:
        """The loss of every token, nats, `[B, L]` in sorted order."""
        return self.row_loss(network, self.x_BL, self.noise)

    def loss(self, nats_BL: Tensor) -> Tensor:
        """This share's part of the batch's loss, a scalar in nats per token."""
        return nats_BL.sum() * self.scale

    def text_loss(self, nats_BL: Tensor) -> Tensor:
        """The same of the texts alone, without padding."""
        text_BL = self.noise.order_BL < self.counted_B[:, None]
        return (nats_BL * text_BL).sum() * self.text_scale


@dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    """Some rows of a batch, how much of the batch they are, and where they are to be."""

    x_BL: Tensor
    counted_B: Tensor
    share_of_batch: float
    device: torch.device

    def placed(self, numbers: np.ndarray) -> Tensor:
        """Random numbers beside the rows; a GPU is not waited for."""
        return _placed(torch.from_numpy(numbers), self.device)

    def share(self, part: slice, noise: Noise, row_loss: RowLoss) -> Share:
        """Some of these rows under one term, which has the weight of all of them."""
        x_BL, counted_B = self.x_BL[part], self.counted_B[part]
        scale = self.share_of_batch / x_BL.numel()
        text_scale = self.share_of_batch / int(counted_B.sum())
        x_BL, counted_B = _placed(x_BL, self.device), _placed(counted_B, self.device)
        return Share(x_BL, counted_B, noise, row_loss, scale, text_scale)


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


_CPU = torch.device("cpu")


def shares(
    rows: Rows,
    settings: TrainingSettings,
    step: int,
    config: ModelConfig,
    device: torch.device = _CPU,
) -> list[Share]:
    """The batch of step `step`, by the objective of the network's family.

    Random numbers are drawn on the CPU and sorted on the device, with the same result on all.
    """
    indices = batch_indices(len(rows), settings.batch_size, step, settings.seed)
    parts = np.array_split(indices, len(settings.alphas))
    batch = []
    for i, (alpha_0, part) in enumerate(zip(settings.alphas, parts, strict=True)):
        random = stream(settings.seed, Purpose.TRAINING, 1, step, i)
        texts = _Texts(
            torch.from_numpy(rows.ids_RL[part].astype(np.int64)),
            torch.from_numpy(rows.counted_R[part].astype(np.int64)),
            len(part) / len(indices),
            device,
        )
        if config.family in ALPHA_0:
            batch.append(_peer_term(texts, random, config))
        else:
            batch += _terms(texts, alpha_0, random)
    return batch


def diffusion_rows(rows: int, alpha_0: float) -> int:
    """How many of `rows` take the diffusion term: all, none, or half (kappa = 0.5)."""
    if alpha_0 in (0.0, 1.0):
        return rows if alpha_0 else 0
    return rows // 2


def _terms(texts: _Texts, alpha_0: float, random: np.random.Generator) -> list[Share]:
    (rows, length), split = texts.x_BL.shape, diffusion_rows(len(texts.x_BL), alpha_0)
    uniforms = texts.placed(random.random((rows, length, 2)))
    times = texts.placed(low_discrepancy_times(random, split))
    terms = []
    if split:
        # alpha_0 = 1 trains with weight 1, as published: the bound's own 1 / t has more variance.
        noise = diffusion_noise(uniforms[:split], times, alpha_0, true_weight=alpha_0 < 1.0)
        terms.append(texts.share(slice(split), noise, diffusion_loss))
    if split < rows:
        noise = sequential_noise(uniforms[split:], alpha_0)
        terms.append(texts.share(slice(split, rows), noise, sequential_loss))
    return terms


def _peer_term(texts: _Texts, random: np.random.Generator, config: ModelConfig) -> Share:
    """All rows under the one term that the families beside Eso-LM have."""
    (rows, length), everything = texts.x_BL.shape, slice(None)
    if config.family == "ar":
        return texts.share(
            everything, whole_noise(_placed(texts.x_BL, texts.device)), next_token_loss
        )
    uniforms = texts.placed(random.random((rows, length, 2)))
    if config.family == "mdlm":
        times = texts.placed(low_discrepancy_times(random, rows))
        return texts.share(everything, diffusion_noise(uniforms, times, alpha_0=1.0), mdlm_loss)
    blocks = -(-length // config.block_size)
    in_turn = low_discrepancy_times(random, rows * blocks)
    shuffled = in_turn[random.random(rows * blocks).argsort()]  # or a row's blocks would be alike
    t_BG = texts.placed(shuffled.reshape(rows, blocks))
    noise = block_noise(uniforms[..., 0], t_BG, config.block_size)
    return texts.share(everything, noise, bd3lm_loss)


def low_discrepancy_times(random: np.random.Generator, rows: int) -> np.ndarray:
    """Times `[rows]`, each uniform on [TIME_EPS, 1], one in every stretch of length 1 / rows."""
    u = (np.arange(rows) + random.random()) / max(rows, 1)
    return TIME_EPS + (1.0 - TIME_EPS) * (u % 1.0)
