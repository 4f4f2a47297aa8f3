"""The tables of speed of arXiv 2506.01928, to be measured again on one machine.

Latency: batch 1 and one token a step, so that NFE = L; seconds with drawing. Throughput: a large
batch and nucleus 0.9; seconds of the network alone, as published. Both as time over Eso-LM's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esogen.bench.cases import Case, Grid
from esogen.errors import UsageError
from esogen.model.config import Family

if TYPE_CHECKING:
    from esogen.bench.measure import Row

LATENCY_LENGTHS = (2048, 8192)
LENGTH, BATCH, STEPS = 1024, 512, (16, 128, 1024)
"""Of the throughput table."""
TIMED_STEPS = 64
"""Steps of MDLM that are timed unless said: they all cost the same."""

_ESO: Family = "esolm-b"
Model = tuple[Family, int | None]
"""A family and its block size."""

_LATENCY: Mapping[Model, Mapping[int, float]] = {
    (_ESO, None): {2048: 14.6, 8192: 82.1},
    ("ar", None): {2048: 13.3, 8192: 54.0},
    ("bd3lm", 16): {2048: 21.3, 8192: 268.1},
    ("bd3lm", 4): {2048: 24.3, 8192: 312.0},
    ("mdlm", None): {2048: 201.3, 8192: 5438.3},
}
"""Seconds by length, on an A6000."""

_THROUGHPUT: Mapping[Model, Mapping[int, float]] = {
    (_ESO, None): {16: 2.97, 128: 6.40, 1024: 24.19},
    ("mdlm", None): {128: 106.96, 1024: 566.19},
    ("bd3lm", 16): {1024: 58.82},
}
"""Seconds of forward passes by T, on an H200. BD3-LM has no T; it stands beside the largest."""


@dataclass(frozen=True, slots=True)
class Point:
    """A row of one of the tables; `reference` is the case of Eso-LM that it is set beside."""

    table: str
    case: Case
    reference: Case
    published: float | None

    def beside(self, rows: "Mapping[Case, Row]") -> dict[str, object]:
        """What the paper's columns say of this row, given the rows so far."""
        own, reference = _seconds(rows.get(self.case)), _seconds(rows.get(self.reference))
        ratio = own / reference if own and reference else None
        return {"table": self.table, "ratio": ratio, "published_ratio": self.published}


def points(grid: Grid, timed_steps: int | None) -> dict[Case, Point]:
    """Both tables by their cases, Eso-LM first in each; as published where `grid` has no value.

    With lengths of its own the throughput table has the shortest. `timed_steps`: how many steps of
    MDLM are timed. Raises `UsageError` for values that the tables cannot take.
    """
    _check(grid)
    steps, (batch_size,) = grid.steps or STEPS, grid.batch_sizes or [BATCH]
    timed_steps = timed_steps or TIMED_STEPS
    throughput = [(T, min(grid.lengths or [LENGTH]), batch_size) for T in steps]
    found = [
        *_latency(grid.lengths or LATENCY_LENGTHS, timed_steps),
        *_throughput(throughput, timed_steps),
    ]
    return {point.case: point for point in found}


def _check(grid: Grid) -> None:
    fixed = {
        "--family": grid.families,
        "--alpha-0": grid.alphas,
        "--block-size": grid.block_sizes,
        "--schedule": grid.schedule,
        "--no-kv-cache": None if grid.kv_cache else False,
    }
    for flag, value in fixed.items():
        if value is not None:
            raise UsageError(
                f"{flag} is not for --paper, whose tables have their own; leave it out"
            )
    if grid.batch_sizes and len(grid.batch_sizes) > 1:
        raise UsageError("--paper takes one --batch-size, that of its throughput table")


def _latency(lengths: Sequence[int], timed_steps: int) -> Iterator[Point]:
    def case(model: Model, length: int) -> Case:
        return _case(model, length, length, 1, timed_steps, drawn=True)

    for model, published in _LATENCY.items():
        for length in lengths:
            reference = _LATENCY[_ESO, None].get(length)
            ratio = published[length] / reference if reference else None
            yield Point("latency", case(model, length), case((_ESO, None), length), ratio)


def _throughput(settings: Sequence[tuple[int, int, int]], timed_steps: int) -> Iterator[Point]:
    for model, published in _THROUGHPUT.items():
        for T, length, batch_size in settings if model[0] != "bd3lm" else [max(settings)]:
            own, reference = (
                _case(each, length, T, batch_size, timed_steps, drawn=False)
                for each in (model, (_ESO, None))
            )
            as_published = (length, batch_size) == (LENGTH, BATCH) and T in published
            ratio = published[T] / _THROUGHPUT[_ESO, None][T] if as_published else None
            yield Point("throughput", own, reference, ratio)


def _case(
    model: Model, length: int, steps: int, batch_size: int, timed_steps: int, *, drawn: bool
) -> Case:
    """A row; one token a step where there are as many steps as tokens and the table is `drawn`."""
    family, block_size = model
    stepped = family in (_ESO, "mdlm")
    return Case(
        family,
        length,
        batch_size,
        steps if stepped else None,
        1.0 if family == _ESO else None,
        ("blocks" if drawn else "random") if stepped else None,
        block_size,
        None if family == "mdlm" else True,
        timed_steps if family == "mdlm" else None,
        forward_only=not drawn,
    )


def _seconds(row: "Row | None") -> float | None:
    """What a table compares: forward passes where they were timed alone, else the whole."""
    return (row.forward_seconds or row.seconds).median if row else None
