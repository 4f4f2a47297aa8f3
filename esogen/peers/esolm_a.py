"""Eso-LM (A), the ablation of arXiv 2506.01928 with clean tokens that see each other both ways.

In the diffusion phase a new clean token changes all others, so nothing can be cached; masks still
see only what stands before them, so those that are not being decided cost nothing. What the
diffusion phase has decided is a prefix that the sequential phase no longer changes: it is read
once, both ways, and from there on the cache is that of a left-to-right model. Calls of
the diffusion phase are not recorded for a GPU: each is wider than the one before.

Shapes: B rows, L positions, K tokens of this step, D model width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.captured import Through
from esogen.generate.denoise import Progress
from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.network import Network, hidden_after_bos
from esogen.peers.attend import hidden_through


class CachedCalls:
    """Feed clean tokens and this step's masks by diffusion; later, what the cache does not hold."""

    def __init__(self, network: Network, through: Through, prefix: int) -> None:
        self._network, self._through, self._prefix = network, through, prefix

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count` masks."""
        if decided < self._prefix:
            order_BL = progress.order_BL[:, : decided + count]
            return _dense(self._network, progress, order_BL, decided)[:, decided:]
        first = 0 if decided == self._prefix else decided - fresh
        positions_BL = progress.order_BL[:, first : decided + count]
        ids_BL = progress.canvas_BL.gather(1, positions_BL)
        seen = _prefix(decided - first, ids_BL)
        config = self._network.config
        hidden_BLD = hidden_through(config, self._through, ids_BL, positions_BL, seen)
        self._through.cache.commit(decided - first)
        return hidden_BLD[:, -count:]

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self._through.keep(kept)


class UncachedCalls:
    """Run all L positions, clean and masked, in every call: what the cache must equal."""

    def __init__(self, network: Network, prefix: int) -> None:
        self._network, self._prefix = network, prefix

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count` masks."""
        clean = min(decided, self._prefix)
        hidden_BLD = _dense(self._network, progress, progress.order_BL, clean)
        return hidden_BLD[:, decided : decided + count]

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Nothing is kept between calls."""


def _dense(network: Network, progress: Progress, order_BL: Tensor, clean: int) -> Tensor:
    """Hidden states of the tokens in `order_BL`, the first `clean` of them both ways."""
    ids_BL = progress.canvas_BL.gather(1, order_BL)
    return hidden_after_bos(network, ids_BL, order_BL, Dense(_prefix(clean, ids_BL)))


def _prefix(clean: int, ids_BL: Tensor) -> Tensor:
    count = torch.full((1,), clean, device=ids_BL.device)
    return patterns.prefix(count, ids_BL.shape[1])
