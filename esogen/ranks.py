"""Several processes of one run, as `torchrun` starts them: who takes which texts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from esogen.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number, from 0, among `world`; `local` is its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> "Ranks":
        """What `torchrun` put into the environment; one process alone where it did not."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        words = [os.environ.get(name) for name in names]
        if words[0] is None or words[1] is None:
            return cls()
        try:
            rank, world, local = (int(word or 0) for word in words)
        except ValueError:
            raise UsageError(
                f"{', '.join(names)} are {words} in the environment; start with torchrun, or unset"
                " them"
            ) from None
        return cls(rank, world, local)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Iterable[T]) -> Iterator[tuple[int, T]]:
        """This process's part of all items, each with its number."""
        return (
            (index, item) for index, item in enumerate(items) if index % self.world == self.rank
        )

    def part(self, count: int) -> range:
        """This process's numbers out of 0 to `count` - 1: one stretch, as long as any other's."""
        first, end = (count * rank // self.world for rank in (self.rank, self.rank + 1))
        return range(first, end)

    def device(self, word: str, each: Sequence[str] = ()) -> str:
        """The device of this process: its own of `each`, or of the GPUs where `word` is auto.

        Raises `UsageError` where `each` has none for it.
        """
        if each:
            if self.local >= len(each):
                raise UsageError(
                    f"process {self.local} of this machine has no device: {', '.join(each)} are"
                    f" {len(each)}; give one for each process"
                )
            return each[self.local]
        if self.world == 1 or word != "auto":
            return word
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{self.local % count}" if count else "cpu"

    def gather(self, mine: Sequence[Any]) -> list[Any]:
        """Everybody's items, at the first process; the others get nothing back.

        Waits for all processes. Items travel by pickle between processes of one run.
        """
        if self.world == 1:
            return list(mine)
        from torch import distributed

        distributed.init_process_group("gloo")
        try:
            parts: list[Any] | None = [None] * self.world if self.first else None
            distributed.gather_object(list(mine), parts)
            return [item for part in parts or () for item in part]
        finally:
            distributed.destroy_process_group()
