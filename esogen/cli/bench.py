"""`esogen bench`: how fast this machine samples, beside the other families."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from esogen.bench import plot as pictures
from esogen.bench.cases import SIZES, Case, Grid, Setup
from esogen.bench.paper import Point
from esogen.bench.paper import points as paper_points
from esogen.bench.tables import DRAFTED, GRID, ONE_SHOT, PAPER, Record, Table
from esogen.checkpoint.config_file import CardDefaults, read_config
from esogen.checkpoint.resolve import resolve
from esogen.cli import bench_options, options
from esogen.cli.bench_options import Several
from esogen.cli.output import opened
from esogen.cli.terminal import Console
from esogen.errors import EsogenError, Interrupted, UsageError

if TYPE_CHECKING:
    from esogen.bench.measure import Bench, Row

T = TypeVar("T")
DEFAULT_SIZE = "small"


_APART: options.Apart = {
    "--size": ("--model",),
    "--paper": ("--model", "--one-shot"),
    "--profile": ("--format csv",),
    "--no-kv-cache": ("--attention",),
    "--draft": ("--steps", "--paper", "--one-shot", "--profile"),
}


def bench(
    ctx: typer.Context,
    *,
    family: bench_options.Family = None,
    length: bench_options.Length = None,
    steps: bench_options.Steps = None,
    alpha_0: bench_options.Alpha0 = None,
    draft: bench_options.Draft = None,
    batch_size: bench_options.BatchSize = None,
    block_size: bench_options.BlockSize = None,
    paper: bench_options.Paper = False,
    mdlm_steps: bench_options.MdlmSteps = None,
    schedule: options.Schedule = None,
    top_p: options.TopP = 0.9,
    size: bench_options.Size = None,
    model: bench_options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    attention: options.Attention = "auto",
    no_kv_cache: options.NoKvCache = False,
    repeats: bench_options.Repeats = 5,
    one_shot: bench_options.OneShot = False,
    profile: bench_options.Profile = False,
    output: bench_options.Output = None,
    format: bench_options.Format = "md",  # noqa: A002 - the word of the flag
    plot: bench_options.Plot = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast texts are sampled, beside the other families.

    Every value of each list is combined with each of the others. tokens/s counts decided tokens
    over wall time, drawing included. The last line of stdout is one JSON document.
    """
    console = Console.stderr(quiet=quiet)
    if plot:
        pictures.check(plot)
    options.keep_apart(ctx, _APART)
    options.keep_together(ctx, {"--mdlm-steps": ("--paper",)})
    grid = Grid(
        _values(family),
        _values(length),
        _values(steps),
        _values(alpha_0),
        _values(batch_size),
        _values(block_size),
        schedule,
        kv_cache=not no_kv_cache,
        drafts=_values(draft),
    )
    setup = Setup(
        size or DEFAULT_SIZE,
        model,
        device,
        dtype,
        attention,
        top_p,
        repeats,
        one_shot=one_shot,
        profile=profile,
    )
    points = paper_points(grid, mdlm_steps) if paper else {}
    run = _Run(setup, list(points) or _cases(grid, setup, console), points)
    columns = PAPER if paper else GRID + (DRAFTED if draft else ()) + (ONE_SHOT if one_shot else ())
    with opened(output) as out:
        table = Table(format, columns, out.write)
        _measure(run, table, console)
        if profile and format == "md":
            _profiles(run, out.write)
        if output and format == "json":
            out.write(run.document())
    with opened(None) as stdout:
        stdout.write(run.document())
    if plot and run.records:
        _plot(run, plot)
    run.judge()


def _values(several: Several[T] | None) -> tuple[T, ...] | None:
    return several.values if several else None


def _cases(grid: Grid, setup: Setup, console: Console) -> list[Case]:
    """The grid's points on the network asked for; a checkpoint is downloaded if need be."""
    if setup.model is None:
        return grid.cases(SIZES[setup.size], CardDefaults())
    files = resolve(setup.model, console)
    card = read_config(files.config)
    config = card.model
    cases = grid.cases(config, card.defaults.filled(files.defaults))
    for case in cases:
        if (case.family, case.block_size or 1) != (config.family, config.block_size):
            raise UsageError(
                f"the grid has {case.name}, and {setup.model} is another model, of the family"
                f" {config.family}; leave out --model for random weights of any family"
            )
        if case.length > config.model_length:
            raise UsageError(
                f"length is {case.length}; {setup.model} takes 1 to {config.model_length} tokens;"
                " leave out --model for random weights, which take any"
            )
    return cases


@dataclass(slots=True)
class _Run:
    """What is to be measured, and what was so far; `points` where they are the paper's."""

    setup: Setup
    cases: Sequence[Case]
    points: Mapping[Case, Point]
    records: list[Record] = field(default_factory=list)
    bench: "Bench | None" = None
    interrupted: bool = False

    def document(self) -> str:
        """Everything as one line of JSON."""
        from esogen.bench.machine import device_facts, machine

        facts = {} if self.bench is None else device_facts(self.bench.device)
        bandwidth = self.bench and self.bench.bandwidth
        document = {
            "machine": machine(),
            **facts,
            "copy_bytes_per_second": bandwidth,
            "setup": asdict(self.setup),
            "rows": self.records,
        }
        return json.dumps(document, allow_nan=False) + "\n"

    def judge(self) -> None:
        """Raise where not everything was measured."""
        kept = f"{len(self.records)} of {len(self.cases)} rows"
        if self.interrupted:
            raise Interrupted(f"interrupted: kept {kept}")
        if len(self.records) < len(self.cases):
            raise EsogenError(f"measured {kept}; the others do not fit in memory")


def _measure(run: _Run, table: Table, console: Console) -> None:
    """Measure row after row, each written at once; Ctrl-C keeps those."""
    console.status("starting ...")
    from esogen.bench.measure import Bench, NoRoom

    rows: dict[Case, Row] = {}
    try:
        run.bench = Bench(run.setup, console.status, console.say)
        for found in run.bench.rows(run.cases):
            if isinstance(found, NoRoom):
                console.report(str(found))
                continue
            rows[found.case] = found
            point = run.points.get(found.case)
            run.records.append(found.record() | (point.beside(rows) if point else {}))
            console.clear()
            table.add(run.records[-1])
    except KeyboardInterrupt:
        run.interrupted = True
    console.clear()


def _profiles(run: _Run, write: Callable[[str], None]) -> None:
    from esogen.bench.profile import table

    for record in run.records:
        for line in table(record):
            write(line)


def _plot(run: _Run, path: Path) -> None:
    device = "" if run.bench is None else f", {run.bench.device}"
    network = run.setup.model or f"random weights, size {run.setup.size}"
    try:
        pictures.plot(run.records, path, f"esogen bench, {network}{device}")
    except OSError as error:
        raise EsogenError(
            f"{path} cannot be written: {error.strerror or error}; choose another place"
        ) from error
