"""How many CPU threads a call is worth.

Threads wait for each other behind every operation. For a few rows of a small network that takes as
long as it saves, and where another program wants the same cores it takes a hundred times as long.
"""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch

NARROW = 2**21
"""Multiplications in one matrix product up to which a second thread does not pay (measured)."""


def threads_for(device: torch.device, products: int) -> AbstractContextManager[None]:
    """As many threads as the largest matrix product of a call, of so many multiplications, needs.

    One where it is narrow, else all there are; on a GPU nothing changes.
    """
    if device.type != "cpu" or products > NARROW or torch.compiler.is_compiling():
        return nullcontext()
    return _OneThread()


class _OneThread:
    def __enter__(self) -> None:
        self._usual = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        torch.set_num_threads(self._usual)
