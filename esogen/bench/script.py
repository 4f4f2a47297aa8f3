"""How a script of this folder ends: as a command does."""

import signal
import sys
from collections.abc import Callable

from esogen.errors import explain
from esogen.visible import one_line


def run(main: Callable[[], None]) -> None:
    """Run a script; what goes wrong and has a name is one line on stderr and an exit code.

    SIGTERM is a Ctrl-C: what is being written is not left behind half.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except BaseException as error:
        if (told := explain(error)) is None:
            raise
        message, code = told
        print(f"esogen: {one_line(message)}", file=sys.stderr)
        sys.exit(code)
