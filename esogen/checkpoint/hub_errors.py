"""What can go wrong between this machine and the hub, in words that say what to do."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from esogen.errors import CheckpointError, EsogenError


@dataclass(frozen=True, slots=True)
class Missing:
    """What was wanted: files of a repository at a revision; `command` gets them."""

    repository: str
    revision: str
    files: Sequence[str]
    command: str

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{' and '.join(self.files)} of {self.repository}{at}"


@contextmanager
def hub_named(wanted: Missing) -> Iterator[None]:
    """Turn whatever the client raises into a `CheckpointError` of one line."""
    from huggingface_hub import errors

    # HTTPError of httpx or of httpx2: of whichever the installed client is built on.
    transport = cast("type[Exception]", errors.HfHubHTTPError.__mro__[1])
    try:
        yield
    except EsogenError:
        raise
    except (OSError, ValueError, errors.EntryNotFoundError, transport) as error:
        raise CheckpointError(_explain(wanted, _root(error))) from error


def _root(error: Exception) -> Exception:
    """The client wraps what went wrong in "not in the cache"; what went wrong is its cause."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _explain(wanted: Missing, error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled():
            return (
                f"the cache lacks {wanted}, and HF_HUB_OFFLINE forbids to get it; with a"
                f" network, run HF_HUB_OFFLINE=0 {wanted.command}"
            )
        case errors.HfHubHTTPError():
            return _explain_answer(wanted, error)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return (
                f"the disk is full: {wanted} did not fit and nothing half was kept; free some space"
                " (esogen models remove, hf cache rm), or set HF_HOME to another disk"
            )
        case OSError(errno=int(), strerror=str(reason)) if error.filename:
            return f"{error.filename}: {reason}; the download of {wanted} needs it"
        case OSError() | ValueError():
            return (
                f"{wanted} came damaged ({_first_line(error)}); nothing of it was kept, run"
                f" {wanted.command} again"
            )
    return (
        f"no answer from {_endpoint()} ({type(error).__name__}: {_first_line(error)}), and"
        f" the cache lacks {wanted}; with a network, run {wanted.command}"
    )


def _explain_answer(wanted: Missing, error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return (
                f"{wanted.repository} is gated: accept its terms at"
                f" {_endpoint()}/{wanted.repository}, then log in with hf auth login"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"there is no repository {wanted.repository} at {_endpoint()}, or it is private;"
                " check the name, or log in with hf auth login"
            )
        case errors.RevisionNotFoundError():
            return (
                f"{wanted.repository} has no revision {wanted.revision!r}, or not any more; leave"
                f" it out, or run {wanted.command} --update"
            )
        case errors.EntryNotFoundError():
            return f"{wanted.repository} lists a file that it does not have; try again later"
    return _explain_status(wanted, int(getattr(error, "response").status_code))  # noqa: B009


def _explain_status(wanted: Missing, status: int) -> str:
    match status:
        case 401 | 403:
            return (
                f"{_endpoint()} refuses {wanted.repository} to you ({status}); log in with hf auth"
                " login, and check that HF_TOKEN, if it is set, may read this repository"
            )
        case 429:
            return (
                f"{_endpoint()} has had too many requests from here (429); wait some minutes, or"
                f" log in with hf auth login, then run {wanted.command}"
            )
    return (
        f"{_endpoint()} answered {status}, and the cache lacks {wanted}; try again later:"
        f" {wanted.command}"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
