"""`esogen doctor`: what this machine can do, what is missing, and how to get it."""

import json
import os
import re
import select
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from esogen.cli.terminal import Console, is_terminal
from esogen.visible import one_line

if TYPE_CHECKING:
    from esogen.doctor import Finding

_SIGNS = {"ok": "ok", "note": "--", "problem": "!!"}
_ASK_SYNCHRONISED = "\x1b[?2026$p"
_PATIENCE = 0.2


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Ask the hub too.")] = False,
) -> None:
    """Say what this machine can do, what is missing, and the command that mends it.

    Exits with 1 when esogen cannot write text here.
    """
    from esogen.doctor import examine

    console = Console.stderr()
    findings = []
    for finding in (*_terminal(), *_watched(examine(online=online), console)):
        findings.append(finding)
        if not as_json:
            console.clear()
            _print(finding)
    console.clear()
    healthy = not any(each.verdict == "problem" and each.vital for each in findings)
    if as_json:
        document = {"ok": healthy, "findings": [asdict(each) for each in findings]}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    if not healthy:
        raise typer.Exit(1)


def _watched(findings: "Iterator[Finding]", console: Console) -> "Iterator[Finding]":
    console.status("examining ...")
    for finding in findings:
        yield finding
        console.status("examining ...")


def _print(finding: "Finding") -> None:
    line = f"{_SIGNS[finding.verdict]}  {finding.name:<22}{finding.found}"
    for text in (line, f"      try: {finding.mend}" if finding.mend else ""):
        if text:
            typer.echo(one_line(text) if is_terminal(sys.stdout) else text)


def _terminal() -> "Iterator[Finding]":
    from esogen.doctor import Finding

    if not is_terminal(sys.stdout):
        yield Finding("terminal", "ok", "stdout is none: no colours, no live view")
        return
    console = Console.stderr()
    width, height = shutil.get_terminal_size()
    colours = "colours" if console.colored else "no colours (NO_COLOR, TERM=dumb or no terminal)"
    synchronised = "synchronised" if _synchronises() else "no synchronised"
    term = os.environ.get("TERM", "unset")
    found = f"TERM {term}, {width} by {height}, {colours}, {synchronised} updates"
    yield Finding("terminal", "ok", found)


def _synchronises() -> bool:
    """Ask the terminal whether it knows synchronised updates (mode 2026); no answer is a no."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError):
        return False
    except termios.error:
        return False
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write(_ASK_SYNCHRONISED)
        sys.stdout.flush()
        return bool(re.search(rb"\x1b\[\?2026;[123]\$y", _answer(descriptor)))
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _answer(descriptor: int) -> bytes:
    """What comes back within a moment, up to the end of a report."""
    answer = b""
    while not answer.endswith(b"y") and select.select([descriptor], [], [], _PATIENCE)[0]:
        more = os.read(descriptor, 64)
        if not more:
            break
        answer += more
    return answer
