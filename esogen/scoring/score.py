"""Texts to scores: many at a time, in few calls of the network, in order, as they are finished.

Shapes: L tokens of a text, W windows, K orders, N most probable tokens.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from esogen.checkpoint.folder import Checkpoint
from esogen.checkpoint.memory import Room
from esogen.errors import EsogenError, NumericalError, UsageError
from esogen.likelihood import Ids, Numbers, Passage, Reading, batches, read_batch
from esogen.model.config import Family
from esogen.scoring.bound import draw_of, nats_of
from esogen.scoring.figures import Figures, bounds_of_windows, mean_of_draws
from esogen.scoring.orders import order_of
from esogen.scoring.settings import Bound, ScoreSettings
from esogen.scoring.windows import Window, windows_of
from esogen.visible import counted

TOKENS_AT_ONCE = 2**12
"""Tokens of one call of the network, padding included, unless said; no figure depends on it."""
_TIMES_ON_A_GPU = 16
CALLS_SORTED = 32
"""Calls' worth of windows that are sorted by length together."""

LEAST_TOKENS = 2


def tokens_at_once(device: torch.device) -> int:
    """How many tokens a call takes unless said: a GPU needs more of them to be busy."""
    return TOKENS_AT_ONCE * (_TIMES_ON_A_GPU if device.type == "cuda" else 1)


class Watcher(Protocol):
    """Who is told how far a run is, in tokens, each counted once for every order or draw."""

    def opened(self, tokens: int) -> None:
        """So many more are to be read."""
        ...

    def read(self, tokens: int) -> None:
        """So many more have been read."""
        ...


class _Nobody:
    def opened(self, tokens: int) -> None:
        pass

    def read(self, tokens: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Document:
    """One text to be scored.

    `index`: its number in the run; `name`: what messages call it. Documents of one `series` share
    their random orders, so that drafts of a text are compared in the same ones.
    """

    index: int
    name: str
    text: str
    series: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What the model says of one text.

    `tokens`: ids, the end of the text among them where it counts. `kind` says which figure it is.
    `log_probs_L` nats, by natural position, the mean over orders: None for a NELBO, which is of the
    whole text. For one order, `ranks_L` counts the tokens more probable than each, and `best_LN`
    and `best_log_probs_LN` are the most probable ones, as many as were asked for.
    """

    document: Document
    tokens: tuple[int, ...]
    kind: str
    orders: int
    figures: Figures
    log_probs_L: Numbers | None = None
    ranks_L: Ids | None = None
    best_LN: Ids | None = None
    best_log_probs_LN: Numbers | None = None

    @property
    def text(self) -> str:
        """The text that was scored."""
        return self.document.text

    @property
    def log_prob(self) -> float:
        """Log-probability of the text, or a lower bound on it, in nats."""
        return self.figures.log_prob

    @property
    def nats_per_token(self) -> float:
        """Minus the log-probability, spread over the tokens."""
        return self.figures.nats_per_token

    @property
    def perplexity(self) -> float:
        """`exp(nats_per_token)`."""
        return self.figures.perplexity

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text's UTF-8."""
        return self.figures.bits_per_byte


Skip = Callable[[Document, UsageError], object]
_NOBODY = _Nobody()


def score_documents(
    checkpoint: Checkpoint,
    documents: Iterable[Document],
    settings: ScoreSettings,
    *,
    best: int = 0,
    tokens_at_once: int = TOKENS_AT_ONCE,
    skip: Skip | None = None,
    watcher: Watcher = _NOBODY,
    told: Callable[[str], object] = warnings.warn,
) -> Iterator[Score]:
    """Score every document, in order, each as soon as it and what was read with it is finished.

    `best` most probable tokens a position, for one order. A text that cannot be scored so is left
    out where `skip` is given, which hears of it; else it raises `UsageError`, naming it. Where
    memory is too little fewer windows are read at once, which `told` is told. Raises `EsogenError`
    for a model that has no such figure, and where one window alone does not fit.
    """
    check_family(checkpoint, settings)
    if not 0 <= best <= checkpoint.config.vocab_size:
        raise UsageError(
            f"best is {best}; it must be from 0 to {checkpoint.config.vocab_size}, all tokens"
        )
    room = Room(tokens_at_once, "windows", told)
    reader = _Reader(checkpoint, settings, best, tokens_at_once, room, watcher)
    texts = _open(checkpoint, documents, settings, skip)
    calls = 0  # the first text alone, then ever more: what is read together is finished together
    while together := _until(texts, calls * tokens_at_once // settings.passes):
        calls = min(2 * calls or 1, CALLS_SORTED)
        watcher.opened(settings.passes * sum(len(text.tokens_L) for text in together))
        reader.read(together)
        yield from (text.score(checkpoint, settings) for text in together)


def check_family(checkpoint: Checkpoint, settings: ScoreSettings) -> None:
    """Raise `EsogenError` where this model has no such figure, naming the one that it has."""
    family = checkpoint.config.family
    wanted = "exact" if settings.bound == "exact" else "NELBO"
    said = f"{checkpoint.name} is of the family {family}"
    if settings.bound not in FIGURES[family]:
        has, flag = OTHER[family]
        raise EsogenError(f"{said}, which has {has}, and no {wanted} figure: ask for {flag}")
    if family == "ar" and settings.order != "left-to-right":
        raise EsogenError(f"{said}, which knows one order: ask for --order left-to-right")
    if family in ("mdlm", "bd3lm") and settings.alpha_0 != 1.0:
        raise EsogenError(f"{said}, whose alpha_0 is 1: leave --alpha-0 out")


FIGURES: Mapping[Family, tuple[Bound, ...]] = {
    "esolm-b": ("exact", "nelbo"),
    "esolm-a": ("nelbo",),
    "mdlm": ("nelbo",),
    "bd3lm": ("nelbo",),
    "ar": ("exact",),
}
"""The figures of each family, by the words of `--bound`."""

OTHER: Mapping[Family, tuple[str, str]] = {
    **dict.fromkeys(("esolm-a", "mdlm", "bd3lm"), ("a NELBO", "--bound nelbo")),
    "ar": ("an exact likelihood, left to right", "--bound exact"),
}
"""What to ask of a family instead, in words and as a flag."""


@dataclass(slots=True, eq=False)
class _Text:
    """A document being read: what its windows have come to so far."""

    document: Document
    tokens_L: Ids
    windows: list[Window]
    values_W: list[Numbers]
    """Log-probabilities of each order, or nats of each draw, of every window."""
    sum_L: Numbers
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, window: int, number: int, reading: Reading) -> None:
        """Take one order of one window."""
        start, end, given = self.windows[window]
        counted = slice(start + given, end)
        self.values_W[window][number] = reading.log_probs_L.sum()
        self.sum_L[counted] += reading.log_probs_L[given:]
        for name, column in zip(Reading._fields[1:], reading[1:], strict=True):
            if column is not None:
                empty = np.zeros((len(self.tokens_L), *column.shape[1:]), column.dtype)
                self.columns.setdefault(name, empty)[counted] = column[given:]

    def score(self, checkpoint: Checkpoint, settings: ScoreSettings) -> Score:
        """The finished score; raises `NumericalError` when the network gave no numbers."""
        if not all(np.isfinite(values).all() for values in self.values_W):
            raise NumericalError(
                f"{checkpoint.name} gave {self.document.name} a likelihood that is no finite"
                " number; the weights are broken, or --dtype is too narrow: try fp32"
            )
        size = len(self.tokens_L), len(self.document.text.encode())
        document, ids = self.document, tuple(self.tokens_L.tolist())
        if settings.bound == "nelbo":
            figures = Figures(*size, mean_of_draws(self.values_W))
            return Score(document, ids, settings.kind, settings.time_samples, figures)
        *looser, tightest = bounds_of_windows(self.values_W)
        figures = Figures(*size, tightest, tuple(looser))
        mean_L = self.sum_L / settings.orders
        return Score(document, ids, settings.kind, settings.orders, figures, mean_L, **self.columns)


def _open(
    checkpoint: Checkpoint,
    documents: Iterable[Document],
    settings: ScoreSettings,
    skip: Skip | None,
) -> Iterator[_Text]:
    tokenizer = checkpoint.tokenizer
    for document in documents:
        ids = tokenizer.encode(document.text)
        if settings.end_of_text:
            ids.append(tokenizer.end_of_text)
        if len(ids) < LEAST_TOKENS:
            error = _too_short(document, len(ids))
            if skip is None:
                raise error
            skip(document, error)
            continue
        _check_order(document, len(ids), settings)
        windows = list(windows_of(len(ids), settings))
        values = [np.zeros(settings.passes) for _ in windows]
        yield _Text(document, np.array(ids, np.int64), windows, values, np.zeros(len(ids)))


def _too_short(document: Document, tokens: int) -> UsageError:
    found = "empty" if not document.text else f"{counted(tokens, 'token')} long"
    return UsageError(
        f"{document.name} is {found}; a text to be scored must have at least {LEAST_TOKENS}"
        " tokens: give more of it, or count its end with --end-of-text"
    )


def _check_order(document: Document, tokens: int, settings: ScoreSettings) -> None:
    """Raise `UsageError` for a text that a given order does not fit."""
    for order_L in settings.given_KL:
        if len(order_L) != tokens:
            raise UsageError(
                f"--order given is of {len(order_L)} positions and {document.name} has {tokens}"
                f" tokens; an order must be a permutation of 0 to {tokens - 1}"
            )
    if settings.given_KL and tokens > settings.length:
        raise UsageError(
            f"{document.name} has {tokens} tokens; --order given takes a text that the model reads"
            f" at once, of at most {settings.length}"
        )


def _until(texts: Iterator[_Text], room: int) -> list[_Text]:
    """The next texts, at least one, until they have `room` tokens."""
    taken: list[_Text] = []
    for text in texts:
        taken.append(text)
        room -= len(text.tokens_L)
        if room <= 0:
            break
    return taken


Unit = tuple[int, int, int]
"""Which text, which of its windows, which order or draw."""


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """Reads texts, as many windows a call as fit."""

    checkpoint: Checkpoint
    settings: ScoreSettings
    best: int
    tokens_at_once: int
    room: Room
    watcher: Watcher

    def read(self, texts: Sequence[_Text]) -> None:
        """Read every order, or every draw, of every window; a long text is never laid out whole."""
        longest = max(w.end - w.start for text in texts for w in text.windows)
        units, some = self._units(texts), max(1, CALLS_SORTED * self.tokens_at_once // longest)
        while together := list(islice(units, some)):
            passages = [self._passage(texts, *unit) for unit in together]
            self._read_batches(passages, texts, together)

    def _read_batches(
        self, passages: Sequence[Passage], texts: Sequence[_Text], units: Sequence[Unit]
    ) -> None:
        def read(part: list[int]) -> int:
            self._read([passages[i] for i in part], texts, [units[i] for i in part])
            return sum(passages[i].scored for i in part)

        for alike in batches(passages, self.tokens_at_once):
            for tokens in self.room.parts(alike, read):
                self.watcher.read(tokens)

    def _units(self, texts: Sequence[_Text]) -> Iterator[Unit]:
        return (
            (i, window, number)
            for i, text in enumerate(texts)
            for window in range(len(text.windows))
            for number in range(self.settings.passes)
        )

    def _passage(self, texts: Sequence[_Text], text: int, window: int, number: int) -> Passage:
        start, end, given = texts[text].windows[window]
        key = texts[text].document.series, window
        order_L = order_of(self.settings, end - start, given, key, number)
        return Passage(texts[text].tokens_L[start:end], order_L, given)

    def _read(
        self, passages: Sequence[Passage], texts: Sequence[_Text], units: Sequence[Unit]
    ) -> None:
        """One call of the network, and what it says handed to the texts."""
        network, settings = self.checkpoint.network, self.settings
        if settings.bound == "exact":
            one = settings.orders == 1
            readings = read_batch(network, passages, self.best if one else None)
            for reading, (text, window, number) in zip(readings, units, strict=True):
                texts[text].add(window, number, reading)
            return
        draws = [
            draw_of(settings, passage.tokens_L, (texts[text].document.series, window), number)
            for passage, (text, window, number) in zip(passages, units, strict=True)
        ]
        nats_B = nats_of(network, draws, settings)
        for nats, (text, window, number) in zip(nats_B, units, strict=True):
            texts[text].values_W[window][number] = nats
