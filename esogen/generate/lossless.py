"""The law of one token per step in fewer calls: drafts that are verified, all at once.

A parallel step draws several tokens, each as if the others were not there. Eso-LM (B) then gives
the exact conditional of every one of them, given those before it in the order, in one causal pass.
So a call feeds the drafts as clean tokens, a mask for each to verify it, and masks that draft on:

              stands  fresh  drafts  verify  next
    fresh     ######  #      ...     ...     ....
    draft 1   ######  #      #..     ...     ....
    draft 2   ######  #      ##.     ...     ....
    draft 3   ######  #      ###     ...     ....
    verify 1  ######  #      ...     #..     ....
    verify 2  ######  #      #..     .#.     ....
    verify 3  ######  #      ##.     ..#     ....
    next 1    ######  #      ###     ...     #...
    next 2    ######  #      ###     ...     ##..

Draft d was drawn from q; verifying gives p, what one token per step would draw from. It is
accepted with probability min(1, p(d) / q(d)), else the token is drawn from max(p - q, 0): either
way its law is p (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). When all are
accepted, the first next mask has seen what is decided and nothing else, so its draw is final. Every
call decides at least one token.

Behind a refused draft every position is drafted anew, from the mask of this call that verified it
or drafted it: that one has seen all drafts before it, and only few of them are wrong. Any q serves,
as long as it is the one that the draft was drawn from. (Throwing the drafts away, as the papers do,
takes a call more, which only drafts.) A position beside the refused one ends that: to see a wrong
neighbour is worse than to see a mask.

Each position owns three uniforms: draw, accept, residual. They suffice although a position may be
drafted more than once. Accept and residual are used only when a draft is examined, which decides
its position. The draw uniform is used again in every draft of a position, but only the last is ever
examined, and nothing that it meets knows of that uniform: masks see only what is before them in the
order, so q, p, when the draft is examined and what stands then are a matter of positions before it,
of their drafts and uniforms. How many are drafted is a function of what was accepted and refused.
So given all that has had an effect, the uniform of a draft not examined yet is still uniform and
independent of it.

Shapes: B rows still running, L positions of the longest, W tokens of a call, K tokens drafted ahead
at most, M masks, D model width, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.generate.denoise import Examined, Step, chunk_rows
from esogen.generate.draft_calls import Call, DraftCalls
from esogen.generate.draft_rows import Bools, Rows, Text, spread
from esogen.generate.drafting import Drafting
from esogen.generate.draw import search, shape
from esogen.generate.fill import Ids, Rule
from esogen.model.network import Network

DRAW, ACCEPT, RESIDUAL = range(3)


def accepted(p_M: Tensor, q_M: Tensor, uniforms_M: Tensor) -> Tensor:
    """Whether drafts stand, bool: u < p / q, their probabilities verified and as drafted."""
    return uniforms_M * q_M < p_M


def residual(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """What a token is drawn from instead of a refused draft, unnormalised: max(p - q, 0).

    Where rounding leaves nothing of it, p.
    """
    left_MV = (p_MV - q_MV).clamp(min=0.0)
    return torch.where(left_MV.sum(-1, keepdim=True) > 0.0, left_MV, p_MV)


class _Chosen(NamedTuple):
    """Tokens, the probabilities they are drawn with, the model's own log-probabilities: `[M]`."""

    tokens: Tensor
    probs: Tensor
    log_probs: Tensor

    @classmethod
    def joined(cls, parts: Sequence["_Chosen"]) -> "_Chosen":
        """What was made a part at a time."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def put(self, rows: Rows, at: tuple[Ids, Ids]) -> None:
        """Set down at rows and sorted indices."""
        rows.tokens_BL[at] = self.tokens.cpu().numpy()
        rows.probs_BL[at] = self.probs.cpu().numpy()
        rows.log_probs_BL[at] = self.log_probs.cpu().numpy()


class Lossless:
    """Texts being made in as many places as `rows` has.

    Where a text is done, the next of `waiting` takes its place; where none waits, rows that are
    done leave. With `end_of_text`, a text is done once its first end-of-text has no undecided
    position before it. `rows` and `calls` move along.
    """

    def __init__(
        self,
        network: Network,
        calls: DraftCalls,
        rows: Rows,
        rule: Rule,
        drafting: Drafting,
        *,
        waiting: Iterable[Text] = (),
        end_of_text: int | None = None,
    ) -> None:
        self.rows = rows
        self._calls, self._drafting, self._end_of_text = calls, drafting, end_of_text
        self._sampler = _Sampler(network, rule, drafting, len(rows.rows))
        self._waiting, self._next = iter(waiting), int(rows.rows[-1]) + 1
        self._held: list[Step] = []
        self._replace()

    def steps(self, texts: range) -> Iterator[Step]:
        """Make these texts, yielding what each call decided of them; the first one is row 0.

        What is decided of others meanwhile is held until somebody asks for those. Rows that decide
        equally many tokens in as many calls, in the same phase, come in one `Step`.
        """
        held, self._held = self._held, []
        for step in itertools.chain(held, self._until_done(texts.stop)):
            mine_B = (texts.start <= step.rows) & (step.rows < texts.stop)
            if mine_B.all():
                yield replace(step, rows=step.rows - texts.start)
                continue
            self._held.append(step.of(np.flatnonzero(~mine_B)))
            if mine_B.any():
                mine = step.of(np.flatnonzero(mine_B))
                yield replace(mine, rows=mine.rows - texts.start)

    def _until_done(self, stop: int) -> Iterator[Step]:
        """What calls decide until every text before number `stop` is done."""
        while self._running_B.any() and self._first_undone < stop:
            yield from self._call()

    @property
    def _first_undone(self) -> int:
        return int(self.rows.rows[self._running_B].min(initial=self._next))

    @torch.inference_mode()
    def _call(self) -> list[Step]:
        rows, before_B = self.rows, self.rows.decided_B
        call = _next_call(rows, self._calls.cached_B, self._running_B, self._drafting)
        accepted_B = self._sampler.decide(rows, call, self._calls(rows, call))
        self._calls.commit(call.clean_B - call.drafts_B + accepted_B)
        steps = [*_steps(rows, before_B, Examined(call.drafts_B, accepted_B))]
        rows.calls_B = rows.calls_B + 1
        self._replace()
        return steps

    @torch.inference_mode()
    def _replace(self) -> None:
        """Waiting texts for those that are done."""
        done_B = self.rows.done_B(self._end_of_text)
        while texts := [*itertools.islice(self._waiting, int(done_B.sum()))]:
            self._enter(np.flatnonzero(done_B)[: len(texts)], texts)
            done_B = self.rows.done_B(self._end_of_text)
        if 2 * np.count_nonzero(done_B) >= len(done_B):
            kept = np.flatnonzero(~done_B)
            for each in (self.rows, self._calls, self._sampler):
                each.keep(kept)
            done_B = done_B[kept]
        self._running_B = ~done_B

    def _enter(self, places: Ids, texts: Sequence[Text]) -> None:
        numbered = enumerate(zip(places, texts, strict=True), self._next)
        same = [self.rows.enter(b, text, number) for number, (b, text) in numbered]
        self._next += len(texts)
        self._calls.enter(self.rows, places, np.array(same))


def _next_call(rows: Rows, cached_B: Ids, running_B: Bools, drafting: Drafting) -> Call:
    """All that is new of the rows still running, and masks to draft on, as far as there are any."""
    left_B = rows.length_B - rows.decided_B - rows.drafted_B
    next_B = np.minimum(drafting.count(*rows.seen_B), left_B)
    clean_B = rows.decided_B + rows.drafted_B - cached_B
    return Call(cached_B, clean_B * running_B, rows.drafted_B * running_B, next_B * running_B)


class _Given(NamedTuple):
    """What masks give: the model's own log-probabilities, and what is drawn from, with its sum."""

    log_probs_MV: Tensor
    weights_MV: Tensor
    sums_M: Tensor

    def pick(self, lines_K: Tensor, tokens_K: Tensor) -> _Chosen:
        """These tokens of these masks, and how likely they were."""
        at = lines_K, tokens_K
        probs_K = self.weights_MV[at] / self.sums_M[lines_K]
        return _Chosen(tokens_K, probs_K, self.log_probs_MV[at])

    def search(self, lines_K: Tensor, uniforms_K: Tensor) -> _Chosen:
        """A token from each of these masks."""
        return self.pick(lines_K, search(self.weights_MV[lines_K], uniforms_K)[:, 0])

    def probs_KV(self, lines_K: Tensor) -> Tensor:
        """What is drawn from, normalised, of these masks."""
        return self.weights_MV[lines_K] / self.sums_M[lines_K, None]


FEW = 32
"""Masks of a call, verifying and drafting on, up to which both are read at once: to read the second
for nothing, where a draft was refused, then costs less than to begin twice."""


class _Masks:
    """Masks of one call by number; what they give is computed when it is asked for.

    Of a few all of it is, once, and stays.
    """

    def __init__(self, network: Network, rule: Rule, hidden_MD: Tensor, kinds_M: Tensor) -> None:
        self._network, self._rule = network, rule
        self._hidden_MD, self._kinds_M = hidden_MD, kinds_M
        self._at_once = chunk_rows(network, hidden_MD)
        self._all = self._read(slice(None)) if len(kinds_M) <= min(FEW, self._at_once) else None

    def at(self, numbers: Tensor) -> tuple[_Given, Tensor]:
        """What some of them give, and in which lines; not more than may be in memory at once."""
        if self._all is None:
            return self._read(numbers), torch.arange(len(numbers), device=numbers.device)
        return self._all, numbers

    def in_parts(self, choose: Callable[[slice], _Chosen], count: int) -> _Chosen:
        """What is chosen from `count` of them, as many at once as may be in memory."""
        parts = (slice(i, i + self._at_once) for i in range(0, count, self._at_once))
        return _Chosen.joined([*map(choose, parts)])

    def verify(self, numbers_D: Tensor, tokens_D: Tensor) -> _Chosen:
        """Given tokens as these masks find them, which see what is before them."""

        def found(part: slice) -> _Chosen:
            given, lines = self.at(numbers_D[part])
            return given.pick(lines, tokens_D[part])

        return self.in_parts(found, len(tokens_D))

    def draw(self, numbers_N: Tensor, uniforms_N: Tensor) -> _Chosen:
        """A token from each of these masks."""

        def drawn(part: slice) -> _Chosen:
            given, lines = self.at(numbers_N[part])
            return given.search(lines, uniforms_N[part])

        return self.in_parts(drawn, len(uniforms_N))

    def redraw(
        self, numbers_R: Tensor, drafted: "_Masks", drafts_R: Tensor, uniforms_R: Tensor
    ) -> _Chosen:
        """Tokens from some of these masks instead of refused drafts, which came from others."""

        def drawn(part: slice) -> _Chosen:
            given, lines = self.at(numbers_R[part])
            before, drafts = drafted.at(drafts_R[part])
            left_RV = residual(given.probs_KV(lines), before.probs_KV(drafts))
            return given.pick(lines, search(left_RV, uniforms_R[part])[:, 0])

        return self.in_parts(drawn, len(numbers_R))

    def _read(self, numbers: slice | Tensor) -> _Given:
        log_probs_MV = self._network.logits(self._hidden_MD[numbers]).log_softmax(-1)
        allowed_MV = self._rule.only_allowed(log_probs_MV, self._kinds_M[numbers])
        weights_MV = shape(allowed_MV, self._rule.draw)
        return _Given(log_probs_MV, weights_MV, weights_MV.sum(-1))


class _Sampler:
    """Examines drafts and draws new ones; keeps the masks of the call before, which drafted them.

    Of a row's masks those that verify come first, then those that draft on.
    """

    def __init__(self, network: Network, rule: Rule, drafting: Drafting, rows: int) -> None:
        self._network, self._rule, self._drafting = network, rule, drafting
        self._drafted: _Masks | None = None
        self._first_B: Ids = np.zeros(rows, np.int64)

    def keep(self, kept: Ids) -> None:
        """Drop every row but these."""
        self._first_B = self._first_B[kept]

    def decide(self, rows: Rows, call: Call, hidden_BWD: Tensor) -> Ids:
        """Examine the drafts, then draw on; returns how many of each row were accepted.

        Drafts are drawn from the masks behind the one that was refused; where none was, the first
        next mask gives a token that is final.
        """
        masks_B = call.drafts_B + call.next_B
        first_B = np.cumsum(masks_B) - masks_B
        masks = self._masks(rows, call, hidden_BWD)
        accepted_B = self._examine(rows, call, masks, first_B)
        refused_B = accepted_B < call.drafts_B
        rows.count(accepted_B, refused_B)
        rows.decided_B = rows.decided_B + accepted_B + refused_B
        self._drafted, self._first_B = masks, first_B + accepted_B + refused_B
        behind_B = np.minimum(masks_B - accepted_B, self._drafting.count(*rows.seen_B)) - 1
        drawn_B = np.where(refused_B, rows.apart_B(behind_B), call.next_B)
        self._draft(rows, drawn_B)
        final_B = (drawn_B > 0) & ~refused_B
        rows.decided_B, rows.drafted_B = rows.decided_B + final_B, drawn_B - final_B
        self._first_B = self._first_B + final_B
        return accepted_B

    def _masks(self, rows: Rows, call: Call, hidden_BWD: Tensor) -> _Masks:
        row_M, number_M = spread(call.drafts_B + call.next_B)
        column_M = (call.clean_B - call.masks.start)[row_M] + number_M
        kinds_M = rows.kinds_BL[row_M, rows.decided_B[row_M] + number_M]
        (kinds,) = self._there(kinds_M)
        return _Masks(self._network, self._rule, hidden_BWD[row_M, column_M], kinds)

    def _examine(self, rows: Rows, call: Call, masks: _Masks, first_B: Ids) -> Ids:
        """How many drafts of each row are accepted before the first that is not.

        Instead of that one another token is drawn.
        """
        row_D, number_D = spread(call.drafts_B)
        if not len(row_D):
            return np.zeros_like(call.drafts_B)
        at = row_D, rows.decided_B[row_D] + number_D
        numbers, tokens, q, uniforms = self._there(
            first_B[row_D] + number_D,
            rows.tokens_BL[at],
            rows.probs_BL[at],
            rows.uniforms_BL3[at][:, ACCEPT],
        )
        found = masks.verify(numbers, tokens)
        rows.log_probs_BL[at] = found.log_probs.cpu().numpy()
        stopped_BK = np.ones((len(first_B), int(call.drafts_B.max()) + 1), np.bool_)
        stopped_BK[row_D, number_D] = ~accepted(found.probs, q, uniforms).cpu().numpy()
        accepted_B: Ids = stopped_BK.argmax(1)
        self._redraw(rows, call, masks, first_B, accepted_B)
        return accepted_B

    def _redraw(self, rows: Rows, call: Call, masks: _Masks, first_B: Ids, accepted_B: Ids) -> None:
        """Draw tokens instead of refused drafts, which these masks verified."""
        refused = np.flatnonzero(accepted_B < call.drafts_B)
        if not len(refused):
            return
        at = refused, (rows.decided_B + accepted_B)[refused]
        verified_R = (first_B + accepted_B)[refused]
        drafts_R = (self._first_B + accepted_B)[refused]
        verified, drafts, uniforms = self._there(
            verified_R, drafts_R, rows.uniforms_BL3[at][:, RESIDUAL]
        )
        assert self._drafted
        masks.redraw(verified, self._drafted, drafts, uniforms).put(rows, at)

    def _draft(self, rows: Rows, count_B: Ids) -> None:
        """Draw so many tokens of each row from the latest masks behind what stands."""
        row_N, number_N = spread(count_B)
        if not len(row_N):
            return
        at = row_N, rows.decided_B[row_N] + number_N
        numbers, uniforms = self._there(
            self._first_B[row_N] + number_N, rows.uniforms_BL3[at][:, DRAW]
        )
        assert self._drafted
        self._drafted.draw(numbers, uniforms).put(rows, at)

    def _there(self, *arrays: NDArray[np.generic]) -> Iterator[Tensor]:
        device = self._network.vocab_embed.embedding.device
        return (torch.from_numpy(array).to(device) for array in arrays)


def _steps(rows: Rows, before_B: Ids, examined: Examined) -> Iterator[Step]:
    """One `Step` for rows that decided equally many tokens, in as many calls and the same phase."""
    count_B, late_B = rows.decided_B - before_B, before_B >= rows.late_B
    alike_B3 = np.stack([rows.calls_B, count_B, late_B], 1)
    for call, many, late in sorted({*map(tuple, alike_B3.tolist())}):
        if many:
            those = np.flatnonzero((alike_B3 == (call, many, late)).all(1))
            at = those[:, None], before_B[those, None] + np.arange(many)
            columns = (rows.order_BL[at], rows.tokens_BL[at], rows.log_probs_BL[at])
            yield Step(
                call,
                bool(late),
                rows.rows[those],
                *map(torch.from_numpy, columns),
                examined=examined.of(those),
            )
