"""One measured figure, and how a ratio is measured on a machine that does other things too."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio, and its target if it has one: `least` or `most` it should be.

    `spread`: lowest and highest.
    """

    name: str
    ratio: float
    spread: tuple[float, float]
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        above = self.least is None or self.ratio >= self.least
        return above and (self.most is None or self.ratio <= self.most)

    def row(self) -> str:
        """The figure as a line of a Markdown table."""
        low, high = self.spread
        return f"| {self.name} | {self.ratio:.3g} | {low:.3g}-{high:.3g} | {self._judged()} |"

    def _judged(self) -> str:
        if self.least is None and self.most is None:
            return " | "
        target = f"<= {self.most:g}" if self.least is None else f">= {self.least:g}"
        return f"{target} | {'met' if self.met else 'MISSED'}"


def interleaved(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> tuple[float, tuple[float, float]]:
    """Median, lowest and highest of `first() / second()`, in seconds, taken in turn.

    Each runs once unmeasured before, so that neither pays for what a machine does only once.
    """
    first(), second()
    ratios = [first() / second() for _ in range(rounds)]
    return statistics.median(ratios), (min(ratios), max(ratios))
