"""A measurement as a program of its own: `python -m esogen.bench.NAME`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from esogen.errors import explain
from esogen.visible import one_line


def count(word: str) -> int:
    """A flag's value that must be a whole number from 1 on."""
    if not (word.isascii() and word.isdigit() and int(word[:18]) > 0):
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 1 on")
    return int(word)


def share(word: str) -> float:
    """A flag's value that must be in [0, 1]."""
    try:
        if 0.0 <= float(word) <= 1.0:
            return float(word)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{word!r} is no number from 0 to 1")


def run(main: Callable[[], object]) -> NoReturn:
    """End this process with `main`; a problem is one line on stderr and its exit code.

    A defect is raised, and so is everything with ESOGEN_DEBUG=1. SIGTERM is a Ctrl-C: what is being
    written is not left behind half.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None or os.environ.get("ESOGEN_DEBUG", "0") not in ("", "0"):
            raise
        message, code = explained
        print(f"esogen: {one_line(message)}", file=sys.stderr)
        sys.exit(code)
    sys.exit()
