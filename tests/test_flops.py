"""What a step is said to compute: against the masks, and against what torch counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from esogen.model import patterns
from esogen.model.config import Family, ModelConfig
from esogen.model.network import Network
from esogen.training.batch import shares
from esogen.training.data import Rows
from esogen.training.flops import step_flops
from esogen.training.settings import TrainingSettings
from tests.conftest import random_tensors

L, D, V, BLOCKS = 12, 64, 50, 2
CONFIG = ModelConfig("esolm-b", V, L, D, BLOCKS, 2, cond_dim=1)
ROWS = Rows(
    np.random.default_rng(0).integers(0, V - 1, (4, L), np.int32), np.full(4, L, np.int32), 1
)

CASES = [
    ("esolm-b", 1.0, patterns.causal(L)),
    ("esolm-b", 0.0, patterns.two_halves(patterns.causal(L))),
    ("mdlm", 1.0, torch.ones(L, L)),
    ("bd3lm", 1.0, patterns.two_halves(patterns.block_causal(L, 4), 4)),
    ("ar", 0.0, patterns.causal(L)),
]


@pytest.mark.parametrize(("family", "alpha_0", "seen"), CASES)
def test_the_operations_of_a_step_are_those_that_torch_counts_and_the_pairs_that_see(
    family: Family, alpha_0: float, seen: torch.Tensor
) -> None:
    config = replace(CONFIG, family=family, block_size=4 if family == "bd3lm" else 1)
    config = replace(config, bos_id=0) if family == "ar" else config
    network = Network(config)
    network.load_state_dict(random_tensors(config, seed=0))
    settings = TrainingSettings(1, (alpha_0,), batch_size=4)
    (share,) = shares(ROWS, settings, 0, config)
    with FlopCounterMode(display=False) as counter:
        share.loss(share.nats(network)).backward()  # type: ignore[no-untyped-call]
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op))
    pairs = 3 * 2 * 2 * D * BLOCKS * 4 * int(seen.sum())
    # What is left over are the few products of adaLN, which no token has a part in.
    assert step_flops(config, share) == pytest.approx(products + pairs, rel=0.01)
