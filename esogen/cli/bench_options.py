"""The options of `esogen bench`; those of its grid take several values, with commas between."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import typer

from esogen.bench.cases import BLOCK_SIZE, SIZES, Drafts
from esogen.bench.paper import TIMED_STEPS
from esogen.bench.tables import FormatWord
from esogen.cli.options import complete_model, completing, drafts, real, whole, word
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


def _option(panel: str, words: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=words, rich_help_panel=panel, **more)


def _list(
    parse: Callable[[str], Any], default: str, words: str, *names: str, metavar: str = "N,..."
) -> Any:
    """An option of the grid: values with commas between."""
    parser = several(parse)
    return _option(_GRID, words, *names, parser=parser, metavar=metavar, show_default=default)


Family = Annotated[
    Several[FamilyWord] | None,
    _list(
        word("--family", FAMILIES),
        "esolm-b, or the model's own",
        "Which samplers.",
        "--family",
        metavar="|".join(FAMILIES),
    ),
]
Length = Annotated[
    Several[int] | None,
    _list(whole("--length"), "the network's own", "Tokens of a text.", "--length", "-L"),
]
Steps = Annotated[
    Several[int] | None,
    _list(
        whole("--steps"),
        "a quarter of the length",
        "Steps of the diffusion phase, or blocks.",
        "--steps",
        "-s",
    ),
]
Alpha0 = Annotated[
    Several[float] | None,
    _list(
        real("--alpha-0", "a number from 0 to 1", lambda x: 0 <= x <= 1),
        "1",
        "Share of the diffusion phase.",
        "--alpha-0",
        metavar="X,...",
    ),
]
Draft = Annotated[
    Several[Drafts] | None,
    _list(
        drafts,
        "none",
        "Verified drafts instead of steps: K at once, or as many as pay; 1 is one token a step.",
        "--draft",
        metavar="K|auto,...",
    ),
]
BatchSize = Annotated[
    Several[int] | None,
    _list(whole("--batch-size"), "1", "Texts made at once.", "--batch-size"),
]
BlockSize = Annotated[
    Several[int] | None,
    _list(
        whole("--block-size"),
        f"{BLOCK_SIZE}, or the model's own",
        "Tokens of a block of bd3lm.",
        "--block-size",
    ),
]
Paper = Annotated[
    bool,
    _option(
        _GRID,
        "Instead of a grid, the tables of speed of the paper, beside the published ratios.",
        "--paper",
    ),
]
MdlmSteps = Annotated[
    int | None,
    _option(
        _GRID,
        "Steps of mdlm that --paper times; their time stands for all.",
        "--mdlm-steps",
        parser=whole("--mdlm-steps"),
        metavar="N",
        show_default=str(TIMED_STEPS),
    ),
]
Repeats = Annotated[
    int,
    _option(
        _GRID,
        "Runs timed of each row, after one that is not; the median counts.",
        "--repeats",
        parser=whole("--repeats"),
        metavar="N",
    ),
]
OneShot = Annotated[
    bool,
    _option(_GRID, "Time the first and second run of a fresh process too.", "--one-shot"),
]
Profile = Annotated[
    bool,
    _option(_GRID, "Tell what a step is made of: operations, or kernels of a GPU.", "--profile"),
]

Size = Annotated[
    str | None,
    _option(
        _WITH,
        "Random weights of this size; small is the published one.",
        "--size",
        parser=word("--size", [*SIZES]),
        metavar="|".join(SIZES),
        autocompletion=completing([*SIZES]),
        show_default="small",
    ),
]
Model = Annotated[
    str | None,
    _option(
        _WITH,
        "A built-in or short name, a model folder, or owner/name\\[@revision] on the hub.",
        "--model",
        "-m",
        metavar="MODEL",
        autocompletion=complete_model,
        show_default="random weights",
    ),
]

Format = Annotated[
    FormatWord,
    _option(
        _WHERE,
        "How the rows are written; a line of JSON with everything comes last.",
        "--format",
        parser=word("--format", get_args(FormatWord)),
        metavar="|".join(get_args(FormatWord)),
    ),
]
Output = Annotated[
    Path | None,
    _option(
        _WHERE,
        "Write the rows to FILE; stdout gets the line of JSON.",
        "--output",
        "-o",
        metavar="FILE",
        show_default="stdout",
    ),
]
Plot = Annotated[
    Path | None,
    _option(
        _WHERE,
        "Draw time against length, and tokens/s against batch: .svg, .png or .pdf.",
        "--plot",
        metavar="FILE",
        show_default="none",
    ),
]
