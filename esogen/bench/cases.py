"""What `esogen bench` can measure: sizes of random networks, and the points of a grid.

Imports no torch, so that `--help` can show what there is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from esogen.checkpoint.config_file import CardDefaults, Schedule
from esogen.checkpoint.known import GPT2_VOCABULARY
from esogen.errors import UsageError
from esogen.model.config import Family, ModelConfig
from esogen.model.families import UNUSED, check_used

SIZES: Mapping[str, ModelConfig] = {
    "tiny": ModelConfig("esolm-b", 512, 64, 64, 2, 2, 16),
    "small": ModelConfig("esolm-b", GPT2_VOCABULARY, 1024, 768, 12, 12, 128),
    "medium": ModelConfig("esolm-b", GPT2_VOCABULARY, 1024, 1024, 24, 16, 128),
}
"""Shapes of random networks. `small` is the published one: 170 million parameters."""

BLOCK_SIZE = 16

Drafts = int | Literal["auto"]
"""Tokens drafted ahead, or as many as pay."""


def sized(size: str, family: Family, block_size: int | None) -> ModelConfig:
    """The shape of a network of this size and family; a left-to-right one has a bos token."""
    config = SIZES[size]
    return replace(
        config,
        family=family,
        block_size=block_size or 1,
        bos_id=config.mask_id - 1 if family == "ar" else None,
    )


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cases of a run share, in the words of the flags.

    `model` None: random weights of `size`. `repeats`: how often each case is timed, after once
    unmeasured. `one_shot`: its first and second run in a fresh process are timed too. `profile`:
    it is told what a step is made of.
    """

    size: str
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    top_p: float = 0.9
    repeats: int = 5
    one_shot: bool = False
    profile: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One point: what is sampled, and by which family. None: the family has no use for it.

    `timed_steps`: only so many of its steps are run, and their time stands for all: for a family
    whose steps all cost the same. `forward_only`: whether it is measured without drawing too.
    `draft`: drafts are verified, and `steps` is only what the order of its tokens comes from.
    """

    family: Family
    length: int
    batch_size: int = 1
    steps: int | None = None
    alpha_0: float | None = None
    schedule: Schedule | None = None
    block_size: int | None = None
    kv_cache: bool | None = True
    timed_steps: int | None = None
    forward_only: bool = True
    draft: Drafts | None = None

    @property
    def name(self) -> str:
        """The family, with what else makes it another sampler."""
        block = "" if self.block_size is None else f" {self.block_size}"
        draft = "" if self.draft is None else f", draft {self.draft}"
        return f"{self.family}{block}{' without cache' if self.kv_cache is False else ''}{draft}"

    def __str__(self) -> str:
        steps = "" if self.steps is None or self.draft else f", {self.steps} steps"
        return f"{self.name}, length {self.length}{steps}, batch {self.batch_size}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Values to be combined, each with each; those that are None are the network's own."""

    families: Sequence[Family] | None = None
    lengths: Sequence[int] | None = None
    steps: Sequence[int] | None = None
    alphas: Sequence[float] | None = None
    batch_sizes: Sequence[int] | None = None
    block_sizes: Sequence[int] | None = None
    schedule: Schedule | None = None
    kv_cache: bool = True
    drafts: Sequence[Drafts] | None = None

    def cases(self, config: ModelConfig, defaults: CardDefaults) -> list[Case]:
        """Every point, those of one network together; none twice.

        `config` and `defaults` say what the network's own values are. Raises `UsageError` for a
        value that none of the families has a use for.
        """
        families = self.families or [config.family]
        self._check_used(families)
        return list(dict.fromkeys(self._cases(families, config, defaults)))

    def _check_used(self, families: Sequence[Family]) -> None:
        given = {
            "steps": self.steps and self.steps[0],
            "alpha_0": self.alphas and self.alphas[0],
            "schedule": self.schedule,
            "block_size": self.block_sizes and self.block_sizes[0],
            "kv_cache": None if self.kv_cache else False,
            "draft": self.drafts and self.drafts[0],
        }
        for name, value in given.items():
            if all(name in UNUSED[family] for family in families):
                try:
                    check_used(families[0], {name: value})
                except ValueError as error:
                    raise UsageError(str(error)) from error

    def _cases(
        self, families: Sequence[Family], config: ModelConfig, defaults: CardDefaults
    ) -> Iterator[Case]:
        resolutions: Sequence[int | None] = self.steps or [defaults.steps]
        drafts: Sequence[Drafts | None] = self.drafts or [None]
        axes = (
            self.block_sizes or [config.block_size if config.family == "bd3lm" else BLOCK_SIZE],
            self.lengths or [defaults.length or config.model_length],
            resolutions,
            self.alphas or [1.0 if defaults.alpha_0 is None else defaults.alpha_0],
            self.batch_sizes or [1],
            drafts,
        )
        schedule = self.schedule or defaults.schedule or "random"
        for family, block_size, length, steps, alpha_0, rows, draft in product(families, *axes):
            unused = UNUSED[family]
            yield Case(
                family,
                length,
                rows,
                None if "steps" in unused else steps or max(1, length // 4),
                None if "alpha_0" in unused else alpha_0,
                None if "schedule" in unused else schedule,
                None if "block_size" in unused else block_size,
                None if "kv_cache" in unused else self.kv_cache,
                draft=None if "draft" in unused else draft,
            )
