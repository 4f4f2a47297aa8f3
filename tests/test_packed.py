"""Matrices in half precision on a CPU: what they give, when they are taken, when refused."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Linear
from torch.nn import functional as F

from esogen.checkpoint import cpu_precision
from esogen.checkpoint.cpu_precision import quickest
from esogen.checkpoint.folder import open_checkpoint
from esogen.checkpoint.placement import choose_dtype
from esogen.checkpoint.weights import build
from esogen.errors import CheckpointError
from esogen.model.attention import Dense
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.model.packed import PackedLinear, packs, weight_bytes

CPU = torch.device("cpu")
packing = pytest.mark.skipif(not packs(), reason="this torch has no FBGEMM, or not for this CPU")


@pytest.fixture
def both(tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]) -> tuple[Network, Network]:
    """One network, its matrices packed in half precision and as they are."""
    packed, plain = (
        build(tiny_config, dict(tiny_tensors), folded=True, device=CPU, dtype=dtype)
        for dtype in (torch.float16, torch.float32)
    )
    return packed, plain


@packing
@pytest.mark.parametrize("rows", [1, 2, 5, 7, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_product_is_that_of_the_rounded_matrix_in_float32(
    rows: int, *, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = Linear(96, 257, bias=bias).requires_grad_(requires_grad=False)
    x = torch.randn(2, rows, 96)
    wanted = F.linear(x, linear.weight.half().float(), linear.bias)
    torch.testing.assert_close(
        PackedLinear(linear.weight, linear.bias)(x), wanted, atol=1e-5, rtol=0
    )


@packing
def test_a_network_in_float16_is_that_of_the_rounded_matrices_in_float32(
    tiny_config: ModelConfig, both: tuple[Network, Network]
) -> None:
    packed, plain = both
    ids = torch.arange(12).view(2, 6) % tiny_config.vocab_size
    positions, causal = torch.arange(6).expand(2, -1), Dense(causal=True)
    finer = plain(ids, positions, causal).log_softmax(-1)[..., : tiny_config.mask_id]
    for module in plain.modules():
        if isinstance(module, Linear):
            module.weight.copy_(module.weight.half())
    wanted = plain(ids, positions, causal).log_softmax(-1)[..., : tiny_config.mask_id]
    found = packed(ids, positions, causal).log_softmax(-1)[..., : tiny_config.mask_id]
    assert {tensor.dtype for tensor in packed.state_dict().values()} == {torch.float32}
    assert not packed.training
    assert (found - wanted).abs().max() < 1e-5 < (found - finer).abs().max()


@packing
def test_a_packed_network_has_half_the_bytes_in_its_matrices(both: tuple[Network, Network]) -> None:
    packed, plain = both
    matrices = [m.weight.numel() for m in plain.modules() if isinstance(m, Linear)]
    assert weight_bytes(plain) - weight_bytes(packed) == 2 * sum(matrices)


@packing
def test_a_weight_that_float16_cannot_hold_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["backbone.blocks.0.mlp.2.weight"][0, 0] = 3e7
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="above 65504.*use --dtype fp32"):
        open_checkpoint(str(folder), device=CPU, dtype=torch.float16)
    open_checkpoint(str(folder), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("single", "half", "brain", "wanted"),
    [
        (1.0, 0.5, 0.5, torch.float16),
        (1.0, 0.5, 0.3, torch.bfloat16),
        (1.0, 2.0, 0.7, torch.bfloat16),
        (1.0, 0.9, 0.9, torch.float32),
        (1.0, math.inf, 3.0, torch.float32),
    ],
)
def test_a_coarser_precision_is_taken_where_it_is_clearly_quicker(
    single: float, half: float, brain: float, wanted: torch.dtype
) -> None:
    seconds = {torch.float32: single, torch.float16: half, torch.bfloat16: brain}
    assert quickest(seconds) == wanted


class Machine:
    """A CPU that takes so long in each precision, and counts how often it is asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = {torch.float32: 1.0, torch.bfloat16: 9.0}, 0
        self.seconds[torch.float16] = seconds

    def __call__(self) -> dict[torch.dtype, float]:
        self.asked += 1
        return self.seconds


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Machine], str]]:
    """What a process that is new finds `auto` to be on such a machine."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def run(machine: Machine) -> str:
        monkeypatch.setattr(cpu_precision, "measured", machine)
        cpu_precision.quickest_on_cpu.cache_clear()
        return str(choose_dtype("auto", CPU))[6:]

    yield run
    cpu_precision.quickest_on_cpu.cache_clear()


def test_what_was_measured_once_holds_for_every_run_on_the_machine(
    found: Callable[[Machine], str],
) -> None:
    fast, slow = Machine(0.5), Machine(2.0)
    assert [found(each) for each in (fast, slow, slow)] == ["float16"] * 3
    assert (fast.asked, slow.asked) == (1, 0)


@pytest.mark.parametrize("kept", ["", "[]", '{"machine": "another", "dtype": "float16"}'])
def test_what_another_machine_or_nobody_wrote_is_measured_anew(
    found: Callable[[Machine], str], tmp_path: Path, kept: str
) -> None:
    assert found(Machine(0.5)) == "float16"
    (file,) = (tmp_path / "esogen").iterdir()
    file.write_text(kept)
    assert found(Machine(2.0)) == "float32"
    assert json.loads(file.read_text())["dtype"] == "float32"


def test_where_nothing_can_be_kept_it_is_measured_each_time(
    found: Callable[[Machine], str], tmp_path: Path
) -> None:
    (tmp_path / "esogen").write_text("in the way")
    assert [found(Machine(each)) for each in (0.5, 2.0)] == ["float16", "float32"]


def test_a_product_is_timed_in_every_precision() -> None:
    taken = cpu_precision.measured()
    assert set(taken) == {torch.float32, torch.float16, torch.bfloat16}
    assert all(0 < each < 1 for each in taken.values())
