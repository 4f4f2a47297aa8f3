"""`--trace`: a run that is sampled, into a trace file that appears whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import typer

from esogen.atomic import replacing
from esogen.errors import EsogenError, UsageError

if TYPE_CHECKING:
    from esogen.cli.infill_run import Run as InfillRun
    from esogen.cli.sample import Run
    from esogen.generate.fill import Row
    from esogen.ranking.infilling import InfillBatch
    from esogen.sampling import Batch
    from esogen.trace_file import Header, RecordedText, TraceWriter


class Recording(Protocol):
    """Takes down a run: once what it is, then each batch that is finished."""

    def begin(self, run: "Run | InfillRun") -> None:
        """Take down what holds for all texts."""
        ...

    def write(self, batch: "Batch | InfillBatch") -> None:
        """Take down the texts of a finished batch."""
        ...


@contextmanager
def recording(path: Path | None, *, beside: Path | None) -> Iterator[Recording]:
    """A recording into `path`, or one that keeps nothing when it is None.

    The file appears when the block ends well. Raises `UsageError` for a place that the texts go to
    (`beside` is where), `EsogenError` when it cannot be written.
    """
    if path is None:
        yield _Nowhere()
        return
    if path == Path("-") or (beside and path.resolve() == beside.resolve()):
        raise UsageError(f"--trace is {str(path)!r}, where the texts go; give it a file of its own")
    from esogen.trace_file import TraceWriter

    enough: typer.Exit | None = None
    with _opened(path) as file:
        writer = TraceWriter(file)
        try:
            yield _Recording(writer, path)
        except typer.Exit as error:  # whoever reads stdout has enough; what is finished is kept
            enough = error
        with _naming(path):
            writer.finish()
            file.flush()
    if enough:
        raise enough


class _Nowhere:
    """Nobody asked for a trace."""

    def begin(self, run: "Run | InfillRun") -> None:
        """Nothing is kept."""

    def write(self, batch: "Batch | InfillBatch") -> None:
        """Nothing is kept."""


class _Recording:
    def __init__(self, writer: "TraceWriter", path: Path) -> None:
        self._writer, self._path = writer, path

    def begin(self, run: "Run | InfillRun") -> None:
        with _naming(self._path):
            self._writer.begin(_header(run))

    def write(self, batch: "Batch | InfillBatch") -> None:
        from esogen.ranking.infilling import InfillBatch

        made = _candidates(batch) if isinstance(batch, InfillBatch) else _samples(batch)
        for text in made:
            with _naming(self._path):
                self._writer.write(text)


def _samples(batch: "Batch") -> "Iterator[RecordedText]":
    from esogen.trace_file import RecordedText

    trace = batch.trace()
    for row, index in enumerate(batch.indices):
        yield RecordedText(
            index=index,
            seconds=batch.seconds,
            diffusion_steps=int(trace.diffusion_steps_B[row]),
            tokens=tuple(trace.tokens_BL[row].tolist()),
            steps=tuple(trace.steps_BL[row].tolist()),
            log_probs=tuple(trace.log_probs_BL[row].tolist()),
            rounds=tuple(map(tuple, trace.rounds[row].tolist())),
        )


def _candidates(batch: "InfillBatch") -> "Iterator[RecordedText]":
    from esogen.trace_file import RecordedText

    for index, task, made in zip(batch.indices, batch.tasks, batch.candidates(), strict=True):
        yield RecordedText(
            index=index,
            seconds=batch.seconds,
            diffusion_steps=_diffusion_steps(task.row, made.steps),
            tokens=made.tokens,
            steps=made.steps,
            log_probs=made.log_probs,
            rounds=made.rounds,
        )


def _diffusion_steps(row: "Row", steps: "tuple[int, ...]") -> int:
    """Calls until the last that decided for the diffusion phase."""
    early = row.order_L[row.plan.given : row.plan.late]
    return max((steps[position] + 1 for position in early), default=0)


def _header(run: "Run | InfillRun") -> "Header":
    from importlib.metadata import version

    from esogen.trace_file import Header, digest

    fields = dict(run.fields())
    checkpoint = run.lm.checkpoint
    model, revision, dtype = (str(fields.pop(name)) for name in ("model", "revision", "dtype"))
    return Header(
        esogen=version("esogen"),
        command=run.again(),
        model=model,
        revision=revision,
        tokenizer=digest(checkpoint.files.tokenizer),
        vocab_size=checkpoint.config.vocab_size,
        dtype=dtype,
        seed=run.settings.seed,
        settings={**fields, "raw": run.raw},
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        with _naming(path):
            scratch = stack.enter_context(replacing(_file(path)))
            file = stack.enter_context(scratch.open("wb"))
        yield file


def _file(path: Path) -> Path:
    """Where a file can be renamed to; raises `OSError` for a folder, a device or a pipe."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe")
    return path.resolve()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space, or " if error.errno == errno.ENOSPC else ""
        raise EsogenError(
            f"{path} cannot be written: {error.strerror or error};"
            f" {hint}choose another place with --trace"
        ) from error
