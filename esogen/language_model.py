"""The Python face of esogen: `load` a model; then `sample` from it, `infill` and `score`."""

import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from esogen.checkpoint.config_file import Schedule
from esogen.checkpoint.folder import Checkpoint, open_checkpoint
from esogen.checkpoint.placement import choose_attention, choose_device, choose_dtype, narrowed
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.errors import EsogenError, UsageError
from esogen.generate.draft_costs import measured
from esogen.generate.drafting import Drafting
from esogen.generate.draw import Drawing, DrawSettings, choose_draw
from esogen.generate.engine import Engine
from esogen.generate.plan import ScheduleSettings
from esogen.generate.streams import LARGEST_SEED
from esogen.generate.template import Tokens, fix_words, parse, tokenise, whole
from esogen.model.attention import Kernels
from esogen.model.families import ALPHA_0, UNUSED, check_used
from esogen.ranking.best_of import best_of as choose_best
from esogen.ranking.infilling import Filled, Infilling, InfillSettings
from esogen.ranking.revising import revise
from esogen.ranking.scores import RankingOrder
from esogen.ranks import Ranks
from esogen.sampling import DEFAULT_BATCH, Batch, Sample, SampleSettings, Sampling
from esogen.scoring.defaults import settings_for
from esogen.scoring.score import Document, Score, score_documents
from esogen.scoring.settings import Bound, Order
from esogen.shards import Shard

T = TypeVar("T")
Auto = Literal["auto"]

DEFAULT_CANDIDATES = 8
"""Fills made of each combination of lengths unless said."""
MOST_COMBINATIONS = 64
"""Combinations of lengths that are tried unless said."""


def load(
    model: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    told: Callable[[str], object] = warnings.warn,
) -> "LanguageModel":
    """Open a model on a device and in a precision.

    `model` is a built-in or short name, a folder, or `owner/name[@revision]` on the hub, which is
    downloaded if the cache lacks it.

    `device` is auto, cpu, cuda or cuda:N; `dtype` auto, bf16, fp16 or fp32; `attention` auto,
    triton, xformers or sdpa. `told` is told why `auto` is not what is usual. Raises
    `EsogenError` naming what was wanted, what was found and what to do.
    """
    place = choose_device(device, told)
    precision = choose_dtype(dtype, place)
    if note := narrowed(dtype, precision, place):
        told(note)
    asked = None if attention == "auto" else choose_attention(attention, place, precision)
    return LanguageModel(open_checkpoint(model, device=place, dtype=precision), place, asked)


class LanguageModel:
    """A network, its tokenizer, and what can be done with them.

    Without `kernels`, those that suit the device are chosen when a text is first sampled.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, kernels: Kernels | None = None
    ) -> None:
        self.checkpoint, self.device, self._asked = checkpoint, device, kernels

    @cached_property
    def kernels(self) -> Kernels:
        """What attends: as asked, or what suits the device."""
        dtype = self.checkpoint.network.vocab_embed.embedding.dtype
        return self._asked or choose_attention("auto", self.device, dtype)

    @cached_property
    def drawing(self) -> Drawing:
        """What draws."""
        return choose_draw(self.device)

    @cached_property
    def engine(self) -> Engine:
        """What its runs run on."""
        network, tokenizer = self.checkpoint.network, self.checkpoint.tokenizer
        return Engine(network, tokenizer, self.device, self.kernels, self.drawing.by)

    @property
    def notes(self) -> Sequence[str]:
        """What this machine does not do in the usual way, a line each."""
        return [note for note in (self.kernels.note, self.drawing.note) if note]

    @property
    def unused(self) -> Mapping[str, str]:
        """Settings that change nothing with a model of this family, and why."""
        return UNUSED[self.checkpoint.config.family]

    def sample(
        self,
        prompt: str = "",
        *,
        n: int = 1,
        best_of: int = 1,
        length: int | None = None,
        steps: int | None = None,
        alpha_0: float | None = None,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int | None = None,
        draft: int | Auto | None = None,
        draft_costs: Sequence[float] | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        raw: bool = False,
        kv_cache: bool = True,
    ) -> Iterator[Sample]:
        """Generate `n` texts that begin with `prompt`, each as soon as its batch is finished.

        `length` counts tokens, prompt included; `steps`, `alpha_0` and `schedule` are those of
        `ScheduleSettings`. What is None comes from the model's card, else its length, a quarter of
        the length, 1, random, a fresh seed. A text ends at its end-of-text unless `raw`. Sample i
        of a seed is the same in every batch. With `best_of` N, n times N samples are made, and each
        text is the most probable of N, read left to right, per token. With `draft`, texts have the
        law of one token per step in the order of the schedule, in fewer calls; so many tokens are
        drafted at once, or with "auto" as many as pay by `draft_costs`, those of `Drafting`, which
        are measured if they are not given. `batch_size` is that of `batches`. Raises `UsageError`
        for values out of range, and for what the model's family has no use for (`unused`).
        """
        settings = self.settings(
            length=length,
            steps=steps,
            alpha_0=alpha_0,
            schedule=schedule,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            draft=draft,
            draft_costs=draft_costs,
            rows=min(n * best_of, batch_size or DEFAULT_BATCH),
            raw=raw,
            kv_cache=kv_cache,
        )
        self.check_texts(n, best_of)
        return self._texts(prompt, settings, range(n), best_of, batch_size)

    def sample_to(
        self,
        folder: str | Path,
        prompt: str = "",
        *,
        settings: SampleSettings,
        n: int,
        best_of: int = 1,
        batch_size: int | None = None,
        ranks: Ranks | None = None,
    ) -> Iterator[Sample]:
        """Generate texts as `sample` does into the files of a folder, each handed on when written.

        Only what the folder lacks is made, and of that the share of this process: `ranks` is what
        `torchrun` says unless given. `settings` are those of `self.settings`, with a seed: another
        process, or the next run, must come with the same. Raises as `shards.Shard` does.
        """
        self.check_texts(n, best_of)
        described = self.describe(prompt, settings, best_of)
        with Shard(Path(folder), described, n, ranks or Ranks.here(), free=["command"]) as shard:
            fields = self.run_fields(settings)
            for text in self._texts(prompt, settings, shard.rest, best_of, batch_size):
                shard.add(text.record() | fields)
                yield text

    def run_fields(self, settings: SampleSettings) -> dict[str, Any]:
        """What JSON says of every text of a run."""
        return {"length": settings.length, **self.drawn_fields(settings)}

    def drawn_fields(self, settings: SampleSettings | InfillSettings) -> dict[str, Any]:
        """What JSON says of how texts are drawn; None for what the family has no use for."""
        schedule, draw, checkpoint = settings.schedule, settings.draw, self.checkpoint
        drafting = settings.drafting
        nothing = {*self.unused, *(("steps",) if drafting else ())}
        rule = {name: getattr(schedule, name) for name in ("steps", "alpha_0", "schedule")}
        return {
            **{name: None if name in nothing else rule[name] for name in rule},
            **(drafting.fields if drafting else {}),
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k,
            "model": checkpoint.name,
            "revision": checkpoint.revision,
            "dtype": checkpoint.dtype,
        }

    def describe(self, prompt: str, settings: SampleSettings, best_of: int = 1) -> dict[str, Any]:
        """Everything that the texts of a run are a function of, besides their numbers."""
        return {
            "esogen": version("esogen"),
            **self.run_fields(settings),
            "prompt": prompt,
            "seed": settings.seed,
            "best_of": best_of,
            "raw": settings.raw,
            "kv_cache": settings.kv_cache,
        }

    def check_texts(self, n: int, best_of: int) -> None:
        """Raise `UsageError` where so many texts cannot be made, each the best of so many."""
        _check_counts(num_samples=n, best_of=best_of)
        try:
            check_used(self.checkpoint.config.family, {"best_of": best_of if best_of > 1 else None})
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _texts(
        self,
        prompt: str,
        settings: SampleSettings,
        texts: range,
        best_of: int,
        batch_size: int | None,
    ) -> Iterator[Sample]:
        """The texts with these numbers, each the best of so many samples."""
        batches = self.batches(
            prompt,
            settings,
            first=texts.start * best_of,
            n=len(texts) * best_of,
            batch_size=batch_size,
            drive=_to_the_end,
        )
        samples = (sample for batch in batches for sample in batch.samples())
        return choose_best(self.checkpoint.network, samples, best_of)

    def score(
        self,
        text: str,
        *,
        order: Order | Sequence[int] | None = None,
        orders: int | None = None,
        alpha_0: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        context: int | None = None,
        stride: int | None = None,
        end_of_text: bool = False,
        bound: Bound = "exact",
        time_samples: int = 16,
        best: int = 0,
    ) -> Score:
        """The likelihood of `text` in one order, or the bound of several, or the training bound.

        `order` is a word or the text's token positions in an order of one's own; the settings are
        those of `scoring.defaults`. `best` most probable tokens come with each position. Raises
        `UsageError` for what cannot be scored so, `EsogenError` for a model without such a figure.
        """
        word, given = (order, ()) if order is None or isinstance(order, str) else (None, (order,))
        settings = settings_for(
            self.checkpoint,
            order=word,
            given=given,
            orders=orders,
            alpha_0=alpha_0,
            steps=steps,
            seed=seed,
            context=context,
            stride=stride,
            end_of_text=end_of_text,
            bound=bound,
            time_samples=time_samples,
        )
        document = Document(0, "the text", text)
        return next(score_documents(self.checkpoint, [document], settings, best=best))

    def settings(
        self,
        *,
        length: int | None = None,
        steps: int | None = None,
        alpha_0: float | None = None,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int | None = None,
        draft: int | Auto | None = None,
        draft_costs: Sequence[float] | None = None,
        rows: int = 1,
        seed: int | None = None,
        raw: bool = False,
        kv_cache: bool = True,
    ) -> SampleSettings:
        """Fill in the defaults of this model's card; `UsageError` for a value out of range.

        The costs of drafting are measured, where they must be, with so many `rows` to a call.
        """
        card, config = self.checkpoint.defaults, self.checkpoint.config
        family, longest = config.family, config.model_length
        rule = "random" if "schedule" in self.unused else card.schedule
        length = _first(length, card.length, longest)
        if not 1 <= length <= longest:
            raise UsageError(f"length is {length}; this model takes 1 to {longest} tokens")
        seed = secrets.randbelow(2**32) if seed is None else seed
        if not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"seed is {seed}; it must be from 0 to {LARGEST_SEED}")
        given = {
            "steps": steps,
            "alpha_0": alpha_0,
            "schedule": schedule,
            "kv_cache": None if kv_cache else False,
            "attention": self._asked.word if self._asked else None,
            "draft": draft,
        }
        self._check_together(steps, draft, draft_costs)
        try:
            check_used(family, given)
            return SampleSettings(
                length,
                seed,
                ScheduleSettings(
                    steps=_first(steps, card.steps, max(1, length // 4)),
                    alpha_0=ALPHA_0.get(family, _first(alpha_0, card.alpha_0, 1.0)),
                    schedule=_first(schedule, rule, "random"),
                ),
                DrawSettings(temperature, top_k, top_p),
                raw,
                kv_cache,
                self._drafting(draft, draft_costs, max(1, rows), length),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    @staticmethod
    def _check_together(
        steps: int | None, draft: int | Auto | None, costs: Sequence[float] | None
    ) -> None:
        """Raise `UsageError` for settings of which one excludes the other."""
        if draft is not None and steps is not None:
            raise UsageError(
                f"draft is {draft} and steps is {steps}; drafts are verified one token per step,"
                " so leave one of them out"
            )
        if costs is not None and draft != "auto":
            raise UsageError("draft_costs is given and draft is not auto; give both, or neither")

    def _drafting(
        self, draft: int | Auto | None, costs: Sequence[float] | None, rows: int, length: int
    ) -> Drafting | None:
        if draft is None:
            return None
        if draft != "auto":
            return Drafting(draft)
        if costs is not None:
            return Drafting.adaptive(tuple(costs))
        network, drawing = self.checkpoint.network, self.drawing.by
        return measured(network, rows, length, kernels=self.kernels, drawing=drawing)

    def infill(
        self,
        template: str = "",
        *,
        fix: Sequence[str] = (),
        starts_with: str = "",
        ends_with: str = "",
        length: int | None = None,
        n: int = DEFAULT_CANDIDATES,
        orders: int = 1,
        max_combinations: int = MOST_COMBINATIONS,
        end_allowed: bool = False,
        steps: int | None = None,
        alpha_0: float | None = None,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int | None = None,
        draft: int | Auto | None = None,
        draft_costs: Sequence[float] | None = None,
        seed: int | None = None,
        batch_size: int = DEFAULT_BATCH,
        kv_cache: bool = True,
    ) -> Filled:
        """Fill the blanks of `template`; distinct candidates, the most probable text first.

        The template is that of `generate.template.parse`; without one, a text of `length` tokens
        between `starts_with` and `ends_with`. `fix` holds words as `POSITION:WORD`. `n` candidates
        are made of each combination of lengths and ranked by log p of the whole text per token,
        read left to right, or by the bound over `orders` random orders. The rest is as in `sample`.
        Raises `UsageError` for a template that cannot be filled and for values out of range.
        """
        _check_counts(batch_size=batch_size)
        run = self.infilling(
            self.infill_settings(
                self.settings(
                    steps=steps,
                    alpha_0=alpha_0,
                    schedule=schedule,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    draft=draft,
                    draft_costs=draft_costs,
                    rows=batch_size,
                    seed=seed,
                    kv_cache=kv_cache,
                ),
                n=n,
                orders=orders,
                max_combinations=max_combinations,
                end_allowed=end_allowed,
            )
        )
        tokens = self.read_template(
            template, fix=fix, starts_with=starts_with, ends_with=ends_with, length=length
        )
        return next(run.carry_out([tokens], batch_size))

    def infill_settings(
        self,
        settings: SampleSettings,
        *,
        n: int = DEFAULT_CANDIDATES,
        orders: int = 1,
        max_combinations: int = MOST_COMBINATIONS,
        end_allowed: bool = False,
    ) -> InfillSettings:
        """Settings of `sample` with those of infilling; `UsageError` for a value out of range."""
        _check_counts(num_samples=n, orders=orders, max_combinations=max_combinations)
        return InfillSettings(
            settings.seed,
            settings.schedule,
            settings.draw,
            n,
            max_combinations,
            end_allowed,
            RankingOrder(orders, settings.seed),
            settings.kv_cache,
            settings.drafting,
        )

    def read_template(
        self,
        template: str = "",
        *,
        fix: Sequence[str] = (),
        starts_with: str = "",
        ends_with: str = "",
        length: int | None = None,
    ) -> Tokens:
        """A template in this model's tokens; the arguments are those of `infill`."""
        tokenizer, longest = self.checkpoint.tokenizer, self.checkpoint.config.model_length
        if template and length is not None:
            raise UsageError("length is for a text without a template; write [MASK:N] instead")
        if template or length is None:
            read = parse(template).between(starts_with, ends_with)
        elif length > longest:
            raise UsageError(f"length is {length}; this model takes 1 to {longest} tokens")
        else:
            read = whole(starts_with, ends_with, length, tokenizer)
        return fix_words(tokenise(read, tokenizer), fix, tokenizer, longest)

    def revise_template(
        self, draft: str, *, share: float, seed: int = 0, keep: Sequence[str] = ()
    ) -> Tokens:
        """A draft with blanks for its least likely tokens, a `share` of them, to be filled again.

        How likely a token is, is a mean over random orders, a function of `seed`; what matches a
        regular expression of `keep` stays. Raises `UsageError` as `ranking.revising.revise` does.
        """
        self._check_family()
        network, tokenizer = self.checkpoint.network, self.checkpoint.tokenizer
        return revise(draft, network, tokenizer, share=share, seed=seed, keep=keep)

    def infilling(self, settings: InfillSettings) -> Infilling:
        """A run of `infill` over any number of templates, to be driven batch by batch."""
        self._check_family()
        return Infilling(self.engine, settings)

    def batches(
        self,
        prompt: str,
        settings: SampleSettings,
        *,
        n: int = 1,
        first: int = 0,
        batch_size: int | None = None,
        drive: Callable[[Batch], object] | None = None,
        told: Callable[[str], object] = warnings.warn,
    ) -> Iterator[Batch]:
        """The batches of samples `first` to `first + n`, each to be driven and then read.

        `drive`, where given, is called with each before it is handed on, and must run its `steps`
        to their end: a batch that memory is too little for is then cut into halves, which `told` is
        told. Where drafts are verified, texts of the next batch take the places of finished ones.
        `batch_size` is as many as free memory has room for unless given, at most `MOST_ROWS`
        on a GPU and `DEFAULT_BATCH` on a CPU. Raises `EsogenError` where one alone does not fit.
        """
        given = self.encode_prompt(prompt, settings.length)
        if batch_size is not None:
            _check_counts(batch_size=batch_size)
        run = Sampling(self.engine, settings, given)
        return run.batches(range(first, first + n), batch_size, drive=drive, told=told)

    def _check_family(self) -> None:
        if self.checkpoint.config.family != "esolm-b":
            raise EsogenError(
                f"{self.checkpoint.name} is of the family {self.checkpoint.config.family};"
                " infilling is for Eso-LM (B) models, such as stories"
            )

    def encode_prompt(self, prompt: str, length: int) -> NDArray[np.int64]:
        """Token ids of a prompt; raises `UsageError` when it does not fit `length` tokens."""
        ids = self.checkpoint.tokenizer.encode(prompt)
        if len(ids) > length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the length is {length};"
                " shorten the prompt or raise --length"
            )
        return np.array(ids, np.int64)


def _to_the_end(batch: Batch) -> None:
    for _ in batch.steps():
        pass


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def _first(*values: T | None) -> T:
    """The first value that is given."""
    return next(value for value in values if value is not None)
