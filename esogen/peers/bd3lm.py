"""BD3-LM (arXiv 2503.09573): blocks left to right, first-hitting steps of diffusion inside each.

A first-hitting step decides one position of the block, each undecided one equally likely, which is
the diffusion of the block in the limit of many steps without its empty ones (arXiv 2409.02908). So
the plan needs no network: within a block the order is random.

The cache holds finished blocks. A call feeds the block in hand, whose tokens see each other both
ways and are therefore never cached before it is finished, and at its first call what was finished
since the call before.

Shapes: B rows, L positions, K tokens of this step, D model width.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.captured import Through
from esogen.generate.denoise import Progress
from esogen.generate.plan import Plan
from esogen.generate.streams import Purpose, stream
from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.network import Network, hidden_after_bos
from esogen.peers.attend import hidden_through, natural, picked


def shuffled_in_blocks(plan: Plan, seed: int, samples: range, block_size: int) -> Plan:
    """A plan that goes left to right, with the undecided positions of each block shuffled."""
    length = plan.order_BL.shape[1]
    order_BL = plan.order_BL.copy()
    for row, sample in zip(order_BL, samples, strict=True):
        rank = np.asarray(stream(seed, Purpose.ORDER, sample).random(length))
        blank = row[plan.given :]
        row[plan.given :] = blank[np.lexsort((rank[blank], blank // block_size))]
    return replace(plan, order_BL=order_BL)


class CachedCalls:
    """Feed what was finished since the last call, and the block in hand."""

    def __init__(self, network: Network, through: Through) -> None:
        self._network, self._through = network, through
        self._finished = 0

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next mask; what stands before it is decided."""
        config = self._network.config
        begins = decided // config.block_size * config.block_size
        ids_BL = progress.canvas_BL[:, self._finished : begins + config.block_size]
        positions_BL = natural(ids_BL) + self._finished
        seen = patterns.block_causal(ids_BL.shape[1], config.block_size, ids_BL.device)
        hidden_BLD = hidden_through(config, self._through, ids_BL, positions_BL, seen)
        index_BK = progress.order_BL[:, decided : decided + count] - self._finished
        self._through.cache.commit(begins - self._finished)
        self._finished = begins
        return picked(hidden_BLD, index_BK)

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self._through.keep(kept)


class UncachedCalls:
    """Run all L positions, block-causal, in every call: what the cache must equal."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count` masks."""
        canvas_BL = progress.canvas_BL
        block_size = self._network.config.block_size
        mask = patterns.block_causal(canvas_BL.shape[1], block_size, canvas_BL.device)
        hidden_BLD = hidden_after_bos(self._network, canvas_BL, natural(canvas_BL), Dense(mask))
        return picked(hidden_BLD, progress.order_BL[:, decided : decided + count])

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Nothing is kept between calls."""
