"""Attention of masks and text together by one kernel that passes over what no block of it sees.

A file of its own, because importing the kernel takes a while and only training on a GPU does.

Shapes: B rows, L tokens of the input, N heads, H head width.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from esogen.model.heads import Heads


@dataclass(frozen=True, slots=True, eq=False)
class BlockSparse:
    """The same attention as `TwoHalves`, as one kernel that passes over what no block sees.

    Fast where it is compiled for a GPU; elsewhere it computes everything and has no gradient.
    """

    mask: BlockMask

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Attend; every layer sees alike."""
        # Autocast does not reach this kernel, and rotated queries and keys are wider than values.
        # Copied: compiled code was seen to mistake two views of one tensor (CPU, torch 2.13).
        dtype = heads.qkv_BL3NH.dtype
        q, k, v = (x.to(dtype).transpose(1, 2).contiguous() for x in heads.turned())
        out_BNLH: Tensor = flex_attention(q, k, v, block_mask=self.mask)
        return out_BNLH.transpose(1, 2)


@lru_cache(maxsize=8)
def block_sparse(masks: int, given: int, text: int, device: torch.device) -> BlockSparse:
    """`TwoHalves(masks, given)` before `text` tokens, as one kernel."""

    def seen(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_mask = (key == query) | ((key >= masks) & (key < query + masks + given))
        of_text = (key >= masks) & (key <= query)
        return torch.where(query < masks, of_mask, of_text)

    places = masks + text
    return BlockSparse(create_block_mask(seen, None, None, places, places, device=str(device)))
