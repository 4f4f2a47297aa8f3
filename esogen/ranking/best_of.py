"""Best of N: of every N samples, the one whose whole text is most probable per token."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

from esogen.model.network import Network
from esogen.ranking.scores import LEFT_TO_RIGHT, scores


class Text(Protocol):
    """Whatever has the tokens of a whole text."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids, from the beginning of the text."""
        ...


S = TypeVar("S", bound=Text)


def best_of(network: Network, samples: Iterable[S], count: int) -> Iterator[S]:
    """The best of every `count` samples, read left to right, as soon as these are there."""
    if count == 1:
        yield from samples
        return
    rest = iter(samples)
    while group := [*islice(rest, count)]:
        found = scores(network, [each.tokens for each in group], LEFT_TO_RIGHT)
        per_token = [score / len(each.tokens) for score, each in zip(found, group, strict=True)]
        yield group[per_token.index(max(per_token))]
