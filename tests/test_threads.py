"""How many CPU threads a call of the network uses."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from esogen.model.attention import Dense
from esogen.model.config import ModelConfig
from esogen.model.heads import Heads
from esogen.model.network import Network, initialise
from esogen.model.threads import NARROW, threads_for

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(usual)


@pytest.mark.usefixtures("three_threads")
def test_a_narrow_product_has_one_thread_and_a_wide_one_all() -> None:
    for products, threads in ((1, 1), (NARROW, 1), (NARROW + 1, 3)):
        with threads_for(CPU, products):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_threads_come_back_after_an_error() -> None:
    with pytest.raises(KeyError), threads_for(CPU, 1):
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_network_runs_few_tokens_on_one_thread_and_many_on_all() -> None:
    config = ModelConfig(
        "esolm-b", vocab_size=512, model_length=1024, hidden_size=64, n_blocks=1, n_heads=1
    )
    network = Network(config)
    initialise(network, torch.Generator().manual_seed(0))
    in_output: list[int] = []
    network.output_layer.linear.register_forward_pre_hook(
        lambda *_: in_output.append(torch.get_num_threads())
    )
    for tokens, threads in ((4, 1), (1024, 3)):
        attend, positions = Watching(), torch.arange(tokens)[None]
        network.forward(torch.zeros_like(positions), positions, attend)
        assert attend.threads == in_output.pop() == threads


class Watching:
    """Attention that notes how many threads there are."""

    threads = 0

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        self.threads = torch.get_num_threads()
        return Dense(causal=True)(layer, heads)
