"""Text files to rows of token ids: packed end to end, or one whole text a row."""

import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.tokenizer import END_OF_TEXT
from esogen.errors import EsogenError, UsageError, not_utf_8
from esogen.generate.streams import Purpose, stream
from esogen.training.settings import Layout
from esogen.visible import counted

SEPARATOR = re.compile(rf"^[ \t]*{re.escape(END_OF_TEXT)}[ \t]*$", re.MULTILINE)
"""The line that parts two documents of a training file."""

_AT_ONCE = 1000
"""Documents that are encoded together: what a tokenizer gives takes more memory than arrays do."""


class Encoder(Protocol):
    """What this room needs of a tokenizer."""

    @property
    def end_of_text(self) -> int:
        """Id of the end-of-text token."""
        ...

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Texts as the network reads them.

    `ids_RL` int32 `[R, L]`. `counted_R` int32 `[R]`: leading tokens of each row that belong to the
    text, its end-of-text included; what follows is padding, the end-of-text token repeated.
    `bytes`: UTF-8 bytes of the texts. `dropped`: texts too long for a row.
    """

    ids_RL: NDArray[np.int32]
    counted_R: NDArray[np.int32]
    bytes: int
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.ids_RL)


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """The documents of plain or xz-compressed UTF-8 files, without blank lines around them.

    Raises `UsageError` for a file that is not UTF-8 or holds no text, `EsogenError` for one that is
    missing or broken.
    """
    for path in paths:
        documents = [part.strip("\n") for part in SEPARATOR.split(_read(path))]
        documents = [document for document in documents if document.strip()]
        if not documents:
            raise UsageError(f"{path} holds no text to train on; give a file with some text in it")
        yield from documents


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
        return text.replace("\r\n", "\n")
    except OSError as error:
        raise EsogenError(f"cannot read {path}: {error.strerror}; wanted a text file") from error
    except lzma.LZMAError as error:
        raise EsogenError(f"{path} is no intact xz file ({error}); copy it again") from error
    except UnicodeDecodeError as error:
        raise not_utf_8(str(path), error) from error


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Texts as tokens, end to end: D texts of T tokens in all.

    `ids_T` unsigned, each text's end-of-text behind it. `ends_D` int64: index behind each text's
    end-of-text. `bytes_D` int64: UTF-8 bytes of each text.
    """

    ids_T: NDArray[Any]
    ends_D: NDArray[np.int64]
    bytes_D: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends_D)

    @property
    def starts_D(self) -> NDArray[np.int64]:
        """Index of each text's first token."""
        return np.concatenate([[0], self.ends_D[:-1]])


def encode(documents: Sequence[str], tokenizer: Encoder) -> Encoded:
    """The tokens of every text, an end-of-text behind each."""
    ids: list[NDArray[Any]] = []
    lengths: list[int] = []
    for first in range(0, len(documents), _AT_ONCE):
        for found in tokenizer.encode_many(list(documents[first : first + _AT_ONCE])):
            ids.append(np.array([*found, tokenizer.end_of_text], np.uint32))
            lengths.append(len(found) + 1)
    bytes_D = np.array([len(document.encode()) for document in documents], np.int64)
    return Encoded(_joined(ids), np.cumsum(lengths, dtype=np.int64), bytes_D)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """All texts of all parts, in order."""
    offsets = np.cumsum([0, *(len(part.ids_T) for part in parts)])
    ends = [part.ends_D + offset for part, offset in zip(parts, offsets, strict=False)]
    return Encoded(
        _joined([part.ids_T for part in parts]),
        _joined(ends),
        _joined([part.bytes_D for part in parts]),
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def training_rows(texts: Encoded, end_of_text: int, layout: Layout, length: int) -> Rows:
    """Rows of `length` tokens in either layout; raises `EsogenError` when there is not one."""
    whole = layout == "whole"
    rows = whole_rows(texts, end_of_text, length) if whole else packed_rows(texts, length)
    if len(rows):
        return rows
    if whole:
        raise EsogenError(
            f"of {counted(len(texts), 'text')} none fits a row of {length} tokens;"
            " raise --length, or cut the texts into rows with --layout packed"
        )
    raise EsogenError(
        f"{counted(len(texts), 'text')} cannot fill one row of {length} tokens;"
        " give more text or lower --length"
    )


def whole_rows(texts: Encoded, end_of_text: int, length: int) -> Rows:
    """One text a row from position 0, end-of-text, then padding; what does not fit drops out."""
    fits_D = texts.ends_D - texts.starts_D <= length
    starts_R, ends_R = texts.starts_D[fits_D], texts.ends_D[fits_D]
    text_bytes = int(texts.bytes_D[fits_D].sum())
    ids_RL = _padded(texts.ids_T, starts_R, ends_R, length, end_of_text)
    dropped = len(texts) - len(ids_RL)
    return Rows(ids_RL, (ends_R - starts_R).astype(np.int32), text_bytes, dropped)


def packed_rows(texts: Encoded, length: int) -> Rows:
    """All texts end to end, an end-of-text after each, cut into full rows; the rest drops out."""
    rows = len(texts.ids_T) // length
    ids_RL = texts.ids_T[: rows * length].astype(np.int32).reshape(rows, length)
    share = rows * length / max(len(texts.ids_T), 1)
    return Rows(ids_RL, np.full(rows, length, np.int32), round(share * float(texts.bytes_D.sum())))


def windows(documents: list[str], tokenizer: Encoder, length: int) -> Rows:
    """Every text cut into windows of at most `length` tokens, each token counted once.

    What evaluation uses: nothing drops out, no window crosses a text, none sees the one before it.
    """
    texts = encode(documents, tokenizer)
    pieces = [
        (first, min(first + length, end))
        for start, end in zip(texts.starts_D.tolist(), texts.ends_D.tolist(), strict=True)
        for first in range(start, end, length)
    ]
    starts_R, ends_R = np.array(pieces, np.int64).reshape(-1, 2).T
    text_bytes = int(texts.bytes_D.sum())
    ids_RL = _padded(texts.ids_T, starts_R, ends_R, length, tokenizer.end_of_text)
    return Rows(ids_RL, (ends_R - starts_R).astype(np.int32), text_bytes)


def _padded(
    ids_T: NDArray[Any],
    starts_R: NDArray[np.int64],
    ends_R: NDArray[np.int64],
    length: int,
    padding: int,
) -> NDArray[np.int32]:
    """One stretch of tokens a row."""
    ids_RL = np.full((len(starts_R), length), padding, np.int32)
    for row, (start, end) in enumerate(zip(starts_R.tolist(), ends_R.tolist(), strict=True)):
        ids_RL[row, : end - start] = ids_T[start:end]
    return ids_RL


def batch_indices(rows: int, batch: int, step: int, seed: int) -> NDArray[np.int64]:
    """Row numbers `[batch]` of one step: every epoch is a new permutation, no row is skipped."""
    first = step * batch
    epochs = range(first // rows, (first + batch - 1) // rows + 1)
    start = first - epochs[0] * rows
    shuffled = [_epoch(rows, seed, epoch) for epoch in epochs]
    return np.concatenate(shuffled)[start : start + batch]


@lru_cache(maxsize=2)
def _epoch(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch, kept for the next step: sorting a large corpus takes a while."""
    return stream(seed, Purpose.TRAINING, 0, epoch).random(rows).argsort(kind="stable")
