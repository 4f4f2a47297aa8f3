"""Calls of `esogen` in this process, with a stdin that is given and no terminal anywhere."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from typer.testing import CliRunner

from esogen.cli import main


@dataclass(frozen=True, slots=True)
class Result:
    """What one call of `esogen` did; `screen` is what a terminal was sent, by both streams."""

    code: int
    stdout: str
    stderr: str
    screen: str = ""


Esogen = Callable[..., Result]


def call(*words: str, stdin: bytes = b"") -> Result:
    """Call `esogen` with these words."""
    with CliRunner().isolation(input=stdin) as (stdout, stderr, _):
        code = main(words)
        sys.stderr.flush()
        return Result(code, stdout.getvalue().decode(), stderr.getvalue().decode())


def problem(result: Result, code: int) -> str:
    """The one line on stderr of a call that went wrong and wrote no text."""
    assert (result.code, result.stdout) == (code, "")
    assert result.stderr.startswith("esogen: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
