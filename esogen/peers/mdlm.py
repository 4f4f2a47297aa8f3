"""MDLM (arXiv 2406.07524): the ancestral sampler, over a network that sees everything both ways.

The published sampler calls the network in every one of T steps, unless the step before changed
nothing: then the prediction stands as it was (its cached-prediction shortcut). Which positions a
step decides does not depend on the network, so the plan knows beforehand which steps decide any:
it is the `random` schedule with `alpha_0` = 1, and holds no others. Every call made is thus one
whose prediction is used, and used once.

There is no KV cache: a token that becomes clean changes the keys and values of all others.

Shapes: B rows, L positions, K tokens of this step, D model width.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.captured import Through
from esogen.generate.denoise import Progress
from esogen.model.config import ModelConfig
from esogen.model.network import with_bos
from esogen.peers.attend import natural, picked


class WholeTextCalls:
    """Run all L positions in natural order, both ways, in every call."""

    def __init__(self, config: ModelConfig, through: Through) -> None:
        self._config, self._through = config, through

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count` masks."""
        canvas_BL = progress.canvas_BL
        tokens = with_bos(self._config, canvas_BL, natural(canvas_BL))
        begins = tokens[0].shape[1] - canvas_BL.shape[1]
        hidden_BLD = self._through(*tokens, wanted=slice(begins, None))
        return picked(hidden_BLD, progress.order_BL[:, decided : decided + count])

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self._through.keep(kept)
