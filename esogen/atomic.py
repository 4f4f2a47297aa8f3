"""Files that appear whole or not at all: written beside their place, then renamed into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder; it replaces `path` if the block ends well.

    Its content is on the disk before it has the name: a crash of the machine leaves the old file
    or the new one. On an error or an interrupt the scratch file is removed and `path` keeps what it
    held.
    Raises `OSError` when the folder cannot be written.
    """
    with _scratch_beside(path) as scratch:
        yield scratch
        _flush(scratch)
        scratch.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        scratch.replace(path)


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """The same for a file that must not be there yet: of several processes one makes it.

    Raises `FileExistsError` for all the others, `OSError` when the folder cannot be written.
    """
    with _scratch_beside(path) as scratch:
        yield scratch
        _flush(scratch)
        scratch.chmod(0o666 & ~_umask())
        path.hardlink_to(scratch)


def why_no_folder(folder: Path) -> str | None:
    """Why `folder` cannot be made or written into; None where it can."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError:  # found by trying: permissions say nothing to root, nor of what /proc refuses
        return f"{place} cannot be written to"
    return None


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
