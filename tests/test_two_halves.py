"""Masks and text in one input: every way of attending sees what the dense mask shows."""

import pytest
import torch
from torch import Tensor

from esogen.model import patterns, two_halves
from esogen.model.attention import Attend, Dense
from esogen.model.block_sparse import block_sparse
from esogen.model.two_halves import TwoHalves


def dense(masks: int, given: int, text: int) -> Dense:
    """The pattern cut out of that of `given + masks` masks and tokens, all of one order."""
    places = given + masks
    whole = patterns.two_halves(patterns.causal(places))
    kept = torch.tensor([*range(given, places), *range(places, places + text)])
    return Dense(whole[kept][:, kept])


def random_inputs(places: int, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(places)
    shape = (2, places, 2, 16)
    return [torch.randn(shape, generator=generator).to(device) for _ in range(3)]


@pytest.mark.parametrize(
    ("masks", "given", "text"), [(1, 0, 1), (5, 0, 5), (5, 1, 5), (5, 1, 6), (140, 1, 140)]
)
@pytest.mark.parametrize("tile", [2, 128])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_both_kernels_equal_the_dense_mask(
    masks: int, given: int, text: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_halves, "TILE", tile)
    inputs = random_inputs(masks + text)
    wanted = dense(masks, given, text)(0, *inputs)
    ways: list[Attend] = [
        TwoHalves(masks, given),
        block_sparse(masks, given, text, torch.device("cpu")),
    ]
    for attend in ways:
        torch.testing.assert_close(attend(0, *inputs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")  # the compiler warns about itself
@pytest.mark.parametrize("given", [0, 1])
def test_the_compiled_kernel_has_the_gradients_of_the_dense_mask(given: int) -> None:
    length, device = 300, torch.device("cuda")
    attend = block_sparse(length, given, length, device)
    found, wanted = random_inputs(2 * length, "cuda"), random_inputs(2 * length, "cuda")
    mask = dense(length, given, length).mask
    assert mask is not None
    compiled = torch.compile(lambda *inputs: attend(0, *inputs))
    for inputs, run in ((found, compiled), (wanted, lambda *x: Dense(mask.to(device))(0, *x))):
        for tensor in inputs:
            tensor.requires_grad_()
        run(*inputs).square().sum().backward()
    for one, two in zip(found, wanted, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, two.grad, atol=2e-2, rtol=2e-2)
