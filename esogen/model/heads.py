"""What one block hands to attention: queries, keys and values, the first two still to be turned.

Turning is left to whoever attends, so that on a GPU one kernel may turn and write into a cache.

Shapes: B rows, L tokens of this call, N heads, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and signed sines, each `[B, L, 3, 1, H]`, that turn queries, keys and values.

    Values by an angle of 0: on a CPU one product over all three costs less than leaving them out.
    """

    cos: Tensor
    sin: Tensor


class Heads(NamedTuple):
    """Queries, keys and values as one product gives them, and what turns them to positions."""

    qkv_BL3NH: Tensor
    rotation: Rotation

    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned, and values as they are, each `[B, L, N, H]`."""
        q_BLNH, k_BLNH, v_BLNH = rotate(self.qkv_BL3NH, self.rotation).unbind(2)
        return q_BLNH, k_BLNH, v_BLNH

    def for_cache(self) -> tuple[Tensor, Tensor]:
        """The same: queries `[B, L, N, H]`, and keys with values `[B, L, 2, N, H]`."""
        turned_BL3NH = rotate(self.qkv_BL3NH, self.rotation)
        return turned_BL3NH.select(2, 0), turned_BL3NH.narrow(2, 1, 2)


def angles_of(angle: Tensor) -> Tensor:
    """From one angle for queries and keys, `[..., H]`, those of all three, `[..., 3, 1, H]`."""
    return torch.stack([angle, angle, torch.zeros_like(angle)], -2)[..., None, :]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn `(x1, x2)` into `(x1 cos - x2 sin, x2 cos + x1 sin)`.

    Rolling by half a head swaps the two halves, and `rotation.sin` carries the signs.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * rotation.cos, swapped, rotation.sin)
