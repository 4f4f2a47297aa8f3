"""A state whose blanks are being decided: their plan, their noise, and the steps of the network.

Shapes: L positions of the text, K tokens of one step.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from esogen.editor.state import Ids, State
from esogen.editor.text_cache import TextCache
from esogen.generate.denoise import Step
from esogen.generate.engine import Engine
from esogen.generate.fill import decide
from esogen.generate.plan import make_plan
from esogen.generate.streams import token_uniforms
from esogen.generate.template import BLANK
from esogen.ranking.infilling import BEGINS_WORD, FREE, InfillSettings


class Filling:
    """Decides the blanks of `wanted`, whose `order` is that of the positions that are kept.

    `state` is `wanted` with its whole order; its tokens and log-probabilities fill up with every
    step.
    """

    def __init__(self, engine: Engine, settings: InfillSettings, wanted: State) -> None:
        samples, seed = range(wanted.sample, wanted.sample + 1), settings.seed
        blank, kept = np.flatnonzero(wanted.tokens_L == BLANK), wanted.order
        self._plan = make_plan(wanted.knobs.schedule, seed, samples, np.sort(kept), blank)
        self.state = replace(
            wanted,
            tokens_L=wanted.tokens_L.copy(),
            log_probs_L=wanted.log_probs_L.copy(),
            order=np.concatenate([kept, self._plan.order_BL[0, len(kept) :]]),
            decided=tuple(blank.tolist()),
        )
        uniforms_L3 = token_uniforms(seed, wanted.sample, len(wanted.tokens_L))
        kinds_L = np.where(wanted.layout.spaced_L, BEGINS_WORD, FREE)
        self._uniforms_L, self._kinds_L = (
            torch.from_numpy(x).to(engine.device) for x in (uniforms_L3[:, 0], kinds_L)
        )
        self._rule = replace(settings, draw=wanted.knobs.draw).rule(engine)
        self._engine = engine

    @torch.inference_mode()
    def steps(self, cache: TextCache) -> Iterator[Step]:
        """Decide step by step; in `cache` stands a beginning of what is kept, and nothing else."""
        state, plan = self.state, self._plan
        clean = plan.given
        for index, count in enumerate(plan.counts_S.tolist()):
            hidden_KD = cache.feed(state.tokens_L, state.order[: clean + count], clean)
            positions = state.order[clean : clean + count]
            tokens, log_probs = self._drawn(hidden_KD, positions)
            state.tokens_L[positions], state.log_probs_L[positions] = tokens.cpu(), log_probs.cpu()
            clean += count
            yield Step(
                index,
                index >= plan.diffusion_steps,
                np.zeros(1, np.int64),
                torch.from_numpy(positions)[None],
                tokens[None],
                log_probs[None],
            )

    def _drawn(self, hidden_KD: Tensor, positions: Ids) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(positions).to(self._engine.device)
        uniforms, kinds = self._uniforms_L[at], self._kinds_L[at]
        drawn = decide(self._engine.network, hidden_KD, uniforms, kinds, self._rule)
        return drawn.tokens, drawn.log_probs
