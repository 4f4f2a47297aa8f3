"""A run in batches: as many rows at once as there is room for, and one set of drafts for all."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from esogen.checkpoint.memory import Room
from esogen.generate.lossless import Lossless

T = TypeVar("T")
B = TypeVar("B")


def batches(
    items: Iterable[T],
    room: Room,
    make: Callable[[list[T], Lossless | None], B],
    *,
    begin: Callable[[list[T]], Lossless] | None = None,
    drive: Callable[[B], object] | None = None,
) -> Iterator[B]:
    """What `make` makes of each part of `items`, handed on once `drive` has run it to its end.

    With `begin`, drafts are verified: all batches share the run that it begins with the first part,
    so that texts of the next take the places of finished ones. Where memory was too little for a
    part, that run is lost, and another begins with the part that is tried instead.
    """
    drafted: Lossless | None = None

    def driven(part: list[T]) -> B:
        nonlocal drafted
        if begin and not drafted:
            drafted = begin(part)
        batch = make(part, drafted)
        try:
            if drive:
                drive(batch)
        except BaseException:
            drafted = None
            raise
        return batch

    return room.parts(items, driven)
