"""The command line: one file per command. The only place with Typer.

Importing this imports nothing that takes time, not even Typer: a command that works for long has
said so on the terminal before.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from esogen.cli.terminal import Console
from esogen.errors import DONE, INTERRUPTED, PROBLEM, UsageError, explain
from esogen.ranks import Ranks
from esogen.visible import one_line

_COMPLETION = "_ESOGEN_COMPLETE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `esogen` with these arguments, those of the process if None; returns the exit code.

    0 done, 1 a problem that esogen names, 2 wrong usage, 130 interrupted. A problem is one line on
    stderr; with ESOGEN_DEBUG=1 its traceback comes first. A closed pipe ends quietly.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _greet(words)
        _stop_on_sigterm()
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        code = DONE
    except SystemExit:  # Rich's and Typer's for a closed pipe, and of a completion that is done
        if _COMPLETION in os.environ:
            raise
        code = DONE
    except (Exception, KeyboardInterrupt) as error:
        code = _report(error)
    _let_go_of_stdout()
    return code


def _greet(words: Sequence[str]) -> None:
    """Put something on the terminal at once: what follows is imported first, and takes seconds."""
    silent = _COMPLETION in os.environ or {"-h", "--help", "--quiet"} & {*words}
    slow = (["sample"], ["infill"], ["score"], ["train"], ["bench"], ["tokenize"])
    if words[:1] in slow and not silent and _first():
        Console.stderr().status("starting ...")


def _stop_on_sigterm() -> None:
    """Make SIGTERM a Ctrl-C, so that it too keeps what is finished."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _run(words: Sequence[str]) -> int:
    from esogen.cli.app import app

    words = words or ["--help"]
    code: int | None = app(words, prog_name="esogen", standalone_mode=False, obj=words)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code or DONE


def _report(error: BaseException) -> int:
    """Print what happened as one line on stderr; returns the exit code for it."""
    if os.environ.get("ESOGEN_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    message, code = explain(error) or _explain_typer(error)
    if sys.stderr is not None and (code == PROBLEM or _first()):
        with suppress(OSError):
            Console.stderr().clear()
            print(f"esogen: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def _first() -> bool:
    """Whether this is the one of several processes that says what holds for all of them."""
    try:
        return Ranks.here().first
    except UsageError:
        return True


def _explain_typer(error: BaseException) -> tuple[str, int]:
    import typer

    if isinstance(error, typer.TyperException):
        message, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        if context and not message.endswith("?"):
            message += f"; see {context.command_path} --help"
        return message, error.exit_code
    if isinstance(error, typer.Abort):
        return "interrupted", INTERRUPTED
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is imported by then
        return "the GPU has too little memory; try --device cpu or a narrower --dtype", PROBLEM
    found = f"{type(error).__name__}: {error}"
    return f"a defect of esogen ({found}); ESOGEN_DEBUG=1 shows where", PROBLEM


def _let_go_of_stdout() -> None:
    """Drop what a full disk or a closed pipe did not take, or Python complains when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
