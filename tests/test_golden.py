"""The network computes what the authors' published implementations compute, folded or not."""

import pytest
import torch
from torch import Tensor

from esogen.likelihood import token_log_probs
from esogen.model import patterns
from esogen.model.attention import Dense
from tests import golden

folded_or_not = pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])


def natural_order(ids_BL: Tensor) -> Tensor:
    return torch.arange(ids_BL.shape[1]).expand_as(ids_BL)


def clean_counts(ids_BL: Tensor, mask_id: int) -> Tensor:
    return (ids_BL != mask_id).sum(1)


@folded_or_not
def test_esolm_b_agrees_in_the_diffusion_phase(folded: bool) -> None:
    network, case = golden.network("esolm-b", folded=folded), golden.expected("esolm-b")
    order = case["diffusion.order"]
    logits = network(case["diffusion.zt"].gather(1, order), order, Dense(causal=True))
    assert golden.difference(logits, case["diffusion.logits"]) < golden.TOLERANCE


@folded_or_not
def test_esolm_b_agrees_in_the_sequential_phase(folded: bool) -> None:
    network, case = golden.network("esolm-b", folded=folded), golden.expected("esolm-b")
    order = case["sequential.order"]
    logits = golden.noisy_half(
        network,
        case["sequential.zt"].gather(1, order),
        case["x0"].gather(1, order),
        order,
        patterns.two_halves(patterns.causal(order.shape[1])),
    )
    assert golden.difference(logits, case["sequential.logits"]) < golden.TOLERANCE


@folded_or_not
def test_esolm_b_agrees_on_the_likelihood_of_a_text_in_a_given_order(folded: bool) -> None:
    network, case = golden.network("esolm-b", folded=folded), golden.expected("esolm-b")
    log_probs = token_log_probs(network, case["x0"], case["likelihood.order"])
    assert (log_probs - case["likelihood.logp_per_token"]).abs().max() < golden.TOLERANCE


@folded_or_not
def test_esolm_a_agrees_in_the_diffusion_phase(folded: bool) -> None:
    network, case = golden.network("esolm-a", folded=folded), golden.expected("esolm-a")
    order = case["diffusion.order"]
    noisy = case["diffusion.zt"].gather(1, order)
    clean = clean_counts(noisy, network.config.mask_id)
    logits = network(noisy, order, Dense(patterns.prefix(clean, noisy.shape[1])))
    assert golden.difference(logits, case["diffusion.logits"]) < golden.TOLERANCE


@folded_or_not
def test_esolm_a_agrees_in_the_sequential_phase(folded: bool) -> None:
    network, case = golden.network("esolm-a", folded=folded), golden.expected("esolm-a")
    order = case["sequential.order"]
    noisy = case["sequential.zt"].gather(1, order)
    clean = clean_counts(noisy, network.config.mask_id)
    logits = golden.noisy_half(
        network,
        noisy,
        case["x0"].gather(1, order),
        order,
        patterns.two_halves(patterns.prefix(clean, order.shape[1])),
    )
    assert golden.difference(logits, case["sequential.logits"]) < golden.TOLERANCE


@folded_or_not
def test_mdlm_agrees_on_a_partly_masked_text(folded: bool) -> None:
    network, case = golden.network("mdlm", folded=folded), golden.expected("mdlm")
    logits = network(case["zt"], natural_order(case["zt"]), Dense())
    assert golden.difference(logits, case["logits"]) < golden.TOLERANCE


@folded_or_not
def test_bd3lm_agrees_while_sampling_a_block(folded: bool) -> None:
    network, case = golden.network("bd3lm", folded=folded), golden.expected("bd3lm")
    tokens, block_size = case["sampling.tokens"], network.config.block_size
    mask = patterns.block_causal(tokens.shape[1], block_size)
    logits = network(tokens, natural_order(tokens), Dense(mask))[:, -block_size:]
    assert golden.difference(logits, case["sampling.logits"]) < golden.TOLERANCE


@folded_or_not
def test_bd3lm_agrees_while_training(folded: bool) -> None:
    network, case = golden.network("bd3lm", folded=folded), golden.expected("bd3lm")
    noisy, block_size = case["training.zt"], network.config.block_size
    clean_half = patterns.block_causal(noisy.shape[1], block_size)
    logits = golden.noisy_half(
        network,
        noisy,
        case["x0"],
        natural_order(noisy),
        patterns.two_halves(clean_half, block_size),
    )
    assert golden.difference(logits, case["training.logits"]) < golden.TOLERANCE


@folded_or_not
def test_the_left_to_right_model_agrees(folded: bool) -> None:
    network, case = golden.network("ar", folded=folded), golden.expected("ar")
    logits = network(case["x"], natural_order(case["x"]), Dense(causal=True))
    assert golden.difference(logits, case["logits"]) < golden.TOLERANCE


@pytest.mark.parametrize("case", golden.COPIED)
def test_the_copies_in_the_repository_are_the_originals(case: str) -> None:
    if not golden.ORIGINALS.is_dir():
        pytest.skip("the originals are not here")
    copy, original = golden.COPIES / case, golden.ORIGINALS / case
    for name in [name for name in golden.WHOLE if (original / name).exists()]:
        assert (copy / name).read_bytes() == (original / name).read_bytes()
    wanted = golden.first_row(golden.expected(case, root=golden.ORIGINALS))
    found = golden.expected(case, root=golden.COPIES)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
