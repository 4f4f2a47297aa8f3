"""Matrices in half precision, multiplied in float32: what a CPU wants where rows are few.

A step multiplies a few rows by every matrix, so reading the matrices is most of what it costs.
FBGEMM, which is part of torch on x86-64, lays them out for that and reads half as many bytes.
"""

from collections.abc import Callable, MutableMapping
from functools import partial

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass
from torch.nn import functional as F

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

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__()
        least, most = torch.aminmax(weight_OI)
        largest = max(-least.item(), most.item())
        if largest > LARGEST:
            raise OverflowError(f"a weight of {largest:g} is above {LARGEST:g}, float16's largest")
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight_OI.contiguous(), bias_O)
        # The operation behind the name: the name would look first whether an argument is made up.
        self._product = torch.ops.quantized.linear_dynamic_fp16.op
        self.nbytes = 2 * weight_OI.numel() + (0 if bias_O is None else bias_O.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        # torch would ask the packed matrix whether it overrides functions, and the answer is a C++
        # exception, which takes as long to throw as a few rows take to multiply.
        with DisableTorchFunctionSubclass():
            return self._product(x, self._packed)  # type: ignore[no-any-return]


def pack(network: Network, state: MutableMapping[str, Tensor]) -> None:
    """Move the matrices of `state` that are complete with their biases into packed layers.

    Raises as `PackedLinear` does.
    """
    linears = [(n, each) for n, each in network.named_modules() if isinstance(each, nn.Linear)]
    for name, linear in linears:
        wanted = [f"{name}.{parameter}" for parameter, _ in linear.named_parameters()]
        if all(each in state for each in wanted):
            network.set_submodule(name, PackedLinear(*map(state.pop, wanted)))


def product(width: int, dtype: torch.dtype, rows: int) -> Callable[[], Tensor]:
    """A product of so many rows with a square matrix, as a network in `dtype` has it on a CPU."""
    packed = dtype == torch.float16 and packs()
    plain = torch.float32 if packed else dtype
    weight_OI, x = (torch.ones(size, width, dtype=plain) for size in (width, rows))
    return partial(PackedLinear(weight_OI), x) if packed else partial(F.linear, x, weight_OI)


def weight_bytes(network: Network) -> int:
    """Bytes of all weights, packed or not."""
    held: list[PackedLinear | Tensor] = [*network.state_dict().values()]
    held += (each for each in network.modules() if isinstance(each, PackedLinear))
    return sum(each.nbytes for each in held)
