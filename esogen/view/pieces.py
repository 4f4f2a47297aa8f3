"""A recorded text in pieces: the fewest tokens that make whole characters, and when they came.

One token may be half a character. A piece can be read once all of its tokens are decided, and is as
sure as the least sure of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from esogen.checkpoint.pieces import pieces_of as token_pieces
from esogen.trace_file import RecordedText

if TYPE_CHECKING:
    from esogen.checkpoint.tokenizer import Tokenizer

GIVEN = -1
"""Step of a piece that the user gave."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that is read as one.

    `step` is the call after which it can be read, or `GIVEN`; `certainty` the probability in [0, 1]
    that the model itself gave to the least sure of its tokens when it decided it, 1 if given.
    """

    text: str
    step: int
    certainty: float


def pieces_of(text: RecordedText, tokenizer: "Tokenizer", *, raw: bool) -> tuple[Piece, ...]:
    """The pieces of the finished text, which ends at its end-of-text unless `raw`."""
    kept = _kept(text.tokens, tokenizer.end_of_text, raw=raw)
    runs = token_pieces([text.tokens[position] for position in kept], tokenizer)
    return tuple(_piece(text, run.text, kept[run.start : run.end]) for run in runs)


def _piece(text: RecordedText, words: str, positions: Sequence[int]) -> Piece:
    step = max(text.steps[position] for position in positions)
    return Piece(words, step, exp(min(0.0, *(text.log_probs[position] for position in positions))))


def _kept(tokens: Sequence[int], end_of_text: int, *, raw: bool) -> range:
    """Positions that are part of the finished text."""
    ends = not raw and end_of_text in tokens
    return range(tokens.index(end_of_text) if ends else len(tokens))
