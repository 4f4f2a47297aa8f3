"""Texts as a recording of a terminal, in the format asciicast v2 of asciinema."""

import json
from collections.abc import Iterator, Sequence

from esogen.view.scene import HOLD
from esogen.view.stage import Painter, Report, Size, Stage
from esogen.view.tape import Tape

SIZE = Size(80, 24)
_RATE = 12.5
"""Frames a second, at most."""

Rows = list[str]


def cast(tapes: Sequence[Tape], stage: Stage, painter: Painter, title: str) -> Iterator[str]:
    """The lines of the file: a header, then what the terminal is sent, and when."""
    header = {"version": 2, "width": SIZE.columns, "height": SIZE.rows, "title": title}
    yield json.dumps(header | {"env": {"TERM": "xterm-256color"}})
    shown: Rows = []
    began = 0.0
    yield _event(0.0, "\x1b[?25l\x1b[2J")
    for number, tape in enumerate(tapes):
        note = f"text {number + 1} of {len(tapes)}" if len(tapes) > 1 else ""
        for second, after in _moments(tape):
            report = Report(second, 0, note=note)
            rows = [painter.text(line) for line in stage.rows([tape.frame(after)], report, SIZE)]
            yield _event(began + second, _difference(shown, rows))
            shown = rows
        began += tape.timeline.end
    yield _event(began, f"\x1b[{SIZE.rows};1H\x1b[?25h")


def _moments(tape: Tape) -> Iterator[tuple[float, int]]:
    """Seconds at which a frame is drawn, each with the number of calls made until then."""
    yield 0.0, 0
    drawn = 0.0
    for after, second in enumerate(tape.timeline.starts, 1):
        if second - drawn >= 1 / _RATE or after == tape.calls:
            yield second, after
            drawn = second
    yield tape.timeline.end - HOLD / 2, tape.calls


def _difference(shown: Rows, rows: Rows) -> str:
    """What makes a screen that shows some rows show others."""
    rows = rows + [""] * (len(shown) - len(rows))
    shown = shown + [""] * (len(rows) - len(shown))
    changed = (
        (number, row)
        for number, (old, row) in enumerate(zip(shown, rows, strict=True), 1)
        if old != row
    )
    return "".join(f"\x1b[{number};1H{row}\x1b[K" for number, row in changed)


def _event(second: float, output: str) -> str:
    return json.dumps([round(second, 3), "o", output], ensure_ascii=False)
