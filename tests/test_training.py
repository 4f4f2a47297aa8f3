"""Text to rows, rows to batches, batches to weights; stopping, resuming, and what is refused."""

import io
import json
import lzma
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from esogen.checkpoint.config_file import CardDefaults, read_config
from esogen.checkpoint.folder import open_checkpoint
from esogen.checkpoint.resolve import CONFIG
from esogen.checkpoint.tokenizer import Tokenizer, train_tokenizer
from esogen.checkpoint.weights import build
from esogen.cli import main
from esogen.cli.training_progress import Meter, duration, on_bar
from esogen.errors import CheckpointError, EsogenError, NumericalError, UsageError
from esogen.language_model import load
from esogen.model.attention import Dense
from esogen.model.config import Family, ModelConfig
from esogen.model.families import ALPHA_0
from esogen.model.network import Network, initialise
from esogen.training.data import (
    Rows,
    batch_indices,
    encode,
    packed_rows,
    read_documents,
    training_rows,
    whole_rows,
    windows,
)
from esogen.training.growth import deepened
from esogen.training.loop import StepReport, Trainer
from esogen.training.run import Run, given_tokenizer
from esogen.training.settings import TrainingSettings, ema_decay, learning_rate
from esogen.training.state import STATE, configuration, restore, write_state
from tests.conftest import random_tensors

END = 0

TEXTS = [
    "Once upon a time there was a little cat. The cat had a red hat and a big, round ball.",
    "Tom said, “I am hungry!” His mother gave him an apple and a glass of milk.",
    "One day the sun was very hot, and the birds sang in the old tree near the river.",
]


class Letters:
    """A tokenizer that a reader can follow: a is 1, b is 2, ..."""

    end_of_text = END

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        return [[ord(letter) - ord("a") + 1 for letter in text] for text in texts]


def file_of(folder: Path, *texts: str, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return path


# Files


def test_documents_are_parted_by_end_of_text_and_lose_blank_lines_around_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\none\n\n two\n<|endoftext|>\n\n<|endoftext|>\nthree\n", encoding="utf-8")
    assert list(read_documents([path])) == ["one\n\n two", "three"]


def test_files_are_read_in_order_and_xz_is_unpacked(tmp_path: Path) -> None:
    plain, packed = file_of(tmp_path, "one"), tmp_path / "text.txt.xz"
    packed.write_bytes(lzma.compress("zwei\n<|endoftext|>\n猫".encode()))
    assert list(read_documents([packed, plain])) == ["zwei", "猫", "one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "cannot read .*a.txt: No such file"),
        ("a.txt", b"", "holds no text to train on"),
        ("a.txt", b"\n <|endoftext|>\n\n", "holds no text to train on"),
        ("a.txt", b"caf\xe9", "is not UTF-8: there is the byte 0xe9 at 3"),
        ("a.xz", b"plain text", "is no intact xz file"),
        ("a.xz", lzma.compress(b"text" * 99)[:-9], "is no intact xz file"),
    ],
)
def test_a_file_without_readable_text_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EsogenError, match=message):
        list(read_documents([path]))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EsogenError, match="cannot read .*: Is a directory"):
        list(read_documents([tmp_path]))


# Rows


def test_whole_rows_hold_one_text_its_end_and_padding() -> None:
    rows = whole_rows(encode(["ab", "abcd", "", "abc"], Letters()), END, 4)
    assert rows.ids_RL.tolist() == [[1, 2, END, END], [END] * 4, [1, 2, 3, END]]
    assert rows.counted_R.tolist() == [3, 1, 4]
    assert (rows.bytes, rows.dropped) == (5, 1)


def test_packed_rows_hold_all_texts_end_to_end() -> None:
    rows = packed_rows(encode(["ab", "abcd", "c"], Letters()), 4)
    assert rows.ids_RL.tolist() == [[1, 2, END, 1], [2, 3, 4, END]]
    assert rows.counted_R.tolist() == [4, 4]
    assert (rows.bytes, rows.dropped) == (round(7 * 8 / 10), 0)


def test_windows_hold_every_token_of_every_text_once() -> None:
    rows = windows(["ab", "abcdefg", "abc"], Letters(), 4)
    assert rows.ids_RL.tolist() == [
        [1, 2, END, END],
        [1, 2, 3, 4],
        [5, 6, 7, END],
        [1, 2, 3, END],
    ]
    assert rows.counted_R.tolist() == [3, 4, 4, 4]
    assert (rows.bytes, rows.dropped) == (12, 0)


@given(st.lists(st.text("abc", max_size=9), min_size=1), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_windows_lose_no_token(texts: list[str], length: int) -> None:
    rows = windows(texts, Letters(), length)
    counted = [ids[:n].tolist() for ids, n in zip(rows.ids_RL, rows.counted_R, strict=True)]
    wanted = [token for ids in Letters().encode_many(texts) for token in (*ids, END)]
    assert [token for ids in counted for token in ids] == wanted
    assert all(counted)


def test_bytes_are_those_of_utf_8(tiny_tokenizer: Tokenizer) -> None:
    assert whole_rows(encode(["猫 é"], tiny_tokenizer), END, 64).bytes == 6
    assert windows(["猫 é"], tiny_tokenizer, 64).bytes == 6


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("whole", "of 2 texts none fits a row of 3 tokens; raise --length"),
        ("packed", "2 texts cannot fill one row of 99 tokens; give more text"),
    ],
)
def test_texts_that_make_no_row_are_refused(layout: Any, message: str) -> None:
    texts = encode(["abc", "abcd"], Letters())
    with pytest.raises(EsogenError, match=message):
        training_rows(texts, END, layout, 3 if layout == "whole" else 99)


@given(st.integers(1, 23), st.integers(1, 31), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_every_epoch_visits_every_row_once(rows: int, batch: int, seed: int) -> None:
    steps = math.ceil(3 * rows / batch)
    visited = np.concatenate([batch_indices(rows, batch, step, seed) for step in range(steps)])
    assert len(visited) == steps * batch
    for epoch in range(3):
        assert sorted(visited[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_and_seeds_differ() -> None:
    first, second, other = (
        batch_indices(50, 50, step, seed).tolist() for step, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert first != second
    assert first != other


def test_the_order_of_rows_is_that_of_every_version() -> None:
    found = [batch_indices(5, 3, step, 0).tolist() for step in range(4)]
    assert found == [[0, 4, 3], [1, 2, 2], [0, 1, 4], [3, 2, 1]]


# Settings


RECIPE = TrainingSettings(
    steps=6,
    alphas=(1.0, 0.25),
    batch_size=8,
    micro_batch=3,
    learning_rate=1e-2,
    warmup=2,
    decay="linear",
    weight_decay=0.1,
    ema=0.9,
    layout="packed",
)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps is 0; it must be at least 1"),
        ("batch_size", 0, "batch_size is 0; it must be at least 1"),
        ("micro_batch", -1, "micro_batch is -1; it must be at least 1"),
        ("warmup", -1, "warmup is -1; it must be at least 0"),
        ("seed", -1, "seed is -1; it must be at least 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be a number above 0"),
        ("learning_rate", math.nan, "learning_rate is nan; it must be a number above 0"),
        ("clip", math.inf, "clip is inf; it must be a number above 0"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must be a number from 0 on"),
        ("ema", 1.0, r"ema is 1.0; it must be in \[0, 1\)"),
        ("layout", "square", "layout is square; it must be one of whole, packed"),
        ("decay", "slow", "decay is slow; it must be one of constant, linear, cosine"),
        ("alphas", (), "alpha_0 is not given"),
        ("alphas", (0.5, 1.5), r"alpha_0 is 1.5; it must be in \[0, 1\]"),
        ("alphas", (math.nan,), r"alpha_0 is nan; it must be in \[0, 1\]"),
        ("batch_size", 3, "batch_size is 3; it must be at least 4, for alpha_0 1, 0"),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **{field: value})  # type: ignore[arg-type]


def test_every_alpha_gets_the_rows_its_terms_need() -> None:
    with pytest.raises(ValueError, match="must be at least 4, for alpha_0 1, 0.25"):
        TrainingSettings(1, (1.0, 0.25), batch_size=3)
    assert TrainingSettings(1, (1.0, 0.0), batch_size=2).batch_size == 2


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    ],
)
def test_the_learning_rate_warms_up_and_decays(decay: Any, rates: list[float]) -> None:
    recipe = replace(RECIPE, learning_rate=1.0, decay=decay)
    assert [learning_rate(recipe, step) for step in range(6)] == pytest.approx(rates)


@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(["constant", "linear", "cosine"]))
@settings(deadline=None, max_examples=50)
def test_no_step_has_a_rate_of_nothing_or_above_the_highest(
    steps: int, warmup: int, decay: Any
) -> None:
    recipe = TrainingSettings(steps, learning_rate=0.5, warmup=warmup, decay=decay)
    assert all(0.0 < learning_rate(recipe, step) <= 0.5 for step in range(steps))


def test_the_average_ramps_up_to_its_decay() -> None:
    recipe = replace(RECIPE, ema=0.9999)
    assert [ema_decay(recipe, n) for n in (0, 8, 90)] == [0.1, 0.5, 0.91]
    assert ema_decay(recipe, 10**6) == 0.9999
    assert ema_decay(replace(RECIPE, ema=0.0), 50) == 0.0


# The loop


@pytest.fixture(scope="module")
def toy_rows(tiny_tokenizer: Tokenizer) -> Rows:
    return packed_rows(encode(TEXTS * 4, tiny_tokenizer), 16)


def fresh_trainer(
    rows: Rows, recipe: TrainingSettings = RECIPE, *, dropout: float = 0.1, length: int = 16
) -> Trainer:
    network = Network(ModelConfig("esolm-b", 300, length, 16, 2, 2, cond_dim=4, dropout=dropout))
    initialise(network, torch.Generator().manual_seed(recipe.seed))
    return Trainer(network, rows, recipe)


def trained(trainer: Trainer, steps: int) -> Trainer:
    for report in trainer.run():
        if report.step == steps:
            break
    return trainer


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state().items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("alphas", [(1.0,), (0.25,), (0.0,), (1.0, 0.25)])
def test_the_loss_goes_down(alphas: tuple[float, ...]) -> None:
    rows = Rows(np.tile(np.array([5, 7, 5, 9], np.int32), (4, 4)), np.full(4, 16, np.int32), 64)
    recipe = replace(RECIPE, steps=25, alphas=alphas, learning_rate=0.05, micro_batch=8)
    losses = [report.loss for report in fresh_trainer(rows, recipe, dropout=0.0).run()]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_each_step_is_reported(toy_rows: Rows) -> None:
    reports = list(fresh_trainer(toy_rows).run())
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.tokens for report in reports} == {8 * 16}
    assert all(report.gradient > 0.0 and report.seconds > 0.0 for report in reports)


def test_the_average_follows_the_weights_by_its_ramp(toy_rows: Rows) -> None:
    trainer = fresh_trainer(toy_rows)
    name, parameter = next(iter(trainer.parameters.items()))
    wanted = parameter.detach().clone()
    for step, _ in enumerate(trainer.run()):
        decay = ema_decay(RECIPE, step)
        wanted = decay * wanted + (1.0 - decay) * parameter.detach()
        torch.testing.assert_close(trainer.average[name], wanted, rtol=0, atol=1e-6)
    assert not torch.equal(trainer.weights()[name], parameter)


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    toy_rows: Rows, tmp_path: Path, stopped: int
) -> None:
    whole = trained(fresh_trainer(toy_rows), 6)
    first = trained(fresh_trainer(toy_rows), stopped)
    recorded = configuration(RECIPE, first.network.config, toy_rows, "{}")
    write_state(tmp_path / STATE, first, recorded)

    torch.manual_seed(12345)
    second = fresh_trainer(toy_rows)
    restore(second, tmp_path / STATE, recorded)
    assert second.step == stopped
    assert_same(snapshot(second), snapshot(first))
    assert_same(snapshot(trained(second, 6)), snapshot(whole))


def test_seeds_differ(toy_rows: Rows) -> None:
    found, other = (
        trained(fresh_trainer(toy_rows, replace(RECIPE, seed=seed)), 2).average[
            "vocab_embed.embedding"
        ]
        for seed in (0, 1)
    )
    assert not torch.allclose(found, other)


def test_passes_of_any_size_train_alike_without_dropout(toy_rows: Rows) -> None:
    found, wanted = (
        trained(fresh_trainer(toy_rows, replace(RECIPE, micro_batch=rows), dropout=0.0), 2)
        for rows in (1, 8)
    )
    for name, tensor in wanted.average.items():
        torch.testing.assert_close(found.average[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_gradient_is_clipped(toy_rows: Rows) -> None:
    recipe = replace(RECIPE, clip=1e-3)
    trainer = fresh_trainer(toy_rows, recipe)
    report = next(trainer.run())
    gradients = [p.grad for p in trainer.parameters.values() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
    assert report.gradient > 1e-3
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_state(toy_rows: Rows) -> None:
    trainer = trained(fresh_trainer(toy_rows), 2)
    with torch.no_grad():
        trainer.parameters["vocab_embed.embedding"].fill_(math.nan)
    before = snapshot(trainer)
    with pytest.raises(NumericalError, match="the loss of step 3 is not a number; train again"):
        next(trainer.run())
    assert trainer.step == 2
    after = snapshot(trainer)
    assert all(before[name].equal(after[name]) for name in before if name.startswith("ema."))
    assert all(before[name].equal(after[name]) for name in before if name.startswith("optim"))


def test_compiled_calls_of_the_network_are_used(toy_rows: Rows) -> None:
    network = fresh_trainer(toy_rows).network

    class Counted:
        config = network.config
        calls = 0

        def hidden(self, *arguments: Any) -> Tensor:
            self.calls += 1
            return network.hidden(*arguments)

        def logits(self, hidden_KD: Tensor) -> Tensor:
            return network.logits(hidden_KD)

    forward = Counted()
    next(Trainer(network, toy_rows, RECIPE, forward=forward).run())
    assert forward.calls == 2 + 1 + 1  # 4 + 2 + 2 rows in passes of at most 3


# The state


@pytest.fixture
def state(toy_rows: Rows, tmp_path: Path) -> Path:
    """The state of a run after its third step."""
    trainer = trained(fresh_trainer(toy_rows), 3)
    write_state(tmp_path / STATE, trainer, recorded_of(trainer))
    return tmp_path / STATE


def recorded_of(trainer: Trainer, tokenizer: str = "{}") -> dict[str, Any]:
    return dict(configuration(trainer.settings, trainer.network.config, trainer.rows, tokenizer))


def test_a_state_is_a_safetensors_file_that_says_its_step(state: Path) -> None:
    kinds = {name.split(".")[0] for name in load_file(state)}
    assert kinds == {"raw", "ema", "optimiser"}
    assert [path.name for path in state.parent.iterdir()] == [STATE]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.5}, "learning_rate 0.01 -> 0.5"),
        ({"alphas": (1.0,)}, r"alpha_0 \[1.0, 0.25\] -> \[1.0\]"),
        ({"seed": 1, "steps": 7}, "seed 0 -> 1, steps 6 -> 7"),
        ({"decay": "constant"}, "decay linear -> constant, steps 6 -> None"),
        (
            {"batch_size": 9, "clip": 2.0, "ema": 0.5, "warmup": 3},
            "batch_size 8 -> 9, clip 1.0 -> 2.0, ema 0.9 -> 0.5 and 1 more",
        ),
    ],
)
def test_the_state_of_other_settings_is_refused_and_they_are_named(
    toy_rows: Rows, state: Path, change: dict[str, Any], named: str
) -> None:
    trainer = fresh_trainer(toy_rows, replace(RECIPE, **change))
    with pytest.raises(UsageError, match=f"state of another run \\({named}\\)"):
        restore(trainer, state, recorded_of(trainer))
    assert trainer.step == 0


def test_the_state_of_another_network_text_or_tokenizer_is_refused(
    toy_rows: Rows, state: Path
) -> None:
    wider = fresh_trainer(toy_rows, length=20)
    with pytest.raises(UsageError, match=r"model_length 16 -> 20"):
        restore(wider, state, recorded_of(wider))
    less = fresh_trainer(Rows(toy_rows.ids_RL[:-1], toy_rows.counted_R[:-1], 1))
    with pytest.raises(UsageError, match=r"data [0-9a-f]{16} -> [0-9a-f]{16}\)"):
        restore(less, state, recorded_of(less))
    same = fresh_trainer(toy_rows)
    with pytest.raises(UsageError, match=r"tokenizer [0-9a-f]{16} -> [0-9a-f]{16}\)"):
        restore(same, state, recorded_of(same, "{} "))


def test_a_run_without_decay_can_be_made_longer_but_not_shorter(
    toy_rows: Rows, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, decay="constant")
    trainer = trained(fresh_trainer(toy_rows, recipe), 6)
    write_state(tmp_path / STATE, trainer, recorded_of(trainer))
    longer = fresh_trainer(toy_rows, replace(recipe, steps=8))
    restore(longer, tmp_path / STATE, recorded_of(longer))
    assert [report.step for report in longer.run()] == [7, 8]
    shorter = fresh_trainer(toy_rows, replace(recipe, steps=5))
    with pytest.raises(UsageError, match="at step 6, past the 5 steps wanted; give --steps 6"):
        restore(shorter, tmp_path / STATE, recorded_of(shorter))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


class _Trap:
    """What a pickle would run when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("a-pickle-was-executed",)


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Trap()))


@pytest.mark.parametrize("damage", [_cut, _header, _empty, _pickle])
def test_a_damaged_state_is_named_and_nothing_in_it_runs(
    toy_rows: Rows, state: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.parent)
    damage(state)
    trainer = fresh_trainer(toy_rows)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is cut short or damaged"):
        restore(trainer, state, recorded_of(trainer))
    assert [path.name for path in state.parent.iterdir()] == [STATE]


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"step": "3"},
        {"step": "three", "configuration": "{}"},
        {"step": "-1", "configuration": "{}"},
        {"step": "3", "configuration": "["},
        {"step": "3", "configuration": "[]"},
    ],
)
def test_a_file_that_is_no_state_is_named(
    toy_rows: Rows, state: Path, metadata: dict[str, str] | None
) -> None:
    save_file(load_file(state), state, metadata=metadata)
    trainer = fresh_trainer(toy_rows)
    with pytest.raises(CheckpointError, match="holds no state that esogen train wrote"):
        restore(trainer, state, recorded_of(trainer))


def test_missing_extra_and_misshapen_tensors_are_named(toy_rows: Rows, state: Path) -> None:
    trainer = fresh_trainer(toy_rows)
    recorded = recorded_of(trainer)
    tensors = load_file(state)
    del tensors["raw.vocab_embed.embedding"]
    tensors["ema.vocab_embed.embedding"] = torch.zeros(2)
    tensors["z"] = torch.zeros(2)
    save_file(tensors, state, {"step": "3", "configuration": json.dumps(recorded)})
    named = r"ema\.vocab_embed\.embedding, raw\.vocab_embed\.embedding, z\)"
    with pytest.raises(CheckpointError, match=named):
        restore(trainer, state, recorded)


def test_a_state_that_is_not_there_is_named(toy_rows: Rows, tmp_path: Path) -> None:
    trainer = fresh_trainer(toy_rows)
    with pytest.raises(CheckpointError, match="cannot be read .*; there is nothing to resume"):
        restore(trainer, tmp_path / STATE, recorded_of(trainer))


def test_a_full_disk_is_named_and_keeps_what_was_there(
    toy_rows: Rows, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(trained(fresh_trainer(toy_rows), 1), tmp_path, tiny_tokenizer)
    run.save()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esogen.training.state.save_file", full)
    trained(run.trainer, 2)
    with pytest.raises(EsogenError, match="cannot write into .*: No space left on device"):
        run.save()
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after[STATE] == before[STATE]


def test_a_run_that_ends_while_it_saves_goes_on_from_its_state(
    toy_rows: Rows, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = Run(trained(fresh_trainer(toy_rows), 1), tmp_path, tiny_tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("esogen.checkpoint.folder.write_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save()
    assert not (tmp_path / CONFIG).exists()  # it would tell of weights that are not there
    again = Run(fresh_trainer(toy_rows), tmp_path, tiny_tokenizer)
    again.resume()
    again.save()
    assert read_config(tmp_path / CONFIG).training["step"] == 1


# Progress


def test_progress_says_loss_speed_and_time_left() -> None:
    meter = Meter(100)
    meter.line(StepReport(1, 5.0, 1.0, tokens=300, seconds=1.0, flops=2e6))
    line = meter.line(StepReport(2, 4.5, 1.0, tokens=300, seconds=2.0, flops=1e6))
    assert line == "step 2/100 · loss 4.5000 · 200 tokens/s · 2 min left"


def test_progress_says_how_much_of_the_device_is_used_where_its_peak_is_known() -> None:
    meter = Meter(100, peak=4e6)
    meter.line(StepReport(1, 5.0, 1.0, tokens=300, seconds=1.0, flops=2e6))
    line = meter.line(StepReport(2, 4.5, 1.0, tokens=300, seconds=2.0, flops=1e6))
    assert line == "step 2/100 · loss 4.5000 · 200 tokens/s · 25% of peak · 2 min left"


def test_a_bar_on_a_terminal_goes_and_what_was_said_stays() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with on_bar(10, console) as bar:
        bar.step(StepReport(3, 5.0, 1.0, tokens=300, seconds=1.0, flops=2e6))
        bar.say("step 3 · [red]done[/red]\x1b[2J")
    assert isinstance(console.file, io.StringIO)
    found = console.file.getvalue()
    assert "step 3 · [red]done[/red]\u241b[2J" in found
    assert "step 3/10 · loss 5.0000 · 300 tokens/s · 7 s left" in found
    screen = pyte.Screen(120, 5)
    pyte.Stream(screen).feed(found.replace("\n", "\r\n"))
    assert [line.strip() for line in screen.display if line.strip()] == [
        "step 3 · [red]done[/red]\u241b[2J"
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (7500.0, "2 h 05 min")]
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# The command

NETWORK = ["--hidden-size=16", "--blocks=1", "--heads=1", "--cond-dim=4"]
SHORT = ["--length=16", "--layout=packed", "--batch-size=8", "--learning-rate=0.01", "--device=cpu"]
SMALL = [*SHORT, *NETWORK, "--vocab-size=300"]

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `esogen train`; returns its exit code and what it wrote to stderr."""

    def run(*words: object) -> tuple[int, str]:
        code = main(["train", *map(str, words)])
        found = capfd.readouterr()
        assert found.out == ""
        return code, found.err

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return file_of(tmp_path, *TEXTS * 2)


def test_a_trained_folder_is_a_model(command: Command, text: Path, tmp_path: Path) -> None:
    valid = file_of(tmp_path, *TEXTS[:2], name="valid.txt")
    code, said = command(
        *(text, "-o", tmp_path / "out", *SMALL, "--steps=4", "--valid", valid, "--valid-every=3"),
        *("--alpha-0=1", "--alpha-0=0.25", "--save-dtype=bf16"),
        *("--card-steps=7", "--card-alpha-0=0.5", "--card-schedule=blocks"),
    )
    assert code == 0, said
    folder = tmp_path / "out"
    files = {"config.json", "model.safetensors", "state.safetensors", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == files
    card = read_config(folder / "config.json")
    assert card.defaults == CardDefaults(None, 7, 0.5, "blocks")
    assert card.training["step"] == 4
    assert card.training["files"] == ["text.txt"]
    assert card.training["alpha_0"] == [1.0, 0.25]
    assert '"valid": {"step": 4, "bits_per_byte": {"1": {"value": ' in json.dumps(card.training)
    checkpoint = open_checkpoint(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert checkpoint.config.vocab_size == checkpoint.tokenizer.size + 1
    weights = load_file(folder / "model.safetensors")["backbone.vocab_embed.embedding"]
    average = load_file(folder / STATE)["ema.vocab_embed.embedding"]
    assert torch.equal(weights, average.bfloat16())

    begin, first, third, last, bound, wrote = said.splitlines()
    assert re.fullmatch(r"training [\d,]+ weights on \d+ rows of 16 tokens from step 0 to 4", begin)
    assert first.startswith("step 1/4 · loss ")
    assert third.startswith("step 3 · bits per byte at most · alpha_0 1: ")
    assert " · alpha_0 0.25: " in third
    assert last.startswith("step 4/4 · loss ")
    assert bound.startswith("step 4 · bits per byte at most")
    assert wrote.startswith(f"wrote {folder}: config.json, tokenizer.json, model.safetensors, ")


def test_quiet_is_silent(command: Command, text: Path, tmp_path: Path) -> None:
    assert command(text, "-o", tmp_path / "out", *SMALL, "--steps=1", "--quiet") == (0, "")


def test_the_same_command_gives_the_same_weights(
    command: Command, text: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        command(text, "-o", tmp_path / name, *SMALL, "--steps=3", "--dropout=0.3")
    assert_same(load_file(tmp_path / "one" / STATE), load_file(tmp_path / "two" / STATE))


def test_a_finished_run_is_not_overwritten(command: Command, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = (text, "-o", folder, *SMALL, "--steps=1")
    command(*words)
    before = (folder / STATE).rename(tmp_path / "before")
    shutil.copy(before, folder / STATE)
    code, said = command(*words)
    assert code == 2
    assert "holds the state of a run; add --resume to go on with it" in said
    (folder / STATE).unlink()
    code, said = command(*words)
    assert code == 2
    assert "holds a model, which would be overwritten" in said
    shutil.copy(before, folder / STATE)
    code, said = command(*words, "--resume")
    assert code == 0
    assert "from step 1 to 1\nwrote " in said
    assert_same(load_file(folder / STATE), load_file(before))


def test_a_resume_with_another_command_names_what_differs(
    command: Command, text: Path, tmp_path: Path
) -> None:
    words = (text, "-o", tmp_path / "out", *SMALL, "--steps=1")
    command(*words)
    for change, named in (
        ("--seed=3", "--seed 0 -> 3"),
        ("--hidden-size=32", "--hidden-size 16 -> 32"),
        ("--alpha-0=0.5", "--alpha-0 [1.0] -> [0.5]"),
    ):
        code, said = command(*words, change, "--resume")
        assert code == 2
        assert named in said
        assert len(said.splitlines()) == 1
    file_of(tmp_path, *TEXTS)
    code, said = command(*words, "--resume")
    assert code == 2
    assert "(data " in said


def test_a_model_is_trained_further(
    command: Command, text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = tmp_path / "out"
    still = ["--steps=1", "--warmup=0", "--learning-rate=1e-9"]
    code, said = command(text, "-o", folder, "--init", tiny_folder, *SHORT, *still)
    assert code == 0, said
    old, new = (load_file(path / "model.safetensors") for path in (tiny_folder, folder))
    assert old.keys() == new.keys()
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    assert (tiny_folder / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    assert read_config(folder / "config.json").defaults == CardDefaults(length=48, steps=12)


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["--layout=whole"], True),
        (["--layout=packed"], False),
        (["--layout=whole", "--no-bos"], False),
        (["--layout=packed", "--bos"], True),
    ],
)
def test_whole_texts_begin_from_end_of_text_unless_said_otherwise(
    command: Command, text: Path, tmp_path: Path, words: list[str], begins: bool
) -> None:
    folder, further = tmp_path / "out", tmp_path / "further"
    code, said = command(text, "-o", folder, *SMALL, "--length=64", "--steps=1", *words)
    assert code == 0, said
    end = Tokenizer.read(folder / "tokenizer.json", 300).end_of_text
    assert read_config(folder / "config.json").model.bos_id == (end if begins else None)
    other = "--no-bos" if begins else "--bos"
    for flag, wanted in ([], begins), ([other], not begins):
        place = further.with_name("further" + "".join(flag))
        code, said = command(text, "-o", place, "--init", folder, *SHORT, "--steps=1", *flag)
        assert code == 0, said
        assert read_config(place / "config.json").model.bos_id == (end if wanted else None)


def test_a_tokenizer_can_be_given(
    command: Command, text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    given_file = tiny_folder / "tokenizer.json"
    words = (text, *SHORT, *NETWORK, "--steps=1", "--tokenizer", given_file)
    code, said = command(*words, "-o", tmp_path / "out")
    assert code == 0, said
    assert (tmp_path / "out" / "tokenizer.json").read_text() == given_file.read_text()
    code, said = command(*words, "-o", tmp_path / "other", "--vocab-size=999")
    assert code == 1
    assert "tokens where the network has a vocabulary of 999" in said
    assert not (tmp_path / "other").exists()


def test_a_given_tokenizer_brings_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    wanted = train_tokenizer(iter(TEXTS), 280)
    path.write_text(wanted.to_json(), encoding="utf-8")
    assert given_tokenizer(path, None).size == wanted.size
    path.write_text("no tokenizer", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        given_tokenizer(path, None)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--steps=0"], 2, "--steps is 0; it must be a whole number of at least 1"),
        (["--alpha-0=25"], 2, "--alpha-0 is 25; it must be a number from 0 to 1"),
        (
            ["--alpha-0=0.5", "--batch-size=1"],
            2,
            "--batch-size is 1; it must be at least 2, for --alpha-0 0.5",
        ),
        (["--learning-rate=0"], 2, "--learning-rate is 0; it must be a number above 0"),
        (["--learning-rate=-1"], 2, "--learning-rate is -1; it must be a number above 0\n"),
        (["--ema=1"], 2, "--ema is 1; it must be a number from 0 up to but not 1"),
        (["--decay=liner"], 2, "did you mean --decay linear?"),
        (["--layout=all"], 2, "--layout is 'all'; it must be one of whole, packed"),
        (["--dtype=fp16"], 2, "--dtype is 'fp16'; it must be one of auto, bf16, fp32"),
        (["--vocab-size=100"], 2, "--vocab-size is 100; it must be a whole number of at least 258"),
        (["--hidden-size=9"], 2, "--hidden-size is 9 and --heads is 1; it must divide"),
        (["--device=tpu"], 2, "'tpu'; it must be one of auto, cuda, cuda:N or cpu"),
        (["--length=1000"], 1, "cannot fill one row of 1000 tokens"),
        (["--length=4", "--layout=whole"], 1, "of 6 texts none fits a row of 4 tokens"),
        (["--tokenizer=no.json"], 1, "no.json cannot be read: No such file"),
        (["--init=no-model"], 1, "the model 'no-model' is neither"),
        (["--valid=no.txt"], 1, "cannot read no.txt: No such file"),
        (["no-such-file.txt"], 1, "cannot read no-such-file.txt: No such file"),
        (["--resume"], 2, "holds no state.safetensors, so there is nothing to resume"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    command: Command, text: Path, words: list[str], code: int, message: str
) -> None:
    small = [] if words[0].startswith(("--tokenizer", "--init")) else SMALL
    found, said = command(text, "-o", text.parent / "out", *small, *words)
    assert message in said
    assert found == code
    assert len(said.splitlines()) == 1
    assert not (text.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text to train on; give a file with some text in it"),
        (b"caf\xe9", "is not UTF-8: there is the byte 0xe9 at 3; wanted UTF-8 text: convert it"),
    ],
)
def test_a_bad_training_file_is_one_line(
    command: Command, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    code, said = command(path, "-o", tmp_path / "out", *SMALL)
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1


def test_an_output_that_is_a_file_is_refused(command: Command, text: Path) -> None:
    code, said = command(text, "-o", text / "out", *SMALL)
    assert code == 2
    assert "is no folder; choose another folder" in said


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_output_that_cannot_be_made_is_refused_before_the_first_step(
    command: Command, text: Path
) -> None:
    code, said = command(text, "-o", "/proc/out", *SMALL, "--steps=1")
    wanted = "--output is /proc/out, but /proc cannot be written to; choose another folder"
    assert (code, said) == (2, f"esogen: {wanted}\n")


@pytest.mark.parametrize(
    "word", ["--tokenizer=x.json", "--hidden-size=8", "--vocab-size=400", "--family=esolm-b"]
)
def test_what_a_model_brings_cannot_be_chosen_beside_it(
    command: Command, text: Path, tmp_path: Path, tiny_folder: Path, word: str
) -> None:
    code, said = command(text, "-o", tmp_path / "out", "--init", tiny_folder, word)
    assert code == 2
    assert f"{word.partition('=')[0]} cannot be chosen beside --init" in said


OTHERS: tuple[Family, ...] = ("esolm-a", "mdlm", "bd3lm", "ar")


@pytest.mark.parametrize("family", OTHERS)
def test_every_family_trains_is_measured_saved_opened_trained_further_and_samples(
    command: Command, text: Path, tmp_path: Path, family: Family
) -> None:
    folder, further = tmp_path / "out", tmp_path / "further"
    words = [text, "-o", folder, *SHORT, "--layout=whole", "--length=64", "--vocab-size=300"]
    words += [word for word in NETWORK if family != "ar" or not word.startswith("--cond-dim")]
    words += ["--family", family, "--steps=3", "--valid", text, "--ema=0"]
    words += ["--block-size=8"] if family == "bd3lm" else []
    words += ["--alpha-0=0.5"] if family == "esolm-a" else []
    code, said = command(*words)
    assert code == 0, said
    exact = " at most" if family != "ar" else ""
    named = "alpha_0 0.5: " if family == "esolm-a" else ""
    assert f"step 3 · bits per byte{exact} · {named}" in said
    lm = load(str(folder), device="cpu")
    config = lm.checkpoint.config
    assert config.family == family
    assert config.block_size == (8 if family == "bd3lm" else 1)
    assert config.bos_id == lm.checkpoint.tokenizer.end_of_text
    sample = next(lm.sample("Once upon", seed=0, raw=True))
    assert len(sample.tokens) == 64
    assert sample.nfe == sample.decided or family in ("mdlm", "esolm-a")

    code, said = command(text, "-o", further, "--init", folder, *SHORT, "--steps=1")
    assert code == 0, said
    assert read_config(further / "config.json").model == config


@pytest.mark.parametrize("family", ["esolm-b", *OTHERS])
def test_every_family_begins_as_its_embeddings_with_all_tokens_alike(family: Family) -> None:
    """Blocks begin as the identity, with adaLN and without; else the twins do not begin alike."""
    config = ModelConfig(family, 300, 16, 16, 2, 2, cond_dim=4, dropout=0.0, block_size=4, bos_id=3)
    network = Network(config)
    initialise(network, torch.Generator().manual_seed(0))
    ids_BL = torch.arange(10).view(2, 5)
    hidden_BLD = network.hidden(ids_BL, ids_BL, Dense(causal=True))
    assert torch.equal(hidden_BLD, network.vocab_embed(ids_BL))
    assert {*network.logits(hidden_BLD).flatten().tolist()} == {-torch.inf, 0.0}


def grown(family: Family, blocks: int) -> tuple[Network, Network]:
    """A network of two blocks, and what it is with so many."""
    config = ModelConfig(family, 300, 16, 16, 2, 2, cond_dim=4, dropout=0.0, block_size=4, bos_id=3)
    tensors = random_tensors(config, seed=0)
    small, large = (
        build(*told, folded=False, device=torch.device("cpu"), dtype=torch.float32)
        for told in ((config, dict(tensors)), deepened(config, tensors, blocks))
    )
    return small, large.requires_grad_(requires_grad=True)


@pytest.mark.parametrize("blocks", [2, 3, 4, 7])
@pytest.mark.parametrize("family", ["esolm-b", *OTHERS])
def test_a_deeper_network_computes_the_same_and_every_block_of_it_learns(
    family: Family, blocks: int
) -> None:
    small, large = grown(family, blocks)
    assert large.config.n_blocks == len(large.blocks) == blocks
    ids_BL = torch.arange(10).view(2, 5)
    found, wanted = (
        network.logits(network.hidden(ids_BL, ids_BL, Dense(causal=True)))
        for network in (large, small)
    )
    assert torch.equal(found, wanted)
    found[..., :100].square().sum().backward()  # type: ignore[no-untyped-call]
    for block in large.blocks:
        assert any(p.grad is not None and p.grad.any() for p in block.parameters())


def test_a_model_trained_further_may_have_more_blocks_but_no_fewer(
    command: Command, text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = tmp_path / "out"
    words = (text, "--init", tiny_folder, *SHORT, "--steps=2", "--learning-rate=1e-9")
    code, said = command(*words, "-o", folder, "--blocks=5")
    assert code == 0, said
    old, new = (load(str(path), device="cpu", dtype="fp32") for path in (tiny_folder, folder))
    assert new.checkpoint.config.n_blocks == 5
    assert next(new.sample("The", seed=1)).text == next(old.sample("The", seed=1)).text
    code, said = command(*words, "-o", tmp_path / "other", "--blocks=1")
    assert code == 2
    assert said == "esogen: --blocks is 1; it must be at least 2, the model's own\n"


@pytest.mark.parametrize("family", OTHERS)
def test_the_loss_of_every_family_goes_down(family: Family) -> None:
    rows = Rows(np.tile(np.array([5, 7, 5, 9], np.int32), (4, 4)), np.full(4, 16, np.int32), 64)
    alphas = (ALPHA_0.get(family, 0.5),)
    recipe = replace(RECIPE, steps=30, alphas=alphas, learning_rate=0.05, micro_batch=8)
    config = ModelConfig(family, 300, 16, 16, 2, 2, cond_dim=4, dropout=0.0, block_size=4, bos_id=3)
    network = Network(config)
    initialise(network, torch.Generator().manual_seed(0))
    losses = [report.loss for report in Trainer(network, rows, recipe).run()]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize(
    ("family", "word", "why"),
    [
        ("mdlm", "--alpha-0=0.5", "has no share of a diffusion phase to choose"),
        ("bd3lm", "--alpha-0=1", "has no share of a diffusion phase to choose"),
        ("ar", "--alpha-0=0", "has no share of a diffusion phase to choose"),
        ("mdlm", "--card-alpha-0=0.5", "has no share of a diffusion phase to choose"),
        ("mdlm", "--card-schedule=blocks", "decides positions at random"),
        ("bd3lm", "--card-schedule=blocks", "decides block after block"),
        ("bd3lm", "--card-steps=3", "decides one token a call"),
        ("ar", "--card-steps=3", "decides one token a call"),
        ("ar", "--cond-dim=8", "has no adaLN"),
        ("ar", "--no-bos", "always begins from end-of-text"),
        ("esolm-b", "--block-size=8", "has no blocks"),
        ("mdlm", "--block-size=8", "has no blocks"),
    ],
)
def test_a_flag_that_does_not_fit_a_family_is_refused_by_name(
    command: Command, text: Path, family: str, word: str, why: str
) -> None:
    code, said = command(text, "-o", text.parent / "out", "--family", family, word)
    flag = word.partition("=")[0].replace("--no-bos", "--bos")
    assert code == 2
    assert said.startswith(f"esogen: {flag} is ")
    assert f"a model of the family {family} {why}; leave it out" in said
    assert len(said.splitlines()) == 1
    assert not (text.parent / "out").exists()


def test_a_family_that_there_is_not_is_told_the_nearest(command: Command, text: Path) -> None:
    code, said = command(text, "-o", text.parent / "out", "--family=bd3-lm")
    assert code == 2
    assert "did you mean --family bd3lm?" in said


def test_a_card_with_more_tokens_than_the_model_reads_is_refused_before_training(
    command: Command, text: Path, tmp_path: Path
) -> None:
    code, said = command(text, "-o", tmp_path / "out", *SMALL, "--steps=2", "--card-length=999")
    assert code == 2
    assert "--card-length is 999; it must be from 1 to 16, what the model reads" in said
    assert not (tmp_path / "out").exists()


def test_rows_longer_than_the_model_are_refused(
    command: Command, text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    code, said = command(text, "-o", tmp_path / "out", "--init", tiny_folder, "--length=65")
    assert code == 2
    assert "--length is 65; the model of --init takes at most 64 tokens" in said


# Interrupts


def start(words: Sequence[object], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "esogen", "train", *map(str, words)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def interrupted(words: Sequence[object], number: signal.Signals) -> str:
    """What a run says that gets a signal after its first line of progress."""
    with start(words) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step 1/"):
            assert process.poll() is None
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 130, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on_to_the_same_weights(
    command: Command, text: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def words(name: str) -> list[object]:
        return [text, "-o", tmp_path / name, *SMALL, "--steps=300", "--dropout=0.2"]

    said = interrupted(words("cut"), number)
    step = int(said.split("after step ")[1].split(" ")[0])
    assert 1 <= step < 300
    assert "holds the state: add --resume to the same command to go on" in said
    assert read_config(tmp_path / "cut" / "config.json").training["step"] == step
    code, said = command(*words("cut"), "--resume")
    assert code == 0, said
    assert f"from step {step} to 300\nstep {step + 1}/300 · " in said
    command(*words("whole"))
    assert_same(load_file(tmp_path / "cut" / STATE), load_file(tmp_path / "whole" / STATE))


def test_a_signal_between_two_steps_keeps_what_was_reached(
    command: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(name: str) -> list[object]:
        return [text, "-o", tmp_path / name, *SMALL, "--steps=5", "--dropout=0.2"]

    run, reached = Trainer.run, 2

    def signalled(self: Trainer, *arguments: Any) -> Any:
        for report in run(self, *arguments):
            if report.step == reached:
                signal.raise_signal(signal.SIGINT)
            yield report

    command(*words("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", signalled)
        code, said = command(*words("cut"))
    assert code == 130
    assert "stopped after step 2 of 5" in said
    assert command(*words("cut"), "--resume")[0] == 0
    assert_same(load_file(tmp_path / "cut" / STATE), load_file(tmp_path / "whole" / STATE))


def test_a_signal_while_validating_does_not_wait_for_it(
    command: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the validation went on")

    monkeypatch.setattr(Run, "validate", validate)
    code, said = command(
        text, "-o", tmp_path / "out", *SMALL, "--steps=5", "--valid-every=3", "--valid", text
    )
    assert code == 130
    assert "stopped after step 3 of 5" in said
    assert (tmp_path / "out" / STATE).exists()


def test_a_second_signal_does_not_wait_for_the_step(
    command: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the step went on")

    monkeypatch.setattr(Trainer, "_update", update)
    code, said = command(text, "-o", tmp_path / "out", *SMALL, "--steps=5")
    assert code == 130
    assert said.splitlines()[-1] == "esogen: interrupted"
    assert not (tmp_path / "out").exists()


def test_a_run_in_pieces_ends_with_the_weights_of_one_in_one(
    command: Command, text: Path, tmp_path: Path
) -> None:
    words = (text, *SMALL, "--steps=3", "--dropout=0.3", "--alpha-0=0.5")
    command(*words, "-o", tmp_path / "whole")
    pieces = (*words, "-o", tmp_path / "pieces", "--minutes=1e-9")
    for step, resume in ((1, []), (2, ["--resume"])):
        code, said = command(*pieces, *resume)
        assert code == 0
        assert f"the minutes are up after step {step} of 3; add --resume" in said
    code, said = command(*pieces, "--resume")
    assert (code, "the minutes are up" in said) == (0, False)
    whole, found = (load_file(tmp_path / name / STATE) for name in ("whole", "pieces"))
    assert_same(found, whole)


def test_a_kernel_of_the_gpu_is_refused_elsewhere(
    command: Command, text: Path, tmp_path: Path
) -> None:
    code, said = command(text, "-o", tmp_path / "out", *SMALL, "--attention=flex")
    assert code == 2
    assert "--attention is 'flex', which is for a network compiled for a GPU" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns about itself
def test_a_compiled_network_trains_alike(command: Command, text: Path, tmp_path: Path) -> None:
    for name, word in (("plain", "--no-compile"), ("compiled", "--compile")):
        code, said = command(
            text, "-o", tmp_path / name, *SMALL, "--steps=3", "--dropout=0", "--alpha-0=0.5", word
        )
        assert code == 0, said
    found, wanted = (load_file(tmp_path / name / STATE) for name in ("compiled", "plain"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words", [["--no-compile"], ["--compile"], ["--attention=flex"], ["--dtype=fp32"]]
)
def test_a_gpu_trains(command: Command, text: Path, tmp_path: Path, words: list[str]) -> None:
    words = [*SMALL, "--device=cuda", "--alpha-0=0.5", "--steps=3", "--valid", str(text), *words]
    code, said = command(text, "-o", tmp_path / "out", *words)
    assert code == 0, said


def test_bf16_arithmetic_keeps_float32_weights(
    command: Command, text: Path, tmp_path: Path
) -> None:
    code, said = command(text, "-o", tmp_path / "out", *SMALL, "--steps=2", "--dtype=bf16")
    assert code == 0, said
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / STATE).values()} == {
        torch.float32
    }
