"""How each family samples: its plan and its calls. Everything else of a run is common to all."""

import numpy as np
from numpy.typing import NDArray

from esogen.errors import UsageError
from esogen.generate import denoise
from esogen.generate.captured import Through
from esogen.generate.denoise import Calls
from esogen.generate.drafting import Drafting
from esogen.generate.plan import Plan, Positions, ScheduleSettings, make_plan
from esogen.model.attention import SDPA, Kernels
from esogen.model.cache import KVCache, WholeText
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.peers import ar, bd3lm, esolm_a
from esogen.peers.mdlm import WholeTextCalls


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


def calls_for(network: Network, plan: Plan, *, cached: bool, kernels: Kernels = SDPA) -> Calls:
    """Fresh calls for a run of `plan`, with the family's KV cache and these kernels, or not."""
    config, prefix = network.config, plan.late  # what sees itself both ways, in (A)
    if not cached and config.family != "mdlm":
        return _uncached(network, prefix)
    rows, length = plan.order_BL.shape
    like = network.vocab_embed.embedding
    if config.family == "mdlm":
        whole = WholeText(config, rows, length, device=like.device)
        return WholeTextCalls(config, Through(network, whole, kernels))
    cache = KVCache(
        config, rows, length, device=like.device, dtype=like.dtype, kernel=kernels.whole
    )
    match config.family:
        case "esolm-a":
            return esolm_a.CachedCalls(network, Through(network, cache, kernels), prefix)
        case "bd3lm":
            return bd3lm.CachedCalls(network, Through(network, cache, kernels))
        case "ar":
            return ar.CachedCalls(network, Through(network, cache, kernels))
        case _:
            ahead = _fed(plan).tolist()
            return denoise.CachedCalls(network, Through(network, cache, kernels, ahead))


def _fed(plan: Plan) -> NDArray[np.int64]:
    """Tokens that each step of Eso-LM (B) feeds, `[S]`: those decided last, and its masks."""
    fresh_S: NDArray[np.int64] = np.concatenate([[plan.given], plan.counts_S])[: plan.nfe]
    return fresh_S + plan.counts_S


WIDTHS_OF_A_TOKEN = 16
"""Numbers that a block holds of each token of a call, in model widths: the MLP has 4, twice."""


def row_bytes(
    network: Network, plan: Plan, *, cached: bool, drafting: Drafting | None = None
) -> int:
    """About what one row of a run of `plan` takes: its KV cache, and its widest call in hand."""
    config, like = network.config, network.vocab_embed.embedding
    length = plan.order_BL.shape[1]
    places, widest = length, length
    if drafting:
        places = drafting.places(length)
        drafts = min(drafting.most, length)
        widest = max(plan.given + drafts, 3 * drafts) if cached else places
    elif cached and config.family == "esolm-b":
        widest = int(_fed(plan).max(initial=1))
    kept = 2 * config.n_blocks * places if cached and config.family != "mdlm" else 0
    numbers = (kept + WIDTHS_OF_A_TOKEN * widest) * config.hidden_size
    return int(numbers * like.element_size())


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
