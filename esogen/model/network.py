"""The one transformer of the family. It differs from model to model in attention pattern only.

A call takes token ids with their NATURAL positions, in any order, and an `Attend` that says who
sees whom; it knows nothing of caches, schedules, devices or precisions.

Shapes: B rows, L tokens of this call, N heads, H head width, D model width, V vocabulary.
"""

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esogen.model.attention import Attend, Dense
from esogen.model.config import TIME_FEATURES, ModelConfig
from esogen.model.heads import Heads, Rotation
from esogen.model.threads import threads_for

ROTARY_BASE = 10_000.0
NORM_EPS = 1e-5
EVERYTHING = slice(None)


class Network(nn.Module):
    """Pre-norm transformer with rotary positions and, unless folded, constant adaLN.

    `folded=True` builds the shape that `fold` writes: no adaLN, no norm weights, biases instead.
    Module names are those of the published checkpoints without their `backbone.` prefix.
    """

    def __init__(self, config: ModelConfig, *, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        self.folded = folded
        self.vocab_embed = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = Rotary(config.head_size)
        modulated = config.has_adaln and not folded
        self.sigma_map = TimeEmbedding(config.cond_dim) if modulated else None
        self.blocks = nn.ModuleList(
            Block(config, layer, folded=folded) for layer in range(config.n_blocks)
        )
        self.output_layer = OutputLayer(config, folded=folded)

    def hidden(
        self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
    ) -> Tensor:
        """Run all blocks; returns `[B, L, D]`, to be handed to `logits` in whole or in part.

        Where only some of the L tokens are `wanted`, the last block ends with those: of the others
        nobody needs more than their keys and values.
        """
        with threads_for(ids_BL.device, 4 * self.config.hidden_size**2 * ids_BL.numel()):
            x_BLD = self.vocab_embed.forward(ids_BL)
            rotation = self.rotary_emb.forward(positions_BL, x_BLD.dtype)
            condition = self._condition()
            *blocks, last = cast(list[Block], self.blocks)
            for block in blocks:
                x_BLD = block.forward(x_BLD, condition, rotation, attend)
            return last.forward(x_BLD, condition, rotation, attend, wanted)

    def logits(self, hidden_KD: Tensor) -> Tensor:
        """Logits `[..., V]` in float32 of the given rows `[..., D]`; the mask token's are -inf."""
        with threads_for(hidden_KD.device, self.config.vocab_size * hidden_KD.numel()):
            logits_KV = self.output_layer.forward(hidden_KD, self._condition()).float()
        logits_KV[..., self.config.mask_id] = -math.inf
        return logits_KV

    def forward(self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend) -> Tensor:
        """Logits `[B, L, V]` of every row of the input."""
        return self.logits(self.hidden(ids_BL, positions_BL, attend))

    def _condition(self) -> Tensor | None:
        return None if self.sigma_map is None else F.silu(self.sigma_map.forward())


class Hidden(Protocol):
    """What runs the blocks: a network, or its compiled calls."""

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""
        ...

    def hidden(
        self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING, /
    ) -> Tensor:
        """All blocks: `[B, L, D]` of the tokens that are wanted."""
        ...


def with_bos(config: ModelConfig, ids_BL: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The same tokens behind the one that every text begins from, `[B, 1 + L]`, if there is one."""
    if config.bos_id is None:
        return ids_BL, positions_BL
    return F.pad(ids_BL, (1, 0), value=config.bos_id), F.pad(positions_BL, (1, 0), value=-1)


def hidden_after_bos(
    network: Hidden, ids_BL: Tensor, positions_BL: Tensor, attend: Dense, count: int | None = None
) -> Tensor:
    """`network.hidden` of a whole text, `[B, L, D]`, behind the model's bos token if it has one.

    Of the first `count` tokens, or of all.
    """
    if network.config.bos_id is None:
        return network.hidden(ids_BL, positions_BL, attend, slice(count))
    ids_BL, positions_BL = with_bos(network.config, ids_BL, positions_BL)
    wanted = slice(1, None if count is None else 1 + count)
    return network.hidden(ids_BL, positions_BL, attend.after_bos(), wanted)


class Embedding(nn.Module):
    """Token embeddings `[V, D]` under the published tensor name."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, ids_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self.embedding)


class Rotary(nn.Module):
    """Rotary position embedding over the whole head, half-rotation layout."""

    inv_freq: Tensor

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary_frequencies(head_size))

    def forward(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        frequency = self.inv_freq.float()
        signed = torch.cat([-frequency, frequency])  # which the cosine does not see
        angle = positions_BL[..., None, None, None] * signed
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def rotary_frequencies(head_size: int) -> Tensor:
    """Angular frequencies `[H / 2]`, radians per position."""
    return ROTARY_BASE ** -(torch.arange(0, head_size, 2, device="cpu").float() / head_size)


class TimeEmbedding(nn.Module):
    """The map from noise level to adaLN's condition, at the only level this family uses: 0."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )

    def forward(self) -> Tensor:
        """The condition `[cond_dim]`: cosines of 0 are ones, sines of 0 are zeros."""
        like = next(self.mlp.parameters())
        return self.mlp(zero_sinusoid(like))  # type: ignore[no-any-return]


def zero_sinusoid(like: Tensor) -> Tensor:
    """The sinusoidal features `[256]` of noise level 0, in the dtype and place of `like`."""
    features = like.new_zeros(TIME_FEATURES)
    features[: TIME_FEATURES // 2] = 1.0
    return features


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: scale by `1 + scale`, then shift."""
    return torch.addcmul(x + shift, x, scale)


class Norm(nn.Module):
    """Layer norm with a weight only; without even that once it is folded away."""

    def __init__(self, width: int, *, folded: bool) -> None:
        super().__init__()
        self.weight = None if folded else nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, x.shape[-1:], self.weight, eps=NORM_EPS)


class Block(nn.Module):
    """Attention and MLP, each normalised before and, with adaLN, shifted, scaled and gated."""

    def __init__(self, config: ModelConfig, layer: int, *, folded: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer, self.n_heads, self.head_size = layer, config.n_heads, config.head_size
        self.dropout = config.dropout
        self.norm1 = Norm(width, folded=folded)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=folded)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width, folded=folded)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        modulated = config.has_adaln and not folded
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width) if modulated else None

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        rotation: Rotation,
        attend: Attend,
        wanted: slice = EVERYTHING,
    ) -> Tensor:
        if self.adaLN_modulation is None:
            attended = self._attend(self.norm1.forward(x), rotation, attend, wanted)
            x = _only(x, wanted) + self._drop(attended)
            return x + self._drop(self._mlp(self.norm2.forward(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6)
        modulated = modulate(self.norm1.forward(x), shift1, scale1)
        attended = self._attend(modulated, rotation, attend, wanted)
        x = torch.addcmul(_only(x, wanted), gate1, self._drop(attended))
        return torch.addcmul(
            x, gate2, self._drop(self._mlp(modulate(self.norm2.forward(x), shift2, scale2)))
        )

    def _attend(self, x_BLD: Tensor, rotation: Rotation, attend: Attend, wanted: slice) -> Tensor:
        packed = self.attn_qkv.forward(x_BLD)
        qkv = packed.view(*x_BLD.shape[:-1], 3, self.n_heads, self.head_size)
        out_BLNH = attend(self.layer, Heads(qkv, rotation))
        return self.attn_out.forward(_only(out_BLNH, wanted).flatten(-2))

    def _mlp(self, x: Tensor) -> Tensor:
        up, gelu, down = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(self.mlp))
        return down.forward(gelu.forward(up.forward(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training else x


def _only(x: Tensor, wanted: slice) -> Tensor:
    """Some tokens of `[B, L, ...]`; a view of everything would take as long as a small product."""
    return x if wanted is EVERYTHING else x[:, wanted]


class OutputLayer(nn.Module):
    """Final norm and the projection to the vocabulary."""

    def __init__(self, config: ModelConfig, *, folded: bool) -> None:
        super().__init__()
        self.norm_final = Norm(config.hidden_size, folded=folded)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        modulated = config.has_adaln and not folded
        self.adaLN_modulation = (
            nn.Linear(config.cond_dim, 2 * config.hidden_size) if modulated else None
        )

    def forward(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        x = self.norm_final(hidden)
        if self.adaLN_modulation is not None:
            shift, scale = self.adaLN_modulation(condition).chunk(2)
            x = modulate(x, shift, scale)
        return self.linear(x)  # type: ignore[no-any-return]


@torch.no_grad()
def initialise(network: Network, generator: torch.Generator) -> None:
    """Draw fresh weights for training: torch's own defaults, adaLN and output layer at zero.

    Zero adaLN makes every block the identity and zero outputs make every token equally likely,
    as in DiT (Peebles & Xie 2023) and the published trainings.
    """
    for name, parameter in network.named_parameters():
        if "adaLN_modulation" in name or name.startswith("output_layer.linear"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            bound = 1.0 / math.sqrt(_fan_in(network, name))
            parameter.uniform_(-bound, bound, generator=generator)


def _fan_in(network: Network, name: str) -> int:
    module = network.get_submodule(name.rpartition(".")[0])
    return module.in_features if isinstance(module, nn.Linear) else network.config.hidden_size
