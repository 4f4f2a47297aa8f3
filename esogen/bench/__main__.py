"""`python -m esogen.bench`: a table of ratios measured side by side, then one JSON line."""

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import version

import torch

from esogen.bench.figures import Figure
from esogen.bench.memory import peak_memory
from esogen.bench.processes import cold_sample, help_time
from esogen.bench.sampling import cached_against_uncached, share_of_drawing
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.language_model import load


def main() -> None:
    """Measure everything, or only the figures whose names begin with a given word."""
    parser = argparse.ArgumentParser(prog="python -m esogen.bench", description=main.__doc__)
    parser.add_argument("only", nargs="?", default="", help="help, cold, cached, drawing or memory")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats of each pair")
    words = parser.parse_args()
    figures: list[Figure] = []
    for figure in measure(words.only, words.model, words.rounds):
        figures.append(figure)
        print(figure.row(), flush=True)
    print(json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}))


def measure(only: str, model: str, rounds: int) -> list[Figure]:
    """The figures asked for; processes first, while this one holds no model."""
    wanted = [
        name for name in ("help", "cold", "cached", "drawing", "memory") if name.startswith(only)
    ]
    figures: list[Figure] = []
    if "help" in wanted:
        figures.append(help_time(rounds))
    if "cold" in wanted:
        figures.append(cold_sample(model, rounds))
    if {"cached", "drawing", "memory"} & set(wanted):
        lm = load(model, device="cpu", dtype="fp32")
        if "cached" in wanted:
            figures += [cached_against_uncached(lm, rows, rounds) for rows in (1, 16)]
        if "drawing" in wanted:
            figures += [share_of_drawing(lm, rows, rounds) for rows in (1, 16)]
        if "memory" in wanted:
            figures.append(peak_memory(model))
    return figures


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "esogen": version("esogen"),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }


if __name__ == "__main__":
    main()
