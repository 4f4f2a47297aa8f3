"""A run whose texts go into a folder, shared out by several processes, and taken up again.

    manifest.json           what this run is; whoever comes first writes it, all others must agree
    index.json              which file holds which texts
    00000-of-00002.jsonl    an object a line for each text of process 0, in order
    00001-of-00002.jsonl

Each process has one stretch of the texts and one file that only it appends to, so nobody waits for
anybody, and the files one after the other are the whole run. Line k of a file is the text `first` +
k: how many whole lines there are is how far it has come.
"""

import fcntl
import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from esogen.atomic import creating, replacing
from esogen.errors import EsogenError, UsageError
from esogen.journal import Record, as_line, differing, whole_lines
from esogen.ranks import Ranks

MANIFEST, INDEX = "manifest.json", "index.json"


class Shard:
    """This process's part of a run of `texts` texts that `run` describes.

    `run` on the instance is what the folder says: names in `free` (a seed that was drawn) are taken
    from there. `mine` are the numbers of this process's texts, `done` how many of them are
    finished. Raises `UsageError` for a folder of another run or of something else, `EsogenError`
    where another process is at work in it or it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        run: Record,
        texts: int,
        ranks: Ranks,
        free: Collection[str] = (),
    ) -> None:
        self.folder, self.mine = folder, ranks.part(texts)
        self.path = folder / _name(ranks.rank, ranks.world)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.run = _agree(folder, {**run, "texts": texts, "processes": ranks.world}, free)
            if ranks.first:
                _write_index(folder / INDEX, texts, ranks.world)
            self._open()
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def rest(self) -> range:
        """Numbers of the texts that are still to be made."""
        return self.mine[self.done :]

    def add(self, record: Record) -> None:
        """Write down the next text; handed over whole when this returns."""
        try:
            rest = memoryview(as_line(record).encode())
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._unwritable(error) from error
        self.done += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _open(self) -> None:
        """Open this process's file, and cut off a last line that is not whole."""
        self._file = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise EsogenError(
                f"another process is writing {self.path}; let it finish, or give another folder"
            ) from None
        with self.path.open("rb") as file:
            ends = [0, *(end for end, _ in whole_lines(file))]
        self.done = len(ends) - 1
        self._file.truncate(ends[-1])

    def _unwritable(self, error: OSError) -> EsogenError:
        if self.folder.exists() and not self.folder.is_dir():
            return EsogenError(f"{self.folder} is no folder; choose another place for the texts")
        return EsogenError(
            f"{error.filename or self.path} cannot be written: {error.strerror or error};"
            " the same command goes on when it can"
        )


def _name(rank: int, world: int) -> str:
    return f"{rank:05}-of-{world:05}.jsonl"


def _agree(folder: Path, run: Record, free: Collection[str]) -> Record:
    """What the folder says of its run, which is `run` where nobody had said anything yet."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others and not manifest.exists():
            raise UsageError(
                f"{folder} holds {others[0]} and no {MANIFEST}: it is no run of esogen; give a"
                " folder that is new or empty"
            )
        with suppress(FileExistsError), creating(manifest) as scratch:
            scratch.write_text(json.dumps(run, ensure_ascii=False, indent=2) + "\n", "utf-8")
    try:
        recorded = json.loads(manifest.read_bytes())
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise UsageError(f"{manifest} is no manifest of a run of esogen; give another folder")
    changes = differing(recorded, run, {"texts": "n"})
    if told := [change for name, change in changes.items() if name not in free]:
        raise UsageError(
            f"{folder} holds another run ({', '.join(told)}); go on with the command it was begun"
            " with, or give another folder"
        )
    return recorded


def _write_index(path: Path, texts: int, world: int) -> None:
    """Say which file holds which texts: line k of a file is text `first` + k."""
    parts: list[dict[str, Any]] = []
    for rank in range(world):
        mine = Ranks(rank, world).part(texts)
        parts.append({"file": _name(rank, world), "first": mine.start, "texts": len(mine)})
    with replacing(path) as scratch:
        scratch.write_text(json.dumps({"shards": parts}, indent=2) + "\n", "utf-8")
