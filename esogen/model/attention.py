"""Attention over queries, keys and values: one signature, computed by torch or by xformers.

torch's own is the reference, the only one on a CPU and the one that training uses; xformers'
kernels can be chosen for sampling on a GPU. Steps that are recorded and replayed there need
lengths on the device, and so a kernel with a signature of its own: Triton's.

Shapes: B rows, G groups, L queries, M keys, P places of a cache, S of a prefix, N heads, H head
width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from esogen.model.heads import Heads

_ALIGNMENT = 8
"""Elements to whose multiples the rows of a mask must be spaced for xformers."""


class Kernel(Protocol):
    """A way of computing softmax attention; see `attention`, which every other one must equal."""

    def __call__(
        self,
        q_BLNH: Tensor,
        k_BMNH: Tensor,
        v_BMNH: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Return the output `[B, L, N, H]`."""
        ...


class Prefix(NamedTuple):
    """What rows see before their own places: the first `length_B` places of `group_B`."""

    k_GSNH: Tensor
    v_GSNH: Tensor
    group_B: Tensor
    length_B: Tensor


class Places(NamedTuple):
    """What a step finds in one layer of a cache whose lengths are on the device.

    `stands_B` tokens stand in each row. `seen_BLL`: which of the step's own tokens see which, bool
    `[B or 1, L, L]`; None where they are causal.
    """

    k_BPNH: Tensor
    v_BPNH: Tensor
    stands_B: Tensor
    seen_BLL: Tensor | None = None
    prefix: Prefix | None = None


StepKernel = Callable[[Heads, Places], Tensor]
"""Attention of one step: writes turned keys, and values, behind what stands, and returns the output
`[B, L, N, H]` of the turned queries over prefix, what stands, and what they see of their own.
`cache.step_by_torch` is the plain one, which every other must equal.
"""


class Attend(Protocol):
    """How one call of the network attends: over its own input, or over a KV cache as well."""

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Return the attention output `[B, L, N, H]` of block `layer`."""
        ...


def attention(
    q_BLNH: Tensor,
    k_BMNH: Tensor,
    v_BMNH: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Softmax attention, output `[B, L, N, H]`.

    `mask` broadcasts to `[B, N, L, M]`: boolean (True = may be seen) or added to the scores.
    `causal` lets query j see the keys 0..j and needs L = M and no mask.
    """
    out_BNLH = scaled_dot_product_attention(
        q_BLNH.transpose(1, 2),
        k_BMNH.transpose(1, 2),
        v_BMNH.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
    )
    return out_BNLH.transpose(1, 2)


def xformers_attention() -> Kernel:
    """xformers' memory-efficient attention; raises `ImportError` where it cannot be loaded."""
    from xformers import ops

    def kernel(
        q_BLNH: Tensor,
        k_BMNH: Tensor,
        v_BMNH: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        bias = (
            ops.LowerTriangularMask() if causal else None if mask is None else _bias(mask, q_BLNH)
        )
        out: Tensor = ops.memory_efficient_attention(q_BLNH, k_BMNH, v_BMNH, attn_bias=bias)
        return out

    return kernel


def triton_attention() -> StepKernel:
    """Triton's attention of a step; raises `ImportError` where there is no Triton."""
    from esogen.model.step_kernel import step_attention

    return step_attention


@dataclass(frozen=True, slots=True)
class Kernels:
    """What attends: `whole` in calls whose lengths the host knows, `step` in recorded steps.

    Without `step` nothing is recorded. `word`: what somebody asked for by that word, if it is
    not torch's own; `note`: why it is not the usual, where it is not.
    """

    whole: Kernel = attention
    step: StepKernel | None = None
    word: str | None = None
    note: str | None = None


SDPA = Kernels()
"""torch's own, everywhere."""


def _bias(mask: Tensor, q_BLNH: Tensor) -> Tensor:
    """An added mask `[B or 1, 1, L, M]` as xformers wants it: for every head, rows aligned."""
    rows, length, heads, _ = q_BLNH.shape
    places = mask.shape[-1]
    aligned = pad(mask, (0, -places % _ALIGNMENT))[..., :places]
    return aligned.expand(rows, heads, length, places)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Attention of one call over its own input only: what training and the uncached oracle use."""

    mask: Tensor | None = None
    causal: bool = False

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Attend under this mask; every layer sees the same one."""
        return attention(*heads.turned(), self.mask, causal=self.causal)

    def after_bos(self) -> "Dense":
        """This mask behind one token more, which all rows see and which sees itself alone.

        #...
        #
        #  as before
        #
        """
        if self.mask is None:
            return self
        mask = pad(self.mask, (1, 0, 1, 0), value=True)
        mask[..., 0, 1:] = False
        return Dense(mask)
