"""Blanks filled in batches of unequal rows: as each row alone, and ranked by an exact score."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from esogen.checkpoint.folder import Checkpoint
from esogen.errors import UsageError
from esogen.generate.draw import Drawn, DrawSettings, draw
from esogen.generate.fill import Canvas, Row, Rule, agreement, fill, prefilled
from esogen.generate.plan import ScheduleSettings
from esogen.generate.streams import token_uniforms
from esogen.generate.template import BLANK
from esogen.language_model import LanguageModel
from esogen.likelihood import token_log_probs
from esogen.model.attention import Attend
from esogen.model.network import EVERYTHING, Network
from esogen.ranking.infilling import Candidate, InfillBatch, Infilling, InfillSettings
from esogen.ranking.scores import RankingOrder, scores
from tests.runs import behind_bos, plan_for, run

RULES = [
    ScheduleSettings(4, 1.0),
    ScheduleSettings(6, 0.5),
    ScheduleSettings(3, 0.0),
    ScheduleSettings(3, 1.0, "streams"),
]
TEMPLATES = [
    "The [MASK:3] sat on the [MASK:1-3].",
    "[MASK:12]",
    "Once upon a time ___ there was a cat",
    "A [MASK] cat. [MASK:20] the end\n",
]
CPU = torch.device("cpu")


@pytest.fixture
def lm(tiny_checkpoint: Checkpoint, request: pytest.FixtureRequest) -> LanguageModel:
    """The tiny model; with `bos` as parameter, one whose texts begin from end-of-text."""
    model = behind_bos(tiny_checkpoint) if getattr(request, "param", "") else tiny_checkpoint
    return LanguageModel(model, CPU)


with_and_without_bos = pytest.mark.parametrize("lm", ["", "bos"], indirect=True)


def settings_for(lm: LanguageModel, rule: ScheduleSettings, n: int) -> InfillSettings:
    drawn = lm.settings(steps=rule.steps, alpha_0=rule.alpha_0, schedule=rule.schedule, seed=0)
    return lm.infill_settings(drawn, n=n)


def rows_of(lm: LanguageModel, rule: ScheduleSettings, templates: Sequence[str]) -> list[Row]:
    infilling = lm.infilling(settings_for(lm, rule, n=2))
    tokens = [lm.read_template(each) for each in templates]
    (batch,) = infilling.batches(tokens, 1000)
    return batch.rows


def anything(lm: LanguageModel) -> Rule:
    engine = lm.infilling(lm.infill_settings(lm.settings(seed=0))).engine
    return Rule(DrawSettings(top_p=0.9), engine.allowed(end=True))


def test_fills_are_drawn_by_what_draws_on_the_device(lm: LanguageModel) -> None:
    drawn: list[int] = []

    def drawing(logits_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings) -> Drawn:
        drawn.append(len(uniforms_K))
        return draw(logits_KV, uniforms_K, settings)

    settings = lm.infill_settings(lm.settings(seed=0), n=2)
    tokens = lm.read_template("The [MASK:3] sat.")
    wanted = lm.infilling(settings).carry_out([tokens], 4)
    counted = Infilling(replace(lm.infilling(settings).engine, draw=drawing), settings)
    assert list(counted.carry_out([tokens], 4)) == list(wanted)
    assert sum(drawn) == 6


def test_a_batch_of_no_rows_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="batch_size is 0; it must be at least 1"):
        lm.infill("The [MASK:3] sat.", batch_size=0)


class Counting(Network):
    """A network that counts its calls and the tokens they compute."""

    computed, calls = 0, 0

    def hidden(
        self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
    ) -> Tensor:
        self.computed, self.calls = self.computed + ids_BL.numel(), self.calls + 1
        return super().hidden(ids_BL, positions_BL, attend, wanted)


def counting(network: Network) -> Counting:
    copy = Counting(network.config, folded=True)
    copy.load_state_dict(network.state_dict())
    return copy.eval()


@with_and_without_bos
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_of_unequal_length_agree_with_the_uncached_network(
    lm: LanguageModel, rule: ScheduleSettings
) -> None:
    network, rows = lm.checkpoint.network, rows_of(lm, rule, TEMPLATES)
    assert len({len(row.ids_L) for row in rows}) >= 4
    canvas = Canvas.of(network, rows, CPU)
    calls = prefilled(network, rows, canvas)
    found = agreement(network, calls, rows, canvas, anything(lm))
    assert found.draws == sum(int(row.plan.counts_S.sum()) for row in rows)
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


def test_a_prefix_read_at_wrong_positions_is_found_out(lm: LanguageModel) -> None:
    """The comparison can fail."""

    class Shifted(Network):
        def hidden(
            self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
        ) -> Tensor:
            return super().hidden(ids_BL, positions_BL // 2, attend, wanted)

    network, rows = lm.checkpoint.network, rows_of(lm, RULES[0], TEMPLATES)
    shifted = Shifted(network.config, folded=True)
    shifted.load_state_dict(network.state_dict())
    canvas = Canvas.of(network, rows, CPU)
    calls = prefilled(shifted.eval(), rows, canvas)
    assert agreement(network, calls, rows, canvas, anything(lm)).log_prob_difference > 0.1


def filled_rows(lm: LanguageModel, rows: Sequence[Row]) -> list[tuple[list[int], np.ndarray]]:
    """Tokens and log-probabilities of each row, by position."""
    network = lm.checkpoint.network
    canvas = Canvas.of(network, rows, CPU)
    calls = prefilled(network, rows, canvas)
    found = [(row.ids_L.copy(), np.zeros(len(row.ids_L))) for row in rows]
    for step in fill(network, calls, rows, canvas, anything(lm)):
        for b, row in enumerate(step.rows):
            positions = step.positions_BK[b].numpy()
            assert (found[row][0][positions] == BLANK).all()
            found[row][0][positions] = step.tokens_BK[b].numpy()
            found[row][1][positions] = step.log_probs_BK[b].numpy()
    return [(tokens.tolist(), log_probs) for tokens, log_probs in found]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_row_is_the_same_alone_and_beside_longer_and_shorter_ones(
    lm: LanguageModel, rule: ScheduleSettings
) -> None:
    rows = rows_of(lm, rule, TEMPLATES)
    together = filled_rows(lm, rows)
    for row, (tokens, log_probs) in [*zip(rows, together, strict=True)][::5]:
        assert BLANK not in tokens
        ((alone, expected),) = filled_rows(lm, [row])
        assert tokens == alone
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_what_lies_in_fresh_memory_changes_nothing(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(lm, RULES[1], TEMPLATES)
    clean = filled_rows(lm, rows)
    empty = torch.empty

    def dirty(*words: object, **named: object) -> Tensor:
        return empty(*words, **named).fill_(torch.nan)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", dirty)
    for (tokens, log_probs), (expected, numbers) in zip(filled_rows(lm, rows), clean, strict=True):
        assert tokens == expected
        assert np.isfinite(log_probs).all()
        np.testing.assert_array_equal(log_probs, numbers)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_rows_without_constraints_are_what_the_sampler_makes(
    lm: LanguageModel, rule: ScheduleSettings
) -> None:
    """`denoise` is the oracle: the same plan, the same uniforms, the same tokens."""
    network, length = lm.checkpoint.network, 24
    given = np.array([0, 3, 4, 11, 23])
    expected = np.full((3, length), -2)
    plan = plan_for(rule, range(3), length, given=given)
    for step in run(network, plan, range(3)):
        np.put_along_axis(expected, step.positions_BK.numpy(), step.tokens_BK.numpy(), axis=1)
    ids_L = np.full(length, BLANK)
    ids_L[given] = given * 7 % (network.config.vocab_size - 1)
    rows = [
        Row(
            ids_L,
            np.zeros(length, np.int64),
            plan_for(rule, range(i, i + 1), length, given=given),
            token_uniforms(0, i, length),
        )
        for i in range(3)
    ]
    for row, (tokens, _) in enumerate(filled_rows(lm, rows)):
        expected[row, given] = ids_L[given]
        assert tokens == expected[row].tolist()


@with_and_without_bos
@pytest.mark.parametrize("n", [1, 8])
def test_candidates_share_one_computation_of_the_given_tokens(lm: LanguageModel, n: int) -> None:
    network = counting(lm.checkpoint.network)
    rows = rows_of(lm, ScheduleSettings(1, 0.0), ["Once upon a time [MASK:4] the end."])[:1] * n
    canvas = Canvas.of(network, rows, CPU)
    calls = prefilled(network, rows, canvas)
    given = rows[0].plan.given + (network.config.bos_id is not None)
    assert network.computed == given
    for _ in fill(network, calls, rows, canvas, anything(lm)):
        pass
    # One mask in the first step; then a token that became clean, and a mask, in each of three.
    assert network.computed == given + n * (1 + 3 * 2)


def test_rows_of_one_layout_share_and_rows_of_another_do_not(lm: LanguageModel) -> None:
    network = counting(lm.checkpoint.network)
    rows = rows_of(lm, RULES[0], ["The [MASK:1-3] sat.", "The [MASK:2] sat."])
    assert len(rows) == 8
    prefilled(network, rows, Canvas.of(network, rows, CPU))
    bos = network.config.bos_id is not None
    assert network.computed == 3 * (rows[0].plan.given + bos)


def test_candidates_are_ranked_by_the_exact_score_of_the_whole_text(lm: LanguageModel) -> None:
    found = lm.infill("The [MASK:2] sat on [MASK:1-3].", n=4, seed=1)
    network = lm.checkpoint.network
    per_token = [each.score_per_token for each in found]
    assert per_token == sorted(per_token, reverse=True)
    assert len({each.fills for each in found}) == len(found) > 4
    for each in found:
        text = torch.tensor([each.tokens])
        order = torch.arange(len(each.tokens))[None]
        expected = float(token_log_probs(network, text, order).sum())
        assert each.score == pytest.approx(expected, abs=1e-4)
        assert each.score_per_token == each.score / len(each.tokens)


def test_the_search_of_lengths_tells_what_was_tried(lm: LanguageModel) -> None:
    found = lm.infill("The [MASK:1-3] sat on [MASK:1-2].", n=3, seed=1)
    assert found.combinations == 6
    assert {each.lengths for each in found.tried} == {(a, b) for a in (1, 2, 3) for b in (1, 2)}
    assert all(each.candidates == 3 for each in found.tried)
    assert found.tried[0].lengths == found[0].lengths
    assert found.tried[0].best == found[0].score_per_token
    bounded = lm.infill("The [MASK:1-3] sat on [MASK:1-2].", n=3, seed=1, max_combinations=2)
    assert (bounded.combinations, len(bounded.tried)) == (6, 2)


def same(one: Candidate, other: Candidate) -> bool:
    return one.tokens == other.tokens and one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_many_templates_at_once_are_filled_as_each_alone(
    lm: LanguageModel, batch_size: int
) -> None:
    settings = settings_for(lm, RULES[1], n=3)
    tokens = [lm.read_template(each) for each in TEMPLATES]
    together = list(lm.infilling(settings).carry_out(tokens, batch_size))
    assert len(together) == len(TEMPLATES)
    for each, filled in zip(tokens, together, strict=True):
        (alone,) = Infilling(lm.infilling(settings).engine, settings).carry_out([each], 4)
        assert all(same(a, b) for a, b in zip(filled, alone, strict=True))


def test_the_text_repeats_what_is_given_and_blanks_behind_a_space_begin_a_word(
    lm: LanguageModel,
) -> None:
    for each in lm.infill("The [MASK:2], ñ [MASK] \t[MASK:3]\r\n", n=12, seed=2, temperature=3.0):
        first, second, third = each.fills
        assert each.text == f"The {first}, ñ {second} \t{third}\r\n"
        assert first
        assert second
        assert not first.startswith(" ")


def test_an_end_of_text_is_drawn_only_if_it_is_allowed(lm: LanguageModel) -> None:
    end = lm.checkpoint.tokenizer.end_of_text
    wild = {"n": 20, "seed": 0, "temperature": 50.0, "top_p": 1.0}
    never = lm.infill("a[MASK:30]b", **wild)  # type: ignore[arg-type]
    assert not any(end in each.tokens for each in never)
    allowed = lm.infill("a[MASK:30]b", end_allowed=True, **wild)  # type: ignore[arg-type]
    ended = [each for each in allowed if end in each.tokens]
    assert ended
    for each in ended:
        before = each.tokens[1 : each.tokens.index(end)]
        assert each.fills == (lm.checkpoint.tokenizer.decode(before),)


def test_recorded_log_probs_are_the_models_own_in_spite_of_constraints(lm: LanguageModel) -> None:
    """One token a step: what was recorded is what the scorer finds in the order of the plan."""
    infilling = lm.infilling(settings_for(lm, ScheduleSettings(10**6, 1.0), n=3))
    (batch,) = infilling.batches([lm.read_template("The [MASK:4] sat [MASK:6].")], 8)
    for _ in batch.steps():
        pass
    for row, each in zip(batch.rows, batch.candidates(), strict=True):
        order = torch.from_numpy(row.order_L)[None]
        found = token_log_probs(lm.checkpoint.network, torch.tensor([each.tokens]), order)[0]
        decided = row.order_L[row.plan.given :]
        recorded = np.array(each.log_probs)[decided]
        np.testing.assert_allclose(recorded, found[row.plan.given :], atol=1e-4)
        assert each.log_prob == pytest.approx(recorded.sum())
        assert [each.steps[p] for p in row.order_L[: row.plan.given]] == [-1] * row.plan.given


def test_a_bound_over_orders_is_the_mean_of_their_probabilities(lm: LanguageModel) -> None:
    network, texts = lm.checkpoint.network, [[1, 2, 3, 4], [5, 6, 7]]
    order = RankingOrder(3, seed=4)
    for text, found in zip(texts, scores(network, texts, order), strict=True):
        each = [
            float(token_log_probs(network, torch.tensor([text]), torch.from_numpy(o)[None]).sum())
            for o in order.of(len(text))
        ]
        assert found == pytest.approx(float(np.log(np.mean(np.exp(each)))), abs=1e-4)
    assert len({tuple(o) for o in order.of(4)}) > 1


def test_a_text_without_a_template_stands_between_its_two_ends(lm: LanguageModel) -> None:
    found = lm.infill(starts_with="Once ", ends_with=" cat.", length=20, fix=["5:the"], seed=0)
    for each in found:
        assert len(each.tokens) == 20
        assert each.text.startswith("Once ")
        assert each.text.endswith(" cat.")
        assert each.tokens[5] == lm.checkpoint.tokenizer.encode(" the")[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"template": "none"}, "has no blank"),
        ({}, "has no blank"),
        ({"template": "[MASK]", "length": 9}, "length is for a text without a template"),
        ({"length": 65}, "length is 65; this model takes 1 to 64 tokens"),
        ({"template": "[MASK]", "n": 0}, "num_samples is 0"),
        ({"template": "[MASK]", "orders": 0}, "orders is 0"),
        ({"template": "[MASK]", "max_combinations": 0}, "max_combinations is 0"),
        ({"template": "[MASK:65]"}, "the model takes 64"),
    ],
)
def test_what_cannot_be_filled_is_refused(
    lm: LanguageModel, words: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        lm.infill(**words)  # type: ignore[arg-type]


def test_the_best_of_some_samples_is_the_most_probable_per_token(lm: LanguageModel) -> None:
    every = list(lm.sample("The", n=6, seed=3, batch_size=4))
    network = lm.checkpoint.network
    found = scores(network, [each.tokens for each in every], RankingOrder())
    per_token = [score / len(each.tokens) for score, each in zip(found, every, strict=True)]
    best = [max(range(first, first + 3), key=per_token.__getitem__) for first in (0, 3)]
    chosen = list(lm.sample("The", n=2, best_of=3, seed=3, batch_size=4))
    assert [each.tokens for each in chosen] == [every[i].tokens for i in best]


def test_scores_do_not_depend_on_what_is_scored_beside(
    lm: LanguageModel,
) -> None:
    network = lm.checkpoint.network
    texts = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [8, 7, 6], [5, 5, 5]]
    together = scores(network, texts, RankingOrder(2))
    for text, score in zip(texts, together, strict=True):
        assert scores(network, [text], RankingOrder(2)) == pytest.approx([score], abs=1e-4)


@pytest.mark.parametrize("cached", [True, False])
def test_drafted_fills_are_the_same_in_every_batch_and_take_fewer_calls(
    lm: LanguageModel, cached: bool
) -> None:
    """Layouts of unequal length in one batch; the others are made one by one, with the cache."""
    template = "Once [MASK:8-10] a time [MASK:6] end."
    found = lm.infill(template, n=3, draft=4, seed=2, kv_cache=cached)
    alone = lm.infill(template, n=3, draft=4, seed=2, batch_size=1)
    for made, other in zip(found, alone, strict=True):
        assert (made.tokens, made.steps, made.rounds) == (other.tokens, other.steps, other.rounds)
        assert made.log_prob == pytest.approx(other.log_prob, abs=1e-3)
        assert made.nfe == len(made.rounds) < sum(step >= 0 for step in made.steps)
        assert sum(stood for _, stood in made.rounds) > 0


def drafting_settings(lm: LanguageModel, *, cached: bool) -> InfillSettings:
    drawn = lm.settings(seed=3, draft=5, kv_cache=cached)
    return lm.infill_settings(drawn, n=3, max_combinations=2)


@with_and_without_bos
@pytest.mark.parametrize("cached", [True, False])
def test_waiting_candidates_that_take_a_place_are_those_made_alone(
    lm: LanguageModel, cached: bool
) -> None:
    """Prefixes come, go and come again; one is nearly as long as a text can be, one is empty."""
    long = lm.checkpoint.tokenizer.decode([5] * (lm.checkpoint.config.model_length - 4))
    texts = [*TEMPLATES, f"{long}[MASK:2]", *TEMPLATES[:2]]
    tokens = [lm.read_template(each) for each in texts]
    together = lm.infilling(drafting_settings(lm, cached=cached)).carry_out(tokens, 4)
    settings = drafting_settings(lm, cached=True)
    for each, found in zip(tokens, together, strict=True):
        (alone,) = lm.infilling(settings).carry_out([each], 1)
        for one, other in zip(found, alone, strict=True):
            assert same(one, other)
            assert (one.steps, one.rounds) == (other.steps, other.rounds)


def test_places_that_are_taken_save_calls(lm: LanguageModel) -> None:
    """A call of four places is one of four texts, not of the slowest in a batch of four."""
    network, settings = counting(lm.checkpoint.network), drafting_settings(lm, cached=False)
    infilling = Infilling(replace(lm.infilling(settings).engine, network=network), settings)
    batches = infilling.batches([*map(lm.read_template, TEMPLATES)], 4, drive=drive)
    made = [[each.nfe for each in batch.candidates()] for batch in batches]
    assert network.calls < 0.9 * sum(map(max, made))


def drive(batch: InfillBatch) -> None:
    for _ in batch.steps():
        pass
