"""`esogen models`: which models there are, what one of them is, and how they come and go."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import file_digest
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.checkpoint import resolve
from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.hub import fetch
from esogen.checkpoint.hub_cache import Reference, amount, cached
from esogen.checkpoint.known import PUBLISHED, published
from esogen.checkpoint.pins import read_pin
from esogen.cli import options
from esogen.cli.command import Command, Group
from esogen.cli.terminal import Console, is_terminal
from esogen.errors import CheckpointError, UsageError
from esogen.visible import one_line

if TYPE_CHECKING:
    from esogen.checkpoint.config_file import CardDefaults
    from esogen.checkpoint.inventory import CachedModel

models = typer.Typer(
    name="models",
    cls=Group,
    add_completion=False,
    help="List, show, download, remove, import, export models.",
)
_command = partial(models.command, cls=Command)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=options.complete_model,
        help="A built-in or short name, a model folder, or owner/name\\[@revision] on the hub.",
    ),
]
Fact = tuple[str, object]


@_command("list")
def list_models() -> None:
    """List the models: built in, in the cache, and published ones that have a short name."""
    from esogen.checkpoint.inventory import cached_models

    heads = ("name", "parameters", "size", "length", "last used", "licence", "where")
    held = {model.repository: model for model in cached_models()}
    rows = [_built_in(name, folder) for name, folder in resolve.BUILT_IN.items()]
    for name, entry in PUBLISHED.items():
        model = held.pop(entry.repository, None)
        size, used = (amount(model.size), _day(model.used)) if model else ("-", "-")
        where = f"hub {entry.repository}, {'in the cache' if model else 'not downloaded'}"
        counts = f"{entry.parameters:,}", size, str(entry.length), used
        rows.append((name, *counts, entry.licence, f"{where}: {entry.purpose}"))
    rows += [_cached(model) for model in held.values()]
    _print_table([heads, *rows])


@_command()
def pull(
    name: Name,
    *,
    update: Annotated[
        bool, typer.Option("--update", help="Take the newest commit and keep to it from now on.")
    ] = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Download a model of the hub, or check the one in the cache and mend it.

    Prints the folder that holds it. The commit is kept until --update.
    """
    reference = _on_hub(name, "download")
    console = Console.stderr(quiet=quiet, no_color=no_color)
    snapshot = fetch(reference, console, update=update, check=True)
    console.say(f"{reference.typed} is complete at {snapshot.commit}")
    if snapshot.config:
        _print(str(snapshot.config.parent))


@_command()
def show(name: Name) -> None:
    """Show what a name stands for, and the model: its network, its defaults, its files.

    Downloads nothing.
    """
    meaning = resolve.explain(name)
    facts: list[Fact] = [("name", name)]
    facts += [("resolved", f"{n}. {step}") for n, step in enumerate(meaning.steps, 1)]
    if isinstance(meaning.place, Reference):
        facts += _of_repository(name, meaning.place)
    else:
        facts += _of_files(resolve.resolve(name))
    for label, value in facts:
        _print(f"{label:<20}{value}")


@_command()
def remove(
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a downloaded model out of the cache. Asks first, unless --yes."""
    from esogen.checkpoint.inventory import cached_models, remove_cached

    reference = _on_hub(name, "remove")
    model = next((m for m in cached_models() if m.repository == reference.repository), None)
    if model is None:
        raise CheckpointError(f"{reference.repository} is not in the cache; see esogen models list")
    question = f"Remove {model.repository} ({amount(model.size)}) from the cache?"
    if not yes and not is_terminal(sys.stdin):
        raise UsageError(f"{question} There is no terminal to ask on; give --yes")
    if yes or typer.confirm(question, err=True):
        freed = remove_cached(reference.repository)
        typer.echo(f"removed {model.repository}, {amount(freed)}", err=True)


@_command("import")
def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE.ckpt", help="The authors' Lightning file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The model folder to be made.")],
    *,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take the optimiser's weights, not their average.")
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE",
            show_default="the file's own, else GPT-2's",
            help="A tokenizer.json to put into the folder.",
        ),
    ] = None,
) -> None:
    """Make a model folder of a .ckpt file, without running anything in it."""
    from esogen.checkpoint.convert import import_lightning

    console = Console.stderr()
    console.status(f"reading {file} ...")
    origin = import_lightning(file, folder, raw=raw, tokenizer=tokenizer)
    console.say(f"wrote {folder}; its tokenizer comes from {origin}")
    _print(str(folder))


@_command("export")
def export_model(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to be made.")],
    *,
    model: options.Model = resolve.DEFAULT_MODEL,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            show_default="the model's own",
            help="bf16, fp16 or fp32.",
        ),
    ] = None,
) -> None:
    """Write a model as published checkpoints are laid out, for the authors' own code to load."""
    console = Console.stderr()
    console.status(f"reading {model} ...")
    from esogen.checkpoint.convert import export
    from esogen.checkpoint.placement import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    export(model, folder, DTYPES[dtype] if dtype else None, console)
    console.clear()
    _print(str(folder))


def _on_hub(name: str, verb: str) -> Reference:
    """The repository a name stands for; raises `UsageError` for what lies elsewhere."""
    place = resolve.explain(name).place
    if isinstance(place, Reference):
        return place
    if name in resolve.BUILT_IN:
        raise UsageError(f"{name} comes with esogen: there is nothing to {verb}")
    raise UsageError(f"{name} is a folder of yours, not one of the cache: nothing to {verb} here")


def _built_in(name: str, folder: Path) -> tuple[str, ...]:
    model = read_config(folder / resolve.CONFIG).model
    parameters, _ = _weights(folder / resolve.WEIGHTS)
    size = amount((folder / resolve.WEIGHTS).stat().st_size)
    counts = f"{parameters:,}", size, str(model.model_length)
    return name, *counts, "-", "with esogen", f"built in, {folder}"


def _cached(model: "CachedModel") -> tuple[str, ...]:
    try:
        length = str(read_config(model.snapshot / resolve.CONFIG).model.model_length)
        parameters = f"{_weights(model.snapshot / resolve.WEIGHTS)[0]:,}"
    except CheckpointError as error:
        return model.repository, "-", amount(model.size), "-", _day(model.used), "-", str(error)
    counts = parameters, amount(model.size), length, _day(model.used)
    return model.repository, *counts, "see its page", "hub, in the cache"


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def _of_repository(name: str, reference: Reference) -> Iterator[Fact]:
    entry, pin, snapshot = (
        published(reference.repository),
        read_pin(str(reference)),
        cached(reference),
    )
    if entry:
        yield "licence", entry.licence
        yield "trained for", entry.purpose
    if snapshot:
        yield "commit", snapshot.commit
    if pin:
        yield "resolved at", f"{pin.resolved} from {pin.endpoint}; kept until pull --update"
    if snapshot is None or snapshot.missing():
        missing = "all of it" if snapshot is None else " and ".join(snapshot.missing())
        yield "not in the cache", f"{missing}; esogen models pull {reference.typed}"
    else:
        yield from _of_files(resolve.files_of(name, snapshot))


def _of_files(files: resolve.ModelFiles) -> Iterator[Fact]:
    card = read_config(files.config)
    yield from asdict(card.model).items()
    yield from _defaults(card.defaults.filled(files.defaults))
    for name, value in card.unknown.items():
        yield "unknown field", f"{name} = {value!r}"
    parameters, dtype = _weights(files.weights)
    with files.weights.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    yield "parameters", f"{parameters:,}"
    yield "dtype", dtype
    yield "revision", digest[:12]
    yield "sha256", digest
    yield "tokenizer", f"{files.tokenizer_from or 'its own'}, {files.tokenizer.resolve()}"
    yield "folder", files.weights.parent.resolve()


def _defaults(defaults: "CardDefaults") -> Iterator[Fact]:
    for label, value in asdict(defaults).items():
        yield f"default {label}", "not given" if value is None else value


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns; on a terminal too narrow for them, the last of each row below the others."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = get_terminal_size().columns
    narrow = is_terminal(sys.stdout) and sum(widths) + 2 * len(widths) > columns
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        below = wrap(cells.pop(), columns - 4) if narrow else []
        for line in ("  ".join(cells), *(f"    {part}" for part in below)):
            _print(line.rstrip())


def _print(line: str) -> None:
    """One line on stdout: as it is, but for a terminal without what could steer it."""
    typer.echo(one_line(line) if is_terminal(sys.stdout) else line)


def _weights(path: Path) -> tuple[int, str]:
    """How many numbers the tensors of a file hold, and in which precision; reads its head only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [key for key in file.keys() if not key.endswith("inv_freq")]  # noqa: SIM118
            parts = [file.get_slice(key) for key in names]
            count = sum(math.prod(part.get_shape()) for part in parts)
            dtypes = sorted({part.get_dtype() for part in parts})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({error}); download or copy it again"
        ) from error
    return count, ", ".join(dtypes)
