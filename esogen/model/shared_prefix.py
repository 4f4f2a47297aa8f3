"""Attention over a prefix that rows share and what each of them has of its own.

The keys and values of the prefix are held once for each group of rows, read once for all of them,
and never copied: `n` rows on one prefix cost its memory and its computation once.

Shapes: B rows, G groups, L queries of this call, S places of the prefix, M own places, N heads,
H head width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esogen.model.attention import Prefix, StepKernel
from esogen.model.cache import KVCache, StepAttend, hidden_places
from esogen.model.heads import Heads
from esogen.model.network import Network, with_bos


class SharedPrefix:
    """Prefixes in `shared`, one for each group, and a cache `own` for what rows add.

    `group_B` is the group of each row. Of a row's own there are `places` at most, of a prefix
    `prefix`; before `begin` all prefixes are empty.
    """

    def __init__(
        self,
        network: Network,
        groups: int,
        group_B: NDArray[np.int64],
        *,
        prefix: int,
        places: int,
    ) -> None:
        like = network.vocab_embed.embedding
        self.shared, self.own = (
            KVCache(network.config, rows, max(each, 1), device=like.device, dtype=like.dtype)
            for rows, each in ((groups, prefix), (len(group_B), places))
        )
        self._network = network
        self._assign(group_B)

    @torch.inference_mode()
    def begin(
        self,
        groups_G: NDArray[np.int64],
        ids_GW: Tensor,
        positions_GW: Tensor,
        count_G: NDArray[np.int64],
    ) -> None:
        """Compute new prefixes of these groups: the first `count_G` of the tokens given.

        The model's bos token stands before them.
        """
        config, width = self._network.config, ids_GW.shape[1]
        ids_GW, positions_GW = with_bos(config, ids_GW, positions_GW)
        fed, (device, dtype) = ids_GW.shape[1], (self.shared.device, self.shared.dtype)
        prefixes = KVCache(config, len(groups_G), width, device=device, dtype=dtype)
        if fed:
            self._network.hidden(ids_GW, positions_GW, prefixes.attend(fed))
        prefixes.commit(count_G + fed - width)
        self.shared.put(groups_G, prefixes)
        self._tell()

    def enter(self, rows: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
        """These rows begin anew, behind the prefixes of these groups."""
        self.own.clear(rows)
        self.group_B[rows] = groups
        self._tell()

    def attend(self, width: int, seen_BLL: Tensor | None = None) -> "SharedAttend":
        """The attention of one call, as `KVCache.attend` has it."""
        return SharedAttend(self, width, seen_BLL)

    def attend_at(
        self, stands_B: Tensor, kernel: StepKernel, seen_BLL: Tensor | None = None
    ) -> StepAttend:
        """The attention of one recorded call, as `KVCache.attend_at` has it."""
        return StepAttend(self.own, stands_B, kernel, seen_BLL, self._prefix)

    def _prefix(self, layer: int) -> Prefix:
        return Prefix(*self.shared.read(layer, self.shared.capacity).unbind(2), *self._there)

    def _assign(self, group_B: NDArray[np.int64]) -> None:
        self.group_B = group_B
        there = torch.zeros(2, len(group_B), dtype=torch.int64, device=self.own.device)
        self._there = there.unbind()
        self._tell()

    def _tell(self) -> None:
        """The device's group of each row and length of its prefix, where recorded calls read."""
        for there_B, here_B in zip(
            self._there, (self.group_B, self.shared.lengths_B[self.group_B]), strict=True
        ):
            there_B.copy_(torch.from_numpy(here_B))

    def commit(self, count_B: int | NDArray[np.int64]) -> None:
        """Make the first `count_B` tokens of the last call permanent."""
        self.own.commit(count_B)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self.own.keep(rows)
        self._assign(self.group_B[rows])

    @property
    def lengths_B(self) -> NDArray[np.int64]:
        """Committed tokens of each row's own."""
        return self.own.lengths_B

    @property
    def level(self) -> int | None:
        """The same as one number, if all rows have as many."""
        return self.own.level

    @property
    def capacity(self) -> int:
        """Places of a row's own."""
        return self.own.capacity

    @property
    def device(self) -> torch.device:
        """Where keys and values are."""
        return self.own.device


class SharedAttend:
    """One call. Query j of a row with n tokens of its own sees its prefix and places 0..n+j.

    `seen_BLL` as in `KVCache.attend`.
    """

    def __init__(self, cache: SharedPrefix, width: int, seen_BLL: Tensor | None = None) -> None:
        own, shared, device = cache.own, cache.shared, cache.own.device
        self._own, self._shared = own, shared
        self._places = int(own.lengths_B.max()) + width
        self._prefix = int(shared.lengths_B[cache.group_B].max())
        if self._places > own.capacity:
            raise ValueError(f"{self._places} tokens do not fit a cache of {own.capacity}")
        rows = torch.arange(len(own.lengths_B), device=device)[:, None]
        length_B1 = torch.from_numpy(own.lengths_B)[:, None].to(device)
        place_BL = length_B1 + torch.arange(width, device=device)
        self._slots = (place_BL + rows * own.capacity).flatten()
        prefix_B1 = torch.from_numpy(shared.lengths_B[cache.group_B])[:, None].to(device)
        hidden_BS = torch.arange(self._prefix, device=device) >= prefix_B1
        hidden_BLM = hidden_places(place_BL[..., None], self._places, seen_BLL)
        hidden_BLS = hidden_BS[:, None].expand(-1, width, -1)
        self._hidden = torch.cat([hidden_BLS, hidden_BLM], -1)[:, None]
        self._members = {
            group: torch.from_numpy(np.flatnonzero(cache.group_B == group)).to(device)
            for group in np.unique(cache.group_B).tolist()
        }

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Write this layer's keys and values behind what stands, then attend over all of it."""
        q_BLNH, kv_BL2NH = heads.for_cache()
        self._own.write(layer, self._slots, kv_BL2NH)
        k_BNMH, v_BNMH = self._own.read(layer, self._places).transpose(1, 3).unbind(2)
        k_GNSH, v_GNSH = self._shared.read(layer, self._prefix).transpose(1, 3).unbind(2)
        q_BNLH = q_BLNH.transpose(1, 2) * q_BLNH.shape[-1] ** -0.5
        scores = torch.cat([self._by_group(q_BNLH, k_GNSH.mT), torch.matmul(q_BNLH, k_BNMH.mT)], -1)
        weights = scores.float().masked_fill_(self._hidden, -torch.inf).softmax(-1)
        weights = weights.to(q_BLNH.dtype)
        prefix, own = weights[..., : self._prefix], weights[..., self._prefix :]
        return (self._by_group(prefix, v_GNSH) + torch.matmul(own, v_BNMH)).transpose(1, 2)

    def _by_group(self, x_BNLX: Tensor, y_GNXY: Tensor) -> Tensor:
        """The product of every row with its group's matrix, each matrix read once."""
        if len(self._members) == 1:
            return _folded(x_BNLX, y_GNXY[next(iter(self._members))])
        out = x_BNLX.new_empty(*x_BNLX.shape[:3], y_GNXY.shape[-1])
        for group, rows in self._members.items():
            out[rows] = _folded(x_BNLX[rows], y_GNXY[group])
        return out


def _folded(x_BNLX: Tensor, y_NXY: Tensor) -> Tensor:
    """`x @ y` with all rows of the batch as rows of one matrix."""
    rows, _, queries, _ = x_BNLX.shape
    product = torch.matmul(x_BNLX.transpose(0, 1).flatten(1, 2), y_NXY)
    return product.view(len(y_NXY), rows, queries, -1).transpose(0, 1)
