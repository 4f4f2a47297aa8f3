"""`esogen infill`: fill the blanks of a text."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.cli import infill_options, options
from esogen.cli.infill_editor import Desk, default_work_file, edit
from esogen.cli.infill_output import Form
from esogen.cli.infill_run import (
    BATCH_SIZE,
    MAX_COMBINATIONS,
    Place,
    Run,
    Setup,
    fill_lines,
    fill_one,
)
from esogen.cli.progress import audience
from esogen.cli.prompt import STDIN, opened_file, read_file, read_prompt, read_stdin
from esogen.cli.sample import judge
from esogen.cli.summary import Said
from esogen.cli.terminal import Console, colors_refused, is_terminal
from esogen.cli.word_diff import word_diff
from esogen.errors import UsageError
from esogen.view.theme import THEMES, UNPAINTED

if TYPE_CHECKING:
    from esogen.generate.template import Tokens
    from esogen.language_model import LanguageModel
    from esogen.ranking.infilling import InfillSettings

_TEMPLATE_FILE = "a file that holds a template; one that is typed needs no --file"

_NOT_EDITED = (
    *("--revise", "--draft", "--verify", "--trace", "--format", "--top", "--batch-size"),
    *("--no-kv-cache", "--live", "--no-live", "--theme", "--color-by"),
)
"""What the editor has no use for."""
_APART: options.Apart = {
    "--jsonl": ("--revise", "--plain", "--resume", "--work", "--verify", "--format text"),
    "--plain": _NOT_EDITED,
    "--resume": (*_NOT_EDITED, "--fix", "--starts-with", "--ends-with", "--length"),
    "--revise": ("--work",),
    "--no-live": ("--theme", "--color-by"),
    "--no-kv-cache": ("--attention",),
}
_TOGETHER: options.Apart = {"--keep": ("--revise",)}


def infill(
    ctx: typer.Context,
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
    draft: options.Draft = None,
    draft_costs: options.DraftCosts = None,
    jsonl: infill_options.Jsonl = False,
    revise: infill_options.Revise = None,
    keep: infill_options.Keep = None,
    plain: infill_options.Plain = False,
    resume: infill_options.Resume = False,
    work: infill_options.Work = None,
    output: options.Output = None,
    trace: options.Trace = None,
    format: options.Format = "text",  # noqa: A002 - the word of the flag
    live: options.Live = None,
    theme: options.Theme = "default",
    color_by: options.ColorBy = "certainty",
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    attention: options.Attention = "auto",
    batch_size: infill_options.BatchSize = BATCH_SIZE,
    no_kv_cache: options.NoKvCache = False,
    verify: options.Verify = False,
) -> None:
    """Fill the blanks of TEMPLATE, or edit a text with blanks on the terminal.

    Several fills are made, and the most probable text is written. Without TEMPLATE, stdin is read
    if it is a pipe or a file. stdout gets the text, nothing else.
    """

    options.keep_apart(ctx, _APART)
    options.keep_together(ctx, _TOGETHER)
    drafted, costs = options.drafts_of(draft, draft_costs, verify=verify)

    def settings(lm: "LanguageModel") -> "InfillSettings":
        drawn = lm.settings(
            steps=steps,
            alpha_0=alpha_0,
            schedule=schedule,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            draft=drafted,
            draft_costs=costs,
            rows=batch_size,
            seed=seed,
            kv_cache=not no_kv_cache,
        )
        return lm.infill_settings(
            drawn, n=n, orders=orders, max_combinations=max_combinations, end_allowed=end_allowed
        )

    console = Console.stderr(quiet=quiet, no_color=no_color)
    around = Around(tuple(fix or ()), starts_with, ends_with, length)
    given = Given(tuple(template or ()), file)
    drawn_in = UNPAINTED if colors_refused(no_color=no_color) else THEMES[theme]
    ways = Ways(jsonl, revise, tuple(keep or ()), plain, resume, work, seed)
    make = partial(Setup, model, device, dtype, attention, batch_size, top, settings=settings)
    with audience(console, live=live, theme=drawn_in, color_by=color_by) as who:
        place = Place(output, trace, Form(format, top), who)
        if not jsonl and given.nothing(around):
            options.keep_apart(ctx, {"the editor": _NOT_EDITED})
        run = _go(ways, given, around, make, place)
    if run:
        _tell(run, place, drawn=seed is None)
    if verify and run and run.first:
        console.status("verifying ...")
        found = run.first.verify()
        console.clear()
        judge(found, run.dtype)


@dataclass(frozen=True, slots=True)
class Ways:
    """Which of its ways of working the command was asked for."""

    jsonl: bool
    revise: float | None
    keep: tuple[str, ...]
    plain: bool
    resume: bool
    work: Path | None
    seed: int | None


def _go(
    ways: Ways, given: "Given", around: "Around", make: Callable[..., Setup], place: Place
) -> Run | None:
    """Work in the way that was asked for; a run of one template is returned."""
    console = place.console
    if ways.jsonl:
        with given.lines() as lines:
            fill_lines(make(template=((), None)), lines, place, around.tokens)
        return None
    if ways.plain or ways.resume or given.nothing(around):
        desk = Desk(ways.work or default_work_file(), ways.plain, ways.resume, ways.seed)
        text = given.template(console, plain=ways.plain)
        edit(make(template=((), None)), desk, place, text, around.tokens)
        return None
    if ways.work:
        raise UsageError("--work is for the editor, and TEMPLATE is filled at once; leave out one")
    if ways.revise is None:
        written = Written(given.text(console, needed=around.length is None), around)
        return fill_one(make(template=written.said()), written, place)
    draft = Draft(given.draft(console, around), given, ways.revise, ways.keep)
    run = fill_one(make(template=draft.said()), draft, place)
    if run.best:
        draft.show(run.best.text, console)
    return run


def _tell(run: Run, place: Place, *, drawn: bool) -> None:
    """The line after a run; or the seed alone, if it was drawn and nobody has it yet."""
    console = place.console
    if console.shown:
        console.say(f"{run.tally} · {run.again(here=True)}")
    elif drawn and place.form.format == "text":
        console.say(f"seed {run.settings.seed}")


@dataclass(frozen=True, slots=True)
class Around:
    """What is fixed besides the template, as in `LanguageModel.infill`."""

    fix: tuple[str, ...]
    starts_with: str
    ends_with: str
    length: int | None

    def tokens(self, run: Run, template: str) -> "Tokens":
        """The tokens of a template with these around it."""
        return run.lm.read_template(
            template,
            fix=self.fix,
            starts_with=self.starts_with,
            ends_with=self.ends_with,
            length=self.length,
        )

    def flags(self) -> Said:
        """The flags that say the same."""
        return [
            *(("--fix", pair) for pair in self.fix),
            *((("--starts-with", self.starts_with),) if self.starts_with else ()),
            *((("--ends-with", self.ends_with),) if self.ends_with else ()),
            *(() if self.length is None else (("-L", self.length),)),
        ]


@dataclass(frozen=True, slots=True)
class Given:
    """Where a template or a draft was said to be: the argument, or --file."""

    arguments: tuple[str, ...]
    file: Path | None

    def text(self, console: Console, *, needed: bool) -> str:
        """The template; empty where there is none, which `needed` forbids."""
        self._check()
        if self.file is not None:
            return read_file(self.file, _TEMPLATE_FILE)
        text = read_prompt(self.arguments, console, "TEMPLATE")
        if needed and not text:
            raise UsageError(
                "there is no TEMPLATE; write one, such as 'The [MASK:2] sat down.', pipe one in,"
                " or give --length with --starts-with and --ends-with"
            )
        return text

    def nothing(self, around: Around) -> bool:
        """Whether there is no template, and somebody at a terminal to write one."""
        streams = (sys.stdin, sys.stdout if is_terminal(sys.stdout) else sys.stderr)
        said = self.arguments or self.file or around.flags()
        return not said and all(map(is_terminal, streams))

    def template(self, console: Console, *, plain: bool) -> str:
        """What the editor begins with; with `plain`, stdin is left to the commands."""
        self._check()
        if self.file is not None:
            return read_file(self.file, _TEMPLATE_FILE)
        if plain and STDIN in self.arguments:
            raise UsageError("--plain reads commands from stdin; give TEMPLATE or --file instead")
        return read_prompt(self.arguments, console, "TEMPLATE") if self.arguments else ""

    def draft(self, console: Console, around: Around) -> str:
        """The text of the file that is named, or of stdin."""
        self._check()
        if around.flags():
            flag = around.flags()[0][0]
            raise UsageError(f"{flag} is for templates; --revise takes a draft: leave it out")
        if len(self.arguments) > 1:
            raise UsageError("--revise takes one draft; give the path of one file, or - for stdin")
        path = self.file or Path(*self.arguments)
        if (not self.arguments and self.file is None) or self.arguments == (STDIN,):
            return read_stdin(console, "draft")
        return read_file(path, "the file of a draft, or - for stdin")

    @contextmanager
    def lines(self) -> Iterator[BinaryIO]:
        """The file, or stdin, to be read line by line."""
        if self.arguments not in ((), (STDIN,)):
            raise UsageError("--jsonl reads its templates from stdin or --file; leave TEMPLATE out")
        if self.file is not None:
            with opened_file(self.file, "a file with a template a line") as source:
                yield source
        else:
            yield io.BytesIO() if sys.stdin is None else sys.stdin.buffer

    def _check(self) -> None:
        if self.file is not None and self.arguments:
            raise UsageError("--file and the argument exclude each other; give one of them")


@dataclass(frozen=True, slots=True)
class Written:
    """A template as it was written, and what is fixed around it."""

    text: str
    around: Around

    def read(self, run: Run) -> "Tokens":
        """The template in the tokens of the model."""
        return self.around.tokens(run, self.text)

    def said(self) -> tuple[Said, str | None]:
        """The flags of a command line that give it again, and its argument."""
        return self.around.flags(), self.text or None


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft whose least likely tokens become blanks."""

    text: str
    given: Given
    share: float
    keep: tuple[str, ...]

    def read(self, run: Run) -> "Tokens":
        """The draft in the tokens of the model, with its blanks."""
        return run.lm.revise_template(
            self.text, share=self.share, keep=self.keep, seed=run.settings.seed
        )

    def said(self) -> tuple[Said, str | None]:
        """The flags of a command line that give it again, and its argument: the draft's file."""
        keep = [("--keep", pattern) for pattern in self.keep]
        name = self.given.file or " ".join(self.given.arguments) or STDIN
        return [("--revise", self.share), *keep], str(name)

    def show(self, text: str, console: Console) -> None:
        """Tell what became of the draft, word by word."""
        console.show(word_diff(self.text, text, colored=console.colored))
