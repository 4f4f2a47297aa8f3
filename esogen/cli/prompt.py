"""The text a command is given: words on the command line, stdin, or both; or a file."""

import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from esogen.cli.terminal import Console, is_terminal
from esogen.errors import EsogenError, UsageError, not_utf_8

STDIN = "-"


def read_prompt(
    words: Sequence[str], console: Console, name: str = "PROMPT", *, shared: bool = False
) -> str:
    """The text that `words` stand for, `-` among them for stdin; without words, stdin if piped in.

    `name` is what the argument is called. One newline at the end of stdin is dropped. Raises
    `UsageError` for more than one text, when stdin is closed or not UTF-8, and where it is `shared`
    by several processes, each of which would read a part.
    """
    if shared and (STDIN in words or (not words and is_piped())):
        raise UsageError(
            f"several processes cannot read one stdin; give {name} as an argument, '' for none"
        )
    if not words:
        return read_stdin(console, name) if is_piped() else ""
    texts = [word for word in words if word != STDIN]
    if len(texts) > 1:
        raise UsageError(
            f"{name} is {len(texts)} arguments; it must be one text:"
            f" did you mean {shlex.quote(' '.join(texts))}?"
        )
    if len(words) > len(texts) + 1:
        raise UsageError("- is given more than once; stdin can be read once: leave one out")
    return "".join(read_stdin(console, name) if word == STDIN else word for word in words)


def is_piped() -> bool:
    """Whether stdin is a pipe or a file: what else a process may inherit could be read for ever."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file at all, but a stream in memory
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_stdin(console: Console, name: str) -> str:
    """All of stdin, without one newline at its end; raises `UsageError` as `read_prompt` does."""
    if sys.stdin is None:
        raise UsageError(
            f"- stands for stdin, which is closed; pipe a text in, or give it as {name}"
        )
    if is_terminal(sys.stdin):
        console.say(f"type the {name.lower()}, then Ctrl-D on a line of its own")
    else:
        console.status(f"reading the {name.lower()} from stdin ...")
    return _text(sys.stdin.buffer.read(), "stdin")


def read_file(path: Path, wanted: str) -> str:
    """All of a file, without one newline at its end; `wanted` says in words what it should hold.

    Raises `UsageError` when it is not UTF-8, `EsogenError` when it cannot be read.
    """
    with opened_file(path, wanted) as file:
        return _text(file.read(), str(path))


def opened_file(path: Path, wanted: str) -> BinaryIO:
    """A file to be read; raises `EsogenError` as `read_file` does."""
    try:
        return path.open("rb")
    except OSError as error:
        raise EsogenError(
            f"cannot read {path}: {error.strerror or error}; wanted {wanted}"
        ) from error


def _text(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf_8(name, error) from error
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
