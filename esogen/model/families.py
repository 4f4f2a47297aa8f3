"""The five families, and which settings each has no use for. Imports no torch.

esolm-b   Eso-LM: causal in sorted order everywhere, one KV cache for both phases
esolm-a   Eso-LM (A): clean tokens see each other both ways; a KV cache in the sequential phase
mdlm      masked diffusion: everything sees everything, no KV cache (arXiv 2406.07524)
bd3lm     block diffusion: blocks left to right, both ways inside one (arXiv 2503.09573)
ar        left to right
"""

from collections.abc import Mapping

from esogen.model.config import Family

_ONE_BY_ONE = "decides one token a call"
_NO_BLOCKS = "has no blocks"
_NO_CONDITIONALS = "gives no exact conditionals in one call, which verify drafts"
_NO_LIKELIHOOD = "gives no exact likelihood in one call, by which the best is chosen"
_NO_SHARE = "has no share of a diffusion phase to choose"

UNUSED: Mapping[Family, Mapping[str, str]] = {
    "esolm-b": {"block_size": _NO_BLOCKS},
    "esolm-a": {
        "block_size": _NO_BLOCKS,
        "draft": _NO_CONDITIONALS,
        "best_of": _NO_LIKELIHOOD,
    },
    "mdlm": {
        "alpha_0": _NO_SHARE,
        "schedule": "decides positions at random",
        "kv_cache": "has no KV cache to do without",
        "attention": "has no KV cache to attend through",
        "block_size": _NO_BLOCKS,
        "draft": _NO_CONDITIONALS,
        "best_of": _NO_LIKELIHOOD,
    },
    "bd3lm": {
        "steps": _ONE_BY_ONE,
        "alpha_0": _NO_SHARE,
        "schedule": "decides block after block",
        "draft": _NO_CONDITIONALS,
        "best_of": _NO_LIKELIHOOD,
    },
    "ar": {
        "steps": _ONE_BY_ONE,
        "alpha_0": _NO_SHARE,
        "schedule": "decides left to right",
        "cond_dim": "has no adaLN",
        "bos": "always begins from end-of-text",
        "draft": "has no masks to draft with",
        "block_size": _NO_BLOCKS,
    },
}
"""Per family, the settings that would change nothing, and why."""

ALPHA_0: Mapping[Family, float] = {"mdlm": 1.0, "bd3lm": 1.0, "ar": 0.0}
"""What `alpha_0` amounts to in the families that leave no choice."""


def check_used(family: Family, given: Mapping[str, object], prefix: str = "") -> None:
    """Raise `ValueError` for a setting that is not None and that the family has no use for.

    `prefix` stands before the names in the message.
    """
    for name, why in UNUSED[family].items():
        value = given.get(name)
        if value is not None:
            raise ValueError(
                f"{prefix}{name} is {value}, and a model of the family {family} {why}; leave it out"
            )
