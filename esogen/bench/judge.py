"""`python -m esogen.bench.judge -o DIR MODEL... --judge MODEL --training FILE... --held-out FILE`.

Samples from each model at every `alpha_0` and number of steps, and measures the samples:

    judge      perplexity under the judge, a left-to-right model of other seeds, ends counted
    entropy    of the tokens of a text, nats, mean over texts
    distinct   share of the pairs and triples of tokens of all samples that differ
    copied     share of 8-token stretches that stand in the training files, and the longest stretch

Held-out texts, cut to the length of samples, are measured beside them: what a person's text has.
All models have the tokenizer of the training files (as `esogen tokenize` wrote them). Samples are
kept in DIR: run again to go on. Prints a table and one JSON line.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path

import numpy as np

from esogen.atomic import replacing
from esogen.bench.copying import copied
from esogen.bench.likelihoods import subset
from esogen.bench.program import count, run, share
from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.resolve import explain, resolve
from esogen.errors import EsogenError
from esogen.language_model import LanguageModel, load
from esogen.likelihood import Ids
from esogen.model.families import ALPHA_0
from esogen.scoring.defaults import settings_for
from esogen.scoring.score import Document, score_documents, tokens_at_once
from esogen.training.data import joined
from esogen.training.token_files import read_token_file

ALPHAS, STEPS = (1.0, 0.5, 0.25, 0.0625), (16, 128, 512)
HELD_OUT = "held-out text"


@dataclass(frozen=True, slots=True)
class Quality:
    """What is told of the samples of one model at one setting, or of held-out text."""

    name: str
    texts: int
    perplexity: float
    entropy: float
    distinct_2: float
    distinct_3: float
    copied: float
    longest: int

    def row(self) -> str:
        """The figures as a line of a Markdown table."""
        return (
            f"| {self.name} | {self.texts} | {self.perplexity:.2f} | {self.entropy:.2f}"
            f" | {self.distinct_2:.3f} | {self.distinct_3:.3f} | {self.copied:.2%}"
            f" | {self.longest} |"
        )


def main() -> None:
    """Sample what is not there, as far as the time goes, and measure what is."""
    options = _options()
    until = time.monotonic() + 60 * options.minutes
    for model in (options.judge, *options.models):
        _refuse_unfinished(model)
    judge = load(options.judge, device=options.device, dtype="fp32")
    training_T, human = _training(judge, options.training), _human(judge, options)
    options.output.mkdir(parents=True, exist_ok=True)
    texts = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in _sampled(options, until)
    }
    found = qualities(judge, {HELD_OUT: human, **texts}, training_T)
    print("| samples | texts | judge | entropy | distinct 2 | 3 | copied | longest |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for quality in found:
        print(quality.row())
    print(json.dumps([asdict(quality) for quality in found]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m esogen.bench.judge", description="Measure the quality of samples."
    )
    parser.add_argument("models", nargs="+", help="folders")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of all samples")
    parser.add_argument("--judge", required=True, help="a left-to-right model")
    parser.add_argument("--training", type=Path, nargs="+", required=True, help="*.tokens.xz")
    parser.add_argument("--held-out", type=Path, required=True, help="text")
    parser.add_argument("--minutes", type=float, default=math.inf, help="sample no longer now")
    parser.add_argument("--samples", type=count, default=64, help="at each setting")
    parser.add_argument("--length", type=count, default=512, help="of samples, in tokens")
    parser.add_argument("--alpha-0", type=share, nargs="+", default=ALPHAS)
    parser.add_argument("--steps", type=count, nargs="+", default=STEPS)
    parser.add_argument("--top-p", type=share, default=0.9)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args()


def _refuse_unfinished(model: str) -> None:
    """Raise `EsogenError` where a model is not there, or has not had all its steps."""
    if not isinstance(explain(model).place, Path):
        raise EsogenError(f"{model} is no folder here; train it first, or name one that is there")
    notes = read_config(resolve(model).config).training
    if notes.get("step") != notes.get("steps"):
        raise EsogenError(
            f"{model} has had {notes.get('step')} of its {notes.get('steps')} steps;"
            " train it to the end first, with --resume"
        )


def _sampled(options: argparse.Namespace, until: float) -> Iterator[tuple[str, Path]]:
    """Files of samples by what they are called, made where they are not there yet."""
    for model in options.models:
        lm = load(model, device=options.device)
        for alpha_0, steps in _settings(lm, options):
            name = f"{Path(model).name} alpha_0={alpha_0:g} T={steps}"
            file = f"{name} L={options.length} top-p={options.top_p:g} n={options.samples}.json"
            path = options.output / file.replace(" ", "_")
            if not path.is_file():
                if time.monotonic() >= until:
                    continue
                print(f"sampling {name}", file=sys.stderr, flush=True)
                _write(path, _sample(lm, alpha_0, steps, options))
            yield name, path


def _settings(lm: LanguageModel, options: argparse.Namespace) -> list[tuple[float, int]]:
    """Every `alpha_0` with every number of steps; left to right takes as many steps as tokens."""
    family = lm.checkpoint.config.family
    if family == "ar":
        return [(0.0, options.length)]
    alphas = [ALPHA_0[family]] if family in ALPHA_0 else options.alpha_0
    return list(product(alphas, options.steps))


def _sample(
    lm: LanguageModel, alpha_0: float, steps: int, options: argparse.Namespace
) -> list[str]:
    told = "steps" not in lm.unused
    samples = lm.sample(
        n=options.samples,
        length=options.length,
        steps=steps if told else None,
        alpha_0=None if "alpha_0" in lm.unused else alpha_0,
        schedule=None if "schedule" in lm.unused else "random",
        top_p=options.top_p,
        seed=0,
        batch_size=options.samples,
    )
    return [sample.text for sample in samples]


def _write(path: Path, texts: list[str]) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(texts), encoding="utf-8")


def _human(judge: LanguageModel, options: argparse.Namespace) -> list[str]:
    """As many held-out texts as there are samples at a setting, no longer than these."""
    tokenizer, length = judge.checkpoint.tokenizer, options.length
    documents = subset(judge, options.held_out, 0)[: options.samples]
    return [tokenizer.decode(tokenizer.encode(each.text)[: length - 1]) for each in documents]


def _training(judge: LanguageModel, paths: Sequence[Path]) -> Ids:
    return joined([read_token_file(path, judge.checkpoint.tokenizer) for path in paths]).ids_T


def qualities(judge: LanguageModel, texts: dict[str, list[str]], training_T: Ids) -> list[Quality]:
    """Measure each group of texts; empty texts are left out."""
    groups = {
        name: [
            ids for ids in map(np.array, judge.checkpoint.tokenizer.encode_many(group)) if len(ids)
        ]
        for name, group in texts.items()
    }
    everything = [ids for group in groups.values() for ids in group]
    found = iter(copied(everything, training_T))
    result = []
    for name, group in groups.items():
        if not group:
            continue
        spans = [next(found) for _ in group]
        grams = sum(span.grams for span in spans)
        result.append(
            Quality(
                name,
                len(group),
                perplexity(judge, [text for text in texts[name] if text]),
                float(np.mean([entropy(ids) for ids in group])),
                distinct(group, 2),
                distinct(group, 3),
                sum(span.seen for span in spans) / max(grams, 1),
                max((span.longest for span in spans), default=0),
            )
        )
    return result


def perplexity(judge: LanguageModel, texts: list[str]) -> float:
    """Of all tokens together, the end of each text among them."""
    settings = settings_for(judge.checkpoint, context=0, end_of_text=True)
    documents = [Document(i, "a sample", text, i) for i, text in enumerate(texts)]
    at_once = tokens_at_once(judge.device)
    scores = score_documents(judge.checkpoint, documents, settings, tokens_at_once=at_once)
    return reduce(add, (score.figures for score in scores)).perplexity


def entropy(ids_L: Ids) -> float:
    """Nats of a draw from the tokens of one text."""
    share = np.unique(ids_L, return_counts=True)[1] / len(ids_L)
    return float(-(share * np.log(share)).sum())


def distinct(texts: Sequence[Ids], n: int) -> float:
    """Different runs of n tokens over all of them."""
    grams = [
        tuple(ids[i : i + n])
        for ids in (text.tolist() for text in texts)
        for i in range(len(ids) - n + 1)
    ]
    return len(set(grams)) / max(len(grams), 1)


if __name__ == "__main__":
    run(main)
