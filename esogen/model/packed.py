"""Matrices in half precision, multiplied in float32: what a CPU wants where rows are few.

A step multiplies a few rows by every matrix, so reading the matrices is most of what it costs.
FBGEMM, which is part of torch on x86-64, lays them out for that and reads half as many bytes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from esogen.model.network import Network

LARGEST = torch.finfo(torch.float16).max
"""Above it a number has no half-precision neighbour."""


def packs() -> bool:
    """Whether this torch has the products, and this processor what they need."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


class PackedLinear(nn.Module):
    """What `nn.Linear` does, its matrix rounded to float16; in and out are float32.

    Raises `OverflowError` for a matrix with numbers too large for float16.
    """

    nbytes: int

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.float()
        largest = weight_OI.abs().max().item()
        if largest > LARGEST:
            raise OverflowError(f"a weight of {largest:g} is above {LARGEST:g}, float16's largest")
        bias_O: Tensor | None = linear.bias
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight_OI.contiguous(), bias_O)
        self.nbytes = 2 * weight_OI.numel() + (0 if bias_O is None else bias_O.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)  # type: ignore[no-any-return]


def pack(network: Network) -> None:
    """Pack the matrices that rows are multiplied by, one by one; raises as the class does."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            network.set_submodule(name, PackedLinear(module))


def product(width: int, dtype: torch.dtype, rows: int) -> Callable[[], Tensor]:
    """A product of so many rows with a square matrix, as a network in `dtype` has it on a CPU."""
    packed = dtype == torch.float16 and packs()
    plain = torch.float32 if packed else dtype
    linear = nn.Linear(width, width, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.full((width, width), 0.5, dtype=plain), requires_grad=False)
    x = torch.ones(rows, width, dtype=plain)
    return partial((PackedLinear(linear) if packed else linear).forward, x)


def weight_bytes(network: Network) -> int:
    """Bytes of all weights, packed or not."""
    held: list[PackedLinear | Tensor] = [*network.state_dict().values()]
    held += (each for each in network.modules() if isinstance(each, PackedLinear))
    return sum(each.nbytes for each in held)
