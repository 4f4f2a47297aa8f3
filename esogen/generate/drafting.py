"""How many tokens ahead a row drafts: always K, or what pays by the costs of calls on a device.

The law of a text is the same for every number; the text itself is not, and so the costs are part of
what is asked for: they are measured before a run (`draft_costs.py`), never during one.

Shapes: B rows, C costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MOST_COSTS = 7
"""Costs that may be given, and so 2^6 tokens drafted where it is found how many pay."""

_REFUSED, _EXAMINED = 4.0, 64.0
"""What a row is taken to have seen before it has seen anything; see `Drafting.count`."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """Draft `most` tokens ahead, or, with `costs`, as many as pay of those that a cost is known of.

    `costs[i]`: what a call that drafts 2^i tokens takes, in any unit. Raises `ValueError` naming
    field, value and range.
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

        Row by row, each draft is taken to be refused as often as those examined until now were. By
        that, a call's tokens over its cost are greatest.
        """
        if not self.costs:
            return np.full(len(refused_B), self.most)
        best_B: Ids = 2 ** self._worth(refused_B, examined_B).argmax(1)
        return best_B

    @property
    def gain(self) -> float:
        """Tokens over cost, most of all, of a row that has seen nothing; one token costs 1."""
        nothing = np.zeros(1, np.int64)
        return float(self._worth(nothing, nothing).max())

    def _worth(self, refused_B: Ids, examined_B: Ids) -> NDArray[np.float64]:
        """Tokens expected of a call over its cost, `[B, C]`, by which of the costs it has."""
        refused_B1 = ((refused_B + _REFUSED) / (examined_B + _EXAMINED))[:, None]
        drafted_C = 2 ** np.arange(len(self.costs))
        worth_BC: NDArray[np.float64] = (
            (1 - (1 - refused_B1) ** drafted_C) / refused_B1 / self.costs
        )
        return worth_BC
