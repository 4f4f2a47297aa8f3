"""`esogen sample --output-dir`: texts shared out by several processes, and runs that go on."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esogen.cli import sample
from esogen.cli.progress import Audience, drive
from esogen.errors import EsogenError, UsageError
from esogen.language_model import LanguageModel, load
from esogen.ranks import Ranks
from esogen.sampling import Batch
from esogen.shards import Shard
from esogen.view.canvas import Decode
from tests.calls import Esogen, Result, call, problem

RUN = ("The cat", "--length", "16", "--steps", "4", "-n", "7", "--batch-size", "2")
SEEDED = (*RUN, "--seed", "3")
FIRST, SECOND = "00000-of-00002.jsonl", "00001-of-00002.jsonl"

Record = dict[str, Any]
Process = Callable[..., Result]


@pytest.fixture(autouse=True)
def environment(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESOGEN_MODEL", str(tiny_folder))


@pytest.fixture
def esogen() -> Esogen:
    """Calls `esogen sample` in this process, with no terminal anywhere."""

    def sample(*words: str) -> Result:
        return call("sample", *words, "--device", "cpu")

    return sample


@pytest.fixture
def process(esogen: Esogen, monkeypatch: pytest.MonkeyPatch) -> Process:
    """Calls `esogen sample` as process `rank` of `world`."""

    def call(rank: int, *words: str, world: int = 2) -> Result:
        with monkeypatch.context() as patch:
            for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
                patch.setenv(name, str(value))
            return esogen(*words)

    return call


@pytest.fixture
def lm(tiny_folder: Path) -> LanguageModel:
    return load(str(tiny_folder), device="cpu")


def records(folder: Path) -> list[Record]:
    """All texts of a folder, by its index."""
    index = json.loads((folder / "index.json").read_text())
    found = []
    for shard in index["shards"]:
        lines = (folder / shard["file"]).read_bytes().splitlines()
        assert len(lines) == shard["texts"]
        assert [json.loads(line)["index"] for line in lines] == [
            *range(shard["first"], shard["first"] + len(lines))
        ]
        found += lines
    return [json.loads(line) for line in found]


def parsed(result: Result) -> list[Record]:
    """The objects on stdout."""
    return [json.loads(line) for line in result.stdout.encode().splitlines()]


def assert_same(found: list[Record], wanted: list[Record]) -> None:
    """The same texts; batches may differ, so log-probabilities do by rounding, and times do."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=1e-3)
        assert {**one, "log_prob": 0, "seconds": 0} == {**other, "log_prob": 0, "seconds": 0}


@pytest.fixture
def alone(esogen: Esogen) -> list[Record]:
    """The run in one process, on stdout."""
    return parsed(esogen(*SEEDED, "--format", "jsonl"))


# What is written


def test_the_files_of_two_processes_are_together_the_run_of_one(
    process: Process, alone: list[Record], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "out"
    second, first = (process(rank, *SEEDED, "--output-dir", str(folder)) for rank in (1, 0))
    assert (first.code, first.stdout) == (0, "")
    share = f"the first of 2 processes: {folder / FIRST} holds 3 texts, 3 of them new\n"
    assert first.stderr == share
    assert second == Result(0, "", "")
    assert_same(records(folder), alone)
    assert {path.name for path in folder.iterdir()} == {
        *("manifest.json", "index.json", FIRST, SECOND)
    }


def test_the_manifest_says_what_the_run_is_and_the_command_that_gives_it_again(
    esogen: Esogen, alone: list[Record], tiny_folder: Path, tmp_path: Path
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"] == str(tiny_folder)
    said = ("revision", "dtype", "length", "steps", "alpha_0", "schedule", "seed")
    assert {name: manifest[name] for name in said} == {name: alone[0][name] for name in said}
    assert (manifest["texts"], manifest["processes"]) == (7, 1)
    assert (manifest["prompt"], manifest["esogen"]) == ("The cat", "0.1.0")
    assert manifest["command"].startswith("esogen sample -m ")
    assert "--seed 3" in manifest["command"]


def test_best_of_chooses_the_same_texts_in_several_processes(
    esogen: Esogen, process: Process, tmp_path: Path
) -> None:
    best = (*RUN, "--seed", "1", "--best-of", "3", "--output-dir")
    for rank in range(3):
        process(rank, *best, str(tmp_path / "three"), world=3)
    esogen(*best, str(tmp_path / "one"))
    texts = [
        [
            json.loads(line)["text"]
            for path in sorted((tmp_path / name).glob("0*"))
            for line in path.read_bytes().splitlines()
        ]
        for name in ("one", "three")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 7


def test_more_processes_than_texts_leave_some_without_any(process: Process, tmp_path: Path) -> None:
    for rank in range(3):
        result = process(rank, *SEEDED, "-n", "2", "--output-dir", str(tmp_path), world=3)
        assert result.code == 0
    assert len(records(tmp_path)) == 2


def test_a_program_writes_the_same_folder_and_the_command_goes_on_with_it(
    esogen: Esogen, lm: LanguageModel, alone: list[Record], tmp_path: Path
) -> None:
    settings = lm.settings(length=16, steps=4, seed=3)
    made = lm.sample_to(tmp_path, "The cat", settings=settings, n=7, batch_size=2)
    texts = [next(made).text for _ in range(3)]
    made.close()  # type: ignore[attr-defined]
    assert texts == [record["text"] for record in alone[:3]]
    result = esogen(*SEEDED, "--output-dir", str(tmp_path))
    assert result.stderr == f"{tmp_path / '00000-of-00001.jsonl'} holds 7 texts, 4 of them new\n"
    assert_same(records(tmp_path), alone)


def test_every_text_belongs_to_one_process_and_shares_are_even() -> None:
    for count in range(20):
        for world in range(1, 8):
            parts = [Ranks(rank, world).part(count) for rank in range(world)]
            assert [number for part in parts for number in part] == [*range(count)]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# Going on


def test_what_is_finished_is_not_made_again(
    esogen: Esogen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    before = (tmp_path / "00000-of-00001.jsonl").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(sample, "drive", never)
    result = esogen(*SEEDED, "--output-dir", str(tmp_path))
    assert result.code == 0
    assert "holds 7 texts" in result.stderr
    assert "0 of them new" in result.stderr
    assert (tmp_path / "00000-of-00001.jsonl").read_bytes() == before


@pytest.mark.parametrize("lost", [1, 20, 300, 10**6])
def test_a_line_that_was_cut_short_is_made_again(
    esogen: Esogen, alone: list[Record], tmp_path: Path, lost: int
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    path = tmp_path / "00000-of-00001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - lost)])
    assert esogen(*SEEDED, "--output-dir", str(tmp_path)).code == 0
    assert_same(records(tmp_path), alone)


def test_bytes_that_a_crash_of_the_machine_left_are_cut_off(
    esogen: Esogen, alone: list[Record], tmp_path: Path
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    path = tmp_path / "00000-of-00001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + bytes(50) + b"\n" + lines[5])
    assert esogen(*SEEDED, "--output-dir", str(tmp_path)).code == 0
    assert_same(records(tmp_path), alone)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_finished_and_the_same_command_goes_on(
    esogen: Esogen,
    alone: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_: signal.Signals,
) -> None:
    def stopped(batch: Batch, decode: Decode, who: Audience, n: int) -> None:
        if batch.indices.start == 4:
            signal.raise_signal(signal_)
        drive(batch, decode, who, n)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "drive", stopped)
        line = problem(esogen(*SEEDED, "--output-dir", str(tmp_path)), 130)
    assert f"{tmp_path / '00000-of-00001.jsonl'} holds 4 of 7 texts; the same command goes" in line
    assert "3 of them new" in esogen(*SEEDED, "--output-dir", str(tmp_path)).stderr
    assert_same(records(tmp_path), alone)


def test_a_seed_that_was_drawn_is_that_of_every_process_and_of_the_next_run(
    process: Process, tmp_path: Path
) -> None:
    for rank in (0, 1):
        assert process(rank, *RUN, "--output-dir", str(tmp_path)).code == 0
    path = tmp_path / FIRST
    path.write_bytes(path.read_bytes()[:-5])
    assert process(0, *RUN, "--output-dir", str(tmp_path)).code == 0
    seed = json.loads((tmp_path / "manifest.json").read_text())["seed"]
    assert {record["seed"] for record in records(tmp_path)} == {seed}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--steps", "5"), "--steps 4 -> 5"),
        (("--seed", "4"), "--seed 3 -> 4"),
        (("-n", "8"), "--num-samples 7 -> 8"),
        (("--best-of", "2", "--raw"), "--best-of 1 -> 2, --raw False -> True"),
        (("--dtype", "bf16"), " -> bf16"),
        (("--no-kv-cache",), "--no-kv-cache False -> True"),
    ],
)
def test_a_folder_of_another_run_is_refused_by_what_differs(
    esogen: Esogen, tmp_path: Path, other: tuple[str, ...], named: str
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = problem(esogen(*SEEDED, *other, "--output-dir", str(tmp_path)), 2)
    assert f"{tmp_path} holds another run (--" in line
    assert f"{named}); go on with the command it was begun with" in line
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_folder_of_another_prompt_is_refused_without_telling_long_texts(
    esogen: Esogen, tmp_path: Path
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    line = problem(esogen("A dog", *SEEDED[1:], "--output-dir", str(tmp_path)), 2)
    assert "holds another run (prompt is another);" in line


def test_another_number_of_processes_is_another_run(
    esogen: Esogen, process: Process, tmp_path: Path
) -> None:
    process(0, *SEEDED, "--output-dir", str(tmp_path))
    line = problem(esogen(*SEEDED, "--output-dir", str(tmp_path)), 2)
    assert "(processes 2 -> 1)" in line


# What goes wrong


def test_a_folder_of_something_else_is_refused_and_left_alone(
    esogen: Esogen, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    line = problem(esogen(*SEEDED, "--output-dir", str(tmp_path)), 2)
    assert f"{tmp_path} holds thesis.tex and no manifest.json" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "manifest.json").write_text("[]")
    line = problem(esogen(*SEEDED, "--output-dir", str(tmp_path)), 2)
    assert "is no manifest of a run of esogen" in line


def test_a_file_that_another_process_is_writing_is_left_alone(
    esogen: Esogen, tmp_path: Path
) -> None:
    esogen(*SEEDED, "--output-dir", str(tmp_path))
    with (tmp_path / "00000-of-00001.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = problem(esogen(*SEEDED, "--output-dir", str(tmp_path)), 1)
    assert "another process is writing" in line


def test_a_place_that_cannot_be_a_folder_is_told(esogen: Esogen, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = problem(esogen(*SEEDED, "--output-dir", str(tmp_path / "file")), 1)
    assert f"{tmp_path / 'file'} is no folder; choose another place" in line


def test_what_a_disk_does_not_take_is_told_and_made_again(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Shard(tmp_path, {}, 9, Ranks()) as shard:
        shard.add({"text": "a" * 40})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with pytest.raises(EsogenError, match=r"00000-of-00001.jsonl cannot be written: File"):
                shard.add({"text": "b" * 90})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Shard(tmp_path, {}, 9, Ranks()) as again:
        assert again.rest == range(shard.done, 9)
    assert all(json.loads(line) for line in shard.path.read_bytes().splitlines())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--output-dir", "out", "-o", "a"), "--output-dir and --output exclude each other"),
        (("--output-dir", "out", "--trace", "a"), "--output-dir and --trace exclude each other"),
        (("--output-dir", "out", "--format", "json"), "writes JSON lines; leave --format json out"),
        (("--output-dir", "out", "--format", "text"), "writes JSON lines; leave --format text out"),
        (("--output-dir", "out", "-0"), "--output-dir and --null exclude each other"),
        (("--devices", "cpu"), "--device and --devices exclude each other"),
    ],
)
def test_flags_that_exclude_a_folder_are_named(
    esogen: Esogen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in problem(esogen(*SEEDED, *words), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("a", "--devices", "cpu,cpu"), "several processes write into a folder; give --output-dir"),
        (("a", "--devices", "cpu,gpu"), "--devices is 'cpu,gpu': device is 'gpu'"),
        (("a", "--devices", "cpu,"), "--devices is 'cpu,': device is ''"),
        (("--devices", "cpu,cpu", "--output-dir", "out"), "cannot read one stdin; give PROMPT"),
        (("-", "--devices", "cpu,cpu", "--output-dir", "out"), "cannot read one stdin"),
    ],
)
def test_devices_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in problem(call("sample", *words), 2)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_several_processes_says_what_is_wrong_for_all(
    process: Process, tmp_path: Path
) -> None:
    assert "give --output-dir DIR" in problem(process(0, *SEEDED), 2)
    assert process(1, *SEEDED) == Result(2, "", "")
    (tmp_path / "file").touch()
    alone = process(1, *SEEDED, "--output-dir", str(tmp_path / "file"))
    assert "is no folder" in problem(alone, 1)


def test_each_process_has_a_device_of_those_that_were_named() -> None:
    named = ("cuda:1", "cpu")
    assert [Ranks(r, 2, r).device("auto", named) for r in (0, 1)] == [*named]
    assert Ranks(3, 4, 1).device("auto", named) == "cpu"
    with pytest.raises(UsageError, match="has no device: cuda:1, cpu are 2"):
        Ranks(2, 3, 2).device("auto", named)


# Real processes


def started(launcher: tuple[str, ...], *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "sample", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "esogen")


@pytest.mark.slow
def test_torchrun_shares_the_texts_out(alone: list[Record], tmp_path: Path) -> None:
    running = started(TORCHRUN, *SEEDED, "--device", "cpu", "--output-dir", str(tmp_path))
    stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stdout) == (0, ""), stderr
    assert_same(records(tmp_path), alone)


@pytest.mark.slow
def test_devices_start_a_process_on_each_which_an_interrupt_ends_and_the_same_command_goes_on(
    esogen: Esogen, tmp_path: Path
) -> None:
    run = ("The cat", "-L", "48", "--steps", "48", "-n", "300", "--seed", "3", "--batch-size", "2")
    folder = tmp_path / "out"
    words = (*run, "--devices", "cpu,cpu", "--output-dir", str(folder))
    running = started(("esogen",), *words)
    while not all(
        (folder / name).exists() and (folder / name).stat().st_size for name in (FIRST, SECOND)
    ):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stdout) == (130, ""), stderr
    assert " of 150 texts; the same" in stderr
    assert "the same command goes on" in stderr
    kept = [line for name in (FIRST, SECOND) for line in (folder / name).read_bytes().splitlines()]
    assert 0 < len(kept) < 300
    running = started(("esogen",), *words)
    stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stdout) == (0, ""), stderr
    together = records(folder)
    assert {json.loads(line)["text"] for line in kept} <= {each["text"] for each in together}
    assert_same(together, parsed(esogen(*run, "--batch-size", "50", "--format", "jsonl")))


@pytest.mark.slow
def test_what_every_process_finds_wrong_is_one_line(tmp_path: Path) -> None:
    wrong = ("a", "--devices", "cpu,cpu", "--output-dir", str(tmp_path / "out"), "-L", "999")
    running = started(("esogen",), *wrong)
    stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stdout) == (2, "")
    assert stderr == "esogen: --length is 999; this model takes 1 to 64 tokens\n"
