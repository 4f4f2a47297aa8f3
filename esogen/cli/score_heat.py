"""The heat maps of `esogen score`: on the terminal, as a page, as a picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING

from esogen.cli.output import Output
from esogen.errors import UsageError

if TYPE_CHECKING:
    from esogen.checkpoint.pieces import Decoder
    from esogen.likelihood import Numbers
    from esogen.scoring.score import Score
    from esogen.view.heatmap import By, Cell, Picture

MOST_TOKENS = 4000
"""Of a text that is painted on a terminal without being asked for."""


@dataclass(slots=True, eq=False)
class Heat:
    """Where heat maps go. `painted`: None where stdout is shown none, else whether it was asked."""

    by: "By"
    painted: bool | None
    html: Output | None
    svg: Output | None
    left_out: bool = False
    _pictures: "list[Picture]" = field(default_factory=list)
    _kind: str = ""

    def check(self, *, alone: bool, one_by_one: bool) -> None:
        """Paint only where it was asked for, unless texts come `one_by_one`.

        Raises `UsageError` where this process is not `alone` and cannot draw all texts.
        """
        if not (alone and one_by_one):
            self.painted = self.painted or None
        if not alone and self.wanted:
            raise UsageError("--heat-map, --html and --svg are for one process; leave torchrun out")

    @property
    def wanted(self) -> bool:
        """Whether any text is drawn anywhere."""
        return self.painted is not None or bool(self.html or self.svg)

    def take(
        self, score: "Score", gain_L: "Numbers | None", tokenizer: "Decoder", out: Output
    ) -> None:
        """Draw one text, or keep it for the end."""
        if not self.wanted or score.log_probs_L is None:
            return
        from esogen.view.heatmap import SCALES, Picture, on_terminal

        cells = _cells(score, self.by, gain_L, tokenizer)
        self._kind = score.kind
        if self.html or self.svg:
            title = f"{score.document.name} · {score.bits_per_byte:.3f} bits/byte"
            self._pictures.append(Picture(title, cells))
        if self.painted is None:
            return
        if self.painted or len(score.tokens) <= MOST_TOKENS:
            width = _columns(out)
            out.write_painted(on_terminal(cells, SCALES[self.by], width, self._kind))
        else:
            self.left_out = True

    def finish(self) -> None:
        """Write the files."""
        if not (self.html or self.svg):
            return
        from esogen.view import heatmap

        scale = heatmap.SCALES[self.by]
        for out, draw in ((self.html, heatmap.html), (self.svg, heatmap.svg)):
            if out:
                out.write_painted(draw(self._pictures, scale, self._kind))


def painted(out: Output, asked: bool | None, format_: str, *, no_color: bool) -> bool | None:
    """Whether stdout is shown heat maps, as `Heat.painted`; `UsageError` where they cannot be."""
    plain = no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    able = out.file.isatty() and not plain and format_ == "text"
    if asked and not able:
        raise UsageError(
            "--heat-map is for --format text on a terminal with colours; write it to a file with"
            " --html FILE or --svg FILE"
        )
    return asked or False if able and asked is not False else None


def _columns(out: Output) -> int:
    try:
        return os.get_terminal_size(out.file.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _cells(
    score: "Score", by: "By", gain_L: "Numbers | None", tokenizer: "Decoder"
) -> "Sequence[Cell]":
    from esogen.checkpoint.pieces import pieces_of
    from esogen.view.heatmap import Cell

    found = []
    for start, end, text in pieces_of(score.tokens, tokenizer):
        if by == "rank":
            value = None if score.ranks_L is None else float(score.ranks_L[start:end].max()) + 1
        elif by == "gain":
            value = None if gain_L is None else float(gain_L[start:end].sum()) / log(2)
        else:
            value = None if score.log_probs_L is None else _bits(score.log_probs_L[start:end])
        found.append(Cell(text, value))
    return found


def _bits(log_probs: "Numbers") -> float:
    return -float(log_probs.sum()) / log(2)
