"""What calls that draft cost on a device, found by making some of them.

Shapes: B rows.
"""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from esogen.generate.captured import UNFORESEEN, Through
from esogen.generate.denoise import CachedCalls, Step, denoise, start
from esogen.generate.draft_calls import CachedDrafts
from esogen.generate.draft_rows import Rows, Text
from esogen.generate.drafting import Drafting
from esogen.generate.draw import Draw, DrawSettings, draw
from esogen.generate.fill import Rule
from esogen.generate.lossless import ACCEPT, Lossless
from esogen.generate.plan import Plan
from esogen.model.attention import SDPA, Kernels
from esogen.model.cache import KVCache
from esogen.model.network import Network

_WIDEST = 5
"""Calls that are measured: one that drafts a token, then two, four, ..."""
_REPEATS = 5
"""Times that each is made to measure it, at most; the quickest counts."""
_LEAST, _ENOUGH = 2, 0.05
"""Times that each is made at least, and seconds after which that is enough."""
_WORTH = 1.3
"""How many times faster drafts must be by their costs to be made. Runs are about 0.9 times as much
faster as that, and what is measured of the same machine scatters by a tenth."""


def measured(
    network: Network, rows: int, length: int, *, kernels: Kernels = SDPA, drawing: Draw = draw
) -> Drafting:
    """As many as pay by what calls of so many rows cost here, half a text of `length` standing.

    Measuring ends with a call that pays less than the one before.
    """
    until_recorded = 0 if kernels.step is None else UNFORESEEN + 1
    costs = _Costs(network, rows, length // 2, until_recorded + _REPEATS, kernels)
    least = until_recorded + _LEAST
    found = nothing = Drafting.adaptive((1.0,))
    one = _quickest(costs.one_by_one(drawing), least)
    for size in range(1, _WIDEST):
        cost = _quickest(costs.drafted(2**size), least) / one
        before, found = found, Drafting.adaptive((*found.costs, float(f"{cost:.3g}")))
        if found.gain <= before.gain and size > 1:
            break  # but known now, for rows of which little is refused
    return found if found.gain > _WORTH else nothing


def _quickest(steps: Iterator[Step], least: int) -> float:
    """Seconds of the quickest call but the first, which has nothing to verify."""
    ended: dict[int, float] = {}
    for step in steps:
        step.tokens_BK.cpu()  # waits for the device
        now = ended.setdefault(step.index, time.perf_counter())
        if len(ended) > least and now - ended[0] > _ENOUGH:
            break
    return float(np.diff([*ended.values()]).min())


class _Costs:
    """Calls of so many rows in which about `stands` tokens stand, each many times over.

    What stands is nothing in particular.
    """

    def __init__(
        self, network: Network, rows: int, stands: int, calls: int, kernels: Kernels
    ) -> None:
        self._network, self._rows, self._stands = network, rows, stands
        self._calls, self._kernels = calls, kernels
        self._settings = DrawSettings(top_k=network.config.vocab_size)  # sorts, and keeps all

    def one_by_one(self, drawing: Draw) -> Iterator[Step]:
        """Calls that decide one token in each row, as where nothing is drafted."""
        made = self._calls + 1
        cache = self._cache(self._stands + made + 1)
        cache.commit(self._stands + 1)
        plan = Plan(np.tile(np.arange(made), (self._rows, 1)), 0, np.ones(made, np.int64), made)
        middle_BL = np.full((self._rows, made), 0.5)
        progress = start(self._network, plan, np.zeros(made, np.int64), middle_BL, cache.device)
        through = CachedCalls(self._network, Through(self._network, cache, self._kernels))
        return denoise(self._network, through, plan, progress, self._settings, drawing=drawing)

    def drafted(self, drafts: int) -> Iterator[Step]:
        """Calls that verify the drafts of the call before, accept all, and draw as many new ones.

        In each row as many tokens stand as in real runs: not equally many.
        """
        drafting = Drafting(drafts)
        given_B = np.maximum(self._stands - np.arange(self._rows) % drafts, 0)
        length_B = given_B + drafts * (self._calls + 1)
        longest = int(length_B.max())
        calls = CachedDrafts(self._network, self._cache(drafting.places(longest)), self._kernels)
        calls.commit(given_B)
        run = Lossless(
            self._network,
            calls,
            Rows.places(self._rows, longest),
            Rule(self._settings),
            drafting,
            waiting=map(_text, given_B, length_B),
        )
        return islice(run.steps(range(self._rows)), self._calls + 1)  # the next drafts no more

    def _cache(self, places: int) -> KVCache:
        like, kernel = self._network.vocab_embed.embedding, self._kernels.whole
        device, dtype = like.device, like.dtype
        return KVCache(
            self._network.config, self._rows, places, device=device, dtype=dtype, kernel=kernel
        )


def _text(given: int, length: int) -> Text:
    nothing = np.zeros(length, np.int64)
    uniforms_L3 = np.full((length, 3), 0.5)
    uniforms_L3[:, ACCEPT] = 0.0
    return Text(nothing, nothing, np.arange(length), given, length, uniforms_L3)
