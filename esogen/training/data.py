"""Text files to rows of token ids: packed end to end, or one whole text a row."""

import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.tokenizer import END_OF_TEXT
from esogen.errors import EsogenError
from esogen.generate.streams import Purpose, stream
from esogen.training.settings import Layout

SEPARATOR = re.compile(rf"^[ \t]*{re.escape(END_OF_TEXT)}[ \t]*$", re.MULTILINE)
"""The line that parts two documents of a training file."""


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

    Raises `EsogenError` for a file that is missing, not UTF-8, broken, or holds no text.
    """
    for path in paths:
        documents = [part.strip("\n") for part in SEPARATOR.split(_read(path))]
        documents = [document for document in documents if document.strip()]
        if not documents:
            raise EsogenError(f"{path} holds no text to train on; give a file with some text in it")
        yield from documents


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
        return text.replace("\r\n", "\n")
    except OSError as error:
        raise EsogenError(f"cannot read {path}: {error.strerror}") from error
    except lzma.LZMAError as error:
        raise EsogenError(f"{path} is no intact xz file ({error}); copy it again") from error
    except UnicodeDecodeError as error:
        raise EsogenError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv"
        ) from error


def training_rows(documents: list[str], tokenizer: Encoder, layout: Layout, length: int) -> Rows:
    """Rows of `length` tokens in either layout; raises `EsogenError` when there is not one."""
    rows = (whole_rows if layout == "whole" else packed_rows)(documents, tokenizer, length)
    if len(rows):
        return rows
    if layout == "whole":
        raise EsogenError(
            f"none of the {len(documents)} texts fits a row of {length} tokens;"
            " raise --length, or cut the texts into rows with --layout packed"
        )
    raise EsogenError(
        f"the {len(documents)} texts together do not fill one row of {length} tokens;"
        " give more text or lower --length"
    )


def whole_rows(documents: list[str], tokenizer: Encoder, length: int) -> Rows:
    """One text a row from position 0, end-of-text, then padding; what does not fit drops out."""
    encoded = [[*ids, tokenizer.end_of_text] for ids in tokenizer.encode_many(documents)]
    fitting = [i for i, ids in enumerate(encoded) if len(ids) <= length]
    ids_RL = np.full((len(fitting), length), tokenizer.end_of_text, np.int32)
    for row, i in enumerate(fitting):
        ids_RL[row, : len(encoded[i])] = encoded[i]
    counted_R = np.array([len(encoded[i]) for i in fitting], np.int32)
    text_bytes = sum(len(documents[i].encode()) for i in fitting)
    return Rows(ids_RL, counted_R, text_bytes, dropped=len(documents) - len(fitting))


def packed_rows(documents: list[str], tokenizer: Encoder, length: int) -> Rows:
    """All texts end to end, an end-of-text after each, cut into full rows; the rest drops out."""
    stream_ids = [
        token for ids in tokenizer.encode_many(documents) for token in (*ids, tokenizer.end_of_text)
    ]
    rows = len(stream_ids) // length
    ids_RL = np.array(stream_ids[: rows * length], np.int32).reshape(rows, length)
    share = rows * length / max(len(stream_ids), 1)
    text_bytes = round(share * sum(len(document.encode()) for document in documents))
    return Rows(ids_RL, np.full(rows, length, np.int32), text_bytes)


def windows(documents: list[str], tokenizer: Encoder, length: int) -> Rows:
    """Every text cut into windows of at most `length` tokens, each token counted once.

    What evaluation uses: nothing drops out, no window crosses a text, none sees the one before it.
    """
    pieces = [
        ids[start : start + length]
        for ids in ([*i, tokenizer.end_of_text] for i in tokenizer.encode_many(documents))
        for start in range(0, len(ids), length)
    ]
    ids_RL = np.full((len(pieces), length), tokenizer.end_of_text, np.int32)
    for row, piece in enumerate(pieces):
        ids_RL[row, : len(piece)] = piece
    counted_R = np.array([len(piece) for piece in pieces], np.int32)
    return Rows(ids_RL, counted_R, sum(len(document.encode()) for document in documents))


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
