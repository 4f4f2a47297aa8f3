"""How many tokens ahead a row drafts: always K, or what pays by the costs of calls on a device.

The law of a text is the same for every number; the text itself is not, and so the costs are part of
what is asked for: they are measured before a run, never during one.

Shapes: B rows.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from esogen.generate.captured import UNFORESEEN, Through
from esogen.generate.denoise import chunk_rows
from esogen.generate.draw import DrawSettings, draw
from esogen.model.attention import SDPA, Kernels
from esogen.model.cache import KVCache
from esogen.model.network import Network

Ids = NDArray[np.int64]

MOST_COSTS = 7
"""Costs that may be given, and so 2^6 tokens drafted where it is found how many pay."""

_WIDEST = 5
"""Calls that are measured: one that drafts a token, then two, four, ..."""
_REPEATS = 4
"""Times that each is made, in turn, to measure it; the quickest counts."""

_REFUSED, _EXAMINED = 1.0, 24.0
"""What a row is taken to have seen before it has seen anything; see `Drafting.count`."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """Draft `most` tokens ahead, or, with `costs`, up to so many as pay.

    `costs[i]`: what a call that drafts 2^i tokens takes, in any unit; between these, and nowhere
    beyond, it is a straight line. Raises `ValueError` naming field, value and range.
    """

    most: int
    costs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"draft is {self.most}; it must be at least 1, or auto")
        if not all(0.0 < cost < float("inf") for cost in self.costs):
            shown = ",".join(f"{cost:g}" for cost in self.costs)
            raise ValueError(f"draft_costs is {shown}; they must be numbers above 0")

    @classmethod
    def adaptive(cls, costs: tuple[float, ...]) -> "Drafting":
        """As many as pay by these costs. Raises `ValueError` as the class does."""
        if not 1 <= len(costs) <= MOST_COSTS:
            raise ValueError(
                f"draft_costs is a list of {len(costs)}; it must be of 1 to {MOST_COSTS} numbers"
            )
        return cls(2 ** (len(costs) - 1), costs)

    @property
    def fields(self) -> Mapping[str, object]:
        """What JSON, traces and flags say of it: the words that ask for it again."""
        if not self.costs:
            return {"draft": self.most}
        return {"draft": "auto", "draft_costs": ",".join(map(repr, self.costs))}

    def places(self, length: int) -> int:
        """Places of a cache for texts of so many tokens: a call's masks may lie behind the end."""
        return length + 3 * min(self.most, length)

    def count(self, refused_B: Ids, examined_B: Ids) -> Ids:
        """How many tokens each row drafts next.

        The more masks stand between a draft and what is decided, the likelier it is refused: the
        i-th with probability `h * i`, and row by row h is what was refused over the sum of i over
        all drafts examined. By that, a call's tokens over its cost are greatest.
        """
        if not self.costs:
            return np.full(len(refused_B), self.most)
        hazard_B1 = ((refused_B + _REFUSED) / (examined_B + _EXAMINED))[:, None]
        ahead_K = np.arange(self.most)
        accepted_BK = np.cumprod(np.maximum(0.0, 1.0 - hazard_B1 * ahead_K), axis=1)
        known = 2 ** np.arange(len(self.costs))
        costs_K = np.interp(ahead_K + 1, known, self.costs)
        best_B: Ids = (np.cumsum(accepted_BK, axis=1) / costs_K).argmax(1) + 1
        return best_B


@torch.inference_mode()
def measured(network: Network, rows: int, length: int, *, kernels: Kernels = SDPA) -> Drafting:
    """As many as pay by what calls of so many rows cost here, half a text of `length` standing.

    Measuring ends with a call that cannot pay, though all of its drafts were accepted.
    """
    stands, like = length // 2, network.vocab_embed.embedding
    places = stands + 3 * 2**_WIDEST
    cache = KVCache(
        network.config, rows, places, device=like.device, dtype=like.dtype, kernel=kernels.whole
    )
    cache.commit(stands)
    through = Through(network, cache, kernels)
    until_recorded = 0 if kernels.step is None else UNFORESEEN + 1
    taken: list[float] = []
    for size in range(_WIDEST):
        taken.append(_seconds(network, through, 2**size))
        if size and taken[-1] > 3 * taken[-2]:
            break
    for _ in range(_REPEATS + until_recorded):
        again = (_seconds(network, through, 2**size) for size in range(len(taken)))
        taken = [min(pair) for pair in zip(taken, again, strict=True)]
    return Drafting.adaptive(tuple(float(f"{seconds / taken[0]:.3g}") for seconds in taken))


def _seconds(network: Network, through: Through, drafts: int) -> float:
    """Of a call that verifies the drafts of the call before it, and draws as many new ones."""
    began, cache = time.perf_counter(), through.cache
    rows, width = len(cache.lengths_B), 3 * drafts - 1
    ids_BW = torch.full((rows, width), network.config.mask_id, device=cache.device)
    positions_BW = torch.arange(width, device=cache.device).expand(rows, -1)
    seen_BWW = torch.ones(rows, width, width, dtype=torch.bool, device=cache.device).tril()
    hidden_BWD = through(ids_BW, positions_BW, seen_BWW, slice(drafts, None))
    for hidden_MD in torch.split(hidden_BWD.flatten(0, 1), chunk_rows(network, hidden_BWD)):
        uniforms_M = torch.full_like(hidden_MD[:, 0], 0.5)
        drawn = draw(network.logits(hidden_MD), uniforms_M, DrawSettings(top_p=0.9))
    drawn.tokens.cpu()  # waits for the device
    return time.perf_counter() - began
