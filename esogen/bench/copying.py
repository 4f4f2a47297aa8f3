"""How much of a text stands, token by token, in the texts a model was trained on.

Stretches are compared by 64-bit hashes, so a figure is exact but for a chance of about 1e-10.

Shapes: T tokens of training, P places in them, S tokens of all samples, Q places in those.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esogen.likelihood import Ids

GRAM = 8
"""Tokens of the shortest stretch that is looked for."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 2**22

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Copied:
    """Of one text: how many stretches of `GRAM` tokens it has, how many of them stand in training.

    `longest`: tokens of the longest stretch that does, 0 where none of `GRAM` does.
    """

    grams: int
    seen: int
    longest: int


def copied(samples: Sequence[Ids], training_T: NDArray[np.integer]) -> list[Copied]:
    """Look every stretch of every sample up in the training tokens, all texts end to end."""
    ends_S = np.repeat(np.cumsum([len(ids) for ids in samples]), [len(ids) for ids in samples])
    row_S = np.repeat(np.arange(len(samples)), [len(ids) for ids in samples])
    ids_S = np.concatenate([*samples, np.zeros(0, np.int64)])
    places_Q, hash_Q = _grams(ids_S)
    inside = places_Q + GRAM <= ends_S[places_Q]
    places_Q, hash_Q = places_Q[inside], hash_Q[inside]
    places_P, hash_P = _shared(training_T, np.unique(hash_Q))
    found_Q = np.isin(hash_Q, hash_P)
    grams = np.bincount(row_S[places_Q], minlength=len(samples))
    seen = np.bincount(row_S[places_Q[found_Q]], minlength=len(samples))
    longest, length = np.zeros(len(samples), np.int64), GRAM
    places_Q, hash_Q = places_Q[found_Q], hash_Q[found_Q]
    while len(places_Q):
        longest[row_S[places_Q]] = length
        inside = places_Q + length < ends_S[places_Q]
        places_Q, hash_Q = _longer(places_Q[inside], hash_Q[inside], ids_S, length)
        inside = places_P + length < len(training_T)
        places_P, hash_P = _longer(places_P[inside], hash_P[inside], training_T, length)
        both = np.intersect1d(hash_Q, hash_P)
        kept_Q, kept_P = np.isin(hash_Q, both), np.isin(hash_P, both)
        places_Q, hash_Q = places_Q[kept_Q], hash_Q[kept_Q]
        places_P, hash_P = places_P[kept_P], hash_P[kept_P]
        length += 1
    return [
        Copied(*row) for row in zip(grams.tolist(), seen.tolist(), longest.tolist(), strict=True)
    ]


def _grams(ids_T: NDArray[np.integer]) -> tuple[Ids, Hashes]:
    """Every place at which `GRAM` tokens begin, and their hash."""
    places = np.arange(max(len(ids_T) - GRAM + 1, 0))
    hashes = np.zeros(len(places), np.uint64)
    for i in range(GRAM):
        hashes = _mixed(hashes, ids_T[i : i + len(places)])
    return places, hashes


def _shared(training_T: NDArray[np.integer], wanted: Hashes) -> tuple[Ids, Hashes]:
    """The places of training at which a wanted stretch begins, a part of the training at a time."""
    parts = []
    for first in range(0, max(len(training_T), 1), _AT_ONCE):
        places, hashes = _grams(training_T[first : first + _AT_ONCE + GRAM - 1])
        found = np.isin(hashes, wanted)
        parts.append((places[found] + first, hashes[found]))
    return np.concatenate([p for p, _ in parts]), np.concatenate([h for _, h in parts])


def _longer(
    places: Ids, hashes: Hashes, ids: NDArray[np.integer], length: int
) -> tuple[Ids, Hashes]:
    """The same stretches with one token more behind them."""
    return places, _mixed(hashes, ids[places + length])


def _mixed(hashes: Hashes, ids: NDArray[np.integer]) -> Hashes:
    """The hash of a stretch with one token more."""
    mixed: Hashes = (hashes ^ (ids.astype(np.uint64) + np.uint64(1))) * _FACTOR
    return mixed ^ (mixed >> np.uint64(29))
