"""A run of `esogen score`: models loaded, texts scored and written, and a last word on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esogen.checkpoint.resolve import resolve
from esogen.cli.output import Output
from esogen.cli.score_heat import Heat
from esogen.cli.score_output import Record, comparison, writer
from esogen.cli.score_progress import Meter
from esogen.cli.score_sources import Sources
from esogen.cli.score_state import Journal
from esogen.cli.terminal import Console
from esogen.errors import Interrupted, UsageError
from esogen.ranks import Ranks
from esogen.visible import counted

if TYPE_CHECKING:
    from esogen.language_model import LanguageModel
    from esogen.scoring.score import Document, Score
    from esogen.scoring.settings import ScoreSettings


@dataclass(frozen=True, slots=True)
class Shown:
    """What is told of each text, and in which order."""

    format: str
    by: str
    top: int
    compare: bool
    rank: bool


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for, before the model is there that fills in what was not."""

    sources: Sources
    shown: Shown
    model: str
    against: str | None
    device: str
    dtype: str
    batch_size: int | None
    settings: Callable[["LanguageModel"], "ScoreSettings"]

    def check(self, bound: str, orders: int | None) -> None:
        """Raise `UsageError` for flags that exclude each other."""
        shown = self.shown
        if shown.rank and shown.format == "text" and (shown.top or self.against):
            raise UsageError(
                "--rank writes the lines alone; leave --top and --against out, or give --format"
                " jsonl"
            )
        if bound == "nelbo" and (shown.top or shown.by != "surprisal"):
            raise UsageError(
                "--bound nelbo is of a whole text and says nothing of its words; leave --top and"
                " --by out, or ask for --bound exact"
            )
        if bound == "nelbo" and (orders or 1) > 1:
            raise UsageError(
                "--orders is of --bound exact; a NELBO takes --time-samples: leave --orders out"
            )
        if (orders or 1) > 1 and (shown.top or shown.by == "rank"):
            raise UsageError("--top and --by rank are for one order; leave --orders out")


@dataclass(frozen=True, slots=True)
class Side:
    """A model, and how it scores."""

    lm: "LanguageModel"
    settings: "ScoreSettings"

    @property
    def fields(self) -> dict[str, Any]:
        """What JSON says of every text."""
        from esogen.scoring.records import run_fields

        checkpoint = self.lm.checkpoint
        return run_fields(self.settings, checkpoint.name, checkpoint.revision, checkpoint.dtype)


@dataclass(frozen=True, slots=True)
class Run:
    """A job with everything filled in."""

    job: Job
    ranks: Ranks
    mine: Side
    other: Side | None

    def documents(self, after: int) -> Iterator["Document"]:
        """This process's texts behind number `after`; drafts share their orders."""
        from esogen.scoring.score import Document

        together = self.job.shown.compare or self.job.shown.rank
        for index, (name, text) in self.ranks.share(self.job.sources):
            if index > after:
                yield Document(index, name, text, 0 if together else index)

    def identity(self) -> dict[str, Any]:
        """What the figures are a function of."""
        sources, shown = self.job.sources, self.job.shown
        return {
            **self.mine.fields,
            "files": [str(path) for path in sources.paths],
            "bytes": sources.size,
            "text": sources.text,
            "field": sources.reading.field,
            "lines": sources.reading.lines,
            "orders": self.mine.settings.orders,
            "given": [order.tolist() for order in self.mine.settings.given_KL],
            "time_samples": self.mine.settings.time_samples,
            "by": shown.by,
            "top": shown.top,
            "drafts": shown.compare or shown.rank,
            "against": self.other.fields if self.other else None,
            "rank": self.ranks.rank,
            "world": self.ranks.world,
        }


def load_run(job: Job, ranks: Ranks, console: Console) -> Run:
    """Open the models of a job and fill in what was not said."""
    names = [name for name in (job.model, job.against) if name]
    for name in names:
        resolve(name, console)  # what is not there is told, or downloaded, before torch comes
    sides = []
    for name in names:
        console.status(f"loading {name} ...")
        from esogen.language_model import load
        from esogen.scoring.score import check_family

        device = ranks.device(job.device)
        lm = load(name, device=device, dtype=job.dtype, told=console.say)
        sides.append(Side(lm, job.settings(lm)))
        check_family(lm.checkpoint, sides[-1].settings)
    return Run(job, ranks, sides[0], sides[1] if job.against else None)


@contextmanager
def journal_at(path: Path | None, run: Run) -> Iterator[Journal | None]:
    """The journal of this process, if one is wanted."""
    if path is None:
        yield None
        return
    ranks = run.ranks
    if ranks.world > 1:
        path = path.with_name(f"{path.name}.{ranks.rank}-of-{ranks.world}")
    journal = Journal(path, run.identity())
    try:
        yield journal
    finally:
        journal.close()


def execute(
    run: Run, out: Output, heat: Heat, journal: Journal | None, console: Console
) -> "Execution":
    """Score and write, each text as soon as it is finished; Ctrl-C keeps those.

    What came of it has something to `tell` when all files are closed.
    """
    lines = writer(run.job.shown.format, out, run.mine.fields, ranked=run.job.shown.rank)
    made = Execution(run, out, heat, journal, console, Meter(console, run.job.sources))
    try:
        for record in made.records():
            lines.write(record)
    except KeyboardInterrupt:
        made.interrupted = True
    console.clear()
    if made.interrupted and not (made.texts or journal):
        raise Interrupted("interrupted before a text was finished; nothing was kept")
    if made.skipped and not made.texts and run.ranks.world == 1:
        raise next(iter(made.skipped.values()))
    lines.finish()
    heat.finish()
    if len(made.compared) > 1 and run.job.shown.format == "text":
        out.write(comparison(made.compared))
    return made


@dataclass(slots=True, eq=False)
class Execution:
    """A run on its way, and what came of it."""

    run: Run
    out: Output
    heat: Heat
    journal: Journal | None
    console: Console
    meter: Meter
    texts: int = 0
    compared: list[Record] = field(default_factory=list)
    skipped: dict[int, UsageError] = field(default_factory=dict)
    interrupted: bool = False

    def records(self) -> Iterator[Record]:
        """Of each text, in order; those of several processes when all have finished."""
        records, ranks = self._own(), self.run.ranks
        if ranks.world > 1:
            together = ranks.gather(list(records))
            records = iter(sorted(together, key=lambda record: int(record["index"])))
        for record in records:
            self.texts += 1
            if self.run.job.shown.compare:
                self.compared.append(record)
            yield record

    def _own(self) -> Iterator[Record]:
        """This process's texts: first those that an earlier run finished, then new ones."""
        if self.journal:
            yield from self.journal.finished()
        for mine, other in self._scores(self.journal.last if self.journal else -1):
            record, gain_L = _record(self.run, mine, other)
            self.console.clear()
            self.heat.take(mine, gain_L, self.run.mine.lm.checkpoint.tokenizer, self.out)
            if self.journal:
                self.journal.add(record)
            yield record

    def _scores(self, after: int) -> Iterator[tuple["Score", "Score | None"]]:
        documents = self.run.documents(after)
        if self.run.other is None:
            yield from ((score, None) for score in self._of(self.run.mine, documents))
            return
        first, second = tee(documents)
        yield from _paired(self._of(self.run.mine, first), self._of(self.run.other, second))

    def _of(self, side: Side, documents: Iterator["Document"]) -> Iterator["Score"]:
        from esogen.scoring.score import score_documents, tokens_at_once
        from esogen.scoring.surprises import ALTERNATIVES

        job = self.run.job
        rows, length = job.batch_size, side.settings.length
        return score_documents(
            side.lm.checkpoint,
            documents,
            side.settings,
            best=ALTERNATIVES if job.shown.top else 0,
            tokens_at_once=rows * length if rows else tokens_at_once(side.lm.device),
            skip=lambda document, error: self.skipped.setdefault(document.index, error),
            watcher=self.meter,
            told=self.console.report,
        )

    def tell(self) -> None:
        """Say on stderr what is left to be said; raises `Interrupted` where the run was."""
        if self.interrupted:
            later = "; the same command goes on from --state" if self.journal else ""
            kept = counted(self.texts, "text")
            raise Interrupted(f"interrupted: kept {kept} in {self.out.name}{later}")
        if self.skipped:
            first = next(iter(self.skipped.values()))
            self.console.say(f"left out {counted(len(self.skipped), 'text')}; the first: {first}")
        if self.heat.left_out:
            self.console.say(
                "long texts are not painted; --heat-map, --html FILE or --svg FILE does"
            )
        meter = self.meter
        if self.console.shown and meter.tokens:
            speed = meter.tokens / max(meter.seconds, 1e-9)
            self.console.say(
                f"{meter.tokens} tokens · {meter.seconds:.2f} s · {speed:.0f} tokens/s"
            )


def _paired(
    ours: Iterator["Score"], theirs: Iterator["Score"]
) -> Iterator[tuple["Score", "Score"]]:
    """Scores of the same text; one that is too short for either model's tokens is left out."""
    mine, other = next(ours, None), next(theirs, None)
    while mine and other:
        if mine.document.index == other.document.index:
            yield mine, other
            mine, other = next(ours, None), next(theirs, None)
        elif mine.document.index < other.document.index:
            mine = next(ours, None)
        else:
            other = next(theirs, None)


def _record(run: Run, mine: "Score", other: "Score | None") -> tuple[Record, Any]:
    """The record of a text, and its gains where they are wanted."""
    from esogen.scoring import records
    from esogen.scoring.gain import gains
    from esogen.scoring.surprises import surprises

    checkpoint, shown = run.mine.lm.checkpoint, run.job.shown
    record, gain_L = records.record_of(mine, checkpoint.tokenizer), None
    record["model"] = checkpoint.name
    if shown.by == "gain":
        gain_L = gains(checkpoint, mine, run.mine.settings)
        record = records.with_gains(record, gain_L)
    if shown.top:
        found = surprises(mine, checkpoint.tokenizer, shown.top)
        record = records.with_top(record, found)
    if other and run.other:
        theirs = run.other.lm.checkpoint
        named = {**records.record_of(other, theirs.tokenizer), "model": theirs.name}
        record["against"] = {key: named[key] for key in named if key not in ("text", "pieces")}
    return record, gain_L
