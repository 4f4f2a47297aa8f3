"""The calls that draft and verify, with the cache or without; `lossless.py` draws what they see.

Shapes: B rows still running, W tokens of a call, D model width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from esogen.generate.captured import Cache, Through
from esogen.generate.draft_rows import Bools, Rows
from esogen.generate.drafting import Drafting
from esogen.generate.fill import Ids
from esogen.model.attention import SDPA, Dense, Kernels
from esogen.model.cache import KVCache
from esogen.model.network import Network, hidden_after_bos, with_bos
from esogen.model.shared_prefix import SharedPrefix


@dataclass(frozen=True, eq=False)
class Call:
    """What one call feeds of each row: the next `clean_B` tokens, the last `drafts_B` of them
    drafts; a mask for each draft; `next_B` masks. What pads a row are masks behind its own.
    """

    cached_B: Ids
    clean_B: Ids
    drafts_B: Ids
    next_B: Ids

    @cached_property
    def width(self) -> int:
        """Tokens of the widest row."""
        return int((self.clean_B + self.drafts_B + self.next_B).max())

    @cached_property
    def masks(self) -> slice:
        """Columns among which all masks are."""
        fed_B = self.drafts_B + self.next_B > 0
        return slice(int(self.clean_B[fed_B].min()), self.width)

    def columns(self, rows: Rows, mask_id: int) -> tuple[Ids, Ids]:
        """Token and natural position of each column, `[B, W]`."""
        column_W, clean_B1 = np.arange(self.width), self.clean_B[:, None]
        mask_BW = column_W >= clean_B1
        index_BW = self.cached_B[:, None] + column_W - mask_BW * self.drafts_B[:, None]
        index_BW = np.minimum(index_BW, rows.order_BL.shape[1] - 1)
        tokens_BW, positions_BW = (
            np.take_along_axis(x, index_BW, 1) for x in (rows.tokens_BL, rows.order_BL)
        )
        return np.where(mask_BW, mask_id, tokens_BW), positions_BW

    def seen(self) -> Bools | None:
        """Who sees whom among the columns, `[B, W, W]`; None where that is plain causal."""
        if not self.drafts_B.any():
            return None
        query, key = np.arange(self.width)[:, None], np.arange(self.width)
        clean, drafts = self.clean_B[:, None, None], self.drafts_B[:, None, None]
        shown = np.where(query < clean, query + 1, np.minimum(query - drafts, clean))
        on = (key >= clean + drafts) & (key <= query)
        seen: Bools = (key < shown) | (key == query) | on
        return seen


class DraftCalls(Protocol):
    """How a call's hidden states are computed: with the cache, or without (the oracle)."""

    cached_B: Ids
    """Tokens of each row that need not be fed again."""

    def __call__(self, rows: Rows, call: Call) -> Tensor:
        """Hidden states of the columns `call.masks`, `[B, W, D]`."""
        ...

    def commit(self, count_B: Ids) -> None:
        """The first `count_B` tokens of the last call stand."""
        ...

    def keep(self, kept: Ids) -> None:
        """Drop every row but these."""
        ...

    def enter(self, rows: Rows, places: Ids, same: Ids) -> None:
        """Other texts begin at these places of `rows`; of their given tokens so many stood there
        before, in this order.
        """
        ...


class CachedDrafts:
    """Feed what is new; all else is in the cache."""

    def __init__(self, network: Network, cache: Cache, kernels: Kernels = SDPA) -> None:
        self._network, self._through = network, Through(network, cache, kernels)
        self._cache, self.cached_B = cache, np.zeros(len(cache.lengths_B), np.int64)
        self._begins = network.config.bos_id is not None

    def __call__(self, rows: Rows, call: Call) -> Tensor:
        device = self._cache.device
        ids_BW, positions_BW = _inputs(self._network, rows, call, device)
        seen_BWW, masks = call.seen(), call.masks
        if self._begins:
            ids_BW, positions_BW = with_bos(self._network.config, ids_BW, positions_BW)
            masks = slice(masks.start + 1, masks.stop + 1)
        seen = None if seen_BWW is None else torch.from_numpy(seen_BWW).to(device)
        return self._through(ids_BW, positions_BW, seen, masks)

    def commit(self, count_B: Ids) -> None:
        """The first `count_B` tokens of the last call stand."""
        self._cache.commit(count_B + self._begins)
        self.cached_B, self._begins = self.cached_B + count_B, False

    def keep(self, kept: Ids) -> None:
        """Drop every row but these."""
        self._through.keep(kept)
        self.cached_B = self.cached_B[kept]

    def enter(self, rows: Rows, places: Ids, same: Ids) -> None:
        """Cut to what stands; the bos token stays."""
        stands_B = self.cached_B.copy()
        stands_B[places] = np.minimum(same, self.cached_B[places])
        self._cache.commit(stands_B - self.cached_B)
        self.cached_B = stands_B


class PrefixedDrafts(CachedDrafts):
    """The given tokens of a text are computed when it enters, once for all texts that share them.

    Of texts up to `longest` tokens.
    """

    def __init__(
        self,
        network: Network,
        count: int,
        longest: int,
        drafting: Drafting,
        kernels: Kernels = SDPA,
    ) -> None:
        nothing, places = np.zeros(count, np.int64), drafting.places(longest)
        self._prefixes = SharedPrefix(network, count, nothing, prefix=longest, places=places)
        super().__init__(network, self._prefixes, kernels)
        self._begins = False  # every prefix does
        self._given: list[bytes | None] = [None] * count

    def enter(self, rows: Rows, places: Ids, same: Ids) -> None:
        """Behind the prefix that a text shares with others, or in place of one that none needs."""
        wanted = [_given(rows, b) for b in places]
        kept = {*np.delete(self._prefixes.group_B, places), *map(self._group, wanted)}
        free = (group for group in range(len(self._given)) if group not in kept)
        fresh: dict[int, int] = {}
        for b, given in zip(places, wanted, strict=True):
            if given not in self._given:
                group = next(free)
                self._given[group], fresh[group] = given, b
        if fresh:
            self._begin(rows, np.array([*fresh]), np.array([*fresh.values()]))
        self._prefixes.enter(places, np.array([*map(self._group, wanted)]))
        self.cached_B[places] = rows.decided_B[places]

    def _group(self, given: bytes) -> int | None:
        return self._given.index(given) if given in self._given else None

    def _begin(self, rows: Rows, groups: Ids, places: Ids) -> None:
        count_G, device = rows.decided_B[places], self._prefixes.device
        tokens_GW, positions_GW = (
            x[places, : count_G.max()] for x in (rows.tokens_BL, rows.order_BL)
        )
        given_GW = np.arange(count_G.max()) < count_G[:, None]
        ids_GW = np.where(given_GW, tokens_GW, self._network.config.mask_id)
        ids, positions = (torch.from_numpy(x).to(device) for x in (ids_GW, positions_GW))
        self._prefixes.begin(groups, ids, positions, count_G)


def _given(rows: Rows, b: int) -> bytes:
    """What texts must have in common to share the computation of their given tokens."""
    given = rows.decided_B[b]
    return rows.tokens_BL[b, :given].tobytes() + rows.order_BL[b, :given].tobytes()


class UncachedDrafts:
    """Feed all that is decided in every call: slow, and what the cache must equal."""

    def __init__(self, network: Network, rows: int, device: torch.device) -> None:
        self._network, self._device = network, device
        self.cached_B: Ids = np.zeros(rows, np.int64)

    def __call__(self, rows: Rows, call: Call) -> Tensor:
        ids_BW, positions_BW = _inputs(self._network, rows, call, self._device)
        seen_BWW = call.seen()
        dense = Dense(causal=True)
        if seen_BWW is not None:
            dense = Dense(torch.from_numpy(seen_BWW)[:, None].to(self._device))
        return hidden_after_bos(self._network, ids_BW, positions_BW, dense)[:, call.masks]

    def commit(self, count_B: Ids) -> None:
        """Nothing is kept between calls."""

    def keep(self, kept: Ids) -> None:
        """Drop every row but these."""
        self.cached_B = self.cached_B[kept]

    def enter(self, rows: Rows, places: Ids, same: Ids) -> None:
        """Nothing is kept between calls."""


def draft_calls(
    network: Network,
    rows: Rows,
    drafting: Drafting,
    *,
    cached: bool = True,
    kernels: Kernels = SDPA,
) -> DraftCalls:
    """Fresh calls for these rows, with a KV cache and these kernels, or without."""
    like, (count, length) = network.vocab_embed.embedding, rows.order_BL.shape
    if not cached:
        return UncachedDrafts(network, count, like.device)
    cache = KVCache(
        network.config,
        count,
        drafting.places(length),
        device=like.device,
        dtype=like.dtype,
        kernel=kernels.whole,
    )
    return CachedDrafts(network, cache, kernels)


def _inputs(
    network: Network, rows: Rows, call: Call, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and natural positions of a call, `[B, W]`."""
    ids_BW, positions_BW = call.columns(rows, network.config.mask_id)
    return torch.from_numpy(ids_BW).to(device), torch.from_numpy(positions_BW).to(device)
