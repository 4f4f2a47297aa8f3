"""`esogen sample --trace`: what is recorded is what the run did, whatever becomes of the run."""

import io
import json
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from esogen.cli import main, sample
from esogen.cli.progress import drive
from esogen.language_model import LanguageModel, load
from esogen.sampling import Batch
from esogen.trace import UNDECIDED
from esogen.trace_file import TraceFile
from esogen.view.tape import Tape
from tests.calls import call

FEW = ("-L", "24", "-s", "6", "--alpha-0", "0.5", "--schedule", "random", "--seed", "3")


@pytest.fixture(autouse=True)
def _environment(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESOGEN_MODEL", str(tiny_folder))


def esogen(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a call without terminals."""
    done = call(*words)
    return done.code, done.stdout, done.stderr


def test_a_trace_holds_what_json_says_of_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    words = ("sample", "The cat", *FEW, "-n", "3", "--batch-size", "2", "--format", "jsonl")
    code, stdout, _ = esogen(*words, "--trace", str(path))
    assert code == 0
    trace = TraceFile(path)
    assert len(trace) == 3
    for said, text in zip(map(json.loads, stdout.splitlines()), trace, strict=True):
        end = len(said["tokens"])
        assert text.index == said["index"]
        assert list(text.tokens[:end]) == said["tokens"]
        assert text.calls == said["nfe"]
        assert sum(text.log_probs[:end]) == pytest.approx(said["log_prob"], abs=1e-5)
        assert text.seconds == pytest.approx(said["seconds"], abs=1e-5)
        settings = {name: said[name] for name in ("length", "steps", "alpha_0", "top_p", "top_k")}
        assert settings.items() <= trace.header.settings.items()
    assert trace.header.revision == said["revision"]


def test_the_recorded_command_writes_the_same_trace_again(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert esogen("sample", "The cat", *FEW, "-n", "2", "--trace", str(first))[0] == 0
    program, *words = shlex.split(TraceFile(first).header.command)
    assert program == "esogen"
    assert esogen(*words, "--trace", str(second))[0] == 0
    for one, other in zip(TraceFile(first), TraceFile(second), strict=True):
        assert (one.tokens, one.steps, one.log_probs) == (
            other.tokens,
            other.steps,
            other.log_probs,
        )


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LanguageModel:
    return load(str(tiny_folder), device="cpu", dtype="fp32")


@pytest.mark.parametrize("raw", [True, False])
def test_every_frame_of_a_replay_is_what_stood_there_then(
    tmp_path: Path, model: LanguageModel, raw: bool
) -> None:
    path = tmp_path / "run.jsonl"
    flags = ("--raw",) if raw else ()
    assert esogen("sample", "A", *FEW, *flags, "-n", "3", "--trace", str(path))[0] == 0
    settings = model.settings(
        length=24, steps=6, alpha_0=0.5, schedule="random", seed=3, raw=raw, top_p=0.9
    )
    (batch,) = model.batches("A", settings, n=3)
    canvas_BL = np.full((3, 24), UNDECIDED)
    tapes = [Tape.of(text, None) for text in TraceFile(path)]
    given = model.encode_prompt("A", 24)
    canvas_BL[:, : len(given)] = given
    seen = 0
    for step in batch.steps():
        for row, tokens, positions in zip(
            step.rows, step.tokens_BK.numpy(), step.positions_BK.numpy(), strict=True
        ):
            canvas_BL[row, positions] = tokens
            if step.index < tapes[row].calls:  # later ones are dropped from traces
                frame = tapes[row].frame(step.index + 1)
                assert frame.tokens_L.tolist() == canvas_BL[row].tolist()
                assert frame.sequential == step.sequential
                seen += 1
    assert seen > 12
    assert tapes[0].frame(0).given_L.nonzero()[0].tolist() == [*range(len(given))]


def test_the_recorded_command_fills_the_same_lines_again(tmp_path: Path) -> None:
    first, second, lines = tmp_path / "a", tmp_path / "b", tmp_path / "lines"
    lines.write_text('"[MASK:2] cat"\n"[MASK:3] hat."\n')
    words = ("--jsonl", "--starts-with", "The ", "-n", "2", "-f", str(lines))
    assert esogen("infill", *words, "--trace", str(first))[0] == 0
    program, *again = shlex.split(TraceFile(first).header.command)
    assert program == "esogen"
    assert esogen(*again, "--trace", str(second))[0] == 0
    assert [t.tokens for t in TraceFile(first)] == [t.tokens for t in TraceFile(second)]
    assert len(TraceFile(first)) == 4


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_: signal.Signals
) -> None:
    path = tmp_path / "run.jsonl"
    _interrupt_in_batch(monkeypatch, 2, signal_)
    words = ("sample", *FEW, "-n", "6", "--batch-size", "2", "--trace", str(path))
    code, stdout, stderr = esogen(*words)
    assert code == 130
    assert "kept 4 of 6 texts" in stderr
    assert [text.index for text in TraceFile(path)] == [0, 1, 2, 3]
    replayed = esogen("replay", str(path))[1]
    assert replayed == stdout


def test_a_run_that_finished_nothing_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_in_batch(monkeypatch, 0, signal.SIGINT)
    path = tmp_path / "run.jsonl"
    path.write_text("what was there")
    assert esogen("sample", *FEW, "--trace", str(path))[0] == 130
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def _interrupt_in_batch(
    monkeypatch: pytest.MonkeyPatch, number: int, signal_: signal.Signals
) -> None:
    def stopped(batch: Batch, *others: object) -> None:
        if batch.indices.start // len(batch.indices) == number:
            signal.raise_signal(signal_)
        drive(batch, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(sample, "drive", stopped)


def test_who_reads_has_enough_and_the_trace_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    class Stdout(io.TextIOWrapper):
        @property
        def buffer(self) -> Closed:
            return Closed()

    path = tmp_path / "run.jsonl"
    monkeypatch.setattr(sys, "stdout", Stdout(io.BytesIO()))
    assert main(("sample", "A", *FEW, "-n", "2", "--batch-size", "1", "--trace", str(path))) == 0
    assert len(TraceFile(path)) == 1


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        ("-", 2, "--trace is '-', where the texts go; give it a file of its own"),
        ("out.txt", 2, "where the texts go"),
        (".", 1, "cannot be written: Is a directory; choose another place with --trace"),
        ("/dev/null", 1, "cannot be written: it is a device or a pipe"),
        ("no/such/folder", 1, "cannot be written: No such file or directory"),
    ],
)
def test_a_trace_that_cannot_be_written_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "_load", None)  # would fail if it were called
    found, stdout, stderr = esogen("sample", *FEW, "-o", "out.txt", "--trace", place)
    assert (found, stdout) == (code, "")
    assert stderr.startswith("esogen: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert list(tmp_path.iterdir()) == []
