"""Logits to tokens: one uniform number each, exact by inverse CDF.

Float32 Gumbel noise is known to sharpen the distribution (arXiv 2409.02908). Searching the
cumulative sum for one uniform is exact to the rounding of the probabilities, and cheaper; the sum
itself runs in float64, so that a long tail is not bent.

Shapes: K tokens of this step, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How the network's distribution is shaped before a token is drawn from it.

    `temperature` >= 0 divides the logits; 0 takes the most probable token. `top_k` >= 1 keeps the
    most probable tokens, None all. `top_p` in (0, 1] keeps the nucleus, with the token that
    crosses p. Ties go to the lower id. Raises `ValueError` naming field, value and range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


class Drawn(NamedTuple):
    """Tokens int64 and their log-probabilities (the model's own: before shaping), each `[...]`."""

    tokens: Tensor
    log_probs: Tensor


Draw = Callable[[Tensor, Tensor, DrawSettings], Drawn]
"""A way of drawing; see `draw`, which every other one must equal."""


def draw(logits_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings) -> Drawn:
    """Draw one token per row from logits `[..., V]` with uniforms `[...]` in [0, 1).

    Logits that are not numbers give log-probabilities that are not: the caller looks, once, when
    it reads the results back.
    """
    log_probs_KV = logits_KV.log_softmax(-1)
    probs_KV = tempered(log_probs_KV, settings.temperature)
    tokens_K1 = search(_shaped(probs_KV, settings), uniforms_K)
    return Drawn(tokens_K1[..., 0], log_probs_KV.gather(-1, tokens_K1)[..., 0])


class Drawing(NamedTuple):
    """What draws, and why it is not the usual, where it is not."""

    by: Draw
    note: str | None = None


def choose_draw(device: torch.device) -> Drawing:
    """What draws on `device`: on a GPU a Triton kernel, if that draws what `draw` does."""
    if device.type != "cuda":
        return Drawing(draw)
    try:
        from esogen.generate import draw_kernel

        return Drawing(checked(draw_kernel.draw, device))
    except Exception as error:  # compilers fail in many ways
        return Drawing(draw, f"tokens are drawn by sorting ({type(error).__name__}: {error})")


def checked(drawn_by: Draw, device: torch.device) -> Draw:
    """The same, after it has drawn as `draw` does from a few rows of logits.

    The uniforms lie in the middle of intervals. Raises `RuntimeError` where it has not.
    """
    settings = DrawSettings(top_p=0.9)
    logits_KV = torch.randn(8, 3000, generator=torch.Generator().manual_seed(0)) * 3
    cdf_KV = shape(logits_KV.log_softmax(-1), settings).cumsum(-1, dtype=torch.float64)
    cdf_KV /= cdf_KV[:, -1:]
    wanted_K = torch.searchsorted(cdf_KV, torch.linspace(0.05, 0.95, 8)[:, None].double())
    middles_K1 = (cdf_KV.gather(1, wanted_K) + cdf_KV.gather(1, wanted_K - 1)) / 2
    drawn = drawn_by(logits_KV.to(device), middles_K1[:, 0].to(device), settings)
    expected = draw(logits_KV, middles_K1[:, 0], settings)
    apart = (drawn.log_probs.cpu() - expected.log_probs).abs().max().item()
    if (drawn.tokens.cpu() != expected.tokens).any() or not apart < 1e-5:
        raise RuntimeError("it draws otherwise than the reference")
    return drawn_by


def shape(log_probs_KV: Tensor, settings: DrawSettings) -> Tensor:
    """Probabilities after temperature, then top-k, then nucleus; zero outside, unnormalised."""
    return _shaped(tempered(log_probs_KV, settings.temperature), settings)


def tempered(log_probs_KV: Tensor, temperature: float) -> Tensor:
    """Probabilities after temperature; at 0 the most probable token has them all."""
    if temperature == 0.0:
        best_K1 = log_probs_KV.argmax(-1, keepdim=True)
        return torch.zeros_like(log_probs_KV).scatter_(-1, best_K1, 1.0)
    if temperature != 1.0:
        # From the most probable token down, so that a tiny temperature overflows to zero, not NaN.
        below_KV = (log_probs_KV - log_probs_KV.amax(-1, keepdim=True)).double()
        log_probs_KV = (below_KV / temperature).log_softmax(-1)
    return log_probs_KV.exp()


def _shaped(probs_KV: Tensor, settings: DrawSettings) -> Tensor:
    if settings.top_k is None and settings.top_p == 1.0:
        return probs_KV
    return probs_KV * _kept(probs_KV, settings)


def _kept(probs_KV: Tensor, settings: DrawSettings) -> Tensor:
    """Which entries survive top-k and nucleus: all above the least kept probability, and of those
    that have just that one, as many as there is room for, lower ids first.

    In ascending order, an entry survives if the sum up to it exceeds what is to be left out.
    """
    ascending_KV = _ascending(probs_KV)
    sums_KV = ascending_KV.cumsum(-1, dtype=torch.float64)
    first, left_out_K1 = 0, (1.0 - settings.top_p) * sums_KV[..., -1:]
    if settings.top_k is not None:
        first = max(0, probs_KV.shape[-1] - settings.top_k)
        below_K1 = sums_KV[..., first : first + 1] - ascending_KV[..., first : first + 1]
        left_out_K1 += settings.top_p * below_K1  # below, and the share of what is above
    index_K1 = torch.searchsorted(sums_KV, left_out_K1, right=True)
    index_K1 = index_K1.clamp_(first, probs_KV.shape[-1] - 1)  # whatever rounding says, one stays
    least_K1 = ascending_KV.gather(-1, index_K1)
    on_cpu = probs_KV.device.type == "cpu"  # asking waits for the device, so only a CPU asks
    if on_cpu and torch.equal(torch.searchsorted(ascending_KV, least_K1), index_K1):
        return probs_KV >= least_K1
    room_K1 = torch.searchsorted(ascending_KV, least_K1, right=True) - index_K1
    tied_KV = probs_KV == least_K1
    return (probs_KV > least_K1) | (tied_KV & (tied_KV.cumsum(-1) <= room_K1))


def _ascending(probs_KV: Tensor) -> Tensor:
    if probs_KV.device.type != "cpu":
        return probs_KV.sort(-1).values
    return torch.from_numpy(np.sort(probs_KV.numpy(), axis=-1))  # vectorised, unlike torch's


def search(probs_KV: Tensor, uniforms_K: Tensor) -> Tensor:
    """Index `[..., 1]` at which the running sum of unnormalised probabilities passes u."""
    cdf_KV = probs_KV.cumsum(-1, dtype=torch.float64)
    target_K1 = uniforms_K.double()[..., None] * cdf_KV[..., -1:]
    index_K1 = torch.searchsorted(cdf_KV, target_K1, right=True)
    return index_K1.clamp_(max=probs_KV.shape[-1] - 1)
