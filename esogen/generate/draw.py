"""Logits to tokens: one uniform number each, exact by inverse CDF.

Float32 Gumbel noise is known to sharpen the distribution (arXiv 2409.02908). Searching the
cumulative sum for one uniform is exact to the rounding of the probabilities, and cheaper; the sum
itself runs in float64, so that a long tail is not bent.

Shapes: K tokens of this step, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


SHORTLISTS = (64, 512)
"""Numbers of most probable tokens among which the nucleus is looked for first."""


class Drawn(NamedTuple):
    """Tokens int64 and their log-probabilities (the model's own: before shaping), each `[...]`."""

    tokens: Tensor
    log_probs: Tensor


def draw(logits_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings) -> Drawn:
    """Draw one token per row from logits `[..., V]` with uniforms `[...]` in [0, 1).

    Logits that are not numbers give log-probabilities that are not: the caller looks, once, when
    it reads the results back.
    """
    log_probs_KV = logits_KV.log_softmax(-1)
    probs_KV = tempered(log_probs_KV, settings.temperature)
    if settings.top_k is None and settings.top_p == 1.0:
        tokens_K1 = _search(probs_KV, uniforms_K)
    else:
        sizes = _shortlist_sizes(probs_KV, settings)
        rows = probs_KV.flatten(0, -2), uniforms_K.flatten()
        tokens_K1 = _draw_shaped(*rows, settings, sizes).view(*uniforms_K.shape, 1)
    return Drawn(tokens_K1[..., 0], log_probs_KV.gather(-1, tokens_K1)[..., 0])


def shape(log_probs_KV: Tensor, settings: DrawSettings) -> Tensor:
    """Probabilities after temperature, then top-k, then nucleus; zero outside, unnormalised."""
    probs_KV = tempered(log_probs_KV, settings.temperature)
    return probs_KV * _kept_by_id(probs_KV, _total(probs_KV), settings)[0]


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


def _kept(sorted_KV: Tensor, total_K1: Tensor, settings: DrawSettings) -> Tensor:
    """Which of the probabilities, sorted from most to least, survive top-k and nucleus."""
    if settings.top_k is not None:
        sorted_KV = sorted_KV.clone()
        sorted_KV[..., settings.top_k :] = 0.0
        total_K1 = _total(sorted_KV)
    before_KV = sorted_KV.cumsum(-1, dtype=torch.float64) - sorted_KV
    kept_KV = (before_KV < settings.top_p * total_K1) & (sorted_KV > 0.0)
    kept_KV[..., 0] = True  # whatever rounding says, somebody must be drawn
    return kept_KV


def _total(probs_KV: Tensor) -> Tensor:
    return probs_KV.sum(-1, keepdim=True, dtype=torch.float64)


def _search(probs_KV: Tensor, uniforms_K: Tensor) -> Tensor:
    """Index `[..., 1]` at which the running sum of unnormalised probabilities passes u."""
    cdf_KV = probs_KV.cumsum(-1, dtype=torch.float64)
    target_K1 = (uniforms_K.double() * cdf_KV[..., -1])[..., None]
    index_K1 = torch.searchsorted(cdf_KV, target_K1, right=True)
    return index_K1.clamp_(max=probs_KV.shape[-1] - 1)


def _draw_shaped(
    probs_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings, sizes: Sequence[int]
) -> Tensor:
    """Draw `[K, 1]` among what top-k and nucleus keep, looked for in short lists first.

    A row whose list of `sizes[0]` tokens was too short tries the next one; in the end it is sorted.
    """
    if not sizes:
        kept_KV, _, _ = _kept_by_id(probs_KV, _total(probs_KV), settings)
        return _search(probs_KV * kept_KV, uniforms_K)
    # Ids ascending, then a stable sort by probability: ties stand in the order of their ids.
    ids_KS = probs_KV.topk(sizes[0], dim=-1).indices.sort(-1).values
    listed_KS = probs_KV.gather(-1, ids_KS)
    kept_KS, least_K, last_K = _kept_by_id(listed_KS, _total(probs_KV), settings)
    tokens_K1 = ids_KS.gather(-1, _search(listed_KS * kept_KS, uniforms_K))
    short_K = last_K >= least_K
    if bool(short_K.any()):
        rest = probs_KV[short_K], uniforms_K[short_K]
        tokens_K1[short_K] = _draw_shaped(*rest, settings, sizes[1:])
    return tokens_K1


def _shortlist_sizes(probs_KV: Tensor, settings: DrawSettings) -> list[int]:
    """How many of the most probable tokens to look at first.

    A list was long enough if its last entry is less probable than every kept one. Asking waits for
    the device, so only a CPU asks.
    """
    if probs_KV.device.type != "cpu":
        return []
    least = settings.top_k or 1
    return [size for size in SHORTLISTS if least <= size <= probs_KV.shape[-1] // 2]


def _kept_by_id(
    probs_KS: Tensor, total_K1: Tensor, settings: DrawSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries are kept `[..., S]`; the least kept probability and the least of all."""
    sorted_KS, index_KS = probs_KS.sort(dim=-1, descending=True, stable=True)
    kept_KS = _kept(sorted_KS, total_K1, settings)
    least_K = sorted_KS.masked_fill(~kept_KS, torch.inf).amin(-1)
    return torch.zeros_like(kept_KS).scatter_(-1, index_KS, kept_KS), least_K, sorted_KS[..., -1]
