"""Where the texts of `esogen score` come from: files, stdin, or the command line."""

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from esogen.cli.prompt import STDIN, opened_file
from esogen.cli.terminal import is_terminal
from esogen.errors import EsogenError, UsageError, not_utf_8

if TYPE_CHECKING:
    from esogen.scoring.documents import Reading

Named = tuple[str, str]
"""What a text is called, and the text."""


@dataclass(slots=True, eq=False)
class Sources:
    """The texts to be scored, read when they are needed.

    `size`: bytes of all files, None where it is not known; `position`: bytes read so far.
    """

    paths: Sequence[Path]
    text: str | None
    reading: "Reading"
    size: int | None = None
    _done: int = 0
    _file: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    def of(cls, files: Sequence[Path], text: str | None, reading: "Reading") -> "Sources":
        """What the words of a command name. Raises `UsageError` where that is nothing, or twice."""
        if text is not None:
            if files:
                raise UsageError("--text and FILE exclude each other; give one of them")
            return cls((), text, reading)
        paths = files or _stdin_if_piped()
        if [str(path) for path in paths].count(STDIN) > 1:
            raise UsageError("- is given more than once; stdin can be read once: leave one out")
        for path in paths:
            if str(path) != STDIN and not path.exists():
                raise EsogenError(f"{path} is not there; wanted a text file, or - for stdin")
        sizes = [_size(path) for path in paths]
        known = [size for size in sizes if size is not None]
        return cls(paths, None, reading, sum(known) if len(known) == len(sizes) else None)

    def __iter__(self) -> Iterator[Named]:
        """Every text with its name: the file's, and a number where the file has several."""
        if self.text is not None:
            yield "--text", self.text
        for path in self.paths:
            yield from _numbered(*self._read(path))

    @property
    def share(self) -> float | None:
        """How much has been read, in [0, 1], where it is known."""
        if not self.size:
            return None
        now = self._file.tell() if self._file else 0
        return min(1.0, (self._done + now) / self.size)

    def _read(self, path: Path) -> tuple[str, Iterator[str]]:
        from esogen.scoring.documents import read_stream

        if str(path) == STDIN:
            return "stdin", read_stream(_stdin(), "stdin", self.reading)
        return str(path), self._read_file(path)

    def _read_file(self, path: Path) -> Iterator[str]:
        from esogen.scoring.documents import read_stream

        self._file = opened_file(path, "a text file, or - for stdin")
        with self._file as file:
            yield from read_stream(file, str(path), self.reading)
            self._done += file.tell()
            self._file = None


def _numbered(name: str, texts: Iterator[str]) -> Iterator[Named]:
    first = next(texts, None)
    second = next(texts, None)
    if first is not None:
        yield (name if second is None else f"{name}, text 1"), first
    if second is not None:
        yield f"{name}, text 2", second
    yield from ((f"{name}, text {number}", text) for number, text in enumerate(texts, 3))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _stdin_if_piped() -> list[Path]:
    if sys.stdin is None or is_terminal(sys.stdin):
        raise UsageError("there is nothing to score; give a FILE, --text TEXT, or pipe a text in")
    return [Path(STDIN)]


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise UsageError("- stands for stdin, which is closed; pipe a text in, or give a FILE")
    return sys.stdin.buffer


GIVEN = "given:"
"""What stands before the name of a file with orders."""

_NUMBERS = re.compile(r"[\s,\[\]]+")


def read_orders(word: str) -> list[list[int]]:
    """The orders in the file that `given:FILE` names: one a line, parted by spaces or commas.

    Raises `UsageError` for what holds anything else.
    """
    path = Path(os.path.expanduser(word.removeprefix(GIVEN)))  # noqa: PTH111 - no shell did it
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf_8(str(path), error) from error
    except OSError as error:
        raise EsogenError(
            f"cannot read {path}: {error.strerror or error}; wanted a file with an order a line"
        ) from error
    orders = []
    for number, line in enumerate(io.StringIO(text), 1):
        words = [word for word in _NUMBERS.split(line) if word]
        wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
        if wrong:
            raise UsageError(
                f"{path}, line {number}, has {wrong[:40]!r}; wanted an order: the positions of the"
                " tokens, from 0, each once, in the order in which they are decided"
            )
        if words:
            orders.append([int(word) for word in words])
    if not orders:
        raise UsageError(f"{path} is empty; wanted an order: the positions of the tokens, from 0")
    return orders
