"""`esogen models`: which models there are, and what one of them is."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.checkpoint import resolve
from esogen.checkpoint.config_file import read_config
from esogen.cli.options import complete_model
from esogen.errors import CheckpointError

if TYPE_CHECKING:
    from esogen.checkpoint.config_file import Card

models = typer.Typer(name="models", add_completion=False, help="List the models, or show one.")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=complete_model,
        help="A built-in name, or the path of a model folder.",
    ),
]


@models.command("list")
def list_models() -> None:
    """List the built-in models."""
    rows: list[tuple[str, ...]] = [("name", "parameters", "size", "length", "folder")]
    rows += [_row(name) for name in resolve.BUILT_IN]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@models.command()
def show(name: Name) -> None:
    """Show a model: its network, what it samples with unless told, its files."""
    folder = resolve.resolve(name)
    card = read_config(folder / resolve.CONFIG)
    facts = [*asdict(card.model).items(), *_defaults(card), *_files(folder)]
    for label, value in facts:
        typer.echo(f"{label:<20}{value}")


def _row(name: str) -> tuple[str, ...]:
    folder = resolve.resolve(name)
    model = read_config(folder / resolve.CONFIG).model
    parameters, _ = _weights(folder / resolve.WEIGHTS)
    size = (folder / resolve.WEIGHTS).stat().st_size
    return name, f"{parameters:,}", f"{size / 1e6:.1f} MB", str(model.model_length), str(folder)


def _defaults(card: "Card") -> Iterator[tuple[str, object]]:
    for label, value in asdict(card.defaults).items():
        yield f"default {label}", "not given" if value is None else value


def _files(folder: Path) -> Iterator[tuple[str, object]]:
    parameters, dtype = _weights(folder / resolve.WEIGHTS)
    with (folder / resolve.WEIGHTS).open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    yield "parameters", f"{parameters:,}"
    yield "dtype", dtype
    yield "revision", digest[:12]
    yield "sha256", digest
    yield "folder", folder.resolve()


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
