"""What is not said of a score: filled in for a model, and checked."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.folder import Checkpoint
from esogen.errors import UsageError
from esogen.generate.streams import LARGEST_SEED
from esogen.scoring.settings import Bound, Order, ScoreSettings


def settings_for(
    checkpoint: Checkpoint,
    *,
    order: Order | None = None,
    given: Sequence[Sequence[int]] = (),
    orders: int | None = None,
    alpha_0: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    context: int | None = None,
    stride: int | None = None,
    end_of_text: bool = False,
    bound: Bound = "exact",
    time_samples: int = 16,
) -> ScoreSettings:
    """The settings of a score by this model; what is None has a default.

    `given`: orders of one's own, each a permutation of a text's positions. The order is theirs, or
    else random where `orders` are several or `alpha_0` is said, or else left to right. A window is
    as long as the model reads; its context is a quarter of that (none for nelbo) and its stride the
    rest. `steps` is the model's own. Raises `UsageError` naming what is out of range.
    """
    length = checkpoint.config.model_length
    given_KL = tuple(_permutation(row, line) for line, row in enumerate(given, 1))
    if order is None:
        several = orders is not None and orders > 1
        order = "random" if several or alpha_0 is not None else "left-to-right"
    if given_KL:
        order = "given"
        if orders not in (None, len(given_KL)):
            raise UsageError(f"orders is {orders}, and {len(given_KL)} are given; leave it out")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is {seed}; it must be from 0 to {LARGEST_SEED}")
    if context is None:
        context = _context(length, stride, bound)
    try:
        return ScoreSettings(
            length=length,
            order=order,
            orders=len(given_KL) or (1 if orders is None else orders),
            alpha_0=1.0 if alpha_0 is None else alpha_0,
            steps=steps if steps is not None else checkpoint.defaults.steps or max(1, length // 4),
            seed=seed,
            stride=length - context if stride is None else stride,
            context=context,
            end_of_text=end_of_text,
            bound=bound,
            time_samples=time_samples,
            given_KL=given_KL,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _context(length: int, stride: int | None, bound: Bound) -> int:
    if bound == "nelbo":
        return 0
    return length // 4 if stride is None else max(0, min(length // 4, length - stride))


def _permutation(row: Sequence[int], line: int) -> NDArray[np.int64]:
    found, times = np.unique(np.array(row, np.int64), return_counts=True)
    wanted = f"order {line} must be a permutation of 0 to {len(row) - 1}"
    if (times > 1).any():
        raise UsageError(f"{wanted}, one number for each token; it has {found[times > 1][0]} twice")
    missing = np.setdiff1d(np.arange(len(row)), found)
    if len(missing):
        raise UsageError(f"{wanted}, one number for each token; {missing[0]} is missing from it")
    return np.array(row, np.int64)
