"""The one transformer of the family. It differs from model to model in attention pattern only.

A call takes token ids with their NATURAL positions, in any order, and an `Attend` that says who
sees whom; it knows nothing of caches, schedules, devices or precisions.

Shapes: B rows, L tokens of this call, N heads, H head width, D model width, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esogen.model.attention import Attend, Dense
from esogen.model.config import TIME_FEATURES, ModelConfig
from esogen.model.heads import Heads, Rotation, angles_of
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
        self.rotary_emb = Rotary(config.head_size, folded=folded)
        modulated = config.has_adaln and not folded
        self.sigma_map = TimeEmbedding(config.cond_dim) if modulated else None
        block = FoldedBlock if folded else Block
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.n_blocks))
        self.output_layer = OutputLayer(config, folded=folded)
        # Looked up once: in a step of a small model a look at a module takes as long as some sums.
        self._embed, self._turn = self.vocab_embed.forward, self.rotary_emb.forward
        self._blocks: list[Callable[..., Tensor]] = [each.forward for each in self.blocks]

    def hidden(
        self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
    ) -> Tensor:
        """Run all blocks; returns `[B, L, D]`, to be handed to `logits` in whole or in part.

        Where only some of the L tokens are `wanted`, the last block ends with those: of the others
        nobody needs more than their keys and values.
        """
        with threads_for(ids_BL.device, 4 * self.config.hidden_size**2 * ids_BL.numel()):
            x_BLD = self._embed(ids_BL)
            rotation = self._turn(positions_BL, x_BLD.dtype)
            condition = self._condition()
            *blocks, last = self._blocks
            for block in blocks:
                x_BLD = block(x_BLD, condition, rotation, attend)
            return last(x_BLD, condition, rotation, attend, wanted)

    def logits(self, hidden_KD: Tensor) -> Tensor:
        """Logits `[..., V]` in float32 of the given rows `[..., D]`; the mask token's are -inf."""
        with threads_for(hidden_KD.device, self.config.vocab_size * hidden_KD.numel()):
            logits_KV = self.output_layer.forward(hidden_KD, self._condition()).float()
        logits_KV.select(-1, self.config.mask_id).fill_(-math.inf)
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
        return torch.embedding(self.embedding, ids_BL)


class Rotary(nn.Module):
    """Rotary position embedding over the whole head, half-rotation layout."""

    inv_freq: Tensor

    def __init__(self, head_size: int, *, folded: bool) -> None:
        super().__init__()
        self.folded = folded
        self.register_buffer("inv_freq", rotary_frequencies(head_size))

    def forward(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        frequencies = self._kept_frequencies if self.folded else self._frequencies()
        angle = positions_BL.view(*positions_BL.shape, 1, 1, 1) * frequencies
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))

    def _frequencies(self) -> Tensor:
        """By what a position is multiplied to an angle, `[3, 1, H]`.

        The signs are those of the sine; the cosine does not see them.
        """
        frequency = self.inv_freq.float()
        return angles_of(torch.cat([-frequency, frequency]))

    @cached_property
    def _kept_frequencies(self) -> Tensor:
        return self._frequencies()


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
    """Layer norm with a weight only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x, self.weight)


def normalised(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Layer norm; without a weight once that is folded away."""
    return torch.layer_norm(x, x.shape[-1:], weight, eps=NORM_EPS)


class MLP(nn.Sequential):
    """Four times the width, by GELU, and back."""

    def __init__(self, width: int) -> None:
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        super().__init__(up, nn.GELU(approximate="tanh"), down)


class FoldedBlock(nn.Module):
    """What `Block` is once folded: attention and MLP between bare norms.

    Its products are looked up once, as in `Network`, but not before they may have been packed.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer, self.heads = layer, (3, config.n_heads, config.head_size)
        self.attn_qkv = nn.Linear(width, 3 * width)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = MLP(width)

    def forward(
        self,
        x_BLD: Tensor,
        condition: Tensor | None,
        rotation: Rotation,
        attend: Attend,
        wanted: slice = EVERYTHING,
    ) -> Tensor:
        qkv, out, up, down = self._products
        qkv_BL3NH = qkv(normalised(x_BLD)).view(*x_BLD.shape[:-1], *self.heads)
        attended_BLNH = attend(self.layer, Heads(qkv_BL3NH, rotation))
        x_BLD = _only(x_BLD, wanted) + out(_only(attended_BLNH, wanted).flatten(-2))
        return x_BLD + down(F.gelu(up(normalised(x_BLD)), approximate="tanh"))

    @cached_property
    def _products(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        up, _, down = self.mlp
        return self.attn_qkv.forward, self.attn_out.forward, up.forward, down.forward


BLOCK_ENDS = ("attn_out", "mlp.2")
"""The products of a block whose results are added to what runs past it."""


class Block(nn.Module):
    """Attention and MLP, each normalised before and, with adaLN, shifted, scaled and gated."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer, self.n_heads, self.head_size = layer, config.n_heads, config.head_size
        self.dropout = config.dropout
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width) if config.has_adaln else None

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        rotation: Rotation,
        attend: Attend,
        wanted: slice = EVERYTHING,
    ) -> Tensor:
        if self.adaLN_modulation is None:
            attended = self._attend(self.norm1(x), rotation, attend, wanted)
            x = _only(x, wanted) + self._drop(attended)
            return x + self._drop(self.mlp(self.norm2(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6)
        modulated = modulate(self.norm1(x), shift1, scale1)
        attended = self._attend(modulated, rotation, attend, wanted)
        x = torch.addcmul(_only(x, wanted), gate1, self._drop(attended))
        return torch.addcmul(
            x, gate2, self._drop(self.mlp(modulate(self.norm2(x), shift2, scale2)))
        )

    def _attend(self, x_BLD: Tensor, rotation: Rotation, attend: Attend, wanted: slice) -> Tensor:
        qkv = self.attn_qkv(x_BLD).view(*x_BLD.shape[:-1], 3, self.n_heads, self.head_size)
        out_BLNH = attend(self.layer, Heads(qkv, rotation))
        return self.attn_out(_only(out_BLNH, wanted).flatten(-2))  # type: ignore[no-any-return]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training else x


def _only(x: Tensor, wanted: slice) -> Tensor:
    """Some tokens of `[B, L, ...]`; a view of everything would take as long as a small product."""
    return x if wanted is EVERYTHING else x[:, wanted]


class OutputLayer(nn.Module):
    """Final norm and the projection to the vocabulary."""

    def __init__(self, config: ModelConfig, *, folded: bool) -> None:
        super().__init__()
        self.norm_final = None if folded else Norm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        modulated = config.has_adaln and not folded
        self.adaLN_modulation = (
            nn.Linear(config.cond_dim, 2 * config.hidden_size) if modulated else None
        )

    def forward(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        x = normalised(hidden) if self.norm_final is None else self.norm_final(hidden)
        if self.adaLN_modulation is not None:
            shift, scale = self.adaLN_modulation(condition).chunk(2)
            x = modulate(x, shift, scale)
        return self.linear(x)  # type: ignore[no-any-return]


@torch.no_grad()
def initialise(network: Network, generator: torch.Generator) -> None:
    """Draw fresh weights for training: torch's own defaults, adaLN and output layer at zero.

    Zero adaLN makes every block the identity and zero outputs make every token equally likely,
    as in DiT (Peebles & Xie 2023) and the published trainings. A block without adaLN is made the
    identity by zeros in what it ends with: otherwise its noise buries the small embeddings, and
    left-to-right training falls far behind its twins.
    """
    zeros: tuple[str, ...] = ("adaLN_modulation", "output_layer.linear")
    if not network.config.has_adaln:
        zeros += BLOCK_ENDS
    for name, parameter in network.named_parameters():
        if any(part in name for part in zeros):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            bound = 1.0 / math.sqrt(_fan_in(network, name))
            parameter.uniform_(-bound, bound, generator=generator)


def _fan_in(network: Network, name: str) -> int:
    module = network.get_submodule(name.rpartition(".")[0])
    return module.in_features if isinstance(module, nn.Linear) else network.config.hidden_size
