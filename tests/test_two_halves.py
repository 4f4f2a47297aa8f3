"""Masks and text in one input: every way of attending sees what the dense mask shows."""

import pytest
import torch

from esogen.model import patterns, two_halves
from esogen.model.attention import Attend, Dense
from esogen.model.block_sparse import block_sparse
from esogen.model.config import ModelConfig
from esogen.model.heads import Heads, Rotation, angles_of
from esogen.model.network import Network
from esogen.model.two_halves import TwoHalves
from tests.conftest import random_tensors


def dense(masks: int, given: int, text: int) -> Dense:
    """The pattern cut out of that of `given + masks` masks and tokens, all of one order."""
    places = given + masks
    whole = patterns.two_halves(patterns.causal(places))
    kept = torch.tensor([*range(given, places), *range(places, places + text)])
    return Dense(whole[kept][:, kept])


def random_inputs(places: int) -> Heads:
    generator = torch.Generator().manual_seed(places)
    angles = angles_of(torch.randn(2, places, 16, generator=generator))
    qkv_BL3NH = torch.randn(2, places, 3, 2, 16, generator=generator)
    return Heads(qkv_BL3NH, Rotation(angles.cos(), angles.sin()))


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
    wanted = dense(masks, given, text)(0, inputs)
    ways: list[Attend] = [
        TwoHalves(masks, given),
        block_sparse(masks, given, text, torch.device("cpu")),
    ]
    for attend in ways:
        torch.testing.assert_close(attend(0, inputs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns about itself
def test_a_compiled_network_gives_what_the_tiles_give() -> None:
    length, config = 64, ModelConfig("esolm-b", 50, 64, 32, 2, 2, cond_dim=4, bos_id=0)
    network = Network(config).eval()
    network.load_state_dict(random_tensors(config, seed=0))
    ids_BL = torch.randint(0, 49, (2, 2 * length))
    positions_BL = torch.arange(2 * length).expand(2, -1) % length
    attend = block_sparse(length, 1, length, torch.device("cpu"))
    with torch.no_grad():
        found = torch.compile(network.hidden)(ids_BL, positions_BL, attend)
        wanted = network.hidden(ids_BL, positions_BL, TwoHalves(length, 1))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")  # the compiler warns about itself
@pytest.mark.parametrize("bos_id", [None, 0])
def test_a_compiled_network_has_the_loss_and_gradients_of_the_tiles(bos_id: int | None) -> None:
    length, given, device = 300, int(bos_id is not None), torch.device("cuda")
    config = ModelConfig("esolm-b", 50, length, 128, 3, 2, cond_dim=4, bos_id=bos_id)
    network = Network(config).eval()
    network.load_state_dict(random_tensors(config, seed=0))
    network.to(device)
    ids_BL = torch.randint(0, 49, (2, 2 * length), device=device)
    positions_BL = torch.arange(2 * length, device=device).expand(2, -1) % length
    found = []
    for attend, hidden in (
        (block_sparse(length, given, length, device), torch.compile(network.hidden)),
        (TwoHalves(length, given), network.hidden),
    ):
        network.zero_grad()
        output = hidden(ids_BL, positions_BL, attend, slice(length))
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        found.append([output.detach(), *gradients])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-2 * float(two.abs().max()), rtol=1e-2)
