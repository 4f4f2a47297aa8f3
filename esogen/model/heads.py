"""What one block hands to attention: queries, keys and values, the first two still to be turned.

Turning is left to whoever attends, so that on a GPU one kernel may turn and write into a cache.

Shapes: B rows, L tokens of this call, N heads, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and signed sines, each `[B, L, 1, 1, H]`, that turn queries and keys."""

    cos: Tensor
    sin: Tensor


class Heads(NamedTuple):
    """Queries, keys and values as one product gives them, and what turns them to positions."""

    qkv_BL3NH: Tensor
    rotation: Rotation

    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned, and values as they are, each `[B, L, N, H]`."""
        q_BLNH, k_BLNH = rotate(self.qkv_BL3NH[..., :2, :, :], self.rotation).unbind(-3)
        return q_BLNH, k_BLNH, self.qkv_BL3NH[..., 2, :, :]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn `(x1, x2)` into `(x1 cos - x2 sin, x2 cos + x1 sin)`.

    Rolling by half a head swaps the two halves, and `rotation.sin` carries the signs.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * rotation.cos, swapped, rotation.sin)
