"""Attention of a step through the cache, as three Triton kernels whose lengths are on the device.

The first gives each program one token: it turns its queries and keys, and writes keys and values
into the cache. The second gives each program one head of one row, some queries, and one part of the
places to be seen, those of a prefix first; it leaves the attention over that part and the logarithm
of its sum of exponentials. The third merges the parts by those. A step has few queries and many
keys: without parts, most of a GPU would have nothing to do.

Imported where a GPU samples, and nowhere else: Triton comes with torch for CUDA only.
`step_by_torch` in `cache.py` says what must come out.

Shapes: B rows, G groups, L queries of this step, P places of the cache, S of a prefix, N heads,
H head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from esogen.model.attention import Places, Prefix
from esogen.model.heads import Heads

MOST_QUERIES = 32
TILE_BYTES = 128
"""A program holds as many places at once as have this many bytes in a channel: what its registers
hold with heads of 64 channels."""

MOST_PARTS = 32
PROGRAMS = 264
"""Programs that fill a large GPU twice over: parts are made until there are as many."""


def step_attention(heads: Heads, places: Places, parts: int | None = None) -> Tensor:
    """As `StepKernel` says; in so many `parts` (the tests want several of few places).

    Numbers on the device are int64. Heads lie side by side in memory (strides of the two last
    dimensions H and 1).
    """
    return _attended(_turned(heads, places), places, parts)


def _turned(heads: Heads, places: Places) -> Tensor:
    """Write turned keys, and values, into the cache; return turned queries `[B, L, N, H]`."""
    k_BPNH, v_BPNH, stands_B, *_ = places
    qkv_BL3NH = heads.qkv_BL3NH.contiguous()
    cos, sin = (each.contiguous() for each in heads.rotation)
    rows, queries, _, count, width = qkv_BL3NH.shape
    q_BLNH = torch.empty_like(qkv_BL3NH[:, :, 0], memory_format=torch.contiguous_format)
    with torch.cuda.device_of(q_BLNH):
        _turn_and_write[(rows * queries,)](
            qkv_BL3NH,
            cos,
            sin,
            stands_B,
            q_BLNH,
            k_BPNH,
            v_BPNH,
            queries,
            count,
            width,
            k_BPNH.stride(0),
            k_BPNH.stride(1),
            v_BPNH.stride(0),
            v_BPNH.stride(1),
            HEADS=triton.next_power_of_2(count),
            WIDTH=triton.next_power_of_2(width),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return q_BLNH


def _attended(q_BLNH: Tensor, places: Places, parts: int | None) -> Tensor:
    """Output `[B, L, N, H]` of turned queries; the step's keys and values stand in the cache."""
    k_BPNH, v_BPNH, stands_B, seen_BLL, prefix = places
    rows, queries, heads, width = q_BLNH.shape
    seeable = k_BPNH.shape[1] + (prefix.k_GSNH.shape[1] if prefix else 0)
    # Where there is none, anything stands for it: nothing of it is read.
    shared = prefix or Prefix(k_BPNH, v_BPNH, stands_B, stands_B)
    seen = stands_B if seen_BLL is None else seen_BLL.contiguous().view(torch.uint8)
    seen_row = 0 if seen_BLL is None or len(seen_BLL) == 1 else queries * queries
    queries_each = min(max(16, triton.next_power_of_2(queries)), MOST_QUERIES)
    blocks = triton.cdiv(queries, queries_each)
    tile = TILE_BYTES // q_BLNH.element_size()
    if parts is None:
        wanted = triton.cdiv(PROGRAMS, rows * heads * blocks)
        parts = max(1, min(wanted, MOST_PARTS, triton.cdiv(seeable, tile)))
    out_BLNH = torch.empty(q_BLNH.shape, dtype=q_BLNH.dtype, device=q_BLNH.device)
    part_BNLSH = torch.empty(
        (rows, heads, queries, parts, width), dtype=torch.float32, device=q_BLNH.device
    )
    sums_BNLS = torch.empty(
        (rows, heads, queries, parts), dtype=torch.float32, device=q_BLNH.device
    )
    padded = max(16, triton.next_power_of_2(width))
    with torch.cuda.device_of(q_BLNH):
        _attend_part[(rows * heads, blocks, parts)](
            q_BLNH,
            k_BPNH,
            v_BPNH,
            stands_B,
            seen,
            *shared,
            part_BNLSH,
            sums_BNLS,
            queries,
            heads,
            width,
            parts,
            width**-0.5,
            q_BLNH.stride(0),
            q_BLNH.stride(1),
            k_BPNH.stride(0),
            k_BPNH.stride(1),
            v_BPNH.stride(0),
            v_BPNH.stride(1),
            seen_row,
            shared.k_GSNH.stride(0),
            shared.k_GSNH.stride(1),
            shared.v_GSNH.stride(0),
            shared.v_GSNH.stride(1),
            SEEN=seen_BLL is not None,
            PREFIX=prefix is not None,
            QUERIES=queries_each,
            WIDTH=padded,
            TILE=tile,
            num_warps=4,
            enable_fp_fusion=True,
        )
        _merge_parts[(rows * heads * queries,)](
            part_BNLSH,
            sums_BNLS,
            out_BLNH,
            queries,
            heads,
            width,
            parts,
            PARTS=triton.next_power_of_2(parts),
            WIDTH=padded,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return out_BLNH


# Not specialised: a number that is 1 would become a constant of the compiler, without a type.
@triton.jit(do_not_specialize=["queries", "heads"])
def _turn_and_write(
    qkv,
    cos,
    sin,
    stands,
    q,
    k,
    v,
    queries,
    heads,
    width,
    k_row,
    k_token,
    v_row,
    v_token,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = token // queries
    place = tl.load(stands + row) + token % queries
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (head < heads) & (channel < width)
    across = head * width + channel
    swapped = head * width + (channel + width // 2) % width
    size = heads * width
    q_from = qkv + token * 3 * size
    k_from = q_from + size
    turn = token * 3 * width + channel  # the queries' angles, which are the keys'
    along = tl.load(cos + turn, mask=channel < width, other=0.0).to(tl.float32)
    around = tl.load(sin + turn, mask=channel < width, other=0.0).to(tl.float32)
    q_tile = tl.load(q_from + across, mask=inside, other=0.0).to(tl.float32) * along
    q_tile += tl.load(q_from + swapped, mask=inside, other=0.0).to(tl.float32) * around
    k_tile = tl.load(k_from + across, mask=inside, other=0.0).to(tl.float32) * along
    k_tile += tl.load(k_from + swapped, mask=inside, other=0.0).to(tl.float32) * around
    v_tile = tl.load(k_from + size + across, mask=inside, other=0.0)
    tl.store(q + token * size + across, q_tile, mask=inside)
    tl.store(k + row * k_row + place * k_token + across, k_tile, mask=inside)
    tl.store(v + row * v_row + place * v_token + across, v_tile, mask=inside)


@triton.jit(do_not_specialize=["queries", "heads", "parts", "seen_row"])
def _attend_part(
    q,
    k,
    v,
    stands,
    seen,
    k_shared,
    v_shared,
    group,
    length,
    part,
    sums,
    queries,
    heads,
    width,
    parts,
    scale,
    q_row,
    q_token,
    k_row,
    k_token,
    v_row,
    v_token,
    seen_row,
    k_group,
    k_place,
    v_group,
    v_place,
    SEEN: tl.constexpr,
    PREFIX: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    index = tl.program_id(2)
    stand = tl.load(stands + row).to(tl.int32)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, WIDTH)
    inside = (query < queries)[:, None] & (channel < width)[None, :]
    across = head * width + channel
    q_at = row.to(tl.int64) * q_row + query[:, None] * q_token + across[None, :]
    q_tile = tl.load(q + q_at, mask=inside, other=0.0)
    k_first = k + row.to(tl.int64) * k_row
    v_first = v + row.to(tl.int64) * v_row
    before = 0
    if PREFIX:
        before = tl.load(length + row).to(tl.int32)
        shared = tl.load(group + row)
        k_prefix = k_shared + shared * k_group
        v_prefix = v_shared + shared * v_group

    total_places = before + stand + queries
    each = tl.cdiv(tl.cdiv(total_places, parts), TILE) * TILE
    begin = index * each
    end = tl.minimum(begin + each, total_places)
    greatest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(begin, end, TILE):
        place = first + tl.arange(0, TILE)
        own = (place >= before) & (place < total_places)
        stored = own[:, None] & (channel < width)[None, :]
        offset = (place - before).to(tl.int64)[:, None]
        k_tile = tl.load(k_first + offset * k_token + across[None, :], mask=stored, other=0.0)
        v_tile = tl.load(v_first + offset * v_token + across[None, :], mask=stored, other=0.0)
        if PREFIX:
            early = (place < before)[:, None]
            stored = early & (channel < width)[None, :]
            offset = place.to(tl.int64)[:, None]
            k_early = tl.load(k_prefix + offset * k_place + across[None, :], mask=stored, other=0.0)
            v_early = tl.load(v_prefix + offset * v_place + across[None, :], mask=stored, other=0.0)
            k_tile = tl.where(early, k_early, k_tile)
            v_tile = tl.where(early, v_early, v_tile)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        column = place - before - stand
        visible = column[None, :] <= query[:, None]
        if SEEN:
            new = (column >= 0) & (column < queries)
            told = (query < queries)[:, None] & new[None, :]
            at = row.to(tl.int64) * seen_row + query[:, None] * queries + column[None, :]
            visible = (column < 0)[None, :] | (tl.load(seen + at, mask=told, other=0) != 0)
        scores = tl.where(visible & (place < total_places)[None, :], scores, float("-inf"))
        higher = tl.maximum(greatest, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - base[:, None])
        shrunk = tl.exp(greatest - base)
        total = total * shrunk + tl.sum(weights, 1)
        out = out * shrunk[:, None]
        out += tl.dot(weights.to(v_tile.dtype), v_tile, input_precision="ieee")
        greatest = higher

    some = total > 0.0
    out = out / tl.where(some, total, 1.0)[:, None]
    log_sum = tl.where(some, greatest + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    slot = (tl.program_id(0).to(tl.int64) * queries + query) * parts + index
    tl.store(part + slot[:, None] * width + channel[None, :], out, mask=inside)
    tl.store(sums + slot, log_sum, mask=query < queries)


@triton.jit(do_not_specialize=["queries", "heads", "parts"])
def _merge_parts(
    part, sums, out, queries, heads, width, parts, PARTS: tl.constexpr, WIDTH: tl.constexpr
):
    line = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PARTS)
    channel = tl.arange(0, WIDTH)
    slot = line * parts + index
    log_sum = tl.load(sums + slot, mask=index < parts, other=float("-inf"))
    weights = tl.exp(log_sum - tl.max(log_sum, 0))
    inside = (index < parts)[:, None] & (channel < width)[None, :]
    each = tl.load(part + slot[:, None] * width + channel[None, :], mask=inside, other=0.0)
    merged = tl.sum(each * weights[:, None], 0) / tl.sum(weights, 0)
    query, row_head = line % queries, line // queries
    at = ((row_head // heads) * queries + query) * heads + row_head % heads
    tl.store(out + at * width + channel, merged, mask=channel < width)
