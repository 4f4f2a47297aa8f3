"""What reading a weights file costs, as the kernel counts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esogen.checkpoint.config_file import Card, write_config
from esogen.checkpoint.weights import write_weights
from esogen.model.config import ModelConfig
from tests.conftest import random_tensors

READ = """
import json, sys
from pathlib import Path
from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.weights import read_tensors

def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

folder = Path(sys.argv[1])
config = read_config(folder / "config.json").model
before = private_bytes()
tensors = read_tensors(folder / "model.safetensors", config)
read = private_bytes()
copies = [tensor.clone() for tensor in tensors.values()]
print(json.dumps([read - before, private_bytes() - read]))
"""
"""Memory that belongs to the process alone, and cannot be read from a file again, in bytes."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup")
def test_tensors_that_are_read_stay_in_the_mapped_file(tmp_path: Path) -> None:
    """The allocator counts the mapping as its own; the kernel knows better."""
    config = ModelConfig("esolm-b", 20_000, 64, 256, 2, 4)
    path = tmp_path / "model.safetensors"
    write_weights(path, random_tensors(config, seed=0), torch.float32)
    write_config(tmp_path / "config.json", Card(config), "float32")
    assert path.stat().st_size > 40e6
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True
    )
    read, copied = json.loads(done.stdout)
    assert read < 4e6
    assert copied > 40e6
