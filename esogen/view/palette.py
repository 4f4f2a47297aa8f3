"""The colours of pictures, on a page of their own: more of them, and finer, than a terminal has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from esogen.view.canvas import SURE, UNSURE
from esogen.view.pieces import Piece
from esogen.view.theme import ColorBy, ThemeWord


@dataclass(frozen=True, slots=True)
class Palette:
    """Every colour as `#rrggbb`.

    `calm` is text of the diffusion phase that has been there for a while, `written` that of the
    sequential phase. `grades` are for tokens just decided, unsure ones first; `orders` go from the
    first decided to the last; of `cycle`, neighbouring steps have different ones. `lights` are the
    buttons of the window.
    """

    page: str
    line: str
    quiet: str
    calm: str
    written: str
    given: str
    diffusion: str
    sequential: str
    mask_diffusion: str
    mask_sequential: str
    grades: tuple[str, str, str]
    orders: tuple[str, ...]
    cycle: tuple[str, ...]
    lights: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Coloring:
    """A palette and what colours a piece: `colors` are all there are, `stays` says for how long."""

    palette: Palette
    by: ColorBy

    @property
    def colors(self) -> Sequence[str]:
        """The colours that pieces may have when they appear."""
        palette = self.palette
        return {"certainty": palette.grades, "order": palette.orders, "step": palette.cycle}[
            self.by
        ]

    @property
    def stays(self) -> bool:
        """Whether a piece keeps its colour; by certainty it cools down."""
        return self.by != "certainty"

    def number(self, piece: Piece, calls: int) -> int:
        """Which of `colors` a decided piece has, in a run of so many calls."""
        if self.by == "certainty":
            return (piece.certainty >= UNSURE) + (piece.certainty >= SURE)
        if self.by == "order":
            return piece.step * len(self.palette.orders) // max(calls, 1)
        return piece.step % len(self.palette.cycle)


_DARK = Palette(
    page="#0d1017",
    line="#232937",
    quiet="#8a93a6",
    calm="#dbe0ea",
    written="#c5b9f5",
    given="#7fa8e8",
    diffusion="#35c9bd",
    sequential="#a68bf5",
    mask_diffusion="#1c3a40",
    mask_sequential="#302a52",
    grades=("#ff6b6b", "#ffb454", "#5fdc86"),
    orders=(
        *("#6a6ee0", "#4f8fe6", "#35a8d8", "#2fbdb6"),
        *("#4ccb8c", "#8fd35f", "#c9d24a", "#f7d354"),
    ),
    cycle=("#ff7b72", "#35c9bd", "#ffb454", "#5fdc86", "#b497f5", "#6aa6f0"),
    lights=("#ff5f57", "#febc2e", "#28c840"),
)

PALETTES: Mapping[ThemeWord, Palette] = {
    "default": _DARK,
    # After Okabe and Ito: told apart with any kind of colour vision, and by lightness too.
    "colorblind": replace(
        _DARK,
        written="#a9d4f2",
        given="#9aa4b5",
        diffusion="#f0c23c",
        sequential="#56b4e9",
        mask_diffusion="#3d3518",
        mask_sequential="#1b3548",
        grades=("#e8702a", "#f0c23c", "#4aa3ee"),
        cycle=("#e8702a", "#4aa3ee", "#f0e442", "#1fb58f", "#e08fc0", "#9bd0f5"),
    ),
    "monochrome": replace(
        _DARK,
        page="#101010",
        line="#2c2c2c",
        quiet="#8c8c8c",
        calm="#d8d8d8",
        written="#d8d8d8",
        given="#9a9a9a",
        diffusion="#b8b8b8",
        sequential="#f2f2f2",
        mask_diffusion="#2b2b2b",
        mask_sequential="#3d3d3d",
        grades=("#7d7d7d", "#b4b4b4", "#ffffff"),
        orders=(
            *("#6e6e6e", "#828282", "#969696", "#aaaaaa"),
            *("#bebebe", "#d2d2d2", "#e6e6e6", "#ffffff"),
        ),
        cycle=("#7d7d7d", "#ffffff", "#9b9b9b", "#e0e0e0", "#8c8c8c", "#c4c4c4"),
        lights=("#4a4a4a", "#4a4a4a", "#4a4a4a"),
    ),
}
