"""Attention over queries, keys and values: one function for every network call.

Shapes: B rows, L queries, M keys, N heads, H head width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


class Attend(Protocol):
    """How one call of the network attends: over its own input, or over a KV cache as well."""

    def __call__(self, layer: int, q_BLNH: Tensor, k_BLNH: Tensor, v_BLNH: Tensor) -> Tensor:
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


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Attention of one call over its own input only: what training and the uncached oracle use."""

    mask: Tensor | None = None
    causal: bool = False

    def __call__(self, layer: int, q_BLNH: Tensor, k_BLNH: Tensor, v_BLNH: Tensor) -> Tensor:
        """Attend under this mask; every layer sees the same one."""
        return attention(q_BLNH, k_BLNH, v_BLNH, self.mask, causal=self.causal)

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
