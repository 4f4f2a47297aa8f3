"""What a training run is told; two runs told the same, with the same data, give equal weights.

Imports no torch, so that `--help` can show the defaults.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from esogen.model.config import Family, ModelConfig

Layout = Literal["whole", "packed"]
Decay = Literal["constant", "linear", "cosine"]

FAMILY: Family = "esolm-b"
"""The family that is trained unless said."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """The recipe. Batches count rows, `steps` and `warmup` optimiser steps.

    `alphas` are the values of `alpha_0` trained for; the rows of a batch are shared out evenly
    among them. With several, one network serves all: the conditional of a token given what stands
    does not depend on `alpha_0`, only how often each state is met does.
    """

    steps: int
    alphas: tuple[float, ...] = (1.0,)
    batch_size: int = 32
    micro_batch: int = 32
    learning_rate: float = 3e-4
    warmup: int = 2500
    decay: Decay = "constant"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.9999
    layout: Layout = "packed"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name, (holds, wanted) in _RANGES.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {wanted}")
        self._check_alphas()

    def _check_alphas(self) -> None:
        if not self.alphas:
            raise ValueError("alpha_0 is not given; name at least one value in [0, 1]")
        for alpha_0 in self.alphas:
            if not 0.0 <= alpha_0 <= 1.0:
                raise ValueError(f"alpha_0 is {alpha_0}; it must be in [0, 1]")
        # The rows are dealt out evenly, and a value between 0 and 1 takes two: one for each term.
        needed = len(self.alphas) * (2 if any(0.0 < alpha < 1.0 for alpha in self.alphas) else 1)
        if self.batch_size < needed:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be at least {needed},"
                f" for alpha_0 {', '.join(f'{alpha_0:g}' for alpha_0 in self.alphas)}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values under the words of the flags, as a state and a model's card record them."""
        values = asdict(self)
        return {"alpha_0": list(values.pop("alphas")), **values}


_LEAST = {"steps": 1, "batch_size": 1, "micro_batch": 1, "warmup": 0, "seed": 0}
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda rate: 0.0 < rate < math.inf, "a number above 0"),
    "clip": (lambda norm: 0.0 < norm < math.inf, "a number above 0"),
    "weight_decay": (lambda decay: 0.0 <= decay < math.inf, "a number from 0 on"),
    "ema": (lambda decay: 0.0 <= decay < 1.0, "in [0, 1)"),
    "layout": (lambda word: word in get_args(Layout), f"one of {', '.join(get_args(Layout))}"),
    "decay": (lambda word: word in get_args(Decay), f"one of {', '.join(get_args(Decay))}"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The network of a run that begins with nothing; `vocab_size` counts the mask token.

    `block_size` is BD3-LM's alone.
    """

    family: Family = FAMILY
    vocab_size: int = 4096
    length: int = 256
    hidden_size: int = 256
    blocks: int = 6
    heads: int = 4
    cond_dim: int = 16
    dropout: float = 0.1
    block_size: int = 4

    def config(self, vocab_size: int) -> ModelConfig:
        """This shape with the vocabulary of a tokenizer that may be smaller than asked."""
        try:
            return ModelConfig(
                self.family,
                vocab_size=vocab_size,
                model_length=self.length,
                hidden_size=self.hidden_size,
                n_blocks=self.blocks,
                n_heads=self.heads,
                cond_dim=self.cond_dim,
                dropout=self.dropout,
                block_size=self.block_size if self.family == "bd3lm" else 1,
            )
        except ValueError as error:
            raise ValueError(_in_our_words(str(error))) from error


def _in_our_words(message: str) -> str:
    """A message about a `ModelConfig`, with the names that `Shape` has for its fields."""
    for theirs, ours in (("n_heads", "heads"), ("n_blocks", "blocks"), ("model_length", "length")):
        message = message.replace(theirs, ours)
    return message


def differing(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`name stored -> wanted` for every entry in which two recorded configurations differ."""
    names = sorted(stored.keys() | wanted.keys())
    return [
        f"{name} {stored.get(name)} -> {wanted.get(name)}"
        for name in names
        if stored.get(name) != wanted.get(name)
    ]


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Linear warm-up, then constant, or down to zero at the last step (linear or half a cosine)."""
    if step < settings.warmup:  # from the first share, not from 0: no update is without effect
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.decay == "constant":
        return settings.learning_rate
    left = (settings.steps - step) / max(settings.steps - settings.warmup, 1)
    factor = left if settings.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
    return settings.learning_rate * factor


def ema_decay(settings: TrainingSettings, step: int) -> float:
    """Share of the old average that stays after update `step` (from 0), with the usual ramp."""
    return min(settings.ema, (1 + step) / (10 + step))
