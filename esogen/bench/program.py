"""A measurement as a program of its own: `python -m esogen.bench.NAME`."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from esogen.errors import explain
from esogen.visible import one_line


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
