"""Loading a checkpoint of the published size: against reading its bytes, and in private memory."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from esogen.bench.cases import SIZES
from esogen.bench.figures import Figure, interleaved
from esogen.bench.gauges import private_bytes, private_peak
from esogen.checkpoint.config_file import Card, read_config, write_config
from esogen.checkpoint.resolve import CONFIG, WEIGHTS
from esogen.checkpoint.weights import build, read_tensors, write_weights
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.model.packed import weight_bytes

_CPU = torch.device("cpu")


def loading(rounds: int) -> Iterator[Figure]:
    """Time and private memory of opening such a file in float32 on the CPU, folded."""
    with written(SIZES["small"]) as folder:
        ratio, spread = interleaved(lambda: _load(folder), lambda: _read(folder), rounds)
        name = "loading 170 M parameters, warm / reading the bytes and copying them once"
        yield Figure(name, ratio, spread, most=1.3)
        for dtype in ("float32", "bfloat16", "float16"):
            ratio = private_memory(folder, dtype)
            name = f"private memory of loading in {dtype} / (weights + largest tensor)"
            yield Figure(name, ratio, (ratio, ratio), most=1.15)


@contextmanager
def written(config: ModelConfig) -> Iterator[Path]:
    """A folder with random weights of this shape in float32, and their config."""
    with tempfile.TemporaryDirectory(prefix="esogen-bench-") as name:
        folder = Path(name)
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in Network(config).state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        write_config(folder / CONFIG, Card(config), "float32")
        write_weights(folder / WEIGHTS, tensors, torch.float32)
        yield folder


def private_memory(folder: Path, dtype: str) -> float:
    """Peak of private memory while a fresh process loads, over what it must hold at least.

    That is the weights in `dtype` and the largest tensor as it is in the file.
    """
    run = subprocess.run(
        [sys.executable, "-m", "esogen.bench.loading", str(folder), dtype],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(run.stdout)


def _load(folder: Path) -> float:
    began = time.perf_counter()
    _open(folder, torch.float32)
    return time.perf_counter() - began


def _open(folder: Path, dtype: torch.dtype) -> Network:
    config = read_config(folder / CONFIG).model
    tensors = read_tensors(folder / WEIGHTS, config)
    return build(config, tensors, folded=True, device=_CPU, dtype=dtype)


def _read(folder: Path) -> float:
    began = time.perf_counter()
    size = (folder / WEIGHTS).stat().st_size
    content = torch.empty(size, dtype=torch.uint8)
    with (folder / WEIGHTS).open("rb", buffering=0) as file:
        rest = content.numpy().data
        while rest:
            rest = rest[file.readinto(rest) :]
    content.clone()
    return time.perf_counter() - began


def _measure(folder: Path, dtype: torch.dtype) -> float:
    """In a process of its own: the peak of private pages."""
    before = private_bytes()
    with private_peak() as peak:
        network = _open(folder, dtype)
    largest = 4 * max(tensor.numel() for tensor in network.state_dict().values())
    return float((peak.bytes or 0) - before) / float(weight_bytes(network) + largest)


if __name__ == "__main__":
    print(_measure(Path(sys.argv[1]), getattr(torch, sys.argv[2])))
