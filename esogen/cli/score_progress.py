"""How far `esogen score` is, on the status line."""

import time
from typing import TYPE_CHECKING

from esogen.cli.training_progress import duration

if TYPE_CHECKING:
    from esogen.cli.score_sources import Sources
    from esogen.cli.terminal import Console

INTERVAL = 1 / 12
"""Seconds between two updates, at least."""


class Meter:
    """Hears of tokens and tells them on `console`, with the time left where it can be known."""

    def __init__(self, console: "Console", sources: "Sources") -> None:
        self._console, self._sources = console, sources
        self._opened = self._read = 0
        self._began = time.monotonic()
        self._due = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read, each once for every order or draw."""
        return self._read

    @property
    def seconds(self) -> float:
        """Since the first was asked for."""
        return time.monotonic() - self._began

    def opened(self, tokens: int) -> None:
        """So many more are to be read."""
        self._opened += tokens
        self._tell()

    def read(self, tokens: int) -> None:
        """So many more have been read."""
        self._read += tokens
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._console.steerable and now >= self._due:
            self._due = now + INTERVAL
            self._console.status(self.line(now - self._began))

    def line(self, seconds: float) -> str:
        """Where the run is after so many seconds."""
        done = self._read / max(self._opened, 1)
        share = 1.0 if self._sources.size is None else self._sources.share or 0.0
        speed = self._read / seconds if seconds else 0.0
        left = seconds * (1.0 / (done * share) - 1.0) if done * share else None
        parts = [f"scoring · {self._read} of {self._opened} tokens", f"{speed:.0f} tokens/s"]
        if left is not None and self._sources.size is not None:
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)
