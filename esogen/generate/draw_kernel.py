"""The draw as one Triton kernel: a program for each row, which never sorts the vocabulary.

A program reads its row again and again, a tile at a time: for the greatest logit, for the sums,
eight times for each threshold, and for the search. A threshold is found digit by digit: floats are
ordered as integers of 32 bits, and one pass weighs the 16 values that the next four bits can have.

Imported where a GPU draws, and nowhere else: Triton comes with torch for CUDA only. `draw` in
`draw.py` says what must come out; the two differ by float32 rounding.

Shapes: K tokens of this step, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from esogen.generate.draw import Drawn, DrawSettings

TILE = 1024
WARPS = 8
COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures beyond are these: between float32 logits one leaves no doubt, the other nothing
else."""


def draw(logits_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings) -> Drawn:
    """Draw one token per row from float32 logits `[..., V]` with uniforms `[...]` in [0, 1)."""
    vocabulary = logits_KV.shape[-1]
    rows_KV = logits_KV.reshape(-1, vocabulary).contiguous()
    tokens_K = torch.empty(len(rows_KV), dtype=torch.int64, device=rows_KV.device)
    log_probs_K = torch.empty(len(rows_KV), dtype=torch.float32, device=rows_KV.device)
    if settings.temperature == 0.0:
        settings = DrawSettings(top_k=1)
    temperature = min(max(settings.temperature, COLDEST), HOTTEST)
    top_k = settings.top_k or vocabulary
    with torch.cuda.device_of(rows_KV):
        _draw[(len(rows_KV),)](
            rows_KV,
            uniforms_K.reshape(-1).double().contiguous(),
            tokens_K,
            log_probs_K,
            vocabulary,
            1.0 / temperature,
            min(top_k, vocabulary),
            settings.top_p,
            HAS_TOP_K=top_k < vocabulary,
            HAS_TOP_P=settings.top_p < 1.0,
            TILE=TILE,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    shape = uniforms_K.shape
    return Drawn(tokens_K.view(shape), log_probs_K.view(shape))


# Not specialised: a number that is 1 would become a constant of the compiler, without a type.
@triton.jit(do_not_specialize=["vocabulary", "top_k"])
def _draw(
    logits,
    uniforms,
    tokens,
    log_probs,
    vocabulary,
    coldness,
    top_k,
    top_p,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    TILE: tl.constexpr,
):
    k = tl.program_id(0)
    row = logits + k.to(tl.int64) * vocabulary
    greatest = _greatest(row, vocabulary, TILE)
    total, mass = _sums(row, vocabulary, greatest, coldness, TILE)
    least = tl.full([], -2147483648, tl.int64)
    room = tl.full([], 0, tl.int64)
    if HAS_TOP_K:
        goal = top_k.to(tl.float64)
        least = _threshold(row, vocabulary, greatest, coldness, goal, True, TILE)
        above, count_above, tied, count = _around(row, vocabulary, greatest, coldness, least, TILE)
        room = tl.minimum(top_k - count_above, count)
        mass = above + tied / tl.maximum(count, 1).to(tl.float64) * room
    if HAS_TOP_P:
        goal = mass * top_p
        nucleus = _threshold(row, vocabulary, greatest, coldness, goal, False, TILE)
        most = tl.where(nucleus > least, vocabulary, room)
        least = tl.maximum(nucleus, least)
        above, count_above, tied, count = _around(row, vocabulary, greatest, coldness, least, TILE)
        each = tied / tl.maximum(count, 1).to(tl.float64)
        needed = tl.ceil((goal - above) / tl.maximum(each, 1e-300))
        most = tl.minimum(most, count).to(tl.float64)
        room = tl.maximum(tl.minimum(needed, most), 1.0).to(tl.int64)
        mass = above + each * room
    target = tl.load(uniforms + k) * mass
    token = _search(row, vocabulary, greatest, coldness, least, room, target, TILE)
    tl.store(tokens + k, token)
    tl.store(log_probs + k, tl.load(row + token) - greatest - tl.log(total.to(tl.float32)))


@triton.jit
def _tile(row, vocabulary, first, TILE: tl.constexpr):
    """Ids and logits of one tile; what lies behind the vocabulary is impossible."""
    ids = first + tl.arange(0, TILE)
    return ids, tl.load(row + ids, mask=ids < vocabulary, other=float("-inf"))


@triton.jit
def _weights(x, greatest, coldness):
    """Probabilities after temperature, the most probable token's being 1; zero times infinity is
    kept out at both ends.
    """
    below = tl.where(x == greatest, 0.0, (x - greatest) * coldness)
    return tl.where(x == float("-inf"), 0.0, tl.exp(below))


@triton.jit
def _keys(x):
    """Integers in the order of these floats; the two zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _greatest(row, vocabulary, TILE: tl.constexpr):
    best = tl.full([TILE], float("-inf"), tl.float32)
    for first in range(0, vocabulary, TILE):
        _, x = _tile(row, vocabulary, first, TILE)
        best = tl.maximum(best, x)
    return tl.max(best, 0)


@triton.jit
def _sums(row, vocabulary, greatest, coldness, TILE: tl.constexpr):
    """The sum of all probabilities, before and after temperature, in units of the greatest."""
    plain = tl.zeros([TILE], tl.float32)
    shaped = tl.zeros([TILE], tl.float32)
    for first in range(0, vocabulary, TILE):
        _, x = _tile(row, vocabulary, first, TILE)
        plain += tl.exp(x - greatest)
        shaped += _weights(x, greatest, coldness)
    return tl.sum(plain.to(tl.float64), 0), tl.sum(shaped.to(tl.float64), 0)


@triton.jit
def _threshold(row, vocabulary, greatest, coldness, goal, COUNT: tl.constexpr, TILE: tl.constexpr):
    """The greatest key at and above which tokens weigh `goal`, or, with COUNT, number as many."""
    key = tl.full([], -2147483648, tl.int64)
    unit = tl.full([], 268435456, tl.int64)
    for _ in range(8):
        candidates = (key + tl.arange(0, 16).to(tl.int64) * unit).to(tl.int32)
        sums = tl.zeros([TILE, 16], tl.float32)
        for first in range(0, vocabulary, TILE):
            ids, x = _tile(row, vocabulary, first, TILE)
            if COUNT:
                weights = tl.where(ids < vocabulary, 1.0, 0.0)
            else:
                weights = _weights(x, greatest, coldness)
            reached = _keys(x)[:, None] >= candidates[None, :]
            sums += tl.where(reached, weights[:, None], 0.0)
        enough = tl.sum(sums, 0).to(tl.float64) >= goal
        digit = tl.maximum(tl.sum(enough.to(tl.int64), 0) - 1, 0)
        key += digit * unit
        unit = unit // 16
    return key


@triton.jit
def _around(row, vocabulary, greatest, coldness, key, TILE: tl.constexpr):
    """Mass and number of the tokens above a key, then of those that have just this one."""
    above = tl.zeros([TILE], tl.float32)
    tied = tl.zeros([TILE], tl.float32)
    above_count = tl.zeros([TILE], tl.int64)
    tied_count = tl.zeros([TILE], tl.int64)
    for first in range(0, vocabulary, TILE):
        ids, x = _tile(row, vocabulary, first, TILE)
        keys, weights = _keys(x), _weights(x, greatest, coldness)
        is_above = keys > key
        is_tied = (keys == key) & (ids < vocabulary)
        above += tl.where(is_above, weights, 0.0)
        tied += tl.where(is_tied, weights, 0.0)
        above_count += is_above.to(tl.int64)
        tied_count += is_tied.to(tl.int64)
    above_mass, tied_mass = tl.sum(above.to(tl.float64), 0), tl.sum(tied.to(tl.float64), 0)
    return above_mass, tl.sum(above_count, 0), tied_mass, tl.sum(tied_count, 0)


@triton.jit
def _search(row, vocabulary, greatest, coldness, least, room, target, TILE: tl.constexpr):
    """The first kept id at which the running sum passes `target`: of the ids that have the least
    key only the first `room` are kept.
    """
    before = tl.full([], 0.0, tl.float64)
    tied_before = tl.full([], 0, tl.int64)
    found = tl.full([], 2147483647, tl.int32)
    last = tl.full([], 0, tl.int32)
    for first in range(0, vocabulary, TILE):
        ids, x = _tile(row, vocabulary, first, TILE)
        keys, weights = _keys(x), _weights(x, greatest, coldness)
        tied = (keys == least).to(tl.int32)
        rank = tied_before + tl.cumsum(tied, 0)
        kept = (keys > least) | ((tied == 1) & (rank <= room))
        weights = tl.where(kept, weights, 0.0)
        passed = (before + tl.cumsum(weights, 0).to(tl.float64) > target) & (weights > 0.0)
        found = tl.minimum(found, tl.min(tl.where(passed, ids, 2147483647), 0))
        last = tl.maximum(last, tl.max(tl.where(weights > 0.0, ids, 0), 0))
        before += tl.sum(weights, 0).to(tl.float64)
        tied_before += tl.sum(tied, 0)
    return tl.minimum(found, last)
