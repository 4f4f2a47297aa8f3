"""The PROMPT of a command: words on the command line, stdin, or both."""

import os
import shlex
import stat
import sys
from collections.abc import Sequence

from esogen.cli.terminal import Console, is_terminal
from esogen.errors import UsageError

STDIN = "-"


def read_prompt(words: Sequence[str], console: Console) -> str:
    """The text that `words` stand for, `-` among them for stdin; without words, stdin if piped in.

    One newline at the end of stdin is dropped. Raises `UsageError` for more than one text, and when
    stdin is closed or not UTF-8.
    """
    if not words:
        return _read_stdin(console) if _is_piped() else ""
    texts = [word for word in words if word != STDIN]
    if len(texts) > 1:
        raise UsageError(
            f"PROMPT is {len(texts)} arguments; it must be one text:"
            f" did you mean {shlex.quote(' '.join(texts))}?"
        )
    if len(words) > len(texts) + 1:
        raise UsageError("- is given more than once; stdin can be read once: leave one out")
    return "".join(_read_stdin(console) if word == STDIN else word for word in words)


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file: what else a process may inherit could be read for ever."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file at all, but a stream in memory
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin(console: Console) -> str:
    if sys.stdin is None:
        raise UsageError(
            "- stands for stdin, which is closed; pipe a text in, or give it as PROMPT"
        )
    if is_terminal(sys.stdin):
        console.say("type the prompt, then Ctrl-D on a line of its own")
    else:
        console.status("reading the prompt from stdin ...")
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8: there is the byte 0x{data[error.start]:02x} at {error.start};"
            " wanted UTF-8 text: convert it first, for example with iconv -f latin1 -t utf-8"
        ) from error
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
