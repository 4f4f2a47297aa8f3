"""One row of `esogen bench`: a case, run again and again, with drawing and without, in turn."""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from esogen.bench.cases import Case, Setup
from esogen.bench.floor import bytes_moved, bytes_needed, copy_bandwidth
from esogen.bench.gauges import Spread, Stopwatch, held_memory, wait_for
from esogen.bench.profile import Part, profiled
from esogen.bench.subject import Subject, open_subject, whole_plan
from esogen.checkpoint.memory import free_bytes, out_of_memory
from esogen.checkpoint.placement import choose_device, choose_dtype, narrowed
from esogen.errors import EsogenError
from esogen.generate.drafting import Drafting
from esogen.generate.plan import Plan
from esogen.model.packed import weight_bytes

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of a case.

    `nfe`: calls of a whole run, `timed_steps`: how many of them were made, whose time stands for
    all; `tokens`: what a whole run decides, in all rows. Times are in seconds of a whole run, as
    the clock on the wall counts; `step_seconds` are median and 95th percentile of single steps.
    `needed_bytes`: of weights, cache and a chunk of logits. `floor_seconds`: what moving the bytes
    that must move takes; None of verified drafts, of which the plan does not tell. `accepted`: how
    many of those a call accepted of a row, the mean.
    """

    case: Case
    nfe: int
    timed_steps: int
    tokens: int
    seconds: Spread
    forward_seconds: Spread | None
    step_seconds: tuple[float, float]
    peak_bytes: int | None
    needed_bytes: int
    floor_seconds: float | None
    accepted: float | None = None
    one_shot: tuple[float, float] | None = None
    profile: Sequence[Part] | None = None

    def record(self) -> dict[str, object]:
        """The row as JSON and CSV have it."""
        forward, (first, second) = self.forward_seconds, self.one_shot or (None, None)
        case = {"name": self.case.name, **asdict(self.case)}
        del case["forward_only"], case["timed_steps"]
        case |= {} if self.case.draft is None else {"steps": None}
        parts = None if self.profile is None else [part._asdict() for part in self.profile]
        return case | {
            "nfe": self.nfe,
            "timed_steps": self.timed_steps,
            "tokens": self.tokens,
            "seconds": self.seconds.median,
            "seconds_low": self.seconds.low,
            "seconds_high": self.seconds.high,
            "tokens_per_second": self.tokens / self.seconds.median,
            "forward_only_tokens_per_second": forward and self.tokens / forward.median,
            "drawing_share": forward and 1 - forward.median / self.seconds.median,
            "step_seconds": self.step_seconds[0],
            "step_seconds_95th": self.step_seconds[1],
            "peak_bytes": self.peak_bytes,
            "peak_share": self.peak_bytes and self.peak_bytes / self.needed_bytes,
            "floor_share": self.floor_seconds and self.floor_seconds / self.seconds.median,
            "accepted_per_call": self.accepted,
            "first_run_seconds": first,
            "second_run_seconds": second,
            **({} if parts is None else {"profile": parts}),
        }


@dataclass(frozen=True, slots=True)
class NoRoom:
    """A case that does not fit the memory of its device."""

    case: Case
    device: str

    def __str__(self) -> str:
        rows = self.case.batch_size
        texts, smaller = (
            ("one text", "") if rows == 1 else (f"{rows} texts at once", " --batch-size,")
        )
        return (
            f"{self.case}: {self.device} has too little memory for {texts};"
            f" try a smaller{smaller} --length or --size"
        )


class Bench:
    """Measures cases under one setup, on `device`, which copies `bandwidth` bytes a second.

    `tell` hears how far it is, `told`, once each, what this machine does not do in the usual way.
    """

    def __init__(self, setup: Setup, tell: Tell, told: Tell = warnings.warn) -> None:
        self._setup, self._tell, self._told = setup, tell, told
        self._notes: set[str] = set()
        self.device = choose_device(setup.device, told)
        if note := narrowed(setup.dtype, choose_dtype(setup.dtype, self.device), self.device):
            told(note)
        tell("measuring how fast the device copies ...")
        try:
            self.bandwidth = copy_bandwidth(self.device)
        except torch.OutOfMemoryError as error:
            raise EsogenError(
                f"{self.device} has too little free memory to measure how fast it copies;"
                " end what else runs there, or choose another --device"
            ) from error

    def rows(self, cases: Sequence[Case]) -> Iterator[Row | NoRoom]:
        """Measure one case after the other; those of one network best stand together."""
        subject = None
        for number, case in enumerate(cases, 1):
            place = f"row {number} of {len(cases)}: {case}"
            self._tell(place)
            try:
                if subject is None or not subject.serves(case):
                    subject = None  # the old network leaves before the new one comes
                    subject = open_subject(self._setup, case.family, case.block_size)
                    self._note(subject)
                row = self._row(subject, case, place)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                yield NoRoom(case, str(self.device))
            else:
                yield row

    def _note(self, subject: Subject) -> None:
        for note in subject.notes:
            if note not in self._notes:
                self._told(note)
            self._notes.add(note)

    def _row(self, subject: Subject, case: Case, place: str) -> Row:
        free = free_bytes(subject.device)
        if free is not None and subject.least_bytes(case) > free:
            raise MemoryError  # before minutes are spent on the plan of such a length
        plan, weights = subject.plan(case), weight_bytes(subject.network)
        drafting = subject.drafting(case)
        alone = case.forward_only and not drafting
        wholes, forwards = [], []
        with held_memory(subject.device, weights) as peak:
            _timed(subject, case, plan, drafting)
        if alone:
            _timed(subject, case, plan, drawing=False)
        for repeat in range(self._setup.repeats):
            self._tell(f"{place} · repeat {repeat + 1} of {self._setup.repeats}")
            wholes.append(_timed(subject, case, plan, drafting))
            if alone:
                forwards.append(_timed(subject, case, plan, drawing=False))
        whole = whole_plan(subject.network.config, case)
        longer = 1.0 if drafting else whole.nfe / plan.nfe
        steps = np.concatenate([run.steps for run in wholes])
        cached = case.kv_cache is not False
        moved = None if drafting else bytes_moved(subject.network, whole, cached=cached)
        made = len(wholes[0].steps)
        return Row(
            case,
            made if drafting else whole.nfe,
            made,
            case.batch_size * int(whole.counts_S.sum()),
            Spread.of([run.stretched(longer) for run in wholes]),
            Spread.of([run.stretched(longer) for run in forwards]) if forwards else None,
            (float(np.median(steps)), float(np.percentile(steps, 95))),
            peak.bytes,
            bytes_needed(subject.network, plan, cached=cached),
            moved and moved / self.bandwidth,
            wholes[0].accepted,
            self._one_shot(case, place) if self._setup.one_shot else None,
            profiled(subject, case) if self._setup.profile else None,
        )

    def _one_shot(self, case: Case, place: str) -> tuple[float, float]:
        """The first and second run of a fresh process that holds the network already."""
        self._tell(f"{place} · in a fresh process")
        words = json.dumps({"setup": asdict(self._setup), "case": asdict(case)})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what this process only keeps, that one may need
        command = [sys.executable, "-m", "esogen.bench.measure", words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2]
            raise EsogenError(f"{case}: --one-shot failed in a fresh process: {reason}")
        first, second = json.loads(done.stdout)
        return first, second


@dataclass(frozen=True, slots=True)
class _Timed:
    """Seconds of a run as the clock on the wall counts, and of each of its calls.

    `accepted`: how many drafts a call accepted of a row, the mean, if any were verified.
    """

    whole: float
    steps: list[float]
    accepted: float | None

    def stretched(self, factor: float) -> float:
        """Seconds of a run with so many times the steps."""
        return self.whole + (factor - 1) * sum(self.steps)


def _timed(
    subject: Subject,
    case: Case,
    plan: Plan,
    drafting: Drafting | None = None,
    *,
    drawing: bool = True,
) -> _Timed:
    wait_for(subject.device)
    watch, began = Stopwatch(subject.device), time.perf_counter()
    steps = (
        subject.drafted(case, plan, drafting)
        if drafting
        else subject.steps(case, plan, drawing=drawing)
    )
    calls, accepted, verified = [], 0, 0
    watch.mark()
    for step in steps:
        watch.mark()
        calls.append(step.index)
        if step.examined:
            accepted += int(step.examined.accepted_B.sum())
            verified += len(step.rows)
    wait_for(subject.device)
    seconds = time.perf_counter() - began
    # Rows that decide differently many tokens in a call come one after the other.
    of_calls = np.bincount(calls, watch.intervals())
    return _Timed(seconds, of_calls.tolist(), accepted / verified if verified else None)


def main() -> None:
    """Print the seconds of the first and the second run of a case, given as JSON."""
    words = json.loads(sys.argv[1])
    case = Case(**words["case"])
    subject = open_subject(Setup(**words["setup"]), case.family, case.block_size)
    plan = subject.plan(case)
    print(json.dumps([_timed(subject, case, plan).whole for _ in range(2)]))


if __name__ == "__main__":
    main()
