"""Traces to test with: recorded ones, and ones written by hand."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import log
from pathlib import Path

from esogen.checkpoint.resolve import TOKENIZER
from esogen.trace_file import Header, RecordedText, TraceWriter, digest

COMMAND = "esogen sample --seed 7 'A cat'"


def header_for(folder: Path, vocab_size: int, **fields: object) -> Header:
    """The header of a run of the model in `folder`."""
    settings: Mapping[str, object] = {"alpha_0": 0.5, "raw": False}
    usual: dict[str, object] = {
        "esogen": "0.1.0",
        "command": COMMAND,
        "model": str(folder),
        "revision": "0123456789ab",
        "tokenizer": digest(folder / TOKENIZER),
        "vocab_size": vocab_size,
        "dtype": "fp32",
        "seed": 7,
        "settings": settings,
    }
    return Header(**(usual | fields))  # type: ignore[arg-type]


def text_of(
    tokens: Sequence[int],
    steps: Sequence[int],
    *,
    diffusion_steps: int = 0,
    certainty: float = 0.5,
    index: int = 0,
) -> RecordedText:
    """A text whose every token was decided with the same certainty."""
    log_probs = tuple(log(certainty) if step >= 0 else 0.0 for step in steps)
    return RecordedText(index, 0.25, diffusion_steps, tuple(tokens), tuple(steps), log_probs)


def written(header: Header, texts: Sequence[RecordedText]) -> bytes:
    """The bytes of a whole trace."""
    file = BytesIO()
    writer = TraceWriter(file)
    writer.begin(header)
    for text in texts:
        writer.write(text)
    writer.finish()
    return file.getvalue()


def changed(data: bytes, number: int, **fields: object) -> bytes:
    """A trace in which line `number`, from 1, has other fields; None takes one away."""
    lines = data.splitlines()
    value = json.loads(lines[number - 1]) | fields
    value = {name: field for name, field in value.items() if field is not None}
    lines[number - 1] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def run_over(ids: Sequence[int], *, given: int = 1, diffusion_steps: int = 3) -> RecordedText:
    """A run that decides some of these tokens in a diffusion phase, and the rest left to right.

    Every third token behind the `given` ones is decided early, in steps that go round.
    """
    early = [position for position in range(given, len(ids)) if position % 3 == 0]
    steps = [-1] * len(ids)
    for number, position in enumerate(early):
        steps[position] = number % diffusion_steps
    diffusion_steps = min(diffusion_steps, len(early))
    late = (position for position in range(given, len(ids)) if position % 3)
    for step, position in enumerate(late, diffusion_steps):
        steps[position] = step
    certainty = [0.1, 0.5, 0.9]
    log_probs = tuple(
        log(certainty[position % 3 - 1]) if step >= 0 else 0.0
        for position, step in enumerate(steps)
    )
    return RecordedText(0, 0.5, diffusion_steps, tuple(ids), tuple(steps), log_probs)
