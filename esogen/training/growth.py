"""A network made deeper without changing what it computes, so that training goes on from there.

A new block is the identity (Net2DeeperNet, arXiv 1511.05641) and otherwise a copy of the block
before it (stacking, Gong et al. 2019): what it adds is multiplied by zero, and of use as soon as
that zero is learned away.
"""

from dataclasses import replace

import torch
from torch import Tensor

from esogen.model.config import ModelConfig
from esogen.model.fold import Tensors
from esogen.model.network import BLOCK_ENDS

_GATE = 2
"""Of adaLN's shift, scale and gate, which it has once for attention and once for the MLP."""


def deepened(
    config: ModelConfig, tensors: Tensors, blocks: int
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape and tensors of a network of so many blocks that computes what this one does.

    Names are those of `Network(config)`. New blocks are spread evenly, each behind the one that it
    is a copy of; some tensors are those given. Raises `ValueError` for fewer blocks than it has.
    """
    if blocks < config.n_blocks:
        raise ValueError(
            f"blocks is {blocks}; it must be at least {config.n_blocks}, the model's own"
        )
    grown = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.")}
    sources = [block * config.n_blocks // blocks for block in range(blocks)]
    for block, source in enumerate(sources):
        copied = source in sources[:block]
        prefix = f"blocks.{source}."
        for name in filter(lambda name: name.startswith(prefix), tensors):
            part, tensor = name.removeprefix(prefix), tensors[name]
            silent = copied and _decides_what_is_added(part, config)
            grown[f"blocks.{block}.{part}"] = _silenced(part, tensor) if silent else tensor
    return replace(config, n_blocks=blocks), grown


def _decides_what_is_added(part: str, config: ModelConfig) -> bool:
    return part.startswith("adaLN_modulation" if config.has_adaln else BLOCK_ENDS)


def _silenced(part: str, tensor: Tensor) -> Tensor:
    if part.startswith(BLOCK_ENDS):
        return torch.zeros_like(tensor)
    modulation = tensor.clone()
    modulation.view(2, 3, -1)[:, _GATE] = 0.0
    return modulation
