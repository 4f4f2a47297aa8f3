"""`esogen bench`: what it counts, against sums by hand; what it writes, keeps and refuses."""

import csv
import io
import json
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from esogen.bench import floor, gpu, plot
from esogen.bench.cases import SIZES, Case, Grid, Setup, sized
from esogen.bench.gauges import Stopwatch, held_memory
from esogen.bench.machine import commit
from esogen.bench.measure import Bench, NoRoom, Row
from esogen.bench.paper import points
from esogen.bench.subject import Subject, open_subject, random_network, whole_plan
from esogen.bench.two_samples import p_value
from esogen.checkpoint.config_file import CardDefaults
from esogen.cli import main
from esogen.generate.denoise import Calls, Progress, Step, denoise
from esogen.generate.drafting import Drafting
from esogen.generate.draw import Drawing, Drawn, DrawSettings, draw
from esogen.generate.plan import Plan, ScheduleSettings, make_plan
from esogen.model.config import Family
from esogen.model.packed import weight_bytes
from esogen.peers.family import calls_for
from tests.runs import NO_POSITIONS, begin

TINY = ("bench", "--size", "tiny", "--repeats", "1")
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The last line of stdout."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the last line."""
        found: list[dict[str, Any]] = self.document["rows"]
        return found


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast memory is copied is not what is tested."""
    monkeypatch.setitem(floor.COPIED, "cpu", 2**20)


def esogen(*words: str) -> Result:
    with CliRunner().isolation(input=b"") as (stdout, stderr, _):
        code = main(words)
        sys.stderr.flush()
        return Result(code, stdout.getvalue().decode(), stderr.getvalue().decode())


def tiny(family: Family = "esolm-b", block_size: int | None = None) -> Subject:
    return open_subject(Setup("tiny", dtype="fp32"), family, block_size)


# What is counted


def test_a_row_counts_the_calls_of_the_plan_and_the_tokens_it_decides() -> None:
    done = esogen(*TINY, "-L", "24,40", "-s", "6", "--batch-size", "1,3", "--alpha-0", "0.5")
    assert done.code == 0, done.stderr
    expected = []
    for length in (24, 40):
        blank = np.arange(length)
        plan = make_plan(ScheduleSettings(6, 0.5), 0, range(1), NO_POSITIONS, blank)
        expected += [(length, rows, plan.nfe, rows * length) for rows in (1, 3)]
    keys = ("length", "batch_size", "nfe", "tokens")
    assert [tuple(row[key] for key in keys) for row in done.rows] == expected
    for row in done.rows:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])


def test_families_are_measured_with_what_they_have_a_use_for() -> None:
    words = ("--family", "esolm-b,mdlm,bd3lm,ar", "-s", "4,8", "--block-size", "4,8")
    done = esogen(*TINY, "-L", "16", *words)
    assert done.code == 0, done.stderr
    found = [(row["name"], row["steps"], row["alpha_0"], row["kv_cache"]) for row in done.rows]
    assert found == [
        ("esolm-b", 4, 1.0, True),
        ("esolm-b", 8, 1.0, True),
        ("mdlm", 4, None, None),
        ("mdlm", 8, None, None),
        ("bd3lm 4", None, None, True),
        ("bd3lm 8", None, None, True),
        ("ar", None, None, True),
    ]
    # One token a call, and the token that every text begins from is no token of it.
    assert [(row["nfe"], row["tokens"]) for row in done.rows[4:]] == [(16, 16)] * 3


def test_a_row_of_verified_drafts_counts_calls_and_what_they_accepted() -> None:
    words = ("--draft", "1,3", "--schedule", "streams")
    done = esogen(*TINY, "-L", "40", "--family", "esolm-b,mdlm", *words)
    assert done.code == 0, done.stderr
    one, drafted, mdlm = done.rows[0], done.rows[1], done.rows[-1]
    assert [row["draft"] for row in done.rows] == [1, 3, None]
    assert (one["nfe"], one["accepted_per_call"], one["steps"]) == (40, None, None)
    assert (drafted["name"], drafted["tokens"], drafted["steps"]) == ("esolm-b, draft 3", 40, None)
    # Beside what is accepted a call decides one token more, but for the last, maybe.
    decided = drafted["nfe"] * (1 + drafted["accepted_per_call"])
    assert 40 <= round(decided) <= 41
    assert drafted["nfe"] < 40
    assert (drafted["floor_share"], drafted["drawing_share"]) == (None, None)
    assert (mdlm["nfe"], mdlm["steps"]) == (10, 10)


def test_as_many_drafts_as_pay_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Drafting.adaptive((1.0, 1.01, 1.02))
    monkeypatch.setattr("esogen.bench.subject.measured", lambda *_, **__: found)
    done = esogen(*TINY, "-L", "40", "--draft", "auto", "--batch-size", "2")
    assert done.code == 0, done.stderr
    (row,) = done.rows
    assert row["name"] == "esolm-b, draft auto"
    assert row["nfe"] < 40
    assert row["accepted_per_call"] > 0


def test_forward_only_is_the_same_run_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    pause, drawn = 0.005, []

    def slow(logits_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings) -> Drawn:
        drawn.append(len(logits_KV))
        time.sleep(pause)
        return draw(logits_KV, uniforms_K, settings)

    monkeypatch.setattr("esogen.bench.subject.choose_draw", lambda device: Drawing(slow))
    case = Case("esolm-b", 32, 1, 8, 1.0, "random")
    (row,) = Bench(Setup("tiny", repeats=2), lambda text: None).rows([case])
    assert isinstance(row, Row)
    assert row.forward_seconds is not None
    assert sum(drawn) == 3 * row.tokens  # once unmeasured, twice measured; never without drawing
    record = row.record()
    assert row.seconds.low >= pause * row.nfe
    assert record["drawing_share"] == pytest.approx(
        1 - row.forward_seconds.median / row.seconds.median
    )
    assert row.step_seconds[0] >= pause
    assert row.step_seconds[0] <= row.step_seconds[1] <= row.seconds.high


def test_bytes_of_weights_and_cache_are_those_counted_by_hand() -> None:
    subject, case = tiny(), Case("esolm-b", 6, 5, 6, 1.0, "streams")
    config = SIZES["tiny"]
    D, V = config.hidden_size, config.vocab_size
    block = (3 * D * D + 3 * D) + D * D + (4 * D * D + 4 * D) + (4 * D * D + D)
    output = V * D + V
    frequencies = config.head_size // 2
    weights = 4 * (config.n_blocks * block + output + frequencies)
    assert weight_bytes(subject.network) == weights + 4 * V * D
    plan = whole_plan(config, case)
    assert plan.counts_S.tolist() == [1] * 6
    stands = 0 + 0 + 1 + 2 + 3 + 4  # a step behind: the token decided last is fed anew
    token = 4 * 2 * config.n_blocks * D
    assert floor.bytes_moved(subject.network, plan, cached=False) == 6 * weights
    moved = floor.bytes_moved(subject.network, plan, cached=True)
    assert moved == 6 * weights + 5 * token * stands


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("family", ["esolm-b", "esolm-a", "bd3lm", "ar"])
def test_what_stands_is_what_the_cache_holds_before_each_call(family: Family, begins: bool) -> None:
    config = sized("tiny", family, 4 if family == "bd3lm" else None)
    config = replace(config, bos_id=5 if begins or family == "ar" else None)
    network = random_network(config, CPU, torch.float32)
    plan = whole_plan(config, Case(family, 22, 2, 7, 0.5))
    calls, seen = calls_for(network, plan, cached=True), []

    class Watched:
        def __call__(self, progress: Progress, decided: int, fresh: int, count: int) -> Tensor:
            seen.append(calls._through.cache.lengths_B.tolist())  # type: ignore[attr-defined]
            return calls(progress, decided, fresh, count)

        def keep(self, kept: np.ndarray[Any, Any]) -> None:
            raise AssertionError("no row ends")

    watched: Calls = Watched()
    for _ in denoise(network, watched, plan, begin(network, plan, range(2)), DrawSettings()):
        pass
    assert seen == [[stands] * 2 for stands in floor.standing(config, plan).tolist()]


def test_sets_of_one_law_are_told_from_sets_of_another() -> None:
    """Against the statistic summed stretch by stretch; laws differ in tokens, or in pairs only."""
    chance = np.random.default_rng(0)
    first, second = chance.integers(0, 7, (2, 40, 30))
    shuffled = chance.permuted(np.concatenate([first, second]), axis=0)
    assert p_value(first, second, 1) > 0.01
    assert p_value(shuffled[:40], shuffled[40:], 2) > 0.01
    assert p_value(np.minimum(first, 5), second, 1) < 0.001
    ascending = np.sort(first.reshape(40, 10, 3), -1).reshape(40, 30)
    assert p_value(ascending, first, 1) > 0.5
    assert p_value(ascending, first, 2) < 0.001


def test_as_far_apart_as_chance_would_have_them_is_counted() -> None:
    """Four texts of one token each can be parted in six ways, two of them as far as these are."""
    first, second = np.array([[0], [0]]), np.array([[1], [1]])
    assert p_value(first, second, 1) == pytest.approx(2 / 6, abs=0.02)
    assert p_value(first, first, 1) == 1.0


def test_the_share_of_the_floor_is_bytes_over_bandwidth_over_time() -> None:
    case = Case("ar", 12, 2)
    bench = Bench(Setup("tiny", dtype="fp32", repeats=2), lambda text: None)
    (row,) = bench.rows([case])
    assert isinstance(row, Row)
    subject = tiny("ar")
    moved = floor.bytes_moved(subject.network, subject.plan(case), cached=True)
    assert row.floor_seconds is not None
    assert row.floor_seconds == pytest.approx(moved / bench.bandwidth)
    assert row.record()["floor_share"] == pytest.approx(row.floor_seconds / row.seconds.median)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_holds_the_cache_also_where_a_larger_run_was_before() -> None:
    subject = tiny()
    weights = weight_bytes(subject.network)
    for length, rows in ((256, 96), (256, 32)):
        case = Case("esolm-b", length, rows, 4, 1.0, "random")
        config = subject.network.config
        cache = 4 * 2 * config.n_blocks * config.hidden_size * length * rows
        with held_memory(CPU, weights) as peak:
            for _ in subject.steps(case, subject.plan(case)):
                pass
        assert peak.bytes is not None
        assert peak.bytes > weights + 0.9 * cache


def test_random_weights_are_neither_flat_nor_zero() -> None:
    config = replace(sized("small", "esolm-b", None), hidden_size=128, n_heads=2, n_blocks=1)
    network = random_network(config, CPU, torch.float32)
    hidden = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    log_probs = network.logits(hidden).log_softmax(-1)[..., :-1]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert 5 < entropy.mean() < 6
    matrices = [tensor for tensor in network.state_dict().values() if tensor.ndim == 2]
    assert all((matrix != 0).all(-1).any() for matrix in matrices)


def test_the_stopwatch_of_a_gpu_waits_only_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for torch's events and synchronisation."""
    log: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.number = len(log)

        def record(self, stream: str) -> None:
            log.append(f"record on {stream}")

        def elapsed_time(self, later: "Event") -> float:
            return 1000.0 * (later.number - self.number)

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: log.append(f"wait for {device}"))
    watch = Stopwatch(torch.device("cuda:1"))
    for _ in range(3):
        watch.mark()
    assert log == ["record on stream of cuda:1"] * 3
    assert watch.intervals() == [1.0, 1.0]
    assert log[3:] == ["wait for cuda:1"]


def test_the_stopwatch_of_a_cpu_tells_time() -> None:
    watch = Stopwatch(CPU)
    for pause in (0.0, 0.02, 0.04):
        time.sleep(pause)
        watch.mark()
    first, second = watch.intervals()
    assert first >= 0.02
    assert second >= 0.04


def test_a_fresh_process_tells_its_first_and_second_run() -> None:
    done = esogen(*TINY, "-L", "16", "--one-shot")
    assert done.code == 0, done.stderr
    (row,) = done.rows
    assert row["first_run_seconds"] > 0
    assert row["second_run_seconds"] > 0
    assert "| first run, s | second run, s |" in done.stdout


# The grid


def test_a_grid_takes_what_is_not_given_from_the_card() -> None:
    config = replace(SIZES["tiny"], family="bd3lm", block_size=8)
    (case,) = Grid().cases(config, CardDefaults(length=48, steps=5))
    assert case == Case("bd3lm", 48, block_size=8)
    (case,) = Grid().cases(SIZES["tiny"], CardDefaults())
    assert case == Case("esolm-b", 64, 1, 16, 1.0, "random")


def test_random_weights_take_a_length_over_the_models() -> None:
    done = esogen(*TINY, "-L", "100", "-s", "3")
    assert (done.code, done.rows[0]["tokens"]) == (0, 100)


def test_a_checkpoint_is_measured_as_its_card_asks(tiny_folder: Path) -> None:
    done = esogen("bench", "-m", str(tiny_folder), "--repeats", "1", "--no-kv-cache")
    assert done.code == 0, done.stderr
    (row,) = done.rows
    assert (row["length"], row["steps"], row["kv_cache"]) == (48, 12, False)
    assert row["name"] == "esolm-b without cache"


# What is written


def test_what_serves_instead_of_the_usual_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "tokens are drawn by sorting (no Triton here)"
    monkeypatch.setattr("esogen.bench.subject.choose_draw", lambda device: Drawing(draw, note))
    done = esogen(*TINY, "-L", "16", "--family", "mdlm,ar")
    assert done.stderr.count(note) == 1


def test_a_profile_tells_what_a_step_is_made_of() -> None:
    """Tokens are embedded once, and normed twice a block and before the output layer."""
    words = ("-L", "24", "-s", "24", "--schedule", "streams", "--profile")
    done = esogen(*TINY, *words)
    assert (done.code, done.stderr) == (0, "")
    (row,) = done.rows
    parts = {part["name"]: part for part in row["profile"]}
    assert parts["aten::embedding"]["calls"] == 1
    assert parts["aten::native_layer_norm"]["calls"] == 2 * SIZES["tiny"].n_blocks + 1
    seconds = [part["seconds"] for part in row["profile"]]
    assert seconds == sorted(seconds, reverse=True)
    heading = "| one step of esolm-b, length 24, batch 1 | times | µs | share |"
    lines = done.stdout.splitlines()
    assert lines[lines.index(heading) + 2].startswith(f"| {row['profile'][0]['name']} | ")
    assert lines[-2].startswith("| all | ")
    assert lines[-2].endswith(" | 100.0% |")
    refused = esogen(*TINY, *words, "--format", "csv")
    assert (refused.code, "--format csv exclude" in refused.stderr) == (2, True)


def test_the_last_line_says_on_what_it_was_measured() -> None:
    document = esogen(*TINY, "-L", "8").document
    assert document["device"] == "cpu"
    assert document["machine"]["torch"] == torch.__version__
    assert {"python", "esogen", "commit", "threads", "processor"} <= set(document["machine"])
    assert document["copy_bytes_per_second"] > 0
    assert document["clocks"]
    assert document["setup"]["size"] == "tiny"


def test_rows_are_written_in_every_format(tmp_path: Path) -> None:
    words = (*TINY, "-L", "8,16")
    read: Mapping[str, Callable[[str], list[Any]]] = {
        "md": lambda text: text.splitlines()[2:],
        "csv": lambda text: list(csv.DictReader(io.StringIO(text))),
        "json": lambda text: list(json.loads(text)["rows"]),
        "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    }
    for form, parse in read.items():
        file = tmp_path / f"rows.{form}"
        done = esogen(*words, "--format", form, "-o", str(file))
        assert (done.code, done.stdout.count("\n")) == (0, 1)
        rows = parse(file.read_text())
        assert len(rows) == len(done.rows) == 2
        if form == "md":
            assert [row.split(" | ")[1] for row in rows] == ["8", "16"]
            assert len({row.count("|") for row in file.read_text().splitlines()}) == 1
        elif form == "csv":
            assert [float(row["seconds"]) for row in rows] == [r["seconds"] for r in done.rows]
        else:
            assert rows == done.rows
        shown = esogen(*words, "--format", form)
        above = {"md": 4, "csv": 3, "json": 0, "jsonl": 2}[form]
        assert (shown.code, shown.stdout.count("\n")) == (0, above + 1)


def _stopping(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """Let the measuring of row number `at` end in `error`."""
    carry_out = Bench._row
    count = iter(range(at + 1))

    def row(self: Bench, *words: Any) -> Row:
        if next(count, None) == at:
            raise error
        return carry_out(self, *words)

    monkeypatch.setattr(Bench, "_row", row)


def test_an_interrupt_keeps_the_rows_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopping(monkeypatch, 2, KeyboardInterrupt())
    file = tmp_path / "rows.csv"
    words = ("-L", "8", "--batch-size", "1,2,3,4")
    done = esogen(*TINY, *words, "--format", "csv", "-o", str(file))
    assert (done.code, done.stderr) == (130, "esogen: interrupted: kept 2 of 4 rows\n")
    assert [row["batch_size"] for row in done.rows] == [1, 2]
    assert len(list(csv.DictReader(io.StringIO(file.read_text())))) == 2


def test_a_row_that_does_not_fit_is_named_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _stopping(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory"))
    done = esogen(*TINY, "-L", "8", "--batch-size", "1,2,3")
    assert done.code == 1
    assert [row["batch_size"] for row in done.rows] == [1, 3]
    assert done.stderr == (
        "esogen: esolm-b, length 8, 2 steps, batch 2: cpu has too little memory for 2 texts at"
        " once; try a smaller --batch-size, --length or --size\n"
        "esogen: measured 2 of 3 rows; the others do not fit in memory\n"
    )


def test_a_length_that_cannot_fit_is_told_before_it_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esogen.bench.measure.free_bytes", lambda _: 10**6)
    planned: list[int] = []
    make = Subject.plan

    def plan(self: Subject, case: Case) -> Plan:
        planned.append(case.length)
        return make(self, case)

    monkeypatch.setattr(Subject, "plan", plan)
    done = esogen(*TINY, "-L", "8,100000000", "--family", "esolm-b,mdlm")
    assert (done.code, planned) == (1, [8, 8])
    assert [row["length"] for row in done.rows] == [8, 8]
    for family in ("esolm-b", "mdlm"):
        said = f"{family}, length 100000000, 25000000 steps, batch 1: cpu has too little memory for"
        assert said in done.stderr


def test_one_text_that_does_not_fit_is_told_so() -> None:
    assert "for one text; try a smaller --length or" in str(NoRoom(Case("ar", 8), "cuda:0"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--family", "ar", "-s", "4"), "--steps is 4, and a model of the family ar decides one"),
        (("--family", "mdlm", "--no-kv-cache"), "--no-kv-cache is given, and a model of the"),
        (("--family", "eso"), "--family is 'eso'; it must be one of esolm-b,"),
        (("--length", "8,x"), "--length is 'x'; it must be a whole number of at least 1"),
        (("--batch-size", "1,"), "--batch-size is ''; it must be a whole number"),
        (("--device", "tpu"), "--device is 'tpu'; it must be one of auto, cuda"),
        (("--attention", "xformers"), "--attention is 'xformers', which has no kernels for"),
        (("--plot", "out.txt"), "--plot is 'out.txt'; it must end in one of .svg, .png, .pdf"),
        (("--mdlm-steps", "4"), "--mdlm-steps is for --paper"),
        (("--draft", "0"), "--draft is 0; it must be a whole number of at least 1, or auto"),
        (("--draft", "2", "-s", "4"), "--draft and --steps exclude each other"),
        (("--draft", "2", "--family", "ar"), "--draft is 2, and a model of the family ar has no"),
        (("--paper", "--family", "ar"), "--family is not for --paper"),
        (("--paper", "--one-shot"), "--paper and --one-shot exclude each other"),
        (("--paper", "--batch-size", "1,2"), "--paper takes one --batch-size"),
        (("-m", "stories"), "--size and --model exclude each other"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = esogen("bench", "--size", "tiny", *words)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"esogen: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-L", "99"), "--length is 99;"),
        (("--family", "ar"), "the grid has ar, and"),
    ],
)
def test_a_checkpoint_takes_its_own_family_and_lengths(
    tiny_folder: Path, words: tuple[str, ...], said: str
) -> None:
    done = esogen("bench", "-m", str(tiny_folder), *words)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"esogen: {said}")


def test_a_commit_is_told_of_a_checkout_only(tmp_path: Path) -> None:
    assert commit(tmp_path) is None

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *who, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("commit", "-qm", "One")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{head}-dirty"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None


# The paper's tables


def test_published_ratios_stand_beside_what_was_published() -> None:
    found = points(Grid(), None)
    published = {
        (point.table, case.name, case.length, case.steps): point.published
        for case, point in found.items()
    }
    assert published["latency", "mdlm", 8192, 8192] == pytest.approx(66.2, abs=0.1)
    assert published["latency", "bd3lm 16", 8192, None] == pytest.approx(3.27, abs=0.01)
    assert published["latency", "ar", 2048, None] == pytest.approx(0.91, abs=0.01)
    assert published["throughput", "mdlm", 1024, 128] == pytest.approx(16.7, abs=0.1)
    assert published["throughput", "mdlm", 1024, 16] is None
    assert published["throughput", "bd3lm 16", 1024, None] == pytest.approx(2.43, abs=0.01)
    assert {case.batch_size for case in found} == {1, 512}


def test_the_latency_table_takes_one_token_a_step() -> None:
    for case, point in points(Grid(lengths=[24]), None).items():
        if point.table == "latency":
            plan = whole_plan(sized("tiny", case.family, case.block_size), case)
            assert (plan.nfe, set(plan.counts_S.tolist())) == (24, {1})


def test_the_time_of_some_steps_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 10 ms each, and 50 ms before the first."""
    pause = 0.01

    def steps(self: Subject, case: Case, plan: Plan, *, drawing: bool) -> Iterator[Step]:
        time.sleep(5 * pause)
        for index in range(plan.nfe):
            time.sleep(pause)
            yield Step(index, False, np.arange(1), *[torch.zeros(1, 1)] * 3)

    monkeypatch.setattr(Subject, "steps", steps)
    case = Case("mdlm", 32, 1, 32, schedule="blocks", timed_steps=4, forward_only=False)
    (row,) = Bench(Setup("tiny", repeats=3), lambda text: None).rows([case])
    assert isinstance(row, Row)
    assert (row.nfe, row.timed_steps, row.tokens) == (32, 4, 32)
    assert 5 * pause + 32 * pause <= row.seconds.low
    assert row.seconds.low < 5 * pause + 32 * 3 * pause


def test_the_papers_tables_can_be_had_small() -> None:
    words = ("-L", "24,32", "-s", "4,8", "--batch-size", "3", "--mdlm-steps", "3")
    done = esogen(*TINY, "--paper", *words)
    assert done.code == 0, done.stderr
    rows = {(row["table"], row["name"], row["length"], row["steps"]): row for row in done.rows}
    assert len(rows) == 10 + 5
    latency = rows["latency", "mdlm", 32, 32]
    assert (latency["nfe"], latency["timed_steps"], latency["tokens"]) == (32, 3, 32)
    eso = rows["latency", "esolm-b", 32, 32]
    assert latency["ratio"] == pytest.approx(latency["seconds"] / eso["seconds"])
    assert eso["ratio"] == 1
    fast, slow = rows["throughput", "esolm-b", 24, 8], rows["throughput", "bd3lm 16", 24, None]
    assert slow["tokens"] == 72
    key = "forward_only_tokens_per_second"
    assert slow["ratio"] == pytest.approx(fast[key] / slow[key])
    assert all(row["published_ratio"] is None for row in done.rows)


# The picture


def records(**values: list[Any]) -> Iterator[dict[str, Any]]:
    common = {"name": "ar", "length": 8, "steps": None, "alpha_0": None, "batch_size": 1}
    common |= {"seconds": 2.0, "seconds_low": 1.0, "seconds_high": 3.0, "tokens_per_second": 4.0}
    for row in zip(*values.values(), strict=True):
        yield common | dict(zip(values, row, strict=True))


def test_a_series_differs_along_one_axis_only() -> None:
    rows = list(records(length=[8, 16, 8, 16], batch_size=[1, 1, 4, 4]))
    along = plot.series(rows, "length")
    assert {name: [row["length"] for row in found] for name, found in along.items()} == {
        "ar, batch 1": [8, 16],
        "ar, batch 4": [8, 16],
    }
    assert set(plot.series(rows, "batch_size")) == {"ar, length 8", "ar, length 16"}


def test_steps_that_follow_the_length_part_no_series() -> None:
    rows = list(records(length=[8, 16], steps=[2, 4]))
    assert set(plot.series(rows, "length")) == {"ar"}
    rows = list(records(length=[8, 16, 8, 16], steps=[2, 2, 4, 4]))
    assert set(plot.series(rows, "length")) == {"ar, steps 2", "ar, steps 4"}


def test_the_picture_shows_every_row(tmp_path: Path) -> None:
    file = tmp_path / "speed.svg"
    words = ("-L", "8,16", "--batch-size", "1,2", "--plot", str(file))
    done = esogen(*TINY, *words, "--family", "esolm-b,ar")
    assert done.code == 0, done.stderr
    picture = file.read_text()
    assert picture.startswith("<?xml")
    for word in ("ar, batch 2", "esolm-b, length 16", "seconds a batch", "length, tokens"):
        assert f">{word}</text>" in picture, word


def test_without_matplotlib_the_line_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esogen.bench.plot.find_spec", lambda name: None)
    done = esogen(*TINY, "--plot", "out.svg")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == (
        "esogen: --plot is drawn with matplotlib, which is missing; pip install 'esogen[plot]'\n"
    )


# On a GPU


@pytest.mark.cuda
def test_a_gpu_is_measured() -> None:
    done = esogen(*TINY, "-L", "32", "--device", "cuda", "--family", "esolm-b,mdlm,bd3lm,ar")
    assert done.code == 0, done.stderr
    document = done.document
    assert document["device"] == "cuda"
    assert document["clocks"]["clocks.sm"] is not None
    for row in done.rows:
        assert 0 < row["step_seconds"] * row["nfe"] < 2 * row["seconds"]
        assert row["peak_bytes"] >= weight_bytes(tiny().network) // 2


# All that takes a GPU


def figures_of(found: Mapping[str, Any]) -> dict[str, tuple[float, bool]]:
    return {figure.name: (figure.ratio, figure.met) for figure in gpu.targets(found)}


def test_targets_are_judged_by_what_was_measured() -> None:
    rows = [
        {
            "steps": steps,
            "batch_size": rows,
            "floor_share": 0.5,
            "seconds": 2.0,
            "seconds_low": 1.0,
            "seconds_high": 4.0,
            "drawing_share": 0.2 if rows == 1 else 0.1,
            "peak_share": None if steps == 16 else 1.1,
            "first_run_seconds": 3.0,
            "second_run_seconds": 2.0,
        }
        for steps in (16, 1024)
        for rows in (1, 512)
    ]
    plain = {"steps": 16, "first_run_seconds": 3.0, "second_run_seconds": 1.0}
    latency = [
        {"table": "latency", "length": length, "name": name, "ratio": ratio}
        for length in (2048, 8192)
        for name, ratio in (("esolm-b", 1.0), ("mdlm", 30.0), ("bd3lm 16", 0.95), ("ar", 0.8))
    ]
    slower = {"name": "the authors' / ours", "ratio": 21.0, "spread": [19.0, 22.0], "least": 20.0}
    found = figures_of(
        {
            "steps": {"rows": rows},
            "unrecorded": {"rows": [plain]},
            "paper": {"rows": latency},
            "authors": {"rows": [{"figure": slower}]},
        }
    )
    assert found == {
        "drawing / whole, 16 steps, batch 1": (0.2, False),
        "drawing / whole, 16 steps, batch 512": (0.1, True),
        "of the bandwidth floor, 1024 steps, batch 1": (0.5, True),
        "drawing / whole, 1024 steps, batch 1": (0.2, False),
        "peak memory / (weights + cache + a chunk), 1024 steps, batch 1": (1.1, True),
        "of the bandwidth floor, 1024 steps, batch 512": (0.5, False),
        "drawing / whole, 1024 steps, batch 512": (0.1, True),
        "peak memory / (weights + cache + a chunk), 1024 steps, batch 512": (1.1, True),
        "first run / unrecorded, 16 steps, batch 1": (1.0, True),
        "second run / unrecorded, 16 steps, batch 1": (2.0, False),
        "mdlm / esolm-b, NFE = L = 8192, batch 1": (30.0, True),
        "bd3lm 16 / esolm-b, NFE = L = 8192, batch 1": (0.95, True),
        "ar / esolm-b, NFE = L = 8192, batch 1": (0.8, False),
        "the authors' / ours": (21.0, True),
    }


def test_the_authors_code_is_set_beside_ours_where_it_is(tmp_path: Path) -> None:
    assert "authors" not in gpu.commands(tmp_path, "cuda", tiny=False)
    words = gpu.commands(tmp_path, "cuda", tiny=False, authors=tmp_path)["authors"]
    assert words[:2] == ["esogen.bench.authors", str(tmp_path)]


def test_where_a_command_fails_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "doctor": ["esogen", "bench", "--size", "huge"],
        "steps": ["json.tool", "--json-lines", "--no-indent", str(tmp_path / "steps.jsonl")],
    }
    (tmp_path / "steps.jsonl").write_text('{"rows": [{"steps": 1, "batch_size": 1}]}\n')
    monkeypatch.setattr(gpu, "commands", lambda *where, **how: commands)
    monkeypatch.setattr(gpu, "targets", lambda found: iter(()))
    monkeypatch.setattr("sys.argv", ["gpu", "-o", str(tmp_path)])
    with pytest.raises(SystemExit, match="True"):
        gpu.main()
    written = capsys.readouterr()
    document = json.loads(written.out.splitlines()[-1])
    assert document["failed"] == ["doctor"]
    assert document["steps"] == {"rows": [{"steps": 1, "batch_size": 1}]}
    assert f"doctor failed; {tmp_path / 'doctor.txt'} has what it said" in written.err


@pytest.mark.slow
def test_all_that_takes_a_gpu_runs_at_sizes_that_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "-o", str(tmp_path), "--device", "cpu", "--tiny"])
    with pytest.raises(SystemExit, match="False"):
        gpu.main()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["failed"] == []
    assert len(document["figures"]) == 19
    assert (tmp_path / "families.svg").stat().st_size > 0


@pytest.fixture
def measure_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[object, str]]:
    """Runs such a program in an empty folder: its exit code, and what it says on stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda words: (measured(words, monkeypatch), capsys.readouterr().err)


def measured(words: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of `python -m esogen.bench.` and these words."""
    name, *rest = words.split()
    monkeypatch.setattr(sys, "argv", [name, *rest])
    monkeypatch.delitem(sys.modules, f"esogen.bench.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"esogen.bench.{name}", run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    "words",
    [
        "__main__ cold -m nope",
        "agreement -m nope",
        "drafts -m nope",
        "infill text -m nope",
        "judge nope -o out --judge nope --training text --held-out text",
        "likelihoods text -m nope",
        "quality text -m nope",
    ],
)
def test_what_goes_wrong_in_a_measurement_is_one_line_and_no_traceback(
    words: str, measure_here: Callable[[str], tuple[object, str]]
) -> None:
    code, told = measure_here(words)
    said = told.splitlines()
    assert code == 1
    assert [line for line in said if line.startswith("esogen: ")] == said[-1:]
    assert "nope" in said[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("__main__ help --rounds 0", "argument --rounds: '0' is no whole number from 1 on"),
        ("agreement --rows x", "argument --rows: 'x' is no whole number from 1 on"),
        ("drafts speed --batches 1 0", "argument --batches: '0' is no whole number from 1 on"),
        ("drafts quality -n 1", "argument -n/--samples: quality takes 2 texts or more"),
        ("infill text --texts 0", "argument --texts: '0' is no whole number from 1 on"),
        ("quality text --alpha-0 3", "argument --alpha-0: '3' is no number from 0 to 1"),
        ("gpu -o out --only foo", "--only foo is none of"),
    ],
)
def test_a_value_that_a_measurement_cannot_take_is_told_by_its_flag(
    words: str, said: str, measure_here: Callable[[str], tuple[object, str]]
) -> None:
    code, told = measure_here(words)
    assert code == 2
    assert said in told


@pytest.mark.parametrize("words", ["__main__ view2", "drafts speeds"])
def test_a_figure_that_there_is_not_is_wrong_usage(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = measured(words, monkeypatch)
    assert code == 2
    assert repr(words.split()[1]) in capsys.readouterr().err


def test_the_figure_of_a_single_text_has_no_error(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "one.txt"
    text.write_text("The cat sat.\n", encoding="utf-8")
    measured(f"quality {text} -m {tiny_folder} --alpha-0 1", monkeypatch)
    row, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| one.txt \| 1 \| [\d.]+ \|", row)
    (found,) = json.loads(last, parse_constant=pytest.fail)
    assert found["bits_per_byte"]["error"] is None
