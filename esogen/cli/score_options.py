"""The options of `esogen score` that no other command has."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from esogen.cli.options import SHARE, completing, real_option, whole_option, word

FormatWord = Literal["text", "json", "jsonl", "csv"]
ByWord = Literal["surprisal", "rank", "gain"]
BoundWord = Literal["exact", "nelbo"]
OrderWord = Literal["left-to-right", "random", "blocks", "streams"]
ORDERS: tuple[OrderWord, ...] = get_args(OrderWord)
"""Orders that need no file."""
read_order = word("--order", ORDERS, besides=", given:FILE")
"""The parser of those."""

_WHAT, _HOW = "What is scored", "How it is scored"
_SHOWN, _WHERE, _WITH = "What is shown", "Where it goes", "What it runs on"

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE",
        show_default=False,
        help="Text, JSON lines (.jsonl) or either as .xz; - is stdin.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option("--text", metavar="TEXT", help="Score TEXT itself.", rich_help_panel=_WHAT),
]
Field = Annotated[
    str | None,
    typer.Option(
        "--field",
        metavar="NAME",
        show_default="text, for .jsonl",
        help="FILE is JSON lines; NAME is the field that holds the text.",
        rich_help_panel=_WHAT,
    ),
]
Lines = Annotated[
    bool,
    typer.Option("--lines", help="Every line is a text of its own.", rich_help_panel=_WHAT),
]
EndOfText = Annotated[
    bool,
    typer.Option(
        "--end-of-text",
        help="Count the end of each text as a token of it.",
        rich_help_panel=_WHAT,
    ),
]

Order = Annotated[
    str | None,
    typer.Option(
        "--order",
        metavar="left-to-right|random|blocks|streams|given:FILE",
        autocompletion=completing((*ORDERS, "given:")),
        show_default="left-to-right; random with --orders or --alpha-0",
        help="In which order tokens are decided; FILE has a permutation a line.",
        rich_help_panel=_HOW,
    ),
]
Orders = Annotated[
    int | None,
    whole_option(
        "--orders",
        _HOW,
        "Take the importance-weighted bound of K orders.",
        metavar="K",
        show_default="1",
    ),
]
Alpha0 = Annotated[
    float | None,
    real_option(
        "--alpha-0",
        _HOW,
        "Share of tokens in that order; the rest is left to right.",
        *SHARE,
        metavar="0..1",
        show_default="1",
    ),
]
Steps = Annotated[
    int | None,
    whole_option(
        "--steps",
        _HOW,
        "Block steps of the orders blocks and streams.",
        short="-s",
        show_default="the model's own, else a quarter of its length",
    ),
]
Bound = Annotated[
    BoundWord,
    typer.Option(
        "--bound",
        parser=word("--bound", get_args(BoundWord)),
        metavar="|".join(get_args(BoundWord)),
        help="nelbo is the training bound, as papers report it.",
        rich_help_panel=_HOW,
    ),
]
TimeSamples = Annotated[
    int,
    whole_option("--time-samples", _HOW, "Draws of masks for each window, for --bound nelbo."),
]
Seed = Annotated[
    int,
    whole_option("--seed", _HOW, "The same seed takes the same orders.", 0),
]
Context = Annotated[
    int | None,
    whole_option(
        "--context",
        _HOW,
        "Tokens that a window of a long text is given.",
        0,
        show_default="a quarter of the model's length; 0 for nelbo",
    ),
]
Stride = Annotated[
    int | None,
    whole_option(
        "--stride",
        _HOW,
        "Tokens that a window of a long text counts.",
        show_default="the rest of the model's length",
    ),
]

HeatMap = Annotated[
    bool | None,
    typer.Option(
        "--heat-map/--no-heat-map",
        show_default="on a terminal with colours",
        help="Paint each word by its number.",
        rich_help_panel=_SHOWN,
    ),
]
By = Annotated[
    ByWord,
    typer.Option(
        "--by",
        parser=word("--by", get_args(ByWord)),
        metavar="|".join(get_args(ByWord)),
        help="The number; gain is what the rest of the text tells of a word.",
        rich_help_panel=_SHOWN,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Heat map as a page.", rich_help_panel=_SHOWN),
]
Svg = Annotated[
    Path | None,
    typer.Option("--svg", metavar="FILE", help="Heat map as a picture.", rich_help_panel=_SHOWN),
]
Top = Annotated[
    int,
    whole_option(
        "--top", _SHOWN, "List the N least expected words, and what the model would have said.", 0
    ),
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Set the FILEs side by side.", rich_help_panel=_SHOWN),
]
Rank = Annotated[
    bool,
    typer.Option("--rank", help="Write the lines of FILE, best first.", rich_help_panel=_SHOWN),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="MODEL",
        help="Score with this model too, and tell the difference.",
        rich_help_panel=_SHOWN,
    ),
]

Format = Annotated[
    FormatWord,
    typer.Option(
        "--format",
        parser=word("--format", get_args(FormatWord)),
        metavar="|".join(get_args(FormatWord)),
        help="json, jsonl and csv have every token; jsonl as soon as a text is finished.",
        rich_help_panel=_WHERE,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FILE",
        help="Keep what is finished in FILE, and go on from it.",
        rich_help_panel=_WHERE,
    ),
]
BatchSize = Annotated[
    int | None,
    whole_option(
        "--batch-size",
        _WITH,
        "Full windows read at once; does not change the figures.",
        show_default="by length",
    ),
]
