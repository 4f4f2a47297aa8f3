"""The models that have a name of their own: those that come with esogen, and published ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODEL = "stories"
MODEL_VARIABLE = "ESOGEN_MODEL"
"""Of the environment: the model that is used instead, unless one is named."""
BUILT_IN: Mapping[str, Path] = {
    DEFAULT_MODEL: Path(__file__).parents[1] / "models" / DEFAULT_MODEL,
}

TOKENIZER_REPOSITORY = "openai-community/gpt2"
"""Where the tokenizer is of published checkpoints that carry none."""

GPT2_VOCABULARY = 50258
"""Ids of a network over GPT-2's tokens: those and the mask token."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint on the hub that has a short name.

    `parameters` counts numbers, `length` tokens. `licence` is what its card says, "see its page"
    where that was not looked up. `alpha_0` is what it samples with unless told: what it was
    trained for.
    """

    repository: str
    licence: str
    parameters: int
    length: int
    purpose: str
    alpha_0: float | None = None


_SMALL = {"parameters": 169_627_218, "length": 1024}


def _bd3lm(block_size: int) -> Published:
    return Published(
        f"kuleshov-group/bd3lm-owt-block_size{block_size}",
        "see its page",
        **_SMALL,
        purpose=f"OpenWebText; BD3-LM, left to right in blocks of {block_size}",
    )


PUBLISHED: Mapping[str, Published] = {
    "eso-1": Published(
        "sahoo-diffusion/Eso-LM-B-alpha-1",
        "see its page",
        **_SMALL,
        purpose="OpenWebText; Eso-LM (B), everything in the diffusion phase (alpha_0 = 1)",
        alpha_0=1.0,
    ),
    "eso-0.25": Published(
        "sahoo-diffusion/Eso-LM-B-alpha-0_25",
        "see its page",
        **_SMALL,
        purpose="OpenWebText; Eso-LM (B), a quarter in the diffusion phase (alpha_0 = 0.25)",
        alpha_0=0.25,
    ),
    "mdlm": Published(
        "kuleshov-group/mdlm-owt",
        "Apache-2.0",
        **_SMALL,
        purpose="OpenWebText; MDLM, masked diffusion without a cache",
    ),
    "bd3lm-4": _bd3lm(4),
    "bd3lm-8": _bd3lm(8),
    "bd3lm-16": _bd3lm(16),
}
"""Short names, none of which holds a slash, so that none can be a repository."""


def published(repository: str) -> Published | None:
    """The entry of a repository, if it has one."""
    return next((entry for entry in PUBLISHED.values() if entry.repository == repository), None)
