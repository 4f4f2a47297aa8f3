"""Folding: the constants of adaLN and the norms' weights move into the neighbouring matrices.

The noise level is always 0 in this family, so shift, scale and gate are constants of a checkpoint.
With `n` the bare normalised input, `w` the norm's weight:

    W (n w (1 + scale) + shift) + b  =  (W * w (1 + scale)) n + (b + W shift)
    gate (W h + b)                   =  (gate W) h + gate b

which is exact up to rounding and leaves a network without adaLN and without norm weights.
"""

from collections.abc import Iterator, MutableMapping

import torch
from torch import Tensor
from torch.nn import functional as F

from esogen.model.config import ModelConfig
from esogen.model.network import zero_sinusoid

Tensors = MutableMapping[str, Tensor]
Finished = Iterator[tuple[str, Tensor]]


@torch.no_grad()
def fold(tensors: Tensors, config: ModelConfig) -> Finished:
    """Yield the folded tensors by name, each in float32 and in memory of its own.

    Names and shapes in are those of `Network(config)`, out those of `Network(config, folded=True)`.
    `tensors` is emptied on the way, so that the caller can cast and place each tensor before the
    next is made; the largest, those of the vocabulary, come first.
    """
    condition = _condition(tensors) if config.has_adaln else None
    shift, scale = _constants(tensors, "output_layer.", condition, 2)
    yield from _fold_norm(
        tensors, "output_layer.norm_final.weight", "output_layer.linear", shift, scale
    )
    yield "vocab_embed.embedding", _take(tensors, "vocab_embed.embedding")
    for layer in range(config.n_blocks):
        yield from _fold_block(tensors, f"blocks.{layer}.", condition)
    for name in list(tensors):
        yield name, _take(tensors, name)


def _take(tensors: Tensors, name: str) -> Tensor:
    return tensors.pop(name).to(torch.float32, copy=True)


def _condition(tensors: Tensors) -> Tensor:
    weight0, bias0, weight2, bias2 = (
        _take(tensors, f"sigma_map.mlp.{name}")
        for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    )
    hidden = F.silu(F.linear(zero_sinusoid(weight0), weight0, bias0))
    return F.silu(F.linear(hidden, weight2, bias2))


def _fold_block(tensors: Tensors, prefix: str, condition: Tensor | None) -> Finished:
    shift1, scale1, gate1, shift2, scale2, gate2 = _constants(tensors, prefix, condition, 6)
    yield from _fold_norm(tensors, prefix + "norm1.weight", prefix + "attn_qkv", shift1, scale1)
    yield from _fold_gate(tensors, prefix + "attn_out", gate1)
    yield from _fold_norm(tensors, prefix + "norm2.weight", prefix + "mlp.0", shift2, scale2)
    yield from _fold_gate(tensors, prefix + "mlp.2", gate2)


def _constants(
    tensors: Tensors, prefix: str, condition: Tensor | None, count: int
) -> tuple[Tensor | None, ...]:
    if condition is None:
        return (None,) * count
    weight = _take(tensors, prefix + "adaLN_modulation.weight")
    bias = _take(tensors, prefix + "adaLN_modulation.bias")
    return F.linear(condition, weight, bias).chunk(count)


def _fold_norm(
    tensors: Tensors, norm: str, linear: str, shift: Tensor | None, scale: Tensor | None
) -> Finished:
    weight = _take(tensors, linear + ".weight")
    factor = _take(tensors, norm)
    biased = linear + ".bias" in tensors
    bias = _take(tensors, linear + ".bias") if biased else weight.new_zeros(len(weight))
    if shift is not None and scale is not None:
        factor *= 1 + scale
        bias += weight @ shift
    yield linear + ".bias", bias
    yield linear + ".weight", weight.mul_(factor)


def _fold_gate(tensors: Tensors, linear: str, gate: Tensor | None) -> Finished:
    if gate is None:
        return
    yield linear + ".weight", _take(tensors, linear + ".weight").mul_(gate[:, None])
    if linear + ".bias" in tensors:
        yield linear + ".bias", _take(tensors, linear + ".bias").mul_(gate)
