"""In which order the tokens of a window are decided: a function of (settings, window, number)."""

import numpy as np

from esogen.checkpoint.config_file import SCHEDULES
from esogen.generate.plan import ScheduleSettings, make_plan
from esogen.generate.streams import Purpose, stream
from esogen.likelihood import Ids
from esogen.scoring.settings import ScoreSettings

_KEY = 2
"""Of the streams of evaluation, those of this module; `training.evaluate` has 0 and 1."""


def order_of(
    settings: ScoreSettings, length: int, given: int, key: tuple[int, ...], number: int
) -> Ids:
    """Order number `number` of a window of `length` tokens, the first `given` of which are known.

    Natural position in the window at each sorted index. `key` says which window of which text;
    windows with different keys have independent orders. Given tokens come first: left to right
    for the left-to-right order, else in random order, as in training.
    """
    if settings.order == "given":
        return settings.given_KL[number]
    if settings.order == "left-to-right":
        return np.arange(length)
    u_L = stream(settings.seed, Purpose.EVALUATION, _KEY, *key, number).random(length)
    first = u_L[:given].argsort(kind="stable")
    rest = np.arange(given, length)
    if settings.order == "random":
        return np.concatenate([first, rest[_hybrid(u_L[given:], settings.alpha_0)]])
    return np.concatenate([first, _blocks(settings, rest, number)])


def _hybrid(u_L: np.ndarray, alpha_0: float) -> Ids:
    """Each token is of the diffusion phase with probability `alpha_0`, which decides at random."""
    early = np.flatnonzero(u_L < alpha_0)
    late = np.flatnonzero(u_L >= alpha_0)
    return np.concatenate([early[u_L[early].argsort(kind="stable")], late])


def _blocks(settings: ScoreSettings, positions: Ids, number: int) -> Ids:
    """The order of sample `number` of a run of `esogen sample` with this schedule and seed."""
    schedule = next(word for word in SCHEDULES if word == settings.order)
    rule = ScheduleSettings(settings.steps, settings.alpha_0, schedule)
    nothing = np.empty(0, np.int64)
    plan = make_plan(rule, settings.seed, range(number, number + 1), nothing, positions)
    order_L: Ids = plan.order_BL[0]
    return order_L
