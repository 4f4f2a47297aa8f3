"""The KV cache of the one text that is edited, and the tails that were cut off it.

It is append-only in the order the tokens were decided. What is cut off is laid aside with the state
it belongs to, so that a return to that state puts back the very same bytes and computes nothing.

Shapes: K tokens of one call that are masks, D model width.
"""

import numpy as np
import torch
from torch import Tensor

from esogen.editor.state import Ids, State
from esogen.generate.captured import Through
from esogen.generate.engine import Engine
from esogen.generate.template import BLANK
from esogen.model.cache import KVCache
from esogen.model.network import with_bos

LAID_ASIDE = 2**29
"""Bytes of keys and values kept for undo; states beyond are computed again when returned to."""


class TextCache:
    """What of the text stands, and what was laid aside of other states.

    `kv`: one row of keys and values; `computed`: how many tokens went through the network.
    """

    def __init__(self, engine: Engine) -> None:
        network = engine.network
        self.kv = KVCache(
            network.config,
            1,
            engine.longest,
            device=engine.device,
            dtype=network.vocab_embed.embedding.dtype,
            kernel=engine.kernels.whole,
        )
        self.computed = 0
        self._engine = engine
        self._through = Through(network, self.kv, engine.kernels)
        self._aside: dict[int, Tensor] = {}
        self._bos = self._begin()

    @torch.inference_mode()
    def _begin(self) -> int:
        """Feed the model's bos token, if it has one: how many tokens stand before every text."""
        nothing = torch.zeros(1, 0, dtype=torch.int64)
        ids, positions = with_bos(self._engine.network.config, nothing, nothing)
        if count := ids.shape[1]:
            device = self._engine.device
            self._through(ids.to(device), positions.to(device))
            self.kv.commit(count)
        return count

    @property
    def standing(self) -> int:
        """Tokens of the text that stand here."""
        return int(self.kv.lengths_B[0]) - self._bos

    @torch.inference_mode()
    def feed(self, tokens_L: Ids, order: Ids, clean: int) -> Tensor:
        """Compute what of `order` does not stand yet; its first `clean` tokens stand from now on.

        Returns the hidden states `[K, D]` of the masks behind them.
        """
        standing = self.standing
        new = order[standing:]
        ids = np.where(tokens_L[new] == BLANK, self._engine.network.config.mask_id, tokens_L[new])
        ids_BL, positions_BL = (
            torch.from_numpy(x)[None].to(self._engine.device) for x in (ids, new)
        )
        hidden_BLD = self._through(ids_BL, positions_BL)
        self.computed += len(new)
        self.kv.commit(clean - standing)
        return hidden_BLD[0, clean - standing :]

    def lay_aside(self, state: State, fork: int) -> None:
        """Cut all behind `fork` tokens, and keep it for `state`, which is left."""
        length, first = int(self.kv.lengths_B[0]), fork + self._bos
        layers = range(self._engine.network.config.n_blocks)
        self._aside.pop(state.number, None)
        self._aside[state.number] = torch.stack(
            [self.kv.read(layer, length)[:, first:] for layer in layers]
        )
        while sum(kept.nbytes for kept in self._aside.values()) > LAID_ASIDE:
            self._aside.pop(next(iter(self._aside)))
        self.kv.cut(first)

    def take_back(self, state: State, fork: int) -> None:
        """Put back behind `fork` tokens what was laid aside for `state`, or compute it again."""
        first = fork + self._bos
        self.kv.cut(first)
        kept = self._aside.pop(state.number, None)
        if kept is None:
            self.restore(state)
            return
        length = kept.shape[2]
        for layer, kv_BL2NH in enumerate(kept):
            self.kv.write(layer, slice(first, first + length), kv_BL2NH)
        self.kv.commit(length)

    def restore(self, state: State) -> None:
        """Compute what of `state` does not stand."""
        if self.standing < state.clean:
            self.feed(state.tokens_L, state.order[: state.clean], state.clean)
