"""The journal of a long run: what it is a function of, then one line for each finished text.

A line that an interruption cut short is dropped when the run goes on.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esogen.errors import EsogenError, UsageError
from esogen.journal import Record, as_line, differing, whole_lines

_CALLED = {
    "files": "FILE",
    "given": "order of --order given:FILE",
    "drafts": "--compare or --rank",
    "rank": "process",
    "world": "processes",
}
"""What is told of keys that are no flag's name, or that of another one."""


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
                path.write_text(as_line({"esogen score": run}), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise EsogenError(
                f"--state {path} cannot be used: {error.strerror or error}; choose another place"
            ) from error

    def add(self, record: Record) -> None:
        """Write down a finished text; it is in the file when this returns."""
        self._file.write(as_line(record))
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
        with self._path.open("rb+") as file:
            lines = whole_lines(file)
            end, head = next(lines, (0, {}))
            self._check(head.get("esogen score"), run)
            for behind, found in lines:
                if not isinstance(found.get("index"), int):
                    break
                end, self.last = behind, found["index"]
            file.truncate(end)

    def _check(self, recorded: object, run: Record) -> None:
        if not isinstance(recorded, dict):
            raise UsageError(f"--state {self._path} is no state of esogen score; give another file")
        if changes := differing(recorded, run, _CALLED):
            raise UsageError(
                f"--state {self._path} is of another run ({', '.join(changes.values())});"
                " go on with the command it was begun with, or give another file"
            )
