"""Blanks filled many times over, for every length they may have, and the fills ranked.

    templates -> layouts (one for each combination of lengths) -> rows (n candidates of each)
              -> batches of unequal rows -> candidates -> ranked by the score of the whole text

Candidate i of a layout is a function of (seed, i, template) alone: nothing depends on which other
rows, lengths or templates shared its batch.

Shapes: L positions of one text, V vocabulary.
"""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice, takewhile, tee
from typing import overload

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.memory import Room
from esogen.errors import NumericalError
from esogen.generate.batches import batches
from esogen.generate.denoise import Step
from esogen.generate.draft_calls import DraftCalls, PrefixedDrafts, UncachedDrafts
from esogen.generate.draft_rows import Rows, Text
from esogen.generate.drafting import Drafting
from esogen.generate.draw import DrawSettings
from esogen.generate.engine import Engine
from esogen.generate.fill import (
    Canvas,
    FillCalls,
    Row,
    Rule,
    UncachedFill,
    agreement,
    fill,
    prefilled,
)
from esogen.generate.lossless import Lossless
from esogen.generate.plan import Plan, ScheduleSettings, make_plan
from esogen.generate.streams import token_uniforms
from esogen.generate.template import BLANK, Layout, Tokens, layouts
from esogen.generate.verify import Agreement
from esogen.ranking.scores import LEFT_TO_RIGHT, RankingOrder, best, scores

FREE, BEGINS_WORD = 0, 1
"""Kinds of positions: any token, or one that begins a word with a space before it."""


@dataclass(frozen=True, slots=True)
class InfillSettings:
    """Everything that decides what is filled in.

    `n` candidates for each combination of lengths, of which at most `max_combinations` are tried;
    `end_allowed`: a blank may draw an end of text. `order`: what candidates are ranked by.
    """

    seed: int
    schedule: ScheduleSettings
    draw: DrawSettings
    n: int = 8
    max_combinations: int = 64
    end_allowed: bool = False
    order: RankingOrder = LEFT_TO_RIGHT
    kv_cache: bool = True
    drafting: Drafting | None = None

    def rule(self, engine: Engine) -> Rule:
        """How a run on this engine draws."""
        return Rule(self.draw, engine.allowed(end=self.end_allowed), engine.draw)

    def seeded(self, seed: int) -> "InfillSettings":
        """The same with another seed."""
        return replace(self, seed=seed, order=replace(self.order, seed=seed))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One filled text.

    `tokens`, `steps` and `log_probs` by position: ids; the network call that decided each, -1 for
    given tokens; the model's own log-probability then, nats, before temperature and truncation.
    `log_prob` is their sum. `score` is log p of the whole text in the common order, nats.
    `rounds`: for each call, drafts verified and how many of them stood; none without drafts.
    """

    text: str
    fills: tuple[str, ...]
    lengths: tuple[int, ...]
    index: int
    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_prob: float
    nfe: int
    score: float
    rounds: tuple[tuple[int, int], ...] = ()

    @property
    def score_per_token(self) -> float:
        """What candidates are ranked by, nats per token of the whole text."""
        return self.score / len(self.tokens)


@dataclass(frozen=True, slots=True)
class LengthsTried:
    """One combination of lengths: its candidates, and the best score per token among them."""

    lengths: tuple[int, ...]
    candidates: int
    best: float


@dataclass(frozen=True, slots=True)
class Filled:
    """What came of one template: distinct candidates, best first, and how lengths were found.

    `combinations` of lengths the blanks allow, of which `tried` were tried.
    """

    candidates: tuple[Candidate, ...]
    combinations: int
    tried: tuple[LengthsTried, ...]
    order: RankingOrder

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    @overload
    def __getitem__(self, rank: int) -> Candidate: ...

    @overload
    def __getitem__(self, rank: slice) -> tuple[Candidate, ...]: ...

    def __getitem__(self, rank: int | slice) -> Candidate | tuple[Candidate, ...]:
        return self.candidates[rank]


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """One candidate to be made."""

    template: int
    layout: Layout
    index: int
    row: Row


class Shown:
    """What is shown of a batch of unequal rows: those with the layout of its first."""

    end_of_text: int | None = None

    def __init__(self, batch: "InfillBatch") -> None:
        layout = batch.tasks[0].layout
        tasks = [*takewhile(lambda task: task.layout is layout, batch.tasks)]
        plans = [task.row.plan for task in tasks]
        order_BL = np.concatenate([plan.order_BL for plan in plans])
        self.plan: Plan = replace(plans[0], order_BL=order_BL)
        self.indices = batch.indices[: len(tasks)]
        self.given_L = tasks[0].row.ids_L
        self._batch = batch

    def drafts(self) -> NDArray[np.int64] | None:
        """Those of the rows that are shown, as of the batch."""
        drafts_BL = self._batch.drafts()
        return None if drafts_BL is None else drafts_BL[: len(self.indices), : len(self.given_L)]

    def steps(self) -> Iterator[Step]:
        """Run the whole batch, yielding what was decided of the rows that are shown."""
        for step in self._batch.steps():
            shown = np.flatnonzero(step.rows < len(self.indices))
            if len(shown):
                yield step.of(shown)


class InfillBatch:
    """Some candidates made together: drive `steps` to its end, then they can be read.

    `indices` number the rows of the whole run, `seconds` is the wall time that `steps` took.
    """

    def __init__(
        self,
        engine: Engine,
        settings: InfillSettings,
        tasks: Sequence[_Task],
        first: int,
        drafted: Lossless | None = None,
    ) -> None:
        self.settings, self.tasks = settings, tasks
        self.indices = range(first, first + len(tasks))
        self.seconds = 0.0
        self._made: list[Candidate] = []
        self._engine, self._drafted = engine, drafted
        self._steps: list[Step] = []

    @property
    def rows(self) -> list[Row]:
        """What is filled, with its plan, row by row."""
        return [task.row for task in self.tasks]

    def shown(self) -> Shown:
        """The rows that can be watched side by side."""
        return Shown(self)

    def steps(self) -> Iterator[Step]:
        """Run the network, yielding what each call decided."""
        began = time.perf_counter()
        drafted = self._drafted
        for step in drafted.steps(self.indices) if drafted else self._plain_steps():
            self._steps.append(step)
            yield step
        self.seconds = time.perf_counter() - began

    def _plain_steps(self) -> Iterator[Step]:
        network, rows = self._engine.network, self.rows
        canvas = Canvas.of(network, rows, self._engine.device)
        calls = self.calls(canvas, cached=self.settings.kv_cache)
        return fill(network, calls, rows, canvas, self.settings.rule(self._engine))

    def drafts(self) -> NDArray[np.int64] | None:
        """Drafts to be verified, `[B, L]` by position, else -1; None if nothing is drafted."""
        if self._drafted is None:
            return None
        longest = max(len(row.ids_L) for row in self.rows)
        drafts_BL = np.full((len(self.rows), longest), BLANK)
        self._drafted.rows.show_drafts(drafts_BL, self.indices.start)
        return drafts_BL

    def verify(self) -> Agreement:
        """This batch again, cached against uncached, shown the same tokens."""
        network, rows = self._engine.network, self.rows
        canvas = Canvas.of(network, rows, self._engine.device)
        rule = self.settings.rule(self._engine)
        return agreement(network, self.calls(canvas, cached=True), rows, canvas, rule)

    def calls(self, canvas: Canvas, *, cached: bool) -> FillCalls:
        """Fresh state for a run with the KV cache, its given tokens computed, or without."""
        network = self._engine.network
        if not cached:
            return UncachedFill(network)
        return prefilled(network, self.rows, canvas, self._engine.kernels)

    def candidates(self) -> list[Candidate]:
        """What was made, in the order of the rows; raises `NumericalError` for broken weights."""
        self._made = self._made or self._read()
        return self._made

    def _read(self) -> list[Candidate]:
        decided = [_Decided.of(task.row) for task in self.tasks]
        for step in self._steps:
            columns = (step.positions_BK, step.tokens_BK, step.log_probs_BK)
            positions, tokens, log_probs = (x.cpu().numpy() for x in columns)
            for b, row in enumerate(step.rows):
                decided[row].take(step.index, positions[b], tokens[b], log_probs[b])
                if step.examined:
                    drafts, stood = step.examined.drafts_B[b], step.examined.accepted_B[b]
                    decided[row].rounds.append((int(drafts), int(stood)))
        if not all(np.isfinite(each.log_probs_L).all() for each in decided):
            raise NumericalError(
                "the network gave logits that are not finite numbers;"
                " the weights are broken, or --dtype is too narrow: try fp32"
            )
        texts = [each.tokens_L.tolist() for each in decided]
        found = scores(self._engine.network, texts, self.settings.order)
        return [
            self._candidate(task, each, score)
            for task, each, score in zip(self.tasks, decided, found, strict=True)
        ]

    def _candidate(self, task: _Task, decided: "_Decided", score: float) -> Candidate:
        fills = task.layout.fills(decided.tokens_L.tolist(), self._engine.tokenizer)
        return Candidate(
            text=task.layout.text(fills),
            fills=fills,
            lengths=task.layout.lengths,
            index=task.index,
            tokens=tuple(decided.tokens_L.tolist()),
            steps=tuple(decided.steps_L.tolist()),
            log_probs=tuple(decided.log_probs_L.tolist()),
            log_prob=float(decided.log_probs_L.sum()),
            nfe=int(decided.steps_L.max(initial=-1)) + 1,
            score=score,
            rounds=tuple(decided.rounds),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Decided:
    """A row's tokens by position, the steps that decided them, and how surely."""

    tokens_L: NDArray[np.int64]
    steps_L: NDArray[np.int64]
    log_probs_L: NDArray[np.float64]
    rounds: list[tuple[int, int]]

    @classmethod
    def of(cls, row: Row) -> "_Decided":
        return cls(
            row.ids_L.copy(),
            np.full(len(row.ids_L), BLANK),
            np.zeros(len(row.ids_L), np.float64),
            [],
        )

    def take(
        self,
        step: int,
        positions: NDArray[np.int64],
        tokens: NDArray[np.int64],
        log_probs: NDArray[np.float32],
    ) -> None:
        self.tokens_L[positions], self.steps_L[positions] = tokens, step
        self.log_probs_L[positions] = log_probs


class Infilling:
    """A run over some templates: drive its `batches`, each yields the templates it finished."""

    def __init__(self, engine: Engine, settings: InfillSettings) -> None:
        self.engine, self.settings = engine, settings
        self._open: dict[int, _Open] = {}

    def carry_out(self, templates: Iterable[Tokens], batch_size: int) -> Iterator[Filled]:
        """Every template filled, in order, without anybody watching."""
        for batch in self.batches(templates, batch_size, drive=_to_the_end):
            yield from (filled for _, filled in self.finished(batch))

    def batches(
        self,
        templates: Iterable[Tokens],
        batch_size: int,
        *,
        drive: Callable[[InfillBatch], object] | None = None,
        told: Callable[[str], object] = warnings.warn,
    ) -> Iterator[InfillBatch]:
        """Batches of candidates of all templates, in order, whatever their lengths.

        `drive` and `told` are those of `LanguageModel.batches`, and so is what happens where drafts
        are verified.
        """
        numbered, ahead = tee(enumerate(self._tasks(templates)))
        drafting = self.settings.drafting

        def begin(part: Sequence[tuple[int, _Task]]) -> Lossless:
            assert drafting
            waiting = (task.row for _, task in copy(ahead))
            return self._drafted(drafting, waiting, len(part), part[0][0])

        room, verifies = Room(batch_size, "candidates", told), drafting and drafting.verifies
        for batch in batches(
            numbered, room, self._batch, begin=begin if verifies else None, drive=drive
        ):
            deque(islice(ahead, len(batch.tasks)), maxlen=0)  # they are done
            yield batch

    def _batch(self, part: Sequence[tuple[int, _Task]], drafted: Lossless | None) -> InfillBatch:
        tasks = [task for _, task in part]
        return InfillBatch(self.engine, self.settings, tasks, part[0][0], drafted)

    def _drafted(
        self, drafting: Drafting, rows: Iterator[Row], places: int, first: int
    ) -> Lossless:
        """A run that fills these rows, from number `first` on, in so many places."""
        engine, settings = self.engine, self.settings
        network, longest = engine.network, engine.longest
        calls: DraftCalls = UncachedDrafts(network, places, engine.device)
        if settings.kv_cache:
            calls = PrefixedDrafts(network, places, longest, drafting, engine.kernels)
        empty, rule = Rows.places(places, longest, first), settings.rule(engine)
        return Lossless(network, calls, empty, rule, drafting, waiting=map(_text, rows))

    def check(self, tokens: Tokens) -> int:
        """How many combinations of lengths will be tried; `UsageError` if the text is too long."""
        return len(layouts(tokens, self.engine.longest, self.settings.max_combinations))

    def finished(self, batch: InfillBatch) -> Iterator[tuple[int, Filled]]:
        """Take in a batch that was driven; yields each template that is done with its number."""
        for task, candidate in zip(batch.tasks, batch.candidates(), strict=True):
            template = self._open[task.template]
            template.candidates.append(candidate)
            if len(template.candidates) == template.wanted:
                yield task.template, self._open.pop(task.template).ranked(self.settings.order)

    def _tasks(self, templates: Iterable[Tokens]) -> Iterator[_Task]:
        settings = self.settings
        for number, tokens in enumerate(templates):
            found = layouts(tokens, self.engine.longest, settings.max_combinations)
            self._open[number] = _Open(tokens.combinations, len(found) * settings.n, [])
            for layout in found:
                for index in range(settings.n):
                    yield _Task(number, layout, index, row_of(layout, settings, index))


def _text(row: Row) -> Text:
    plan = row.plan
    return Text(row.ids_L, row.kinds_L, row.order_L, plan.given, plan.late, row.uniforms_L3)


def _to_the_end(batch: InfillBatch) -> None:
    for _ in batch.steps():
        pass


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """A template some of whose candidates are still to be made."""

    combinations: int
    wanted: int
    candidates: list[Candidate]

    def ranked(self, order: RankingOrder) -> Filled:
        by_lengths: dict[tuple[int, ...], list[float]] = {}
        for candidate in self.candidates:
            by_lengths.setdefault(candidate.lengths, []).append(candidate.score_per_token)
        tried = (LengthsTried(k, len(v), max(v)) for k, v in by_lengths.items())
        return Filled(
            tuple(best(self.candidates, lambda c: c.score_per_token, lambda c: c.fills)),
            self.combinations,
            tuple(sorted(tried, key=lambda each: each.best, reverse=True)),
            order,
        )


def row_of(layout: Layout, settings: InfillSettings, index: int) -> Row:
    """Candidate `index` of a layout, planned; a token at a time where it is drafted."""
    given, blank = (np.flatnonzero(x) for x in (layout.ids_L != BLANK, layout.ids_L == BLANK))
    plan = make_plan(settings.schedule, settings.seed, range(index, index + 1), given, blank)
    return Row(
        layout.ids_L,
        np.where(layout.spaced_L, BEGINS_WORD, FREE),
        plan if settings.drafting is None else plan.one_by_one(),
        token_uniforms(settings.seed, index, len(layout.ids_L)),
    )
