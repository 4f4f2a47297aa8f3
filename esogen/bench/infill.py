"""`python -m esogen.bench.infill FILE...`: what both sides of a blank are worth, in figures.

1. Bits per byte of the true words of a blank, given both sides, and given the left side only.
2. How often the true length is among the first three of 1 to 8: of a removed word, and of removed
   words whose lengths are 1 to 8 tokens equally often, where saying 1, 2 and 3 is no better than
   chance.
3. What the prefill of 32 candidates costs beside that of one.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esogen.bench.figures import Figure, interleaved
from esogen.bench.program import count, run
from esogen.checkpoint.resolve import DEFAULT_MODEL
from esogen.generate.fill import Canvas, prefilled
from esogen.generate.streams import Purpose, stream
from esogen.generate.template import Blank, Template, tokenise
from esogen.language_model import LanguageModel, load
from esogen.likelihood import log_probs
from esogen.training.data import read_documents

Ids = NDArray[np.int64]

LONGEST_WORD = 8
"""Tokens of the longest word that is removed, and the lengths that are searched."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A text with a hole: the words before, those that were there, and those behind."""

    before: str
    words: str
    after: str


def main() -> None:
    """Measure on held-out texts; a table, then one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m esogen.bench.infill", description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="held-out texts, plain or xz")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="built-in name or folder")
    parser.add_argument("--texts", type=count, default=100, help="texts of each file")
    parser.add_argument("--candidates", type=count, default=4, help="of each length searched")
    parser.add_argument("--rounds", type=count, default=9, help="interleaved repeats of the timing")
    words = parser.parse_args()
    lm = load(words.model, dtype="fp32")
    found: dict[str, object] = {}
    for path in words.files:
        texts = list(read_documents([path]))
        bits = sides(lm, [*gaps(lm, texts, words.texts, words_removed=4)])
        found[path.name] = figures = dict(bits)
        for what, holes in (
            ("a word", [*gaps(lm, texts, words.texts, words_removed=1)]),
            ("1-8 tokens", [*spans(lm, texts, words.texts)]),
        ):
            figures |= length_search(lm, holes, words.candidates, what)
        for name, value in figures.items():
            print(f"| {path.name} | {name} | {value:.4g} |", flush=True)
    gap = next(gaps(lm, texts, 1, words_removed=4))
    figure = prefill_cost(lm, gap, words.rounds)
    print(figure.row())
    print(json.dumps({"files": found, "prefill": asdict(figure)}))


def gaps(
    lm: LanguageModel, texts: Sequence[str], most: int, *, words_removed: int
) -> Iterator[Gap]:
    """One hole in each text that fits the model, at a place of its own; words stand around it."""
    longest, tokenizer = lm.checkpoint.config.model_length, lm.checkpoint.tokenizer
    made = 0
    for number, text in enumerate(texts):
        words = text.strip().split(" ")
        room = len(words) - words_removed - 10
        fits = len(tokenizer.encode(text.strip())) <= longest - LONGEST_WORD
        if room < 1 or not fits or made == most:
            continue
        first = 5 + int(stream(0, Purpose.EVALUATION, number).random() * room)
        last = first + words_removed
        before, after = " ".join(words[:first]) + " ", " " + " ".join(words[last:])
        made += 1
        yield Gap(before, " ".join(words[first:last]), after)


def spans(lm: LanguageModel, texts: Sequence[str], most: int) -> Iterator[Gap]:
    """Holes of 1 to 8 tokens in turn, each of whole words, one in each text that has such words."""
    tokenizer, made = lm.checkpoint.tokenizer, 0
    for number, hole in enumerate(gaps(lm, texts, len(texts), words_removed=1)):
        words = hole.after.split(" ")
        for end in range(1, min(LONGEST_WORD + 1, len(words) - 5)):
            removed = " ".join([hole.words, *words[1:end]])
            if made < most and len(tokenizer.encode(f" {removed}")) == number % LONGEST_WORD + 1:
                made += 1
                yield Gap(hole.before, removed, " " + " ".join(words[end:]))
                break


def sides(lm: LanguageModel, holes: Sequence[Gap]) -> dict[str, float]:
    """Bits per byte of what was removed, given both sides and given the left one, left to right.

    The given tokens come first, in one random order for both; the blank itself left to right.
    """
    texts, both, left, sizes = [], [], [], []
    for number, hole in enumerate(holes):
        ids, blank = _tokens(lm, hole)
        rest = np.setdiff1d(np.arange(len(ids)), blank)
        rank = stream(1, Purpose.EVALUATION, number).random(len(ids))
        given = rest[rank[rest].argsort()]
        texts.append((ids, blank))
        both.append(np.concatenate([given, blank]))
        left.append(np.concatenate([given[given < blank[0]], blank]))
        sizes.append(len(hole.words.encode()) + 1)
    network, nats = lm.checkpoint.network, {}
    cut = [ids[: blank[-1] + 1] for ids, blank in texts]
    for name, inputs, orders in (
        ("both sides", [ids for ids, _ in texts], both),
        ("left side only", cut, left),
    ):
        found = log_probs(network, inputs, orders)
        of_blank = [x[blank].sum() for x, (_, blank) in zip(found, texts, strict=True)]
        nats[name] = -sum(of_blank)
    return {
        f"bits per byte, {name}": float(total) / math.log(2) / sum(sizes)
        for name, total in nats.items()
    }


def _tokens(lm: LanguageModel, hole: Gap) -> tuple[Ids, Ids]:
    """The ids of the whole text, and the positions of what was removed."""
    tokenizer = lm.checkpoint.tokenizer
    template = Template((hole.before, hole.after), (Blank(1, 1),))
    before, after = tokenise(template, tokenizer).ids
    middle = tokenizer.encode(f" {hole.words}")
    ids = np.array([*before, *middle, *after], np.int64)
    return ids, np.arange(len(before), len(before) + len(middle))


def length_search(lm: LanguageModel, holes: Sequence[Gap], n: int, what: str) -> dict[str, float]:
    """How often the true length of what was removed is among the best three of 1 to 8."""
    hits, whole, lengths = 0, 0, []
    for hole in holes:
        true = len(_tokens(lm, hole)[1])
        if true > LONGEST_WORD:
            continue
        template = f"{_escaped(hole.before)}[MASK:1-{LONGEST_WORD}]{_escaped(hole.after)}"
        found = lm.infill(template, n=n, seed=0, batch_size=n * LONGEST_WORD)
        first = [each.lengths[0] for each in found.tried[:3]]
        hits += true in first
        by_text = dict.fromkeys(
            each.lengths[0] for each in sorted(found, key=lambda each: -each.score)
        )
        whole += true in [*by_text][:3]
        lengths.append(true)
    often = np.bincount(lengths, minlength=LONGEST_WORD + 1)
    share = hits / len(lengths)
    return {
        f"{what}: lengths searched": float(len(lengths)),
        f"{what}: true one among the first three": share,
        f"{what}: times chance (3 of 8)": share / (3 / LONGEST_WORD),
        f"{what}: were it by log p of the whole text, not per token": whole / len(lengths),
        f"{what}: were it always 1, 2 and 3": float(often[1:4].sum() / len(lengths)),
    }


def _escaped(text: str) -> str:
    return str(Template((text, ""), (Blank(1, 1),))).removesuffix("[MASK]")


def prefill_cost(lm: LanguageModel, hole: Gap, rounds: int) -> Figure:
    """Computing the given tokens for 32 candidates, over computing them for one."""
    template = f"{_escaped(hole.before)}[MASK:4]{_escaped(hole.after)}"
    tokens, network = lm.read_template(template), lm.checkpoint.network

    def seconds(n: int) -> Callable[[], float]:
        run = lm.infilling(lm.infill_settings(lm.settings(seed=0), n=n))
        (batch,) = run.batches([tokens], n)
        rows = batch.rows

        def measure() -> float:
            began = time.perf_counter()
            prefilled(network, rows, Canvas.of(network, rows, lm.device))
            return time.perf_counter() - began

        return measure

    ratio, spread = interleaved(seconds(32), seconds(1), rounds)
    name = f"prefill of -n 32 / of -n 1, {tokens.given} given tokens"
    return Figure(name, ratio, spread, most=1.25)


if __name__ == "__main__":
    run(main)
