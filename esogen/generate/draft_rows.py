"""Texts being made by drafting and verifying: where each row stands; see `lossless.py`.

Shapes: B rows still running, L positions of the longest, M tokens anywhere in the batch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esogen.generate.fill import Ids
from esogen.generate.streams import Uniforms

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One text to be made.

    `ids_L`: given tokens; what stands elsewhere is not read. `kinds_L`: which line of the rule's
    allowed tokens holds at each position. `order_L`: natural position at each sorted index; the
    first `given` are given, and the sequential phase begins at sorted index `late`.
    `uniforms_L3`: see above.
    """

    ids_L: Ids
    kinds_L: Ids
    order_L: Ids
    given: int
    late: int
    uniforms_L3: Uniforms


@dataclass(slots=True, eq=False)
class Rows:
    """Where the rows still running stand, everything by SORTED index and on the host.

    `tokens_BL`: given, decided and drafted tokens, in this order; then masks. `ahead_BL`: the least
    position not before each sorted index. `probs_BL`: with what probability a draft was drawn. Of
    `examined_B` drafts `refused_B` were refused. `calls_B` were made of the text in a row, `rows`
    is the number of that text. Behind a row's `length_B` nothing means anything.
    """

    order_BL: Ids
    tokens_BL: Ids
    kinds_BL: Ids
    uniforms_BL3: Uniforms
    ahead_BL: Ids
    probs_BL: Uniforms
    log_probs_BL: Uniforms
    length_B: Ids
    late_B: Ids
    decided_B: Ids
    drafted_B: Ids
    refused_B: Ids
    examined_B: Ids
    calls_B: Ids
    rows: Ids

    @classmethod
    def places(cls, count: int, length: int, first: int = 0) -> "Rows":
        """Places for so many texts, in which none is yet; the one to come has number `first`."""
        shape_BL = count, length
        ids_BL, numbers_BL = np.zeros(shape_BL, np.int64), np.zeros(shape_BL)
        rows = cls(
            np.tile(np.arange(length), (count, 1)),
            ids_BL,
            ids_BL.copy(),
            np.zeros((*shape_BL, 3)),
            np.full((count, length + 1), length),
            numbers_BL,
            numbers_BL.copy(),
            *(np.zeros(count, np.int64) for _ in range(8)),
        )
        rows.rows += first - 1
        return rows

    def enter(self, b: int, text: Text, number: int) -> int:
        """A text before its first call takes a place.

        Returns how many of its given tokens stood there already, in this order.
        """
        length, order_L = len(text.ids_L), text.order_L
        tokens_L = text.ids_L[order_L]
        same_L = (self.order_BL[b, :length] == order_L) & (self.tokens_BL[b, :length] == tokens_L)
        self.order_BL[b] = np.arange(self.order_BL.shape[1])
        self.order_BL[b, :length], self.tokens_BL[b, :length] = order_L, tokens_L
        self.kinds_BL[b, :length] = text.kinds_L[order_L]
        self.uniforms_BL3[b, :length] = text.uniforms_L3[order_L]
        self.ahead_BL[b] = self.order_BL.shape[1]
        self.ahead_BL[b, :length] = np.minimum.accumulate(order_L[::-1])[::-1]
        self.probs_BL[b], self.log_probs_BL[b] = 1.0, 0.0
        self.length_B[b], self.late_B[b], self.decided_B[b] = length, text.late, text.given
        for count_B in (self.drafted_B, self.refused_B, self.examined_B, self.calls_B):
            count_B[b] = 0
        self.rows[b] = number
        return int(np.append(same_L[: text.given], np.False_).argmin())

    def keep(self, kept: Ids) -> None:
        """Drop every row but these (indices into the rows still running)."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name)[kept])

    def count(self, accepted_B: Ids, refused_B: Bools) -> None:
        """Remember how many drafts were examined, and how many of them refused."""
        self.refused_B = self.refused_B + refused_B
        self.examined_B = self.examined_B + accepted_B + refused_B

    @property
    def seen_B(self) -> tuple[Ids, Ids]:
        """How many drafts were refused until now, of how many that were examined."""
        return self.refused_B, self.examined_B

    def apart_B(self, most_B: Ids) -> Ids:
        """Of so many positions to come at most, how many before one beside the last decided."""
        number_K = np.arange(most_B.max(initial=0) + 1)
        index_BK = np.minimum(self.decided_B[:, None] + number_K, self.order_BL.shape[1] - 1)
        last_B1 = np.take_along_axis(self.order_BL, self.decided_B[:, None] - 1, 1)
        beside_BK = abs(np.take_along_axis(self.order_BL, index_BK, 1) - last_B1) == 1
        apart_B: Ids = (beside_BK | (number_K >= most_B[:, None])).argmax(1)
        return apart_B

    def show_drafts(self, canvas_BL: Ids, first: int = 0) -> None:
        """Put the drafts still to be verified onto a canvas of texts from `first` on, by position.

        Those of texts that are not on it are left out.
        """
        on_B = (self.rows >= first) & (self.rows < first + len(canvas_BL))
        row_M, number_M = spread(self.drafted_B * on_B)
        at = row_M, self.decided_B[row_M] + number_M
        canvas_BL[self.rows[row_M] - first, self.order_BL[at]] = self.tokens_BL[at]

    def done_B(self, end_of_text: int | None) -> Bools:
        """Which rows are: all is decided, or an end of text with nothing undecided before it."""
        done_B: Bools = self.decided_B == self.length_B
        if end_of_text is None:
            return done_B
        decided_BL = np.arange(self.tokens_BL.shape[1]) < self.decided_B[:, None]
        ends_BL = decided_BL & (self.tokens_BL == end_of_text)
        end_B = np.where(ends_BL, self.order_BL, self.order_BL.shape[1]).min(1)
        done_B |= end_B < self.ahead_BL[np.arange(len(done_B)), self.decided_B]
        return done_B


def spread(count_B: Ids) -> tuple[Ids, Ids]:
    """Row, and number within the row, of so many of each row."""
    row_M, number_M = np.nonzero(np.arange(count_B.max(initial=0)) < count_B[:, None])
    return row_M, number_M
