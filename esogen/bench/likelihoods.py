"""`python -m esogen.bench.likelihoods FILE...`: bits per byte, by NELBO and by exact bounds.

Every text whole and with its end counted, in windows of the model's length without context, so that
both columns are of the same tokens, given the same.
"""

import argparse
import json
import math
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from esogen.bench.program import count, run, share
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.generate.streams import Purpose, stream
from esogen.language_model import LanguageModel, load
from esogen.scoring.defaults import settings_for
from esogen.scoring.figures import Figures
from esogen.scoring.records import finite
from esogen.scoring.score import Document, score_documents, tokens_at_once
from esogen.scoring.settings import Bound
from esogen.training.data import read_documents

ALPHAS = (1.0, 0.5, 0.25, 0.125, 0.0)
SEED = 0


def main() -> None:
    """Print the table, a row for each file and alpha_0, then one JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m esogen.bench.likelihoods", description=main.__doc__
    )
    parser.add_argument("files", nargs="+", type=Path, help="text, plain or xz")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--alpha-0", nargs="+", type=share, default=ALPHAS)
    parser.add_argument("--orders", type=count, default=100, help="K of the bound")
    parser.add_argument("--time-samples", type=count, default=16, help="draws for the NELBO")
    parser.add_argument("--tokens", type=int, default=10_000, help="of each file, about; 0: all")
    words = parser.parse_args()
    lm = load(words.model, device=words.device, dtype="fp32")
    found: list[dict[str, Any]] = []
    print(f"| file | alpha_0 | NELBO | K = 1 | K = {words.orders} |\n|---|---:|---:|---:|---:|")
    for path in words.files:
        documents = subset(lm, path, words.tokens)
        for alpha_0 in words.alpha_0:
            found += _measure(lm, path, documents, alpha_0, words)
    print(json.dumps(found))


def subset(lm: LanguageModel, path: Path, tokens: int) -> list[Document]:
    """Whole documents of a file in seeded order, until they have so many tokens; 0 takes all.

    One that would go over by more than a tenth is passed by, unless there is none yet.
    """
    texts = list(read_documents([path]))
    order = stream(SEED, Purpose.EVALUATION, 9).random(len(texts)).argsort(kind="stable")
    taken: list[int] = []
    total = 0
    for i in order.tolist():
        size = len(lm.checkpoint.tokenizer.encode(texts[i])) + 1
        if not tokens or not taken or total + size <= 1.1 * tokens:
            taken.append(i)
            total += size
        if tokens and total >= tokens:
            break
    return [Document(i, path.name, texts[i], i) for i in sorted(taken)]


def _measure(
    lm: LanguageModel,
    path: Path,
    documents: list[Document],
    alpha_0: float,
    words: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Both figures of a file under one alpha_0, printed as a row."""
    orders = words.orders if alpha_0 else 1  # with no diffusion all orders are left to right
    nelbo = total(lm, documents, alpha_0, bound="nelbo", time_samples=words.time_samples)
    exact = total(lm, documents, alpha_0, bound="exact", orders=orders)
    one = exact.tightening[0] if exact.tightening else exact.estimate
    cells = [
        _bits(nelbo.estimate.log_prob, nelbo.estimate.error, nelbo.bytes),
        _bits(one.log_prob, one.error, exact.bytes),
        _bits(exact.log_prob, exact.estimate.error, exact.bytes),
    ]
    size = f"{len(documents)} texts, {nelbo.tokens} tokens"
    print(f"| {path.name} ({size}) | {alpha_0:g} | {' | '.join(cells)} |", flush=True)
    return [
        {
            "file": path.name,
            "alpha_0": alpha_0,
            "figure": figure,
            "tokens": figures.tokens,
            "bytes": figures.bytes,
            "bits_per_byte": figures.bits_per_byte,
            "error": finite(figures.bits_per_byte_error),
            "nats_per_token": figures.nats_per_token,
        }
        for figure, figures in (("nelbo", nelbo), (f"exact, K = {orders}", exact))
    ]


def total(
    lm: LanguageModel,
    documents: list[Document],
    alpha_0: float,
    *,
    bound: Bound,
    orders: int = 1,
    time_samples: int = 1,
) -> Figures:
    """One figure of all documents together, on the model's device."""
    settings = settings_for(
        lm.checkpoint,
        order="random" if alpha_0 else "left-to-right",
        alpha_0=alpha_0,
        orders=orders,
        context=0,
        seed=SEED,
        end_of_text=True,
        bound=bound,
        time_samples=time_samples,
    )
    at_once = tokens_at_once(lm.device)
    scores = score_documents(lm.checkpoint, documents, settings, tokens_at_once=at_once)
    return reduce(add, (score.figures for score in scores))


def _bits(log_prob: float, error: float, size: int) -> str:
    scale = 1 / (math.log(2) * size)
    told = f" ± {error * scale:.4f}" if math.isfinite(error) and error else ""
    return f"{-log_prob * scale:.4f}{told}"


if __name__ == "__main__":
    run(main)
