"""What stands on a screen: texts side by side, a bar with both phases, and where the run is.

Pure, like the canvas: frames and a size in, rows of spans out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from esogen.view import theme
from esogen.view.canvas import Frame, Page, Pieces, layout
from esogen.view.flow import Line, Span, cells
from esogen.view.theme import RESET, ColorBy, Theme

TURN = 2.5
"""Seconds that a page of a longer text, or of more texts than fit, is shown."""

_NARROWEST, _WIDEST = 36, 92
"""Columns of one text among several, at least; of any text, at most."""
_BETWEEN = (" │ ", theme.QUIET)
_ROOMY, _CRAMPED = 60, 30
"""Columns from which there is a margin, and below which words are saved."""
_TALL, _SHORT = 14, 8
"""Rows from which there is air above and below; rows below which nothing but need is shown."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is told below the texts.

    `seconds` since the run began, on the wall; `decided` tokens until now, of all its rows; `name`
    of the texts shown, such as `text 3`, one each, or nothing for a text that is alone; `note`
    anything else, in a few words.
    """

    seconds: float
    decided: int
    names: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a screen, in characters."""

    columns: int
    rows: int


_Layout = Callable[[Frame, int], Page]


class Stage:
    """Sets frames on a screen. `pieces` remember how the tokens of all of them read."""

    def __init__(self, pieces: Pieces, color_by: ColorBy) -> None:
        self._pieces, self._color_by = pieces, color_by

    def rows(self, frames: Sequence[Frame], report: Report, size: Size) -> list[Line]:
        """One line for each row of the screen, from the top."""
        margin = 2 if size.columns >= _ROOMY else 0
        width = max(1, size.columns - 2 * margin)
        below = _Below(frames, report, size, width)
        top = 1 if size.rows >= _TALL else 0
        grid = _Grid(frames, report, width, max(1, size.rows - top - below.height))
        body, where = grid.draw(self._page, int(report.seconds / TURN))
        shown = [*[Line([], 0)] * top, *body, *below.lines(where)]
        return [_indented(line, margin) for line in shown[: size.rows]]

    def _page(self, frame: Frame, width: int) -> Page:
        return layout(frame, self._pieces, width, self._color_by)


class _Grid:
    """Texts in columns, as many as fit, and in ranks below each other where they are short."""

    def __init__(self, frames: Sequence[Frame], report: Report, width: int, height: int) -> None:
        self._frames, self._report = frames, report
        gap = cells(_BETWEEN[0])
        self._across = max(1, min(len(frames), (width + gap) // (_NARROWEST + gap)))
        self._width = min(_WIDEST, (width - gap * (self._across - 1)) // self._across)
        self._height = height
        self._headed = len(frames) > 1 and height >= 4

    def draw(self, page: _Layout, turn: int) -> tuple[list[Line], str]:
        """The rows, and in words which part of the whole they are."""
        first = [page(frame, self._width) for frame in self._frames[: self._across]]
        tallest = max(len(each.lines) for each in first) + self._headed
        ranks = max(1, (self._height + 1) // (tallest + 1))
        room = self._across * ranks
        groups = -(-len(self._frames) // room)
        start = turn % groups * room
        chosen = self._frames[start : start + room]
        ready = [] if start else first
        pages = [*ready, *(page(frame, self._width) for frame in chosen[len(ready) :])]
        height = (self._height + 1) // ranks - 1 if ranks > 1 else self._height
        windows = [
            self._window(start + place, chosen[place], each, height, turn // groups)
            for place, each in enumerate(pages)
        ]
        return self._filled(windows), self._where(start, len(chosen), pages, windows)

    def _window(self, index: int, frame: Frame, page: Page, height: int, turn: int) -> "_Window":
        height -= self._headed
        lines, top = page.lines, _top(page, height, turn, follow=frame.sequential)
        shown = lines[top : top + height]
        head = [self._head(index, frame)] if self._headed else []
        return _Window([*head, *shown], top, len(shown))

    def _head(self, index: int, frame: Frame) -> Line:
        name = self._report.names[index] if index < len(self._report.names) else ""
        state = "" if frame.masks_left else " ✓"
        text = f"{name}{state}"[: self._width]
        return Line([(text, theme.QUIET)], cells(text))

    def _filled(self, windows: Sequence["_Window"]) -> list[Line]:
        """Ranks of windows side by side, and empty rows down to the full height."""
        rows: list[Line] = []
        for start in range(0, len(windows), self._across):
            rows += [Line([], 0)] if start else []
            rank = [window.lines for window in windows[start : start + self._across]]
            rows += _beside(rank, self._width)
        return rows + [Line([], 0)] * (self._height - len(rows))

    def _where(
        self, start: int, count: int, pages: Sequence[Page], windows: Sequence["_Window"]
    ) -> str:
        if count < len(self._frames):
            last = start + count
            which = f"{start + 1}" if count == 1 else f"{start + 1}-{last}"
            return f"showing {which} of {len(self._frames)}"
        tall, window = max(zip(pages, windows, strict=True), key=lambda pair: len(pair[0].lines))
        if window.count >= len(tall.lines):
            return ""
        return f"lines {window.top + 1}-{window.top + window.count}/{len(tall.lines)}"


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of a page that is shown: `count` of its lines from `top` on, and a head."""

    lines: list[Line]
    top: int
    count: int


def _top(page: Page, height: int, turn: int, *, follow: bool) -> int:
    """First line to show: where the sequential phase writes, else one page after the other."""
    spare = len(page.lines) - height
    if spare <= 0:
        return 0
    if follow:
        return min(spare, max(0, page.focus - 2 * height // 3))
    return min(spare, turn % -(-len(page.lines) // height) * height)


def _beside(texts: Sequence[Sequence[Line]], width: int) -> list[Line]:
    """Texts next to each other, each `width` columns wide."""
    if len(texts) == 1:
        return [*texts[0]]
    rows = []
    for row in range(max(len(lines) for lines in texts)):
        spans = []
        for place, lines in enumerate(texts):
            line = lines[row] if row < len(lines) else Line([], 0)
            spans += [_BETWEEN] if place else []
            spans += [*line.spans, (" " * (width - line.width), theme.PLAIN)]
        rows.append(Line(spans, len(texts) * width + (len(texts) - 1) * cells(_BETWEEN[0])))
    return rows


class _Below:
    """The bar and the words below the texts, as far as there is room for them."""

    def __init__(self, frames: Sequence[Frame], report: Report, size: Size, width: int) -> None:
        self._frame, self._width = frames[0], width
        self._masks = sum(frame.masks_left for frame in frames)
        self._report = report
        self._barred = size.rows >= 4
        self._air = size.rows >= _TALL
        self._word_rows = 0 if size.rows < 2 else 1
        if size.rows >= _SHORT and (width < 76 or report.note):
            self._word_rows = 2

    @property
    def height(self) -> int:
        """Rows that it takes."""
        return self._air + self._barred + self._word_rows

    def lines(self, where: str) -> Iterator[Line]:
        """From the top, with `where` the texts above are among the whole."""
        if self._air:
            yield Line([], 0)
        if self._barred:
            yield bar(self._frame, self._width)
        yield from _packed(self._items(where), self._width, self._word_rows)

    def _items(self, where: str) -> Iterator[Line]:
        frame, report = self._frame, self._report
        made, speed = frame.step + 1, report.decided / max(report.seconds, 1e-9)
        yield _phase(frame)
        narrow = self._width < _CRAMPED
        yield _words(f"{made}/{frame.steps}" if narrow else f"step {made} of {frame.steps}")
        yield _words(f"{self._masks} mask{'' if self._masks == 1 else 's'} left")
        yield _words(f"{speed:.0f} tokens/s" if report.decided else "")
        yield _words(f"NFE {made}")
        yield _words(report.note)
        yield _words(where)


def _phase(frame: Frame) -> Line:
    word, role = (
        ("sequential", theme.SEQUENTIAL) if frame.sequential else ("diffusion", theme.DIFFUSION)
    )
    return Line([(word, role)], len(word))


def _words(text: str) -> Line:
    return Line([(text, theme.QUIET)] if text else [], cells(text))


def _packed(items: Iterable[Line], width: int, rows: int) -> Iterator[Line]:
    """Items joined by dots on so many rows; what does not fit is left out."""
    dot = " · "
    waiting = [item for item in items if item.width]
    for _ in range(rows):
        spans, used, later = [], 0, []
        for item in waiting:
            need = item.width + (len(dot) if used else 0)
            if used + need > width:
                later.append(item)
                continue
            spans += [(dot, theme.QUIET)] if used else []
            spans += item.spans
            used += need
        waiting = later
        yield Line(spans, used)


def bar(frame: Frame, width: int) -> Line:
    """How far the calls of the plan are: the phases in two colours, a mark between them."""
    calls = max(frame.steps, 1)
    done, switch = (frame.step + 1) * width // calls, frame.diffusion_steps * width // calls
    mixed = 0 < frame.diffusion_steps < frame.steps and 0 < switch < width
    spans = [
        ("━" * min(done, switch), theme.DIFFUSION),
        ("─" * (switch - min(done, switch)), theme.QUIET),
        ("━" * max(0, done - switch), theme.SEQUENTIAL),
        ("─" * (width - max(done, switch)), theme.QUIET),
    ]
    if mixed:
        spans = _marked(spans, switch)
    return Line([span for span in spans if span[0]], width)


def _marked(spans: list[Span], switch: int) -> list[Span]:
    """The bar with a mark in place of its first column of the sequential phase."""
    before, after = spans[:2], spans[2:]
    taken = False
    rest = []
    for text, role in after:
        rest.append((text[1:] if text and not taken else text, role))
        taken = taken or bool(text)
    return [*before, ("◆", theme.SWITCH), *rest]


def _indented(line: Line, margin: int) -> Line:
    if not margin or not line.width:
        return line
    return Line([(" " * margin, theme.PLAIN), *line.spans], line.width + margin)


class Painter:
    """Turns lines into text for a terminal, in the looks of a theme."""

    def __init__(self, looks: Theme) -> None:
        self._codes = {role: paint.code for role, paint in looks.items()}
        self._ink = {p.code for p in looks.values() if p.underline or p.reverse}

    def text(self, line: Line) -> str:
        """One line, plain again at its end; a space keeps a colour that cannot be seen on it."""
        written, now = [], ""
        for text, role in line.spans:
            code = self._codes[role]
            if code != now and (now in self._ink or not text.isspace()):
                written.append(RESET + code if now else code)
                now = code
            written.append(text)
        return "".join(written) + (RESET if now else "")
