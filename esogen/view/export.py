"""A trace as a file to show: the suffix of its name says what it becomes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esogen.trace_file import Header, RecordedText
from esogen.view.canvas import Pieces
from esogen.view.palette import PALETTES, Coloring
from esogen.view.pieces import pieces_of
from esogen.view.scene import Scene, lay_out
from esogen.view.stage import Painter, Stage
from esogen.view.tape import Tape
from esogen.view.theme import THEMES, ColorBy, ThemeWord
from esogen.visible import one_line

if TYPE_CHECKING:
    from esogen.checkpoint.tokenizer import Tokenizer

COLUMNS = 72
"""Cells of a row in a picture."""


@dataclass(frozen=True, slots=True)
class Reel:
    """What is shown: recorded texts, and how. `speed` 2 is twice as fast as usual."""

    header: Header
    texts: Iterable[RecordedText]
    tokenizer: "Tokenizer"
    theme: ThemeWord = "default"
    color_by: ColorBy = "certainty"
    speed: float = 1.0

    @property
    def title(self) -> str:
        """One line that says which run this is."""
        alpha_0 = self.header.settings.get("alpha_0")
        share = f" · alpha-0 {alpha_0:g}" if isinstance(alpha_0, int | float) else ""
        return one_line(f"esogen · {self.header.model}{share} · seed {self.header.seed}")

    @property
    def end_of_text(self) -> int | None:
        """The token behind which nothing is text, or None if everything is."""
        return None if self.header.raw else self.tokenizer.end_of_text

    def first(self) -> RecordedText:
        """The text that a picture shows, which has room for one."""
        return next(iter(self.texts))

    def plain(self, text: RecordedText) -> str:
        """The finished text, as it is."""
        pieces = pieces_of(text, self.tokenizer, raw=self.header.raw)
        return "".join(piece.text for piece in pieces)

    def scene(self, text: RecordedText) -> Scene:
        """One of the texts, laid out."""
        return lay_out(
            pieces_of(text, self.tokenizer, raw=self.header.raw),
            COLUMNS,
            diffusion_steps=text.diffusion_steps,
            calls=text.calls,
            speed=self.speed,
        )

    def tape(self, text: RecordedText) -> Tape:
        """One of the texts, frame by frame."""
        return Tape.of(text, self.end_of_text, self.speed)

    def coloring(self) -> Coloring:
        """The colours of pictures."""
        return Coloring(PALETTES[self.theme], self.color_by)

    def stage(self) -> Stage:
        """What sets its frames on a screen."""
        return Stage(Pieces(self.tokenizer.decode), self.color_by)


def _svg(reel: Reel) -> bytes:
    from esogen.view.svg import svg

    return svg(reel.scene(reel.first()), reel.coloring(), reel.title).encode()


def _html(reel: Reel) -> bytes:
    from esogen.view.html import player

    scenes = [(text.index, reel.scene(text)) for text in reel.texts]
    return player(scenes, reel.coloring(), reel.title, reel.header.command).encode()


def _cast(reel: Reel) -> bytes:
    from esogen.view.cast import cast

    tapes = [reel.tape(text) for text in reel.texts]
    lines = cast(tapes, reel.stage(), Painter(THEMES[reel.theme]), reel.title)
    return "".join(f"{line}\n" for line in lines).encode()


def _gif(reel: Reel) -> bytes:
    from esogen.view.gif import gif

    return gif(reel.scene(reel.first()), reel.coloring(), reel.title)


def _txt(reel: Reel) -> bytes:
    return "---\n".join(f"{reel.plain(text)}\n" for text in reel.texts).encode()


EXPORTS: Mapping[str, Callable[[Reel], bytes]] = {
    ".svg": _svg,
    ".html": _html,
    ".cast": _cast,
    ".gif": _gif,
    ".txt": _txt,
}
"""What writes the files of each suffix. Pictures show the first text, the others show all."""
