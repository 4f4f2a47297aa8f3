"""`esogen score`: how likely texts are."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.cli import options
from esogen.cli import score_options as own
from esogen.cli.output import STDOUT, Output, opened
from esogen.cli.prompt import STDIN
from esogen.cli.score_heat import Heat, painted
from esogen.cli.score_run import Job, Shown, execute, journal_at, load_run
from esogen.cli.score_sources import GIVEN, Sources, read_orders
from esogen.cli.terminal import Console
from esogen.errors import UsageError
from esogen.ranks import Ranks

if TYPE_CHECKING:
    from esogen.language_model import LanguageModel
    from esogen.scoring.settings import ScoreSettings


_APART: options.Apart = {
    "--text": ("--field", "--lines", "--rank", "--compare"),
    "--field": ("--lines",),
    "--compare": ("--rank", "--lines", "--field"),
    "--bound nelbo": ("--order", "--steps", "--heat-map", "--html", "--svg", "--format csv"),
    "--order left-to-right": ("--alpha-0",),
    "--format csv": ("--top", "--against"),
    "--state": ("--html", "--svg"),
}
_TOGETHER: options.Apart = {
    "--steps": ("--order blocks", "--order streams"),
    "--time-samples": ("--bound nelbo",),
}


def score(
    ctx: typer.Context,
    files: own.Files = None,
    *,
    text: own.Text = None,
    field: own.Field = None,
    lines: own.Lines = False,
    end_of_text: own.EndOfText = False,
    order: own.Order = None,
    orders: own.Orders = None,
    alpha_0: own.Alpha0 = None,
    steps: own.Steps = None,
    bound: own.Bound = "exact",
    time_samples: own.TimeSamples = 16,
    seed: own.Seed = 0,
    context: own.Context = None,
    stride: own.Stride = None,
    heat_map: own.HeatMap = None,
    by: own.By = "surprisal",
    top: own.Top = 0,
    html: own.Html = None,
    svg: own.Svg = None,
    compare: own.Compare = False,
    rank: own.Rank = False,
    against: own.Against = None,
    output: options.Output = None,
    format: own.Format = "text",  # noqa: A002 - the word of the flag
    state: own.State = None,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: own.BatchSize = None,
) -> None:
    """Tell how likely texts are, word by word.

    Log-probability, perplexity and bits per byte of each text and of all together.
    Without FILE, stdin is read. A text file holds one text, or several parted by lines
    <|endoftext|>.
    """
    options.keep_apart(ctx, _APART)
    options.keep_together(ctx, _TOGETHER)
    given = read_orders(order) if order and order.startswith(GIVEN) else []
    word = None if given or order is None else own.read_order(order)

    def settings(lm: "LanguageModel") -> "ScoreSettings":
        from esogen.scoring.defaults import settings_for

        return settings_for(
            lm.checkpoint,
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

    ranks = Ranks.here()
    shown = Shown(format, by, top, compare, rank)
    sources = _sources(files or [], text, field, lines, shown)
    job = Job(sources, shown, model, against, device, dtype, batch_size, settings)
    job.check(bound, orders)
    console = Console.stderr(quiet=quiet or not ranks.first, no_color=no_color)
    _check_places(files or [], ("--output", output or STDOUT), ("--html", html), ("--svg", svg))
    with (
        opened(output if ranks.first else Path("/dev/null")) as out,
        _drawn(html, "--html") as page,
        _drawn(svg, "--svg") as picture,
    ):
        heat = Heat(by, painted(out, heat_map, format, no_color=no_color), page, picture)
        heat.check(alone=ranks.world == 1, one_by_one=not (compare or rank or lines or state))
        run = load_run(job, ranks, console)
        with journal_at(state, run) as journal:
            made = execute(run, out, heat, journal, console)
    made.tell()


def _check_places(files: list[Path], *places: tuple[str, Path | None]) -> None:
    """Raise `UsageError` where a file is both scored and written, or written twice."""
    taken = {path.resolve() for path in files if str(path) != STDIN}
    for flag, path in places:
        if path is None or (path.exists() and not path.is_file()):
            continue
        place = path if path == STDOUT else path.resolve()
        if place in taken:
            raise UsageError(
                f"{flag} is {str(path)!r}, which is scored or written already;"
                " give it a file of its own"
            )
        taken.add(place)


def _drawn(path: Path | None, flag: str) -> AbstractContextManager[Output | None]:
    """The file of a picture, opened before anything is scored, so that a bad place is told."""
    return nullcontext() if path is None else opened(path, flag)


def _sources(
    files: list[Path], text: str | None, name: str | None, lines: bool, shown: "Shown"
) -> Sources:
    from esogen.scoring.documents import Reading

    if shown.compare and len(files) < 2:
        raise UsageError("--compare is for two or more FILEs; give the drafts, each in its file")
    parted = lines or (shown.rank and name is None)
    return Sources.of(files, text, Reading(name, parted, shown.compare))
