"""A recorded text in pieces: the fewest tokens that make whole characters, and when they came.

One token may be half a character. A piece can be read once all of its tokens are decided, and is as
sure as the least sure of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from esogen.trace_file import RecordedText

if TYPE_CHECKING:
    from esogen.checkpoint.tokenizer import Tokenizer

GIVEN = -1
"""Step of a piece that the user gave."""

_HALF = "\ufffd"
_LONGEST = 8
"""Tokens that may go into one piece before it is taken as it is, broken character or not."""


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
    return tuple(
        Piece(
            words,
            max(text.steps[position] for position in run),
            exp(min(0.0, *(text.log_probs[position] for position in run))),
        )
        for words, run in _runs([text.tokens[position] for position in kept], kept, tokenizer)
    )


def _kept(tokens: Sequence[int], end_of_text: int, *, raw: bool) -> list[int]:
    """Positions that are part of the finished text."""
    end = len(tokens)
    if not raw and end_of_text in tokens:
        end = tokens.index(end_of_text)
    return [position for position in range(end) if tokens[position] != end_of_text]


def _runs(
    ids: Sequence[int], positions: Sequence[int], tokenizer: "Tokenizer"
) -> Iterator[tuple[str, Sequence[int]]]:
    """Each piece of text with its positions.

    A piece is what the tokens add to those before them, so that a tokenizer which puts spaces
    between words puts them here too.
    """
    before = start = 0
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[before:end])
        if whole.endswith(_HALF) and end - start < _LONGEST and end < len(ids):
            continue
        yield whole[len(tokenizer.decode(ids[before:start])) :], positions[start:end]
        before, start = start, end
