"""A scene as an animated GIF, drawn with Pillow: the picture of the SVG, for places without SVG."""

from bisect import bisect_right
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

from esogen.errors import EsogenError
from esogen.view.palette import Coloring
from esogen.view.pieces import GIVEN, Piece
from esogen.view.scene import LEAD, Run, Scene
from esogen.view.svg import CELL, FOOT, PAD, ROW, SIZE, TOP

if TYPE_CHECKING:
    from PIL import ImageFont
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

INSTALL = "pip install 'esogen[gif]'"
RATE = 12.5
"""Frames a second, at most: GIF counts hundredths, and viewers slow down what is faster."""

MOST_ROWS = 200
"""Of a text: every frame is drawn whole, and seen whole."""

_GLOW = 1.2
_SHADES = 6
"""Colours between two that meet at the edge of a letter."""
_MONOSPACED = (
    *("DejaVuSansMono.ttf", "LiberationMono-Regular.ttf", "Menlo.ttc", "SFNSMono.ttf"),
    *("consola.ttf", "NotoSansMono-Regular.ttf", "UbuntuMono-R.ttf", "cour.ttf"),
)


def gif(scene: Scene, coloring: Coloring, title: str) -> bytes:
    """The whole file. Raises `EsogenError` where Pillow is missing or the text is too long."""
    if scene.rows > MOST_ROWS:
        raise EsogenError(
            f"the text has {scene.rows} rows, and a .gif has room for {MOST_ROWS};"
            " export it as .svg, .html or .cast"
        )
    try:
        from PIL import Image as _  # noqa: F401
    except ImportError:
        raise EsogenError(f"a .gif is drawn with Pillow, which is missing; {INSTALL}") from None
    return _Film(scene, coloring, title).write()


class _Film:
    def __init__(self, scene: Scene, coloring: Coloring, title: str) -> None:
        from PIL import Image, ImageDraw

        self._scene, self._coloring, self._title = scene, coloring, title
        self._colors = coloring.palette
        self._size = (
            round(2 * PAD + CELL * scene.columns),
            round(TOP + ROW * scene.rows + FOOT),
        )
        self._letters, self._words = _font(SIZE), _font(13)
        self._palette = Image.new("P", (1, 1))
        self._palette.putpalette(self._shades())
        self._image, self._draw = Image, ImageDraw.Draw

    def write(self) -> bytes:
        """Every frame, each shown until the next."""
        moments = list(self._moments())
        ends = [*moments[1:], self._scene.timeline.end]
        file = BytesIO()
        self._frame(moments[0]).save(
            file,
            "GIF",
            save_all=True,
            append_images=map(self._frame, moments[1:]),
            duration=[round(100 * (end - t)) * 10 for t, end in zip(moments, ends, strict=True)],
            loop=0,
            optimize=False,
        )
        return file.getvalue()

    def _moments(self) -> Iterator[float]:
        """Where something changes, on a grid of frames; then a few in which colours cool down."""
        line = self._scene.timeline
        marks = {0, *(round(second * RATE) for second in line.starts)}
        last = round(line.settled * RATE)
        marks |= {last + round(share * _GLOW * RATE) for share in (0, 0.25, 0.5, 0.75, 1)}
        return (mark / RATE for mark in sorted(marks))

    def _frame(self, second: float) -> "Image":
        image = self._image.new("RGB", self._size, self._colors.page)
        draw = self._draw(image)
        after = bisect_right(self._scene.timeline.starts, second + 1e-9)
        self._window(draw)
        for run in self._scene.runs:
            self._run(draw, run, after, second)
        self._footer(draw, after, second)
        return image.quantize(palette=self._palette, dither=self._image.Dither.NONE)

    def _window(self, draw: "ImageDraw") -> None:
        width = self._size[0]
        for x, color in zip((26, 46, 66), self._colors.lights, strict=True):
            self._disc(draw, x, 25, 6, color)
        draw.text((width / 2, 25), self._title, self._colors.quiet, self._words, anchor="mm")
        draw.line((0, 50, width, 50), fill=self._colors.line)

    def _disc(self, draw: "ImageDraw", x: float, y: float, radius: int, color: str) -> None:
        """A round spot, drawn large and made smaller, so that its edge is soft."""
        side = 2 * radius + 2
        mask = self._image.new("L", (8 * side, 8 * side))
        self._draw(mask).ellipse((8, 8, 8 * side - 9, 8 * side - 9), fill=255)
        corner = (round(x) - radius - 1, round(y) - radius - 1)
        draw.bitmap(corner, mask.resize((side, side)), fill=color)

    def _run(self, draw: "ImageDraw", run: Run, after: int, second: float) -> None:
        piece = self._scene.pieces[run.piece]
        x, y = PAD + CELL * run.column, TOP + ROW * run.row
        if piece.step >= after:
            late = after > 0 and after >= self._scene.diffusion_steps
            color = self._colors.mask_sequential if late else self._colors.mask_diffusion
            box = (x + 1, y + 3, x + max(CELL * run.width - 2, 2), y + 20)
            draw.rounded_rectangle(box, 4, fill=color)
        else:
            self._letters_at(draw, run, x, y + 17, self._color(piece, second))

    def _letters_at(self, draw: "ImageDraw", run: Run, x: float, y: float, color: str) -> None:
        """In cells; a font that has other widths than cells is spread over them."""
        spare = CELL * run.width - self._letters.getlength(run.text)
        gap = spare / max(len(run.text), 1)
        if abs(spare) < 1:
            draw.text((x, y), run.text, color, self._letters, anchor="ls")
            return
        for character in run.text:
            draw.text((x, y), character, color, self._letters, anchor="ls")
            x += self._letters.getlength(character) + gap

    def _color(self, piece: Piece, second: float) -> str:
        if piece.step == GIVEN:
            return self._colors.given
        fresh = self._coloring.colors[self._coloring.number(piece, self._scene.calls)]
        if self._coloring.stays:
            return fresh
        late = piece.step >= self._scene.diffusion_steps
        calm = self._colors.written if late else self._colors.calm
        age = (second - self._scene.timeline.starts[piece.step]) / _GLOW
        return _between(fresh, calm, min(1.0, round(age * 4) / 4))

    def _footer(self, draw: "ImageDraw", after: int, second: float) -> None:
        scene, line, colors = self._scene, self._scene.timeline, self._colors
        left, right = PAD, self._size[0] - PAD
        y = TOP + ROW * scene.rows + 20
        done = (min(second, line.settled) - LEAD) / max(line.settled - LEAD, 1e-9)
        share = (line.switch - LEAD) / max(line.settled - LEAD, 1e-9)
        draw.rounded_rectangle((left, y, right, y + 3), 1, fill=colors.line)
        for start, end, color in ((0, share, colors.diffusion), (share, 1, colors.sequential)):
            if done > start and end > start:
                ends = (left + (right - left) * part for part in (start, min(end, done)))
                draw.line([(x, y + 1) for x in ends], fill=color, width=4)
        x = left
        for color, words in self._phases():
            self._disc(draw, x + 4, y + 28, 4, color)
            draw.text((x + 15, y + 28), words, colors.quiet, self._words, anchor="lm")
            x += 40 + self._words.getlength(words)
        masks = scene.masks_left[after]
        count = f"step {after} of {scene.calls} · {masks} masks left" if masks else ""
        draw.text(
            (right, y + 28), count or f"{scene.calls} steps", colors.quiet, self._words, anchor="rm"
        )

    def _phases(self) -> Iterator[tuple[str, str]]:
        diffusion, late = self._scene.diffusion_steps, self._scene.calls
        if diffusion:
            yield self._colors.diffusion, f"diffusion, {diffusion} steps"
        if late > diffusion:
            yield self._colors.sequential, f"sequential, {late - diffusion} steps"

    def _shades(self) -> list[int]:
        """Every colour there is, and those between it and the page, for the edges of letters."""
        colors = self._colors
        plain = [
            *(colors.calm, colors.written, colors.given, colors.quiet, *colors.lights),
            *(colors.diffusion, colors.sequential, colors.line, *self._coloring.colors),
            *(colors.mask_diffusion, colors.mask_sequential),
        ]
        mixes = [
            _between(fresh, calm, part)
            for fresh in self._coloring.colors
            for calm in (colors.calm, colors.written)
            for part in (0.25, 0.5, 0.75)
            if not self._coloring.stays
        ]
        shades = [
            _between(colors.page, color, part / _SHADES)
            for color in (*plain, *mixes)
            for part in range(1, _SHADES + 1)
        ]
        return [level for color in [colors.page, *shades][:256] for level in _levels(color)]


def _font(size: float) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """A font of this machine whose letters are equally wide, else the one Pillow brings."""
    from PIL import ImageFont

    for name in _MONOSPACED:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _between(first: str, second: str, part: float) -> str:
    """A colour on the way from one to another."""
    pairs = zip(_levels(first), _levels(second), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)


def _levels(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))
