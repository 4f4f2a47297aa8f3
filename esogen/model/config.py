"""The shape of one network: the only configuration that decides which tensors it has."""

from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal["esolm-b", "esolm-a", "mdlm", "bd3lm", "ar"]
FAMILIES: tuple[Family, ...] = get_args(Family)

TIME_FEATURES = 256
"""Width of the sinusoid that enters adaLN; fixed in every published checkpoint."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one network of the family.

    Sizes are counts of tokens (`vocab_size`, `model_length`, `block_size`), channels
    (`hidden_size`, `cond_dim`), blocks and heads. The mask token is always the last id. `bos_id`:
    the token given at position -1 of every text, None where a text begins with nothing; without
    it a mask that sees no clean token cannot know how far from the beginning it stands.
    Raises `ValueError` naming field, value and allowed range.
    """

    family: Family
    vocab_size: int
    model_length: int
    hidden_size: int
    n_blocks: int
    n_heads: int
    cond_dim: int = 128
    dropout: float = 0.1
    block_size: int = 1
    bos_id: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family is {self.family!r}; it must be one of {', '.join(FAMILIES)}")
        for name in ("model_length", "hidden_size", "n_blocks", "n_heads", "cond_dim"):
            self._check_at_least(name, 1)
        self._check_at_least("vocab_size", 2)
        self._check_at_least("block_size", 1)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.hidden_size % self.n_heads or self.head_size % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size} and n_heads is {self.n_heads};"
                " it must divide into heads of an even width"
            )
        if self.bos_id is not None and not 0 <= self.bos_id < self.mask_id:
            raise ValueError(f"bos_id is {self.bos_id}; it must be from 0 to {self.mask_id - 1}")

    def _check_at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")

    @property
    def head_size(self) -> int:
        """Width of one attention head, in channels."""
        return self.hidden_size // self.n_heads

    @property
    def mask_id(self) -> int:
        """Id of the mask token: the last of the vocabulary."""
        return self.vocab_size - 1

    @property
    def has_adaln(self) -> bool:
        """Whether checkpoints of this family carry adaLN tensors (left-to-right ones do not)."""
        return self.family != "ar"
