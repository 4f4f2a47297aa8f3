"""What watching costs: CPU time of a run that is drawn, against the same run that is not."""

import os
import pty
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from esogen.bench.figures import Figure, interleaved
from esogen.language_model import LanguageModel
from esogen.sampling import Batch
from esogen.view.live import Look, watch
from esogen.view.screen import Screen
from esogen.view.theme import THEMES


def view_overhead(lm: LanguageModel, rows: int, rounds: int) -> Figure:
    """CPU seconds of this process with the live view over those without, default settings.

    The view draws on a pseudo-terminal that another process reads, so that reading is not counted.
    """
    with _terminal() as terminal:
        ratio, spread = interleaved(
            lambda: _watched(lm, rows, terminal), lambda: _unwatched(lm, rows), rounds
        )
    return Figure(f"CPU time, live view / none, batch {rows}", ratio, spread, most=1.03)


def _watched(lm: LanguageModel, rows: int, terminal: int) -> float:
    batch = _batch(lm, rows)
    began = time.process_time()
    decode = lm.checkpoint.tokenizer.decode
    watch(batch, decode, Screen(terminal), Look(THEMES["default"]), texts=rows)
    return time.process_time() - began


def _unwatched(lm: LanguageModel, rows: int) -> float:
    batch = _batch(lm, rows)
    began = time.process_time()
    for _ in batch.steps():
        pass
    return time.process_time() - began


def _batch(lm: LanguageModel, rows: int) -> Batch:
    settings = lm.settings(seed=0)
    return next(lm.batches("Once upon a time", settings, n=rows, batch_size=rows))


@contextmanager
def _terminal() -> Iterator[int]:
    """A terminal of the usual size whose other side is read."""
    ours, theirs = pty.openpty()
    reader = subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL)
    try:
        yield theirs
    finally:
        reader.kill()
        reader.wait()
        os.close(theirs)
        os.close(ours)
