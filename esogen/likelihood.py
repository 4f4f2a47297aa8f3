"""Exact log-probabilities of texts, one pass over masks and text together per order.

Eso-LM (B) gives `log p(x | order)` exactly: every token given all earlier ones as clean
(arXiv 2506.01928, section 3.3). `log_probs` scores many texts, each in an order of its own;
`token_log_probs` is the plain dense form of the same, which it must equal.

Shapes: B rows, L positions, G given tokens, K scored tokens, D model width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.network import Network, hidden_after_bos, with_bos
from esogen.model.two_halves import TwoHalves

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]

CHUNK = 2**18
"""Logits in memory at once, at most, unless the vocabulary is so large that few rows would fit."""
LEAST_ROWS = 64
"""Rows of logits that are always made at once: fewer read the output matrix too often."""
TOKENS_AT_ONCE = 2**12
"""Scored tokens of a batch, padding included, unless said; no figure depends on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """One text in one order. Raises `ValueError` when the order is not one of this text.

    `tokens_L`: ids in natural order, the first token at natural position 0. `order_L`: natural
    position at each sorted index. The first `given` tokens of the order are known and not scored.
    """

    tokens_L: Ids
    order_L: Ids
    given: int = 0

    def __post_init__(self) -> None:
        length = len(self.tokens_L)
        if not np.array_equal(np.sort(self.order_L), np.arange(length)):
            raise ValueError(
                f"the order is no permutation of 0 to {length - 1}, the positions of the text"
            )
        if not 0 <= self.given < length:
            raise ValueError(f"given is {self.given}; it must be from 0 to {length - 1}")

    @property
    def scored(self) -> int:
        """Tokens that have a log-probability."""
        return len(self.tokens_L) - self.given


class Reading(NamedTuple):
    """What the network says of a passage, by natural position; zero where a token was given.

    `log_probs_L` float64, nats. Where they were asked for, `ranks_L` int64: tokens more probable
    than the one that stands there; `best_LN` int64 and `best_log_probs_LN`: the N most probable.
    """

    log_probs_L: Numbers
    ranks_L: Ids | None = None
    best_LN: Ids | None = None
    best_log_probs_LN: Numbers | None = None


def log_probs(
    network: Network,
    texts: Sequence[Ids],
    orders: Sequence[Ids] | None = None,
    *,
    given: int = 0,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> list[Numbers]:
    """`log p` of each token of each text given all tokens before it in that text's order.

    Nats, float64, one array per text, by NATURAL position; zero where one of the `given` first
    tokens of the order stands. Texts may differ in length; without `orders` each is read left to
    right. For several orders of one text, give it several times. Raises `ValueError` for an order
    that is not one of its text.
    """
    passages = [
        Passage(tokens_L, order_L, given)
        for tokens_L, order_L in zip(texts, orders or map(left_to_right, texts), strict=True)
    ]
    return [reading.log_probs_L for reading in read(network, passages, tokens_at_once)]


def left_to_right(tokens_L: Ids) -> Ids:
    """The natural order of a text."""
    return np.arange(len(tokens_L))


def read(
    network: Network,
    passages: Sequence[Passage],
    tokens_at_once: int = TOKENS_AT_ONCE,
    *,
    best: int | None = None,
) -> list[Reading]:
    """Read every passage; with `best`, also the rank and so many most probable tokens."""
    readings: dict[int, Reading] = {}
    for part in batches(passages, tokens_at_once):
        found = read_batch(network, [passages[i] for i in part], best)
        readings.update(zip(part, found, strict=True))
    return [readings[i] for i in range(len(passages))]


def batches(
    passages: Sequence[Passage], tokens_at_once: int = TOKENS_AT_ONCE
) -> Iterator[list[int]]:
    """Indices of passages to be read together: alike in what is given, and in length."""
    shape = [(passage.given, len(passage.tokens_L)) for passage in passages]
    batch: list[int] = []
    for i in sorted(range(len(passages)), key=shape.__getitem__):
        fits = (len(batch) + 1) * passages[i].scored <= tokens_at_once
        if batch and not (fits and passages[batch[0]].given == passages[i].given):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def read_batch(
    network: Network, passages: Sequence[Passage], best: int | None = None
) -> list[Reading]:
    """Read passages in one call of the network; they must be alike in how much is given.

    Shorter ones are padded behind their end, where no token of theirs looks. Raises `ValueError`
    for a family that has no exact likelihood, and for an order that a left-to-right model has not.
    """
    family = network.config.family
    if family == "ar":
        return _read_rows_ahead(network, passages, best)
    if family != "esolm-b":
        raise ValueError(f"a model of the family {family} has no exact likelihood")
    given, device = passages[0].given, network.vocab_embed.embedding.device
    longest = max(len(passage.tokens_L) for passage in passages)
    order_BL = _stack([passage.order_L for passage in passages], longest).to(device)
    text_BL = _stack([p.tokens_L[p.order_L] for p in passages], longest).to(device)
    masks_BL = torch.full_like(text_BL[:, given:], network.config.mask_id)
    clean_BM, places_BM = with_bos(network.config, text_BL, order_BL)
    masks = longest - given
    hidden_BLD = network.hidden(
        torch.cat([masks_BL, clean_BM], 1),
        torch.cat([order_BL[:, given:], places_BM], 1),
        TwoHalves(masks, given=clean_BM.shape[1] - masks),
        slice(masks),
    )
    return _readings(network, passages, hidden_BLD, text_BL[:, given:], best)


def _read_rows_ahead(
    network: Network, passages: Sequence[Passage], best: int | None
) -> list[Reading]:
    """As `read_batch`, where row i of the network predicts position i + 1 and bos comes first."""
    if any((np.diff(passage.order_L) < 0).any() for passage in passages):
        raise ValueError("a model of the family ar reads left to right only")
    given, device = passages[0].given, network.vocab_embed.embedding.device
    longest = max(len(passage.tokens_L) for passage in passages)
    text_BL = _stack([passage.tokens_L for passage in passages], longest).to(device)
    positions_BL = torch.arange(longest, device=device).expand_as(text_BL)
    ids_BM, places_BM = with_bos(network.config, text_BL, positions_BL)
    hidden_BMD = network.hidden(ids_BM[:, :-1], places_BM[:, :-1], Dense(causal=True))
    return _readings(network, passages, hidden_BMD[:, given:], text_BL[:, given:], best)


def _readings(
    network: Network,
    passages: Sequence[Passage],
    hidden_BLD: Tensor,
    tokens_BL: Tensor,
    best: int | None,
) -> list[Reading]:
    """From what predicts the scored tokens, padded behind each passage's end, and these tokens."""
    scored_B = torch.tensor([passage.scored for passage in passages], device=tokens_BL.device)
    counted_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < scored_B[:, None]
    columns = _look(network, hidden_BLD[counted_BL], tokens_BL[counted_BL], best)
    parts = zip(*(torch.split(column, scored_B.tolist()) for column in columns), strict=True)
    return [_natural(p, part) for p, part in zip(passages, parts, strict=True)]


def _stack(rows: list[Ids], length: int) -> Tensor:
    stacked = np.zeros((len(rows), length), np.int64)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(stacked)


def _look(
    network: Network, hidden_KD: Tensor, tokens_K: Tensor, best: int | None
) -> tuple[Tensor, ...]:
    """The columns of `Reading` over K tokens, on the CPU, a chunk of logits at a time."""
    rows = max(LEAST_ROWS, CHUNK // network.config.vocab_size)
    chunks = zip(torch.split(hidden_KD, rows), torch.split(tokens_K, rows), strict=True)
    parts = [_columns(network.logits(hidden), tokens, best) for hidden, tokens in chunks]
    return tuple(torch.cat(column).cpu() for column in zip(*parts, strict=True))


def _columns(logits_KV: Tensor, tokens_K: Tensor, best: int | None) -> tuple[Tensor, ...]:
    own_K1, total_K1 = logits_KV.gather(-1, tokens_K[:, None]), logits_KV.logsumexp(-1, True)
    log_probs_K = (own_K1 - total_K1)[:, 0].double()
    if best is None:
        return (log_probs_K,)
    top = logits_KV.topk(best, dim=-1)
    ranks_K = (logits_KV > own_K1).sum(-1)
    return log_probs_K, ranks_K, top.indices, (top.values - total_K1).double()


def _natural(passage: Passage, columns: tuple[Tensor, ...]) -> Reading:
    """Columns of the scored tokens, in sorted order, laid out by natural position."""
    positions, length = passage.order_L[passage.given :], len(passage.tokens_L)
    laid = []
    for column in columns:
        values = column.numpy()
        laid.append(np.zeros((length, *values.shape[1:]), values.dtype))
        laid[-1][positions] = values
    return Reading(*laid)


@torch.inference_mode()
def token_log_probs(network: Network, x_BL: Tensor, order_BL: Tensor) -> Tensor:
    """`log p(x at order[j] | x at order[0..j-1])` for every sorted index j, nats, `[B, L]`.

    `x_BL` int64 in natural order; `order_BL` int64: natural position at each sorted index. One
    dense mask over `2L` tokens: quadratic in memory, and the oracle of `log_probs`.
    """
    length = x_BL.shape[1]
    clean_BL = x_BL.gather(1, order_BL)
    masks_BL = torch.full_like(clean_BL, network.config.mask_id)
    mask = patterns.two_halves(patterns.causal(length, x_BL.device))
    hidden_BMD = hidden_after_bos(
        network, torch.cat([masks_BL, clean_BL], 1), torch.cat([order_BL, order_BL], 1), Dense(mask)
    )
    log_probs_BLV = network.logits(hidden_BMD[:, :length]).log_softmax(-1)
    return log_probs_BLV.gather(-1, clean_BL[..., None])[..., 0]
