"""A text whose words are painted by a number: how surprising each was to a model, say.

Colours grow darker with the number, so that they can be told apart in grey and by every eye. Lines
are those of the live view. Pure: nothing here knows a terminal.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from esogen.view.flow import Flow, Line, cells, parts_of
from esogen.view.svg import xml
from esogen.view.theme import RESET
from esogen.visible import visible

By = Literal["surprisal", "rank", "gain"]

_NEWLINE = "↵"
"""Stands at the end of a line that a newline of the text ends, so that it too has a colour."""


class Cell(NamedTuple):
    """Some characters of the text and their number; None paints nothing."""

    text: str
    value: float | None


class Color(NamedTuple):
    """Background and letters, as numbers of the 256-colour palette and as `#rrggbb`."""

    background: int
    letters: int
    hex_background: str
    hex_letters: str

    @property
    def code(self) -> str:
        """The escape sequence that turns it on."""
        return f"\x1b[38;5;{self.letters};48;5;{self.background}m"


_DARK, _LIGHT = (16, "#000000"), (231, "#ffffff")


def _color(background: int, hex_background: str, letters: tuple[int, str]) -> Color:
    return Color(background, letters[0], hex_background, letters[1])


_HEAT = (
    _color(230, "#ffffd7", _DARK),
    _color(222, "#ffd787", _DARK),
    _color(214, "#ffaf00", _DARK),
    _color(208, "#ff8700", _DARK),
    _color(160, "#d70000", _LIGHT),
    _color(88, "#870000", _LIGHT),
)
_COLD = (
    _color(18, "#000087", _LIGHT),
    _color(32, "#0087d7", _LIGHT),
    _color(153, "#afd7ff", _DARK),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """Which number gets which colour.

    `edges` ascend and part the numbers into steps; `colors` has one entry for each step, None
    paints nothing, and `labels` a word. `legend` says what the number is.
    """

    legend: str
    edges: tuple[float, ...]
    colors: tuple[Color | None, ...]
    labels: tuple[str, ...]

    def step(self, value: float | None) -> int | None:
        """Which of `colors` a number has."""
        return None if value is None else bisect_right(self.edges, value)


SCALES: dict[By, Scale] = {
    "surprisal": Scale(
        "surprisal in bits",
        (1, 2, 4, 6, 9, 13),
        (None, *_HEAT),
        ("<1", "1–2", "2–4", "4–6", "6–9", "9–13", "≥13"),
    ),
    "rank": Scale(
        "rank among all tokens",
        (2, 3, 6, 21, 101, 1001),
        (None, *_HEAT),
        ("1st", "2nd", "3rd–5th", "6–20", "21–100", "101–1000", ">1000"),
    ),
    "gain": Scale(
        "gain in bits: log p given all earlier text and every token of the other parity, minus"
        " log p given earlier text (three passes)",
        (-4, -2, -0.5, 0.5, 2, 4),
        (*_COLD, None, *_HEAT[1::2]),
        ("<-4", "-4…-2", "-2…-½", "±½", "½…2", "2…4", "≥4"),
    ),
}


def lines_of(text: Sequence[Cell], scale: Scale, width: int) -> list[Line]:
    """The text in lines of at most `width` columns; a span's role is its step, or empty."""
    flow = Flow(width)
    for cell in text:
        step = scale.step(cell.value)
        shown = visible(cell.text).replace("\n", f"{_NEWLINE}\n")
        for part in parts_of(shown):
            flow.add(part, "" if step is None else str(step))
    return flow.finish()


def on_terminal(text: Sequence[Cell], scale: Scale, width: int, note: str) -> str:
    """Lines with escape codes: the text, then the legend, `note` with it."""
    lines = [*lines_of(text, scale, width), Line([], 0), *_legend(scale, width, note)]
    return "".join(f"{_painted(line, scale)}\n" for line in lines)


def _legend(scale: Scale, width: int, note: str) -> Iterator[Line]:
    """A sample of every colour, then what the numbers are."""
    samples = Flow(width)
    for i, label in enumerate(scale.labels):
        samples.add(parts_of(label)[0], str(i))
        samples.add(parts_of(" ")[0], "")
    yield from samples.finish()
    yield from _plain(f"{scale.legend} · {note}", width)


def _painted(line: Line, scale: Scale) -> str:
    return "".join(
        f"{color.code}{text}{RESET}" if (color := _color_of(role, scale)) else text
        for text, role in line.spans
    )


def _color_of(role: str, scale: Scale) -> Color | None:
    return scale.colors[int(role)] if role.isdigit() else None


class Picture(NamedTuple):
    """One text of a file: what stands above it, and its cells with what a pointer is told."""

    title: str
    cells: Sequence[Cell]


def html(pictures: Sequence[Picture], scale: Scale, note: str) -> str:
    """A page of its own: no scripts, no links. A pointer over a word is told its number."""
    return "".join(_html(pictures, scale, note))


def _html(pictures: Sequence[Picture], scale: Scale, note: str) -> Iterator[str]:
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>esogen score</title><style>"
        "body{font:16px/1.7 Georgia,serif;max-width:44em;margin:2em auto;padding:0 1em;"
        "background:#fff;color:#000}p.t{white-space:pre-wrap;overflow-wrap:anywhere}"
        "h2,.l{font:14px/2 system-ui,sans-serif}span{border-radius:2px;padding:.1em 0}"
        f"{_classes(scale)}</style></head><body>\n"
    )
    for picture in pictures:
        yield f'<h2>{xml(picture.title)}</h2>\n<p class="t">'
        yield from (_html_cell(cell, scale) for cell in picture.cells)
        yield "</p>\n"
    swatches = " ".join(
        f'<span class="c{i}">&nbsp;{xml(label)}&nbsp;</span>'
        for i, label in enumerate(scale.labels)
    )
    yield f'<p class="l">{swatches}<br>{xml(scale.legend)} · {xml(note)}</p>\n</body></html>\n'


def _classes(scale: Scale) -> str:
    return "".join(
        f".c{i}{{background:{color.hex_background};color:{color.hex_letters}}}"
        for i, color in enumerate(scale.colors)
        if color
    )


def _html_cell(cell: Cell, scale: Scale) -> str:
    shown = xml(visible(cell.text).replace("\n", f"{_NEWLINE}\n"))
    if cell.value is None:
        return shown
    return f'<span class="c{scale.step(cell.value)}" title="{cell.value:.4g}">{shown}</span>'


COLUMNS = 88
"""Width of a picture, in characters."""
_CELL, _ROW, _SIZE, _PAD = 8.4, 24.0, 14.0, 24.0


def svg(pictures: Sequence[Picture], scale: Scale, note: str) -> str:
    """A picture of its own: no scripts, fonts or links."""
    rows = list(_svg_rows(pictures, scale, note))
    width, height = 2 * _PAD + _CELL * COLUMNS, 2 * _PAD + _ROW * len(rows)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}"><style>text{{font:{_SIZE:g}px ui-monospace,'
        "SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}</style>"
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    )
    return "\n".join([head, *(_svg_row(i, row, scale) for i, row in enumerate(rows)), "</svg>\n"])


def _svg_rows(pictures: Sequence[Picture], scale: Scale, note: str) -> Iterator[Line]:
    for picture in pictures:
        yield from _plain(picture.title, COLUMNS)
        yield from lines_of(picture.cells, scale, COLUMNS)
        yield Line([], 0)
    yield from _legend(scale, COLUMNS, note)


def _plain(text: str, width: int) -> list[Line]:
    flow = Flow(width)
    for part in parts_of(visible(text)):
        flow.add(part, "")
    return flow.finish()


def _svg_row(number: int, line: Line, scale: Scale) -> str:
    drawn, x, top = [], _PAD, _PAD + _ROW * number
    for text, role in line.spans:
        width = _CELL * cells(text)
        color = _color_of(role, scale)
        if color:
            drawn.append(
                f'<rect x="{x:g}" y="{top:g}" width="{width:g}" height="{_ROW - 4:g}"'
                f' fill="{color.hex_background}"/>'
            )
        if text.strip():
            drawn.append(
                f'<text x="{x:g}" y="{top + 15:g}" textLength="{width:g}"'
                f' fill="{color.hex_letters if color else "#000"}">{xml(text)}</text>'
            )
        x += width
    return "".join(drawn)
