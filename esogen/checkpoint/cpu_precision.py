"""The precision that a CPU is quickest in: measured once and kept, so that seeds keep their texts.

{"machine": "x86_64 AVX2, torch 2.13.0", "dtype": "float16"}
"""

import json
import math
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from esogen.atomic import replacing
from esogen.checkpoint.pins import data_folder
from esogen.model.packed import product
from esogen.model.threads import NARROW, threads_for

_FINE_TO_COARSE = (torch.float32, torch.float16, torch.bfloat16)
_GAIN = 1.25
"""How many times quicker a coarser precision must be for a CPU to take it: more than noise."""
_ROWS, _ROUNDS = 2, 25


@cache
def quickest_on_cpu() -> torch.dtype:
    """What was found here before; else what is measured now, kept if it can be written."""
    if known := kept():
        return known
    place, chosen = _place(), quickest(measured())
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as scratch:
            words = {"machine": _machine(), "dtype": _name(chosen)}
            scratch.write_text(json.dumps(words), encoding="utf-8")
    return chosen


def kept() -> torch.dtype | None:
    """What was found here before, and will be taken again; None where nothing is kept."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = json.loads(_place().read_text(encoding="utf-8"))
        if known["machine"] == _machine():
            return {_name(dtype): dtype for dtype in _FINE_TO_COARSE}[known["dtype"]]
    return None


def _place() -> Path:
    return data_folder() / "cpu-precision.json"


def _machine() -> str:
    """All that the quickest precision hangs on, as far as it can be told."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {platform.processor()} {capability}, torch {torch.__version__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def quickest(seconds: Mapping[torch.dtype, float]) -> torch.dtype:
    """The finest precision, or a coarser one that is clearly quicker by what each took."""
    chosen = torch.float32
    for dtype in _FINE_TO_COARSE:
        if _GAIN * seconds[dtype] < seconds[chosen]:
            chosen = dtype
    return chosen


def measured() -> Mapping[torch.dtype, float]:
    """What a narrow product takes in each precision, at best: some twenty milliseconds in all.

    Of this thread alone, which other programs change least. The matrix is larger than what a core
    keeps to itself, as those of a network are together.
    """
    width = math.isqrt(NARROW // _ROWS)
    products = {dtype: product(width, dtype, _ROWS) for dtype in _FINE_TO_COARSE}
    taken = dict.fromkeys(products, math.inf)
    with threads_for(torch.device("cpu"), NARROW), torch.inference_mode():
        for _ in range(_ROUNDS):
            for dtype, run in products.items():
                began = time.thread_time()
                run()
                taken[dtype] = min(taken[dtype], time.thread_time() - began)
    return taken
