"""The words that a model expected least, and what it would have said in their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import exp, log

from esogen.checkpoint.pieces import Decoder, Piece, pieces_of
from esogen.likelihood import Numbers
from esogen.scoring.score import Score

ALTERNATIVES = 3
"""What the model would have said is told by so many tokens."""


@dataclass(frozen=True, slots=True)
class Surprise:
    """A word, where its first token stands, and its surprisal in bits.

    `instead`: what stood in the word up to its least expected token, with each of the most probable
    tokens in place of that, and its probability in [0, 1].
    """

    word: str
    position: int
    bits: float
    instead: tuple[tuple[str, float], ...]


def surprises(score: Score, tokenizer: Decoder, count: int) -> list[Surprise]:
    """The `count` least expected words of a text that was scored with `best` tokens a position."""
    log_probs_L = score.log_probs_L
    if log_probs_L is None:
        return []
    pieces = list(pieces_of(score.tokens, tokenizer))
    ranked = nsmallest(
        count,
        filter(_is_word, _words(pieces)),
        key=lambda word: float(log_probs_L[word[0].start : word[-1].end].sum()),
    )
    return [_surprise(word, score, log_probs_L, tokenizer) for word in ranked]


def _words(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces that no space parts, together, with the space before them."""
    word: list[Piece] = []
    for piece in pieces:
        parted = piece.text[:1].isspace() or (word and word[-1].text[-1:].isspace())
        if parted and _is_word(word):
            yield word
            word = []
        word.append(piece)
    if word:
        yield word


def _is_word(word: list[Piece]) -> bool:
    return bool(_text(word))


def _text(word: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in word).strip()


def _surprise(
    word: list[Piece], score: Score, log_probs_L: Numbers, tokenizer: Decoder
) -> Surprise:
    start, end = word[0].start, word[-1].end
    least = start + int(log_probs_L[start:end].argmin())
    instead: list[tuple[str, float]] = []
    if score.best_LN is not None and score.best_log_probs_LN is not None:
        pairs = zip(score.best_LN[least], score.best_log_probs_LN[least], strict=True)
        instead = [
            (tokenizer.decode([*score.tokens[start:least], int(token)]).strip(), exp(log_prob))
            for token, log_prob in pairs
        ]
    bits = -float(log_probs_L[start:end].sum()) / log(2)
    return Surprise(_text(word), start, bits, tuple(instead))
