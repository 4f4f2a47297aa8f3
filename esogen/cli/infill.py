"""`esogen infill`: fill the blanks of a text."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from esogen.cli.infill_sources import Around, Draft, Given, Written
from esogen.cli.progress import audience
from esogen.cli.terminal import Console, colors_refused
from esogen.cli.verifying import judge
from esogen.errors import UsageError
from esogen.view.theme import THEMES, UNPAINTED

if TYPE_CHECKING:
    from esogen.language_model import LanguageModel
    from esogen.ranking.infilling import InfillSettings

_NOT_EDITED = (
    *("--revise", "--draft", "--verify", "--trace", "--format", "--top", "--batch-size"),
    *("--no-kv-cache", "--live", "--no-live", "--theme", "--color-by"),
)
"""What the editor has no use for."""
_ONE_TEMPLATE = ("--revise", "--plain", "--resume", "--work", "--verify")
_APART: options.Apart = {
    "--jsonl": (*_ONE_TEMPLATE, "--format text", "--length"),
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
        if revise is not None and given.nothing(around):
            raise UsageError("--revise needs a draft: name its file, or - for stdin")
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
        with given.lines(console) as lines:
            fill_lines(make(template=given.said(around)), lines, place, around.tokens)
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
