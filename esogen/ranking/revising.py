"""A draft's least likely tokens, taken out and left as blanks.

How likely a token is, is a mean over orders: in each it is read with what comes before it there, so
that over several every token is seen with most of its surroundings.

Shapes: L tokens of the draft.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import UsageError
from esogen.generate.template import Blank, Template, Tokens
from esogen.likelihood import log_probs
from esogen.model.network import Network
from esogen.ranking.scores import RankingOrder

ORDERS = 8
"""Random orders whose mean says how likely a token is."""

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


def revise(
    text: str,
    network: Network,
    tokenizer: Tokenizer,
    *,
    share: float,
    seed: int,
    keep: Sequence[str] = (),
) -> Tokens:
    """`text` with blanks where its least likely tokens stood, a `share` (0 to 1) of them.

    What matches one of the regular expressions `keep` stays. Raises `UsageError` for a text that is
    too long or empty, for an expression that is none, and where nothing is left to revise.
    """
    ids, longest = tokenizer.encode(text), network.config.model_length
    if not 1 <= len(ids) <= longest:
        raise UsageError(f"the draft has {len(ids)} tokens; this model takes 1 to {longest}")
    ends = _ends(text, ids, tokenizer)
    kept_L = _kept(text, ends, keep)
    count = min(round(share * len(ids)), int((~kept_L).sum()))
    if not count:
        raise UsageError(
            f"of {len(ids)} tokens none is to be revised; raise the share, or keep less"
        )
    likely_L = np.where(kept_L, np.inf, mean_log_probs(network, ids, seed))
    chosen_L = np.zeros(len(ids), np.bool_)
    chosen_L[likely_L.argsort(kind="stable")[:count]] = True
    return _blanked(text.encode(), np.array(ids), ends, _whole_characters(text, ends, chosen_L))


def mean_log_probs(network: Network, ids: Sequence[int], seed: int) -> NDArray[np.float64]:
    """Mean over `ORDERS` random orders of each token's log-probability, nats."""
    orders = RankingOrder(ORDERS, seed).of(len(ids))
    found = log_probs(network, [np.array(ids)] * ORDERS, orders)
    mean_L: NDArray[np.float64] = np.mean(found, axis=0)
    return mean_L


def _ends(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Ids:
    """The byte behind each token."""
    ends = np.cumsum(tokenizer.byte_lengths(ids))
    if ends[-1] != len(text.encode()):
        raise UsageError(
            "this model's vocabulary does not keep the bytes of a text, so a draft cannot be"
            " revised; take a model with a byte-level vocabulary"
        )
    return ends


def _kept(text: str, ends: Ids, patterns: Sequence[str]) -> Flags:
    """Which tokens share a byte with a match."""
    kept_L = np.zeros(len(ends), np.bool_)
    starts = np.concatenate([[0], ends[:-1]])
    for pattern in patterns:
        try:
            found = [*re.finditer(pattern, text)]
        except re.error as error:
            raise UsageError(
                f"--keep is {pattern!r}, which is no regular expression: {error}"
            ) from error
        for match in found:
            first, last = (len(text[:place].encode()) for place in match.span())
            kept_L |= (starts < last) & (ends > first)
    return kept_L


def _whole_characters(text: str, ends: Ids, chosen_L: Flags) -> Flags:
    """The chosen tokens and those that share a character with one of them."""
    boundaries = np.cumsum([0, *(len(character.encode()) for character in text)])
    split_L = ~np.isin(ends, boundaries)  # the character goes on in the next token
    chosen_L = chosen_L.copy()
    for place in np.flatnonzero(split_L[:-1]):
        chosen_L[place + 1] |= chosen_L[place]
    for place in np.flatnonzero(split_L[:-1])[::-1]:
        chosen_L[place] |= chosen_L[place + 1]
    return chosen_L


def _blanked(data: bytes, ids: Ids, ends: Ids, chosen_L: Flags) -> Tokens:
    """Each run of chosen tokens becomes a blank; the space it begins with stays given text."""
    starts = np.concatenate([[0], ends[:-1]])
    cuts = np.flatnonzero(np.diff(chosen_L, prepend=False, append=False))
    texts, given, blanks, byte, place = [], [], [], 0, 0
    for first, last in cuts.reshape(-1, 2):
        spaced = data[starts[first] : starts[first] + 1] == b" "
        texts.append(data[byte : starts[first] + spaced].decode())
        given.append(tuple(ids[place:first].tolist()))
        blanks.append(Blank(int(last - first), int(last - first), spaced))
        byte, place = ends[last - 1], last
    template = Template((*texts, data[byte:].decode()), tuple(blanks))
    return Tokens(template, (*given, tuple(ids[place:].tolist())))
