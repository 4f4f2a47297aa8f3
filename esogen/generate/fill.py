"""Texts of unequal length filled in one batch, each by a plan of its own.

`denoise` serves rows that share their counts: one shape per call, nothing padded. Here every row
has its own length, given tokens and counts, so lengths in the cache are per row and a call is as
wide as its widest row. What pads a narrower row are masks behind its own, which nothing before them
sees. Given tokens are computed once for all rows that share them, before the first step.

Shapes: B rows still running, G groups of rows with the same given tokens, L positions of the
longest row, W tokens of a call, K masks of its widest row, M tokens decided by a call, D model
width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.captured import Through
from esogen.generate.denoise import Step, chunk_rows
from esogen.generate.draw import Draw, Drawn, DrawSettings, draw
from esogen.generate.plan import Plan
from esogen.generate.verify import Agreement, compare_draws
from esogen.model.attention import SDPA, Dense, Kernels
from esogen.model.network import Network, hidden_after_bos
from esogen.model.shared_prefix import SharedPrefix

Ids = NDArray[np.int64]


_BY_SORTING: Draw = draw  # `draw` is a field of the class below


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """How tokens are drawn, and which: `allowed_CV` bool, one line for each kind of position.

    None where all are. `drawing` is `draw`, or a kernel that must equal it.
    """

    draw: DrawSettings
    allowed_CV: Tensor | None = None
    drawing: Draw = _BY_SORTING

    def only_allowed(self, logits_MV: Tensor, kinds_M: Tensor) -> Tensor:
        """Logits, or log-probabilities, in which tokens that are not allowed have no chance."""
        if self.allowed_CV is None:
            return logits_MV
        return logits_MV.masked_fill(~self.allowed_CV[kinds_M], -torch.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One text to be filled.

    `ids_L`: given tokens; what stands elsewhere is not read. `kinds_L`: which line of the rule's
    allowed tokens holds at each position. `plan`: of this text alone. `uniforms_L3`: what each
    position is drawn with, and with which drafts are examined.
    """

    ids_L: Ids
    kinds_L: Ids
    plan: Plan
    uniforms_L3: NDArray[np.float64]

    @property
    def order_L(self) -> Ids:
        """Natural position at each sorted index."""
        order_L: Ids = self.plan.order_BL[0]
        return order_L

    @property
    def given(self) -> tuple[bytes, bytes]:
        """What rows must have in common to share the computation of their given tokens."""
        order = self.order_L[: self.plan.given]
        return order.tobytes(), self.ids_L[order].tobytes()


@dataclass(slots=True, eq=False)
class Canvas:
    """Where the rows still running stand: `decided_B` tokens are clean, the last `fresh_B` newly.

    `canvas_BL` in natural positions, masks where undecided; `order_BL` behind a row's own length is
    the identity. Both on the device, the rest on the host.
    """

    canvas_BL: Tensor
    order_BL: Tensor
    kinds_BL: Tensor
    uniforms_BL: Tensor
    rows: Ids
    decided_B: Ids
    fresh_B: Ids

    @classmethod
    def of(cls, network: Network, rows: Sequence[Row], device: torch.device) -> "Canvas":
        """Rows before their first step: given tokens in place, masks everywhere else."""
        shape = len(rows), max(len(row.ids_L) for row in rows)
        canvas_BL = np.full(shape, network.config.mask_id, np.int64)
        order_BL = np.tile(np.arange(shape[1]), (shape[0], 1))
        kinds_BL, uniforms_BL = np.zeros(shape, np.int64), np.zeros(shape)
        for b, row in enumerate(rows):
            length, given = len(row.ids_L), row.order_L[: row.plan.given]
            canvas_BL[b, given] = row.ids_L[given]
            order_BL[b, :length], kinds_BL[b, :length] = row.order_L, row.kinds_L
            uniforms_BL[b, :length] = row.uniforms_L3[:, 0]
        given_B = np.array([row.plan.given for row in rows])
        return cls(
            torch.from_numpy(canvas_BL).to(device),
            torch.from_numpy(order_BL).to(device),
            torch.from_numpy(kinds_BL).to(device),
            torch.from_numpy(uniforms_BL).to(device),
            np.arange(len(rows)),
            given_B,
            np.zeros_like(given_B),
        )

    def take(self, at: tuple[Tensor, Tensor], tokens_M: Tensor, count_B: Ids) -> None:
        """Put down what a call decided: rows and positions, their tokens, how many in each row."""
        self.canvas_BL[at] = tokens_M
        self.decided_B, self.fresh_B = self.decided_B + count_B, count_B

    def keep(self, kept: Ids) -> None:
        """Drop every row but these (indices into the rows still running)."""
        index = torch.from_numpy(kept).to(self.canvas_BL.device)
        for name in ("canvas_BL", "order_BL", "kinds_BL", "uniforms_BL"):
            setattr(self, name, getattr(self, name)[index])
        self.rows, self.decided_B = self.rows[kept], self.decided_B[kept]
        self.fresh_B = self.fresh_B[kept]


class FillCalls(Protocol):
    """How a step's hidden states are computed: with the cache, or without (the oracle)."""

    def __call__(self, canvas: Canvas, count_B: Ids) -> Tensor:
        """Hidden states `[B, K, D]` of the next `count_B` masks of each row, K the most of them."""
        ...

    def keep(self, kept: Ids) -> None:
        """Drop every row but these."""
        ...


class CachedFill:
    """Feed what was decided last, now clean, and this step's masks; all else is in the cache."""

    def __init__(self, through: Through) -> None:
        self._through = through

    def __call__(self, canvas: Canvas, count_B: Ids) -> Tensor:
        width = int((canvas.fresh_B + count_B).max())
        index_BW = _columns(canvas.decided_B - canvas.fresh_B, width, canvas.order_BL)
        positions_BW = canvas.order_BL.gather(1, index_BW)
        ids_BW = canvas.canvas_BL.gather(1, positions_BW)
        hidden_BWD = self._through(ids_BW, positions_BW)
        self._through.cache.commit(canvas.fresh_B)
        index_BK = _columns(canvas.fresh_B, int(count_B.max()), hidden_BWD)
        return hidden_BWD.take_along_dim(index_BK[..., None], 1)

    def keep(self, kept: Ids) -> None:
        """Drop every row but these."""
        self._through.keep(kept)


class UncachedFill:
    """Run all positions in every call: slow, and what the cache must equal."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __call__(self, canvas: Canvas, count_B: Ids) -> Tensor:
        ids_BL = canvas.canvas_BL.gather(1, canvas.order_BL)
        hidden_BLD = hidden_after_bos(self._network, ids_BL, canvas.order_BL, Dense(causal=True))
        index_BK = _columns(canvas.decided_B, int(count_B.max()), hidden_BLD)
        return hidden_BLD.take_along_dim(index_BK[..., None], 1)

    def keep(self, kept: Ids) -> None:
        """Nothing is kept between calls."""


def _columns(first_B: Ids, width: int, like: Tensor) -> Tensor:
    """Columns `first_B ... first_B + width`, at most the last one of `like`, on its device."""
    index_BW = first_B[:, None] + np.arange(width)
    return torch.from_numpy(np.minimum(index_BW, like.shape[1] - 1)).to(like.device)


@torch.inference_mode()
def prefilled(
    network: Network, rows: Sequence[Row], canvas: Canvas, kernels: Kernels = SDPA
) -> CachedFill:
    """Calls whose cache holds the given tokens of every row, computed once for each group."""
    groups = {row.given: b for b, row in reversed([*enumerate(rows)])}
    first = np.array(sorted(groups.values()))
    group_B = np.searchsorted(first, [groups[row.given] for row in rows])
    width = int(canvas.decided_B.max())
    cache = SharedPrefix(network, len(first), group_B, prefix=width, places=_places(rows))
    index = torch.from_numpy(first).to(cache.device)
    positions_GW = canvas.order_BL[index, :width]
    ids_GW = canvas.canvas_BL[index].gather(1, positions_GW)
    cache.begin(np.arange(len(first)), ids_GW, positions_GW, canvas.decided_B[first])
    return CachedFill(Through(network, cache, kernels))


def _places(rows: Sequence[Row]) -> int:
    """Places a row needs behind its given tokens: its own, and what pads it beside a wide one."""
    places = 0
    for step in range(max(row.plan.nfe for row in rows)):
        standing, widths = zip(*(_fed(row.plan.counts_S, step) for row in rows), strict=True)
        places = max(places, max(standing) + max(widths))
    return places


def _fed(counts_S: Ids, step: int) -> tuple[int, int]:
    """Decided tokens that stand in the cache before a step, and how many tokens the step feeds."""
    first = max(step - 1, 0)
    return int(counts_S[:first].sum()), int(counts_S[first : step + 1].sum())


@torch.inference_mode()
def fill(
    network: Network,
    calls: FillCalls,
    rows: Sequence[Row],
    canvas: Canvas,
    rule: Rule,
) -> Iterator[Step]:
    """Carry out every row's plan, yielding what each call decided; `canvas` moves along.

    Rows that decide equally many tokens in a call come in one `Step`.
    """
    for index in range(max(row.plan.nfe for row in rows)):
        count_B = np.array([_count(rows[row].plan, index) for row in canvas.rows])
        if 2 * np.count_nonzero(count_B) <= len(count_B):
            running = np.flatnonzero(count_B)
            canvas.keep(running)
            calls.keep(running)
            count_B = count_B[running]
        hidden_MD, at = _masks(calls(canvas, count_B), canvas, count_B)
        uniforms_M, kinds_M = canvas.uniforms_BL[at], canvas.kinds_BL[at]
        drawn = decide(network, hidden_MD, uniforms_M, kinds_M, rule)
        canvas.take(at, drawn.tokens, count_B)
        late_B = np.array([index >= rows[row].plan.diffusion_steps for row in canvas.rows])
        yield from _steps(index, canvas, late_B, at[1], drawn)


def _masks(
    hidden_BKD: Tensor, canvas: Canvas, count_B: Ids
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Hidden states `[M, D]` of the masks alone, and where they stand: rows and positions."""
    row_M, column_M = np.nonzero(np.arange(hidden_BKD.shape[1]) < count_B[:, None])
    place_M = canvas.decided_B[row_M] + column_M
    row, column, place = (
        torch.from_numpy(x).to(hidden_BKD.device) for x in (row_M, column_M, place_M)
    )
    return hidden_BKD[row, column], (row, canvas.order_BL[row, place])


@torch.inference_mode()
def agreement(
    network: Network, calls: FillCalls, rows: Sequence[Row], canvas: Canvas, rule: Rule
) -> Agreement:
    """Carry out the plans with `calls` and without a cache, both shown what the latter draws."""
    found, oracle = Agreement(), UncachedFill(network)
    for index in range(max(row.plan.nfe for row in rows)):
        count_B = np.array([_count(row.plan, index) for row in rows])
        (expected_MD, at), (found_MD, _) = (
            _masks(each(canvas, count_B), canvas, count_B) for each in (oracle, calls)
        )
        uniforms_M, kinds_M = canvas.uniforms_BL[at], canvas.kinds_BL[at]
        tokens_M = decide(network, expected_MD, uniforms_M, kinds_M, rule).tokens
        columns = (expected_MD, found_MD, tokens_M, uniforms_M)
        parts = (torch.split(x, chunk_rows(network, expected_MD)) for x in columns)
        for expected, other, tokens, uniforms in zip(*parts, strict=True):
            sides = network.logits(expected), network.logits(other)
            found += compare_draws(*sides, tokens, uniforms, rule.draw)
        canvas.take(at, tokens_M, count_B)
    return found


def _count(plan: Plan, step: int) -> int:
    return int(plan.counts_S[step]) if step < plan.nfe else 0


def decide(
    network: Network,
    hidden_MD: Tensor,
    uniforms_M: Tensor,
    kinds_M: Tensor,
    rule: Rule,
) -> Drawn:
    """Output layer and draw of one step among the allowed tokens, some rows at a time.

    Log-probabilities are the model's own, over the whole vocabulary.
    """
    rows = chunk_rows(network, hidden_MD)
    columns = (torch.split(column, rows) for column in (hidden_MD, uniforms_M, kinds_M))
    drawn = []
    for hidden, uniforms, kinds in zip(*columns, strict=True):
        logits = network.logits(hidden)
        free = logits.logsumexp(-1)
        logits = rule.only_allowed(logits, kinds)
        tokens, log_probs = rule.drawing(logits, uniforms, rule.draw)
        drawn.append(Drawn(tokens, log_probs + logits.logsumexp(-1) - free))
    tokens, log_probs = (torch.cat(column) for column in zip(*drawn, strict=True))
    return Drawn(tokens, log_probs)


def _steps(
    index: int, canvas: Canvas, late_B: NDArray[np.bool_], positions_M: Tensor, drawn: Drawn
) -> Iterator[Step]:
    """One `Step` for each number of tokens that rows decided at once, and for each phase."""
    count_B = canvas.fresh_B
    of_M, phase_M = np.repeat(count_B, count_B), np.repeat(late_B, count_B)
    for count, late in sorted({*zip(count_B.tolist(), late_B.tolist(), strict=True)}):
        if count:
            those = torch.from_numpy(np.flatnonzero((of_M == count) & (phase_M == late)))
            columns = (
                x[those.to(x.device)].view(-1, count)
                for x in (positions_M, drawn.tokens, drawn.log_probs)
            )
            yield Step(index, late, canvas.rows[(count_B == count) & (late_B == late)], *columns)
