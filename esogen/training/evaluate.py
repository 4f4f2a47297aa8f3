"""How well a network models texts it has not seen: the bound of the method, with its true weights.

The bound of one text is estimated from drawn masks; each figure carries its standard error. Every
draw is a function of (seed, row), so neither the batch nor the device changes it.

Shapes: B rows of a batch, L positions, R rows in all, T = 2 terms of the bound.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.streams import Purpose, stream
from esogen.model.config import Family
from esogen.model.families import ALPHA_0
from esogen.model.network import Network
from esogen.training.batch import RowLoss
from esogen.training.data import Rows
from esogen.training.loop import Precision
from esogen.training.objective import (
    Noise,
    decision_noise,
    diffusion_loss,
    sequential_loss,
    sequential_noise,
)
from esogen.training.peer_objectives import (
    bd3lm_loss,
    block_decision_noise,
    mdlm_loss,
    next_token_loss,
    whole_noise,
)

_DIFFUSION: Mapping[Family, RowLoss] = {"mdlm": mdlm_loss, "bd3lm": bd3lm_loss}


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and its standard error over rows; the error of a single row is NaN."""

    value: float
    error: float

    def scaled(self, factor: float) -> "Figure":
        """The same in another unit."""
        return Figure(self.value * factor, self.error * factor)

    def __format__(self, spec: str) -> str:
        """The number ± its error, where it has one."""
        error = "" if math.isnan(self.error) else f" ± {self.error:{spec}}"
        return f"{self.value:{spec}}{error}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The bound on -log p of texts under one `alpha_0`.

    `nelbo`, and `diffusion` and `sequential` that it is the sum of, in nats per token;
    `bits_per_byte` of the texts' UTF-8. `tokens` counts end-of-text tokens and no padding.
    """

    alpha_0: float
    nelbo: Figure
    diffusion: Figure
    sequential: Figure
    bits_per_byte: Figure
    tokens: int
    bytes: int


def evaluate(
    network: Network,
    rows: Rows,
    alpha_0: float,
    *,
    seed: int = 0,
    samples: int = 1,
    batch: int = 32,
    precision: Precision = nullcontext,
) -> Evaluation:
    """Estimate the bound of `rows` (best those of `windows`) under `alpha_0` in [0, 1].

    `samples` draws a row; `batch` rows at a time, which changes no draw. `network` may be
    folded or not. A left-to-right model's figure is exact, whatever is drawn. Raises `ValueError`
    where there is nothing to evaluate, and for an `alpha_0` that the network's family has not.
    """
    family = network.config.family
    if ALPHA_0.get(family, alpha_0) != alpha_0:
        raise ValueError(f"alpha_0 is {alpha_0}; of the family {family} it is {ALPHA_0[family]}")

    if not len(rows) or samples < 1:
        raise ValueError(
            f"there are {len(rows)} rows and {samples} samples; each must be at least 1"
        )
    network.eval()
    terms_TR = np.zeros((2, len(rows)))
    for sample in range(samples):
        draws = _Draws(rows, alpha_0, _places(len(rows), seed, sample, samples), seed, sample)
        for part in _parts(rows, batch):
            with torch.inference_mode(), precision():
                terms_TR[:, part] += draws.nats(network, part)
    return _summary(alpha_0, rows, terms_TR / samples)


def _parts(rows: Rows, batch: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers, at most `batch` at a time, rows of like length together."""
    by_length = rows.counted_R.argsort(kind="stable")
    return (by_length[first : first + batch] for first in range(0, len(by_length), batch))


def _places(rows: int, seed: int, sample: int, samples: int) -> NDArray[np.float64]:
    """Places `[R]` in (0, 1]: all rows and samples together hit every stretch of equal length once.

    Which row meets which stretch is drawn, so that no row's text is tied to its place.
    """
    u = stream(seed, Purpose.EVALUATION, 0, sample).random(rows + 1)
    stretch_R = u[:rows].argsort(kind="stable")
    places_R: NDArray[np.float64] = (sample + (stretch_R + 1.0 - u[rows]) / rows) / samples
    return places_R


@dataclass(frozen=True, slots=True, eq=False)
class _Draws:
    """One draw for every row, the same for both terms."""

    rows: Rows
    alpha_0: float
    places_R: NDArray[np.float64]
    seed: int
    sample: int

    def nats(self, network: Network, part: NDArray[np.int64]) -> NDArray[np.float64]:
        """Both terms of some rows' bounds, `[T, B]`."""
        counted_B = self.rows.counted_R[part]
        width = int(counted_B.max())  # padding stands last and is seen by nobody: leave it out
        counted_BL = torch.from_numpy(np.arange(width) < counted_B[:, None])
        uniforms_BL2 = torch.from_numpy(np.stack([self._uniforms(row, width) for row in part]))
        x_BL = torch.from_numpy(self.rows.ids_RL[part, :width].astype(np.int64))
        config, nats_TB = network.config, np.zeros((2, len(part)))
        if self.alpha_0 > 0.0:
            places_B = torch.from_numpy(self.places_R[part])
            if config.family == "bd3lm":
                noise = block_decision_noise(uniforms_BL2, places_B, counted_BL, config.block_size)
            else:
                noise = decision_noise(uniforms_BL2, places_B, self.alpha_0, counted_BL)
            row_loss = _DIFFUSION.get(config.family, diffusion_loss)
            nats_TB[0] = _on_device(row_loss, network, x_BL, noise)
        if self.alpha_0 < 1.0 and config.family == "ar":
            nats_TB[1] = _on_device(next_token_loss, network, x_BL, whole_noise(x_BL, counted_BL))
        elif self.alpha_0 < 1.0:
            noise = sequential_noise(uniforms_BL2, self.alpha_0, counted_BL)
            nats_TB[1] = _on_device(sequential_loss, network, x_BL, noise)
        return nats_TB

    def _uniforms(self, row: int, width: int) -> NDArray[np.float64]:
        random = stream(self.seed, Purpose.EVALUATION, 1, self.sample, int(row))
        return random.random((width, 2))


def _on_device(
    row_loss: RowLoss, network: Network, x_BL: Tensor, noise: Noise
) -> NDArray[np.float32]:
    device = network.vocab_embed.embedding.device
    nats_B: NDArray[np.float32] = (
        row_loss(network, x_BL.to(device), noise.to(device)).sum(1).cpu().numpy()
    )
    return nats_B


def _summary(alpha_0: float, rows: Rows, terms_TR: NDArray[np.float64]) -> Evaluation:
    diffusion, sequential = (_per_token(nats_R, rows.counted_R) for nats_R in terms_TR)
    nelbo = _per_token(terms_TR.sum(0), rows.counted_R)
    tokens = int(rows.counted_R.sum())
    bits_per_byte = nelbo.scaled(tokens / (math.log(2.0) * rows.bytes))
    return Evaluation(
        alpha_0, nelbo, diffusion, sequential, bits_per_byte, tokens=tokens, bytes=rows.bytes
    )


def _per_token(nats_R: NDArray[np.float64], counted_R: NDArray[np.int32]) -> Figure:
    """The ratio of the sums, and the standard error of a ratio."""
    tokens, rows = counted_R.sum(), len(nats_R)
    value = nats_R.sum() / tokens
    residual_R = nats_R - value * counted_R
    error = math.sqrt((residual_R**2).sum() * rows / (rows - 1)) if rows > 1 else math.nan
    return Figure(float(value), float(error / tokens))
