"""Rows of `esogen bench` in each format, written as they come."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

FormatWord = Literal["md", "csv", "json", "jsonl"]
Record = Mapping[str, object]


class Column(NamedTuple):
    """A column of the Markdown table: an entry of a record times `scale`, numbers as in `form`."""

    heading: str
    key: str
    form: str = ""
    scale: float = 1

    def cell(self, record: Record) -> str:
        """What stands there; a dash for what has no value."""
        match record[self.key]:
            case int() | float() as value:
                return f"{value * self.scale:{self.form}}"
            case str() as word:
                return word
            case _:
                return "-"


_TIME = (
    Column("seconds", "seconds", ".4g"),
    Column("lowest", "seconds_low", ".4g"),
    Column("highest", "seconds_high", ".4g"),
)
_POINT = (
    Column("model", "name"),
    Column("length", "length", "d"),
    Column("steps", "steps", "d"),
    Column("alpha_0", "alpha_0", "g"),
    Column("batch", "batch_size", "d"),
    Column("NFE", "nfe", "d"),
)
GRID = (
    *_POINT,
    *_TIME,
    Column("tokens/s", "tokens_per_second", ".4g"),
    Column("forward-only tokens/s", "forward_only_tokens_per_second", ".4g"),
    Column("ms/step", "step_seconds", ".3g", 1e3),
    Column("95th", "step_seconds_95th", ".3g", 1e3),
    Column("drawing", "drawing_share", ".1%"),
    Column("peak MB", "peak_bytes", ".0f", 1e-6),
    Column("of the floor", "floor_share", ".3g"),
)
DRAFTED = (Column("accepted a call", "accepted_per_call", ".3g"),)
ONE_SHOT = (
    Column("first run, s", "first_run_seconds", ".3g"),
    Column("second run, s", "second_run_seconds", ".3g"),
)
PAPER = (
    Column("table", "table"),
    *_POINT,
    Column("of these timed", "timed_steps", "d"),
    *_TIME,
    Column("tokens/s", "tokens_per_second", ".4g"),
    Column("forward-only tokens/s", "forward_only_tokens_per_second", ".4g"),
    Column("time / Eso-LM's", "ratio", ".3g"),
    Column("published", "published_ratio", ".3g"),
)


class Table:
    """Writes records in one format; `json` leaves them to the document that ends the output."""

    def __init__(
        self, form: FormatWord, columns: Sequence[Column], write: Callable[[str], None]
    ) -> None:
        self._form, self._columns, self._write = form, columns, write
        self._begun = False

    def add(self, record: Record) -> None:
        """Write a row, and before the first what stands above it."""
        if self._form == "jsonl":
            self._write(json.dumps(record) + "\n")
        elif self._form == "csv":
            self._separated(*([] if self._begun else [record.keys()]), record.values())
        elif self._form == "md":
            if not self._begun:
                self._piped([column.heading for column in self._columns])
                self._piped(["---:" if column.form else "---" for column in self._columns])
            self._piped([column.cell(record) for column in self._columns])
        self._begun = True

    def _piped(self, cells: Sequence[str]) -> None:
        self._write(f"| {' | '.join(cells)} |\n")

    def _separated(self, *lines: object) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)  # type: ignore[arg-type]
        self._write(text.getvalue())
