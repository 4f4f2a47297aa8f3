"""The options of `esogen infill` that no other command has."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from esogen.cli.options import whole_option
from esogen.errors import UsageError

_BLANKS, _RANKING, _WAYS = "Which blanks", "Which candidates", "Other ways to work"
_WITH = "What it runs on"


def share(flag: str) -> Callable[[str | float], float]:
    """A parser of shares above 0: 30% or 0.3."""

    def parse(value: str | float) -> float:
        text = str(value)
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = math.nan
        if not 0 < number <= 1:
            near = (
                f"; did you mean {flag} {text}%?" if 1 < number <= 100 and "%" not in text else ""
            )
            raise UsageError(f"{flag} is {text!r}; it must be a share such as 30% or 0.3{near}")
        return number

    return parse


Template = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEMPLATE",
        show_default=False,
        help="Text with blanks: \\[MASK], \\[MASK:8], \\[MASK:2-8] or ___; - is stdin.",
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        show_default=False,
        help="Read the template from FILE.",
        rich_help_panel=_BLANKS,
    ),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="POS:WORD",
        show_default=False,
        help="Fix a word at a position of a blank, in tokens from 0; may be repeated.",
        rich_help_panel=_BLANKS,
    ),
]
StartsWith = Annotated[
    str,
    typer.Option(
        "--starts-with",
        metavar="TEXT",
        show_default=False,
        help="What the text begins with, before TEMPLATE or instead of one.",
        rich_help_panel=_BLANKS,
    ),
]
EndsWith = Annotated[
    str,
    typer.Option(
        "--ends-with",
        metavar="TEXT",
        show_default=False,
        help="What the text ends with.",
        rich_help_panel=_BLANKS,
    ),
]
Length = Annotated[
    int | None,
    whole_option(
        "--length",
        _BLANKS,
        "Without TEMPLATE: the whole text in tokens, one blank between its two ends.",
        short="-L",
        show_default=False,
    ),
]
EndAllowed = Annotated[
    bool,
    typer.Option(
        "--allow-end",
        help="Let a blank hold an end of text; what it draws behind that is left out.",
        rich_help_panel=_BLANKS,
    ),
]
Candidates = Annotated[
    int,
    whole_option(
        "--num-samples", _RANKING, "Candidates made of each combination of lengths.", short="-n"
    ),
]
BatchSize = Annotated[
    int,
    whole_option(
        "--batch-size",
        _WITH,
        "Candidates made at once, halved where memory is too little; does not change them.",
    ),
]
Top = Annotated[
    int,
    whole_option(
        "--top", _RANKING, "Show the K best different fills, as a table or as JSON.", metavar="K"
    ),
]
Orders = Annotated[
    int,
    whole_option(
        "--orders",
        _RANKING,
        "Rank by the text read left to right (1), or by the bound over K random orders.",
        metavar="K",
    ),
]
MaxCombinations = Annotated[
    int,
    whole_option("--max-combinations", _RANKING, "Try at most N combinations of lengths."),
]
Revise = Annotated[
    float | None,
    typer.Option(
        "--revise",
        parser=share("--revise"),
        metavar="SHARE",
        show_default=False,
        help="TEMPLATE is the file of a draft: fill its least likely tokens again, as in 30%.",
        rich_help_panel=_WAYS,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="REGEX",
        show_default=False,
        help="With --revise: leave what matches as it is; may be repeated.",
        rich_help_panel=_WAYS,
    ),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Edit line by line: commands as words from stdin, such as help.",
        rich_help_panel=_WAYS,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the text that was edited last.", rich_help_panel=_WAYS
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="FILE",
        show_default="infill.json in the state folder",
        help="The working file of the editor.",
        rich_help_panel=_WAYS,
    ),
]
Jsonl = Annotated[
    bool,
    typer.Option(
        "--jsonl",
        help='Many templates: lines of JSON strings, or of objects with a "template".',
        rich_help_panel=_WAYS,
    ),
]
