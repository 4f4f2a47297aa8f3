"""What `esogen infill` writes of a filled template: the text, a table, or JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esogen.visible import one_line

if TYPE_CHECKING:
    from esogen.ranking.infilling import Candidate, Filled

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Form:
    """How many of the candidates are written, and in which format: text, json or jsonl."""

    format: str
    top: int

    def write(self, template: str, filled: "Filled", fields: Fields) -> str:
        """Everything that is written of one filled template."""
        if self.format == "json":
            return as_json(as_object(template, filled, fields, self.top)) + "\n"
        if self.format == "jsonl":
            objects = (candidate_object(each) | dict(fields) for each in filled[: self.top])
            return "".join(as_json(each) + "\n" for each in objects)
        return table(filled[: self.top]) if self.top > 1 else filled[0].text + "\n"


def table(candidates: Sequence["Candidate"]) -> str:
    """Candidates as a table: rank, nats per token of the whole text, and each blank's text."""
    rows = [("rank", "nats/token", "fills")]
    rows += [
        (str(rank), f"{each.score_per_token:.4f}", " | ".join(map(one_line, each.fills)))
        for rank, each in enumerate(candidates, 1)
    ]
    return "".join(f"{rank:>4}  {score:>10}  {fills}\n" for rank, score, fills in rows)


def as_object(template: str, filled: "Filled", fields: Fields, top: int) -> dict[str, object]:
    """A filled template with its best candidates, and how its lengths were found."""
    return {
        "template": template,
        "candidates": [candidate_object(each) for each in filled[:top]],
        "distinct": len(filled),
        "search": {
            "ranked_by": f"log p of the whole text per token, {filled.order}",
            "combinations": filled.combinations,
            "tried": len(filled.tried),
            "lengths": [
                {
                    "lengths": each.lengths,
                    "candidates": each.candidates,
                    "best_score_per_token": each.best,
                }
                for each in filled.tried
            ],
        },
    } | dict(fields)


def candidate_object(candidate: "Candidate") -> dict[str, object]:
    """One candidate; `given` are the positions that the template gave."""
    return {
        "text": candidate.text,
        "fills": candidate.fills,
        "lengths": candidate.lengths,
        "score": candidate.score,
        "score_per_token": candidate.score_per_token,
        "log_prob": candidate.log_prob,
        "nfe": candidate.nfe,
        "index": candidate.index,
        "tokens": candidate.tokens,
        "given": [p for p, step in enumerate(candidate.steps) if step < 0],
        "steps": candidate.steps,
        "log_probs": candidate.log_probs,
    }


def as_json(value: object) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
