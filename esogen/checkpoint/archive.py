"""The zip archives that `torch.save` writes: where each entry lies, without unpacking any.

Torch stores entries as they are, so that the file can be mapped. An entry that is compressed is
refused, and so is one that lies outside the file; hence no entry can be larger than the file, and
nothing is ever written to a path that the archive names.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from esogen.errors import CheckpointError

_END, _END_64, _LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_ENTRY, _LOCAL = b"PK\1\2", b"PK\3\4"
_TAIL = 22 + 65535 + 20
_LARGEST_DIRECTORY = 8 * 2**20
_FULL_32, _FULL_16 = 2**32 - 1, 2**16 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its bytes are `size` from `offset` of the file on."""

    offset: int
    size: int


def read_directory(path: Path) -> dict[str, Entry]:
    """The entries of an archive by name.

    Raises `CheckpointError` for a file that is no archive, is cut short, or was not written by
    `torch.save`.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start, size = _find_directory(path, file, end)
            file.seek(start)
            listed = list(_entries(path, file.read(size)))
            return {name: _place(path, file, end, found) for name, found in listed}
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; wanted a .ckpt as torch.save writes it"
        ) from error
    except struct.error as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}); copy it again") from error


def read_entry(path: Path, entry: Entry) -> bytes:
    """The bytes of an entry. Raises `OSError` when the file cannot be read."""
    with path.open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size)


@dataclass(frozen=True, slots=True)
class _Listed:
    header: int
    size: int


def _find_directory(path: Path, file: BinaryIO, end: int) -> tuple[int, int]:
    tail_start = max(0, end - _TAIL)
    file.seek(tail_start)
    tail = file.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        raise CheckpointError(
            f"{path} is no zip archive, or is cut short; wanted a .ckpt as torch.save has written"
            " it since torch 1.6"
        )
    size, start = struct.unpack_from("<II", tail, place + 12)
    if tail[max(0, place - 20) : place][:4] == _LOCATOR_64:
        (where,) = struct.unpack_from("<Q", tail, place - 12)
        file.seek(min(where, end))
        record = file.read(56)
        if record[:4] != _END_64:
            raise _damaged(path, "its large directory is not where it should be")
        size, start = struct.unpack_from("<QQ", record, 40)
    if size > _LARGEST_DIRECTORY or start + size > end:
        raise _damaged(path, f"a directory of {size} bytes at {start}, in a file of {end}")
    return start, size


def _entries(path: Path, directory: bytes) -> Iterator[tuple[str, _Listed]]:
    at = 0
    while directory[at : at + 4] == _ENTRY:
        flags, method = struct.unpack_from("<HH", directory, at + 8)
        packed, size = struct.unpack_from("<II", directory, at + 20)
        name_size, extra_size, comment_size = struct.unpack_from("<HHH", directory, at + 28)
        (header,) = struct.unpack_from("<I", directory, at + 42)
        body = at + 46
        name = directory[body : body + name_size].decode("utf-8", "replace")
        if method != 0 or flags & 1:
            raise _damaged(
                path, f"{name!r} is compressed or encrypted, which torch.save never does"
            )
        extra = directory[body + name_size : body + name_size + extra_size]
        size, packed, header = _large(extra, size, packed, header)
        if packed != size:
            raise _damaged(path, f"{name!r} has two sizes, {packed} and {size}")
        yield name, _Listed(header, size)
        at = body + name_size + extra_size + comment_size


def _large(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers, those that do not fit 32 bits from the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size, packed, header = (
                next(numbers, value) if value == _FULL_32 else value
                for value in (size, packed, header)
            )
        at += 4 + length
    return size, packed, header


def _place(path: Path, file: BinaryIO, end: int, found: _Listed) -> Entry:
    """Where the bytes begin: behind a local header of its own length."""
    file.seek(min(found.header, end))
    head = file.read(30)
    if head[:4] != _LOCAL:
        raise _damaged(path, f"no entry begins at {found.header}")
    name_size, extra_size = struct.unpack_from("<HH", head, 26)
    offset = found.header + 30 + name_size + extra_size
    if offset + found.size > end:
        raise _damaged(path, f"an entry ends at {offset + found.size}, in a file of {end}")
    return Entry(offset, found.size)


def _damaged(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"{path} is no archive of torch.save, or a damaged one: {found}")
