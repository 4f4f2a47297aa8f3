"""How many tokens ahead a row drafts: always K, or what pays by the costs of calls on a device.

The law of a text is the same for every number; the text itself is not, and so the costs are part of
what is asked for: they are measured before a run, never during one.

Shapes: B rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MOST_DRAFTED = 64
"""Tokens that a call may draft, at most."""

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
        if not 1 <= self.most <= MOST_DRAFTED:
            raise ValueError(f"draft is {self.most}; it must be from 1 to {MOST_DRAFTED}, or auto")
        if not all(0.0 < cost < float("inf") for cost in self.costs):
            shown = ",".join(f"{cost:g}" for cost in self.costs)
            raise ValueError(f"draft_costs is {shown}; they must be numbers above 0")

    @classmethod
    def adaptive(cls, costs: tuple[float, ...]) -> "Drafting":
        """As many as pay by these costs. Raises `ValueError` as the class does."""
        if not 1 <= len(costs) <= MOST_DRAFTED.bit_length():
            raise ValueError(
                f"draft_costs is a list of {len(costs)}; it must be of 1 to"
                f" {MOST_DRAFTED.bit_length()} numbers"
            )
        return cls(2 ** (len(costs) - 1), costs)

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
