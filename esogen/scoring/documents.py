"""Texts to be scored, read one document at a time, so that a file may be larger than memory."""

import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, cast

from esogen.errors import EsogenError, not_utf_8
from esogen.training.data import SEPARATOR

MOST_BYTES = 2**28
"""Of one document: what is longer is refused, before memory runs out."""

JSON_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is parted into documents.

    `field`: the file is JSON lines, and this field of each holds the text. `lines`: every line is a
    document. `whole`: the file is one. Else documents are parted by lines `<|endoftext|>`, as in
    training.
    """

    field: str | None = None
    lines: bool = False
    whole: bool = False

    def of(self, name: str) -> "Reading":
        """The same for the file called `name`: its ending may say that it is JSON lines."""
        if self == Reading() and Path(name.removesuffix(".xz")).suffix in JSON_SUFFIXES:
            return Reading("text")
        return self


def read_stream(file: BinaryIO, name: str, reading: Reading) -> Iterator[str]:
    """The documents of an open file called `name`; of one without any, an empty one."""
    plain = _unpacked(file) if name.endswith(".xz") else file
    found = False
    with _naming(name):
        for document in _documents(_lines(plain, name), name, reading.of(name)):
            found = True
            yield document
    if not found:
        yield ""


def _documents(lines: Iterator[str], name: str, reading: Reading) -> Iterator[str]:
    if reading.field is not None:
        return _json_lines(lines, name, reading.field)
    if reading.lines:
        return (text for line in lines if (text := line.removesuffix("\n")).strip())
    return _parted(lines, name, whole=reading.whole)


def _parted(lines: Iterator[str], name: str, *, whole: bool) -> Iterator[str]:
    """Documents parted by lines `<|endoftext|>`, without blank lines around them."""
    together: list[str] = []
    size = 0
    for line in lines:
        if not whole and SEPARATOR.fullmatch(line.removesuffix("\n")):
            yield from _joined(together)
            together, size = [], 0
        else:
            together.append(line)
            size += len(line)
        if size > MOST_BYTES:
            raise _too_long(name)
    yield from _joined(together)


def _joined(lines: list[str]) -> Iterator[str]:
    document = "".join(lines).strip("\n")
    if document.strip():
        yield document


def _json_lines(lines: Iterator[str], name: str, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EsogenError(
                f"{name}, line {number}, is no JSON ({error}); wanted one object a line"
            ) from error
        if not isinstance(found, dict) or not isinstance(found.get(field), str):
            has = f"the fields {', '.join(found)}" if isinstance(found, dict) else "no object"
            raise EsogenError(
                f"{name}, line {number}, has {has}; wanted an object with a text in the field"
                f" {field!r}: name another with --field"
            )
        yield found[field]


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Lines as text, `\\n` at the end of each but perhaps the last."""
    read = 0
    for number in count():
        line = file.readline(MOST_BYTES + 1)
        if not line:
            return
        if len(line) > MOST_BYTES:
            raise _too_long(name)
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield line.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise not_utf_8(name, error, read) from error
        read += len(line)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (lzma.LZMAError, EOFError) as error:
        raise EsogenError(f"{name} is no intact xz file ({error}); copy it again") from error
    except OSError as error:
        raise EsogenError(f"cannot read {name}: {error.strerror or error}") from error


def _too_long(name: str) -> EsogenError:
    return EsogenError(
        f"{name} has a document of more than {MOST_BYTES >> 20} MiB; part it by lines"
        " <|endoftext|>, or score its lines with --lines"
    )


def _unpacked(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(file))
