"""Whether two sets of texts have the same law of tokens, or of neighbours: a permutation test.

What is exchanged between the sets are texts, not tokens, for the tokens of a text hang together.

Shapes: N texts of both sets, L tokens of a text, W different stretches of tokens, P permutations.
"""

import numpy as np
from numpy.typing import NDArray

from esogen.likelihood import Ids

PERMUTATIONS = 9999


def p_value(first_NL: Ids, second_NL: Ids, stretch: int, *, seed: int = 0) -> float:
    """How likely sets of one law are to lie as far apart as these, by stretches of so many tokens.

    Far is the sum over stretches of (a - b)^2 / (a + b), a and b how often each set has them.
    """
    both_NL = np.concatenate([first_NL, second_NL])
    counts_NW = _counts(both_NL, stretch)
    gram_NN = (counts_NW / counts_NW.sum(0)) @ counts_NW.T
    signs_N = np.repeat([1.0, -1.0], [len(first_NL), len(second_NL)])
    shuffled_PN = np.random.default_rng(seed).permuted(np.tile(signs_N, (PERMUTATIONS, 1)), axis=1)
    far_P = ((shuffled_PN @ gram_NN) * shuffled_PN).sum(1)
    found = signs_N @ gram_NN @ signs_N
    as_far = np.count_nonzero(far_P >= found * (1 - 1e-9))
    return float((1 + as_far) / (1 + PERMUTATIONS))


def _counts(ids_NL: Ids, stretch: int) -> NDArray[np.float64]:
    """How often each text has each stretch that any of them has."""
    windows_NLS = np.lib.stride_tricks.sliding_window_view(ids_NL, stretch, axis=1)
    keys_NL = windows_NLS @ (int(ids_NL.max()) + 1) ** np.arange(stretch)
    found_W, which_NL = np.unique(keys_NL, return_inverse=True)
    flat = which_NL.reshape(len(ids_NL), -1) + np.arange(len(ids_NL))[:, None] * len(found_W)
    counts = np.bincount(flat.ravel(), minlength=len(ids_NL) * len(found_W))
    return counts.reshape(len(ids_NL), -1).astype(np.float64)
