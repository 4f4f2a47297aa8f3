"""Where a batch stands, on the status line, while it is sampled."""

import time
from typing import TYPE_CHECKING

from esogen.cli.terminal import Console

if TYPE_CHECKING:
    from esogen.language_model import Batch

INTERVAL = 1 / 12
"""Seconds between two updates, at least."""


def drive(batch: "Batch", console: Console, n: int) -> None:
    """Run `batch`, of a run of `n` texts, to its end; on the status line tell how far it is."""
    if not console.steerable:
        for _ in batch.steps():
            pass
        return
    due = 0.0
    for step in batch.steps():
        if time.monotonic() >= due:
            console.status(_position(batch, step.index, n, sequential=step.sequential))
            due = time.monotonic() + INTERVAL
    console.clear()


def _position(batch: "Batch", index: int, n: int, *, sequential: bool) -> str:
    counts_S = batch.plan.counts_S
    first, last = batch.indices[0] + 1, batch.indices[-1] + 1
    texts = "" if n == 1 else f" · text {first}-{last} of {n}"
    return (
        f"{'sequential' if sequential else 'diffusion'} phase"
        f" · step {index + 1} of {len(counts_S)}"
        f" · {counts_S[index + 1 :].sum()} masks left{texts}"
    )
