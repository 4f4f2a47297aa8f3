"""Where texts go, and in which format: stdout or a file; plain text, a JSON array or JSON lines."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import typer

from esogen.atomic import replacing
from esogen.errors import EsogenError, UsageError
from esogen.shards import Shard
from esogen.visible import visible

if TYPE_CHECKING:
    from esogen.sampling import Sample

STDOUT = Path("-")
SEPARATOR = "---"

Fields = Mapping[str, object]
"""What the JSON formats say of each text, besides what a `Sample` holds."""


@dataclass(frozen=True, slots=True)
class Output:
    """An open file or stdout; `name` is what messages call it, `flag` what named it."""

    file: BinaryIO
    name: str
    flag: str = "--output"

    def write(self, text: str) -> None:
        """Hand `text` over at once, as UTF-8; a terminal gets it `visible`, all else as it is."""
        self.write_painted(visible(text) if self.file.isatty() else text)

    def write_painted(self, text: str) -> None:
        """Hand over, as it is, what is `visible` already, and may hold colours of our own."""
        rest = memoryview(text.encode())
        with _naming(self.name, self.flag):
            while rest:
                rest = rest[self.file.write(rest) :]
            self.file.flush()


@contextmanager
def opened(path: Path | None, flag: str = "--output") -> Iterator[Output]:
    """Open stdout (None or `-`) or a file, which appears whole when the block ends well.

    `flag` is where the file was named.
    A device or a named pipe is written to as it stands. Raises `EsogenError` when it cannot be.
    """
    if path is None or path == STDOUT:
        if sys.stdout is None:
            raise EsogenError("stdout is closed; redirect it, or write to a file with --output")
        yield Output(sys.stdout.buffer, "stdout")
        return
    with ExitStack() as stack:
        with _naming(str(path), flag):
            file = stack.enter_context(_open(path))
        yield Output(file, str(path), flag)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        with path.open("wb", buffering=0) as file:
            yield file
    else:
        with replacing(path.resolve()) as scratch, scratch.open("wb", buffering=0) as file:
            yield file


@contextmanager
def _naming(name: str, flag: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever reads has enough
        raise typer.Exit from None
    except OSError as error:
        hint = "free some space, or " if error.errno == errno.ENOSPC else ""
        raise EsogenError(
            f"{name} cannot be written: {error.strerror or error};"
            f" {hint}choose another place with {flag}"
        ) from error


class Writer(Protocol):
    """Writes texts in one of the formats."""

    def write(self, sample: "Sample") -> None:
        """Take one finished text."""
        ...

    def finish(self) -> None:
        """Write what is still held back; nothing comes after."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """The format that was asked for. Raises `UsageError` for flags that contradict each other."""

    format: str
    separator: str | None
    null: bool

    def __post_init__(self) -> None:
        if self.null and self.separator is not None:
            raise UsageError("--null and --separator exclude each other; give one of them")
        _check_unicode(self.separator or "")
        if self.format != "text" and (self.null or self.separator is not None):
            flag = "--null" if self.null else "--separator"
            raise UsageError(f"{flag} is for --format text, not {self.format}; leave it out")

    def writer(self, output: Output, fields: Callable[[], Fields]) -> Writer:
        """A writer in this format; `fields` is asked only by those that write them."""
        if self.format == "json":
            return _Array(output, fields())
        if self.format == "jsonl":
            return _Lines(output, fields())
        separator = SEPARATOR if self.separator is None else self.separator
        return _Texts(output, "", "\0") if self.null else _Texts(output, f"{separator}\n", "\n")


def _check_unicode(separator: str) -> None:
    try:
        separator.encode()
    except UnicodeEncodeError:
        raise UsageError("--separator is not valid UTF-8; give it as Unicode text") from None


class _Texts:
    """Plain text: `between` stands between two texts, `end` behind each."""

    def __init__(self, output: Output, between: str, end: str) -> None:
        self._output, self._between, self._end = output, between, end
        self._before = ""

    def write(self, sample: "Sample") -> None:
        self._output.write(f"{self._before}{sample.text}{self._end}")
        self._before = self._between

    def finish(self) -> None:
        """Nothing is held back."""


class _Lines:
    """One JSON object on a line of its own for each text."""

    def __init__(self, output: Output, fields: Fields) -> None:
        self._output, self._fields = output, fields

    def write(self, sample: "Sample") -> None:
        self._output.write(_as_json(sample, self._fields) + "\n")

    def finish(self) -> None:
        """Nothing is held back."""


class _Array:
    """One JSON array, written when all texts are there."""

    def __init__(self, output: Output, fields: Fields) -> None:
        self._output, self._fields = output, fields
        self._objects: list[str] = []

    def write(self, sample: "Sample") -> None:
        self._objects.append(_as_json(sample, self._fields))

    def finish(self) -> None:
        self._output.write("[\n" + ",\n".join(self._objects) + "\n]\n")


class Filed:
    """One JSON object on a line of its own for each text, in this process's file of a folder."""

    def __init__(self, shard: Shard, fields: Fields) -> None:
        self._shard, self._fields = shard, fields

    def write(self, sample: "Sample") -> None:
        """Add a text; it is in the file when this returns."""
        self._shard.add({**sample.record(), **self._fields})

    def finish(self) -> None:
        """Nothing is held back."""


def _as_json(sample: "Sample", fields: Fields) -> str:
    record = {**sample.record(), **fields}
    return json.dumps(record, ensure_ascii=False, allow_nan=False)
