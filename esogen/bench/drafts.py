"""`python -m esogen.bench.drafts`: what verified drafts save, and what parallel steps cost instead.

Three parts. `speed`: calls and seconds, beside one token per step and beside plain parallel steps
at as many calls, in turn. `acceptance`: how many drafts stand, by how many are drafted, by order
and by third of the text. `quality`: calls against how likely texts are, left to right, and whether
tokens and pairs of neighbours have the law of one token per step.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esogen.bench import plot as pictures
from esogen.bench.machine import machine
from esogen.bench.program import count, run
from esogen.bench.two_samples import p_value
from esogen.checkpoint.config_file import Schedule
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.language_model import LanguageModel, load
from esogen.likelihood import Ids, log_probs
from esogen.sampling import Batch, SampleSettings

ONE_BY_ONE = {"steps": 2**31 - 1}
"""So many steps that no two tokens share one."""

ORDERS: Mapping[str, tuple[Schedule, float]] = {
    "random": ("random", 1.0),
    "blocks": ("blocks", 1.0),
    "streams": ("streams", 1.0),
    "left to right": ("random", 0.0),
}
DRAFTED = (2, 4, 8, 16)
STEPS = (8, 16, 32, 64, 128)
ACCEPTANCE_TEXTS = 16
AT_ONCE = 64
"""Texts of a batch where quality is measured."""
THIRDS = 3

Row = dict[str, Any]
Rounds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bench:
    """A model and how large a measurement is."""

    lm: LanguageModel
    length: int
    rounds: int
    samples: int

    def batch(self, rows: int, order: str = "random", seed: int = 0, **how: Any) -> Batch:
        """Some texts over their whole length, not made yet; `how` is steps or draft."""
        settings = self._settings(rows, order, seed, **how)
        return next(self.lm.batches("", settings, n=rows, batch_size=rows))

    def _settings(self, rows: int, order: str, seed: int, **how: Any) -> SampleSettings:
        schedule, alpha_0 = ORDERS[order]
        return self.lm.settings(
            length=self.length,
            schedule=schedule,
            alpha_0=alpha_0,
            seed=seed,
            raw=True,
            rows=rows,
            **how,
        )

    def speed(self, batches: Sequence[int]) -> Iterator[Row]:
        """Calls per token, and how much longer one token per step takes; each in turn.

        Beside plain parallel steps at as many calls, and at so many that texts are about as good.
        """
        for rows in batches:
            calls = int(_driven(self.batch(rows, draft=8)).trace().nfe_B.mean())
            ways: Mapping[str, Mapping[str, Any]] = {
                "one token per step": ONE_BY_ONE,
                "draft 8": {"draft": 8},
                "draft auto": {"draft": "auto"},
                f"parallel, {calls} steps": {"steps": calls},
                f"parallel, {self.length // 2} steps": {"steps": self.length // 2},
            }
            runs = [
                {name: _driven(self.batch(rows, seed=seed, **how)) for name, how in ways.items()}
                for seed in range(self.rounds + 1)
            ][1:]
            for name in ways:
                ratios = [run["one token per step"].seconds / run[name].seconds for run in runs]
                traces = [run[name].trace() for run in runs]
                made = [float(trace.nfe_B.mean()) / self.length for trace in traces]
                rounds = np.concatenate([row for trace in traces for row in trace.rounds])
                yield {
                    "batch": rows,
                    "way": name,
                    "calls per token": round(statistics.median(made), 3),
                    "accepted per call": round(float(rounds[:, 1].mean()), 2) if len(rounds) else 0,
                    "tokens/s": round(
                        rows * self.length / statistics.median(run[name].seconds for run in runs)
                    ),
                    "times faster": round(statistics.median(ratios), 2),
                    "lowest": round(min(ratios), 2),
                    "highest": round(max(ratios), 2),
                }

    def acceptance(self) -> Iterator[Row]:
        """Share of drafts that stood, of all and by third of the text, and calls per token."""
        for order in ORDERS:
            for k in DRAFTED:
                trace = _driven(self.batch(ACCEPTANCE_TEXTS, order, draft=k)).trace()
                rounds = np.concatenate(trace.rounds)
                ended = np.concatenate([_decided_before(x) for x in trace.rounds])
                third = np.minimum(ended * THIRDS // self.length, THIRDS - 1)
                parts = [_share(rounds[third == part]) for part in range(THIRDS)]
                yield {
                    "order": order,
                    "drafted": k,
                    "accepted": _share(rounds),
                    **{f"third {part + 1}": share for part, share in enumerate(parts)},
                    "calls per token": round(float(trace.nfe_B.mean()) / self.length, 3),
                }

    def quality(self) -> Iterator[Row]:
        """How texts that were made in so many calls compare with those of one token per step.

        By nats per token, left to right and exact, and by `two_samples` with texts of another seed.
        """
        ways: list[tuple[str, Mapping[str, Any]]] = [
            ("one token per step", ONE_BY_ONE),
            *(("drafted", {"draft": k}) for k in DRAFTED[1:3]),
            *(("parallel", {"steps": steps}) for steps in STEPS),
        ]
        wanted, _ = self._texts(seed=1, **ONE_BY_ONE)
        for name, how in ways:
            made, calls = self._texts(seed=0, **how)
            found = log_probs(self.lm.checkpoint.network, list(made))
            nats = [-float(row.mean()) for row in found]
            yield {
                "way": name,
                "calls": round(calls, 1),
                "nats per token": round(statistics.mean(nats), 3),
                "error": round(statistics.stdev(nats) / len(nats) ** 0.5, 3),
                "p of tokens": round(p_value(made, wanted, 1), 4),
                "p of pairs": round(p_value(made, wanted, 2), 4),
            }

    def _texts(self, seed: int, **how: Any) -> tuple[Ids, float]:
        """Tokens of many texts, and calls of one."""
        settings = self._settings(AT_ONCE, "random", seed, **how)
        batches = self.lm.batches("", settings, n=self.samples, batch_size=AT_ONCE)
        traces = [_driven(batch).trace() for batch in batches]
        calls = np.concatenate([trace.nfe_B for trace in traces])
        return np.concatenate([trace.tokens_BL for trace in traces]), float(calls.mean())


def _driven(batch: Batch) -> Batch:
    for _ in batch.steps():
        pass
    return batch


def _decided_before(rounds_S2: Rounds) -> Rounds:
    """About how many tokens were decided before each call: one more than stood in those before."""
    before_S: Rounds = np.cumsum(rounds_S2[:, 1] + 1) - rounds_S2[:, 1] - 1
    return before_S


def _share(rounds_S2: Rounds) -> float:
    drafts, accepted = map(int, rounds_S2.sum(0))
    return round(accepted / max(drafts, 1), 3)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Calls against nats per token, one line for each way, into a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for way, style in (("parallel", "o-"), ("drafted", "s-"), ("one token per step", "*")):
        points = [row for row in rows if row["way"] == way]
        axes.errorbar(
            [row["calls"] for row in points],
            [row["nats per token"] for row in points],
            yerr=[2 * row["error"] for row in points],
            fmt=style,
            label=way,
            capsize=2,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("network calls a text")
    axes.set_ylabel("nats per token, left to right")
    axes.legend()
    pictures.save(figure, path)


def main() -> None:
    """Print a Markdown table for each part, then one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m esogen.bench.drafts", description=__doc__)
    parser.add_argument("parts", nargs="*", help="speed, acceptance, quality; all unless said")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("-L", "--length", type=count, default=256, help="tokens of a text")
    parser.add_argument("--rounds", type=count, default=10, help="runs of each way, in turn")
    parser.add_argument("--batches", type=count, nargs="+", default=[1, 16, 64], help="for speed")
    parser.add_argument("-n", "--samples", type=count, default=256, help="texts for quality")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--plot", type=Path, help="draw the quality into this .svg or .png")
    words = parser.parse_args()
    if wrong := {*words.parts} - {"speed", "acceptance", "quality"}:
        parser.error(f"there is no part {min(wrong)!r}")
    if words.samples < 2 and "quality" in (words.parts or ["quality"]):
        parser.error("argument -n/--samples: quality takes 2 texts or more, to tell their spread")
    if words.plot:
        pictures.check(words.plot)
    lm = load(words.model, device=words.device, dtype=words.dtype)
    bench = Bench(lm, words.length, words.rounds, words.samples)
    parts = {
        "speed": lambda: bench.speed(words.batches),
        "acceptance": bench.acceptance,
        "quality": bench.quality,
    }
    found: dict[str, list[Row]] = {}
    for name in words.parts or parts:
        found[name] = []
        for row in parts[name]():
            if not found[name]:
                print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
            print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
            found[name].append(row)
    if words.plot and "quality" in found:
        plot(found["quality"], words.plot)
    print(json.dumps({"machine": machine(), **found}))


if __name__ == "__main__":
    run(main)
