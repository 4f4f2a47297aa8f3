"""Who may see whom: the attention patterns in which the models of this family differ.

Every mask is boolean, True where the row may see the column, and broadcasts to `[B, N, L, M]`.
Rows and columns stand in SORTED order for Eso-LM (clean tokens, then masks), in natural order for
the others. In the drawings `c` is a clean token, `m` a mask, `#` seen, `.` not seen.
"""

import torch
from torch import Tensor


def causal(length: int, device: torch.device | str = "cpu") -> Tensor:
    """Eso-LM (B), diffusion phase, and left-to-right: each row sees itself and what stands before.

    c #...
    c ##..
    m ###.
    m ####
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def prefix(clean_B: Tensor, length: int) -> Tensor:
    """Eso-LM (A): clean tokens also see each other both ways; `[B, 1, L, L]`.

        c ##..
        c ##..
        m ###.
        m ####

    `clean_B` is the number of clean tokens of each row, int64 `[B]`.
    """
    columns = torch.arange(length, device=clean_B.device)
    seen_BL = columns < clean_B[:, None]
    return (seen_BL[:, None, :] | causal(length, clean_B.device))[:, None]


def two_halves(clean_half: Tensor, block_size: int = 1) -> Tensor:
    """The pattern of `z ++ x`, a noisy text and its clean twin in one input; `[..., 2L, 2L]`.

    A noisy token sees the noisy tokens of its own block and the clean tokens of earlier blocks;
    the clean half sees itself by `clean_half` `[..., L, L]` and nothing noisy. With blocks of one
    token it is Eso-LM's sequential phase (paper, section 3.2), otherwise BD3-LM's training:

              z    x
        z   #..  ...
        z   .#.  #..
        z   ..#  ##.
        x   ...  #..
        x   ...  ##.
        x   ...  ###
    """
    length, device = clean_half.shape[-1], clean_half.device
    block = torch.arange(length, device=device) // block_size
    own = (block[:, None] == block[None, :]).expand_as(clean_half)
    earlier = (block[:, None] > block[None, :]).expand_as(clean_half)
    nothing = torch.zeros_like(clean_half)
    noisy_rows = torch.cat([own, earlier], dim=-1)
    clean_rows = torch.cat([nothing, clean_half], dim=-1)
    return torch.cat([noisy_rows, clean_rows], dim=-2)


def block_causal(length: int, block_size: int, device: torch.device | str = "cpu") -> Tensor:
    """BD3-LM, sampling: both ways inside a block, and everything before it.

    ##..
    ##..
    ####
    ####
    """
    block = torch.arange(length, device=device) // block_size
    return block[:, None] >= block[None, :]
