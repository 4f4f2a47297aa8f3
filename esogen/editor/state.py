"""One state of a text being edited: what stands, where it came from, and what it looks like.

Shapes: L positions of the text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import UsageError
from esogen.generate.draw import DrawSettings
from esogen.generate.plan import ScheduleSettings
from esogen.generate.template import BLANK, Layout

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Knobs:
    """How tokens are decided from here on: schedule and drawing."""

    schedule: ScheduleSettings
    draw: DrawSettings


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A text, the order in which its tokens came, and the state it was made from.

    `tokens_L` has `BLANK` where nothing is decided yet. `order`: positions in the order of the KV
    cache, of which the first `clean` stand there; the first `fork` of them are the parent's own.
    `decided`: positions that this state decided, with the noise of `sample`; `locked`: those that
    are not to be decided again. `log_probs_L`: nats, 0 where given.
    """

    number: int
    parent: int | None
    what: str
    layout: Layout
    tokens_L: Ids
    log_probs_L: NDArray[np.float64]
    order: Ids
    clean: int
    fork: int
    decided: tuple[int, ...]
    locked: frozenset[int]
    knobs: Knobs
    sample: int

    def shared(self, wanted: "State") -> int:
        """How much of what stands is right for `wanted` too: the common beginning, in tokens."""
        order, other = self.order[: self.clean], wanted.order[: self.clean]
        order = order[: len(other)]
        differ = (order != other) | (self.tokens_L[order] != wanted.tokens_L[other])
        return int(differ.argmax()) if differ.any() else len(other)

    @property
    def undecided(self) -> bool:
        """Whether blanks are still to be filled."""
        return bool((self.tokens_L == BLANK).any())

    def blank(self, number: int) -> range:
        """Positions of blank `number`, from 1. Raises `UsageError` where there is none."""
        blanks = len(self.layout.starts)
        if not 1 <= number <= blanks:
            raise UsageError(f"there is no blank {number}; there are 1 to {blanks}")
        start = self.layout.starts[number - 1]
        return range(start, start + self.layout.lengths[number - 1])

    def words(self, number: int, tokenizer: Tokenizer) -> list["Word"]:
        """The words of blank `number`: tokens up to the next that begins with white space."""
        groups: list[list[int]] = []
        for position in self.blank(number):
            token = int(self.tokens_L[position])
            text = tokenizer.decode([token]) if token != BLANK else " "
            if not groups or text[:1].isspace() or token == BLANK:
                groups.append([])
            groups[-1].append(position)
        return [self._word(number, group, tokenizer) for group in groups]

    def _word(self, number: int, positions: list[int], tokenizer: Tokenizer) -> "Word":
        ids = self.tokens_L[positions].tolist()
        text = " ▁" if BLANK in ids else tokenizer.decode(ids)
        first = positions[0] == self.blank(number)[0]
        if first and self.layout.template.blanks[number - 1].spaced:
            text = text.removeprefix(" ")
        return Word(
            number,
            text,
            tuple(positions),
            locked=self.locked.issuperset(positions),
            log_prob=float(self.log_probs_L[positions].sum()),
        )

    def text(self, tokenizer: Tokenizer) -> str:
        """The whole text; blanks that are not filled yet are left empty."""
        tokens = np.where(self.tokens_L == BLANK, tokenizer.end_of_text, self.tokens_L)
        return self.layout.text(self.layout.fills(tokens.tolist(), tokenizer))

    def parts(self, tokenizer: Tokenizer) -> Iterator["str | Word"]:
        """The text as it is drawn: given texts, and the words of blanks."""
        yield self.layout.template.texts[0]
        for number, text in enumerate(self.layout.template.texts[1:], 1):
            yield from self.words(number, tokenizer)
            yield text


@dataclass(frozen=True, slots=True)
class Word:
    """A word of blank `blank`, with the white space before it; `log_prob` of its tokens, nats."""

    blank: int
    text: str
    positions: tuple[int, ...]
    locked: bool
    log_prob: float
