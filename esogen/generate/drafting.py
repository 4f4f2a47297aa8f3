"""How many tokens ahead a row drafts: always K, or what pays by the costs of calls on a device.

The law of a text is the same for every number; the text itself is not, and so the costs are part of
what is asked for: they are measured before a run, never during one.

Shapes: B rows.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

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
_REPEATS = 5
"""Times that each is made to measure it; the quickest counts."""
_DEAR = 1.7
"""How much more a call may cost than one that drafts half as many. Not twice, for some drafts are
refused and the rows of a batch wait for each other."""

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

    @property
    def verifies(self) -> bool:
        """Whether there is anything to verify: the first token that a call drafts is final."""
        return self.most > 1

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
        accepted_BK = np.cumprod(np.maximum(0.0, 1.0 - hazard_B1 * np.arange(self.most)), axis=1)
        costs_K = _costs_of_each(self.costs)
        best_B: Ids = (np.cumsum(accepted_BK, axis=1) / costs_K).argmax(1) + 1
        return best_B


@cache
def _costs_of_each(costs: tuple[float, ...]) -> NDArray[np.float64]:
    """Of a call that drafts one token, two, three, ..."""
    known = 2 ** np.arange(len(costs))
    return np.interp(np.arange(1, known[-1] + 1), known, costs)


@torch.inference_mode()
def measured(network: Network, rows: int, length: int, *, kernels: Kernels = SDPA) -> Drafting:
    """As many as pay by what calls of so many rows cost here, half a text of `length` standing.

    Measuring ends with a call that costs too much to pay.
    """
    like = network.vocab_embed.embedding
    places = length // 2 + 3 * 2**_WIDEST
    cache = KVCache(
        network.config, rows, places, device=like.device, dtype=like.dtype, kernel=kernels.whole
    )
    through = Through(network, cache, kernels)
    until_recorded = 0 if kernels.step is None else UNFORESEEN + 1
    taken: list[float] = []
    for size in range(_WIDEST):
        seconds = _quickest(network, through, length // 2, 2**size, until_recorded + _REPEATS)
        if taken and seconds > _DEAR * taken[-1]:
            break
        taken.append(seconds)
    return Drafting.adaptive(tuple(float(f"{seconds / taken[0]:.3g}") for seconds in taken))


def _quickest(network: Network, through: Through, stands: int, drafts: int, times: int) -> float:
    """Seconds of a call that verifies the drafts of the call before it, and draws as many new ones.

    As many tokens stand in each row as in real runs: not equally many, where any are drafted.
    """
    lengths_B = through.cache.lengths_B
    standing_B = np.maximum(stands - np.arange(len(lengths_B)) % drafts, 0)
    through.cache.commit(standing_B - lengths_B)
    return min(_seconds(network, through, drafts) for _ in range(times))


def _seconds(network: Network, through: Through, drafts: int) -> float:
    began, cache = time.perf_counter(), through.cache
    rows, width = len(cache.lengths_B), 3 * drafts - 1
    ids_BW = torch.full((rows, width), network.config.mask_id, device=cache.device)
    positions_BW = torch.arange(width, device=cache.device).expand(rows, -1)
    seen_BWW = torch.ones(rows, width, width, dtype=torch.bool, device=cache.device).tril()
    seen = seen_BWW if drafts > 1 else None
    hidden_BWD = through(ids_BW, positions_BW, seen, slice(drafts, None))
    for hidden_MD in torch.split(hidden_BWD.flatten(0, 1), chunk_rows(network, hidden_BWD)):
        uniforms_M = torch.full_like(hidden_MD[:, 0], 0.5)
        drawn = draw(network.logits(hidden_MD), uniforms_M, DrawSettings(top_p=0.9))
    drawn.tokens.cpu()  # waits for the device
    return time.perf_counter() - began
