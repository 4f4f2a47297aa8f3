"""The line after a run: what it cost, and the command that gives the same texts again."""

import os
import shlex
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esogen.checkpoint.known import DEFAULT_MODEL, MODEL_VARIABLE
from esogen.visible import counted

if TYPE_CHECKING:
    from esogen.generate.drafting import Drafting
    from esogen.generate.draw import DrawSettings
    from esogen.generate.plan import ScheduleSettings
    from esogen.language_model import LanguageModel
    from esogen.sampling import Sample, SampleSettings


@dataclass(slots=True)
class Tally:
    """What a run has made and spent: texts, tokens decided, network calls, seconds of sampling."""

    texts: int = 0
    tokens: int = 0
    calls: int = 0
    seconds: float = 0.0
    drafts: int = 0
    accepted: int = 0

    def count(self, sample: "Sample") -> None:
        """Add one text; the time of its batch is added once, by whoever ran it."""
        self.texts += 1
        self.tokens += sample.decided
        self.calls += sample.nfe
        self.drafts += sample.drafts
        self.accepted += sample.accepted

    def __str__(self) -> str:
        speed = self.tokens / self.seconds if self.seconds else 0.0
        parts = (
            *((counted(self.texts, "text"),) if self.texts > 1 else ()),
            counted(self.tokens, "token"),
            f"NFE {self.calls / max(self.texts, 1):.4g}",
            *((f"{self.accepted / self.drafts:.0%} of drafts accepted",) if self.drafts else ()),
            f"{self.seconds:.2f} s",
            f"{speed:.0f} tokens/s",
        )
        return " · ".join(parts)


Said = list[tuple[object, ...]]
"""Flags of a command line, each with its value if it takes one."""


def sampling_flags(
    settings: "SampleSettings",
    *,
    n: int,
    model: str,
    device: str,
    dtype: str,
    attention: str = "auto",
    best_of: int = 1,
    unused: Container[str] = (),
) -> Said:
    """The flags of `esogen sample` that give the same texts.

    `unused` names settings that the model's family would refuse.
    """
    return [
        ("-m", model),
        ("-L", settings.length),
        *how_drawn(settings.draw, settings.schedule, unused, settings.drafting),
        ("-n", n),
        *(() if best_of == 1 else (("--best-of", best_of),)),
        ("--seed", settings.seed),
        ("--dtype", dtype),
        *(() if device == "auto" else (("--device", device),)),
        *(() if attention == "auto" else (("--attention", attention),)),
        *((("--raw",),) if settings.raw else ()),
        *(() if settings.kv_cache else (("--no-kv-cache",),)),
    ]


def usual_flags(lm: "LanguageModel", dtype: str) -> Said:
    """Flags that are not needed here: of the default model, and where --dtype `dtype` is `auto`."""
    from esogen.checkpoint.cpu_precision import kept

    again = dtype == "auto" and (lm.device.type != "cpu" or kept() is not None)
    return [
        *((("-m", DEFAULT_MODEL),) if MODEL_VARIABLE not in os.environ else ()),
        *((("--dtype", lm.checkpoint.dtype),) if again else ()),
    ]


def how_drawn(
    draw: "DrawSettings",
    schedule: "ScheduleSettings",
    unused: Container[str] = (),
    drafting: "Drafting | None" = None,
) -> Said:
    """The flags of a schedule and of drawing; none of what is `unused`."""
    return [
        *(() if drafting or "steps" in unused else (("-s", schedule.steps),)),
        *(() if "alpha_0" in unused else (("--alpha-0", schedule.alpha_0),)),
        *(() if "schedule" in unused else (("--schedule", schedule.schedule),)),
        ("-t", draw.temperature),
        ("--top-p", draw.top_p),
        *(() if draw.top_k is None else (("--top-k", draw.top_k),)),
        *(_flags(drafting.fields) if drafting else ()),
    ]


def command_line(name: str, flags: Said, text: str | None) -> str:
    """The command of this name on one line, quoted for a shell; `text` is its argument, if any."""
    words = [name, *(word for flag in flags for word in flag)]
    if text is not None:
        words += ["--", text] if text.startswith("-") and text != "-" else [text]
    return " ".join(["esogen", *map(quoted, words)])


def _flags(fields: Mapping[str, object]) -> Said:
    return [("--" + name.replace("_", "-"), value) for name, value in fields.items()]


def quoted(value: object) -> str:
    """One word of a command line, as a shell takes it."""
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return shlex.quote(text) if text.isprintable() else _escaped(text)


def _escaped(text: str) -> str:
    """In the quotes `$'...'` of bash, zsh and POSIX 2024: on one line, without controls."""
    special = {"\n": r"\n", "\t": r"\t", "\\": r"\\", "'": r"\'"}
    return (
        "$'" + "".join(special.get(c) or (c if c.isprintable() else _octal(c)) for c in text) + "'"
    )


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())
