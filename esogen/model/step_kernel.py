"""Attention of a step through the cache, as two Triton kernels whose lengths are on the device.

The first gives each program one head of one row, some queries, and one part of the places that
stand; it leaves the attention over that part and the logarithm of its sum of exponentials. The
second merges the parts by those. A step has few queries and many keys: without parts, most of a GPU
would have nothing to do.

Imported where a GPU samples, and nowhere else: Triton comes with torch for CUDA only. `attention`
in `attention.py` says what must come out.

Shapes: B rows, L queries of this step, P places of the cache, N heads, H head width, S parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_QUERIES = 32
TILE_BYTES = 128
"""A program holds as many places at once as have this many bytes in a channel: what its registers
hold with heads of 64 channels."""

MOST_PARTS = 32
PROGRAMS = 264
"""Programs that fill a large GPU twice over: parts are made until there are as many."""


def step_attention(
    q_BLNH: Tensor, k_BPNH: Tensor, v_BPNH: Tensor, stands_B: Tensor, parts: int | None = None
) -> Tensor:
    """Output `[B, L, N, H]`, query j of row b over its places `0 .. stands_B[b] + j`.

    `stands_B` int64 on the device; the step's own keys and values stand in the cache already,
    behind those. Heads lie side by side in memory (strides of the two last dimensions H and 1).
    """
    rows, queries, heads, width = q_BLNH.shape
    places = k_BPNH.shape[1]
    queries_each = min(max(16, triton.next_power_of_2(queries)), MOST_QUERIES)
    blocks = triton.cdiv(queries, queries_each)
    tile = TILE_BYTES // q_BLNH.element_size()
    if parts is None:
        wanted = triton.cdiv(PROGRAMS, rows * heads * blocks)
        parts = max(1, min(wanted, MOST_PARTS, triton.cdiv(places, tile)))
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
@triton.jit(do_not_specialize=["queries", "heads", "parts"])
def _attend_part(
    q,
    k,
    v,
    stands,
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

    seen = stand + queries
    each = tl.cdiv(tl.cdiv(seen, parts), TILE) * TILE
    begin = index * each
    end = tl.minimum(begin + each, seen)
    greatest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(begin, end, TILE):
        place = first + tl.arange(0, TILE)
        stored = (place < seen)[:, None] & (channel < width)[None, :]
        offset = place.to(tl.int64)[:, None]
        k_tile = tl.load(k_first + offset * k_token + across[None, :], mask=stored, other=0.0)
        v_tile = tl.load(v_first + offset * v_token + across[None, :], mask=stored, other=0.0)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        visible = place[None, :] <= (stand + query)[:, None]
        scores = tl.where(visible & (place < seen)[None, :], scores, float("-inf"))
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
