"""`esogen infill`: fill the blanks of a text."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from esogen.checkpoint.resolve import DEFAULT_MODEL, resolve
from esogen.cli import infill_options, options
from esogen.cli.infill_lines import Lines
from esogen.cli.infill_output import Fields, Form
from esogen.cli.output import Output, opened
from esogen.cli.progress import drive
from esogen.cli.prompt import read_file, read_prompt
from esogen.cli.sample import judge
from esogen.cli.summary import Tally, how_drawn, quoted
from esogen.cli.terminal import Console
from esogen.errors import EsogenError, Interrupted, UsageError

if TYPE_CHECKING:
    from esogen.generate.template import Tokens
    from esogen.language_model import LanguageModel
    from esogen.ranking.infilling import InfillBatch, Infilling, InfillSettings

BATCH_SIZE, MAX_COMBINATIONS = 32, 64


def infill(
    template: infill_options.Template = None,
    *,
    file: infill_options.File = None,
    fix: infill_options.Fix = None,
    starts_with: infill_options.StartsWith = "",
    ends_with: infill_options.EndsWith = "",
    length: infill_options.Length = None,
    end_allowed: infill_options.EndAllowed = False,
    n: infill_options.Candidates = 8,
    top: infill_options.Top = 1,
    orders: infill_options.Orders = 1,
    max_combinations: infill_options.MaxCombinations = MAX_COMBINATIONS,
    seed: options.Seed = None,
    steps: options.Steps = None,
    alpha_0: options.Alpha0 = None,
    schedule: options.Schedule = None,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = None,
    jsonl: infill_options.Jsonl = False,
    output: options.Output = None,
    format: options.Format = "text",  # noqa: A002 - the word of the flag
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = BATCH_SIZE,
    no_kv_cache: options.NoKvCache = False,
    verify: options.Verify = False,
) -> None:
    """Fill the blanks of TEMPLATE, several times over, and write the most probable text.

    Without TEMPLATE, stdin is read if it is a pipe or a file. stdout gets the text, nothing else.
    """

    def settings(lm: "LanguageModel") -> "InfillSettings":
        drawn = lm.settings(
            steps=steps,
            alpha_0=alpha_0,
            schedule=schedule,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            kv_cache=not no_kv_cache,
        )
        return lm.infill_settings(
            drawn, n=n, orders=orders, max_combinations=max_combinations, end_allowed=end_allowed
        )

    console = Console.stderr(quiet=quiet, no_color=no_color)
    ends = Ends(tuple(fix or ()), starts_with, ends_with, length)
    setup = Setup(model, device, dtype, batch_size, settings)
    place = Place(output, Form(format, top), console)
    if jsonl:
        with _lines_of(template or [], file) as source:
            _fill_lines(setup, ends, source, place)
        return
    text = _text(template or [], file, console, needed=length is None)
    run = _fill_one(setup, ends, text, place)
    if console.shown:
        console.say(f"{run.tally} · seed {run.settings.seed} · {_again(run, ends, text, top)}")
    elif seed is None and format == "text":
        console.say(f"seed {run.settings.seed}")
    if verify and run.first:
        console.status("verifying ...")
        found = run.first.verify()
        console.clear()
        judge(found, run.dtype)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run needs, before the model is there that fills in what was not said."""

    model: str
    device: str
    dtype: str
    batch_size: int
    settings: Callable[["LanguageModel"], "InfillSettings"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where what was filled goes, in which form, and where the work is told of."""

    output: Path | None
    form: Form
    console: Console


@dataclass(frozen=True, slots=True)
class Ends:
    """What is fixed besides the template, as in `LanguageModel.infill`."""

    fix: tuple[str, ...]
    starts_with: str
    ends_with: str
    length: int | None

    def read(self, lm: "LanguageModel", template: str) -> "Tokens":
        """The tokens of a template between these ends."""
        return lm.read_template(
            template,
            fix=self.fix,
            starts_with=self.starts_with,
            ends_with=self.ends_with,
            length=self.length,
        )


@dataclass(slots=True)
class Run:
    """A run with everything filled in, and what came of it."""

    setup: Setup
    lm: "LanguageModel"
    settings: "InfillSettings"
    infilling: "Infilling"
    tally: Tally
    first: "InfillBatch | None" = None

    @property
    def dtype(self) -> str:
        """The precision, as --dtype takes it."""
        from esogen.checkpoint.placement import DTYPES

        used = self.lm.checkpoint.network.vocab_embed.embedding.dtype
        return next(word for word, dtype in DTYPES.items() if dtype == used)

    def fields(self) -> Fields:
        """What JSON says of every template of this run."""
        settings = self.settings
        draw, schedule = settings.draw, settings.schedule
        return {
            "seed": settings.seed,
            "candidates_per_length": settings.n,
            "max_combinations": settings.max_combinations,
            "steps": schedule.steps,
            "alpha_0": schedule.alpha_0,
            "schedule": schedule.schedule,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k,
            "model": self.lm.checkpoint.name,
            "revision": self.lm.checkpoint.revision,
            "dtype": self.dtype,
        }

    def drive(self, batch: "InfillBatch", console: Console, n: int) -> None:
        """Run one batch and count what it took."""
        drive(batch, console, n)
        self.first = self.first or batch
        self.tally.seconds += batch.seconds
        for task in batch.tasks:
            self.tally.texts += 1
            self.tally.calls += task.row.plan.nfe
            self.tally.tokens += int(task.row.plan.counts_S.sum())


def _load(setup: Setup, console: Console) -> Run:
    resolve(setup.model)  # a model that is not there is told before torch is imported
    console.status(f"loading {setup.model} ...")
    from esogen.language_model import load

    with options.flags_named():
        lm = load(setup.model, device=setup.device, dtype=setup.dtype)
        settings = setup.settings(lm)
        return Run(setup, lm, settings, lm.infilling(settings), Tally())


def _fill_one(setup: Setup, ends: Ends, text: str, place: Place) -> Run:
    console, form = place.console, place.form
    with opened(place.output) as out:
        run = _load(setup, console)
        with options.flags_named():
            tokens = ends.read(run.lm, text)
            tried = run.infilling.check(tokens)
        if tried < tokens.combinations:
            console.say(
                f"trying {tried} of {tokens.combinations} combinations of lengths:"
                " --max-combinations bounds them, and so does the model's length"
            )
        with _memory_named(setup), _nothing_kept():
            for batch in run.infilling.batches([tokens], setup.batch_size):
                run.drive(batch, console, tried * run.settings.n)
                for _, filled in run.infilling.finished(batch):
                    fields = run.fields() if form.format != "text" else {}
                    out.write(form.write(str(tokens.template), filled, fields))
    return run


@contextmanager
def _nothing_kept() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted before the text was filled; nothing was kept") from None


def _fill_lines(setup: Setup, ends: Ends, source: BinaryIO, place: Place) -> None:
    def read(template: str) -> "Tokens":
        tokens = ends.read(run.lm, template)
        run.infilling.check(tokens)
        return tokens

    interrupted, console = False, place.console
    with opened(place.output) as out:
        run = _load(setup, console)
        lines = Lines(source, read, console)
        try:
            with _memory_named(setup):
                _write_lines(run, lines, out, place)
        except KeyboardInterrupt:
            interrupted = True
            console.clear()
    if interrupted:
        raise Interrupted(f"interrupted: kept {lines.done} lines in {out.name}")
    lines.check()


def _write_lines(run: Run, lines: Lines, out: Output, place: Place) -> None:
    fields = run.fields()
    for batch in run.infilling.batches(lines.templates(), run.setup.batch_size):
        run.drive(batch, place.console, len(batch.tasks))
        for _, filled in run.infilling.finished(batch):
            lines.write(out, filled, fields, place.form.top)
    lines.finish(out)


@contextmanager
def _memory_named(setup: Setup) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EsogenError(
            f"the GPU has too little memory for {setup.batch_size} candidates at once;"
            " try a smaller --batch-size or --device cpu"
        ) from error


def _text(words: Sequence[str], file: Path | None, console: Console, *, needed: bool) -> str:
    """The template; empty where there is none, which only `needed` forbids."""
    if file is not None and words:
        raise UsageError("--file and TEMPLATE exclude each other; give one of them")
    text = read_prompt(words, console, "TEMPLATE") if file is None else read_file(file)
    if needed and not text:
        raise UsageError(
            "there is no TEMPLATE; write one, such as 'The [MASK:2] sat down.', pipe one in,"
            " or give --length with --starts-with and --ends-with"
        )
    return text


@contextmanager
def _lines_of(words: Sequence[str], file: Path | None) -> Iterator[BinaryIO]:
    if [*words] not in ([], ["-"]):
        raise UsageError("--jsonl reads its templates from stdin or --file; leave TEMPLATE out")
    if file is not None:
        with file.open("rb") as source:
            yield source
    elif sys.stdin is None:
        yield io.BytesIO()
    else:
        yield sys.stdin.buffer


def _again(run: Run, ends: Ends, text: str, top: int) -> str:
    """The command that gives the same fills."""
    settings, setup = run.settings, run.setup
    bound = settings.max_combinations
    words = [
        *("-m", setup.model, *how_drawn(settings.draw, settings.schedule)),
        *("-n", settings.n, "--seed", settings.seed, "--dtype", run.dtype),
        *(() if setup.device == "auto" else ("--device", setup.device)),
        *(() if top == 1 else ("--top", top)),
        *(() if settings.order.count == 1 else ("--orders", settings.order.count)),
        *(() if bound == MAX_COMBINATIONS else ("--max-combinations", bound)),
        *(("--allow-end",) if settings.end_allowed else ()),
        *(() if settings.kv_cache else ("--no-kv-cache",)),
        *(word for pair in ends.fix for word in ("--fix", pair)),
        *(("--starts-with", ends.starts_with) if ends.starts_with else ()),
        *(("--ends-with", ends.ends_with) if ends.ends_with else ()),
        *(() if ends.length is None else ("-L", ends.length)),
        *(("--",) if text.startswith("-") else ()),
        *((text,) if text else ()),
    ]
    return " ".join(["esogen infill", *map(quoted, words)])
