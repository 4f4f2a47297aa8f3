"""The plan of a run, made before any network call: in which order, and how many at once.

Sampling from Eso-LM (arXiv 2506.01928, sections 4 and 5) decides some positions in a diffusion
phase, several per step, and what remains left to right, one per step. The counts are a function of
(seed, number of positions to decide), so a batch shares them; the orders are one per sample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.config_file import SCHEDULES, Schedule
from esogen.generate.streams import Purpose, stream

Positions = NDArray[np.int64]

MOST_STEPS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """The rule that plans follow.

    `steps` is T, the resolution of the diffusion phase, for `random`, and S, the number of block
    steps, for `blocks` and `streams`. `alpha_0` in [0, 1] is the expected share of tokens decided
    in the diffusion phase. Raises `ValueError` naming field, value and range.
    """

    steps: int
    alpha_0: float = 1.0
    schedule: Schedule = "random"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps is {self.steps}; it must be from 1 to {MOST_STEPS}")
        if not 0.0 <= self.alpha_0 <= 1.0:
            raise ValueError(f"alpha_0 is {self.alpha_0}; it must be in [0, 1]")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Order and counts of one batch.

    `order_BL` int64: `order_BL[b, j]` is the natural position of the j-th token; the first `given`
    are fixed by the user, the rest are decided `counts_S[s]` at a time. The first
    `diffusion_steps` steps are the diffusion phase, the others decide one token each.
    """

    order_BL: Positions
    given: int
    counts_S: NDArray[np.int64]
    diffusion_steps: int

    @property
    def nfe(self) -> int:
        """Network calls that decide tokens."""
        return len(self.counts_S)

    @property
    def ends_S(self) -> NDArray[np.int64]:
        """Sorted index behind the last token that each step decides."""
        return self.given + np.cumsum(self.counts_S)

    def one_by_one(self) -> "Plan":
        """The same order and phases, a token at a time."""
        early, all_ = self.late - self.given, int(self.counts_S.sum())
        return Plan(self.order_BL, self.given, np.ones(all_, np.int64), early)

    @property
    def late(self) -> int:
        """Sorted index at which the sequential phase begins."""
        return self.given + int(self.counts_S[: self.diffusion_steps].sum())


def make_plan(
    settings: ScheduleSettings, seed: int, samples: range, given: Positions, blank: Positions
) -> Plan:
    """Plan samples number `samples` of `seed`; `given` and `blank` are positions, ascending."""
    counts_S, diffusion_steps = _counts(settings, seed, len(blank))
    decided_early = int(counts_S[:diffusion_steps].sum())
    first = _given_order(seed, given)
    orders = []
    for sample in samples:
        early = blank[_early(settings, seed, sample, blank)[:decided_early]]
        late = np.setdiff1d(blank, early, assume_unique=True)
        orders.append(np.concatenate([first, early, late]))
    return Plan(np.stack(orders), len(given), counts_S, diffusion_steps)


def _counts(settings: ScheduleSettings, seed: int, blanks: int) -> tuple[NDArray[np.int64], int]:
    """Tokens decided by each non-empty step, and how many of these steps are diffusion."""
    if settings.schedule == "random":
        diffusion = _random_counts(settings, seed, blanks)
    else:
        block_steps = min(settings.steps, blanks)
        sizes = _row_sizes(blanks, block_steps)[_slots(settings, seed, blanks)]
        diffusion = sizes[: round(block_steps * settings.alpha_0)]
    rest = blanks - int(diffusion.sum())
    return np.concatenate([diffusion, np.ones(rest, np.int64)]), len(diffusion)


def _random_counts(settings: ScheduleSettings, seed: int, blanks: int) -> NDArray[np.int64]:
    """Each position draws the step that decides it, uniform over T with probability `alpha_0`.

    The counts are then those of the published binomials, `n_t ~ Binomial(still masked,
    (alpha_s - alpha_t) / (1 - alpha_t))`: both are the multinomial of `alpha_0 / T` a step.
    """
    u = stream(seed, Purpose.COUNTS, blanks).random(blanks)
    early = u[u < settings.alpha_0]
    if not len(early):
        return np.zeros(0, np.int64)
    step = (early / settings.alpha_0 * settings.steps).astype(np.int64)
    return np.unique(step, return_counts=True)[1].astype(np.int64)


def _row_sizes(blanks: int, block_steps: int) -> NDArray[np.int64]:
    """Size of row r = {r, r + S, r + 2 S, ...} below the number of blanks."""
    rows = np.arange(block_steps)
    return (blanks - rows + block_steps - 1) // max(block_steps, 1)


def _slots(settings: ScheduleSettings, seed: int, blanks: int) -> NDArray[np.int64]:
    """Which row's SIZE each block step has: shared by a batch, shuffled for `blocks`."""
    block_steps = min(settings.steps, blanks)
    if settings.schedule == "streams":
        return np.arange(block_steps)
    return stream(seed, Purpose.COUNTS, blanks).random(block_steps).argsort()


def _early(
    settings: ScheduleSettings, seed: int, sample: int, blank: Positions
) -> NDArray[np.int64]:
    """Indices into `blank` in the order of a diffusion phase that would decide them all."""
    if not len(blank):
        return blank
    rank = stream(seed, Purpose.ORDER, sample).random(int(blank[-1]) + 1)[blank]
    if settings.schedule == "random":
        return rank.argsort()
    block_steps = min(settings.steps, len(blank))
    indices = np.arange(len(blank))
    if settings.schedule == "streams":
        return np.concatenate([indices[row::block_steps] for row in range(block_steps)])
    row_rank = stream(seed, Purpose.ORDER, sample, 1).random(block_steps)
    rows = _shuffled_rows(_slots(settings, seed, len(blank)), row_rank, len(blank))
    shuffled = (indices[row::block_steps] for row in rows)
    return np.concatenate([row[rank[row].argsort()] for row in shuffled])


def _shuffled_rows(
    slots: NDArray[np.int64], row_rank: NDArray[np.float64], blanks: int
) -> NDArray[np.int64]:
    """Rows in random order, each in a slot of its own size (sizes differ by one at most)."""
    sizes = _row_sizes(blanks, len(slots))
    rows = np.empty_like(slots)
    for size in np.unique(sizes):
        candidates = np.flatnonzero(sizes == size)
        rows[sizes[slots] == size] = candidates[row_rank[candidates].argsort()]
    return rows


def _given_order(seed: int, given: Positions) -> Positions:
    """Given tokens in random order, as in training; the same for every sample of a template."""
    if not len(given):
        return given
    return given[stream(seed, Purpose.GIVEN_ORDER).random(int(given[-1]) + 1)[given].argsort()]
