"""What `esogen score` writes: figures in words, JSON, JSON lines, or a table of tokens."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from esogen.cli.output import Output
from esogen.visible import counted, one_line

if TYPE_CHECKING:
    from esogen.scoring.figures import Estimate, Figures

Record = Mapping[str, Any]
Fields = Mapping[str, object]

COLUMNS = ("index", "name", "position", "token", "piece", "log_prob", "rank", "gain")
"""Of the CSV table: a row a token."""


class Writer(Protocol):
    """Writes records in one of the formats."""

    def write(self, record: Record) -> None:
        """Take one text."""
        ...

    def finish(self) -> None:
        """Write what is held back, and the total."""
        ...


def writer(word: str, output: Output, fields: Fields, *, ranked: bool) -> Writer:
    """A writer in the format of that name; `ranked`: best text first, when all are there."""
    if ranked:
        return _Ranked(
            writer(word, output, fields, ranked=False) if word != "text" else None, output
        )
    if word == "json":
        return _Array(output, fields)
    if word == "jsonl":
        return _Lines(output, fields)
    return _Table(output) if word == "csv" else _Words(output)


class _Words:
    """Figures in words: a line a text, and one for all of them together."""

    def __init__(self, output: Output) -> None:
        self._output, self._texts = output, 0
        self._total: Figures | None = None
        self._kind = ""

    def write(self, record: Record) -> None:
        from esogen.scoring.records import figures_of

        figures = figures_of(record)
        self._output.write(described(one_line(record["name"]), figures, record["figure"]))
        self._output.write(_against(record) + _top(record))
        self._total = figures if self._total is None else self._total + figures
        self._kind, self._texts = record["figure"], self._texts + 1

    def finish(self) -> None:
        if self._total and self._texts > 1:
            self._output.write(described(f"all {self._texts} texts", self._total, self._kind))


def described(name: str, figures: "Figures", kind: str) -> str:
    """The figures in a line, and how the bound tightened in lines of its own."""
    lines = [
        f"{name}: {figures.tokens} tokens · {_figure(figures.estimate, figures, kind)} · {kind}"
    ]
    for looser in figures.tightening:
        count = counted(looser.orders, "order")
        lines.append(f"  {count}: {_figure(looser, figures, kind)}")
    return "".join(f"{line}\n" for line in lines)


def _figure(estimate: "Estimate", figures: "Figures", kind: str) -> str:
    nats = -estimate.log_prob / figures.tokens
    sign = "=" if kind.startswith("exact") else "≥"
    parts = [
        f"log p {sign} {estimate.log_prob:.2f}{_error(estimate.error, 2)} nats",
        f"{nats:.4f} nats/token",
        f"perplexity {math.exp(nats) if nats < 700 else math.inf:.2f}",
    ]
    if figures.bytes:
        scale = 1 / (math.log(2) * figures.bytes)
        error = _error(estimate.error * scale, 4)
        parts.append(f"{-estimate.log_prob * scale:.4f}{error} bits/byte")
    return " · ".join(parts)


def _error(error: float, digits: int) -> str:
    return f" ± {error:.{digits}f}" if math.isfinite(error) else ""


def _against(record: Record) -> str:
    """The other model's figures, and the difference."""
    other = record.get("against")
    if not other:
        return ""
    from esogen.scoring.records import figures_of

    mine, theirs = figures_of(record), figures_of(other)
    difference = mine.log_prob - theirs.log_prob
    likelier = record["model"] if difference > 0 else other["model"]
    return described(f"  {one_line(other['model'])}", theirs, other["figure"]) + (
        f"  likelier by {one_line(likelier)}: {abs(difference):.2f} nats,"
        f" {abs(mine.bits_per_byte - theirs.bits_per_byte):.4f} bits/byte\n"
    )


def _top(record: Record) -> str:
    """The least expected words, as a table."""
    lines = []
    for found in record.get("top", ()):
        instead = ", ".join(
            f"{one_line(other['word']) or '(a break)'} {other['probability']:.0%}"
            for other in found["instead"]
        )
        lines.append(
            f"  {found['bits']:6.2f} bits  {one_line(found['word'])}  the model: {instead}\n"
        )
    return "".join(lines)


class _Ranked:
    """The texts, likeliest per token first; in the format of `inner`, or as lines."""

    def __init__(self, inner: Writer | None, output: Output) -> None:
        self._inner, self._output = inner, output
        self._records: list[Record] = []

    def write(self, record: Record) -> None:
        self._records.append(record)

    def finish(self) -> None:
        for record in sorted(self._records, key=lambda record: float(record["nats_per_token"])):
            if self._inner:
                self._inner.write(record)
            else:
                self._output.write(f"{record['nats_per_token']:.4f}\t{record['text']}\n")
        if self._inner:
            self._inner.finish()


class _Lines:
    """One JSON object a line."""

    def __init__(self, output: Output, fields: Fields) -> None:
        self._output, self._fields = output, fields

    def write(self, record: Record) -> None:
        self._output.write(as_json(record, self._fields) + "\n")

    def finish(self) -> None:
        """Nothing is held back."""


class _Array:
    """One JSON array."""

    def __init__(self, output: Output, fields: Fields) -> None:
        self._output, self._fields = output, fields
        self._objects: list[str] = []

    def write(self, record: Record) -> None:
        self._objects.append(as_json(record, self._fields))

    def finish(self) -> None:
        self._output.write("[\n" + ",\n".join(self._objects) + "\n]\n")


class _Table:
    """Comma-separated values: a row a token, the log-probability in nats, ranks from 1."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._output.write(_rows([COLUMNS]))

    def write(self, record: Record) -> None:
        columns = [record.get(name) for name in ("log_probs", "ranks", "gains")]
        self._output.write(
            _rows(
                [
                    record["index"],
                    record["name"],
                    position,
                    token,
                    piece,
                    *("" if column is None else column[position] for column in columns),
                ]
                for position, (token, piece) in enumerate(
                    zip(record["tokens"], record["pieces"], strict=True)
                )
            )
        )

    def finish(self) -> None:
        """Nothing is held back."""


def _rows(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_json(record: Record, fields: Fields) -> str:
    """A record with what is said of every text of the run, on one line."""
    return json.dumps({**record, **fields}, ensure_ascii=False, allow_nan=False)


def comparison(records: Sequence[Record]) -> str:
    """Which of several drafts is the likeliest per token, and by how much."""
    best, second, *_ = sorted(records, key=lambda record: float(record["nats_per_token"]))
    return (
        f"{one_line(best['name'])} is likelier per token than {one_line(second['name'])}:"
        f" {best['nats_per_token']:.4f} against {second['nats_per_token']:.4f} nats,"
        f" {best['bits_per_byte']:.4f} against {second['bits_per_byte']:.4f} bits/byte\n"
    )
