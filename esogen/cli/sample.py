"""`esogen sample`: write texts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.checkpoint.resolve import DEFAULT_MODEL, resolve
from esogen.cli import options
from esogen.cli.launch import launch, read_devices
from esogen.cli.output import Filed, Layout, Writer, opened
from esogen.cli.progress import Audience, audience, drive
from esogen.cli.prompt import read_prompt
from esogen.cli.recording import Recording, recording
from esogen.cli.summary import (
    Said,
    Tally,
    command_line,
    how_drawn,
    sampling_flags,
    usual_flags,
)
from esogen.cli.terminal import Console, colors_refused
from esogen.cli.verifying import judge
from esogen.errors import Interrupted, UsageError
from esogen.ranks import Ranks
from esogen.shards import Shard
from esogen.view.theme import THEMES, UNPAINTED
from esogen.visible import counted

if TYPE_CHECKING:
    from esogen.language_model import LanguageModel
    from esogen.sampling import Batch, Sample, SampleSettings

Prompt = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        show_default=False,
        help="What the text begins with; - is stdin, alone or after a text.",
    ),
]

_APART: options.Apart = {
    "--output-dir": ("--output", "--trace", "--separator", "--null"),
    "--no-live": ("--theme", "--color-by"),
    "--no-kv-cache": ("--attention",),
}


def sample(
    ctx: typer.Context,
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
    output_dir: options.OutputDir = None,
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
    devices: options.Devices = None,
    dtype: options.Dtype = "auto",
    attention: options.Attention = "auto",
    batch_size: options.BatchSize = None,
    no_kv_cache: options.NoKvCache = False,
    verify: options.Verify = False,
) -> None:
    """Write texts that begin with PROMPT, or from nothing.

    Without PROMPT, stdin is read if it is a pipe or a file. stdout gets the texts, nothing else.
    """

    def settings(lm: "LanguageModel") -> "SampleSettings":
        from esogen.sampling import DEFAULT_BATCH

        if verify and "kv_cache" in lm.unused:
            raise UsageError(
                "--verify compares runs with and without the KV cache, and a model of the family"
                f" {lm.checkpoint.config.family} has none; leave it out"
            )
        lm.check_texts(n, best_of)
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
            rows=min(n * best_of, batch_size or DEFAULT_BATCH),
            seed=seed,
            raw=raw,
            kv_cache=not no_kv_cache,
        )

    options.keep_apart(ctx, _APART)
    kept = output_dir is not None
    drafted, costs = options.drafts_of(draft, draft_costs, verify=verify, kept=kept)
    ranks, places = Ranks.here(), read_devices(devices, device)
    several = max(ranks.world, len(places)) > 1
    if several or output_dir:
        _check_folder(output_dir, format if options.given(ctx, "format") else None)
    layout = Layout("jsonl" if output_dir else format, separator, null=null)
    console = Console.stderr(quiet=quiet or not ranks.first, no_color=no_color)
    text = read_prompt(prompt or [], console, shared=several)
    if several and ranks.world == 1:
        console.clear()
        launch(ctx.obj, places)
        return
    job = Job(text, n, best_of, batch_size, model, device, dtype, attention, settings, places)
    looks = UNPAINTED if colors_refused(no_color=no_color) else THEMES[theme]
    with audience(
        console, live=live if ranks.first else False, theme=looks, color_by=color_by
    ) as who:
        if output_dir is None:
            run, made = _carry_out(job, layout, output, trace, who)
        else:
            run, made = _carry_on(job, output_dir, ranks, who, drawn=seed is None)
    _tell(run, made, console, ranks, drawn=seed is None and layout.format == "text")
    if verify and made.first and ranks.first:
        _verify(made.first, run.dtype, console)


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for, before the model is there that fills in what was not."""

    prompt: str
    n: int
    best_of: int
    batch_size: int | None
    model: str
    device: str
    dtype: str
    attention: str
    settings: Callable[["LanguageModel"], "SampleSettings"]
    places: tuple[str, ...] = ()
    """The device of each process, where they were named."""


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
        return self.lm.run_fields(self.settings)

    def again(self, *, here: bool = False) -> str:
        """The command that gives the same texts; `here`: without what this place adds by itself."""
        job, usual = self.job, self._usual() if here else []
        flags = sampling_flags(
            self.settings,
            n=job.n,
            best_of=job.best_of,
            model=job.model,
            device=job.device,
            dtype=self.dtype,
            attention=job.attention,
            unused=self.lm.unused,
        )
        said = [flag for flag in flags if flag not in usual]
        return command_line("sample", said, job.prompt if job.prompt or not here else None)

    def _usual(self) -> Said:
        """The flags that need not be said here."""
        lm = self.lm
        rest, whole = lm.settings(length=self.settings.length), lm.settings().length
        drawn = how_drawn(rest.draw, rest.schedule, lm.unused)
        return [*usual_flags(lm, self.job.dtype), ("-L", whole), ("-n", 1), *drawn]


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
        run = _load(job, Ranks(), who.console)
        traced.begin(run)
        made = _make(run, range(job.n), layout.writer(out, run.fields), traced, who)
        if made.interrupted and not made.written:
            raise Interrupted("interrupted before a text was finished; nothing was kept")
    if made.interrupted:
        raise Interrupted(
            f"interrupted: kept {made.written} of {counted(job.n, 'text')} in {out.name};"
            f" the seed is {run.settings.seed}"
        )
    return run, made


def _carry_on(
    job: Job, folder: Path, ranks: Ranks, who: Audience, *, drawn: bool
) -> tuple[Run, Made]:
    """Sample what a folder still lacks of this process's share; a `drawn` seed is the folder's."""
    run = _load(job, ranks, who.console)
    described = run.lm.describe(job.prompt, run.settings, job.best_of) | {"command": run.again()}
    free = ("command", "seed") if drawn else ("command",)
    with (
        recording(None, beside=None) as traced,
        Shard(folder, described, job.n, ranks, free) as shard,
    ):
        run = replace(run, settings=replace(run.settings, seed=shard.run["seed"]))
        made = _make(run, shard.rest, Filed(shard, run.fields()), traced, who)
    if made.interrupted:
        raise Interrupted(
            f"interrupted: {_whose(ranks)}{shard.path} holds {shard.done} of"
            f" {counted(len(shard.mine), 'text')}; the same command goes on"
        )
    held = counted(shard.done, "text")
    who.console.say(f"{_whose(ranks)}{shard.path} holds {held}, {made.written} of them new")
    return run, made


def _check_folder(folder: Path | None, word: str | None) -> None:
    """Raise `UsageError` where several processes have no folder, or another format is wanted."""
    if folder is None:
        raise UsageError("several processes write into a folder; give --output-dir DIR")
    if word not in (None, "jsonl"):
        raise UsageError(f"--output-dir writes JSON lines; leave --format {word} out")


def _load(job: Job, ranks: Ranks, console: Console) -> Run:
    resolve(job.model, console)  # what is not there is told, or downloaded, before torch comes
    console.status(f"loading {job.model} ...")
    from esogen.language_model import load

    device = ranks.device(job.device, job.places)
    lm = load(job.model, device=device, dtype=job.dtype, attention=job.attention, told=console.say)
    run = Run(job, lm, job.settings(lm))
    for note in lm.notes:
        console.say(note)
    return run


def _make(run: Run, texts: range, writer: Writer, traced: Recording, who: Audience) -> Made:
    """Sample batch by batch, each written as soon as it is finished; Ctrl-C keeps those."""
    from esogen.ranking.best_of import best_of

    made = Made()
    try:
        samples = _driven(run, texts, made, traced, who)
        for text in best_of(run.lm.checkpoint.network, samples, run.job.best_of):
            writer.write(text)
            made.written += 1
    except KeyboardInterrupt:
        made.interrupted = True
        who.console.clear()
    writer.finish()
    return made


def _driven(
    run: Run, texts: range, made: Made, traced: Recording, who: Audience
) -> "Iterator[Sample]":
    """All samples that these texts are chosen from, batch by batch."""
    job = run.job
    first, end = texts.start * job.best_of, texts.stop * job.best_of
    for batch in run.lm.batches(
        job.prompt,
        run.settings,
        first=first,
        n=end - first,
        batch_size=job.batch_size,
        drive=lambda batch: drive(batch, run.lm.checkpoint.tokenizer.decode, who, end),
        told=who.console.report,
    ):
        made.tally.seconds += batch.seconds
        made.first = made.first or batch
        samples = list(batch.samples())
        traced.write(batch)
        for sample in samples:
            made.tally.count(sample)
            yield sample


def _whose(ranks: Ranks) -> str:
    """Whose work a line is about, where there are several processes, of which the first speaks."""
    return f"the first of {ranks.world} processes: " if ranks.world > 1 else ""


def _tell(run: Run, made: Made, console: Console, ranks: Ranks, *, drawn: bool) -> None:
    """The line after a run; or the seed alone, if it was drawn and nobody has it yet."""
    if console.shown and made.tally.texts:
        console.say(f"{_whose(ranks)}{made.tally} · {run.again(here=True)}")
    elif drawn:
        console.say(f"seed {run.settings.seed}")


def _verify(batch: "Batch", dtype: str, console: Console) -> None:
    """Say how the run with the KV cache compares with one without; raises where it must not."""
    console.status("verifying ...")
    found = batch.verify()
    console.clear()
    judge(found, dtype)
