"""Left to right, one token a call: row i of the network predicts position i + 1.

A text begins from the model's bos token, end-of-text, which is given and not counted. So a call
feeds the token decided last, and nothing is ever computed twice.

Shapes: B rows, L positions, K tokens of this step, D model width.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.captured import Through
from esogen.generate.denoise import Progress
from esogen.model.attention import Dense
from esogen.model.network import Network, with_bos
from esogen.peers.attend import natural


class CachedCalls:
    """Feed what is not in the cache yet: the prompt at first, then the token decided last."""

    def __init__(self, network: Network, through: Through) -> None:
        self._network, self._through = network, through

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden state `[B, 1, D]` of the row that predicts the next token."""
        ids_BL, positions_BL = _inputs(self._network, progress)
        new = slice(int(self._through.cache.lengths_B[0]), decided + 1)
        hidden_B1D = self._through(ids_BL[:, new], positions_BL[:, new], wanted=slice(-1, None))
        self._through.cache.commit(new.stop - new.start)
        return hidden_B1D

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self._through.keep(kept)


class UncachedCalls:
    """Run the whole text in every call: what the cache must equal."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden state `[B, 1, D]` of the row that predicts the next token."""
        hidden_BLD = self._network.hidden(*_inputs(self._network, progress), Dense(causal=True))
        return hidden_BLD[:, decided : decided + count]

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Nothing is kept between calls."""


def _inputs(network: Network, progress: Progress) -> tuple[Tensor, Tensor]:
    """Bos and every token with its position; row i is what predicts position i, `[B, 1 + L]`."""
    return with_bos(network.config, progress.canvas_BL, natural(progress.canvas_BL))
