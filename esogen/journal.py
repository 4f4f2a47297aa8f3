"""Files that grow by a JSON object a line, and are read again when a run goes on."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

Record = Mapping[str, Any]

_LONGEST = 80
"""Characters of two values that are told."""


def as_line(record: Record) -> str:
    """One object on a line of its own."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def whole_lines(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object from the start of `file`, with the offset behind it.

    Ends at the first line that is no object, or that an interruption cut short.
    """
    end = 0
    for line in file:
        found = _parsed(line)
        if found is None:
            return
        end += len(line)
        yield end, found


def differing(recorded: Record, wanted: Record, called: Mapping[str, str]) -> dict[str, str]:
    """What is not the same in what a file says of its run and in the run at hand, by name.

    Told as `name old -> new`, a list or a long value without what it is; `called` has other names
    to tell.
    """
    told = json.loads(json.dumps(wanted))
    return {
        key: f"{called.get(key, key)} {_change(recorded.get(key), told.get(key))}"
        for key in sorted(recorded.keys() | told.keys())
        if recorded.get(key) != told.get(key)
    }


def _change(old: object, new: object) -> str:
    both = f"{old} -> {new}"
    short = len(both) <= _LONGEST and len(both.split()) == 3
    return both if short and not isinstance(old, list | dict) else "is another"


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
