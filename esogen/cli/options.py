"""The options that commands share: the same word, range and help everywhere.

Values are parsed here, so that a wrong one is told the flag, the value, the range and the nearest
right thing to type before anything is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from glob import escape, glob
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer

from esogen.checkpoint import config_file, resolve
from esogen.checkpoint.known import MODEL_VARIABLE, PUBLISHED
from esogen.errors import UsageError
from esogen.view import theme

FormatWord = Literal["text", "json", "jsonl"]

LARGEST = 2**63 - 1
"""Of any whole number: what fits 64 bits."""

_WHAT, _HOW = "What is written", "How it is drawn"
_WHERE, _WITH = "Where it goes", "What it runs on"
_SEEN = "How it is shown"
_CARD = "the model's own"

Fits = Callable[[float], bool]
SHARE: tuple[str, Fits] = "a number from 0 to 1", lambda x: 0 <= x <= 1
W = TypeVar("W", bound=str)


def given(ctx: typer.Context, name: str) -> bool:
    """Whether a value was typed, and is not the default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


Apart = Mapping[str, Sequence[str]]
"""Ways to call a command and other such ways: each a flag, a flag with a value, or, where it is the
case, words."""


def keep_apart(ctx: typer.Context, apart: Apart) -> None:
    """Raise `UsageError` where two were typed of which the first leaves the second without effect.

    `apart` has the second ones by the first.
    """
    for way, others in apart.items():
        other = next((other for other in others if _typed(ctx, way) and _typed(ctx, other)), None)
        if other:
            raise UsageError(f"{way} and {other} exclude each other; give one of them")


def keep_together(ctx: typer.Context, together: Apart) -> None:
    """Raise `UsageError` where one was typed that has no effect without another, and that was not.

    `together` has those that will do by those that need one of them.
    """
    for way, needed in together.items():
        if _typed(ctx, way) and not any(_typed(ctx, other) for other in needed):
            raise UsageError(f"{way} is for {' or '.join(needed)}; give both, or leave {way} out")


def _typed(ctx: typer.Context, way: str) -> bool:
    flag, _, value = way.partition(" ")
    if not flag.startswith("-"):
        return True
    for option in ctx.command.params:
        if option.name and flag in (*option.opts, *option.secondary_opts):
            found = ctx.params[option.name]
            meant = found is not (flag in option.secondary_opts) and value in ("", str(found))
            return meant and given(ctx, option.name)
    raise LookupError(flag)


def whole(flag: str, least: int = 1, besides: str = "") -> Callable[[str | int], int]:
    """A parser of whole numbers from `least`; what may be said `besides` is for the message."""

    def parse(value: str | int) -> int:
        wanted = f"a whole number of at least {least}{besides}"
        try:
            number = int(value)
        except ValueError:
            raise _wrong(flag, repr(value), wanted, _nearest_whole(str(value), least)) from None
        if number < least:
            raise _wrong(flag, str(number), wanted, str(least))
        if number > LARGEST:
            raise _wrong(flag, str(number), f"at most {LARGEST}", None)
        return number

    return parse


def real(flag: str, wanted: str, fits: Fits) -> Callable[[str | float], float]:
    """A parser of numbers that fit; `wanted` says in words which do."""

    def parse(value: str | float) -> float:
        try:
            number = float(value)
        except ValueError:
            raise _wrong(flag, repr(value), wanted, _with_point(str(value), fits)) from None
        if not fits(number):
            raise _wrong(flag, f"{number:g}", wanted, _nearest_real(number, fits))
        return number

    return parse


def drafts_of(
    draft: str | None, costs: str | None, *, verify: bool, kept: bool = False
) -> tuple[int | Literal["auto"] | None, tuple[float, ...] | None]:
    """What `--draft` and `--draft-costs` say, in a run whose texts are `kept` to be gone on with.

    Raises `UsageError`, also where other flags exclude them.
    """
    if draft is not None and verify:
        raise UsageError(
            "--verify compares runs of one plan, and --draft finds its own on the way;"
            " leave one of them out"
        )
    if draft == "auto" and costs is None and kept:
        raise UsageError(
            "--draft auto would measure anew whenever the folder is gone on with; give"
            " --draft-costs too, or a number of drafts"
        )
    each = real("--draft-costs", "numbers above 0 with commas between", lambda x: 0 < x < inf)
    of_costs = None if costs is None else tuple(map(each, costs.split(",")))
    return None if draft is None else drafts(draft), of_costs


def drafts(value: str) -> int | Literal["auto"]:
    """How many tokens are drafted. Raises `UsageError`."""
    return "auto" if value == "auto" else whole("--draft", besides=", or auto")(value)


def word(flag: str, words: Sequence[W], besides: str = "") -> Callable[[str], W]:
    """A parser of one of these words; what may be said `besides` is for the message."""

    def parse(value: str) -> W:
        for known in words:
            if value == known:
                return known
        near = next(map(str, get_close_matches(value.lower(), words, n=1)), None)
        raise _wrong(flag, repr(value), f"one of {', '.join(words)}{besides}", near)

    return parse


def completing(words: Sequence[str]) -> Callable[[str], list[str]]:
    """What a shell offers for an option that takes one of these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """What a shell offers for a model: the built-in and short names, then folders."""
    names = [name for name in (*resolve.BUILT_IN, *PUBLISHED) if name.startswith(incomplete)]
    return names + sorted(glob(f"{escape(incomplete)}*/"))  # noqa: PTH207 - any path


def _wrong(flag: str, found: str, wanted: str, near: str | None) -> UsageError:
    hint = f"; did you mean {flag} {near}?" if near else ""
    return UsageError(f"{flag} is {found}; it must be {wanted}{hint}")


def _nearest_whole(value: str, least: int) -> str | None:
    with suppress(ValueError, OverflowError):
        return str(max(least, int(float(value))))
    return None


def _nearest_real(number: float, fits: Fits) -> str | None:
    """A share given in percent as a share, else 0, or 1 where that is the largest that fits."""
    one = () if fits(2.0) else (1.0,)
    guesses = (number / 100, *one) if number > 2 else one if number > 1 else (0.0, *one)
    return next((f"{guess:g}" for guess in guesses if fits(guess)), None)


def _with_point(value: str, fits: Fits) -> str | None:
    """A number written with a decimal comma, with a point."""
    with suppress(ValueError):
        number = float(value.replace(",", "."))
        return f"{number:g}" if fits(number) else _nearest_real(number, fits)
    return None


def whole_option(flag: str, panel: str, words: str, least: int = 1, **more: Any) -> Any:
    """An option that takes a whole number from `least`."""
    return _option(flag, panel, words, **{"parser": whole(flag, least), "metavar": "N", **more})


def real_option(flag: str, panel: str, words: str, wanted: str, fits: Fits, **more: Any) -> Any:
    """An option that takes a number that fits; `wanted` says in words which do."""
    parser = real(flag, wanted, fits)
    return _option(flag, panel, words, **{"parser": parser, "metavar": "X", **more})


def word_option(flag: str, panel: str, words: str, choices: Sequence[str], **more: Any) -> Any:
    """An option that takes one of these words, which a shell offers."""
    more |= {"parser": word(flag, choices), "autocompletion": completing(choices)}
    return _option(flag, panel, words, metavar="|".join(choices), **more)


def _option(flag: str, panel: str, words: str, *, short: str | None = None, **more: Any) -> Any:
    names = [flag] if short is None else [flag, short]
    return typer.Option(*names, help=words, rich_help_panel=panel, **more)


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        metavar="MODEL",
        autocompletion=complete_model,
        help="A built-in or short name, a model folder, or owner/name\\[@revision] on the hub.",
        rich_help_panel=_WITH,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cuda|cuda:N|cpu",
        autocompletion=completing(("auto", "cuda", "cpu")),
        help="Where to run; auto is a GPU where there is one.",
        rich_help_panel=_WITH,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="auto|bf16|fp16|fp32",
        autocompletion=completing(("auto", "bf16", "fp16", "fp32")),
        help="Precision; auto on a CPU is fp32, or what is quicker.",
        rich_help_panel=_WITH,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="auto|triton|xformers|sdpa",
        autocompletion=completing(("auto", "triton", "xformers", "sdpa")),
        help="Kernels for attention through the cache; auto is triton on a GPU, else sdpa.",
        rich_help_panel=_WITH,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="0,1,...",
        show_default="one process",
        help="One process on each of these GPUs, or of cuda:N and cpu; with --output-dir.",
        rich_help_panel=_WITH,
    ),
]
BatchSize = Annotated[
    int | None,
    whole_option(
        "--batch-size",
        _WITH,
        "Texts made at once, halved where memory is too little; does not change them.",
        show_default="what memory has room for",
    ),
]
NoKvCache = Annotated[
    bool,
    typer.Option(
        "--no-kv-cache",
        help="Run the whole text through the network in every step: slow.",
        rich_help_panel=_WITH,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Afterwards, compare the first batch with and without the KV cache.",
        rich_help_panel=_WITH,
    ),
]

Length = Annotated[
    int | None,
    whole_option(
        "--length",
        _WHAT,
        "The whole text in tokens, PROMPT included.",
        short="-L",
        show_default=_CARD,
    ),
]
NumSamples = Annotated[
    int,
    whole_option("--num-samples", _WHAT, "How many texts.", short="-n"),
]
BestOf = Annotated[
    int,
    whole_option(
        "--best-of", _WHAT, "Make N for each text, and keep the most probable one, per token."
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Write the whole length, also what follows the end of the text.",
        rich_help_panel=_WHAT,
    ),
]
Seed = Annotated[
    int | None,
    whole_option("--seed", _WHAT, "The same seed gives the same texts.", 0, show_default="drawn"),
]

Steps = Annotated[
    int | None,
    whole_option(
        "--steps",
        _HOW,
        "Steps of the diffusion phase, or blocks: fewer are faster.",
        short="-s",
        show_default=f"{_CARD}, else a quarter of the length",
    ),
]
Alpha0 = Annotated[
    float | None,
    real_option(
        "--alpha-0",
        _HOW,
        "Share of the diffusion phase: 1 is all diffusion, 0 all left to right.",
        *SHARE,
        metavar="0..1",
        show_default=f"{_CARD}, else 1",
    ),
]
Schedule = Annotated[
    config_file.Schedule | None,
    typer.Option(
        "--schedule",
        parser=word("--schedule", config_file.SCHEDULES),
        metavar="|".join(config_file.SCHEDULES),
        show_default=f"{_CARD}, else random",
        help="Which tokens are decided together.",
        rich_help_panel=_HOW,
    ),
]
Temperature = Annotated[
    float,
    real_option(
        "--temperature",
        _HOW,
        "Below 1 is safer, above 1 wilder; 0 takes the most probable token.",
        "a number of at least 0",
        lambda x: 0 <= x < float("inf"),
        short="-t",
        metavar="T",
    ),
]
TopP = Annotated[
    float,
    real_option(
        "--top-p",
        _HOW,
        "Draw from the most probable tokens that make up P; 1 is all.",
        "a number above 0 and at most 1",
        lambda x: 0 < x <= 1,
        metavar="P",
    ),
]
TopK = Annotated[
    int | None,
    whole_option(
        "--top-k", _HOW, "Draw from the K most probable tokens.", metavar="K", show_default="all"
    ),
]

Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="K|auto",
        autocompletion=completing(("auto",)),
        show_default="none",
        help="As good as one token per step, in fewer calls: draft K at once, verify them all.",
        rich_help_panel=_HOW,
    ),
]
DraftCosts = Annotated[
    str | None,
    typer.Option(
        "--draft-costs",
        metavar="C1,C2,C4,...",
        show_default="measured",
        help="What calls cost that draft 1, 2, 4, ... tokens, for --draft auto.",
        rich_help_panel=_HOW,
    ),
]

Format = Annotated[
    FormatWord,
    typer.Option(
        "--format",
        parser=word("--format", get_args(FormatWord)),
        metavar="|".join(get_args(FormatWord)),
        help="jsonl writes each text as soon as it is finished, json one array.",
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
        help="Write to FILE, whole or not at all.",
        rich_help_panel=_WHERE,
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        show_default="none",
        help="Write JSON lines into files in DIR, each text when it is there; the same command"
        " goes on with what DIR lacks, and torchrun shares the texts out.",
        rich_help_panel=_WHERE,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        show_default="none",
        help="Record the run in FILE, for esogen replay.",
        rich_help_panel=_WHERE,
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        "--separator",
        metavar="TEXT",
        show_default="---",
        help="The line between two texts.",
        rich_help_panel=_WHERE,
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null",
        "-0",
        help="End each text with a NUL character instead.",
        rich_help_panel=_WHERE,
    ),
]
Live = Annotated[
    bool | None,
    typer.Option(
        "--live/--no-live",
        show_default="on a terminal",
        help="Watch the masks become text.",
        rich_help_panel=_SEEN,
    ),
]
Theme = Annotated[
    theme.ThemeWord,
    word_option("--theme", _SEEN, "The colours of the live view.", [*theme.THEMES]),
]
ColorBy = Annotated[
    theme.ColorBy,
    word_option(
        "--color-by",
        _SEEN,
        "How sure a token is, when it came, or with which others.",
        theme.COLOR_BY,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Write nothing to the terminal but the texts and what goes wrong.",
        rich_help_panel=_SEEN,
    ),
]
NoColor = Annotated[
    bool,
    typer.Option("--no-color", help="Write in one colour.", rich_help_panel=_SEEN),
]
