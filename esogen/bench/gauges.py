"""Time and memory, as a device counts them: nothing here waits for it while a run goes on."""

import ctypes
import gc
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import torch
from numpy import median

_PAUSE = 0.0005
_STATUS = Path("/proc/self/status")


class Spread(NamedTuple):
    """Median, lowest and highest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        return cls(float(median(values)), min(values), max(values))


@dataclass(slots=True)
class Stopwatch:
    """Marks in a device's own work: events on a GPU, which costs no waiting; else the time."""

    device: torch.device
    _times: list[float] = field(default_factory=list)
    _events: list[torch.cuda.Event] = field(default_factory=list)

    def mark(self) -> None:
        """Note when what was handed to the device so far is done."""
        if self.device.type != "cuda":
            self._times.append(time.perf_counter())
            return
        self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        self._events[-1].record(torch.cuda.current_stream(self.device))

    def intervals(self) -> list[float]:
        """Seconds between one mark and the next; waits for the last."""
        wait_for(self.device)
        if self.device.type != "cuda":
            return [b - a for a, b in pairwise(self._times)]
        return [a.elapsed_time(b) / 1000 for a, b in pairwise(self._events)]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was handed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(slots=True)
class Peak:
    """The most memory held at once, in bytes; None while and where it cannot be told."""

    bytes: int | None = None


@contextmanager
def held_memory(device: torch.device, weights: int) -> Iterator[Peak]:
    """The most memory that is held during a block, with `weights` bytes that are there already.

    On a GPU what torch has allocated, all of it. On a CPU the weights, and by how much the
    process's own memory grew, with what the allocator keeps for itself; known on Linux only.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
    elif not _STATUS.exists():
        yield Peak()
    else:
        _give_back()
        before = private_bytes()
        with private_peak() as peak:
            yield peak
        peak.bytes = weights + (peak.bytes or 0) - before


@contextmanager
def private_peak() -> Iterator[Peak]:
    """The most `private_bytes` during a block, looked at every half millisecond."""
    peak, highest, done = Peak(), private_bytes(), threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_PAUSE):
            highest = max(highest, private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(highest, private_bytes())


def private_bytes() -> int:
    """Bytes of this process that no file backs; Linux only."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _give_back() -> None:
    """Hand the system what was freed, or a run in the room of an earlier one would not be seen."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # not every C library has it
        trim(0)
