"""The sampler itself: what the cache saves, and what drawing costs."""

import statistics
import time

import torch

from esogen.bench.figures import Figure, interleaved
from esogen.generate.draw import draw
from esogen.language_model import LanguageModel
from esogen.sampling import Batch

LENGTH, STEPS = 256, 128


def cached_against_uncached(
    plain: LanguageModel, lm: LanguageModel, rows: int, rounds: int, *, least: float
) -> Figure:
    """Seconds of `plain` without the cache over those of `lm` with it: one model, one plan.

    Drawing is included. Without the cache every call runs all positions, clean and masked; the
    output layer runs on decided rows only, in both.
    """
    ratio, spread = interleaved(
        lambda: _seconds(_batch(plain, rows, cached=False)),
        lambda: _seconds(_batch(lm, rows, cached=True)),
        rounds,
    )
    slow, fast = plain.checkpoint.dtype, lm.checkpoint.dtype
    name = f"uncached {slow} / cached {fast} sampling, {LENGTH} tokens, {STEPS} steps, batch {rows}"
    return Figure(name, ratio, spread, least=least)


def share_of_drawing(lm: LanguageModel, rows: int, rounds: int) -> Figure:
    """Seconds of drawing every token of a run again, over seconds of the run.

    The draws are repeated on the logits of the run itself: how long a nucleus takes to find
    depends on how long it is.
    """
    shares = [_drawing_share(lm, rows) for _ in range(rounds + 1)][1:]
    name = f"drawing / sampling, length {LENGTH}, {STEPS} steps, batch {rows}"
    return Figure(name, statistics.median(shares), (min(shares), max(shares)), most=0.15)


def _drawing_share(lm: LanguageModel, rows: int) -> float:
    network, logits = lm.checkpoint.network, []
    hook = network.output_layer.linear.register_forward_hook(
        lambda module, inputs, output: logits.append(output.clone())
    )
    try:
        _seconds(_batch(lm, rows, cached=True))
    finally:
        hook.remove()
    batch = _batch(lm, rows, cached=True)
    whole = _seconds(batch)
    with torch.inference_mode():
        for logits_KV in logits:
            logits_KV[..., network.config.mask_id] = -torch.inf
        began = time.perf_counter()
        for logits_KV in logits:
            draw(logits_KV, torch.full(logits_KV.shape[:-1], 0.5), batch.settings.draw)
    return (time.perf_counter() - began) / whole


def _batch(lm: LanguageModel, rows: int, *, cached: bool) -> Batch:
    settings = lm.settings(
        length=LENGTH,
        steps=STEPS,
        alpha_0=1.0,
        schedule="random",
        seed=0,
        raw=True,
        kv_cache=cached,
    )
    return next(lm.batches("", settings, n=rows, batch_size=rows))


def _seconds(batch: Batch) -> float:
    began = time.perf_counter()
    for _ in batch.steps():
        pass
    return time.perf_counter() - began
