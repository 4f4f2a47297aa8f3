"""A score as plain values: what JSON, CSV and the journal of a run hold, and back again."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from esogen.checkpoint.pieces import Decoder, pieces_of
from esogen.likelihood import Numbers
from esogen.scoring.figures import Estimate, Figures
from esogen.scoring.score import Score
from esogen.scoring.settings import ScoreSettings
from esogen.scoring.surprises import Surprise

Record = Mapping[str, Any]


def record_of(score: Score, tokenizer: Decoder) -> dict[str, Any]:
    """Everything that is told of one text; numbers that are not finite are None.

    `pieces` has one text for each token, and joined they are the whole: of tokens that make a
    character together, the last has it.
    """
    figures = score.figures
    record: dict[str, Any] = {
        "index": score.document.index,
        "name": score.document.name,
        "text": score.text,
        "tokens": list(score.tokens),
        "bytes": figures.bytes,
        "figure": score.kind,
        "orders": score.orders,
        "log_prob": figures.log_prob,
        "error": finite(figures.estimate.error),
        "nats_per_token": figures.nats_per_token,
        "perplexity": finite(figures.perplexity),
        "bits_per_byte": finite(figures.bits_per_byte),
        "tightening": [_told(estimate) for estimate in figures.tightening],
        "pieces": _pieces(score.tokens, tokenizer),
    }
    if score.log_probs_L is not None:
        record["log_probs"] = score.log_probs_L.tolist()
    if score.ranks_L is not None:
        record["ranks"] = (score.ranks_L + 1).tolist()
    return record


def run_fields(settings: ScoreSettings, model: str, revision: str, dtype: str) -> dict[str, Any]:
    """What is said of every text of a run."""
    return {
        "order": settings.order,
        "alpha_0": settings.alpha_0,
        "bound": settings.bound,
        "seed": settings.seed,
        "length": settings.length,
        "stride": settings.stride,
        "context": settings.context,
        "end_of_text": settings.end_of_text,
        "model": model,
        "revision": revision,
        "dtype": dtype,
    }


def with_gains(record: dict[str, Any], gain_L: Numbers) -> dict[str, Any]:
    """The record with the gain of each token, in nats."""
    return record | {"gains": gain_L.tolist()}


def with_top(record: dict[str, Any], found: Sequence[Surprise]) -> dict[str, Any]:
    """The record with its least expected words."""
    top = [
        {
            "word": surprise.word,
            "position": surprise.position,
            "bits": surprise.bits,
            "instead": [{"word": word, "probability": p} for word, p in surprise.instead],
        }
        for surprise in found
    ]
    return record | {"top": top}


def figures_of(record: Record) -> Figures:
    """The figures of a record again."""
    estimate = Estimate(record["orders"], record["log_prob"], _number(record["error"]))
    tightening = (
        Estimate(looser["orders"], looser["log_prob"], _number(looser["error"]))
        for looser in record["tightening"]
    )
    return Figures(len(record["tokens"]), record["bytes"], estimate, tuple(tightening))


def finite(x: float) -> float | None:
    """A number that JSON can hold, or None."""
    return x if math.isfinite(x) else None


def _number(x: float | None) -> float:
    return math.nan if x is None else x


def _told(estimate: Estimate) -> dict[str, Any]:
    return {
        "orders": estimate.orders,
        "log_prob": estimate.log_prob,
        "error": finite(estimate.error),
    }


def _pieces(tokens: Sequence[int], tokenizer: Decoder) -> list[str]:
    return [
        text
        for piece in pieces_of(tokens, tokenizer)
        for text in (*("" for _ in range(piece.end - piece.start - 1)), piece.text)
    ]
