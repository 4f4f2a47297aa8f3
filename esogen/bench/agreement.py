"""`python -m esogen.bench.agreement`: how often precision, cache and batch change a drawn token."""

import argparse
import json
from dataclasses import asdict

from esogen.bench.program import count, run
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.generate.verify import Agreement, RowByRow, Side, compare
from esogen.language_model import LanguageModel, load
from esogen.sampling import Batch

SETTINGS = ((1.0, 32), (1.0, 128), (0.25, 64))
"""alpha_0 and steps."""


def main() -> None:
    """Compare cached sampling in each precision with the uncached network in float32."""
    parser = argparse.ArgumentParser(
        prog="python -m esogen.bench.agreement", description=main.__doc__
    )
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--rows", type=count, default=16, help="samples compared per setting")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    words = parser.parse_args()
    oracle = load(words.model, device=words.device, dtype="fp32")
    found = {}
    print("| candidate | draws | different | edge | unexplained | log-probability |")
    print("|---|---:|---:|---:|---:|---:|")
    for dtype in ("fp32", "bf16", "fp16"):
        candidate = load(words.model, device=words.device, dtype=dtype)
        for name, side in (("against uncached fp32", _oracle), ("row by row", _row_by_row)):
            total = sum(
                (side(oracle, candidate, words.rows, *setting) for setting in SETTINGS),
                Agreement(),
            )
            found[f"{dtype} {name}"] = asdict(total)
            print(_row(f"{dtype} {name}", total), flush=True)
    print(json.dumps(found))


def _row(name: str, total: Agreement) -> str:
    share = total.different / total.draws
    return (
        f"| {name} | {total.draws} | {total.different} ({share:.3%}) | {total.edge}"
        f" | {total.unexplained} | {total.log_prob_difference:.2g} |"
    )


def _oracle(
    oracle: LanguageModel, candidate: LanguageModel, rows: int, alpha_0: float, steps: int
) -> Agreement:
    """Cached sampling of `candidate` against the uncached network of `oracle`."""
    reference, other = (_batch(lm, rows, alpha_0, steps) for lm in (oracle, candidate))
    return _compare(
        reference,
        Side(oracle.checkpoint.network, reference.calls(cached=False)),
        Side(candidate.checkpoint.network, other.calls(cached=True)),
    )


def _row_by_row(
    oracle: LanguageModel, candidate: LanguageModel, rows: int, alpha_0: float, steps: int
) -> Agreement:
    """A batch of `candidate` against the same rows one at a time."""
    batch, network = _batch(candidate, rows, alpha_0, steps), candidate.checkpoint.network
    alone = [_batch(candidate, 1, alpha_0, steps).calls(cached=True) for _ in range(rows)]
    return _compare(batch, Side(network, batch.calls(cached=True)), Side(network, RowByRow(alone)))


def _compare(batch: Batch, reference: Side, candidate: Side) -> Agreement:
    return compare(reference, candidate, batch.plan, batch.start(), batch.settings.draw)


def _batch(lm: LanguageModel, rows: int, alpha_0: float, steps: int) -> Batch:
    settings = lm.settings(alpha_0=alpha_0, steps=steps, schedule="random", seed=0, raw=True)
    return next(lm.batches("", settings, n=rows, batch_size=rows))


if __name__ == "__main__":
    run(main)
