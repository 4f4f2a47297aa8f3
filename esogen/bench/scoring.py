"""Scoring: what an order costs, what the tiles save over a dense mask, and memory."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from esogen.bench.figures import Figure, interleaved
from esogen.bench.memory import peak_bytes
from esogen.generate.streams import Purpose, stream
from esogen.language_model import LanguageModel
from esogen.likelihood import TOKENS_AT_ONCE, Passage, read, token_log_probs
from esogen.model.attention import Dense
from esogen.model.network import Network, hidden_after_bos

CASES = ((256, 1), (256, 100), (1024, 1), (1024, 8))
"""Length of the text and number of orders."""
LONG = 2048


def scoring_figures(lm: LanguageModel, rounds: int) -> Iterator[Figure]:
    """Cost in forward passes and speed against the dense form.

    The text is random tokens; a length that the model was not trained for costs what it costs.
    """
    network = lm.checkpoint.network
    for length, orders in CASES:
        passages = _passages(network, length, orders)
        yield _against_forward(network, passages, rounds)
        yield _against_dense(network, passages, rounds)
    yield _memory(network)


def _passages(network: Network, length: int, orders: int) -> list[Passage]:
    """One text in so many random orders."""
    u = stream(0, Purpose.EVALUATION, 9).random((orders + 1, length))
    tokens = (u[0] * (network.config.vocab_size - 1)).astype(np.int64)
    return [Passage(tokens, order.argsort()) for order in u[1:]]


def _name(what: str, passages: list[Passage]) -> str:
    return f"{what}, length {len(passages[0].tokens_L)}, K = {len(passages)}"


def _against_forward(network: Network, passages: list[Passage], rounds: int) -> Figure:
    """Seconds of scoring over seconds of plain forward passes of the same rows, logits included."""
    seconds: list[float] = []

    def scored() -> float:
        seconds.append(_seconds(network, passages))
        return seconds[-1]

    ratio, spread = interleaved(scored, lambda: _forward(network, passages), rounds)
    tokens = len(passages) * len(passages[0].tokens_L)
    speed = tokens / float(np.median(seconds[1:]))
    name = _name("scoring / forward passes of that length", passages)
    return Figure(f"{name} ({speed:.0f} tokens/s)", ratio, spread, most=2.3)


def _against_dense(network: Network, passages: list[Passage], rounds: int) -> Figure:
    """Seconds of the dense form over seconds of scoring, in the same batches."""
    ratio, spread = interleaved(
        lambda: _dense(network, passages), lambda: _seconds(network, passages), rounds
    )
    return Figure(_name("dense scoring / scoring", passages), ratio, spread, least=1.0)


def _memory(network: Network) -> Figure:
    """Peak memory of scoring a text over that of a quarter of it, over four: 1 is linear."""
    peaks = []
    for length in (LONG // 4, LONG):
        passages = _passages(network, length, 1)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            read(network, passages)
        peaks.append(peak_bytes(recorded, mapped=0))
    ratio = peaks[1] / peaks[0] / 4
    name = f"peak memory of scoring, length {LONG} / length {LONG // 4}, over 4"
    return Figure(name, ratio, (ratio, ratio), most=1.1)


def _seconds(network: Network, passages: list[Passage]) -> float:
    began = time.perf_counter()
    read(network, passages)
    return time.perf_counter() - began


def _forward(network: Network, passages: list[Passage]) -> float:
    """A forward pass of every passage, masks nowhere, in batches of the same size."""
    began = time.perf_counter()
    with torch.inference_mode():
        for ids_BL, order_BL in _batches(passages):
            network.logits(hidden_after_bos(network, ids_BL, order_BL, Dense(causal=True)))
    return time.perf_counter() - began


def _dense(network: Network, passages: list[Passage]) -> float:
    began = time.perf_counter()
    for ids_BL, order_BL in _batches(passages):
        token_log_probs(network, ids_BL, order_BL)
    return time.perf_counter() - began


def _batches(passages: list[Passage]) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, TOKENS_AT_ONCE // len(passages[0].tokens_L))
    ids = torch.from_numpy(np.stack([passage.tokens_L for passage in passages]))
    orders = torch.from_numpy(np.stack([passage.order_L for passage in passages]))
    yield from zip(torch.split(ids, rows), torch.split(orders, rows), strict=True)
