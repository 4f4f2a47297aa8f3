"""What reading a weights file costs, as the kernel counts it."""

import sys
from pathlib import Path

import pytest
import torch

from esogen.checkpoint.weights import read_tensors, write_weights
from esogen.model.config import ModelConfig
from tests.conftest import random_tensors

COUNTS = Path("/proc/self/smaps_rollup")


def private_bytes() -> int:
    """Memory that belongs to this process alone and cannot be read from a file again."""
    lines = (line.split() for line in COUNTS.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == "Anonymous:")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup")
def test_tensors_that_are_read_stay_in_the_mapped_file(tmp_path: Path) -> None:
    """The allocator counts the mapping as its own; the kernel knows better."""
    config = ModelConfig("esolm-b", 20_000, 64, 256, 2, 4)
    path = tmp_path / "model.safetensors"
    write_weights(path, random_tensors(config, seed=0), torch.float32)
    before = private_bytes()
    tensors = read_tensors(path, config)
    assert sum(tensor.nbytes for tensor in tensors.values()) > 40e6
    assert private_bytes() - before < 4e6
    copies = [tensor.clone() for tensor in tensors.values()]
    assert private_bytes() - before > 40e6
    assert len(copies) == len(tensors)
