"""The command line: what goes to stdout, to stderr and to files, and what it says goes wrong."""

import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest
from typer.testing import CliRunner

from esogen import language_model
from esogen.checkpoint import cpu_precision, resolve
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.cli import infill_run, main, options, sample
from esogen.cli.app import COMMANDS
from esogen.cli.command import flags_named
from esogen.cli.progress import Audience, drive
from esogen.cli.prompt import read_prompt
from esogen.cli.summary import command_line, sampling_flags
from esogen.cli.terminal import Console
from esogen.errors import UsageError
from esogen.generate import streams
from esogen.generate.draw import DrawSettings
from esogen.generate.plan import ScheduleSettings
from esogen.generate.verify import Agreement
from esogen.sampling import Batch, SampleSettings
from esogen.view.canvas import Decode
from esogen.visible import counted, one_line, visible
from tests.calls import Esogen, Result, call, problem

ESCAPE = "\x1b"
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
FEW = ("--length", "12", "--steps", "4", "--seed", "1")
"""Settings that make a short run, always the same."""

NOWHERE = Console(None, quiet=True, shown=False, steerable=False, colored=False)


@pytest.fixture(autouse=True)
def environment(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESOGEN_MODEL", str(tiny_folder))


@pytest.fixture
def esogen() -> Esogen:
    """Calls `esogen` in this process, with a stdin that is given and no terminal anywhere."""
    return call


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Esogen:
    """Calls `esogen` in this process with those of its streams on a terminal that are named."""

    def call(*words: str, streams: str = "stdin stdout stderr") -> Result:
        with monkeypatch.context() as patch:
            captured = {name: io.BytesIO() for name in ("stdin", "stdout", "stderr")}
            for name, buffer in captured.items():
                patch.setattr(sys, name, io.TextIOWrapper(buffer, encoding="utf-8"))
            terminal = Terminal()
            for name in streams.split():
                patch.setattr(sys, name, terminal.stream("r" if name == "stdin" else "w"))
            code = main(words)
            sys.stderr.flush()
            stdout, stderr = (captured[name].getvalue().decode() for name in ("stdout", "stderr"))
        return Result(code, stdout, stderr, terminal.close())

    return call


class Terminal:
    """A pseudo-terminal that remembers what it was sent."""

    def __init__(self) -> None:
        self._ours, self._theirs = pty.openpty()
        self._sent = bytearray()
        self._streams: list[IO[str]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def stream(self, mode: str) -> IO[str]:
        """One of the streams of a process on this terminal."""
        self._streams.append(os.fdopen(self._theirs, mode, encoding="utf-8", closefd=False))
        return self._streams[-1]

    def close(self) -> str:
        """Hang up; returns all that was sent."""
        for stream in self._streams:
            stream.close()
        os.close(self._theirs)
        self._reader.join()
        os.close(self._ours)
        return self._sent.decode().replace("\r\n", "\n")

    def _read(self) -> None:
        while True:
            try:
                self._sent += os.read(self._ours, 4096)
            except OSError:  # the last of the other side has hung up
                return


# Texts and their formats


def test_stdout_is_the_text_and_nothing_else(esogen: Esogen) -> None:
    result = esogen("sample", "Once upon", *FEW)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("Once upon")
    assert result.stdout.endswith("\n")


def test_the_same_seed_writes_the_same_and_another_does_not(esogen: Esogen) -> None:
    texts = [esogen("sample", "--length", "20", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_a_seed_that_was_drawn_is_told_and_gives_the_text_again(esogen: Esogen) -> None:
    first = esogen("sample", "--length", "12")
    word, seed = first.stderr.split()
    assert word == "seed"
    assert esogen("sample", "--length", "12", "--seed", seed).stdout == first.stdout


@pytest.mark.parametrize(
    ("flags", "between", "end"),
    [
        ((), "\n---\n", "\n"),
        (("--separator", "* * *"), "\n* * *\n", "\n"),
        (("--separator", ""), "\n\n", "\n"),
        (("-0",), "\0", "\0"),
    ],
)
def test_texts_are_parted_as_asked(
    esogen: Esogen, flags: tuple[str, ...], between: str, end: str
) -> None:
    objects = json.loads(esogen("sample", "A", *FEW, "-n", "3", "--format", "json").stdout)
    texts = [each["text"] for each in objects]
    assert esogen("sample", "A", *FEW, "-n", "3", *flags).stdout == between.join(texts) + end


def test_jsonl_has_one_whole_object_per_text(
    esogen: Esogen, tiny_folder: Path, tiny_tokenizer: Tokenizer
) -> None:
    flags = ("--format", "jsonl", "-n", "3", "--batch-size", "2", "--raw", "--dtype", "fp32")
    lines = esogen("sample", "The cat", *FEW, *flags, "--alpha-0", "0.5").stdout.splitlines()
    objects = [json.loads(line) for line in lines]
    assert [each["index"] for each in objects] == [0, 1, 2]
    first = objects[0]
    assert len(first["tokens"]) == first["length"] == 12
    end = tiny_tokenizer.end_of_text
    assert tiny_tokenizer.decode(t for t in first["tokens"] if t != end) == first["text"]
    said = ("seed", "steps", "alpha_0", "schedule", "temperature", "top_p", "top_k", "dtype")
    assert [first[name] for name in said] == [1, 4, 0.5, "random", 1.0, 0.9, None, "fp32"]
    assert first["model"] == str(tiny_folder)
    assert len(first["revision"]) == 12
    assert first["nfe"] > 0
    assert first["log_prob"] < 0
    assert first["seconds"] > 0


def test_jsonl_is_written_as_soon_as_a_batch_is_finished(
    esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []

    def watched(batch: Batch, decode: Decode, who: Audience, n: int) -> None:
        buffer = sys.stdout.buffer
        assert isinstance(buffer, io.BytesIO)
        lines.append(buffer.getvalue().count(b"\n"))
        drive(batch, decode, who, n)

    monkeypatch.setattr(sample, "drive", watched)
    esogen("sample", *FEW, "-n", "5", "--batch-size", "2", "--format", "jsonl")
    assert lines == [0, 2, 4]


def test_json_is_one_array_of_the_same_objects(esogen: Esogen) -> None:
    flags = ("sample", *FEW, "-n", "2", "--format")
    array, lines = json.loads(esogen(*flags, "json").stdout), esogen(*flags, "jsonl").stdout
    assert [a["text"] for a in array] == [json.loads(line)["text"] for line in lines.splitlines()]


def test_a_text_that_is_all_prompt_is_written_as_it_is(
    esogen: Esogen, tiny_tokenizer: Tokenizer
) -> None:
    length = str(len(tiny_tokenizer.encode("The cat")))
    assert esogen("sample", "The cat", "--length", length, "--seed", "0").stdout == "The cat\n"


def test_control_characters_and_markup_pass_through_a_pipe(esogen: Esogen) -> None:
    result = esogen("sample", "[bold]\x1b[31m", "-L", "20", "--seed", "1")
    assert result.stdout.startswith("[bold]\x1b[31m")


# Prompts


@pytest.mark.parametrize(
    ("words", "stdin", "prompt"),
    [
        (("Once",), b"ignored", "Once"),
        ((), b"Once", "Once"),
        (("-",), b"Once\n", "Once"),
        (("Title: ", "-"), b"Cats\r\n", "Title: Cats"),
        (("-", " the end"), b"Cats\n\n", "Cats\n the end"),
        ((), b"", ""),
        ((), "“ä”".encode(), "“ä”"),
    ],
)
def test_the_prompt_is_an_argument_or_stdin_or_both(
    words: tuple[str, ...], stdin: bytes, prompt: str
) -> None:
    with CliRunner().isolation(input=stdin):
        assert read_prompt(words, NOWHERE) == prompt


def test_stdin_that_is_no_pipe_and_no_file_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_prompt((), NOWHERE) == ""
    monkeypatch.setattr(sys, "stdin", None)
    assert read_prompt((), NOWHERE) == ""


def test_a_real_process_with_no_stdin_writes_a_text_without_escape_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "esogen", "sample", "Once", *FEW, "--no-kv-cache"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Once")
    assert ESCAPE.encode() not in done.stdout


# Files


def test_a_file_gets_what_stdout_would(esogen: Esogen, tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    result = esogen("sample", *FEW, "-n", "2", "-o", str(target))
    assert (result.code, result.stdout) == (0, "")
    assert target.read_text() == esogen("sample", *FEW, "-n", "2").stdout
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(
    esogen: Esogen, tmp_path: Path
) -> None:
    link, target = tmp_path / "link", tmp_path / "folder" / "target"
    target.parent.mkdir()
    link.symlink_to(target)
    assert esogen("sample", *FEW, "-o", str(link)).code == 0
    assert link.is_symlink()
    assert target.read_text()


def test_a_device_is_written_to_and_a_dash_is_stdout(esogen: Esogen) -> None:
    assert esogen("sample", *FEW, "-o", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    assert esogen("sample", *FEW, "-o", "-").stdout


# Bad input

WRONG_VALUES = [
    (("--steps", "0"), "--steps is 0; it must be a whole number of at least 1", "--steps 1?"),
    (("--steps", "2.5"), "--steps is '2.5'", "--steps 2?"),
    (("--steps", "many"), "--steps is 'many'", "a whole number"),
    (("--steps", "9" * 30), f"--steps is {'9' * 30}", "at most 9223372036854775807"),
    (("--length", "0"), "--length is 0", "--length 1?"),
    (("--length", "65"), "--length is 65", "this model takes 1 to 64 tokens"),
    (("--alpha-0", "50"), "--alpha-0 is 50; it must be a number from 0 to 1", "--alpha-0 0.5?"),
    (("--alpha-0", "1.5"), "--alpha-0 is 1.5", "did you mean --alpha-0 1?"),
    (("--alpha-0", "-1"), "--alpha-0 is -1", "--alpha-0 0?"),
    (("--alpha-0", "0,5"), "--alpha-0 is '0,5'", "--alpha-0 0.5?"),
    (("--alpha-0", "nan"), "--alpha-0 is nan", "from 0 to 1"),
    (("--schedule", "block"), "--schedule is 'block'", "did you mean --schedule blocks?"),
    (("--schedule", "2"), "--schedule is '2'", "random, blocks, streams"),
    (("--temperature", "-1"), "--temperature is -1", "--temperature 0?"),
    (("--temperature", "inf"), "--temperature is inf", "a number of at least 0"),
    (("--draft", "4", "--steps", "3"), "--draft is 4 and --steps is 3", "leave one of them out"),
    (("--draft-costs", "1,2"), "--draft-costs is given and --draft is not auto", "give both"),
    (("--top-p", "0"), "--top-p is 0; it must be a number above 0 and at most 1", "--top-p 1?"),
    (("--top-p", "90"), "--top-p is 90", "--top-p 0.9?"),
    (("--top-k", "0"), "--top-k is 0", "--top-k 1?"),
    (("--seed", "-1"), "--seed is -1", "--seed 0?"),
    (("--seed", str(2**63)), "--seed is 9223372036854775808", "be at most 9223372036854775807\n"),
    (("--num-samples", "0"), "--num-samples is 0", "--num-samples 1?"),
    (("--batch-size", "0"), "--batch-size is 0", "--batch-size 1?"),
    (("--format", "JSON"), "--format is 'JSON'; it must be one of text, json", "--format json?"),
    (("--theme", "Dark"), "--theme is 'Dark'", "default, colorblind, monochrome"),
    (("--color-by", "steps"), "--color-by is 'steps'", "did you mean --color-by step?"),
    (("--device", "gpu"), "--device is 'gpu'", "did you mean cuda?"),
    (("--dtype", "float32"), "--dtype is 'float32'", "did you mean fp32?"),
    (("--attention", "sdp"), "--attention is 'sdp'", "did you mean sdpa?"),
    (("--attention", "xformers", "--device", "cpu"), "no kernels for device cpu", "use sdpa"),
    (("-0", "--separator", "x"), "--null and --separator exclude each other", "give one"),
    (("--format", "json", "-0"), "--null is for --format text, not json", "leave it out"),
    (("--stepz", "3"), "No such option: --stepz", "--steps"),
    (("Once", "upon", "a"), "PROMPT is 3 arguments", "did you mean 'Once upon a'?"),
    (("-", "-"), "- is given more than once", "leave one out"),
    (("Once upon a time", "-L", "3"), "the prompt has", "raise --length"),
    (("\udcff",), "not valid UTF-8", "convert it first"),
]


@pytest.mark.parametrize(("words", "found", "help_"), WRONG_VALUES, ids=repr)
def test_a_wrong_value_is_told_what_was_found_and_what_to_type(
    esogen: Esogen, tmp_path: Path, words: tuple[str, ...], found: str, help_: str
) -> None:
    line = problem(esogen("sample", *words, "-o", str(tmp_path / "out")), code=2)
    assert found in line
    assert help_ in line
    assert list(tmp_path.iterdir()) == []


def test_stdin_that_is_not_utf_8_is_told_where(esogen: Esogen) -> None:
    line = problem(esogen("sample", stdin=b"caf\xe9 au lait"), code=2)
    assert "stdin is not UTF-8: there is the byte 0xe9 at 3" in line
    assert "iconv" in line


@pytest.mark.parametrize(
    "words",
    [
        "score {}",
        "score --rank {}",
        "score --text ab --order given:{}",
        "infill -f {}",
        "infill --revise 30% {}",
        "train {} -o {}.out",
        "train {}.good -o {}.out --valid {}",
        "tokenize {} -o {}.out",
    ],
)
@pytest.mark.parametrize("content", [b"", b"caf\xe9 au lait"])
def test_a_file_of_text_that_is_empty_or_not_utf_8_is_wrong_usage_everywhere(
    esogen: Esogen, tmp_path: Path, words: str, content: bytes
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    Path(f"{file}.good").write_text("Once upon a time")
    line = problem(esogen(*words.replace("{}", str(file)).split()), code=2)
    assert ("there is the byte 0xe9 at 3; wanted UTF-8" in line) == bool(content)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("replay {}", "wanted a trace: esogen sample --trace FILE records one"),
        ("infill -f {}", "wanted a file that holds a template"),
        ("infill --jsonl -f {}", "wanted a file with a template a line"),
        ("infill --revise 30% {}", "wanted the file of a draft, or - for stdin"),
        ("score {}", "wanted a text file, or - for stdin"),
        ("train {} -o {}.out", "wanted a text file"),
        ("models import {} {}.out", "wanted a .ckpt"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_what_was_wanted(
    esogen: Esogen, tmp_path: Path, words: str, wanted: str
) -> None:
    name = str(tmp_path / "nope")
    line = problem(esogen(*words.replace("{}", name).split()), code=1)
    assert name in line
    assert wanted in line


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_an_export_to_a_file_is_told_to_name_a_folder(
    esogen: Esogen, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    line = problem(esogen("models", "export", str(tmp_path / name)), code=1)
    assert f"{tmp_path / 'file'} is no folder; name another folder" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_closed_stdin_that_was_asked_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="closed; pipe a text in"):
        read_prompt(("-",), NOWHERE)


@pytest.mark.parametrize(
    ("place", "reason"),
    [("missing/out", "No such file or directory"), (".", "Is a directory"), ("file/out", "Not a")],
)
def test_an_output_that_cannot_be_written_is_told_before_the_model_is_loaded(
    esogen: Esogen, tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / place
    line = problem(esogen("sample", *FEW, "-m", "nothing", "-o", str(target)), code=1)
    assert line.startswith(f"esogen: {target} cannot be written: {reason}")
    assert "choose another place with --output" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(esogen: Esogen, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "cannot be written: No space left on device; free some space, or choose another place"
    assert wanted in problem(esogen("sample", *FEW, "-o", "/dev/full"), code=1)
    for words in (("sample", "Once", *FEW), ("--help",), ("models", "list"), ("--version",)):
        messages = io.StringIO()
        with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            patch.setattr(sys, "stderr", messages)
            assert main(words) == 1
        assert re.match(r"esogen: \w[\w ]+ cannot be written: .*; free some", messages.getvalue())


def test_what_a_full_disk_did_not_take_leaves_the_old_file_alone(
    esogen: Esogen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.write_text("old")

    def full(batch: Batch, decode: Decode, who: Audience, n: int) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(sample, "drive", full)
    assert "No space left" in problem(esogen("sample", *FEW, "-o", str(target)), code=1)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("format_", ["text", "jsonl", "json"])
def test_a_closed_pipe_ends_quietly(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    messages = io.StringIO()
    with os.fdopen(writing, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        patch.setattr(sys, "stderr", messages)
        assert main(("sample", "Once", *FEW, "--format", format_)) == 0
    assert messages.getvalue() == ""


@pytest.mark.parametrize("words", ["--help", "sample --help", "models list"])
def test_who_reads_help_or_a_table_may_have_enough(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    call = [sys.executable, "-m", "esogen", *words.split()]
    done = subprocess.run(call, check=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words", ["--help", "sample --help", "models list"])
def test_a_closed_stdout_is_no_defect(words: str) -> None:
    call = shlex.join([sys.executable, "-m", "esogen", *words.split()])
    done = subprocess.run(["sh", "-c", f"{call} >&-"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_model_is_told_the_names_there_are(esogen: Esogen) -> None:
    line = problem(esogen("sample", "-m", "storie"), code=1)
    assert "'storie' is neither a built-in model nor a folder" in line
    assert "did you mean 'stories'?" in line


def test_a_folder_without_the_files_is_told_which_are_missing(
    esogen: Esogen, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_folder / "config.json", tmp_path)
    line = problem(esogen("sample", "-m", str(tmp_path)), code=1)
    assert "lacks model.safetensors and tokenizer.json" in line


def test_an_unknown_command_and_a_missing_one_are_told_the_right_ones(esogen: Esogen) -> None:
    assert "No such command 'smple'. Did you mean 'sample'?" in problem(esogen("smple"), code=2)
    assert "see esogen models --help" in problem(esogen("models"), code=2)


def test_a_message_never_steers_the_terminal(esogen: Esogen) -> None:
    line = problem(esogen("sample", "-m", "a\x1b[31m\nb"), code=1)
    assert ESCAPE not in line


def test_a_defect_is_one_line_too_and_debug_shows_where(
    esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(words: object, console: object, *, shared: bool) -> str:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(sample, "read_prompt", broken)
    assert "a defect of esogen (ZeroDivisionError: oh)" in problem(esogen("sample"), code=1)
    monkeypatch.setenv("ESOGEN_DEBUG", "1")
    result = esogen("sample")
    assert "Traceback (most recent call last)" in result.stderr
    assert "in broken" in result.stderr


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("steps is 0; the steps are few", "--steps is 0; the steps are few"),
        ("n is 3 and alpha_0 is 2", "--num-samples is 3 and --alpha-0 is 2"),
        ("the 3 values of alpha_0 need 4", "the 3 values of --alpha-0 need 4"),
        ("(steps 3 -> 4, alpha_0 [1, 0] -> [0])", "(--steps 3 -> 4, --alpha-0 [1, 0] -> [0])"),
        ("kv_cache is False; leave it out", "--no-kv-cache is given; leave it out"),
        (
            "(kv_cache True -> False, n 7 -> 8)",
            "(--no-kv-cache False -> True, --num-samples 7 -> 8)",
        ),
        ("the length of mdlm is 5; /a/alpha_0 and 'alpha_0' and --alpha-0 stay",) * 2,
        ("mdlm is of the family mdlm",) * 2,
    ],
)
def test_a_message_about_arguments_is_one_about_flags_for_who_typed_those(
    message: str, words: str
) -> None:
    flags = {"steps": "--steps", "n": "--num-samples", "length": "--length"}
    flags |= {"alpha_0": "--alpha-0", "no_kv_cache": "--no-kv-cache"}
    assert flags_named(message, flags) == words
    assert flags_named(message, {}) == message


# Interrupts


def stop_at(
    batches: int, signal_: signal.Signals
) -> Callable[[Batch, Decode, Audience, int], None]:
    """A `drive` that is interrupted in batch number `batches`."""

    def stopped(batch: Batch, decode: Decode, who: Audience, n: int) -> None:
        if batch.indices.start // len(batch.indices) == batches:
            signal.raise_signal(signal_)
        drive(batch, decode, who, n)

    return stopped


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("format_", ["text", "json", "jsonl"])
def test_an_interrupt_keeps_the_finished_texts(
    esogen: Esogen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_: signal.Signals,
    format_: str,
) -> None:
    words = ("sample", *FEW, "--format", format_, "--batch-size", "2")
    whole = esogen(*words, "-n", "4").stdout
    monkeypatch.setattr(sample, "drive", stop_at(2, signal_))
    target = tmp_path / "out"
    for output, wanted in ((("-o", str(target)), str(target)), ((), "stdout")):
        result = esogen(*words, "-n", "6", *output)
        assert result.code == 130
        assert result.stderr == (
            f"esogen: interrupted: kept 4 of 6 texts in {wanted}; the seed is 1\n"
        )
        kept = result.stdout or target.read_text()
        assert kept.count("\n") == whole.count("\n")
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_before_the_first_text_leaves_no_file(
    esogen: Esogen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "drive", stop_at(0, signal.SIGINT))
    line = problem(esogen("sample", *FEW, "-o", str(tmp_path / "out")), code=130)
    assert "nothing was kept" in line
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_anywhere_else_is_one_line(
    esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(words: object, console: object, *, shared: bool) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "read_prompt", stopped)
    assert problem(esogen("sample"), code=130) == "esogen: interrupted\n"


# Terminals


def test_a_terminal_sees_progress_then_the_text_then_what_it_cost(on_terminal: Esogen) -> None:
    screen = on_terminal("sample", "Once", *FEW, "--no-live").screen
    stages = ["starting", "loading", " phase · step 1 of ", "Once", "tokens/s · esogen"]
    found = [screen.index(stage) for stage in stages]
    assert found == sorted(found)
    text = screen[: screen.index("\nOnce") if "\nOnce" in screen else screen.rindex("\x1b[2KOnce")]
    assert text.endswith("\r") or "\r\x1b[2K" in text
    assert screen.endswith("\x1b[0m\n")


def test_the_last_line_holds_the_command_that_writes_the_same(
    on_terminal: Esogen, esogen: Esogen
) -> None:
    flags = ("--alpha-0", "0.25", "--schedule", "streams", "-t", "0.7", "--top-k", "20", "--raw")
    prompt = "Tom's  cat"
    screen = on_terminal("sample", prompt, "-L", "24", "-n", "2", *flags, streams="stderr").screen
    command = screen[screen.index("esogen sample") :].removesuffix("\x1b[0m\n")
    words = shlex.split(command)[1:]
    assert words[-1] == prompt
    first = on_terminal(*words, streams="stderr")
    assert first.stdout == esogen(*words).stdout
    assert command in first.screen


@pytest.mark.parametrize(
    ("words", "last"),
    [
        ("--seed 4294967295", "--seed 4294967295"),
        ("-L 32 --top-p 0.5 -n 2 --seed 1 --dtype fp32 x",) * 2,
        ("-n 1 -s 128 --seed 1 --raw", "--seed 1 --raw"),
        ("-L 32 -s 8 --alpha-0 1 --schedule streams --seed 1 x", "-L 32 -s 8 --seed 1 x"),
    ],
)
def test_the_last_line_says_no_more_than_is_needed_here(
    on_terminal: Esogen, esogen: Esogen, monkeypatch: pytest.MonkeyPatch, words: str, last: str
) -> None:
    monkeypatch.delenv("ESOGEN_MODEL")
    shown = on_terminal("sample", *words.split(), "--no-color", streams="stderr")
    line = shown.screen.split("\x1b[2K")[-1].removesuffix("\n")
    assert line.endswith(f" tokens/s · esogen sample {last}")
    assert len(line) <= 80 or "fp32" in words
    assert esogen("sample", *last.split()).stdout == shown.stdout


def test_the_last_line_names_a_precision_that_is_not_kept(
    on_terminal: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_precision, "kept", lambda: None)
    screen = on_terminal("sample", *FEW, streams="stderr").screen
    assert re.search(r"--seed 1 --dtype (fp32|fp16|bf16)\b", screen)


def test_streams_are_told_apart(on_terminal: Esogen) -> None:
    both = on_terminal("sample", "a\x9b", *FEW, streams="stdout")
    assert ESCAPE not in both.screen + both.stderr
    assert both.screen.startswith("a\ufffd")
    piped = on_terminal("sample", "a\x9b", *FEW, streams="stderr")
    assert piped.stdout.startswith("a\x9b")
    assert "a\x9b" not in piped.screen


@pytest.mark.parametrize("format_", ["text", "json", "jsonl"])
def test_a_terminal_gets_no_control_character_of_a_text(on_terminal: Esogen, format_: str) -> None:
    prompt = "\x1b]0;title\x07 \x9b31m \u202e"
    screen = on_terminal(
        "sample", prompt, "-L", "40", "--seed", "1", "--format", format_, "--quiet"
    ).screen
    assert not {*screen} & {ESCAPE, "\x07", "\x9b", "\u202e"}


@pytest.mark.parametrize(
    ("flags", "environment_", "codes"),
    [
        ((), {}, {"\x1b[2K", "\x1b[2m", "\x1b[0m"}),
        (("--no-color",), {}, {"\x1b[2K"}),
        ((), {"NO_COLOR": "1"}, {"\x1b[2K"}),
        ((), {"TERM": "dumb"}, set()),
        ((), {"TERM": "dumb", "FORCE_COLOR": "1"}, {"\x1b[2m", "\x1b[0m"}),
        ((), {"TERM": ""}, set()),
        ((), {"CI": "true"}, set()),
        (("--quiet",), {}, set()),
    ],
)
def test_colours_and_the_status_line_can_be_refused(
    on_terminal: Esogen,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    environment_: Mapping[str, str],
    codes: set[str],
) -> None:
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    screen = on_terminal("sample", *FEW, "--no-live", *flags).screen
    assert {*re.findall(r"\x1b\[?[0-9;]*.", screen)} == codes


def test_a_terminal_shows_the_text_while_it_is_made_by_itself(on_terminal: Esogen) -> None:
    screen = on_terminal("sample", "Once", *FEW).screen
    stages = ["starting", "loading", ENTER, "diffusion", "step 0 of", LEAVE, "Once", "tokens/s"]
    found = [screen.index(stages[0])]
    for stage in stages[1:]:
        found.append(screen.index(stage, found[-1]))
    assert not {*"░▓"} & {*screen[screen.index(LEAVE) :]}


def test_texts_are_written_between_the_views_of_two_batches(on_terminal: Esogen) -> None:
    screen = on_terminal("sample", "Once", *FEW, "-n", "2", "--batch-size", "1").screen
    normal = re.sub(f"{re.escape(ENTER)}.*?{re.escape(LEAVE)}", "", screen, flags=re.DOTALL)
    assert screen.count(ENTER) == screen.count(LEAVE) == 2
    assert normal.count("\nOnce") + normal.count("\x1b[2KOnce") == 2
    assert "\n---\nOnce" in normal.replace("\r\x1b[2K", "")


@pytest.mark.parametrize(
    ("flags", "environment_"),
    [
        (("--no-live",), {}),
        (("--quiet",), {}),
        ((), {"TERM": "dumb"}),
        ((), {"TERM": "dumb", "FORCE_COLOR": "1"}),
        ((), {"CI": "1"}),
    ],
)
def test_nothing_is_drawn_where_nobody_could_see_it(
    on_terminal: Esogen,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    environment_: Mapping[str, str],
) -> None:
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    assert "\x1b[?" not in on_terminal("sample", *FEW, *flags).screen


@pytest.mark.parametrize(
    ("flags", "environment_", "colored"),
    [
        ((), {}, True),
        ((), {"FORCE_COLOR": "1"}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (("--no-color",), {}, False),
        (("--theme", "monochrome"), {}, False),
        (("--theme", "colorblind", "--color-by", "step"), {}, True),
    ],
)
def test_the_view_has_the_colours_that_were_asked_for(
    on_terminal: Esogen,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    environment_: Mapping[str, str],
    colored: bool,
) -> None:
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    screen = on_terminal("sample", "Once", *FEW, *flags).screen
    assert ENTER in screen
    assert bool(re.search(r"\x1b\[[0-9;]*38;5", screen)) == colored


@pytest.mark.parametrize(
    ("flags", "environment_", "complaint"),
    [
        (("--quiet",), {}, "--live and --quiet exclude each other; give one of them"),
        ((), {"TERM": "dumb"}, "--live needs a terminal that understands escape codes"),
        ((), {"CI": "true"}, "--live needs a terminal that understands escape codes"),
    ],
)
def test_a_view_that_was_asked_for_and_cannot_be_is_told(
    esogen: Esogen,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    environment_: Mapping[str, str],
    complaint: str,
) -> None:
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    assert complaint in problem(esogen("sample", *FEW, "--live", *flags), code=2)


def test_a_view_that_was_asked_for_without_a_terminal_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "esogen", "sample", "--live", *FEW],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        start_new_session=True,  # and so without the terminal that runs the tests
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"esogen: --live needs a terminal, and there is none; leave it out\n"


def test_quiet_shows_nothing_but_the_text(on_terminal: Esogen) -> None:
    result = on_terminal("sample", "Once", *FEW, "--quiet", streams="stderr")
    assert result.screen == ""
    assert result.stdout.startswith("Once")


def test_forced_colours_never_reach_a_pipe(esogen: Esogen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = esogen("sample", *FEW)
    assert ESCAPE not in result.stdout + result.stderr


def test_a_problem_takes_the_status_line_away(on_terminal: Esogen) -> None:
    screen = on_terminal("sample", "--steps", "0").screen
    assert "\r\x1b[2Kesogen: --steps is 0" in screen


def test_one_thing_is_not_several() -> None:
    assert [counted(n, "text") for n in (0, 1, 2, 4096)] == [
        "0 texts",
        "1 text",
        "2 texts",
        "4,096 texts",
    ]


def test_what_is_visible_steers_nothing_and_keeps_the_rest() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = visible(every)
    assert len(shown) == len(every)
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} == {"\n", "\t"}
    assert not {c for c in shown if unicodedata.bidirectional(c) in _DIRECTED}
    assert visible("naïve “quotes” 你好 👩‍👩‍👧\n\t") == "naïve “quotes” 你好 👩‍👩‍👧\n\t"
    assert visible("\x1b[31m\r\x7f") == "␛[31m␍␡"
    assert one_line("a\n\tb  c") == "a b  c"


_DIRECTED = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    "prompt", ["", "it's", "two  spaces", "line\nand\ttab\\n", "\x1b[31m\u202e ä", "-5 degrees"]
)
def test_the_command_again_holds_any_prompt_on_one_line(prompt: str) -> None:
    settings = SampleSettings(8, 7, ScheduleSettings(4, 0.5), DrawSettings(1.0, None, 0.9))
    flags = sampling_flags(settings, n=1, model="m", device="auto", dtype="fp32")
    command = command_line("sample", flags, prompt)
    assert command.isprintable()
    bash = shutil.which("bash") or pytest.skip("needs bash")
    shown = f'esogen() {{ printf %s "${{@: -1}}"; }}; {command}'
    assert subprocess.check_output([bash, "-c", shown]).decode() == prompt


# Verify


def test_verify_reports_that_the_cache_changes_nothing(esogen: Esogen) -> None:
    result = esogen("sample", *FEW, "-n", "2", "--alpha-0", "0.5", "--raw", "--verify", "--quiet")
    assert result.code == 0
    assert result.stderr.startswith("verify: 24 draws, 0 different, ")
    assert "0 unexplained, largest log-probability difference " in result.stderr


@pytest.mark.parametrize(
    ("found", "dtype", "complaint"),
    [
        (Agreement(draws=9, different=3, unexplained=2), "fp32", "2 of 9 draws differ"),
        (Agreement(draws=9, unexplained=1), "bf16", "1 of 9 draws differ"),
        (Agreement(log_prob_difference=1e-3), "fp32", "differ by 0.001, and may by 0.0001"),
        (Agreement(log_prob_difference=float("nan")), "fp32", "differ by nan"),
        (Agreement(log_prob_difference=1e-3, different=2, edge=2), "bf16", None),
    ],
)
def test_verify_fails_where_rounding_is_no_excuse(
    esogen: Esogen,
    monkeypatch: pytest.MonkeyPatch,
    found: Agreement,
    dtype: str,
    complaint: str | None,
) -> None:
    monkeypatch.setattr(Batch, "verify", lambda _: found)
    result = esogen("sample", *FEW, "--verify", "--dtype", dtype)
    assert result.code == (0 if complaint is None else 1)
    assert result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("verify: ")
    assert len(lines) == 1 if complaint is None else complaint in lines[1]


# Models, help, completion


def test_models_are_listed_and_shown(
    esogen: Esogen, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "BUILT_IN", {"tiny": tiny_folder})
    heads, row, *_ = esogen("models", "list").stdout.splitlines()
    assert re.split("  +", heads) == [
        *("name", "parameters", "size", "length"),
        *("last used", "licence", "where"),
    ]
    assert row.split()[0] == "tiny"
    assert row.endswith(f"built in, {tiny_folder}")
    shown = esogen("models", "show", "tiny").stdout
    by_path = esogen("models", "show", str(tiny_folder)).stdout
    assert shown.splitlines()[2:] == by_path.splitlines()[4:]
    facts = dict(line.split(maxsplit=1) for line in shown.splitlines() if "default" not in line)
    assert facts["family"] == "esolm-b"
    assert facts["dtype"] == "F32"
    made = json.loads(esogen("sample", *FEW, "--format", "jsonl").stdout)
    assert facts["revision"] == made["revision"]
    assert "default steps       12\n" in shown


def test_a_list_of_models_fits_a_narrow_terminal(
    on_terminal: Esogen, esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        screen = on_terminal("models", "list").screen
        assert max(map(len, screen.splitlines())) <= columns
        assert screen.split() == esogen("models", "list").stdout.split()
    assert screen == esogen("models", "list").stdout


def test_a_damaged_model_cannot_be_shown(esogen: Esogen, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    (folder / "model.safetensors").write_bytes(b"\x08")
    line = problem(esogen("models", "show", str(folder)), code=1)
    assert "is cut short or damaged" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line_in_the_list(esogen: Esogen, name: str) -> None:
    result = esogen(name, "--help")
    assert (result.code, result.stderr) == (0, "")
    paragraphs = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert paragraphs[:2] == [paragraphs[0], COMMANDS[name]]
    assert paragraphs[0].startswith(f"Usage: esogen {name} ")


def test_without_words_esogen_shows_its_help(esogen: Esogen) -> None:
    bare, asked, short = esogen(), esogen("--help"), esogen("-h")
    assert bare == asked == short
    assert (bare.code, bare.stderr) == (0, "")
    assert "sample" in bare.stdout


def test_the_version_is_that_of_the_package(
    esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.2.3")
    assert esogen("--version").stdout == "esogen 1.2.3\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sample", "--schedule", "b"], ["blocks"]),
        (["sample", "--format", "json"], ["json", "jsonl"]),
        (["sample", "--model", "stor"], ["stories"]),
        (["sample", "--dtype", "fp"], ["fp16", "fp32"]),
        (["sam"], ["sample"]),
    ],
)
def test_shells_are_offered_what_fits(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    typed: list[str],
    offered: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_ESOGEN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["esogen", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 0
    assert capsys.readouterr().out.split() == offered


def test_model_folders_are_offered_to_shells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stories-2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert options.complete_model("sto") == ["stories", "stories-2/"]


def test_constants_that_wait_for_no_torch_are_those_of_the_model() -> None:
    assert infill_run.MAX_COMBINATIONS == language_model.MOST_COMBINATIONS
    assert options.LARGEST == streams.LARGEST_SEED


# Flags that go together, or do not


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder this process is in, with one file of text."""
    (tmp_path / "file").write_text("Once upon a time")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ("sample --output-dir d -o x", "--output-dir", "--output"),
        ("sample --output-dir d -0", "--output-dir", "--null"),
        ("sample --no-live --theme default", "--no-live", "--theme"),
        ("sample --no-kv-cache --attention sdpa", "--no-kv-cache", "--attention"),
        ("infill --jsonl --work x", "--jsonl", "--work"),
        ("infill --jsonl --verify", "--jsonl", "--verify"),
        ("infill --jsonl --plain", "--jsonl", "--plain"),
        ("infill --jsonl -L 5", "--jsonl", "--length"),
        ("infill --jsonl --format text", "--jsonl", "--format text"),
        ("infill --plain --trace x [MASK]", "--plain", "--trace"),
        ("infill --plain --draft 4 [MASK]", "--plain", "--draft"),
        ("infill --resume --starts-with x", "--resume", "--starts-with"),
        ("infill --revise 30% --work x file", "--revise", "--work"),
        ("infill --work x [MASK]", "--work", "TEMPLATE"),
        ("infill --keep x [MASK]", "--keep", "--revise"),
        ("score --text a --lines", "--text", "--lines"),
        ("score --field x --lines file", "--field", "--lines"),
        ("score --compare --rank a b", "--compare", "--rank"),
        ("score --compare --lines a b", "--compare", "--lines"),
        ("score --bound nelbo --order blocks file", "--bound nelbo", "--order"),
        ("score --bound nelbo --html x file", "--bound nelbo", "--html"),
        ("score --order left-to-right --alpha-0 0.5 x", "--order left-to-right", "--alpha-0"),
        ("score --format csv --top 3 x", "--format csv", "--top"),
        ("score --state s --html x file", "--state", "--html"),
        ("score --steps 3 file", "--steps", "--order blocks or --order streams"),
        ("score --steps 3 --order random file", "--steps", "--order blocks or --order streams"),
        ("score --time-samples 3 file", "--time-samples", "--bound nelbo"),
        ("score --rank --top 2 file", "--rank", "--top"),
        ("replay --export x.svg --step 3 x", "--export", "--step"),
        ("replay --step 3 --speed 2 x", "--step", "--speed"),
        ("replay --no-live --color-by step x", "--no-live", "--color-by"),
        ("train file -o out --valid-every 5", "--valid-every", "--valid"),
        ("bench --paper --model x", "--paper", "--model"),
        ("bench --mdlm-steps 3", "--mdlm-steps", "--paper"),
        ("bench --no-kv-cache --attention sdpa", "--no-kv-cache", "--attention"),
    ],
)
def test_a_flag_that_would_change_nothing_beside_another_is_refused_with_both_named(
    in_a_folder: Path, esogen: Esogen, words: str, first: str, second: str
) -> None:
    line = problem(esogen(*words.split()), code=2)
    assert re.match(rf"esogen: {first}\b.*{re.escape(second)}\b", line)
    assert [path.name for path in in_a_folder.iterdir()] == ["file"]


def test_flags_that_go_together_are_taken(esogen: Esogen) -> None:
    for words in ("--order blocks --steps 3", "--bound nelbo --time-samples 2 --alpha-0 0.5"):
        assert esogen("score", "--text", "Once upon a time", *words.split()).code == 0
    assert esogen("sample", *FEW, "--live", "--no-live", "--format", "text").code == 0
