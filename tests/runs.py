"""Runs of the sampler on a tiny network, cached or not, whole or teacher-forced."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from esogen.checkpoint.folder import Checkpoint
from esogen.generate.captured import Through
from esogen.generate.denoise import (
    CachedCalls,
    Calls,
    Progress,
    Step,
    UncachedCalls,
    denoise,
    start,
)
from esogen.generate.draw import DrawSettings
from esogen.generate.plan import Plan, Positions, ScheduleSettings, make_plan
from esogen.generate.streams import token_uniforms
from esogen.model.cache import KVCache
from esogen.model.network import Network

NO_POSITIONS: Positions = np.zeros(0, np.int64)


def plan_for(
    settings: ScheduleSettings,
    samples: range,
    length: int,
    *,
    seed: int = 0,
    given: Positions = NO_POSITIONS,
) -> Plan:
    """The plan of these samples for a text of `length` tokens in which `given` stand."""
    blank = np.setdiff1d(np.arange(length), given)
    return make_plan(settings, seed, samples, given, blank)


def begin(
    network: Network, plan: Plan, samples: range, *, seed: int = 0, device: str = "cpu"
) -> Progress:
    """Given tokens (a fixed pattern of ids) in place, masks everywhere else."""
    length = plan.order_BL.shape[1]
    given_L = np.arange(length) * 7 % (network.config.vocab_size - 1)
    uniforms_BL = np.stack([token_uniforms(seed, i, length)[:, 0] for i in samples])
    return start(network, plan, given_L, uniforms_BL, torch.device(device))


def calls_for(network: Network, plan: Plan, *, cached: bool) -> Calls:
    """Fresh calls with a cache, or without."""
    if not cached:
        return UncachedCalls(network)
    rows, length = plan.order_BL.shape
    dtype = network.vocab_embed.embedding.dtype
    return CachedCalls(
        network, Through(network, KVCache(network.config, rows, length, dtype=dtype))
    )


def run(
    network: Network,
    plan: Plan,
    samples: range,
    *,
    cached: bool = True,
    seed: int = 0,
    draw: DrawSettings | None = None,
    end_of_text: int | None = None,
) -> Iterator[Step]:
    """The steps of a whole run."""
    return denoise(
        network,
        calls_for(network, plan, cached=cached),
        plan,
        begin(network, plan, samples, seed=seed),
        draw or DrawSettings(top_p=0.9),
        end_of_text=end_of_text,
    )


def forced_logits(network: Network, plan: Plan, text_BL: Tensor, *, cached: bool) -> Tensor:
    """Logits `[B, M, V]` of every decided token in sorted order, each call shown `text_BL`."""
    return forced_logits_of(network, calls_for(network, plan, cached=cached), plan, text_BL)


def forced_logits_of(network: Network, calls: Calls, plan: Plan, text_BL: Tensor) -> Tensor:
    """The same, of any calls."""
    rows, length = plan.order_BL.shape
    order_BL = torch.from_numpy(plan.order_BL)
    canvas_BL = torch.full((rows, length), network.config.mask_id)
    progress = Progress(canvas_BL, order_BL, torch.zeros(rows, length), np.arange(rows))
    reveal(progress, text_BL, 0, plan.given)
    decided, fresh, logits = plan.given, plan.given, []
    with torch.inference_mode():
        for count in plan.counts_S.tolist():
            logits.append(network.logits(calls(progress, decided, fresh, count)))
            reveal(progress, text_BL, decided, decided + count)
            decided, fresh = decided + count, count
    return torch.cat(logits, dim=1)


def reveal(progress: Progress, text_BL: Tensor, first: int, last: int) -> None:
    """Put the tokens of sorted indices `first` to `last` of a known text onto the canvas."""
    positions = progress.order_BL[:, first:last]
    progress.canvas_BL.scatter_(1, positions, text_BL.gather(1, positions))


def behind_bos(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights in a model whose texts begin from end-of-text."""
    config = replace(checkpoint.config, bos_id=checkpoint.tokenizer.end_of_text)
    network = Network(config, folded=True)
    network.load_state_dict(checkpoint.network.state_dict())
    return replace(checkpoint, network=network.eval(), config=config)
