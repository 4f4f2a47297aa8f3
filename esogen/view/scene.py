"""A recorded text laid out once, and when its pieces appear: what pictures are made of.

A replay knows how its text ends, so every piece stands where it will stand at the end and masks are
as wide as what they become: nothing jumps. Measures are terminal cells and seconds.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from esogen.view.flow import cells, characters
from esogen.view.pieces import GIVEN, Piece
from esogen.visible import visible

TAB = 4
_PARTS = re.compile(r"[\n\t]|[^\n\t]+")
_MOST_CLUSTERS = 4096
"""In a row: characters without width are not gathered for ever."""

LEAD = 0.7
"""Seconds before the first step, in which all masks are seen."""
HOLD = 4.0
"""Seconds after the last step, in which the text can be read."""
_PACE, _LEAST, _MOST = 0.12, 1.5, 9.0
"""Seconds of a step in the diffusion phase; seconds of a phase, at least and at most."""
_SEQUENTIAL_PACE = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """Some characters of piece `piece` that stand together, without spaces, from a cell on.

    The characters are `visible`.
    """

    row: int
    column: int
    width: int
    text: str
    piece: int


@dataclass(frozen=True)
class Scene:
    """A text on a page of `columns` cells a row, and how its run went."""

    pieces: tuple[Piece, ...]
    runs: tuple[Run, ...]
    columns: int
    rows: int
    diffusion_steps: int
    calls: int
    speed: float

    @cached_property
    def timeline(self) -> "Timeline":
        """When each call decides."""
        return Timeline.of(self.diffusion_steps, self.calls - self.diffusion_steps, self.speed)

    @property
    def text(self) -> str:
        """The finished text."""
        return "".join(piece.text for piece in self.pieces)

    @cached_property
    def masks_left(self) -> tuple[int, ...]:
        """Pieces still to come, before the first call and after each."""
        counts = Counter(piece.step for piece in self.pieces if piece.step != GIVEN)
        decided = (-counts[call] for call in range(self.calls))
        return tuple(accumulate(decided, initial=counts.total()))


@dataclass(frozen=True, slots=True)
class Timeline:
    """`starts[i]` is the second at which call `i` decides; `switch` ends the diffusion phase.

    `paces` are the seconds of a step in either phase; after `end` it starts over.
    """

    starts: tuple[float, ...]
    paces: tuple[float, float]
    switch: float
    end: float

    @classmethod
    def of(cls, diffusion: int, sequential: int, speed: float = 1.0) -> "Timeline":
        """The times of so many steps in either phase; at `speed` 1, the usual pace."""
        first = _pace(diffusion, _PACE) / speed
        second = _pace(sequential, _SEQUENTIAL_PACE) / speed
        switch = LEAD + first * diffusion
        starts = [
            *(LEAD + first * call for call in range(diffusion)),
            *(switch + second * call for call in range(sequential)),
        ]
        end = switch + second * sequential + HOLD
        return cls(tuple(starts), (first, second), switch, end)

    @property
    def settled(self) -> float:
        """The second from which on nothing is decided any more."""
        return self.end - HOLD


def lay_out(
    pieces: Sequence[Piece],
    columns: int,
    *,
    diffusion_steps: int,
    calls: int,
    speed: float = 1.0,
) -> Scene:
    """The pieces on rows of `columns` cells, wrapped between words."""
    runs: list[Run] = []
    row = 0
    for row, line in enumerate(_lines(_clusters(pieces), columns)):
        runs += _runs(row, line)
    return Scene(tuple(pieces), tuple(runs), columns, row + 1, diffusion_steps, calls, speed)


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What a reader takes for one character."""

    text: str
    width: int
    piece: int


def _clusters(pieces: Sequence[Piece]) -> Iterator[_Cluster]:
    owners = [index for index, piece in enumerate(pieces) for _ in piece.text]
    text = visible("".join(piece.text for piece in pieces))
    for part in _PARTS.finditer(text):
        if part[0] == "\n":
            yield _Cluster("\n", 0, owners[part.start()])
        elif part[0] == "\t":
            yield from [_Cluster(" ", 1, owners[part.start()])] * TAB
        else:
            start = part.start()
            for character in characters(part[0]):
                yield _Cluster(character, _width(character), owners[start])
                start += len(character)


def _width(character: str) -> int:
    """Cells of what a reader takes for one character, whatever it is joined from."""
    return min(cells(character), 2)


def _lines(clusters: Iterator[_Cluster], columns: int) -> Iterator[list[_Cluster]]:
    """Rows of at most `columns` cells, broken at newlines, else between words, else anywhere."""
    line, word = _Row(columns), _Row(columns)
    for cluster in clusters:
        if cluster.text == "\n":
            yield line.take() + word.take()
        elif cluster.text == " ":
            room = line.width + word.width < columns
            line.add(*word.take(), *([cluster] if room else []))
        else:
            if line.clusters and not line.has_room(word.width + cluster.width):
                yield line.take()
            if not word.has_room(cluster.width):
                yield word.take()
            word.add(cluster)
    yield line.take() + word.take()


@dataclass(slots=True)
class _Row:
    """Clusters in a row, and how many cells they take."""

    columns: int
    width: int = 0
    clusters: list[_Cluster] = field(default_factory=list)

    def has_room(self, width: int) -> bool:
        return self.width + width <= self.columns and len(self.clusters) < _MOST_CLUSTERS

    def add(self, *clusters: _Cluster) -> None:
        self.clusters += clusters
        self.width += sum(cluster.width for cluster in clusters)

    def take(self) -> list[_Cluster]:
        taken, self.clusters, self.width = self.clusters, [], 0
        return taken


def _runs(row: int, line: Sequence[_Cluster]) -> Iterator[Run]:
    """The clusters of a row joined where they are of one piece and no space is between."""
    column, open_run = 0, None
    for cluster in line:
        space = cluster.text.isspace()
        if open_run and (space or open_run.piece != cluster.piece):
            yield open_run
            open_run = None
        if not space:
            width, text = (open_run.width, open_run.text) if open_run else (0, "")
            start = open_run.column if open_run else column
            open_run = Run(row, start, width + cluster.width, text + cluster.text, cluster.piece)
        column += cluster.width
    if open_run:
        yield open_run


def _pace(steps: int, pace: float) -> float:
    """Seconds of a step, so that a phase of so many takes neither too long nor too short."""
    return min(_MOST, max(_LEAST, steps * pace)) / max(steps, 1)
