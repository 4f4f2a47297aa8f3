"""The options of `esogen bench`; those of its grid take several values, with commas between."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import typer

from esogen.bench.cases import BLOCK_SIZE, SIZES
from esogen.bench.paper import TIMED_STEPS
from esogen.bench.tables import FormatWord
from esogen.cli.options import complete_model, completing, real, whole, word
from esogen.model.config import FAMILIES
from esogen.model.config import Family as FamilyWord

_GRID, _WITH, _WHERE = "What is measured", "What it runs on", "Where it goes"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Several(Generic[T]):
    """The values of an option with commas between."""

    values: tuple[T, ...]


def several(parse: Callable[[str], T]) -> Callable[[str], Several[T]]:
    """A parser of values with commas between, each by `parse`."""
    return lambda text: Several(
        tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))
    )


def _list(flag: str, panel: str, parse: Callable[[str], Any], words: str, **more: Any) -> Any:
    names = [flag, *more.pop("short", ())]
    return typer.Option(
        *names,
        parser=several(parse),
        help=words,
        rich_help_panel=panel,
        **{"metavar": "N,..."} | more,
    )


Family = Annotated[
    Several[FamilyWord] | None,
    _list(
        "--family",
        _GRID,
        word("--family", FAMILIES),
        "Which samplers.",
        metavar="|".join(FAMILIES),
        show_default="esolm-b, or the model's own",
    ),
]
Length = Annotated[
    Several[int] | None,
    _list(
        "--length",
        _GRID,
        whole("--length"),
        "Tokens of a text.",
        short=["-L"],
        show_default="the network's own",
    ),
]
Steps = Annotated[
    Several[int] | None,
    _list(
        "--steps",
        _GRID,
        whole("--steps"),
        "Steps of the diffusion phase, or blocks.",
        short=["-s"],
        show_default="a quarter of the length",
    ),
]
Alpha0 = Annotated[
    Several[float] | None,
    _list(
        "--alpha-0",
        _GRID,
        real("--alpha-0", "a number from 0 to 1", lambda x: 0 <= x <= 1),
        "Share of the diffusion phase.",
        metavar="X,...",
        show_default="1",
    ),
]
BatchSize = Annotated[
    Several[int] | None,
    _list("--batch-size", _GRID, whole("--batch-size"), "Texts made at once.", show_default="1"),
]
BlockSize = Annotated[
    Several[int] | None,
    _list(
        "--block-size",
        _GRID,
        whole("--block-size"),
        "Tokens of a block of bd3lm.",
        show_default=f"{BLOCK_SIZE}, or the model's own",
    ),
]
Paper = Annotated[
    bool,
    typer.Option(
        "--paper",
        help="Instead of a grid, the tables of speed of the paper, beside the published ratios.",
        rich_help_panel=_GRID,
    ),
]
MdlmSteps = Annotated[
    int | None,
    typer.Option(
        "--mdlm-steps",
        parser=whole("--mdlm-steps"),
        metavar="N",
        show_default=str(TIMED_STEPS),
        help="Steps of mdlm that --paper times; their time stands for all.",
        rich_help_panel=_GRID,
    ),
]

Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        parser=word("--size", [*SIZES]),
        metavar="|".join(SIZES),
        autocompletion=completing([*SIZES]),
        show_default="small",
        help="Random weights of this size; small is the published one.",
        rich_help_panel=_WITH,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=complete_model,
        show_default="random weights",
        help="A built-in or short name, a model folder, or owner/name[@revision] on the hub.",
        rich_help_panel=_WITH,
    ),
]

Repeats = Annotated[
    int,
    typer.Option(
        "--repeats",
        parser=whole("--repeats"),
        metavar="N",
        help="Runs timed of each row, after one that is not; the median counts.",
        rich_help_panel=_GRID,
    ),
]
OneShot = Annotated[
    bool,
    typer.Option(
        "--one-shot",
        help="Time the first and second run of a fresh process too.",
        rich_help_panel=_GRID,
    ),
]

Format = Annotated[
    FormatWord,
    typer.Option(
        "--format",
        parser=word("--format", get_args(FormatWord)),
        help="How the rows are written; a line of JSON with everything comes last.",
        rich_help_panel=_WHERE,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default="stdout",
        help="Write the rows to FILE; stdout gets the line of JSON.",
        rich_help_panel=_WHERE,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        show_default="none",
        help="Draw time against length, and tokens/s against batch: .svg, .png or .pdf.",
        rich_help_panel=_WHERE,
    ),
]
