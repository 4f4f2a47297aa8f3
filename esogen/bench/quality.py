"""`python -m esogen.bench.quality FILE...`: how well a model predicts texts, in bits per byte."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esogen.bench.program import run, share
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.language_model import load
from esogen.model.families import ALPHA_0
from esogen.scoring.records import finite
from esogen.training.data import read_documents, windows
from esogen.training.evaluate import evaluate


def main() -> None:
    """Print the bound of each file under each alpha_0, then one JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m esogen.bench.quality", description=main.__doc__
    )
    parser.add_argument("files", nargs="+", type=Path, help="text, plain or xz")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--alpha-0", nargs="+", type=share, help="1, 0.25 and 0, or the family's")
    words = parser.parse_args()
    lm = load(words.model, dtype="fp32")
    length, family = lm.checkpoint.config.model_length, lm.checkpoint.config.family
    alphas = words.alpha_0 or ([ALPHA_0[family]] if family in ALPHA_0 else [1.0, 0.25, 0.0])
    found = []
    for path in words.files:
        rows = windows(list(read_documents([path])), lm.checkpoint.tokenizer, length)
        for alpha_0 in alphas:
            result = evaluate(lm.checkpoint.network, rows, alpha_0)
            print(f"| {path.name} | {alpha_0:g} | {result.bits_per_byte:.3f} |", flush=True)
            found.append({"file": path.name, **asdict(result, dict_factory=_told)})
    print(json.dumps(found, allow_nan=False))


def _told(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """What JSON says: an error that a single row does not have is null."""
    return {name: finite(x) if isinstance(x, float) else x for name, x in fields}


if __name__ == "__main__":
    run(main)
