"""How each part of the view looks: a paint for every role, for terminals and for pictures alike.

The view says what a word is (a mask, a token just decided with little certainty); a theme says how
that is shown. Colours are those of the 256-colour palette that stay readable on black and on white.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ThemeWord = Literal["default", "colorblind", "monochrome"]
ColorBy = Literal["certainty", "order", "step"]
COLOR_BY: tuple[ColorBy, ...] = ("certainty", "order", "step")

PLAIN, MASK, PEN, GIVEN, SETTLED, WRITTEN = "plain", "mask", "pen", "given", "settled", "written"
DRAFT = "draft"
LOW, MIDDLE, HIGH = "low", "middle", "high"
QUIET, DIFFUSION, SEQUENTIAL, SWITCH = "quiet", "diffusion", "sequential", "switch"
ORDERS = tuple(f"order-{shade}" for shade in range(8))
"""From the tokens decided first to those decided last."""
CYCLE = tuple(f"step-{hue}" for hue in range(6))
"""Neighbouring steps differ; tokens of one step look alike."""

RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Paint:
    """How a role looks: `color` of the 256-colour palette, None for the terminal's own."""

    color: int | None = None
    bold: bool = False
    dim: bool = False
    underline: bool = False
    reverse: bool = False

    @property
    def code(self) -> str:
        """The escape sequence that turns it on, from plain; empty for the terminal's own look."""
        numbers = [
            *(("1",) if self.bold else ()),
            *(("2",) if self.dim else ()),
            *(("4",) if self.underline else ()),
            *(("7",) if self.reverse else ()),
            *(() if self.color is None else (f"38;5;{self.color}",)),
        ]
        return f"\x1b[{';'.join(numbers)}m" if numbers else ""


Theme = Mapping[str, Paint]
"""A paint for each role."""


_VIRIDIS = (61, 67, 68, 37, 72, 71, 106, 178)
"""From blue to yellow, lighter all the way."""

_BASE: dict[str, Paint] = {
    PLAIN: Paint(),
    MASK: Paint(242),
    PEN: Paint(140),
    DRAFT: Paint(242, dim=True),
    GIVEN: Paint(67),
    SETTLED: Paint(),
    WRITTEN: Paint(140),
    LOW: Paint(167, bold=True),
    MIDDLE: Paint(172, bold=True),
    HIGH: Paint(71, bold=True),
    QUIET: Paint(243),
    DIFFUSION: Paint(37),
    SEQUENTIAL: Paint(140),
    SWITCH: Paint(172, bold=True),
    **{role: Paint(color) for role, color in zip(ORDERS, _VIRIDIS, strict=True)},
    **{role: Paint(color) for role, color in zip(CYCLE, (167, 37, 172, 71, 140, 67), strict=True)},
}

_COLORBLIND: dict[str, Paint] = {
    **_BASE,
    LOW: Paint(166, underline=True),
    MIDDLE: Paint(178),
    HIGH: Paint(32, bold=True),
    GIVEN: Paint(245),
    WRITTEN: Paint(74),
    PEN: Paint(74),
    DIFFUSION: Paint(178),
    SEQUENTIAL: Paint(74),
    SWITCH: Paint(bold=True),
    **{role: Paint(color) for role, color in zip(CYCLE, (166, 32, 178, 36, 175, 74), strict=True)},
}
"""After Okabe and Ito's palette; certainty is told by underline and weight too."""

_MONOCHROME: dict[str, Paint] = {
    **dict.fromkeys(_BASE, Paint()),
    MASK: Paint(dim=True),
    DRAFT: Paint(dim=True),
    PEN: Paint(bold=True),
    GIVEN: Paint(dim=True),
    LOW: Paint(underline=True),
    MIDDLE: Paint(bold=True, underline=True),
    HIGH: Paint(bold=True),
    QUIET: Paint(dim=True),
    SWITCH: Paint(bold=True),
    **{role: Paint(dim=shade < 3, bold=shade > 5) for shade, role in enumerate(ORDERS)},
    **{role: Paint(bold=hue % 2 > 0, underline=hue % 3 > 1) for hue, role in enumerate(CYCLE)},
}

UNPAINTED: Theme = dict.fromkeys(_BASE, Paint())
"""Nothing but the terminal's own look: what is shown where colours are refused."""

THEMES: Mapping[ThemeWord, Theme] = {
    "default": _BASE,
    "colorblind": _COLORBLIND,
    "monochrome": _MONOCHROME,
}
