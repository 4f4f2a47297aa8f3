"""What a step is made of: operations on a CPU, kernels on a GPU, as torch's profiler counts them.

The profiler takes time of its own, which shows where operations are short: shares mean more than
sums.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

from esogen.bench.cases import Case
from esogen.bench.gauges import wait_for
from esogen.bench.subject import Subject

STEPS = 8
"""Steps in the middle of a run that are profiled; what is told is their mean."""

MOST = 15
"""Parts of a step that a table names."""


class Part(NamedTuple):
    """One kind of operation or kernel: how often a step has it, and for how long."""

    name: str
    calls: float
    seconds: float


def profiled(subject: Subject, case: Case) -> list[Part]:
    """The parts of a step, the longest first."""
    plan = subject.plan(case)
    many, steps = min(STEPS, plan.nfe), subject.steps(case, plan)
    for _ in islice(steps, (plan.nfe - many) // 2):
        pass
    wait_for(subject.device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell of itself on stderr
    kind = subject.device.type.upper()
    with profile(activities=[getattr(ProfilerActivity, kind)]) as found:
        for _ in islice(steps, many):
            pass
        wait_for(subject.device)
    time = "self_cpu_time_total" if kind == "CPU" else "self_device_time_total"
    parts = [
        Part(each.key, each.count / many, getattr(each, time) / many / 1e6)
        for each in found.key_averages()
        if each.device_type.name == kind
    ]
    return sorted(parts, key=lambda part: -part.seconds)


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a Markdown table of the profile that a row has."""
    parts = [Part(**each) for each in record["profile"]]
    shown, rest, whole = parts[:MOST], parts[MOST:], _sum("all", parts)
    where = f"{record['name']}, length {record['length']}, batch {record['batch_size']}"
    yield f"\n| one step of {where} | times | µs | share |\n"
    yield "| --- | ---: | ---: | ---: |\n"
    for part in (*shown, _sum(f"{len(rest)} others", rest), whole):
        share = part.seconds / whole.seconds if whole.seconds else 0.0
        yield f"| {part.name} | {part.calls:.3g} | {part.seconds * 1e6:.4g} | {share:.1%} |\n"


def _sum(name: str, parts: Sequence[Part]) -> Part:
    return Part(name, sum(part.calls for part in parts), sum(part.seconds for part in parts))
