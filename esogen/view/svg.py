"""A scene as an animated SVG: one file without scripts, fonts or links.

CSS animates it, so that it moves in an `<img>` too. Where nothing moves (another renderer, a reader
who asked for less motion) it is the finished text.
"""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from esogen.view.palette import Coloring
from esogen.view.pieces import GIVEN
from esogen.view.scene import LEAD, Run, Scene
from esogen.visible import visible

CELL, ROW, SIZE = 9.0, 27.0, 15.0
"""Width of a cell, height of a row and size of the letters, in pixels."""
PAD, TOP, FOOT = 36.0, 78.0, 84.0
FONT = (
    "ui-monospace,SFMono-Regular,'SF Mono','JetBrains Mono',Menlo,Consolas,"
    "'DejaVu Sans Mono','Liberation Mono',monospace"
)
_SOFT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','DejaVu Sans',sans-serif"
_MOST_TICKS = 400
"""Moments at which something appears; calls of a longer run share one."""
_FADE, _GLOW, _RESET = 0.25, 1.8, 0.6
"""Seconds in which a mask goes, a fresh token cools down, and everything starts over."""


def svg(scene: Scene, coloring: Coloring, title: str) -> str:
    """The whole file."""
    return "\n".join(_Picture(scene, coloring, title).lines()) + "\n"


class _Picture:
    def __init__(self, scene: Scene, coloring: Coloring, title: str) -> None:
        self._scene, self._coloring, self._title = scene, coloring, title
        self._paint = coloring.palette
        self._stride = -(-scene.calls // _MOST_TICKS) or 1
        self._ticks = range(0, scene.calls, self._stride)
        self._width = 2 * PAD + CELL * scene.columns
        self._height = TOP + ROW * scene.rows + FOOT

    def lines(self) -> Iterator[str]:
        width, height = self._width, self._height
        text = " ".join(visible(self._scene.text).split())
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
            f' width="{width:g}" height="{height:g}" role="img" aria-labelledby="t d">'
        )
        yield f'<title id="t">{xml(self._title)}</title>'
        yield f'<desc id="d">{xml(text)}</desc>'
        yield f"<style>{''.join(self._style())}</style>"
        yield from self._window()
        yield '<g class="m">'
        yield from (self._mask(run) for run in self._scene.runs if self._step(run) != GIVEN)
        yield "</g>"
        yield from (self._word(run) for run in self._scene.runs)
        yield from self._footer()
        yield "</svg>"

    def _step(self, run: Run) -> int:
        return self._scene.pieces[run.piece].step

    def _tick(self, run: Run) -> int:
        return self._step(run) // self._stride

    # What stands still

    def _style(self) -> Iterator[str]:
        paint = self._paint
        yield f"text{{font:{SIZE:g}px {FONT};fill:{paint.calm};white-space:pre}}"
        yield f".u{{font:13px {_SOFT};fill:{paint.quiet}}}.e{{text-anchor:end}}"
        yield f".g{{fill:{paint.given}}}.m{{fill:{paint.mask_diffusion}}}.m rect{{opacity:0}}"
        yield f".p{{fill:{paint.diffusion}}}.q{{fill:{paint.sequential}}}"
        yield from (f".c{i}{{--c:{color}}}" for i, color in enumerate(self._coloring.colors))
        yield f".s{{fill:{paint.written}}}"
        if self._coloring.stays:
            yield from (
                f"text.c{i}{{fill:{color}}}" for i, color in enumerate(self._coloring.colors)
            )
        if self._scene.calls:
            yield f"@media (prefers-reduced-motion:no-preference){{{''.join(self._motion())}}}"

    def _window(self) -> Iterator[str]:
        width, height, paint = self._width, self._height, self._paint
        yield (
            f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="12"'
            f' fill="{paint.page}" stroke="{paint.line}"/>'
        )
        for x, color in zip((26, 46, 66), paint.lights, strict=True):
            yield f'<circle cx="{x}" cy="25" r="6" fill="{color}"/>'
        room = int((width - 200) / 7)
        title = self._title if len(self._title) <= room else self._title[: room - 1] + "…"
        yield f'<text class="u" x="{width / 2:g}" y="30" text-anchor="middle">{xml(title)}</text>'
        yield f'<path d="M1 50H{width - 1:g}" stroke="{paint.line}"/>'

    def _mask(self, run: Run) -> str:
        return (
            f'<rect class="k{self._tick(run)}" x="{PAD + CELL * run.column + 1:g}"'
            f' y="{TOP + ROW * run.row + 3:g}" width="{max(CELL * run.width - 2, 1):g}"'
            ' height="17" rx="4"/>'
        )

    def _word(self, run: Run) -> str:
        piece = self._scene.pieces[run.piece]
        kind = "g" if piece.step == GIVEN else f"t w{self._tick(run)} c{self._color(run)}"
        if piece.step >= self._scene.diffusion_steps:
            kind += " s"
        length = f' textLength="{CELL * run.width:g}"' if run.width else ""
        return (
            f'<text class="{kind}" x="{PAD + CELL * run.column:g}"'
            f' y="{TOP + ROW * run.row + 17:g}"{length} lengthAdjust="spacingAndGlyphs">'
            f"{xml(run.text)}</text>"
        )

    def _calm(self, step: int) -> str:
        late = step >= self._scene.diffusion_steps
        return self._paint.written if late else self._paint.calm

    def _color(self, run: Run) -> int:
        return self._coloring.number(self._scene.pieces[run.piece], self._scene.calls)

    def _footer(self) -> Iterator[str]:
        y, width = TOP + ROW * self._scene.rows + 20, self._width - 2 * PAD
        line = self._scene.timeline
        share = (line.switch - LEAD) / max(line.settled - LEAD, 1e-9)
        yield (
            f'<rect x="{PAD:g}" y="{y:g}" width="{width:g}" height="4" rx="2"'
            f' fill="{self._paint.line}"/>'
        )
        x, gap = PAD, 3 if 0 < share < 1 else 0
        for kind, part, *_ in self._phases(share):
            yield (
                f'<rect class="b {kind}" x="{x:g}" y="{y:g}" width="{width * part - gap:g}"'
                ' height="4" rx="2"/>'
            )
            x += width * part + gap
        x = PAD
        for kind, _, name, steps in self._phases(share):
            yield f'<circle class="o {kind}" cx="{x + 4:g}" cy="{y + 28:g}" r="4"/>'
            label = f"{name}, {steps} step{'s' if steps > 1 else ''}"
            yield f'<text class="u n {kind}n" x="{x + 15:g}" y="{y + 32:g}">{label}</text>'
            x += 30 + 7.2 * len(label)
        yield from self._counter(y + 32)

    def _phases(self, share: float) -> Iterator[tuple[str, float, str, int]]:
        diffusion = self._scene.diffusion_steps
        if diffusion:
            yield "p", share, "diffusion", diffusion
        if self._scene.calls > diffusion:
            yield "q", 1 - share, "sequential", self._scene.calls - diffusion

    def _counter(self, y: float) -> Iterator[str]:
        """Steps and masks left, one below the other; a window shows one of them."""
        x, width = self._width - PAD, self._width
        yield f'<clipPath id="v"><path d="M0 {y - 15:g}h{width:g}v20H0z"/></clipPath>'
        last = -20 * len(self._ticks)
        yield f'<g clip-path="url(#v)"><g class="r" transform="translate(0 {last})">'
        calls = self._scene.calls
        for number, after in enumerate([0, *(min(t + self._stride, calls) for t in self._ticks)]):
            masks = self._scene.masks_left[after]
            label = f"step {after} of {calls} · {masks} masks left" if masks else f"{calls} steps"
            yield f'<text class="u e" x="{x:g}" y="{y + 20 * number:g}">{label}</text>'
        yield "</g></g>"

    # What moves

    def _motion(self) -> Iterator[str]:
        line = self._scene.timeline
        yield f".m,.m rect,.t,.r,.b,.o,.n{{animation:{line.end:.2f}s linear infinite}}"
        yield ".r,.o,.n{animation-timing-function:step-end}.b{transform-box:fill-box}"
        fade = f"{self._at(line.end - _RESET)}%"
        for tick in sorted({self._tick(run) for run in self._scene.runs} - {GIVEN}):
            call = self._ticks[tick]
            start = line.starts[call]
            go, gone = self._at(start), self._at(start + _FADE)
            cool = self._at(min(start + _GLOW, line.end - _RESET))
            calm = "" if self._coloring.stays else f";fill:{self._calm(call)}"
            yield (
                f".k{tick}.k{tick}{{animation-name:k{tick}}}.w{tick}{{animation-name:w{tick}}}"
                f"@keyframes k{tick}{{0%,{go}%{{opacity:1}}{gone}%,{fade}{{opacity:0}}"
                "100%{opacity:1}}"
                f"@keyframes w{tick}{{0%,{go}%{{opacity:0;fill:var(--c)}}"
                f"{self._at(start + 0.08)}%{{opacity:1;fill:var(--c)}}"
                f"{cool}%,{fade}{{opacity:1{calm}}}100%{{opacity:0{calm}}}}}"
            )
        yield from self._phase_motion(fade)
        yield from self._roll()

    def _phase_motion(self, fade: str) -> Iterator[str]:
        line, paint = self._scene.timeline, self._paint
        begin, switch, done = map(self._at, (LEAD, line.switch, line.settled))
        turned = self._at(line.switch + 0.2)
        first = paint.mask_diffusion if self._scene.diffusion_steps else paint.mask_sequential
        yield (
            f".m{{animation-name:m}}@keyframes m{{0%,{switch}%{{fill:{first}}}"
            f"{turned}%,{fade}{{fill:{paint.mask_sequential}}}100%{{fill:{first}}}}}"
        )
        for kind, start, end in (("p", begin, switch), ("q", switch, done)):
            yield (
                f".b.{kind}{{animation-name:b{kind}}}@keyframes b{kind}{{0%,{start}%"
                f"{{transform:scaleX(0)}}{end}%,100%{{transform:none}}}}"
                f".o.{kind}{{animation-name:o{kind}}}.{kind}n{{animation-name:o{kind}}}"
                f"@keyframes o{kind}{{0%{{opacity:.4}}{start}%{{opacity:1}}{end}%{{opacity:.4}}"
                f"{done}%,100%{{opacity:1}}}}"
            )

    def _roll(self) -> Iterator[str]:
        moments = [0.0, *(self._scene.timeline.starts[call] for call in self._ticks)]
        frames = (
            f"{self._at(t)}%{{transform:translateY({-20 * i}px)}}" for i, t in enumerate(moments)
        )
        last = f"100%{{transform:translateY({-20 * len(self._ticks)}px)}}"
        yield f".r{{animation-name:r}}@keyframes r{{{''.join(frames)}{last}}}"

    def _at(self, second: float) -> str:
        return f"{100 * second / self._scene.timeline.end:.2f}"


def xml(text: str) -> str:
    """`text` as XML takes it: escaped, and without the two characters that XML forbids."""
    return escape(text.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd"), {'"': "&quot;"})
