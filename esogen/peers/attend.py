"""Attention through a KV cache where the new tokens of a call see each other both ways.

Shapes: B rows, L new tokens, M keys, K tokens of this step, N heads, H head width, D model width.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from esogen.model.attention import Dense
from esogen.model.cache import KVCache
from esogen.model.network import Network, with_bos


class PatternAttend:
    """One call through a cache: new tokens see all that stands, and each other by a pattern.

    stands  new
    ######  ##..
    ######  ##..
    ######  ####
    ######  ####

    `seen` is boolean, `[L, L]` or `[1, 1, L, L]`. All rows must stand at one length.
    """

    def __init__(self, cache: KVCache, seen: Tensor) -> None:
        self._cache, stands = cache, int(cache.lengths_B[0])
        self._new = slice(stands, stands + seen.shape[-1])
        hidden = ~pad(seen, (stands, 0), value=True)
        mask = torch.zeros(hidden.shape, dtype=cache.dtype, device=cache.device)
        self._mask = mask.masked_fill_(hidden, -torch.inf)  # added once a call, for all layers

    def __call__(self, layer: int, q_BLNH: Tensor, k_BLNH: Tensor, v_BLNH: Tensor) -> Tensor:
        """Write this layer's keys and values behind what stands, then attend over all of it."""
        self._cache.write(layer, self._new, k_BLNH, v_BLNH)
        k_BMNH, v_BMNH = self._cache.read(layer, self._new.stop)
        return self._cache.kernel(q_BLNH, k_BMNH, v_BMNH, self._mask)


def hidden_through(
    network: Network, cache: KVCache, ids_BL: Tensor, positions_BL: Tensor, seen: Tensor
) -> Tensor:
    """`network.hidden` of the new tokens of a call, `[B, L, D]`; the caller commits them.

    The first call begins with the model's bos token, if it has one, which is committed here.
    """
    begins = network.config.bos_id is not None and not cache.lengths_B.any()
    if begins:
        ids_BL, positions_BL = with_bos(network.config, ids_BL, positions_BL)
        seen = cast(Tensor, Dense(seen).after_bos().mask)
    hidden_BLD = network.hidden(ids_BL, positions_BL, PatternAttend(cache, seen))
    cache.commit(int(begins))
    return hidden_BLD[:, int(begins) :]


def natural(canvas_BL: Tensor) -> Tensor:
    """The natural position of every token, `[B, L]`."""
    return torch.arange(canvas_BL.shape[1], device=canvas_BL.device).expand_as(canvas_BL)


def picked(hidden_BLD: Tensor, index_BK: Tensor) -> Tensor:
    """The hidden states `[B, K, D]` at these places of each row."""
    return hidden_BLD.gather(1, index_BK[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
