"""`python -m esogen.bench`: a table of ratios measured side by side, then one JSON line."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from esogen.bench.figures import Figure
from esogen.bench.loading import loading
from esogen.bench.machine import machine
from esogen.bench.memory import peak_memory
from esogen.bench.processes import cold_sample, help_time
from esogen.bench.program import count, run
from esogen.bench.sampling import cached_against_uncached, share_of_drawing
from esogen.bench.scoring import scoring_figures
from esogen.bench.view import view_overhead
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.language_model import load

NAMES = ("help", "cold", "loading", "memory", "cached", "drawing", "scoring", "view")


def main() -> None:
    """Measure everything, or only the figures whose names begin with a given word."""
    parser = argparse.ArgumentParser(prog="python -m esogen.bench", description=main.__doc__)
    parser.add_argument(
        "only",
        nargs="?",
        default="",
        help=f"one of {', '.join(NAMES)}, or how it begins",
    )
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--rounds", type=count, default=5, help="interleaved repeats of each pair")
    words = parser.parse_args()
    if not any(name.startswith(words.only) for name in NAMES):
        parser.error(f"no figure begins with {words.only!r}; there are {', '.join(NAMES)}")
    figures: list[Figure] = []
    print("| figure | median | range | target | |\n|---|---:|---|---|---|")
    for figure in measure(words.only, words.model, words.rounds):
        figures.append(figure)
        print(figure.row(), flush=True)
    print(json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}))


def measure(only: str, model: str, rounds: int) -> Iterator[Figure]:
    """The figures asked for, as they come; processes first, while this one holds no model."""
    if "help".startswith(only):
        yield help_time(rounds)
    if "cold".startswith(only):
        yield cold_sample(model, rounds)
    if "loading".startswith(only):
        yield from loading(rounds)
    if "memory".startswith(only):
        yield peak_memory(model)
    yield from _of_model(only, model, rounds)


def _of_model(only: str, model: str, rounds: int) -> Iterator[Figure]:
    """Those that this process measures with a model of its own."""
    if "cached".startswith(only):
        lm, fine = load(model, device="cpu"), load(model, device="cpu", dtype="fp32")
        yield cached_against_uncached(lm, lm, 1, rounds, least=6.0)
        yield cached_against_uncached(fine, lm, 1, rounds, least=10.0)
        yield cached_against_uncached(fine, lm, 16, rounds, least=6.0)
    if "drawing".startswith(only):
        lm = load(model, device="cpu")
        yield from (share_of_drawing(lm, rows, rounds) for rows in (1, 16))
    if "scoring".startswith(only):
        yield from scoring_figures(load(model, device="cpu", dtype="fp32"), rounds)
    if "view".startswith(only):
        lm = load(model, device="cpu", dtype="fp32")
        yield from (view_overhead(lm, rows, n) for rows, n in ((1, 8 * rounds), (16, rounds)))


if __name__ == "__main__":
    run(main)
