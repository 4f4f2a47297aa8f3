"""Tensor memory, from the allocator's own events."""

import torch
from torch.profiler import ProfilerActivity, profile

from esogen.bench.figures import Figure
from esogen.bench.sampling import LENGTH, STEPS
from esogen.checkpoint.resolve import resolve
from esogen.language_model import load
from esogen.model.cache import KVCache
from esogen.model.packed import weight_bytes


def peak_memory(model: str) -> Figure:
    """Peak of loading and sampling, over the bytes of weights plus cache, float32, batch 1."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        lm = load(model, device="cpu", dtype="fp32")
        for _ in lm.sample(length=LENGTH, steps=STEPS, seed=0, raw=True):
            pass
    network = lm.checkpoint.network
    needed = weight_bytes(network) + KVCache(network.config, 1, LENGTH).bytes
    file = resolve(model).weights
    ratio = peak_bytes(recorded, mapped=file.stat().st_size) / needed
    name = f"peak tensor memory / (weights + cache), length {LENGTH}, {STEPS} steps, batch 1"
    return Figure(name, ratio, (ratio, ratio), most=1.3)


def peak_bytes(recorded: "torch.profiler.profile", *, mapped: int) -> int:
    """Greatest sum of what was allocated and not yet freed.

    The weights file, `mapped` bytes, is read through the page cache: events of just that size are
    its mapping, which the allocator reports like memory of its own.
    """
    profiler = recorded.profiler
    if profiler is None or profiler.kineto_results is None:
        return 0
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if abs(event.nbytes()) == mapped:  # type: ignore[attr-defined]
            continue
        held += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, held)
    return peak
