"""A run of the sampler: the texts it makes, batch by batch, each to be driven and then read.

Shapes: B rows of a batch, L positions of one text.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.memory import Room, rows_that_fit
from esogen.errors import NumericalError
from esogen.generate.batches import batches
from esogen.generate.denoise import Calls, Progress, Step, denoise, start
from esogen.generate.draft_calls import draft_calls
from esogen.generate.draft_rows import Rows, Text
from esogen.generate.drafting import Drafting
from esogen.generate.draw import DrawSettings
from esogen.generate.engine import Engine
from esogen.generate.fill import Rule
from esogen.generate.lossless import Lossless
from esogen.generate.plan import Plan, ScheduleSettings
from esogen.generate.streams import token_uniforms
from esogen.generate.verify import Agreement, Side, compare
from esogen.peers.family import calls_for, plan_for, row_bytes
from esogen.trace import UNDECIDED, Recorder, Trace, first_end

DEFAULT_BATCH = 16
"""Rows of a batch unless said, and on a CPU at most; results do not depend on it."""
MOST_ROWS = 1024
"""The same on a GPU: more would make one wait longer for the first text."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished text.

    `tokens` run up to and including the first end-of-text (with `raw`, over the whole length);
    `steps` and `log_probs` belong to the same positions: the network call that decided each (-1 for
    given tokens), and the model's own log-probability then, in nats, before temperature and
    truncation. `log_prob` is their sum, `nfe` the network calls made for this text, `seconds` the
    wall time of its batch. Of `drafts` that were verified, `accepted` stood.
    """

    index: int
    seed: int
    text: str
    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_prob: float
    nfe: int
    seconds: float
    drafts: int = 0
    accepted: int = 0

    @property
    def decided(self) -> int:
        """Tokens that the model decided: all but the given ones."""
        return sum(step >= 0 for step in self.steps)

    def record(self) -> dict[str, Any]:
        """What JSON says of this text alone; `LanguageModel.run_fields` are those of its run."""
        return {
            "index": self.index,
            "seed": self.seed,
            "text": self.text,
            "tokens": self.tokens,
            "log_prob": self.log_prob,
            "nfe": self.nfe,
            "seconds": self.seconds,
            "drafts": self.drafts,
            "accepted": self.accepted,
        }


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Everything that decides what is sampled, defaults filled in."""

    length: int
    seed: int
    schedule: ScheduleSettings
    draw: DrawSettings
    raw: bool = False
    kv_cache: bool = True
    drafting: Drafting | None = None


class Batch:
    """Some samples of a run, made together: drive `steps` to its end, then read `samples`.

    `indices` are their numbers, `seconds` the wall time that `steps` took.
    """

    def __init__(
        self,
        engine: Engine,
        settings: SampleSettings,
        given: NDArray[np.int64],
        samples: range,
        drafted: Lossless | None = None,
    ) -> None:
        self.indices, self.settings = samples, settings
        self._engine, self._given, self._drafted = engine, given, drafted
        self.seconds = 0.0
        self._given_L = np.zeros(settings.length, np.int64)
        self._given_L[: len(given)] = given
        self.plan = _plan(engine, settings, len(given), samples)
        self._recorder = Recorder(self.plan, self._given_L, drafted=drafted is not None)

    def steps(self) -> Iterator[Step]:
        """Run the network, yielding what each call decided."""
        began = time.perf_counter()
        drafted = self._drafted
        for step in drafted.steps(self.indices) if drafted else self._plain_steps():
            self._recorder.record(step)
            yield step
        self.seconds = time.perf_counter() - began

    def _plain_steps(self) -> Iterator[Step]:
        return denoise(
            self._engine.network,
            self.calls(cached=self.settings.kv_cache),
            self.plan,
            self.start(),
            self.settings.draw,
            end_of_text=self.end_of_text,
            drawing=self._engine.draw,
        )

    def drafts(self) -> NDArray[np.int64] | None:
        """Drafts to be verified, `[B, L]` by position, else -1; None if nothing is drafted."""
        if self._drafted is None:
            return None
        drafts_BL = np.full(self.plan.order_BL.shape, UNDECIDED, np.int64)
        self._drafted.rows.show_drafts(drafts_BL, self.indices.start)
        return drafts_BL

    def samples(self) -> Iterator[Sample]:
        """Finished texts, in order; raises `NumericalError` when the network gave no numbers."""
        trace = self.trace()
        if not np.isfinite(trace.log_probs_BL).all():
            raise NumericalError(
                "the network gave logits that are not finite numbers;"
                " the weights are broken, or --dtype is too narrow: try fp32"
            )
        for row, index in enumerate(self.indices):
            yield self._sample(trace, row, index)

    def trace(self) -> Trace:
        """What the steps so far decided, over the whole length of every row."""
        return self._recorder.finish(end_of_text=self.end_of_text)

    def verify(self) -> Agreement:
        """This batch again, cached against uncached, shown the same tokens.

        As many rows at once as free memory has room for without the cache.
        """
        engine, numbers = self._engine, self.indices
        each = row_bytes(engine.network, self.plan, cached=False)
        rows = rows_that_fit(engine.device, each, len(numbers))

        def compared(part: Sequence[int]) -> Agreement:
            samples = range(part[0], part[-1] + 1)
            return _agreement(engine, Batch(engine, self.settings, self._given, samples))

        return sum(Room(rows, "texts").parts(numbers, compared), Agreement())

    def start(self) -> Progress:
        """The batch before its first call."""
        uniforms = [
            token_uniforms(self.settings.seed, sample, self.settings.length)[:, 0]
            for sample in self.indices
        ]
        return start(
            self._engine.network,
            self.plan,
            self._given_L,
            np.stack(uniforms),
            self._engine.device,
        )

    def calls(self, *, cached: bool) -> Calls:
        """Fresh state for a run with the KV cache, or without."""
        network, kernels = self._engine.network, self._engine.kernels
        return calls_for(network, self.plan, cached=cached, kernels=kernels)

    @property
    def given_L(self) -> NDArray[np.int64]:
        """Id of the given token at each position `[L]`; what stands elsewhere means nothing."""
        return self._given_L

    @property
    def end_of_text(self) -> int | None:
        """The token behind which nothing is text; None if everything is."""
        return None if self.settings.raw else self._engine.tokenizer.end_of_text

    def _sample(self, trace: Trace, row: int, index: int) -> Sample:
        tokens = trace.tokens_BL[row]
        end = len(tokens) if self.end_of_text is None else first_end(tokens, self.end_of_text)
        ids = tokens[:end].tolist()
        log_probs = trace.log_probs_BL[row, :end]
        text_ids = [token for token in ids if token != self.end_of_text]
        return Sample(
            index=index,
            seed=self.settings.seed,
            text=self._engine.tokenizer.decode(text_ids),
            tokens=tuple(ids),
            steps=tuple(trace.steps_BL[row, :end].tolist()),
            log_probs=tuple(log_probs.tolist()),
            log_prob=float(log_probs.sum()),
            nfe=int(trace.nfe_B[row]),
            seconds=self.seconds,
            drafts=int(trace.rounds[row][:, 0].sum()),
            accepted=int(trace.rounds[row][:, 1].sum()),
        )


def _agreement(engine: Engine, batch: Batch) -> Agreement:
    cached, uncached = (Side(engine.network, batch.calls(cached=c)) for c in (True, False))
    return compare(cached, uncached, batch.plan, batch.start(), batch.settings.draw)


class Sampling:
    """A run of samples behind given tokens: its `batches` are driven and read one by one."""

    def __init__(self, engine: Engine, settings: SampleSettings, given: NDArray[np.int64]) -> None:
        self._engine, self._settings, self._given = engine, settings, given

    def batches(
        self,
        samples: range,
        batch_size: int | None = None,
        *,
        drive: Callable[[Batch], object] | None = None,
        told: Callable[[str], object] = warnings.warn,
    ) -> Iterator[Batch]:
        """The batches of these samples; see `LanguageModel.batches`."""
        drafting = self._settings.drafting
        verifies = drafting is not None and drafting.verifies
        return batches(
            samples,
            Room(batch_size or self._rows_that_fit(), "texts", told),
            self._batch,
            begin=(lambda part: self._begin(part, samples.stop)) if verifies else None,
            drive=drive,
        )

    def _batch(self, samples: Sequence[int], drafted: Lossless | None) -> Batch:
        numbers = range(samples[0], samples[-1] + 1)
        return Batch(self._engine, self._settings, self._given, numbers, drafted)

    def _rows_that_fit(self) -> int:
        engine, settings = self._engine, self._settings
        most = MOST_ROWS if engine.device.type == "cuda" else DEFAULT_BATCH
        plan = _plan(engine, settings, len(self._given), range(1))
        each = row_bytes(engine.network, plan, cached=settings.kv_cache, drafting=settings.drafting)
        return rows_that_fit(engine.device, each, most)

    def _begin(self, part: Sequence[int], stop: int) -> Lossless:
        """A run that makes all samples from this part's on, in as many places as it has."""
        engine, settings = self._engine, self._settings
        assert settings.drafting
        rows = Rows.places(len(part), settings.length, part[0])
        calls = draft_calls(
            engine.network,
            rows,
            settings.drafting,
            cached=settings.kv_cache,
            kernels=engine.kernels,
        )
        return Lossless(
            engine.network,
            calls,
            rows,
            Rule(settings.draw),
            settings.drafting,
            waiting=self._texts(range(part[0], stop)),
            end_of_text=None if settings.raw else engine.tokenizer.end_of_text,
        )

    def _texts(self, samples: range) -> Iterator[Text]:
        settings, given = self._settings, len(self._given)
        ids_L = np.zeros(settings.length, np.int64)
        ids_L[:given] = self._given
        for sample in samples:
            plan = _plan(self._engine, settings, given, range(sample, sample + 1))
            uniforms_L3 = token_uniforms(settings.seed, sample, settings.length)
            yield Text(
                ids_L, np.zeros_like(ids_L), plan.order_BL[0], plan.given, plan.late, uniforms_L3
            )


def _plan(engine: Engine, settings: SampleSettings, given: int, samples: range) -> Plan:
    """Order and counts of these samples, behind so many given tokens."""
    positions = np.arange(settings.length)
    plan = plan_for(
        engine.network.config,
        settings.schedule,
        settings.seed,
        samples,
        given=positions[:given],
        blank=positions[given:],
    )
    return plan.one_by_one() if settings.drafting else plan
