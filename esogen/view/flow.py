"""Words into lines of a width on the screen: wide and combining characters, indents, newlines."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from rich.cells import get_character_cell_size

Span = tuple[str, str]
"""A text without newlines and tabs, and the role that says how it looks."""

TAB = 8

_SPLIT = re.compile(r"\n|\t|[^\S\n\t]+|\S+")
_JOINER = "\u200d"


class Line(NamedTuple):
    """Spans from left to right, and how many columns they take together."""

    spans: list[Span]
    width: int


class Part(NamedTuple):
    """A newline, a tab, a run of spaces, a word, or a wide character that may stand anywhere."""

    kind: str
    text: str
    width: int


SPACE, WORD, WIDE, NEWLINE, TABULATOR = " ", "w", "W", "\n", "\t"


@lru_cache(65536)
def cells(text: str) -> int:
    """Columns that `text` takes at most: terminals differ in what they join to one character."""
    return len(text) if text.isascii() else sum(map(get_character_cell_size, text))


def parts_of(text: str) -> tuple[Part, ...]:
    """Cut a text that is `visible` where lines may end."""
    return tuple(part for found in _SPLIT.findall(text) for part in _cut(found))


def _cut(found: str) -> Iterator[Part]:
    if found in (NEWLINE, TABULATOR):
        yield Part(found, "", 0)
    elif found.isspace():
        yield Part(SPACE, found, cells(found))
    elif found.isascii() or cells(found) <= len(found):
        yield Part(WORD, found, cells(found))
    else:
        for character in characters(found):
            width = cells(character)
            yield Part(WIDE if width > 1 else WORD, character, width)


def characters(text: str) -> Iterator[str]:
    """Characters with what combines with them."""
    start = 0
    for index in range(1, len(text)):
        joined = text[index] == _JOINER or text[index - 1] == _JOINER
        if not joined and get_character_cell_size(text[index]):
            yield text[start:index]
            start = index
    yield text[start:]


class Flow:
    """Lines of at most `width` columns, filled word by word."""

    def __init__(self, width: int) -> None:
        self.lines: list[Line] = []
        self._width = max(width, 1)
        self._line: list[Span] = []
        self._word: list[Span] = []
        self._column = self._gap = self._word_width = 0

    def add(self, part: Part, role: str) -> None:
        """Take the next part."""
        kind, text, width = part
        if kind == WORD:
            self._word.append((text, role))
            self._word_width += width
        else:
            self.rest()
            if kind == SPACE:
                self._gap += width
            elif kind == NEWLINE:
                self._end_line()
            elif kind == TABULATOR:
                self._gap += TAB - (self._column + self._gap) % TAB
            else:
                self._word, self._word_width = [(text, role)], width
                self.rest()

    def rest(self) -> None:
        """Put the word that was being gathered where it fits."""
        if not self._word:
            return
        if self._column and self._column + self._gap + self._word_width > self._width:
            self._end_line()
        if self._gap:
            self._indent()
        if self._word_width > self._width:
            self._break()
        else:
            self._line += self._word
            self._column += self._word_width
        self._word, self._word_width = [], 0

    def finish(self) -> list[Line]:
        """All lines, the last one too if there is something on it."""
        self.rest()
        if self._line:
            self._end_line()
        return self.lines

    def _indent(self) -> None:
        room = max(0, self._width - self._column - self._word_width)
        gap = min(self._gap, room)
        self._gap = 0
        if gap:
            self._line.append((" " * gap, "plain"))
            self._column += gap

    def _end_line(self) -> None:
        self.lines.append(Line(self._line, self._column))
        self._line, self._column, self._gap = [], 0, 0

    def _break(self) -> None:
        """Cut a word that is wider than a line, and leave out what is wider by itself."""
        for text, role in self._word:
            for character in characters(text):
                width = cells(character)
                if self._column + width > self._width:
                    self._end_line()
                if width <= self._width:
                    self._line.append((character, role))
                    self._column += width
