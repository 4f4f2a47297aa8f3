"""Draws follow the shaped distribution exactly."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from esogen.generate.draw import DrawSettings, draw, shape

VOCABULARY, DRAWS, CHUNK = 50_000, 200_000, 500


def heavy_tailed_logits() -> Tensor:
    """Zipf's law over 50 000 tokens, ids shuffled: half of the mass is far out in the tail."""
    rank = torch.from_numpy(np.random.default_rng(0).permutation(VOCABULARY)) + 1.0
    return -1.05 * rank.log()


def _probs(logits_V: Tensor, temperature: float) -> np.ndarray:
    """Softmax, in float64 where a temperature shapes it, as the draw has it."""
    if temperature == 1.0:
        probs: np.ndarray = logits_V.log_softmax(-1).exp().double().numpy()
    else:
        probs = (logits_V.double() / temperature).softmax(-1).numpy()
    return probs


def brute_force(logits_V: Tensor, rule: DrawSettings) -> np.ndarray:
    """The shaped distribution, by sorting in NumPy."""
    probs = _probs(logits_V, rule.temperature)
    order = np.lexsort((np.arange(len(probs)), -probs))[: rule.top_k]
    listed = probs[order] / probs[order].sum()
    kept = order[np.concatenate([[0.0], listed.cumsum()[:-1]]) < rule.top_p]
    shaped = np.zeros_like(probs)
    shaped[kept] = probs[kept] / probs[kept].sum()
    return shaped


def on_an_edge(logits_V: Tensor, rule: DrawSettings) -> bool:
    """Whether rounding decides if a token belongs to the nucleus: then both answers are right."""
    if rule.top_p == 1.0:
        return False
    probs = _probs(logits_V, rule.temperature)
    listed = np.sort(probs)[::-1][: rule.top_k]
    listed = listed / listed.sum()
    before = listed.cumsum() - listed
    return bool(((np.abs(before - rule.top_p) < 1e-5) & (listed > 1e-7)).any())


def chi_square_p(counts: np.ndarray, probs: np.ndarray) -> float:
    """p value, with cells that expect fewer than 5 pooled into one."""
    expected = probs * counts.sum()
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    keep = wanted > 0
    return float(stats.chisquare(observed[keep], wanted[keep]).pvalue)


@pytest.mark.parametrize(
    "rule",
    [DrawSettings(), DrawSettings(temperature=0.7), DrawSettings(temperature=1.5, top_k=300),
     DrawSettings(top_k=40), DrawSettings(top_p=0.9), DrawSettings(0.8, 1000, 0.6)],
    ids=str,
)  # fmt: skip
def test_200_000_draws_follow_a_heavy_tailed_law(rule: DrawSettings) -> None:
    logits_V = heavy_tailed_logits()
    uniforms = torch.from_numpy(np.random.default_rng(1).random(DRAWS))
    # One row of logits serves a whole chunk: equal rows are shaped once and searched many times.
    cdf_V = shape(logits_V.log_softmax(-1), rule).cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cdf_V, uniforms * cdf_V[-1], right=True)
    few = draw(logits_V.expand(CHUNK, -1), uniforms[:CHUNK], rule).tokens
    assert (few == tokens[:CHUNK]).all()
    probs = brute_force(logits_V, rule)
    counts = np.bincount(tokens.numpy(), minlength=VOCABULARY)
    assert (counts[probs == 0] == 0).all()
    assert chi_square_p(counts, probs) > 1e-3


def test_a_law_that_is_slightly_wrong_fails_the_same_test() -> None:
    logits_V = heavy_tailed_logits()
    uniforms = torch.from_numpy(np.random.default_rng(1).random(DRAWS))
    cdf_V = shape(logits_V.double().log_softmax(-1), DrawSettings(temperature=0.98)).cumsum(-1)
    tokens = torch.searchsorted(cdf_V, uniforms * cdf_V[-1], right=True)
    counts = np.bincount(tokens.numpy(), minlength=VOCABULARY)
    assert chi_square_p(counts, brute_force(logits_V, DrawSettings())) < 1e-6


rules = st.builds(
    DrawSettings,
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 3, 60, 64, 65, 200]),
    top_p=st.sampled_from([0.3, 0.9, 0.999, 1.0]),
)


@given(rules, st.integers(0, 2**32), st.sampled_from([0.5, 3.0, 8.0]), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=150)
def test_the_kept_tokens_are_those_of_a_plain_sort_ties_and_all(
    rule: DrawSettings, seed: int, spread: float, rows: int
) -> None:
    """Rounded logits tie; rows with ties and rows without stand in one batch."""
    plain_KV = torch.randn(rows, 700, generator=torch.Generator().manual_seed(seed)) * spread
    logits_KV = torch.cat([plain_KV, plain_KV.round()])[seed % 2 :]
    assume(not any(on_an_edge(logits_V, rule) for logits_V in logits_KV))
    shaped = shape(logits_KV.log_softmax(-1), rule).double().numpy()
    wanted = np.stack([brute_force(logits_V, rule) for logits_V in logits_KV])
    np.testing.assert_allclose(shaped / shaped.sum(-1, keepdims=True), wanted, atol=1e-6)


def test_the_recorded_log_probability_is_the_models_own() -> None:
    logits_KV = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    drawn = draw(logits_KV, torch.tensor([0.5]), DrawSettings(temperature=0.3, top_k=1))
    assert drawn.tokens.tolist() == [2]
    assert drawn.log_probs.item() == pytest.approx(logits_KV.log_softmax(-1)[0, 2].item())


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits_KV = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    drawn = draw(logits_KV, torch.tensor([0.99, 0.99]), DrawSettings(temperature=0.0, top_p=0.9))
    assert drawn.tokens.tolist() == [1, 0]


@pytest.mark.parametrize(
    "rule", [DrawSettings(temperature=1e-310), DrawSettings(1e-300, 1, 5e-324)]
)
def test_extreme_settings_take_the_most_probable_token(rule: DrawSettings) -> None:
    logits_KV = torch.tensor([[0.0, 3.0, 2.9, -torch.inf]])
    assert draw(logits_KV, torch.tensor([0.5]), rule).tokens.tolist() == [1]


@pytest.mark.parametrize("u", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible(u: float) -> None:
    logits_KV = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    drawn = draw(logits_KV, torch.tensor([u], dtype=torch.float64), DrawSettings())
    assert drawn.tokens.item() == (1 if u == 0.0 else 2)


def test_logits_that_are_no_numbers_give_log_probabilities_that_are_none() -> None:
    drawn = draw(torch.full((1, 4), torch.nan), torch.tensor([0.5]), DrawSettings(top_p=0.9))
    assert not drawn.log_probs.isfinite().any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", float("inf")), ("temperature", float("nan")),
     ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1)],
)  # fmt: skip
def test_a_draw_setting_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        DrawSettings(**{field: value})  # type: ignore[arg-type]
