"""Calls through a KV cache in which new tokens see each other both ways.

Shapes: B rows, L new tokens, K tokens of this step, D model width.
"""

from typing import cast

import torch
from torch import Tensor

from esogen.generate.captured import Through
from esogen.model.attention import Dense
from esogen.model.config import ModelConfig
from esogen.model.network import with_bos


def hidden_through(
    config: ModelConfig, through: Through, ids_BL: Tensor, positions_BL: Tensor, seen: Tensor
) -> Tensor:
    """Hidden states of the new tokens of a call, `[B, L, D]`; the caller commits them.

    stands  new
    ######  ##..
    ######  ##..
    ######  ####
    ######  ####

    They see all that stands, and each other where `seen` says so, `[L, L]` or `[1, 1, L, L]`; all
    rows must stand at one length. The first call begins with the model's bos token, if it has one,
    which is committed here.
    """
    begins = config.bos_id is not None and through.cache.level == 0
    if begins:
        ids_BL, positions_BL = with_bos(config, ids_BL, positions_BL)
        seen = cast(Tensor, Dense(seen).after_bos().mask)
    width = seen.shape[-1]
    hidden_BLD = through(ids_BL, positions_BL, seen.view(1, width, width))
    through.cache.commit(int(begins))
    return hidden_BLD[:, int(begins) :]


def natural(canvas_BL: Tensor) -> Tensor:
    """The natural position of every token, `[B, L]`."""
    return torch.arange(canvas_BL.shape[1], device=canvas_BL.device).expand_as(canvas_BL)


def picked(hidden_BLD: Tensor, index_BK: Tensor) -> Tensor:
    """The hidden states `[B, K, D]` at these places of each row."""
    return hidden_BLD.gather(1, index_BK[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
