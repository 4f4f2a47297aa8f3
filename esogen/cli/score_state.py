"""The journal of a long run: what it is a function of, then one line for each finished text.

A line that an interruption cut short is dropped when the run goes on.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from esogen.errors import EsogenError, UsageError

Record = Mapping[str, Any]


class Journal:
    """A file that grows by a line for each text, and is read again when the run goes on.

    `last`: index of the last finished text, -1 before the first. Raises `UsageError` where the
    file belongs to another run, `EsogenError` where it cannot be read or written.
    """

    def __init__(self, path: Path, run: Record) -> None:
        self._path = path
        self.last = -1
        try:
            if path.exists() and path.stat().st_size:
                self._resume(run)
            else:
                path.write_text(_line({"esogen score": run}), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise EsogenError(
                f"--state {path} cannot be used: {error.strerror or error}; choose another place"
            ) from error

    def add(self, record: Record) -> None:
        """Write down a finished text; on the disk when this returns."""
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()

    def finished(self) -> Iterator[dict[str, Any]]:
        """What was finished before, in order."""
        with self._path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def _resume(self, run: Record) -> None:
        """Find the last whole line, and cut off what follows it."""
        end = 0
        with self._path.open("rb+") as file:
            for number, line in enumerate(file):
                found = _parsed(line)
                if number == 0:
                    self._check(found, run)
                elif found is None:
                    break
                else:
                    self.last = found["index"]
                end += len(line)
            file.truncate(end)

    def _check(self, found: dict[str, Any] | None, run: Record) -> None:
        recorded = (found or {}).get("esogen score")
        if not isinstance(recorded, dict):
            raise UsageError(f"--state {self._path} is no state of esogen score; give another file")
        wanted = json.loads(json.dumps(run))
        differing = sorted(
            key for key in recorded.keys() | wanted.keys() if recorded.get(key) != wanted.get(key)
        )
        if differing:
            raise UsageError(
                f"--state {self._path} is of another run (it differs in {', '.join(differing)});"
                " go on with the command it was begun with, or give another file"
            )


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line holds, None where it was cut short or is no object."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
