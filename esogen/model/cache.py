"""The KV cache: keys and values of clean tokens, append-only in the order they were decided.

Two verbs. `write` lays the rows of one call behind what stands (provisional); `commit` makes the
first of them permanent, and the next call overwrites the rest. Because nothing that stands is ever
changed, cutting the tail IS the exact earlier state.

Shapes: B rows, L queries of this call, M keys, P places, N heads, H head width.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from esogen.model.attention import Dense, Kernel, Places, Prefix, StepKernel, attention
from esogen.model.config import ModelConfig
from esogen.model.heads import Heads

NARROW_CALL = 64
"""Tokens of a call up to which its mask is cut out of one that is made once."""


class KVCache:
    """Room for `capacity` tokens in each of `rows` rows; every row has a length of its own.

    A model's bos token, which is no part of the text, has a place besides.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernel: Kernel = attention,
    ) -> None:
        places = capacity + (config.bos_id is not None)
        shape = (config.n_blocks, rows, places, 2, config.n_heads, config.head_size)
        # Zeros: where rows are unequal, a short one reads places that nothing was written to, and
        # no mask makes 0 times NaN a number.
        self._hold(torch.zeros(shape, device=device, dtype=dtype))
        self.kernel = kernel
        self._stands: int | NDArray[np.int64] = 0

    @property
    def lengths_B(self) -> NDArray[np.int64]:
        """Committed tokens of each row; known on the host, so no call waits for a GPU."""
        stands = self._stands
        return np.full(self._kv.shape[1], stands) if isinstance(stands, int) else stands

    @property
    def level(self) -> int | None:
        """The same as one number if all rows have as many, which is the rule."""
        return self._stands if isinstance(self._stands, int) else None

    def attend(self, width: int, seen_BLL: Tensor | None = None) -> "CachedAttend":
        """The attention of one call of `width` new tokens a row, behind what stands.

        Among themselves they are causal, or see what `seen_BLL` says, bool.
        """
        return CachedAttend(self, width, seen_BLL)

    def attend_at(
        self, stands_B: Tensor, kernel: StepKernel, seen_BLL: Tensor | None = None
    ) -> "StepAttend":
        """The attention of one call that can be recorded, behind `stands_B` tokens."""
        return StepAttend(self, stands_B, kernel, seen_BLL)

    def causal_mask(self, stands: int, width: int) -> Tensor:
        """The mask `[1, 1, L, M]`, added to the scores, of a narrow call behind so many tokens of
        every row: causal.
        """
        return self._causal_masks[:, :, :width, self.capacity - stands : self.capacity + width]

    @cached_property
    def _causal_masks(self) -> Tensor:
        """Zeros up to column `capacity`, and of the square behind what is above its diagonal.

            stands  new
        ..########  #---
        ..########  ##--
        ..########  ###-
        """
        shape, like = (NARROW_CALL, self.capacity + NARROW_CALL), self._kv
        whole = torch.full(shape, -torch.inf, dtype=like.dtype, device=like.device)
        return whole.triu(self.capacity + 1)[None, None]

    def write(self, layer: int, places: slice | Tensor, kv_BL2NH: Tensor) -> None:
        """Lay keys and values into `places`: the same of every row, or flat indices `[B * L]`."""
        kv_BP2NH = self._layers[layer]
        if isinstance(places, slice):
            kv_BP2NH[:, places] = kv_BL2NH
        else:
            kv_BP2NH.flatten(0, 1).index_copy_(0, places, kv_BL2NH.flatten(0, 1))

    def read(self, layer: int, places: int) -> Tensor:
        """Keys and values `[B, M, 2, N, H]` of the first `places` places, as a view."""
        return self._layers[layer][:, :places]

    def put(self, rows: NDArray[np.int64], other: "KVCache") -> None:
        """Have all that stands in another cache stand in these rows, in place of what did."""
        there = torch.from_numpy(rows).to(self._kv.device)
        for layer in range(len(self._kv)):
            self.read(layer, other.capacity)[there] = other.read(layer, other.capacity)
        self._set(rows, other.lengths_B)

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Let nothing stand in these rows."""
        self._set(rows, 0)

    def commit(self, count_B: int | NDArray[np.int64]) -> None:
        """Make the first `count_B` tokens of the last call permanent."""
        self._stand(self._stands + count_B)

    def cut(self, length_B: int | NDArray[np.int64]) -> None:
        """Return to the state in which only the first `length_B` tokens stood."""
        self._stand(np.minimum(self.lengths_B, length_B))

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        lengths_B = self.lengths_B[rows]
        self._hold(self._kv[:, torch.from_numpy(rows).to(self._kv.device)])
        self._stand(lengths_B)

    def _set(self, rows: NDArray[np.int64], lengths_B: int | NDArray[np.int64]) -> None:
        all_B = self.lengths_B.copy()
        all_B[rows] = lengths_B
        self._stand(all_B)

    def _stand(self, lengths_B: int | NDArray[np.int64]) -> None:
        """So many tokens stand; arrays of one number become it."""
        if not isinstance(lengths_B, int) and len(lengths_B) and np.ptp(lengths_B) == 0:
            lengths_B = int(lengths_B[0])
        self._stands = lengths_B

    def _hold(self, kv: Tensor) -> None:
        """Keys and values of all layers are here from now on; views of each are made only once."""
        self._kv, self._layers = kv, kv.unbind()

    @property
    def capacity(self) -> int:
        """Places in a row."""
        return self._kv.shape[2]

    @property
    def device(self) -> torch.device:
        """Where keys and values are."""
        return self._kv.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of keys and values."""
        return self._kv.dtype

    @property
    def bytes(self) -> int:
        """Memory taken, in bytes."""
        return self._kv.nbytes


class WholeText:
    """What stands for a cache where nothing is kept: a call is a whole text of `length` tokens.

    They all see each other, or what they are told.
    """

    def __init__(
        self, config: ModelConfig, rows: int, length: int, *, device: torch.device | str = "cpu"
    ) -> None:
        self.lengths_B: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.level: int | None = 0
        self.capacity, self.device = length + (config.bos_id is not None), torch.device(device)

    def attend(self, width: int, seen_BLL: Tensor | None = None) -> Dense:
        """The attention of one call."""
        return Dense(None if seen_BLL is None else seen_BLL[:, None])

    def attend_at(
        self, stands_B: Tensor, kernel: StepKernel, seen_BLL: Tensor | None = None
    ) -> Dense:
        """The same: torch's own attention of a whole text needs no length."""
        return self.attend(self.capacity, seen_BLL)

    def commit(self, count_B: int | NDArray[np.int64]) -> None:
        """Nothing is kept between calls."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop every row but these."""
        self.lengths_B = self.lengths_B[rows]


class CachedAttend:
    """One call through a cache. Query j of a row with n tokens standing sees places 0..n+j:

    stands  new
    ######  #..
    ######  ##.
    ######  ###

    unless the call says otherwise of the new ones.
    Where all rows stand at one length, which is the rule, they share one mask and nothing is
    copied from the host, so that a call never waits for a GPU.
    """

    def __init__(self, cache: KVCache, width: int, seen_BLL: Tensor | None = None) -> None:
        level = cache.level
        stands = int(cache.lengths_B.max(initial=0)) if level is None else level
        self._cache, self._seen = cache, stands + width
        if self._seen > cache.capacity:
            raise ValueError(f"{self._seen} tokens do not fit a cache of {cache.capacity}")
        self._new = _slots(cache, width) if level is None else slice(level, self._seen)
        self._causal = level == 0 and seen_BLL is None
        bare = self._causal or (level is not None and width == 1)
        self._mask = None if bare else self._added(width, seen_BLL, level)

    def _added(self, width: int, seen_BLL: Tensor | None, level: int | None) -> Tensor:
        """The mask `[B or 1, 1, L, M]` as numbers added to the scores, made once for all layers."""
        device = self._cache.device
        if level is not None and seen_BLL is None and width <= NARROW_CALL:
            return self._cache.causal_mask(level, width)
        if level is not None and seen_BLL is not None:
            hidden_BLM = pad(~seen_BLL, (level, 0))
        else:
            place_BL1 = _places(self._cache, width)[..., None]
            hidden_BLM = hidden_places(place_BL1, self._seen, seen_BLL)
        mask = torch.zeros(hidden_BLM.shape, dtype=self._cache.dtype, device=device)
        return mask.masked_fill_(hidden_BLM, -torch.inf)[:, None]

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Write this layer's keys and values behind what stands, then attend over all of it."""
        q_BLNH, kv_BL2NH = heads.for_cache()
        self._cache.write(layer, self._new, kv_BL2NH)
        k_BMNH, v_BMNH = self._cache.read(layer, self._seen).unbind(2)
        kernel = self._cache.kernel
        return kernel(q_BLNH, k_BMNH, v_BMNH, self._mask, causal=self._causal)


class StepAttend:
    """One call through a cache as `CachedAttend`, with `stands_B` tokens standing in each row.

    The numbers are on the device and are read when the kernels run, so that the call can be
    recorded once and replayed at other lengths. Whoever calls sees to it that there is room.
    `prefix` gives what rows share, of a layer.
    """

    def __init__(
        self,
        cache: KVCache,
        stands_B: Tensor,
        kernel: StepKernel,
        seen_BLL: Tensor | None = None,
        prefix: Callable[[int], Prefix] | None = None,
    ) -> None:
        self._cache, self._stands_B, self._kernel = cache, stands_B, kernel
        self._seen_BLL, self._prefix = seen_BLL, prefix

    def __call__(self, layer: int, heads: Heads) -> Tensor:
        """Write this layer's keys and values behind what stands, then attend over all of it."""
        k_BPNH, v_BPNH = self._cache.read(layer, self._cache.capacity).unbind(2)
        prefix = self._prefix and self._prefix(layer)
        places = Places(k_BPNH, v_BPNH, self._stands_B, self._seen_BLL, prefix)
        return self._kernel(heads, places)


def step_by_torch(heads: Heads, places: Places) -> Tensor:
    """The step that every `StepKernel` must equal, by torch's own operations."""
    q_BLNH, k_BLNH, v_BLNH = heads.turned()
    k_BPNH, v_BPNH, stands_B, seen_BLL, prefix = places
    (rows, width), device = q_BLNH.shape[:2], stands_B.device
    place_BL = stands_B[:, None] + torch.arange(width, device=device)
    at = torch.arange(rows, device=device)[:, None], place_BL
    k_BPNH[at], v_BPNH[at] = k_BLNH, v_BLNH
    seen_BLL = None if seen_BLL is None else seen_BLL.expand(rows, -1, -1)
    hidden_BLM = hidden_places(place_BL[..., None], k_BPNH.shape[1], seen_BLL)
    if prefix:
        place_S = torch.arange(prefix.k_GSNH.shape[1], device=device)
        hidden_BLS = (place_S >= prefix.length_B[:, None])[:, None].expand(-1, width, -1)
        hidden_BLM = torch.cat([hidden_BLS, hidden_BLM], -1)
        k_BPNH = torch.cat([prefix.k_GSNH[prefix.group_B], k_BPNH], 1)
        v_BPNH = torch.cat([prefix.v_GSNH[prefix.group_B], v_BPNH], 1)
    return attention(q_BLNH, k_BPNH, v_BPNH, ~hidden_BLM[:, None])


def hidden_places(place_BL1: Tensor, places: int, seen_BLL: Tensor | None) -> Tensor:
    """Which of so many places new tokens at `place_BL1` do not see, bool `[B or 1, L, M]`."""
    place_M = torch.arange(places, device=place_BL1.device)
    if seen_BLL is None:
        return place_M > place_BL1
    rows, width, _ = seen_BLL.shape
    column_BM = place_M - place_BL1[:, 0]
    index_BLM = column_BM.clamp(0, width - 1)[:, None].expand(rows, width, places)
    stands_BM, behind_BM = column_BM < 0, column_BM >= width
    return ~(seen_BLL.gather(-1, index_BLM) | stands_BM[:, None]) | behind_BM[:, None]


def _slots(cache: KVCache, width: int) -> Tensor:
    """Where new tokens go, flat `[B * L]` over rows and places."""
    first_B1 = torch.arange(len(cache.lengths_B), device=cache.device)[:, None] * cache.capacity
    return (_places(cache, width) + first_B1).flatten()


def _places(cache: KVCache, width: int) -> Tensor:
    """Places `[B, L]` of new tokens, or `[1, L]` where all rows stand at one length."""
    new_L = torch.arange(width, device=cache.device)
    if cache.level is not None:
        return new_L[None] + cache.level
    return torch.from_numpy(cache.lengths_B).to(cache.device)[:, None] + new_L
