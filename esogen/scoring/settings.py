"""What a score is a function of, besides the model and the text."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Order = Literal["left-to-right", "random", "blocks", "streams", "given"]
ORDERS: tuple[Order, ...] = get_args(Order)
FIXED: tuple[Order, ...] = ("left-to-right", "streams")
"""Orders of which a text has only one."""

Bound = Literal["exact", "nelbo"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)

MOST_ORDERS = 10**6
MOST_STEPS = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSettings:
    """How texts are scored. Raises `ValueError` naming field, value and range.

    `bound`: exact is log p of a text in a stated order, or the bound of `orders` of them; nelbo the
    training bound, from `time_samples` draws a window. `order`: in which the tokens are decided;
    `random`, `blocks` and `streams` decide a share `alpha_0` so and the rest left to right, the
    last two in `steps` block steps. `given_KL`: the orders of `order` given, each a permutation.

    A text longer than `length` tokens is cut into windows: each counts `stride` tokens and is given
    the `context` tokens before them. `end_of_text` counts the end of each text as a token of it.
    """

    length: int
    order: Order = "left-to-right"
    orders: int = 1
    alpha_0: float = 1.0
    steps: int = 1
    seed: int = 0
    stride: int = 1
    context: int = 0
    end_of_text: bool = False
    bound: Bound = "exact"
    time_samples: int = 16
    given_KL: tuple[NDArray[np.int64], ...] = ()

    def __post_init__(self) -> None:
        for name, words in (("order", ORDERS), ("bound", BOUNDS)):
            if getattr(self, name) not in words:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(words)}"
                )
        for name in ("orders", "time_samples"):
            if not 1 <= getattr(self, name) <= MOST_ORDERS:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be from 1 to {MOST_ORDERS}"
                )
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps is {self.steps}; it must be from 1 to {MOST_STEPS}")
        if not 0.0 <= self.alpha_0 <= 1.0:
            raise ValueError(f"alpha_0 is {self.alpha_0}; it must be in [0, 1]")
        if self.order in FIXED and self.orders > 1:
            raise ValueError(
                f"orders is {self.orders}; it must be 1 for the order {self.order}, of which a text"
                " has one: ask for random or blocks"
            )
        self._check_windows()

    def _check_windows(self) -> None:
        if not 0 <= self.context < self.length:
            raise ValueError(
                f"context is {self.context}; it must be from 0 to {self.length - 1}: this model"
                f" reads {self.length} tokens at once"
            )
        if not 1 <= self.stride <= self.length - self.context:
            raise ValueError(
                f"stride is {self.stride}; it must be from 1 to {self.length - self.context}, so"
                f" that context and stride together fit the {self.length} tokens of this model"
            )
        if self.bound == "nelbo" and self.context:
            raise ValueError(
                f"context is {self.context}; it must be 0 for the bound nelbo, whose masks are"
                " drawn over the whole window"
            )

    @property
    def passes(self) -> int:
        """How often each window is read: once for each order, or each draw."""
        return self.orders if self.bound == "exact" else self.time_samples

    @property
    def kind(self) -> str:
        """Which figure this is, in words."""
        if self.bound == "nelbo":
            return f"NELBO, alpha_0 {self.alpha_0:g}, {self.time_samples} time samples"
        if self.order in ("left-to-right", "given"):
            order = self.order.replace("-", " ") if self.order != "given" else "given order"
        else:
            order = f"{self.order} order, alpha_0 {self.alpha_0:g}"
        if self.orders == 1:
            return f"exact, {order}"
        return f"bound of {self.orders} exact likelihoods, {order}"
