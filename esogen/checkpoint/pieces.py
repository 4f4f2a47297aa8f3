"""Token ids as text: the fewest tokens that make whole characters are shown as one."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

_HALF = "\ufffd"
_LONGEST = 8
"""Tokens that may go into one piece before it is taken as it is, broken character or not."""


class Decoder(Protocol):
    """What this module needs of a tokenizer."""

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of a run of ids."""
        ...


class Piece(NamedTuple):
    """Tokens `start` to before `end`, which read `text`; joined, the texts are the whole."""

    start: int
    end: int
    text: str


def pieces_of(ids: Sequence[int], tokenizer: Decoder) -> Iterator[Piece]:
    """The pieces of a text in order.

    A piece is what its tokens add to the piece before, so that a tokenizer which puts spaces
    between words puts them here too.
    """
    before = start = 0
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[before:end])
        if whole.endswith(_HALF) and end - start < _LONGEST and end < len(ids):
            continue
        yield Piece(start, end, whole[len(tokenizer.decode(ids[before:start])) :])
        before, start = start, end
