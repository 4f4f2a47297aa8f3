"""Long texts: windows that a network can read, each token of a text counted in one of them."""

from collections.abc import Iterator
from typing import NamedTuple

from esogen.scoring.settings import ScoreSettings


class Window(NamedTuple):
    """Tokens `start` to before `end` of a text; the first `given` are known and not counted."""

    start: int
    end: int
    given: int


def windows_of(tokens: int, settings: ScoreSettings) -> Iterator[Window]:
    """The windows of a text of `tokens` tokens, which count every token once.

    The first counts as many tokens as stride and context hold together, because nothing stands
    before them; each later one counts `stride`, given the `context` before.
    """
    first = min(tokens, settings.context + settings.stride)
    yield Window(0, first, 0)
    for counted in range(first, tokens, settings.stride):
        start = counted - settings.context
        yield Window(start, min(tokens, counted + settings.stride), settings.context)
