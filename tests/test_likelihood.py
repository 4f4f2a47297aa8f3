"""Exact log-probabilities: against the authors', the dense form, all texts, and the sampler."""

import math
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from esogen import likelihood
from esogen.likelihood import Passage, log_probs, read, token_log_probs
from esogen.model import two_halves
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from tests import golden
from tests.conftest import random_tensors

Ids = NDArray[np.int64]

RANDOM = np.random.default_rng(7)
SMALL = ModelConfig(
    "esolm-b", vocab_size=4, model_length=8, hidden_size=16, n_blocks=2, n_heads=2, cond_dim=8
)


@pytest.fixture(scope="module")
def small() -> Network:
    """Three tokens and a mask, random weights in double precision, so that sums are sharp."""
    network = Network(SMALL)
    network.load_state_dict(random_tensors(SMALL, seed=3))
    return network.double().eval()


@pytest.fixture(scope="module")
def tiny(tiny_config: ModelConfig) -> Network:
    network = Network(tiny_config)
    network.load_state_dict(random_tensors(tiny_config, seed=1))
    return network.eval()


def texts_and_orders(lengths: list[int], tokens: int) -> tuple[list[Ids], list[Ids]]:
    texts = [RANDOM.integers(tokens, size=length) for length in lengths]
    return texts, [RANDOM.permutation(length) for length in lengths]


def dense(network: Network, text: Ids, order: Ids) -> NDArray[np.float64]:
    """The dense form, by natural position."""
    found = np.empty(len(text))
    one_row = torch.from_numpy(text)[None], torch.from_numpy(order)[None]
    found[order] = token_log_probs(network, *one_row)[0].numpy()
    return found


@pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])
def test_the_authors_implementation_gives_the_same(folded: bool) -> None:
    network, case = golden.network("esolm-b", folded=folded), golden.expected("esolm-b")
    orders = list(case["likelihood.order"].numpy())
    found = log_probs(network, list(case["x0"].numpy()), orders)
    for row, order, wanted in zip(found, orders, case["likelihood.logp_per_token"], strict=True):
        np.testing.assert_allclose(row[order], wanted, atol=golden.TOLERANCE, rtol=0)


@pytest.mark.parametrize("tile", [1, 3, 128])
def test_a_batch_of_unequal_lengths_equals_the_dense_form_row_by_row(
    tiny: Network, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_halves, "TILE", tile)
    texts, orders = texts_and_orders([1, 9, 64, 30, 9, 2], 299)
    for at_once in (1, 100, 10_000):
        found = log_probs(tiny, texts, orders, tokens_at_once=at_once)
        for row, text, order in zip(found, texts, orders, strict=True):
            np.testing.assert_allclose(row, dense(tiny, text, order), atol=2e-5, rtol=0)


def test_a_model_that_begins_texts_from_a_token_equals_the_dense_form(
    tiny_config: ModelConfig,
) -> None:
    network = Network(replace(tiny_config, bos_id=5))
    network.load_state_dict(random_tensors(tiny_config, seed=1))
    texts, orders = texts_and_orders([1, 9, 30], 299)
    found = log_probs(network.eval(), texts, orders)
    for row, text, order in zip(found, texts, orders, strict=True):
        np.testing.assert_allclose(row, dense(network, text, order), atol=2e-5, rtol=0)


def test_without_orders_texts_are_read_left_to_right(tiny: Network) -> None:
    texts, _ = texts_and_orders([5, 12], 299)
    for row, text in zip(log_probs(tiny, texts), texts, strict=True):
        np.testing.assert_allclose(row, dense(tiny, text, np.arange(len(text))), atol=2e-5, rtol=0)


def test_given_tokens_change_nothing_but_what_is_scored(tiny: Network) -> None:
    texts, orders = texts_and_orders([20, 40, 7], 299)
    whole = log_probs(tiny, texts, orders)
    for row, full, order in zip(
        log_probs(tiny, texts, orders, given=6), whole, orders, strict=True
    ):
        np.testing.assert_allclose(row[order[6:]], full[order[6:]], atol=2e-5, rtol=0)
        assert not row[order[:6]].any()


def test_passages_with_different_givens_may_be_read_together(tiny: Network) -> None:
    (text,), (order,) = texts_and_orders([30], 299)
    whole = dense(tiny, text, order)
    readings = read(tiny, [Passage(text, order, given) for given in (3, 0, 29, 3)])
    for reading, given in zip(readings, (3, 0, 29, 3), strict=True):
        scored = order[given:]
        np.testing.assert_allclose(reading.log_probs_L[scored], whole[scored], atol=2e-5, rtol=0)


def test_ranks_and_the_best_tokens_are_those_of_the_networks_distribution(tiny: Network) -> None:
    (text,), (order,) = texts_and_orders([12], 299)
    (reading,) = read(tiny, [Passage(text, order)], best=4)
    assert reading.ranks_L is not None
    assert reading.best_LN is not None
    assert reading.best_log_probs_LN is not None
    for j, position in enumerate(order):
        variants = []
        for token in range(299):
            other = text.copy()
            other[position] = token
            variants.append(other)
        rows = torch.from_numpy(np.stack(variants))
        orders = torch.from_numpy(order).expand_as(rows)
        column = token_log_probs(tiny, rows, orders)[:, j].numpy()
        ranked = np.argsort(-column)
        assert reading.best_LN[position].tolist() == ranked[:4].tolist()
        assert reading.ranks_L[position] == int((column > column[text[position]]).sum())
        np.testing.assert_allclose(
            reading.best_log_probs_LN[position], column[ranked[:4]], atol=2e-5, rtol=0
        )


def test_the_size_of_a_chunk_of_logits_changes_nothing(
    tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, orders = texts_and_orders([40, 33], 299)
    whole = log_probs(tiny, texts, orders)
    monkeypatch.setattr(likelihood, "CHUNK", 1)
    monkeypatch.setattr(likelihood, "LEAST_ROWS", 3)
    for row, wanted in zip(log_probs(tiny, texts, orders), whole, strict=True):
        np.testing.assert_allclose(row, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_the_probabilities_of_all_texts_sum_to_one(small: Network, length: int) -> None:
    texts = [np.array(text) for text in product(range(3), repeat=length)]
    for order in (np.arange(length), np.arange(length)[::-1], RANDOM.permutation(length)):
        total = math.fsum(
            math.exp(row.sum()) for row in log_probs(small, texts, [order] * len(texts))
        )
        assert total == pytest.approx(1.0, abs=1e-5)


def test_given_the_first_tokens_the_probabilities_of_all_ends_sum_to_one(small: Network) -> None:
    order = RANDOM.permutation(6)
    texts = []
    for end in product(range(3), repeat=4):
        text = np.array([2, 0, 1, 1, 2, 0])
        text[order[2:]] = end
        texts.append(text)
    rows = log_probs(small, texts, [order] * len(texts), given=2)
    assert math.fsum(math.exp(row.sum()) for row in rows) == pytest.approx(1.0, abs=1e-5)


def test_the_mean_over_all_orders_is_a_probability_too(small: Network) -> None:
    orders = [np.array(order) for order in permutations(range(3))]
    texts = [np.array(text) for text in product(range(3), repeat=3)]
    pairs = list(product(texts, orders))
    rows = log_probs(small, [text for text, _ in pairs], [order for _, order in pairs])
    assert math.fsum(math.exp(row.sum()) for row in rows) / len(orders) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("order", "given"),
    [([0, 1, 1], 0), ([0, 1], 0), ([1, 2, 3], 0), ([0, 1, 2], 3), ([0, 1, 2], -1)],
)
def test_an_order_that_is_not_one_of_the_text_is_refused(order: list[int], given: int) -> None:
    with pytest.raises(ValueError, match="permutation|given is"):
        Passage(np.array([5, 6, 7]), np.array(order), given)
