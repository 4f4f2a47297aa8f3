"""The few kinds of error a user can meet.

A message says what was wanted, what was found, what to do.
"""

DONE, PROBLEM, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


class EsogenError(Exception):
    """A problem that esogen names: printed as one line, exit code 1."""


class UsageError(EsogenError):
    """A value that cannot be used as given: printed as one line, exit code 2."""


class CheckpointError(EsogenError):
    """A model folder, or a file in it, that cannot be read as a network of this family."""


class TraceError(EsogenError):
    """A trace file that cannot be read, or that does not go with the model at hand."""


class NumericalError(EsogenError):
    """The network produced numbers that no token can be drawn from."""


class Interrupted(EsogenError):  # noqa: N818 - nobody's error
    """The user stopped a run, and what was kept: printed as one line, exit code 130."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """What is said of an error in one line, and the exit code; None where nobody has named it."""
    match error:
        case Interrupted():
            return str(error), INTERRUPTED
        case KeyboardInterrupt():
            return "interrupted", INTERRUPTED
        case UsageError():
            return str(error), WRONG_USAGE
        case EsogenError():
            return str(error), PROBLEM
        case OSError(strerror=str(reason)):
            return f"{error.filename}: {reason}" if error.filename else reason, PROBLEM
        case _:
            return None
