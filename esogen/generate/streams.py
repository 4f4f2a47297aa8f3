"""Where every random number comes from: independent streams, each a function of what it is for.

Nothing depends on a batch, on a global generator or on how many numbers others have drawn. Only the
raw uniforms of NumPy's Philox are used, whose bits are the same on every platform and version.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Uniforms = NDArray[np.float64]

LARGEST_SEED = 2**63 - 1


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of what a seed means: never renumber."""

    COUNTS = 0
    GIVEN_ORDER = 1
    ORDER = 2
    TOKENS = 3
    TRAINING = 4
    EVALUATION = 5


def stream(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """A generator that is a function of its arguments alone; only its `.random` may be used."""
    entropy = np.random.SeedSequence(seed, spawn_key=(int(purpose), *keys))
    return np.random.Generator(np.random.Philox(entropy))


def token_uniforms(seed: int, sample: int, length: int) -> Uniforms:
    """Three uniforms in [0, 1) per position, `[length, 3]`: draw, accept, residual.

    Row p is the same for every `length` above p, so a position keeps its numbers when a text grows.
    """
    return stream(seed, Purpose.TOKENS, sample).random((length, 3))
