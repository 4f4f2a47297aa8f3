"""Texts that were tokenised once: xz-compressed files of token ids that training reads.

A token file is a line of JSON, then the ids of whole texts as little-endian unsigned integers, an
end-of-text behind each. The line names the vocabulary, so that ids of another are never read.
"""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esogen.atomic import replacing
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import EsogenError
from esogen.training.data import Encoded

SUFFIX = ".tokens.xz"

FILE_BYTES = 14 * 2**20
"""Bytes of ids in a file, unless one text alone has more; compressed, a file is at most that."""

_FORMAT = "esogen tokens 1"
_TYPES = ("<u2", "<u4")


def is_token_file(path: Path) -> bool:
    """Whether a file is called as token files are."""
    return path.name.endswith(SUFFIX)


def write_token_files(
    folder: Path, name: str, texts: Encoded, tokenizer: Tokenizer, size: int = FILE_BYTES
) -> list[Path]:
    """Write texts as `NAME-00.tokens.xz` and so on, `size` bytes of ids each; returns the files.

    Each file is whole or not there. Raises `OSError` when one cannot be written.
    """
    dtype = np.dtype(_TYPES[tokenizer.size > 2**16])
    written: list[Path] = []
    for part in _parts(texts, size // dtype.itemsize):
        head = {
            "format": _FORMAT,
            "dtype": dtype.str,
            "vocabulary": tokenizer.vocabulary_digest,
            "texts": len(part),
            "tokens": len(part.ids_T),
        }
        data = json.dumps(head).encode() + b"\n" + part.ids_T.astype(dtype).tobytes()
        path = folder / f"{name}-{len(written):02d}{SUFFIX}"
        with replacing(path) as scratch:
            scratch.write_bytes(lzma.compress(data))
        written.append(path)
    return written


def _parts(texts: Encoded, tokens: int) -> Iterator[Encoded]:
    """Whole texts, at most so many tokens together."""
    first = 0
    while first < len(texts):
        start = int(texts.starts_D[first])
        fitting = int(np.searchsorted(texts.ends_D, start + tokens, side="right"))
        last = max(fitting, first + 1)
        end = int(texts.ends_D[last - 1])
        yield Encoded(
            texts.ids_T[start:end], texts.ends_D[first:last] - start, texts.bytes_D[first:last]
        )
        first = last


def read_token_file(path: Path, tokenizer: Tokenizer) -> Encoded:
    """The texts of a token file.

    Raises `EsogenError` when it is missing, damaged, no token file, or of another vocabulary.
    """
    head, ids_T = _read(path)
    if head.get("vocabulary") != tokenizer.vocabulary_digest:
        raise EsogenError(
            f"{path} holds tokens of another vocabulary than the tokenizer in use;"
            " give the tokenizer.json that was written with it, or tokenise the texts again"
        )
    ends_D = np.flatnonzero(ids_T == tokenizer.end_of_text) + 1
    whole = len(ends_D) == head.get("texts") and len(ids_T) == head.get("tokens")
    if not whole or ids_T.max(initial=0) >= tokenizer.size or ids_T[-1:] != tokenizer.end_of_text:
        raise EsogenError(f"{path} does not hold the texts that it names; copy it again")
    length_V = np.array(tokenizer.byte_lengths(range(tokenizer.size)), np.int64)
    length_V[tokenizer.end_of_text] = 0
    bytes_T = np.concatenate([[0], np.cumsum(length_V[ids_T])])
    return Encoded(ids_T, ends_D, np.diff(bytes_T[ends_D], prepend=0))


def _read(path: Path) -> tuple[dict[str, Any], NDArray[Any]]:
    try:
        line, _, data = lzma.decompress(path.read_bytes()).partition(b"\n")
        head = json.loads(line)
        if head["format"] != _FORMAT or head["dtype"] not in _TYPES:
            raise _no_token_file(path)
        return head, np.frombuffer(data, head["dtype"])
    except OSError as error:
        raise EsogenError(f"cannot read {path}: {error.strerror}") from error
    except lzma.LZMAError as error:
        raise EsogenError(f"{path} is no intact xz file ({error}); copy it again") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_token_file(path) from error


def _no_token_file(path: Path) -> EsogenError:
    return EsogenError(
        f"{path} holds no tokens that this version reads; write it with esogen tokenize,"
        f" or, if it is text, give it a name that does not end in {SUFFIX}"
    )
