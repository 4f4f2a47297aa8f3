"""A run of `esogen infill`: load, fill, write; one template, or one on every line."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from esogen.checkpoint.resolve import resolve
from esogen.cli.infill_lines import Lines
from esogen.cli.infill_output import Fields, Form
from esogen.cli.output import Output, opened
from esogen.cli.progress import Audience, drive
from esogen.cli.recording import Recording, recording
from esogen.cli.summary import Said, Tally, command_line, how_drawn, usual_flags
from esogen.cli.terminal import Console
from esogen.errors import Interrupted
from esogen.visible import counted

if TYPE_CHECKING:
    from esogen.generate.template import Tokens
    from esogen.language_model import LanguageModel
    from esogen.ranking.infilling import Candidate, InfillBatch, Infilling, InfillSettings

BATCH_SIZE, MAX_COMBINATIONS = 32, 64


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run needs, before the model is there that fills in what was not said.

    `template`: the flags of a command line that give it again, and the argument.
    """

    model: str
    device: str
    dtype: str
    attention: str
    batch_size: int
    top: int
    template: tuple[Said, str | None]
    settings: Callable[["LanguageModel"], "InfillSettings"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where what was filled goes and in which form, where its trace goes, and who looks on."""

    output: Path | None
    trace: Path | None
    form: Form
    who: Audience

    @property
    def console(self) -> Console:
        """Where the work is told of."""
        return self.who.console


class Source(Protocol):
    """Where a template comes from: it is written down, or made of a draft."""

    def read(self, run: "Run") -> "Tokens":
        """The template in the tokens of the model."""
        ...


@dataclass(slots=True)
class Run:
    """A run with everything filled in, and what came of it."""

    setup: Setup
    lm: "LanguageModel"
    settings: "InfillSettings"
    infilling: "Infilling"
    tally: Tally
    first: "InfillBatch | None" = None
    best: "Candidate | None" = None

    @property
    def dtype(self) -> str:
        """The precision, as --dtype takes it."""
        return self.lm.checkpoint.dtype

    def fields(self) -> Fields:
        """What JSON says of every template of this run."""
        settings = self.settings
        return {
            "seed": settings.seed,
            "candidates_per_length": settings.n,
            "max_combinations": settings.max_combinations,
            **self.lm.drawn_fields(settings),
        }

    def batches(
        self, templates: "Iterable[Tokens]", who: Audience, n: int | None = None
    ) -> "Iterator[InfillBatch]":
        """Batches that have run, of `n` texts if that is known: counted, and watched."""

        def watched(batch: "InfillBatch") -> None:
            drive(batch.shown(), self.lm.checkpoint.tokenizer.decode, who, n or len(batch.tasks))

        size, told = self.setup.batch_size, who.console.report
        for batch in self.infilling.batches(templates, size, drive=watched, told=told):
            self._count(batch)
            yield batch

    def _count(self, batch: "InfillBatch") -> None:
        self.first = self.first or batch
        self.tally.seconds += batch.seconds
        for task, made in zip(batch.tasks, batch.candidates(), strict=True):
            self.tally.texts += 1
            self.tally.calls += made.nfe
            self.tally.tokens += int(task.row.plan.counts_S.sum())
            for drafts, accepted in made.rounds:
                self.tally.drafts += drafts
                self.tally.accepted += accepted

    @property
    def raw(self) -> bool:
        """Whether what stands behind an end of text is part of it: in a template it is given."""
        return True

    def again(self, *, here: bool = False) -> str:
        """The command that gives the same fills; `here`: without what this place adds by itself."""
        settings, setup, usual = self.settings, self.setup, self._usual() if here else []
        bound, (template, text) = settings.max_combinations, setup.template
        flags: Said = [
            ("-m", setup.model),
            *how_drawn(settings.draw, settings.schedule, drafting=settings.drafting),
            ("-n", settings.n),
            ("--seed", settings.seed),
            ("--dtype", self.dtype),
            *(() if setup.device == "auto" else (("--device", setup.device),)),
            *(() if setup.attention == "auto" else (("--attention", setup.attention),)),
            *(() if setup.top == 1 else (("--top", setup.top),)),
            *(() if settings.order.count == 1 else (("--orders", settings.order.count),)),
            *(() if bound == MAX_COMBINATIONS else (("--max-combinations", bound),)),
            *((("--allow-end",),) if settings.end_allowed else ()),
            *(() if settings.kv_cache else (("--no-kv-cache",),)),
        ]
        said = [flag for flag in flags if flag not in usual]
        return command_line("infill", [*said, *template], text)

    def _usual(self) -> Said:
        """The flags that need not be said here."""
        usual = self.lm.infill_settings(self.lm.settings())
        drawn = how_drawn(usual.draw, usual.schedule)
        return [*usual_flags(self.lm, self.setup.dtype), ("-n", usual.n), *drawn]


def load(setup: Setup, console: Console) -> Run:
    """Open the model and fill in what was not said."""
    resolve(setup.model, console)  # what is not there is told, or downloaded, before torch comes
    console.status(f"loading {setup.model} ...")
    from esogen.language_model import load as load_model

    lm = load_model(
        setup.model,
        device=setup.device,
        dtype=setup.dtype,
        attention=setup.attention,
        told=console.say,
    )
    settings = setup.settings(lm)
    run = Run(setup, lm, settings, lm.infilling(settings), Tally())
    for note in lm.notes:
        console.say(note)
    return run


def fill_one(setup: Setup, source: Source, place: Place) -> Run:
    """Fill one template and write its best candidates."""
    console, form = place.console, place.form
    with opened(place.output) as out, recording(place.trace, beside=place.output) as traced:
        run = load(setup, console)
        traced.begin(run)
        tokens = source.read(run)
        tried = run.infilling.check(tokens)
        if tried < tokens.combinations:
            console.say(
                f"trying {tried} of {tokens.combinations} combinations of lengths:"
                " --max-combinations bounds them, and so does the model's length"
            )
        with _nothing_kept():
            for batch in run.batches([tokens], place.who, tried * run.settings.n):
                traced.write(batch)
                for _, filled in run.infilling.finished(batch):
                    fields = run.fields() if form.format != "text" else {}
                    out.write(form.write(str(tokens.template), filled, fields))
                    run.best = filled[0]
    return run


def fill_lines(
    setup: Setup, source: BinaryIO, place: Place, read: Callable[[Run, str], "Tokens"]
) -> None:
    """Fill the template on every line; raises `EsogenError` at the end if lines were broken."""

    def checked(template: str) -> "Tokens":
        tokens = read(run, template)
        run.infilling.check(tokens)
        return tokens

    interrupted, console = False, place.console
    with opened(place.output) as out, recording(place.trace, beside=place.output) as traced:
        run = load(setup, console)
        traced.begin(run)
        lines = Lines(source, checked, console, place.form.format == "json")
        try:
            _write_lines(run, lines, (out, traced), place)
        except KeyboardInterrupt:
            interrupted = True
            console.clear()
        lines.finish(out)
    if interrupted:
        raise Interrupted(f"interrupted: kept {counted(lines.done, 'line')} in {out.name}")
    lines.check()


def _write_lines(run: Run, lines: Lines, outs: tuple[Output, Recording], place: Place) -> None:
    fields, (out, traced) = run.fields(), outs
    for batch in run.batches(lines.templates(), place.who):
        traced.write(batch)
        for _, filled in run.infilling.finished(batch):
            lines.write(out, filled, fields, place.form.top)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted before the text was filled; nothing was kept") from None
