"""The Python face: what `esogen.load` and `sample` promise a program."""

import shutil
from pathlib import Path

import pytest
import torch

import esogen
from esogen.checkpoint.config_file import Card
from esogen.checkpoint.folder import save_checkpoint
from esogen.checkpoint.placement import narrowed
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import NumericalError, UsageError
from esogen.language_model import LanguageModel, load
from esogen.model.config import ModelConfig
from esogen.sampling import Sample
from tests.conftest import random_tensors


@pytest.fixture(scope="module")
def lm(tiny_folder: Path) -> LanguageModel:
    return load(str(tiny_folder), device="cpu")


def texts(samples: list[Sample]) -> list[tuple[int, ...]]:
    return [sample.tokens for sample in samples]


def test_the_package_hands_on_load_and_sample(tiny_folder: Path) -> None:
    assert esogen.load is load
    assert isinstance(next(esogen.load(str(tiny_folder)).sample(seed=0)), esogen.Sample)


def test_what_is_not_said_comes_from_the_models_card(lm: LanguageModel) -> None:
    settings = lm.settings()
    assert (settings.length, settings.schedule.steps) == (48, 12)
    assert (settings.schedule.alpha_0, settings.schedule.schedule) == (1.0, "random")


def test_without_a_card_length_is_the_models_and_steps_a_quarter(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"esogen"', '"other"'))
    settings = load(str(folder)).settings()
    assert (settings.length, settings.schedule.steps) == (64, 16)


def test_a_sample_begins_with_its_prompt_and_tells_where_each_token_came_from(
    lm: LanguageModel,
) -> None:
    sample = next(lm.sample("Once upon", seed=3, raw=True))
    given = lm.encode_prompt("Once upon", 48)
    assert sample.text.startswith("Once upon")
    assert sample.tokens[: len(given)] == tuple(given)
    assert all(step == -1 for step in sample.steps[: len(given)])
    assert sample.decided == len(sample.tokens) - len(given) == 48 - len(given)
    assert max(sample.steps) == sample.nfe - 1


def test_log_prob_is_the_sum_over_the_text(lm: LanguageModel) -> None:
    for sample in lm.sample(n=8, seed=1, temperature=1.5):
        assert sample.log_prob == pytest.approx(sum(sample.log_probs))
        assert len(sample.tokens) == len(sample.steps) == len(sample.log_probs)
        assert all(log_prob <= 0 for log_prob in sample.log_probs)


def test_a_text_ends_at_its_first_end_of_text_unless_raw(lm: LanguageModel) -> None:
    end = lm.checkpoint.tokenizer.end_of_text
    ended = list(lm.sample(n=40, seed=0, temperature=3.0, top_p=1.0))
    raw = list(lm.sample(n=40, seed=0, temperature=3.0, top_p=1.0, raw=True))
    assert any(end in sample.tokens for sample in ended)
    for short, whole in zip(ended, raw, strict=True):
        assert len(whole.tokens) == 48
        assert whole.tokens[: len(short.tokens)] == short.tokens
        assert end not in short.tokens[:-1]
        assert "<|endoftext|>" not in short.text


def test_sample_i_of_a_seed_does_not_depend_on_how_many_are_asked_for(lm: LanguageModel) -> None:
    many = list(lm.sample("The", n=7, seed=5, batch_size=3, alpha_0=0.5))
    few = list(lm.sample("The", n=2, seed=5, batch_size=1, alpha_0=0.5))
    assert texts(many)[:2] == texts(few)
    assert [sample.index for sample in many] == list(range(7))


def test_another_seed_gives_another_text(lm: LanguageModel) -> None:
    assert texts(list(lm.sample(seed=1))) != texts(list(lm.sample(seed=2)))


def test_the_whole_text_may_be_given(lm: LanguageModel) -> None:
    given = lm.encode_prompt("Once upon a time", 48)
    sample = next(lm.sample("Once upon a time", length=len(given), seed=0, raw=True))
    assert sample.text == "Once upon a time"
    assert (sample.nfe, sample.log_prob) == (0, 0.0)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_precision_samples_with_and_without_the_cache(
    tiny_folder: Path, dtype: str, cached: bool
) -> None:
    lower = load(str(tiny_folder), device="cpu", dtype=dtype)
    sample = next(lower.sample(seed=0, alpha_0=0.5, kv_cache=cached, raw=True))
    assert len(sample.tokens) == 48


def test_verify_finds_nothing_unexplained(lm: LanguageModel) -> None:
    batch = next(lm.batches("The", lm.settings(seed=0, alpha_0=0.5), n=4))
    found = batch.verify()
    assert found.draws == 4 * (48 - batch.plan.given)
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"length": 65}, "length is 65; this model takes 1 to 64"),
        ({"length": 0}, "length is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"alpha_0": 1.01}, "alpha_0 is 1.01"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"n": 0}, "num_samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_value_out_of_range_is_named(
    lm: LanguageModel, wrong: dict[str, float], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        list(lm.sample(**wrong))  # type: ignore[arg-type]


def test_a_gpu_without_bfloat16_is_told_of_and_a_cpu_is_not() -> None:
    gpu, cpu, half = torch.device("cuda"), torch.device("cpu"), torch.float16
    assert narrowed("auto", half, gpu) == "dtype is fp16, for this GPU has no bfloat16"
    untold = (("auto", half, cpu), ("fp16", half, gpu), ("auto", torch.bfloat16, gpu))
    assert not any(narrowed(*each) for each in untold)


def test_a_prompt_longer_than_the_length_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match=r"the prompt has \d+ tokens and the length is 4"):
        list(lm.sample("Once upon a time there was a little cat", length=4))


def test_logits_that_are_no_numbers_are_an_error_and_not_a_text(
    tiny_config: ModelConfig, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tensors = random_tensors(tiny_config, seed=0)
    tensors["output_layer.linear.weight"].fill_(3e38)
    save_checkpoint(tmp_path / "broken", Card(tiny_config), tensors, tiny_tokenizer, torch.float32)
    with pytest.raises(NumericalError, match="logits that are not finite"):
        list(load(str(tmp_path / "broken"), dtype="fp32").sample(seed=0))
