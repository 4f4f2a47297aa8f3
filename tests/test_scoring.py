"""Scores of texts: against enumeration, the sampler, training, and the dense form."""

import io
import json
import lzma
import math
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esogen.checkpoint.config_file import Card
from esogen.checkpoint.folder import Checkpoint, save_checkpoint
from esogen.checkpoint.pieces import pieces_of
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import EsogenError, NumericalError, UsageError
from esogen.language_model import LanguageModel, load
from esogen.likelihood import log_probs, token_log_probs
from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.config import Family, ModelConfig
from esogen.scoring.defaults import settings_for
from esogen.scoring.documents import Reading, read_stream
from esogen.scoring.figures import Estimate, Figures, bound, levels, mean_of_draws
from esogen.scoring.gain import gains
from esogen.scoring.orders import order_of
from esogen.scoring.score import Document, Score, score_documents
from esogen.scoring.settings import ScoreSettings
from esogen.scoring.surprises import surprises
from esogen.scoring.windows import windows_of
from esogen.training.data import windows as training_windows
from esogen.training.evaluate import evaluate
from tests.conftest import random_tensors

LETTER = "Tom had a little cat and a big, round ball. “I am hungry!” said the old cat. 🐶 Zoë"
LONG = " ".join([LETTER] * 6)
SHORT = "Tom had a"


@pytest.fixture(scope="module")
def lm(tiny_folder: Path) -> LanguageModel:
    return load(str(tiny_folder), device="cpu")


def ids_of(lm: LanguageModel, text: str) -> np.ndarray:
    return np.array(lm.checkpoint.tokenizer.encode(text))


def one_by_one(lm: LanguageModel, ids: np.ndarray, order: tuple[int, ...]) -> float:
    """`log p(ids | order)` from one call for each token: the clean ones before it and one mask."""
    network, total = lm.checkpoint.network, 0.0
    for j, position in enumerate(order):
        places = torch.tensor([order[: j + 1]])
        row = torch.from_numpy(ids)[places]
        row[0, -1] = network.config.mask_id
        with torch.inference_mode():
            logits = network(row, places, Dense(causal=True))[0, -1]
        total += float(logits.log_softmax(-1)[ids[position]])
    return total


# Bounds


def test_over_all_orders_the_bound_is_the_brute_force_likelihood(lm: LanguageModel) -> None:
    ids = ids_of(lm, SHORT)[:4]
    text = lm.checkpoint.tokenizer.decode(ids)
    assert lm.checkpoint.tokenizer.encode(text) == ids.tolist()
    orders = list(permutations(range(len(ids))))
    rows = settings_for(lm.checkpoint, given=orders)
    score = next(score_documents(lm.checkpoint, [Document(0, "it", text)], rows))
    by_hand = [one_by_one(lm, ids, order) for order in orders]
    brute = math.log(math.fsum(map(math.exp, by_hand)) / len(orders))
    assert score.log_prob == pytest.approx(brute, abs=1e-4)
    assert score.figures.tightening[0].log_prob == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_random_orders_find_what_all_orders_have_on_average(lm: LanguageModel) -> None:
    ids = ids_of(lm, SHORT)[:4]
    exact = [one_by_one(lm, ids, order) for order in permutations(range(len(ids)))]
    score = lm.score(lm.checkpoint.tokenizer.decode(ids), orders=1000)
    one = score.figures.tightening[0]
    assert one.orders == 1
    assert abs(one.log_prob - np.mean(exact)) < 5 * one.error
    likelihood = math.log(np.exp(exact).mean())
    assert abs(score.log_prob - likelihood) < 5 * score.figures.estimate.error


def test_the_bound_rises_with_the_number_of_orders(lm: LanguageModel) -> None:
    figures = lm.score(LONG, orders=40).figures
    steps = [*figures.tightening, figures.estimate]
    assert [step.orders for step in steps] == [1, 10, 40]
    assert all(a.log_prob < b.log_prob for a, b in pairwise(steps))


@pytest.mark.parametrize(("orders", "wanted"), [(1, [1]), (7, [1, 7]), (100, [1, 10, 100])])
def test_bounds_are_told_at_powers_of_ten(orders: int, wanted: list[int]) -> None:
    assert levels(orders) == wanted


def test_the_error_of_a_bound_is_its_spread_over_repetitions() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(-100, 1.0, (1500, 60))
    for m in (1, 10, 60):
        found = [bound(row, m) for row in draws]
        spread = np.std([estimate.log_prob for estimate in found])
        told = math.sqrt(np.mean([estimate.error**2 for estimate in found]))
        assert told == pytest.approx(spread, rel=0.15)


def test_the_error_of_a_bound_that_one_order_outweighs_is_not_too_small() -> None:
    draws = np.random.default_rng(0).normal(-1000, 20.0, (3000, 30))
    found = [bound(row, 30) for row in draws]
    spread = np.std([estimate.log_prob for estimate in found])
    told = math.sqrt(np.mean([estimate.error**2 for estimate in found]))
    assert spread < told < 2 * spread


def test_the_error_of_stratified_draws_is_not_too_small() -> None:
    random = np.random.default_rng(1)
    place = (np.arange(16) + random.random((4000, 16))) / 16
    draws = 50 * place + random.normal(0, 2.0, place.shape)
    found = [mean_of_draws([row]) for row in draws]
    spread = np.std([estimate.log_prob for estimate in found])
    told = math.sqrt(np.mean([estimate.error**2 for estimate in found]))
    assert spread < told < 2.5 * spread


def test_figures_of_two_texts_add_up() -> None:
    one = Figures(10, 40, Estimate(5, -20.0, 3.0), (Estimate(1, -22.0, 4.0),))
    both = one + Figures(20, 80, Estimate(5, -40.0, 4.0), (Estimate(1, -44.0, 3.0),))
    assert (both.tokens, both.bytes, both.log_prob) == (30, 120, -60.0)
    assert both.estimate.error == pytest.approx(5.0)
    assert both.tightening == (Estimate(1, -66.0, 5.0),)
    assert both.nats_per_token == pytest.approx(2.0)
    assert both.perplexity == pytest.approx(math.e**2)
    assert both.bits_per_byte == pytest.approx(60 / math.log(2) / 120)


# The sampler


@pytest.mark.parametrize("schedule", ["blocks", "streams", "random"])
def test_a_sample_scored_in_its_own_order_has_the_log_probability_it_was_drawn_with(
    lm: LanguageModel, schedule: str
) -> None:
    run = lm.settings(
        length=40,
        steps=40 if schedule != "random" else 10**9,
        alpha_0=0.6,
        schedule=schedule,  # type: ignore[arg-type]
        seed=3,
        raw=True,
        top_p=0.9,
    )
    batch = next(lm.batches("Tom", run, n=5))
    for _ in batch.steps():
        pass
    drawn = list(batch.samples())
    assert set(batch.plan.counts_S.tolist()) == {1}
    tokens = [np.array(sample.tokens) for sample in drawn]
    given_first = batch.plan.given
    rows = log_probs(lm.checkpoint.network, tokens, list(batch.plan.order_BL), given=given_first)
    for sample, row in zip(drawn, rows, strict=True):
        np.testing.assert_allclose(row, sample.log_probs, atol=1e-4, rtol=0)


# The training bound


@pytest.mark.parametrize("alpha_0", [1.0, 0.5])
def test_the_nelbo_is_that_of_training(lm: LanguageModel, alpha_0: float) -> None:
    found = lm.score(LETTER, bound="nelbo", alpha_0=alpha_0, time_samples=80, end_of_text=True)
    rows = training_windows([LETTER], lm.checkpoint.tokenizer, 64)
    wanted = evaluate(lm.checkpoint.network, rows, alpha_0, samples=80)
    assert wanted.tokens == len(found.tokens)
    difference = found.nats_per_token - wanted.nelbo.value
    assert abs(difference) < 6 * found.figures.estimate.error / len(found.tokens)


def test_without_diffusion_the_nelbo_is_the_exact_likelihood_left_to_right(
    lm: LanguageModel,
) -> None:
    exact = lm.score(LONG, context=0)
    nelbo = lm.score(LONG, bound="nelbo", alpha_0=0.0, time_samples=2)
    assert nelbo.log_prob == pytest.approx(exact.log_prob, abs=1e-3)
    assert nelbo.figures.estimate.error == pytest.approx(0.0, abs=1e-4)
    assert nelbo.log_probs_L is None
    assert nelbo.kind == "NELBO, alpha_0 0, 2 time samples"


# Windows


@given(
    tokens=st.integers(1, 400),
    length=st.integers(1, 64),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_windows_count_every_token_once_and_fit_the_model(
    tokens: int, length: int, data: st.DataObject
) -> None:
    context = data.draw(st.integers(0, length - 1))
    stride = data.draw(st.integers(1, length - context))
    rule = ScoreSettings(length, context=context, stride=stride)
    counted: list[int] = []
    for window in windows_of(tokens, rule):
        assert 0 < window.end - window.start <= length
        assert window.given == (context if window.start or counted else 0)
        counted += range(window.start + window.given, window.end)
    assert counted == list(range(tokens))


def test_a_long_text_is_scored_window_by_window(lm: LanguageModel) -> None:
    ids, found = ids_of(lm, LONG), lm.score(LONG, context=20, stride=30)
    assert len(ids) > 128
    wanted = np.empty(len(ids))
    for counted in (0, *range(50, len(ids), 30)):
        start = max(0, counted - 20)
        end = min(len(ids), counted + (30 if counted else 50))
        part = torch.from_numpy(ids[start:end])[None]
        row = token_log_probs(lm.checkpoint.network, part, torch.arange(end - start)[None])
        wanted[counted:end] = row[0, counted - start :].numpy()
    assert found.log_probs_L is not None
    np.testing.assert_allclose(found.log_probs_L, wanted, atol=2e-5, rtol=0)
    assert found.log_prob == pytest.approx(wanted.sum(), abs=1e-3)
    assert found.bits_per_byte == pytest.approx(-wanted.sum() / math.log(2) / len(LONG.encode()))


def test_more_context_changes_the_figure_and_less_than_none_is_refused(lm: LanguageModel) -> None:
    assert lm.score(LONG, context=0).log_prob != lm.score(LONG, context=32).log_prob
    with pytest.raises(UsageError, match="context is 64; it must be from 0 to 63"):
        lm.score(LONG, context=64)
    with pytest.raises(UsageError, match="stride is 60; it must be from 1 to 54"):
        lm.score(LONG, context=10, stride=60)
    with pytest.raises(UsageError, match="context is 3; it must be 0 for the bound nelbo"):
        lm.score(LONG, context=3, bound="nelbo")


# Orders


@given(
    length=st.integers(1, 64),
    order=st.sampled_from(["left-to-right", "random", "blocks", "streams"]),
    alpha_0=st.floats(0, 1),
    number=st.integers(0, 9),
    data=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_orders_are_permutations_with_the_given_tokens_first(
    length: int, order: str, alpha_0: float, number: int, data: st.DataObject
) -> None:
    known = data.draw(st.integers(0, length - 1))
    rule = ScoreSettings(64, order=order, alpha_0=alpha_0, steps=5)  # type: ignore[arg-type]
    found = order_of(rule, length, known, (0, 0), number)
    assert sorted(found.tolist()) == list(range(length))
    assert sorted(found[:known].tolist()) == list(range(known))


def test_the_hybrid_order_has_a_binomial_number_of_diffusion_tokens_then_left_to_right() -> None:
    rule, diffusion = ScoreSettings(64, order="random", orders=400, alpha_0=0.3), []
    for number in range(400):
        order = order_of(rule, 64, 0, (0, 0), number)
        falls = np.flatnonzero(np.diff(order) < 0)
        diffusion.append(int(falls[-1]) + 1 if len(falls) else 0)
    # The last fall is at the end of the diffusion phase, or one or two before it.
    assert np.mean(diffusion) == pytest.approx(0.3 * 64, abs=1.2)
    assert np.std(diffusion) == pytest.approx(math.sqrt(64 * 0.3 * 0.7), rel=0.15)


def test_streams_are_the_sampler_s_and_two_of_them_are_even_positions_first() -> None:
    rule = ScoreSettings(64, order="streams", steps=2)
    assert order_of(rule, 7, 0, (0, 0), 0).tolist() == [0, 2, 4, 6, 1, 3, 5]


def test_windows_and_texts_have_orders_of_their_own_and_drafts_share_theirs() -> None:
    rule = ScoreSettings(64, order="random")
    orders = {
        key: tuple(order_of(rule, 64, 0, key, 0).tolist()) for key in ((0, 0), (0, 1), (1, 0))
    }
    assert len(set(orders.values())) == 3


def test_a_score_is_a_function_of_its_seed(lm: LanguageModel) -> None:
    one, same, other = (lm.score(LETTER, orders=3, seed=seed).log_prob for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"orders": 0}, "orders is 0"),
        ({"orders": 3, "order": "streams"}, "orders is 3; it must be 1 for the order streams"),
        ({"alpha_0": 1.5}, "alpha_0 is 1.5"),
        ({"steps": 0, "order": "blocks"}, "steps is 0"),
        ({"order": "sideways"}, "order is 'sideways'; it must be one of left-to-right"),
        ({"bound": "loose"}, "bound is 'loose'"),
        ({"time_samples": 0, "bound": "nelbo"}, "time_samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"order": [0, 0, 1]}, "order 1 must be a permutation of 0 to 2.*it has 0 twice"),
        ({"order": [0, 1, 3]}, "order 1 must be a permutation of 0 to 2.*2 is missing"),
        ({"order": [0, 1]}, "is of 2 positions and the text has"),
    ],
)
def test_a_value_out_of_range_is_named(
    lm: LanguageModel, words: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        lm.score(LETTER, **words)  # type: ignore[arg-type]


def test_what_is_not_said_has_a_default(lm: LanguageModel) -> None:
    left = settings_for(lm.checkpoint)
    assert (left.order, left.orders, left.context, left.stride) == ("left-to-right", 1, 16, 48)
    assert settings_for(lm.checkpoint, orders=5).order == "random"
    assert settings_for(lm.checkpoint, alpha_0=0.5).order == "random"
    assert settings_for(lm.checkpoint, bound="nelbo").stride == 64
    assert settings_for(lm.checkpoint, stride=60).context == 4


# Texts


def documents() -> list[Document]:
    texts = [LETTER, SHORT, LONG, "The cat.", "One day the sun was very hot."]
    return [Document(i, f"text {i}", text, i) for i, text in enumerate(texts)]


@pytest.mark.parametrize("words", [{}, {"orders": 12}, {"bound": "nelbo", "time_samples": 6}])
@pytest.mark.parametrize("at_once", [1, 200, 100_000])
def test_texts_score_alike_together_and_alone(
    lm: LanguageModel, words: dict[str, object], at_once: int
) -> None:
    rule = settings_for(lm.checkpoint, **words)  # type: ignore[arg-type]
    together = list(score_documents(lm.checkpoint, documents(), rule, tokens_at_once=at_once))
    for document, score in zip(documents(), together, strict=True):
        alone = next(score_documents(lm.checkpoint, [document], rule))
        assert score.document == document
        assert score.log_prob == pytest.approx(alone.log_prob, abs=1e-3)


def test_scores_come_as_soon_as_their_texts_are_read(lm: LanguageModel) -> None:
    opened: list[int] = []

    def endless() -> Iterator[Document]:
        for index in range(10**9):
            opened.append(index)
            yield Document(index, f"text {index}", LETTER)

    rule = settings_for(lm.checkpoint)
    scores = score_documents(lm.checkpoint, endless(), rule, tokens_at_once=64)
    assert [next(scores).document.index for _ in range(3)] == [0, 1, 2]
    assert len(opened) < 200


@pytest.mark.parametrize(("text", "found"), [("", "the text is empty"), ("T", "is 1 token long")])
def test_a_text_of_less_than_two_tokens_is_refused(
    lm: LanguageModel, text: str, found: str
) -> None:
    with pytest.raises(UsageError, match=f"{found}.*at least 2 tokens"):
        lm.score(text)


def test_the_end_of_a_text_can_be_counted(lm: LanguageModel) -> None:
    end = lm.checkpoint.tokenizer.end_of_text
    found = lm.score("T", end_of_text=True)
    assert found.tokens == (*lm.checkpoint.tokenizer.encode("T"), end)
    assert found.figures.bytes == 1


def test_short_texts_are_left_out_where_somebody_hears_of_it(lm: LanguageModel) -> None:
    heard: list[tuple[Document, UsageError]] = []
    texts = [Document(0, "a", "T"), Document(1, "b", LETTER)]
    rule = settings_for(lm.checkpoint)
    found = score_documents(
        lm.checkpoint, texts, rule, skip=lambda document, error: heard.append((document, error))
    )
    assert [score.document.name for score in found] == ["b"]
    assert [document.name for document, _ in heard] == ["a"]


# Other families


def of_family(family: Family, tokenizer: Tokenizer, folder: Path) -> LanguageModel:
    config = ModelConfig(
        family,
        tokenizer.size + 1,
        16,
        16,
        1,
        2,
        cond_dim=8,
        block_size=3 if family == "bd3lm" else 1,
        bos_id=tokenizer.end_of_text if family == "ar" else None,
    )
    tensors = random_tensors(config, 0)
    save_checkpoint(folder / family, Card(config), tensors, tokenizer, torch.float32)
    return load(str(folder / family), device="cpu")


def nats_at(
    lm: LanguageModel, ids: list[int], hidden: tuple[int, ...], seen: Tensor | None
) -> float:
    """`-log p` of the hidden tokens, each a mask in one input, under a mask of attention."""
    row = torch.tensor([ids])
    row[0, list(hidden)] = lm.checkpoint.config.mask_id
    with torch.inference_mode():
        logits = lm.checkpoint.network(row, torch.arange(len(ids))[None], Dense(seen))[0]
    return -sum(float(logits[i].log_softmax(-1)[ids[i]]) for i in hidden)


def nelbo_by_hand(
    lm: LanguageModel, ids: list[int], block: list[int], seen: Tensor | None
) -> float:
    """The mean over decisions: before one, k tokens of the block are hidden, all sets alike."""
    return math.fsum(
        nats_at(lm, ids, hidden, seen) / k / math.comb(len(block), k)
        for k in range(1, len(block) + 1)
        for hidden in combinations(block, k)
    )


def test_the_nelbo_of_mdlm_is_that_of_all_masks(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = of_family("mdlm", tiny_tokenizer, tmp_path)
    score = lm.score("Tom had", bound="nelbo", time_samples=2000)
    ids = list(score.tokens)
    wanted = nelbo_by_hand(lm, ids, list(range(len(ids))), None)
    assert abs(score.log_prob + wanted) < 4 * score.figures.estimate.error


def test_the_nelbo_of_bd3lm_is_that_of_all_masks_block_by_block(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = of_family("bd3lm", tiny_tokenizer, tmp_path)
    score = lm.score("Tom had", bound="nelbo", time_samples=2000)
    ids = list(score.tokens)
    assert len(ids) > 3
    wanted = 0.0
    for first in range(0, len(ids), 3):
        block = list(range(first, min(first + 3, len(ids))))
        seen = patterns.block_causal(block[-1] + 1, 3)
        wanted += nelbo_by_hand(lm, ids[: block[-1] + 1], block, seen)
    assert abs(score.log_prob + wanted) < 4 * score.figures.estimate.error


@pytest.mark.parametrize("words", [{}, {"context": 5, "stride": 7}])
def test_a_left_to_right_model_is_scored_exactly(
    tiny_tokenizer: Tokenizer, tmp_path: Path, words: dict[str, int]
) -> None:
    lm = of_family("ar", tiny_tokenizer, tmp_path)
    score, network = lm.score(LETTER, **words), lm.checkpoint.network  # type: ignore[arg-type]
    assert score.log_probs_L is not None
    ids, end = list(score.tokens), tiny_tokenizer.end_of_text
    for window in windows_of(len(ids), settings_for(lm.checkpoint, **words)):  # type: ignore[arg-type]
        part = ids[window.start : window.end]
        for i in range(window.given, len(part)):
            row = torch.tensor([[end, *part[:i]]])
            places = torch.arange(-1, i)[None]
            with torch.inference_mode():
                logits = network(row, places, Dense(causal=True))[0, -1]
            found = score.log_probs_L[window.start + i]
            assert found == pytest.approx(float(logits.log_softmax(-1)[part[i]]), abs=2e-5)


@pytest.mark.parametrize(
    ("family", "words", "named"),
    [
        ("mdlm", {}, "which has a NELBO, and no exact figure: ask for --bound nelbo"),
        ("bd3lm", {"orders": 3}, "which has a NELBO, and no exact figure: ask for --bound nelbo"),
        ("esolm-a", {}, "which has a NELBO, and no exact figure: ask for --bound nelbo"),
        ("ar", {"bound": "nelbo"}, "which has an exact likelihood, left to right, and no NELBO"),
        ("ar", {"orders": 3}, "which knows one order: ask for --order left-to-right"),
        ("mdlm", {"bound": "nelbo", "alpha_0": 0.5}, "whose alpha_0 is 1: leave --alpha-0 out"),
    ],
)
def test_a_model_without_this_figure_says_which_its_family_has(
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    family: Family,
    words: dict[str, object],
    named: str,
) -> None:
    lm = of_family(family, tiny_tokenizer, tmp_path)
    with pytest.raises(EsogenError, match=f"is of the family {family}, {named}"):
        lm.score(LETTER, **words)  # type: ignore[arg-type]


def test_a_left_to_right_model_refuses_other_orders_and_gains(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = of_family("ar", tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="reads left to right only"):
        log_probs(lm.checkpoint.network, [np.array([1, 2, 3])], [np.array([2, 1, 0])])
    with pytest.raises(UsageError, match="gain takes three orders, and this model has one"):
        gains(lm.checkpoint, lm.score(LETTER), settings_for(lm.checkpoint))
    mdlm = of_family("mdlm", tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="mdlm has no exact likelihood"):
        log_probs(mdlm.checkpoint.network, [np.array([1, 2, 3])])


def test_variant_a_has_the_nelbo_of_training(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = of_family("esolm-a", tiny_tokenizer, tmp_path)
    found = lm.score("Tom had", bound="nelbo", alpha_0=0.5, time_samples=200, end_of_text=True)
    rows = training_windows(["Tom had"], tiny_tokenizer, 16)
    wanted = evaluate(lm.checkpoint.network, rows, 0.5, samples=200)
    difference = found.nats_per_token - wanted.nelbo.value
    assert abs(difference) < 6 * found.figures.estimate.error / len(found.tokens)


def test_logits_that_are_no_numbers_are_an_error(
    tiny_config: ModelConfig, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tensors = random_tensors(tiny_config, seed=0)
    tensors["output_layer.linear.weight"].fill_(3e38)
    save_checkpoint(tmp_path / "m", Card(tiny_config), tensors, tiny_tokenizer, torch.float32)
    with pytest.raises(NumericalError, match="a likelihood that is no finite number"):
        load(str(tmp_path / "m"), dtype="fp32").score(LETTER)


# Words


@given(text=st.text(min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_pieces_joined_are_the_text_and_cover_every_token(
    tiny_checkpoint: Checkpoint, text: str
) -> None:
    tokenizer = tiny_checkpoint.tokenizer
    ids = tokenizer.encode(text)
    found = list(pieces_of(ids, tokenizer))
    assert "".join(piece.text for piece in found) == tokenizer.decode(ids) == text
    assert [piece.start for piece in found] == [0, *(piece.end for piece in found[:-1])][
        : len(found)
    ]
    assert found[-1].end == len(ids)


def test_gains_are_read_from_the_pass_in_which_a_token_s_parity_comes_second(
    lm: LanguageModel,
) -> None:
    score = lm.score(LETTER)
    found = gains(lm.checkpoint, score, settings_for(lm.checkpoint))
    positions = torch.arange(len(score.tokens))
    assert score.log_probs_L is not None
    for parity in (0, 1):
        first, second = positions[positions % 2 != parity], positions[positions % 2 == parity]
        order = torch.cat([first, second])[None]
        row = token_log_probs(lm.checkpoint.network, torch.tensor([score.tokens]), order)[0]
        wanted = row[len(first) :].numpy() - score.log_probs_L[second]
        np.testing.assert_allclose(found[second], wanted, atol=3e-5, rtol=0)


def test_gains_of_a_long_text_are_those_of_its_windows(lm: LanguageModel) -> None:
    rule = settings_for(lm.checkpoint, context=16)
    score = lm.score(LONG, context=16)
    found = gains(lm.checkpoint, score, rule)
    ids = np.array(score.tokens)
    assert score.log_probs_L is not None
    part = torch.from_numpy(ids[48:112])[None]
    odd_first = torch.tensor([[*range(16), *range(17, 64, 2), *range(16, 64, 2)]])
    row = token_log_probs(lm.checkpoint.network, part, odd_first)[0, 40:].numpy()
    np.testing.assert_allclose(
        found[64:112:2], row - score.log_probs_L[64:112:2], atol=3e-5, rtol=0
    )


def test_more_likeliest_tokens_than_there_are_is_refused(lm: LanguageModel) -> None:
    tokens = lm.checkpoint.config.vocab_size
    assert lm.score("The cat.", best=tokens).best_LN is not None
    with pytest.raises(UsageError, match=f"best is {tokens + 1}; it must be from 0 to {tokens}"):
        lm.score("The cat.", best=tokens + 1)


def test_the_least_expected_words_come_first_with_what_the_model_would_have_said(
    lm: LanguageModel,
) -> None:
    score = lm.score(LETTER, best=3)
    found = surprises(score, lm.checkpoint.tokenizer, 100)
    assert sorted(s.word for s in found) == sorted(LETTER.split())
    assert all(a.bits >= b.bits for a, b in pairwise(found))
    assert math.fsum(s.bits for s in found) == pytest.approx(
        -score.log_prob / math.log(2), rel=1e-6
    )
    assert all(len(s.instead) == 3 for s in found)
    assert all(a[1] >= b[1] for s in found for a, b in pairwise(s.instead))
    assert surprises(score, lm.checkpoint.tokenizer, 2) == found[:2]


# Files


def read(data: bytes, name: str = "some.txt", reading: Reading | None = None) -> list[str]:
    return list(read_stream(io.BytesIO(data), name, reading or Reading()))


def test_a_text_file_is_one_text_or_several_parted_by_lines() -> None:
    assert read(b"\nOne.\n\nStill one.\n") == ["One.\n\nStill one."]
    assert read(b"One.\r\n<|endoftext|>\r\nTwo.\n<|endoftext|>\n") == ["One.", "Two."]
    assert read(b"a\n<|endoftext|>\nb\n", reading=Reading(whole=True)) == ["a\n<|endoftext|>\nb"]
    assert read("\ufeffé\n\nb\n".encode(), reading=Reading(lines=True)) == ["é", "b"]


def test_json_lines_are_known_by_their_name_or_by_the_field() -> None:
    lines = b'{"text": "One.", "body": "Two."}\n\n{"text": "", "body": "x"}\n'
    assert read(lines, "some.jsonl") == ["One.", ""]
    assert read(lines, "some.txt", Reading("body")) == ["Two.", "x"]
    assert read(lzma.compress(lines), "some.jsonl.xz") == ["One.", ""]


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_a_text_holds_an_empty_one(data: bytes) -> None:
    assert read(data, "some.txt") == [""]


@pytest.mark.parametrize(
    ("data", "name", "named"),
    [
        (b"abc\nd\xffe", "some.txt", "some.txt is not UTF-8: there is the byte 0xff at 5"),
        (b"not xz", "some.txt.xz", "some.txt.xz is no intact xz file"),
        (lzma.compress(b"abc" * 100)[:-20], "some.txt.xz", "is no intact xz file"),
        (b'{"text": "a"}\n{', "some.jsonl", "some.jsonl, line 2, is no JSON"),
        (b"[1]\n", "some.jsonl", "line 1, has no object; wanted an object"),
        (b'{"body": 1, "b": 2}\n', "some.jsonl", "has the fields body, b; wanted.*'text'.*--field"),
        (b'{"text": null}\n', "some.jsonl", "has the fields text; wanted"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    data: bytes, name: str, named: str
) -> None:
    with pytest.raises(EsogenError, match=named):
        read(data, name)


def test_a_document_too_large_for_memory_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esogen.scoring.documents.MOST_BYTES", 1000)
    with pytest.raises(EsogenError, match="has a document of more than"):
        read(b"a" * 5000)
    with pytest.raises(EsogenError, match="has a document of more than"):
        read(b"abc\n" * 500)
    many = b"abc\n<|endoftext|>\n" * 500
    assert read(many) == ["abc"] * 500


def test_documents_are_read_one_at_a_time() -> None:
    class Endless(io.RawIOBase):
        """A file larger than any memory."""

        def readline(self, size: int | None = -1, /) -> bytes:
            return b'{"text": "again"}\n'

    found = read_stream(Endless(), "some.jsonl", Reading())  # type: ignore[arg-type]
    assert [next(found) for _ in range(5)] == ["again"] * 5


def test_a_score_says_everything_a_program_needs(lm: LanguageModel) -> None:
    score = lm.score(LETTER, orders=10)
    assert isinstance(score, Score)
    assert score.text == LETTER
    assert score.orders == 10
    assert score.kind == "bound of 10 exact likelihoods, random order, alpha_0 1"
    assert score.perplexity == pytest.approx(math.exp(-score.log_prob / len(score.tokens)))
    assert score.log_probs_L is not None
    assert score.figures.tightening[0].log_prob == pytest.approx(score.log_probs_L.sum())
    assert json.dumps(score.tokens)
