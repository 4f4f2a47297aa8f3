"""`esogen infill --jsonl`: many templates in, one object out for each line, in the same order."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

from esogen.cli.infill_output import Fields, as_json, as_object
from esogen.cli.output import Output
from esogen.cli.terminal import Console
from esogen.errors import EsogenError, UsageError
from esogen.visible import counted

if TYPE_CHECKING:
    from esogen.generate.template import Tokens
    from esogen.ranking.infilling import Filled

_KEYS = ("template", "id")


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the input: its number from 1, its `id` if it has one, and what it holds."""

    number: int
    template: str
    id: object = None
    error: str | None = None

    @property
    def fields(self) -> Fields:
        own: dict[str, object] = {"line": self.number}
        return own if self.id is None else own | {"id": self.id}


@dataclass(slots=True)
class Lines:
    """Reads templates line by line, and writes what came of them; broken lines are told of.

    `read` makes tokens of a template, and raises `UsageError` for one that cannot be filled.
    `array`: all of it is written at the end, as one JSON array.
    """

    source: BinaryIO
    read: Callable[[str], "Tokens"]
    console: Console
    array: bool
    broken: int = 0
    done: int = 0
    _waiting: list[_Line] = field(default_factory=list)
    _objects: list[str] = field(default_factory=list)

    def templates(self) -> "Iterator[Tokens]":
        """The tokens of every line that can be filled."""
        for number, data in enumerate(self.source, 1):
            if not data.strip():
                continue
            line = _Line(number, "")
            try:
                line = _parse(number, data)
                tokens = self.read(line.template)
            except UsageError as error:
                self.broken += 1
                self._waiting.append(replace(line, error=str(error)))
                self.console.report(f"line {number}: {error}")
                continue
            self._waiting.append(line)
            yield tokens

    def write(self, out: Output, filled: "Filled", fields: Fields, top: int) -> None:
        """Write the next filled line, after the broken ones before it."""
        self._write_broken(out)
        line = self._waiting.pop(0)
        self._put(out, as_object(line.template, filled, {**line.fields, **fields}, top))
        self.done += 1

    def finish(self, out: Output) -> None:
        """Write what is left: broken lines at the end, or the array."""
        self._write_broken(out)
        if self.array:
            out.write("[\n" + ",\n".join(self._objects) + "\n]\n")

    def check(self) -> None:
        """Raise `EsogenError` if lines were broken."""
        if self.broken:
            raise EsogenError(
                f"{self.broken} of {counted(self.broken + self.done, 'line')} could not be filled;"
                " they are named above and have an error in the output"
            )

    def _write_broken(self, out: Output) -> None:
        while self._waiting and self._waiting[0].error is not None:
            line = self._waiting.pop(0)
            self._put(out, {"error": line.error, **line.fields})

    def _put(self, out: Output, value: Fields) -> None:
        if self.array:
            self._objects.append(as_json(value))
        else:
            out.write(as_json(value) + "\n")


def _parse(number: int, data: bytes) -> _Line:
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UsageError(
            f"is not UTF-8: there is the byte 0x{data[error.start]:02x} at {error.start}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is no JSON ({error}); write a string or an object") from error
    if isinstance(value, str):
        return _Line(number, value)
    if not isinstance(value, dict) or not isinstance(value.get("template"), str):
        raise UsageError('holds no template; write a string, or an object with a "template"')
    unknown = sorted(set(value) - set(_KEYS))
    if unknown:
        raise UsageError(f"has the key {unknown[0]!r}; it may have {' and '.join(_KEYS)}")
    return _Line(number, value["template"], value.get("id"))
