"""How many rows are run at once: by free memory, and halved where it is too little."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from esogen import language_model
from esogen.checkpoint import memory
from esogen.checkpoint.folder import Checkpoint
from esogen.checkpoint.memory import Room, free_bytes, rows_that_fit
from esogen.cli import main
from esogen.errors import EsogenError
from esogen.generate.verify import Agreement, compare
from esogen.language_model import LanguageModel
from esogen.model.attention import Attend
from esogen.model.cache import KVCache
from esogen.model.network import EVERYTHING, Network
from esogen.peers.family import WIDTHS_OF_A_TOKEN, row_bytes
from esogen.sampling import Batch, Sample
from esogen.scoring.defaults import settings_for
from esogen.scoring.score import Document, score_documents

CPU = torch.device("cpu")


class SmallMemory(Network):
    """A network on a device that has room for so many rows of a call, and no more."""

    room = 10**9

    def hidden(
        self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
    ) -> Tensor:
        if len(ids_BL) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().hidden(ids_BL, positions_BL, attend, wanted)


def with_room(checkpoint: Checkpoint, rows: int) -> Checkpoint:
    """The same model on a device with room for `rows`."""
    network = SmallMemory(checkpoint.config, folded=True)
    network.load_state_dict(checkpoint.network.state_dict())
    network.room = rows
    return replace(checkpoint, network=network.eval())


def drive(batch: Batch) -> None:
    for _ in batch.steps():
        pass


def same(found: list[Sample], wanted: list[Sample]) -> bool:
    return [(s.index, s.tokens) for s in found] == [(s.index, s.tokens) for s in wanted]


@given(
    items=st.lists(st.integers(), max_size=40),
    rows=st.integers(1, 20),
    fitting=st.integers(1, 20),
)
def test_parts_are_all_items_in_order_and_none_is_larger_than_fits(
    items: list[int], rows: int, fitting: int
) -> None:
    tried: list[int] = []
    told: list[str] = []

    def run(part: list[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > fitting:
            raise torch.OutOfMemoryError
        return part

    parts = list(Room(rows, "texts", told.append).parts(items, run))
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts), default=1) <= min(rows, fitting)
    assert len(told) == sum(size > fitting for size in tried)


def test_what_else_goes_wrong_is_not_taken_for_want_of_memory() -> None:
    def run(part: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Room(4, "texts").parts(range(8), run))


def test_samples_do_not_depend_on_how_many_fit(tiny_checkpoint: Checkpoint) -> None:
    plain = LanguageModel(tiny_checkpoint, CPU)
    settings = plain.settings(seed=2, alpha_0=0.5)
    wanted = list(plain.sample(n=9, seed=2, alpha_0=0.5))
    told: list[str] = []
    small = LanguageModel(with_room(tiny_checkpoint, 3), CPU)
    batches = small.batches("", settings, n=9, batch_size=8, drive=drive, told=told.append)
    made = [[*batch.samples()] for batch in batches]
    assert same([sample for part in made for sample in part], wanted)
    assert [len(part) for part in made] == [2, 2, 2, 2, 1]
    assert told == [
        "too little memory for 8 texts at once; going on with 4",
        "too little memory for 4 texts at once; going on with 2",
    ]


def test_drafted_texts_do_not_depend_on_how_many_fit(tiny_checkpoint: Checkpoint) -> None:
    wanted = list(LanguageModel(tiny_checkpoint, CPU).sample(n=9, seed=3, draft=6))
    small = LanguageModel(with_room(tiny_checkpoint, 4), CPU)
    with pytest.warns(UserWarning, match="too little memory for 9 texts at once; going on with 4"):
        assert same(list(small.sample(n=9, seed=3, draft=6)), wanted)


def test_a_program_is_warned_and_gets_the_same_texts(tiny_checkpoint: Checkpoint) -> None:
    wanted = list(LanguageModel(tiny_checkpoint, CPU).sample(n=6, seed=2, best_of=2))
    small = LanguageModel(with_room(tiny_checkpoint, 8), CPU)
    with pytest.warns(UserWarning, match="too little memory for 12 texts at once; going on with 6"):
        assert same(list(small.sample(n=6, seed=2, best_of=2)), wanted)


def test_a_text_that_does_not_fit_alone_is_one_error(tiny_checkpoint: Checkpoint) -> None:
    small = LanguageModel(with_room(tiny_checkpoint, 0), CPU)
    with pytest.raises(EsogenError, match="too little memory for one of the texts alone"):
        list(small.sample(seed=0, batch_size=1))


@pytest.mark.parametrize("draft", [None, 3])
def test_fills_do_not_depend_on_how_many_fit(
    tiny_checkpoint: Checkpoint, draft: int | None
) -> None:
    template = "The [MASK:2-4] sat on [MASK:3]."
    plain = LanguageModel(tiny_checkpoint, CPU).infill(template, n=5, seed=1, draft=draft)
    small = LanguageModel(with_room(tiny_checkpoint, 6), CPU)
    with pytest.warns(UserWarning, match="too little memory for .* candidates at once"):
        found = small.infill(template, n=5, seed=1, draft=draft)
    assert [c.text for c in found] == [c.text for c in plain]


def test_scores_do_not_depend_on_how_many_fit(tiny_checkpoint: Checkpoint) -> None:
    texts = ["The cat had a hat.", "Tom said no.", "One day the sun was very hot.", "The end."]
    documents = [Document(i, f"text {i}", text) for i, text in enumerate(texts)]
    settings = settings_for(tiny_checkpoint, orders=3)
    wanted = [s.log_prob for s in score_documents(tiny_checkpoint, documents, settings)]
    told: list[str] = []
    small = with_room(tiny_checkpoint, 5)
    found = score_documents(small, documents, settings, told=told.append)
    assert [s.log_prob for s in found] == pytest.approx(wanted, abs=1e-4)
    assert told[0].startswith("too little memory for ")


def test_the_command_says_in_one_line_that_it_goes_on_with_fewer(
    tiny_folder: Path, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-m", str(tiny_folder), "-n", "4", "--seed", "1", "--device", "cpu")
    out = []
    for rows in (10, 2, 0):
        small = LanguageModel(with_room(tiny_checkpoint, rows), CPU)
        monkeypatch.setattr(language_model, "load", lambda *_, lm=small, **__: lm)
        with CliRunner().isolation(input=b"") as (stdout, stderr, _):
            code = main(("sample", *words))
            sys.stderr.flush()
            out.append((code, stdout.getvalue(), stderr.getvalue().decode()))
    assert out[0][0] == out[1][0] == 0
    assert out[0][1] == out[1][1]
    line = "esogen: too little memory for {} texts at once; going on with {}\n"
    assert [found[2] for found in out[:2]] == ["", line.format(4, 2)]
    *fewer, last = out[2][2].splitlines(keepends=True)
    assert (out[2][0], out[2][1]) == (1, b"")
    assert fewer == [line.format(4, 2), line.format(2, 1)]
    assert last.startswith("esogen: there is too little memory for one of the texts alone;")


def test_the_batch_is_as_large_as_free_memory_has_room_for(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel(tiny_checkpoint, CPU)
    settings = lm.settings(seed=0)
    plan = next(lm.batches("", settings)).plan
    each = row_bytes(tiny_checkpoint.network, plan, cached=True)
    for free, wanted in ((each * 5, 4), (each * 100, 16), (0, 1), (None, 16)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        sizes = [len(batch.indices) for batch in lm.batches("", settings, n=32)]
        assert sizes == [wanted] * (32 // wanted)


def test_a_comparison_without_the_cache_takes_as_many_rows_as_that_has_room_for(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel(tiny_checkpoint, CPU)
    batch = next(lm.batches("", lm.settings(seed=0), n=7))
    compared: list[int] = []

    def counted(*how: Any) -> Agreement:
        compared.append(len(how[3].rows))
        return compare(*how)

    monkeypatch.setattr("esogen.sampling.compare", counted)
    whole = batch.verify()
    each = row_bytes(tiny_checkpoint.network, batch.plan, cached=False)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 4 * each)
    parts = batch.verify()
    assert compared == [7, 3, 3, 1]
    assert (parts.draws, parts.unexplained) == (whole.draws, whole.unexplained)


@pytest.mark.parametrize("cached", [True, False])
def test_what_a_row_takes_holds_its_cache_and_its_widest_call(
    tiny_checkpoint: Checkpoint, cached: bool
) -> None:
    network, config = tiny_checkpoint.network, tiny_checkpoint.config
    lm = LanguageModel(tiny_checkpoint, CPU)
    few, many = (
        row_bytes(network, next(lm.batches("", lm.settings(seed=0, steps=s))).plan, cached=cached)
        for s in (2, 48)
    )
    assert few >= many
    if cached:
        assert KVCache(config, 1, 48).bytes < many < few
    else:
        assert few == many


class Widths(Network):
    """A network that notes how many tokens a row has in each call."""

    seen: list[int]

    def hidden(
        self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
    ) -> Tensor:
        self.seen.append(ids_BL.shape[1])
        return super().hidden(ids_BL, positions_BL, attend, wanted)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("prompt", ["", "Once upon a time there was a cat and a big, round ball"])
def test_what_a_row_of_drafts_takes_holds_its_cache_and_its_widest_call(
    tiny_checkpoint: Checkpoint, prompt: str, cached: bool
) -> None:
    network = Widths(tiny_checkpoint.config, folded=True)
    network.load_state_dict(tiny_checkpoint.network.state_dict())
    network.seen = []
    lm = LanguageModel(replace(tiny_checkpoint, network=network.eval()), CPU)
    settings = lm.settings(seed=0, draft=6, alpha_0=0.0, kv_cache=cached, raw=True)
    (batch,) = lm.batches(prompt, settings, drive=lambda batch: [*batch.steps()])
    drafting = settings.drafting
    assert drafting
    taken = row_bytes(network, batch.plan, cached=cached, drafting=drafting)
    config = tiny_checkpoint.config
    kept = KVCache(config, 1, drafting.places(settings.length)).bytes if cached else 0
    a_token = WIDTHS_OF_A_TOKEN * config.hidden_size * 4
    assert kept + max(network.seen) * a_token <= taken <= kept + (max(network.seen) + 18) * a_token


def test_free_memory_is_less_than_the_machine_has() -> None:
    free = free_bytes(CPU)
    if free is None:
        pytest.skip("the system does not tell")
    pages = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    assert 0 < free < int(pages) * 1024
    assert rows_that_fit(CPU, free, 8) == 1
    assert rows_that_fit(CPU, 1, 8) == 8


LIMITED = """
import json, resource, sys, warnings
from pathlib import Path
from esogen.language_model import load

lm = load(sys.argv[1], device="cpu")
wanted = [sample.tokens for sample in lm.sample(n=2000, seed=1, length=48, steps=1)][-3:]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = [s.tokens for s in lm.sample(n=2000, seed=1, length=48, steps=1, batch_size=2000)]
print(json.dumps([found[-3:] == wanted, len(found), [str(each.message) for each in told]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_an_allocation_that_really_fails_halves_the_batch(tiny_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tiny_folder), str(40 * 2**20)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    equal, count, told = json.loads(done.stdout)
    assert (equal, count) == (True, 2000)
    assert told[0] == "too little memory for 2000 texts at once; going on with 1000"
    assert np.all(["too little memory for" in line for line in told])


@pytest.mark.cuda
def test_a_batch_that_a_gpu_has_no_room_for_is_halved(tiny_checkpoint: Checkpoint) -> None:
    device = torch.device("cuda")
    lm = language_model.load(str(tiny_checkpoint.files.config.parent), device="cuda", dtype="fp32")
    each = row_bytes(lm.checkpoint.network, next(lm.batches("", lm.settings())).plan, cached=True)
    free = free_bytes(device)
    assert free
    fill = torch.empty(max(0, free - 300 * each - 2**28), dtype=torch.uint8, device=device)
    with pytest.warns(UserWarning, match="too little memory for"):
        found = list(lm.sample(n=20_000, seed=1, batch_size=20_000))
    del fill
    assert same(found, list(lm.sample(n=20_000, seed=1, batch_size=500)))
