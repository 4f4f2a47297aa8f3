"""The few kinds of error a user can meet.

A message says what was wanted, what was found, what to do.
"""

import errno


class EsogenError(Exception):
    """A problem that esogen names: printed as one line, exit code 1."""


class UsageError(EsogenError):
    """A value or a text that cannot be used as given: printed as one line, exit code 2.

    Also a text that is empty or not UTF-8, wherever it comes from. A file that is not there, cannot
    be read or is damaged is an `EsogenError`.
    """


class CheckpointError(EsogenError):
    """A model folder, or a file in it, that cannot be read as a network of this family."""


class TraceError(EsogenError):
    """A trace file that cannot be read, or that does not go with the model at hand."""


class NumericalError(EsogenError):
    """The network produced numbers that no token can be drawn from."""


class Interrupted(EsogenError):  # noqa: N818 - nobody's error
    """The user stopped a run, and what was kept: printed as one line, exit code 130."""


def not_utf_8(name: str, error: UnicodeDecodeError, before: int = 0) -> UsageError:
    """Of a text of this name, read up to byte `before`, that `error` found to be no UTF-8."""
    return UsageError(
        f"{name} is not UTF-8: there is the byte 0x{error.object[error.start]:02x} at"
        f" {before + error.start}; wanted UTF-8 text: convert it first, for example with"
        " iconv -f latin1 -t utf-8"
    )


DONE, PROBLEM, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of every program here."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """What is printed of an error, on one line, and the exit code; None for what nobody foresaw."""
    match error:
        case Interrupted():
            return str(error), INTERRUPTED
        case KeyboardInterrupt():
            return "interrupted", INTERRUPTED
        case UsageError():
            return str(error), WRONG_USAGE
        case EsogenError():
            return str(error), PROBLEM
        case OSError():
            return _of_system(error), PROBLEM
    return None


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    if error.errno == errno.ENOSPC:  # of a stream, which the error does not name
        return f"the output cannot be written: {reason}; free some space, or write elsewhere"
    return reason
