"""10 000 samples have the statistics of the uncached network's, drawn with other numbers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from esogen.checkpoint.placement import choose_attention
from esogen.checkpoint.weights import build
from esogen.generate.denoise import Calls, UncachedCalls, denoise, start
from esogen.generate.draw import DrawSettings, choose_draw
from esogen.generate.plan import Plan, ScheduleSettings, make_plan
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.peers.family import calls_for
from tests.conftest import random_tensors
from tests.runs import NO_POSITIONS

SAMPLES, LENGTH, STEPS = 10_000, 12, 16
CONFIG = ModelConfig(
    "esolm-b", vocab_size=9, model_length=LENGTH, hidden_size=16, n_blocks=2, n_heads=2, cond_dim=8
)
CHANCE = 1e-3
"""How often a right sampler would fail, over all positions together."""


def network_on(device: torch.device, dtype: torch.dtype) -> Network:
    """Random weights, so scaled that tokens are unequally likely, as in language."""
    tensors = random_tensors(CONFIG, seed=3)
    for name in tensors:
        if name.startswith("output_layer.linear"):
            tensors[name] = 3 * tensors[name]
    return build(CONFIG, tensors, folded=True, device=device, dtype=dtype)


@pytest.fixture(scope="module")
def network() -> Network:
    return network_on(torch.device("cpu"), torch.float32)


def plan_of(seed: int) -> Plan:
    """Counts are a function of the seed, and what is sampled depends on them: both sides share."""
    settings = ScheduleSettings(STEPS, alpha_0=0.75)
    return make_plan(settings, seed, range(SAMPLES), NO_POSITIONS, np.arange(LENGTH))


def texts(
    network: Network, calls: Calls, plan: Plan, seed: int, rule: DrawSettings
) -> NDArray[np.int64]:
    """All samples at once, `[SAMPLES, LENGTH]`, with fresh uniforms."""
    device = network.vocab_embed.embedding.device
    uniforms = np.random.default_rng(seed).random((SAMPLES, LENGTH))
    progress = start(network, plan, np.zeros(LENGTH, np.int64), uniforms, device)
    for _ in denoise(network, calls, plan, progress, rule, drawing=choose_draw(device).by):
        pass
    canvas: Tensor = progress.canvas_BL
    return canvas.cpu().numpy()


def least_p(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The least p value of all unigrams and bigrams, times how many there are.

    One position, or pair of neighbours, of every sample: so the counts are of independent draws.
    """
    columns = [*range(LENGTH), *pairwise(range(LENGTH))]
    return len(columns) * min(_p(_cells(one, c), _cells(other, c)) for c in columns)


def _cells(texts: NDArray[np.int64], columns: int | tuple[int, int]) -> NDArray[np.int64]:
    if isinstance(columns, int):
        return texts[:, columns]
    first, second = columns
    return texts[:, first] * CONFIG.vocab_size + texts[:, second]


def _p(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """The p value of a chi-square test of two samples; cells with fewer than 10 are pooled."""
    counts = np.stack([np.bincount(x, minlength=CONFIG.vocab_size**2) for x in (one, other)])
    rare = counts.sum(0) < 10
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    return float(stats.chi2_contingency(pooled[:, pooled.any(0)]).pvalue)


def test_10_000_cached_samples_have_the_unigrams_and_bigrams_of_uncached_ones(
    network: Network,
) -> None:
    plan, rule = plan_of(0), DrawSettings(top_p=0.9)
    cached = texts(network, calls_for(network, plan, cached=True), plan, 1, rule)
    wanted = texts(network, UncachedCalls(network), plan, 2, rule)
    assert least_p(cached, wanted) > CHANCE


@pytest.mark.parametrize("rule", [DrawSettings(0.9, top_p=0.9), DrawSettings(top_p=0.85)], ids=str)
def test_a_slightly_wrong_draw_fails_the_same_test(network: Network, rule: DrawSettings) -> None:
    """The power of the test: it finds a temperature that is a tenth off, a nucleus of 0.85."""
    plan = plan_of(0)
    wrong = texts(network, calls_for(network, plan, cached=True), plan, 1, rule)
    right = texts(network, UncachedCalls(network), plan, 2, DrawSettings(top_p=0.9))
    assert least_p(wrong, right) < CHANCE


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_has_the_same_statistics(network: Network, dtype: torch.dtype) -> None:
    """Recorded steps, Triton's attention and Triton's draw, all together."""
    device, rule = torch.device("cuda"), DrawSettings(top_p=0.9)
    moved, plan = network_on(device, dtype), plan_of(0)
    kernels = choose_attention("triton", device, dtype)
    found = texts(moved, calls_for(moved, plan, cached=True, kernels=kernels), plan, 1, rule)
    wanted = texts(network, UncachedCalls(network), plan, 2, rule)
    assert least_p(found, wanted) > CHANCE
