"""The sampler: a generator over token ids that carries out a plan and yields what it decided.

It never prints, decodes or times, and never waits for a GPU except to see, now and then, whether
rows have ended.

Shapes: B rows still running, L positions, K tokens of this step, D model width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.captured import Through
from esogen.generate.draw import Draw, Drawn, DrawSettings, draw
from esogen.generate.plan import Plan
from esogen.model.attention import Dense
from esogen.model.network import Network, hidden_after_bos, with_bos
from esogen.model.threads import threads_for

CHUNK: Mapping[str, int] = {"cpu": 2**18, "cuda": 2**28}
"""Logits in memory at once, at most, by kind of device: the rows of a wide step are decided in
parts of this size, which stay in a CPU's caches and fill a GPU (1 GiB in float32)."""

END_CHECK_INTERVAL = 8
"""Sequential steps between two looks for rows that have ended; no result depends on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """Drafts that one network call verified, and how many of them stood, `[B]` each."""

    drafts_B: NDArray[np.int64]
    accepted_B: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> "Examined":
        """What was examined of these rows."""
        return Examined(self.drafts_B[rows], self.accepted_B[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one network call decided: for `rows` `[B]` of the batch, `[B, K]` each on the device.

    `examined`: None where nothing is drafted.
    """

    index: int
    sequential: bool
    rows: NDArray[np.int64]
    positions_BK: Tensor
    tokens_BK: Tensor
    log_probs_BK: Tensor
    examined: Examined | None = field(default=None, kw_only=True)

    def of(self, kept: NDArray[np.int64]) -> "Step":
        """What was decided of some of its rows (indices into `rows`)."""
        index = torch.from_numpy(kept).to(self.tokens_BK.device)
        columns = (self.positions_BK, self.tokens_BK, self.log_probs_BK)
        return Step(
            self.index,
            self.sequential,
            self.rows[kept],
            *(column[index] for column in columns),
            examined=self.examined and self.examined.of(kept),
        )


@dataclass(slots=True, eq=False)
class Progress:
    """Where the rows still running stand; everything in natural positions.

    `canvas_BL`: token ids, the mask token where undecided. `order_BL` as in `Plan`. `uniforms_BL`:
    the number each position is drawn with.
    """

    canvas_BL: Tensor
    order_BL: Tensor
    uniforms_BL: Tensor
    rows: NDArray[np.int64]

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these (indices into the rows still running)."""
        index = torch.from_numpy(kept).to(self.canvas_BL.device)
        self.canvas_BL, self.order_BL = self.canvas_BL[index], self.order_BL[index]
        self.uniforms_BL, self.rows = self.uniforms_BL[index], self.rows[kept]


class Calls(Protocol):
    """How a step's hidden states are computed: with the cache, or without (the oracle)."""

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count` masks.

        `decided` tokens are clean, the last `fresh` of them for the first time.
        """
        ...

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        ...


class CachedCalls:
    """Feed the tokens decided last, now clean, and this step's masks; all else is in the cache."""

    def __init__(self, network: Network, through: Through) -> None:
        self._network, self._through = network, through

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        positions_BL = progress.order_BL[:, decided - fresh : decided + count]
        ids_BL = progress.canvas_BL.gather(1, positions_BL)
        if self._through.cache.level == 0:
            ids_BL, positions_BL = with_bos(self._network.config, ids_BL, positions_BL)
        width = ids_BL.shape[1]
        hidden_BKD = self._through(ids_BL, positions_BL, wanted=slice(width - count, width))
        self._through.cache.commit(width - count)
        return hidden_BKD

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self._through.keep(kept)


class UncachedCalls:
    """Run all L positions, clean and masked, in every call: slow, and what the cache must equal."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
        ids_BL = progress.canvas_BL.gather(1, progress.order_BL)
        hidden_BLD = hidden_after_bos(self._network, ids_BL, progress.order_BL, Dense(causal=True))
        return hidden_BLD[:, decided : decided + count]

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Nothing is kept between calls."""


def start(
    network: Network,
    plan: Plan,
    given_L: NDArray[np.int64],
    uniforms_BL: NDArray[np.float64],
    device: torch.device,
) -> Progress:
    """A batch before its first call: given tokens in place, masks everywhere else.

    `given_L` holds a token id per position; only those the plan calls given are read.
    """
    rows, length = plan.order_BL.shape
    canvas_BL = np.full((rows, length), network.config.mask_id, np.int64)
    given = plan.order_BL[:, : plan.given]
    np.put_along_axis(canvas_BL, given, given_L[given], axis=1)
    return Progress(
        torch.from_numpy(canvas_BL).to(device),
        torch.from_numpy(plan.order_BL).to(device),
        torch.from_numpy(uniforms_BL).to(device),
        np.arange(rows),
    )


@torch.inference_mode()
def denoise(
    network: Network,
    calls: Calls,
    plan: Plan,
    progress: Progress,
    settings: DrawSettings,
    *,
    end_of_text: int | None = None,
    drawing: Draw = draw,
) -> Iterator[Step]:
    """Carry out `plan`, yielding each step's decisions; `progress` moves along.

    `drawing` is `draw`, a kernel that must equal it, or, where the network alone is timed, what
    draws nothing. With `end_of_text`, a row leaves in the sequential phase once its first
    end-of-text has no undecided position before it; the run ends when no row is left.
    """
    decided, fresh = plan.given, plan.given
    for index, count in enumerate(plan.counts_S.tolist()):
        sequential = index >= plan.diffusion_steps
        if sequential and end_of_text is not None and index % END_CHECK_INTERVAL == 0:
            _drop_ended(progress, calls, decided, end_of_text)
            if not len(progress.rows):
                return
        hidden_BKD = calls(progress, decided, fresh, count)
        positions_BK = progress.order_BL[:, decided : decided + count]
        uniforms_BK = progress.uniforms_BL.gather(1, positions_BK)
        tokens_BK, log_probs_BK = _decide(network, hidden_BKD, uniforms_BK, settings, drawing)
        progress.canvas_BL.scatter_(1, positions_BK, tokens_BK)
        decided, fresh = decided + count, count
        yield Step(index, sequential, progress.rows, positions_BK, tokens_BK, log_probs_BK)


def chunk_rows(network: Network, hidden: Tensor) -> int:
    """How many rows of hidden states go through output layer and draw at once."""
    return max(1, CHUNK[hidden.device.type] // network.config.vocab_size)


def _decide(
    network: Network,
    hidden_BKD: Tensor,
    uniforms_BK: Tensor,
    settings: DrawSettings,
    drawing: Draw,
) -> Drawn:
    """Output layer and draw of one step, a chunk of its tokens at a time."""
    rows = chunk_rows(network, hidden_BKD)
    hidden, uniforms = hidden_BKD.flatten(0, 1), uniforms_BK.flatten()
    with threads_for(hidden_BKD.device, network.config.vocab_size * hidden_BKD.numel()):
        if len(hidden) <= rows:
            tokens, log_probs = drawing(network.logits(hidden), uniforms, settings)
        else:
            both = zip(torch.split(hidden, rows), torch.split(uniforms, rows), strict=True)
            parts = [drawing(network.logits(h), u, settings) for h, u in both]
            tokens, log_probs = (torch.cat(part) for part in zip(*parts, strict=True))
    return Drawn(tokens.view_as(uniforms_BK), log_probs.view_as(uniforms_BK))


def _drop_ended(progress: Progress, calls: Calls, decided: int, end_of_text: int) -> None:
    """Let ended rows leave: all at once, or when at least half have (moving the rest costs)."""
    length = progress.canvas_BL.shape[1]
    positions = torch.arange(length, device=progress.canvas_BL.device)
    ends_BL = torch.where(progress.canvas_BL == end_of_text, positions, length)
    next_B = progress.order_BL[:, decided:].amin(1)
    running = np.flatnonzero((ends_BL.amin(1) > next_B).cpu().numpy())
    if 2 * len(running) <= len(progress.rows):
        progress.keep(running)
        if len(running):
            calls.keep(running)
