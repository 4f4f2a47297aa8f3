"""Attention of masks and text together, without what `patterns.two_halves` leaves unseen.

The text attends to itself causally, by the kernel's own causal path. Each mask attends to the text
before it and to itself: a tile of masks at a time reads only the keys that some mask of it sees,
so that half of the square and the masks' other keys are never computed, and no `[2L, 2L]` mask is
held. Drawn for tiles of two masks, `.` is computed and masked, blank is not computed:

        z     x
    z   #.    ..
    z   .#    #.
    z     #.  ##..
    z     .#  ###.

Shapes: B rows, L masks, G + L tokens of text, N heads, H head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from esogen.model.attention import attention
from esogen.model.heads import Heads

TILE = 128
"""Masks that share one call of the kernel: fewer compute less, more launch less."""


@dataclass(frozen=True, slots=True, eq=False)
class TwoHalves:
    """Attention of one input `z ++ x`: `masks` masks, then the text, in one sorted order.

    The text begins with `given` tokens that have no mask: mask j stands where token `given + j`
    does, sees itself and the `given + j` tokens before it. What stands last no mask sees, so it may
    be left out.
    """

    masks: int
    given: int = 0

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Attend; every layer sees alike."""
        sizes = [self.masks, heads.qkv_BL3NH.shape[1] - self.masks]
        halves = [torch.split(x_BLNH, sizes, 1) for x_BLNH in heads.turned()]
        masks, text = zip(*halves, strict=True)
        tiles = [
            self._tile(masks, text, first, min(first + TILE, self.masks))
            for first in range(0, self.masks, TILE)
        ]
        return torch.cat([*tiles, attention(*text, causal=True)], 1)

    def _tile(
        self, masks: tuple[Tensor, ...], text: tuple[Tensor, ...], first: int, end: int
    ) -> Tensor:
        """Output of the masks from `first` to before `end`."""
        earlier = self.given + end - 1
        q, k, v = (x[:, first:end] for x in masks)
        k = torch.cat([text[1][:, :earlier], k], 1)
        v = torch.cat([text[2][:, :earlier], v], 1)
        return attention(q, k, v, self._seen(first, end, q.device))

    def _seen(self, first: int, end: int, device: torch.device) -> Tensor:
        """Which of the text before `end`, and of the tile's own masks, each mask of it sees."""
        width = end - first
        before = torch.ones(width, self.given + end - 1, dtype=torch.bool, device=device)
        own = torch.eye(width, dtype=torch.bool, device=device)
        return torch.cat([before.tril(self.given + first - 1), own], 1)
