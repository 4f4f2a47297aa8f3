"""What is told of samples: copying against a search by hand, and figures that can be worked out."""

import json
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esogen.bench import judge, twins
from esogen.bench.copying import GRAM, Copied, copied
from esogen.bench.judge import HELD_OUT, distinct, entropy, qualities
from esogen.bench.program import run
from esogen.checkpoint.config_file import Card, read_config, write_config
from esogen.checkpoint.folder import save_checkpoint
from esogen.checkpoint.resolve import CONFIG
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import EsogenError, UsageError
from esogen.language_model import load
from esogen.model.config import ModelConfig
from esogen.training.data import encode
from esogen.training.token_files import write_token_files
from tests.conftest import STORIES, random_tensors


def by_hand(sample: list[int], training: list[int]) -> Copied:
    def stands(first: int, length: int) -> bool:
        wanted = sample[first : first + length]
        return any(training[i : i + length] == wanted for i in range(len(training) - length + 1))

    stretches = range(max(len(sample) - GRAM + 1, 0))
    longest = max(
        (
            length
            for first in stretches
            for length in range(GRAM, len(sample) - first + 1)
            if stands(first, length)
        ),
        default=0,
    )
    return Copied(len(stretches), sum(stands(first, GRAM) for first in stretches), longest)


tokens = st.lists(st.integers(0, 1), max_size=40)


@given(st.lists(tokens, max_size=4), st.lists(st.integers(0, 1), max_size=60), st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_copying_is_what_a_search_by_hand_finds(
    samples: list[list[int]], training: list[int], at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esogen.bench.copying._AT_ONCE", at_once)
        found = copied([np.array(ids, np.int64) for ids in samples], np.array(training, np.uint16))
    assert found == [by_hand(ids, training) for ids in samples]


def test_a_text_of_training_is_copied_whole_and_no_stretch_crosses_two_samples() -> None:
    training = np.arange(100)
    assert copied([training[10:40]], training) == [Copied(23, 23, 30)]
    assert copied([training[:5], training[5:12]], training) == [Copied(0, 0, 0)] * 2


def test_entropy_and_distinct_runs_are_those_of_texts_worked_out_by_hand() -> None:
    assert entropy(np.array([3, 3, 3])) == 0.0
    assert entropy(np.array([1, 2, 3, 4])) == pytest.approx(math.log(4))
    assert distinct([np.array([1, 2, 1, 2]), np.array([1, 2])], 2) == pytest.approx(2 / 4)
    assert distinct([np.array([1])], 2) == 0.0


@pytest.fixture(scope="module")
def judge_folder(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "reader"
    config = ModelConfig("ar", tiny_tokenizer.size + 1, 64, 16, 1, 1, bos_id=0)
    tensors = random_tensors(config, seed=0)
    save_checkpoint(folder, Card(config), tensors, tiny_tokenizer, torch.float32)
    return folder


def test_the_judge_reads_every_token_and_each_end(judge_folder: Path) -> None:
    lm = load(str(judge_folder), device="cpu", dtype="fp32")
    scores = [lm.score(text, context=0, end_of_text=True) for text in STORIES]
    nats = -sum(score.log_prob for score in scores)
    wanted = math.exp(nats / sum(len(score.tokens) for score in scores))
    training = encode(STORIES[:1], lm.checkpoint.tokenizer).ids_T
    (found,) = qualities(lm, {"all": STORIES}, training)
    assert found.perplexity == pytest.approx(wanted, rel=1e-5)
    first = len(lm.checkpoint.tokenizer.encode(STORIES[0]))
    assert found.longest == first
    grams = [len(lm.checkpoint.tokenizer.encode(text)) - GRAM + 1 for text in STORIES]
    assert found.copied == pytest.approx(grams[0] / sum(grams), abs=1e-9)


def test_samples_are_made_once_kept_and_measured_beside_held_out_text(
    judge_folder: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_tokenizer = load(str(tiny_folder), device="cpu").checkpoint.tokenizer
    (shard,) = write_token_files(tmp_path, "a", encode(STORIES, tiny_tokenizer), tiny_tokenizer)
    text = tmp_path / "held.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES))
    words = f"{tiny_folder} -o {tmp_path / 'out'} --judge {judge_folder} --training {shard}"
    words += f" --held-out {text} --samples 2 --length 32 --alpha-0 1 0.25 --steps 4 --device cpu"
    for minutes, groups in (("0", 1), ("9", 3), ("0", 3)):
        monkeypatch.setattr("sys.argv", ["judge", *words.split(), "--minutes", minutes])
        judge.main()
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(found) == groups
        assert found[0]["name"] == HELD_OUT
        assert found[0]["copied"] == 1.0
    assert [each["name"] for each in found[1:]] == ["tiny alpha_0=1 T=4", "tiny alpha_0=0.25 T=4"]


def test_models_that_are_not_there_or_not_finished_are_told_before_anything_is_sampled(
    judge_folder: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_folder, half)
    card = replace(read_config(half / CONFIG), training={"step": 3, "steps": 5})
    write_config(half / CONFIG, card, "float32")
    words = f"-o {tmp_path / 'out'} --training a --held-out b --device cpu --judge"
    for models, said in (
        (f"{tiny_folder} {half} {words} {judge_folder}", "half has had 3 of its 5 steps; train it"),
        (f"{tiny_folder} {words} {half}", "half has had 3 of its 5 steps; train it to the end"),
        (f"twins/alpha-1 {words} {judge_folder}", "twins/alpha-1 is no folder here; train it"),
    ):
        monkeypatch.setattr("sys.argv", ["judge", *models.split()])
        with pytest.raises(EsogenError, match=said):
            judge.main()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def sigterm_is_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_is_put_back")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (EsogenError("no such\nmodel"), 1, "esogen: no such model\n"),
        (UsageError("wrong"), 2, "esogen: wrong\n"),
        (
            OSError(28, "No space left on device", "a/b"),
            1,
            "esogen: a/b: No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, "esogen: interrupted\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_a_script_ends_with_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("sigterm_is_put_back")
def test_a_defect_of_a_script_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: print(1 / 0))


def test_an_interrupt_waits_for_the_training_to_save() -> None:
    saving = "import time; print(flush=True); time.sleep(1); raise SystemExit(7)"
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    assert twins._finished([sys.executable, "-c", saving]) == 7


@pytest.mark.slow
def test_twins_are_trained_in_pieces_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES))
    flags = "--layout packed --length 16 --hidden-size 16 --blocks 1 --heads 1 --steps 3"
    words = f"twins -o {tmp_path / 'out'} --valid {text} --orders 4 --device cpu"
    words += " --only alpha-0.5 mdlm left-to-right"
    behind = f" -- {text} {flags} --vocab-size 300 --batch-size 4 --device cpu --quiet"
    for minutes, finished in (("1e-9", 0), ("1e-9", 0), ("9", 3)):
        argv = f"{words} --minutes {minutes}{behind}".split()
        monkeypatch.setattr("sys.argv", argv)
        twins.main()
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(found) == finished
    assert (tmp_path / "out" / "twins.svg").stat().st_size > 0
    half, mdlm, ar = found
    assert half["exact"]["bits_per_byte"] < half["nelbo"]["bits_per_byte"] + 0.5
    assert "exact" not in mdlm
    assert "nelbo" not in ar
    assert {each["steps"] for each in found} == {3}


def test_twins_say_that_they_are_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "mdlm").mkdir()
    figure = {"bits_per_byte": 1.5, "error": 0.1, "tokens": 9, "bytes": 30}
    row = {"twin": "mdlm", "file": "a.txt", "steps": 3, "nelbo": figure}
    (tmp_path / "mdlm" / twins.FIGURES).write_text(json.dumps([row]))
    twins.report(tmp_path, [twin for twin in twins.TWINS if twin.name == "mdlm"])
    written = capsys.readouterr()
    assert json.loads(written.out.splitlines()[-1]) == [row]
    assert written.err == (
        "twins.svg is not drawn: matplotlib is missing; pip install 'esogen[plot]'\n"
    )
