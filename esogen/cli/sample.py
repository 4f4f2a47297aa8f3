"""`esogen sample`: write texts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.checkpoint.resolve import DEFAULT_MODEL, resolve
from esogen.cli import options
from esogen.cli.output import Layout, Writer, opened
from esogen.cli.progress import Audience, audience, drive
from esogen.cli.prompt import read_prompt
from esogen.cli.recording import Recording, recording
from esogen.cli.summary import Tally, command_again, drafting_fields
from esogen.cli.terminal import Console, colors_refused
from esogen.errors import EsogenError, Interrupted, UsageError
from esogen.view.theme import THEMES, UNPAINTED

if TYPE_CHECKING:
    from esogen.generate.verify import Agreement
    from esogen.language_model import Batch, LanguageModel, Sample, SampleSettings

BATCH_SIZE = 16
TOLERANCE = 1e-4
"""How far log-probabilities may differ with and without the cache, in nats, at float32."""

Prompt = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        show_default=False,
        help="What the text begins with; - is stdin, alone or after a text.",
    ),
]


def sample(
    prompt: Prompt = None,
    *,
    length: options.Length = None,
    n: options.NumSamples = 1,
    best_of: options.BestOf = 1,
    seed: options.Seed = None,
    raw: options.Raw = False,
    steps: options.Steps = None,
    alpha_0: options.Alpha0 = None,
    schedule: options.Schedule = None,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = None,
    draft: options.Draft = None,
    draft_costs: options.DraftCosts = None,
    output: options.Output = None,
    trace: options.Trace = None,
    format: options.Format = "text",  # noqa: A002 - the word of the flag
    separator: options.Separator = None,
    null: options.Null = False,
    live: options.Live = None,
    theme: options.Theme = "default",
    color_by: options.ColorBy = "certainty",
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    attention: options.Attention = "auto",
    batch_size: options.BatchSize = BATCH_SIZE,
    no_kv_cache: options.NoKvCache = False,
    verify: options.Verify = False,
) -> None:
    """Write texts that begin with PROMPT, or from nothing.

    Without PROMPT, stdin is read if it is a pipe or a file. stdout gets the texts, nothing else.
    """

    def settings(lm: "LanguageModel") -> "SampleSettings":
        if verify and "kv_cache" in lm.unused:
            raise UsageError(
                "--verify compares runs with and without the KV cache, and a model of the family"
                f" {lm.checkpoint.config.family} has none; leave it out"
            )
        return lm.settings(
            length=length,
            steps=steps,
            alpha_0=alpha_0,
            schedule=schedule,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            draft=drafted,
            draft_costs=costs,
            rows=min(n * best_of, batch_size),
            seed=seed,
            raw=raw,
            kv_cache=not no_kv_cache,
        )

    drafted, costs = options.draft_of(draft), options.costs_of(draft_costs)
    if verify and drafted is not None:
        raise UsageError(options.DRAFTS_UNVERIFIED)
    layout = Layout(format, separator, null=null)
    console = Console.stderr(quiet=quiet, no_color=no_color)
    text = read_prompt(prompt or [], console)
    job = Job(text, n, best_of, batch_size, model, device, dtype, attention, settings)
    looks = UNPAINTED if colors_refused(no_color=no_color) else THEMES[theme]
    with audience(console, live=live, theme=looks, color_by=color_by) as who:
        run, made = _carry_out(job, layout, output, trace, who)
    if console.shown:
        console.say(f"{made.tally} · seed {run.settings.seed} · {run.again()}")
    elif seed is None and format == "text":
        console.say(f"seed {run.settings.seed}")
    if verify and made.first:
        _verify(made.first, run.dtype, console)


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for, before the model is there that fills in what was not."""

    prompt: str
    n: int
    best_of: int
    batch_size: int
    model: str
    device: str
    dtype: str
    attention: str
    settings: Callable[["LanguageModel"], "SampleSettings"]


@dataclass(frozen=True, slots=True)
class Run:
    """A job with everything filled in."""

    job: Job
    lm: "LanguageModel"
    settings: "SampleSettings"

    @property
    def raw(self) -> bool:
        """Whether the texts go on behind their end-of-text."""
        return self.settings.raw

    @property
    def dtype(self) -> str:
        """The precision, as --dtype takes it."""
        return self.lm.checkpoint.dtype

    def fields(self) -> Mapping[str, object]:
        """What JSON says of every text of this run."""
        draw, schedule = self.settings.draw, self.settings.schedule
        rule = {name: getattr(schedule, name) for name in ("steps", "alpha_0", "schedule")}
        drafting = self.settings.drafting
        nothing = {*self.lm.unused, *(("steps",) if drafting else ())}
        return {
            "length": self.settings.length,
            **{name: None if name in nothing else rule[name] for name in rule},
            **drafting_fields(drafting),
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k,
            "model": self.lm.checkpoint.name,
            "revision": self.lm.checkpoint.revision,
            "dtype": self.dtype,
        }

    def again(self) -> str:
        """The command that gives the same texts."""
        job = self.job
        return command_again(
            self.settings,
            prompt=job.prompt,
            n=job.n,
            best_of=job.best_of,
            model=job.model,
            device=job.device,
            dtype=self.dtype,
            attention=job.attention,
            unused=self.lm.unused,
        )


@dataclass(slots=True)
class Made:
    """What came of a run."""

    tally: Tally = field(default_factory=Tally)
    written: int = 0
    first: "Batch | None" = None
    interrupted: bool = False


def _carry_out(
    job: Job, layout: Layout, output: Path | None, trace: Path | None, who: Audience
) -> tuple[Run, Made]:
    """Sample and write; the outputs are opened first, so that a bad place is told at once."""
    with opened(output) as out, recording(trace, beside=output) as traced:
        run = _load(job, who.console)
        traced.begin(run)
        with _memory_named(job):
            made = _make(run, layout.writer(out, run.fields), traced, who)
        if made.interrupted and not made.written:
            raise Interrupted("interrupted before a text was finished; nothing was kept")
    if made.interrupted:
        raise Interrupted(
            f"interrupted: kept {made.written} of {job.n} texts in {out.name};"
            f" the seed is {run.settings.seed}"
        )
    return run, made


def _load(job: Job, console: Console) -> Run:
    resolve(job.model, console)  # what is not there is told, or downloaded, before torch comes
    console.status(f"loading {job.model} ...")
    from esogen.language_model import load

    with options.flags_named():
        lm = load(job.model, device=job.device, dtype=job.dtype, attention=job.attention)
        return Run(job, lm, job.settings(lm))


@contextmanager
def _memory_named(job: Job) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = min(job.n * job.best_of, job.batch_size)
        raise EsogenError(
            f"the GPU has too little memory for {rows} texts at once;"
            " try a smaller --batch-size, a smaller --length or --device cpu"
        ) from error


def _make(run: Run, writer: Writer, traced: Recording, who: Audience) -> Made:
    """Sample batch by batch, each written as soon as it is finished; Ctrl-C keeps those."""
    from esogen.ranking.best_of import best_of

    made = Made()
    try:
        samples = _driven(run, made, traced, who)
        for text in best_of(run.lm.checkpoint.network, samples, run.job.best_of):
            writer.write(text)
            made.written += 1
    except KeyboardInterrupt:
        made.interrupted = True
        who.console.clear()
    writer.finish()
    return made


def _driven(run: Run, made: Made, traced: Recording, who: Audience) -> "Iterator[Sample]":
    """All samples of a run, batch by batch."""
    job = run.job
    n = job.n * job.best_of
    for batch in run.lm.batches(job.prompt, run.settings, n=n, batch_size=job.batch_size):
        drive(batch, run.lm.checkpoint.tokenizer.decode, who, n)
        made.tally.seconds += batch.seconds
        made.first = made.first or batch
        texts = list(batch.samples())
        traced.write(batch)
        for text in texts:
            made.tally.count(text)
            yield text


def _verify(batch: "Batch", dtype: str, console: Console) -> None:
    """Say how the run with the KV cache compares with one without; raises where it must not."""
    console.status("verifying ...")
    found = batch.verify()
    console.clear()
    judge(found, dtype)


def judge(found: "Agreement", dtype: str) -> None:
    """Say how two ways of computing agree; raises `EsogenError` where they must not differ."""
    typer.echo(
        f"verify: {found.draws} draws, {found.different} different, {found.edge} edge draws,"
        f" {found.unexplained} unexplained,"
        f" largest log-probability difference {found.log_prob_difference:.2g}",
        err=True,
    )
    if found.unexplained:
        raise EsogenError(
            f"--verify: {found.unexplained} of {found.draws} draws differ for another reason than"
            " rounding; do not trust the KV cache here: use --no-kv-cache, and report this"
        )
    if dtype == "fp32" and not found.log_prob_difference <= TOLERANCE:
        raise EsogenError(
            f"--verify: log-probabilities differ by {found.log_prob_difference:.2g}, and may by"
            f" {TOLERANCE:g}; do not trust the KV cache here: use --no-kv-cache, and report this"
        )
