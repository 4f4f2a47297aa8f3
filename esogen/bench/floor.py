"""The least a run can take: the bytes that must move, at the speed at which this device copies.

Every step reads the weights once and the KV cache that stands once. Of the embeddings it reads a
few rows, which are left out; keys and values of the step's own tokens need not leave the chip.

Shapes: S steps.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from esogen.bench.gauges import Spread, Stopwatch
from esogen.generate.denoise import chunk_rows
from esogen.generate.plan import Plan
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.model.packed import weight_bytes

COPIED = {"cuda": 2**30, "cpu": 2**28}
"""Bytes of the block that is copied: more than any cache in between holds."""
_COPIES = 9


def bytes_moved(network: Network, plan: Plan, *, cached: bool) -> int:
    """Bytes that must be read in a run of `plan`."""
    embedding = network.vocab_embed.embedding
    weights = plan.nfe * (weight_bytes(network) - embedding.nbytes)
    if not cached:
        return weights
    config, rows = network.config, len(plan.order_BL)
    token = 2 * config.n_blocks * config.hidden_size * embedding.itemsize
    return weights + rows * token * int(standing(config, plan).sum())


def bytes_needed(network: Network, plan: Plan, *, cached: bool) -> int:
    """Bytes of the weights, of the cache and of the largest chunk of logits of a run of `plan`."""
    config, like = network.config, network.vocab_embed.embedding
    rows, length = plan.order_BL.shape
    drawn = min(rows * int(plan.counts_S.max(initial=0)), chunk_rows(network, like))
    places = rows * length if cached and config.family != "mdlm" else 0
    cache = 2 * config.n_blocks * places * config.hidden_size * like.itemsize
    return int(weight_bytes(network) + cache + 4 * drawn * config.vocab_size)


def standing(config: ModelConfig, plan: Plan) -> NDArray[np.int64]:
    """Tokens that stand in the cache of a row before each step, `[S]`; bos is one."""
    decided_S = plan.ends_S - plan.counts_S
    stands_S = np.concatenate([[0], decided_S])[: plan.nfe]  # what was clean a step before
    begun_S = np.arange(plan.nfe) > 0
    match config.family:
        case "mdlm":
            begun_S = np.zeros_like(begun_S)
        case "esolm-a":
            begun_S &= stands_S >= plan.late
        case "bd3lm":
            stands_S = stands_S // config.block_size * config.block_size
    stands_S += config.bos_id is not None
    return np.where(begun_S, stands_S, 0)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that copying moves on `device`, read and written, by the median copy."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(_COPIES):
        target.copy_(source)
        watch.mark()
    return 2 * source.nbytes / Spread.of(watch.intervals()).median
