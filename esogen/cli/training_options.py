"""The options of `esogen train`.

Defaults suit a small run on one machine; what the published recipe says otherwise stands beside.
"""

from pathlib import Path
from typing import Annotated, Final, get_args

import typer

from esogen.checkpoint.config_file import SCHEDULES, Schedule
from esogen.cli.options import SHARE, real_option, whole_option, word_option
from esogen.model import config
from esogen.training import settings
from esogen.training.settings import Shape

DTYPES: Final = ("bf16", "fp32")
PUBLISHED_WARMUP: Final = 2500
MICRO_BATCH: Final = 32

_SHAPE = Shape()

_DATA, _RECIPE, _MODEL = "Text", "Recipe", "Network"
_KEPT, _WITH, _CARD = (
    "What is kept",
    "What it runs on",
    "Settings the model asks to be sampled with",
)

_ABOVE_0 = "a number above 0", lambda x: 0 < x < float("inf")
_FROM_0 = "a number of at least 0", lambda x: 0 <= x < float("inf")
_BELOW_1 = "a number from 0 up to but not 1", lambda x: 0 <= x < 1

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        show_default=False,
        help="UTF-8 text, plain or .xz; a line <|endoftext|> parts two texts. Or tokens, as"
        " esogen tokenize wrote them.",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", show_default=False, help="The folder that is written."
    ),
]
Layout = Annotated[
    settings.Layout,
    word_option(
        "--layout",
        _DATA,
        "One whole text a row, or all texts end to end (published: packed).",
        get_args(settings.Layout),
    ),
]
Length = Annotated[
    int | None,
    whole_option(
        "--length",
        _DATA,
        "Tokens of a row, and of the longest text.",
        short="-L",
        show_default=str(_SHAPE.length),
    ),
]
VocabSize = Annotated[
    int | None,
    whole_option(
        "--vocab-size",
        _DATA,
        "Tokens that the tokenizer learns, the mask token among them.",
        258,
        show_default=str(_SHAPE.vocab_size),
    ),
]
TokenizerFile = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FILE",
        show_default="trained on FILE...",
        help="A tokenizer.json to use as it is.",
        rich_help_panel=_DATA,
    ),
]
Valid = Annotated[
    Path | None,
    typer.Option(
        "--valid",
        metavar="FILE",
        show_default=False,
        help="Texts kept apart, to measure bits per byte on.",
        rich_help_panel=_DATA,
    ),
]

Steps = Annotated[int, whole_option("--steps", _RECIPE, "Updates of the weights.", short="-s")]
Alpha0 = Annotated[
    list[float] | None,
    real_option(
        "--alpha-0",
        _RECIPE,
        "Share of the diffusion phase to train for; repeat it to serve several.",
        *SHARE,
        show_default="1",
    ),
]
BatchSize = Annotated[
    int, whole_option("--batch-size", _RECIPE, "Rows behind one update (published: 512).")
]
MicroBatch = Annotated[
    int | None,
    whole_option(
        "--micro-batch",
        _RECIPE,
        "Rows in memory at once; gradients are added up.",
        show_default=f"the batch, at most {MICRO_BATCH}",
    ),
]
LearningRate = Annotated[
    float,
    real_option(
        "--learning-rate", _RECIPE, "Highest rate of AdamW (published: 0.0003).", *_ABOVE_0
    ),
]
Warmup = Annotated[
    int | None,
    whole_option(
        "--warmup",
        _RECIPE,
        "Steps until the rate is reached (published: 2500).",
        0,
        show_default=f"a tenth of the steps, at most {PUBLISHED_WARMUP}",
    ),
]
Decay = Annotated[
    settings.Decay,
    word_option(
        "--decay",
        _RECIPE,
        "How the rate falls after the warm-up (published: constant).",
        get_args(settings.Decay),
    ),
]
WeightDecay = Annotated[
    float, real_option("--weight-decay", _RECIPE, "Of AdamW (as published).", *_FROM_0)
]
Clip = Annotated[
    float, real_option("--clip", _RECIPE, "Largest norm of a gradient (as published).", *_ABOVE_0)
]
Ema = Annotated[
    float,
    real_option(
        "--ema", _RECIPE, "Decay of the average that becomes the model (as published).", *_BELOW_1
    ),
]
Seed = Annotated[
    int,
    whole_option("--seed", _RECIPE, "The same seed, text and settings give the same weights.", 0),
]

Family = Annotated[
    config.Family | None,
    word_option(
        "--family",
        _MODEL,
        "The kind of model, each with its own published objective.",
        config.FAMILIES,
        show_default=f"{settings.FAMILY}, or as in --init",
    ),
]
BlockSize = Annotated[
    int | None,
    whole_option(
        "--block-size",
        _MODEL,
        "Tokens of a block of bd3lm (published: 4, 8, 16).",
        show_default=str(_SHAPE.block_size),
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="FOLDER",
        show_default="fresh weights",
        help="A model to train further, with its network and tokenizer.",
        rich_help_panel=_MODEL,
    ),
]
HiddenSize = Annotated[
    int | None,
    whole_option(
        "--hidden-size", _MODEL, "Width of the network.", show_default=str(_SHAPE.hidden_size)
    ),
]
Blocks = Annotated[
    int | None,
    whole_option(
        "--blocks",
        _MODEL,
        "Depth of the network; more than --init has are added so that it computes the same.",
        show_default=f"{_SHAPE.blocks}, or as in --init",
    ),
]
Heads = Annotated[
    int | None,
    whole_option("--heads", _MODEL, "Attention heads of a block.", show_default=str(_SHAPE.heads)),
]
CondDim = Annotated[
    int | None,
    whole_option(
        "--cond-dim",
        _MODEL,
        "Width of adaLN's condition (published: 128).",
        show_default=str(_SHAPE.cond_dim),
    ),
]
Dropout = Annotated[
    float | None,
    real_option(
        "--dropout", _MODEL, "Dropout (as published).", *_BELOW_1, show_default=str(_SHAPE.dropout)
    ),
]

Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        show_default="with --layout whole, or as in --init",
        help="Begin every text from end-of-text, so that its first tokens know where they stand.",
        rich_help_panel=_MODEL,
    ),
]

SaveEvery = Annotated[int, whole_option("--save-every", _KEPT, "Steps between two savings.")]
ValidEvery = Annotated[
    int, whole_option("--valid-every", _KEPT, "Steps between two measurements on --valid.")
]
SaveDtype = Annotated[
    str,
    word_option(
        "--save-dtype",
        _KEPT,
        "Precision of the model's weights; bf16 halves the file.",
        DTYPES,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the interrupted run in DIR, given the same command.",
        rich_help_panel=_KEPT,
    ),
]
Minutes = Annotated[
    float | None,
    real_option(
        "--minutes",
        _KEPT,
        "Stop after so long, with everything saved for --resume.",
        *_ABOVE_0,
        show_default=False,
    ),
]
CardLength = Annotated[
    int | None, whole_option("--card-length", _CARD, "Default --length.", show_default=False)
]
CardSteps = Annotated[
    int | None, whole_option("--card-steps", _CARD, "Default --steps.", show_default=False)
]
CardAlpha0 = Annotated[
    float | None,
    real_option("--card-alpha-0", _CARD, "Default --alpha-0.", *SHARE, show_default=False),
]
CardSchedule = Annotated[
    Schedule | None,
    word_option("--card-schedule", _CARD, "Default --schedule.", SCHEDULES, show_default=False),
]

Dtype = Annotated[
    str,
    word_option(
        "--dtype",
        _WITH,
        "Precision of the arithmetic; auto is bf16 on a GPU that has it.",
        ("auto", *DTYPES),
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        show_default="on a GPU",
        help="Compile the network: slow to start, then faster.",
        rich_help_panel=_WITH,
    ),
]
Attention = Annotated[
    str,
    word_option(
        "--attention",
        _WITH,
        "How masks and text in one input attend: in tiles, or by a block-sparse kernel compiled"
        " for a GPU.",
        ("sdpa", "flex"),
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Write nothing but what goes wrong.", rich_help_panel=_WITH),
]
