"""How each family samples: its plan and its calls. Everything else of a run is common to all."""

import numpy as np
import torch

from esogen.checkpoint.placement import choose_attention
from esogen.errors import UsageError
from esogen.generate import denoise
from esogen.generate.captured import CapturedCalls, CudaGraphs
from esogen.generate.denoise import Calls
from esogen.generate.plan import Plan, Positions, ScheduleSettings, make_plan
from esogen.model.attention import SDPA, Kernel, Kernels
from esogen.model.cache import KVCache
from esogen.model.config import Family, ModelConfig
from esogen.model.network import Network
from esogen.peers import ar, bd3lm, esolm_a
from esogen.peers.mdlm import WholeTextCalls

RECORDED: tuple[Family, ...] = ("esolm-b", "ar")
"""The families whose steps are recorded where a kernel for them is given: causal in their order."""


def plan_for(
    config: ModelConfig,
    settings: ScheduleSettings,
    seed: int,
    samples: range,
    *,
    given: Positions,
    blank: Positions,
) -> Plan:
    """The plan of samples number `samples` of `seed`; `given` and `blank` as in `make_plan`.

    Raises `UsageError` where a family that goes left to right is given a token after a blank.
    """
    if config.family not in ("bd3lm", "ar"):
        return make_plan(settings, seed, samples, given, blank)
    if len(given) and len(blank) and given[-1] > blank[0]:
        raise UsageError(
            f"token {blank[0]} is to be decided and token {given[-1]} is given, but a model of the"
            f" family {config.family} does not see what comes later; give a prompt alone, or"
            " choose another model"
        )
    plan = make_plan(ScheduleSettings(1, alpha_0=0.0), seed, samples, given, blank)
    plan.order_BL[:, : plan.given] = given
    if config.family == "ar":
        return plan
    return bd3lm.shuffled_in_blocks(plan, seed, samples, config.block_size)


def kernels_for(word: str, family: Family, device: torch.device, dtype: torch.dtype) -> Kernels:
    """What `choose_attention` gives, but that `auto` is plain where no steps are recorded."""
    plain = word == "auto" and family not in RECORDED
    return choose_attention("sdpa" if plain else word, device, dtype)


def calls_for(network: Network, plan: Plan, *, cached: bool, kernels: Kernels = SDPA) -> Calls:
    """Fresh calls for a run of `plan`, with the family's KV cache and these kernels, or not."""
    prefix = esolm_a.prefix_length(plan)
    if network.config.family == "mdlm":
        return WholeTextCalls(network)
    return _cached(network, plan, prefix, kernels) if cached else _uncached(network, prefix)


def _cached(network: Network, plan: Plan, prefix: int, kernels: Kernels) -> Calls:
    cache = _cache(network, plan, kernels.whole)
    family = network.config.family
    match family:
        case "esolm-a":
            return esolm_a.CachedCalls(network, cache, prefix)
        case "bd3lm":
            return bd3lm.CachedCalls(network, cache)
        case "ar":
            calls: Calls = ar.CachedCalls(network, cache)
        case _:
            calls = denoise.CachedCalls(network, cache)
    if kernels.step is None:
        return calls
    return CapturedCalls(
        calls,
        network,
        cache,
        plan,
        kernel=kernels.step,
        record=CudaGraphs(cache.device),
        with_masks=family == "esolm-b",
    )


WIDTHS_OF_A_TOKEN = 16
"""Numbers that a block holds of each token of a call, in model widths: the MLP has 4, twice."""


def row_bytes(network: Network, plan: Plan, *, cached: bool) -> int:
    """About what one row of a run of `plan` takes: its KV cache, and its widest call in hand."""
    config, like = network.config, network.vocab_embed.embedding
    length = plan.order_BL.shape[1]
    widest = length
    if cached and config.family == "esolm-b":
        fresh_S = np.concatenate([[plan.given], plan.counts_S])[:-1]
        widest = int((fresh_S + plan.counts_S).max(initial=1))
    places = 2 * config.n_blocks * length if cached and config.family != "mdlm" else 0
    numbers = places + WIDTHS_OF_A_TOKEN * widest
    return int(numbers * config.hidden_size * like.element_size())


def _uncached(network: Network, prefix: int) -> Calls:
    match network.config.family:
        case "esolm-a":
            return esolm_a.UncachedCalls(network, prefix)
        case "bd3lm":
            return bd3lm.UncachedCalls(network)
        case "ar":
            return ar.UncachedCalls(network)
        case _:
            return denoise.UncachedCalls(network)


def _cache(network: Network, plan: Plan, kernel: Kernel) -> KVCache:
    rows, length = plan.order_BL.shape
    like = network.vocab_embed.embedding
    device, dtype = like.device, like.dtype
    return KVCache(network.config, rows, length, device=device, dtype=dtype, kernel=kernel)
