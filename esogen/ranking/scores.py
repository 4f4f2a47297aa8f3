"""How probable whole texts are, in one order common to all of them.

What a run records of its own draws depends on its plan; what candidates are ranked by must not.

Shapes: L positions of one text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from esogen.generate.streams import Purpose, stream
from esogen.likelihood import log_probs
from esogen.model.network import Network

T = TypeVar("T")
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankingOrder:
    """The order that texts are scored in: left to right, or the bound over `count` random ones.

    Random orders are a function of `seed`: the first n positions of a text come in the same order
    as in every other text.
    """

    count: int = 1
    seed: int = 0

    def of(self, length: int) -> list[Ids]:
        """The orders for a text of `length` tokens, natural positions."""
        if self.count == 1:
            return [np.arange(length)]
        return [
            stream(self.seed, Purpose.EVALUATION, k).random(length).argsort()
            for k in range(self.count)
        ]

    def __str__(self) -> str:
        return "left to right" if self.count == 1 else f"bound over {self.count} random orders"


LEFT_TO_RIGHT = RankingOrder()


def scores(network: Network, texts: Sequence[Sequence[int]], order: RankingOrder) -> list[float]:
    """`log p` of each text, nats: exact for one order, a lower bound of the whole for several."""
    repeated = [np.array(text, np.int64) for text in texts for _ in range(order.count)]
    orders = [each for text in texts for each in order.of(len(text))]
    sums = [float(x.sum()) for x in log_probs(network, repeated, orders)]
    per_text = np.array(sums).reshape(-1, order.count)
    bounds = np.logaddexp.reduce(per_text, axis=1) - np.log(order.count)
    return [float(bound) for bound in bounds]


def best(items: Sequence[T], score: Callable[[T], float], key: Callable[[T], object]) -> list[T]:
    """Items from best to worst, one of those with the same key."""
    kept: dict[object, T] = {}
    for item in sorted(items, key=score, reverse=True):
        kept.setdefault(key(item), item)
    return list(kept.values())
