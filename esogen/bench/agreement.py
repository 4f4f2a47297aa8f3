"""`python -m esogen.bench.agreement`: how often precision, cache and batch change a drawn token."""

import argparse
import json
from dataclasses import asdict

from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.generate.verify import Agreement, Side, compare
from esogen.language_model import Batch, LanguageModel, load

SETTINGS = ((1.0, 32), (1.0, 128), (0.25, 64))
"""alpha_0 and steps."""


def main() -> None:
    """Compare cached sampling in each precision with the uncached network in float32."""
    parser = argparse.ArgumentParser(
        prog="python -m esogen.bench.agreement", description=main.__doc__
    )
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--rows", type=int, default=16, help="samples compared per setting")
    words = parser.parse_args()
    oracle = load(words.model, device="cpu", dtype="fp32")
    found = {}
    for dtype in ("fp32", "bf16", "fp16"):
        candidate = load(words.model, device="cpu", dtype=dtype)
        total = sum(
            (_agreement(oracle, candidate, words.rows, *setting) for setting in SETTINGS),
            Agreement(),
        )
        found[dtype] = asdict(total)
        print(
            f"| {dtype} | {total.draws} | {total.different} ({total.different / total.draws:.3%})"
            f" | {total.edge} | {total.unexplained} | {total.log_prob_difference:.2g} |",
            flush=True,
        )
    print(json.dumps(found))


def _agreement(
    oracle: LanguageModel, candidate: LanguageModel, rows: int, alpha_0: float, steps: int
) -> Agreement:
    reference, other = (_batch(lm, rows, alpha_0, steps) for lm in (oracle, candidate))
    return compare(
        Side(oracle.checkpoint.network, reference.calls(cached=False)),
        Side(candidate.checkpoint.network, other.calls(cached=True)),
        reference.plan,
        reference.start(),
        reference.settings.draw,
    )


def _batch(lm: LanguageModel, rows: int, alpha_0: float, steps: int) -> Batch:
    settings = lm.settings(alpha_0=alpha_0, steps=steps, schedule="random", seed=0, raw=True)
    return next(lm.batches("", settings, n=rows, batch_size=rows))


if __name__ == "__main__":
    main()
