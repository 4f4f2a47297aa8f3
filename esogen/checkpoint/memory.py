"""How much fits into memory at once: as many as there is room for, and fewer where there was none.

What comes out never depends on how many were run together, so running fewer is only slower.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import torch

from esogen.errors import EsogenError

T = TypeVar("T")
R = TypeVar("R")

SHARE = 0.8
"""Of the free memory, what rows may take; the rest is for logits, kernels and fragments."""

_MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if not _MEMINFO.exists():
        return None
    facts = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return int(facts["MemAvailable"].split()[0]) * 1024


def rows_that_fit(device: torch.device, bytes_each: int, most: int) -> int:
    """How many rows of `bytes_each` free memory has room for: from 1 to `most`."""
    free = free_bytes(device)
    return most if free is None else max(1, min(most, int(SHARE * free) // bytes_each))


@dataclass(slots=True, eq=False)
class Room:
    """At most `rows` of something are run at once; where memory is too little, half as many.

    `what` names several of them in messages; `told` is handed one when the number is halved.
    """

    rows: int
    what: str
    told: Callable[[str], object] = warnings.warn

    def parts(self, items: Iterable[T], run: Callable[[list[T]], R]) -> Iterator[R]:
        """What `run` makes of each part of `items`, in order.

        A part that memory is too little for is run again in smaller ones: `run` must have changed
        nothing by then. Raises `EsogenError` where one alone does not fit.
        """
        rest = iter(items)
        while part := [*islice(rest, self.rows)]:
            try:
                made = run(part)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._halve(len(part), error)
                rest = chain(part, rest)
            else:
                yield made

    def _halve(self, tried: int, error: BaseException) -> None:
        if tried == 1:
            raise EsogenError(
                f"there is too little memory for one of the {self.what} alone; make it shorter,"
                " choose a narrower dtype or another device"
            ) from error
        self.rows = tried // 2
        self.told(f"too little memory for {tried} {self.what} at once; going on with {self.rows}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; that of torch on a CPU raises no kind of error of its own."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
