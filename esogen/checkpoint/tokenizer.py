"""From text to token ids and back, around the `tokenizers` library."""

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from esogen.errors import CheckpointError, UsageError

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "\ufffd"
"""What stands in a decoded text for an id that is no piece of text, such as the mask token."""

SMALLEST_VOCABULARY = 257
"""All bytes and the end of text."""


class Tokenizer:
    """Text to ids and back, for a network whose last id is the mask token.

    Special tokens that are written out in a text are text: only the caller ends a text.
    """

    def __init__(self, inner: tokenizers.Tokenizer, vocab_size: int) -> None:
        """Take over `inner`; raises `ValueError` when it does not fit `vocab_size` ids."""
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._mask_id = vocab_size - 1
        self.size = max(inner.get_vocab().values(), default=-1) + 1
        if self.size != vocab_size - 1 and not self._ends_in_mask(vocab_size):
            raise ValueError(
                f"holds {self.size} tokens where the network has a vocabulary of {vocab_size},"
                f" that is {vocab_size - 1} and the mask token"
            )
        self.end_of_text = self._end_of_text()

    @classmethod
    def read(cls, path: Path, vocab_size: int) -> "Tokenizer":
        """Read a `tokenizer.json` for a network with `vocab_size` ids, the mask token included.

        Raises `CheckpointError` when it cannot be read, does not match the vocabulary or has no
        end-of-text token.
        """
        inner = _parse(path)
        try:
            return cls(inner, vocab_size)
        except ValueError as error:
            raise CheckpointError(
                f"{path} {error}; put the tokenizer.json there that the network was trained with"
            ) from error

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, with nothing added before or after.

        Raises `UsageError` for a string that is no valid Unicode, as undecodable bytes leave it.
        """
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise UsageError(
                "the text is not valid UTF-8; wanted Unicode text, convert it first"
            ) from error

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores at once."""
        encoded = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a run of ids; one id alone may be half a character, so decode whole runs.

        Ids that are no piece of text, such as the mask token's, become U+FFFD each.
        """
        return "".join(
            self._inner.decode(list(run), skip_special_tokens=False)
            if known
            else UNKNOWN * sum(1 for _ in run)
            for known, run in groupby(ids, self._is_text)
        )

    def byte_lengths(self, ids: Iterable[int]) -> list[int]:
        """How many bytes of UTF-8 each id stands for, in a byte-level vocabulary."""
        return [len(self._inner.id_to_token(token_id) or "") for token_id in ids]

    @cached_property
    def begins_word(self) -> NDArray[np.bool_]:
        """Which ids, of a vocabulary with the mask token, are a space and something behind it."""
        begins_V = np.zeros(self._mask_id + 1, np.bool_)
        for token_id in range(self._mask_id):
            text = self.decode([token_id])
            begins_V[token_id] = text[:1] == " " and bool(text[1:].strip())
        return begins_V

    @cached_property
    def vocabulary_digest(self) -> str:
        """Sixteen digits that tell which id stands for which piece of text."""
        pieces = sorted(self._inner.get_vocab().items())
        return sha256(json.dumps(pieces).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        return self._inner.to_str()

    def _is_text(self, token_id: int) -> bool:
        return 0 <= token_id < self._mask_id and self._inner.id_to_token(token_id) is not None

    def _ends_in_mask(self, vocab_size: int) -> bool:
        last = self._inner.id_to_token(vocab_size - 1) or ""
        return self.size == vocab_size and "mask" in last.lower()

    def _end_of_text(self) -> int:
        token_id = self._inner.token_to_id(END_OF_TEXT)
        if token_id is None:
            raise ValueError(f"has no end-of-text token {END_OF_TEXT}")
        return token_id


def train_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `size` tokens, the end of text among them.

    It has fewer where the texts hold too little to merge: the vocabulary of a network for it is
    `tokenizer.size + 1`. Raises `UsageError` when `size` has no room for all bytes.
    """
    if size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"a vocabulary of {size} tokens is too small;"
            f" it must have at least {SMALLEST_VOCABULARY}: all bytes and the end of text"
        )
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, inner.get_vocab_size() + 1)


def _parse(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # the library raises bare `Exception` for what it cannot parse
        raise CheckpointError(
            f"{path} is no tokenizer ({error}); download or copy it again"
        ) from error
