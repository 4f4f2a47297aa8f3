"""Plans: permutations in which the published counts and schedules can be read off."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esogen.checkpoint.config_file import SCHEDULES
from esogen.generate.plan import Plan, ScheduleSettings
from esogen.generate.streams import token_uniforms
from tests.runs import plan_for

schedules = st.builds(
    ScheduleSettings,
    steps=st.integers(1, 70),
    alpha_0=st.sampled_from([0.0, 0.0625, 0.25, 0.5, 0.9, 1.0]),
    schedule=st.sampled_from(SCHEDULES),
)
lengths = st.integers(1, 48)


def late(plan: Plan) -> np.ndarray:
    """The positions of the sequential phase, in order, `[B, ...]`."""
    return plan.order_BL[:, plan.given + plan.counts_S[: plan.diffusion_steps].sum() :]


@given(schedules, lengths, st.integers(0, 2**40), st.data())
@settings(deadline=None)
def test_every_position_is_decided_once_and_given_ones_come_first(
    rule: ScheduleSettings, length: int, seed: int, data: st.DataObject
) -> None:
    fixed = np.array(sorted(data.draw(st.sets(st.integers(0, length - 1)))), np.int64)
    plan = plan_for(rule, range(3), length, seed=seed, given=fixed)
    assert (np.sort(plan.order_BL, axis=1) == np.arange(length)).all()
    assert (np.sort(plan.order_BL[:, : plan.given], axis=1) == fixed).all()
    assert plan.counts_S.sum() == length - len(fixed)
    assert (plan.counts_S > 0).all()


@given(schedules, lengths, st.integers(0, 2**40))
@settings(deadline=None)
def test_what_the_diffusion_phase_leaves_is_decided_one_by_one_left_to_right(
    rule: ScheduleSettings, length: int, seed: int
) -> None:
    plan = plan_for(rule, range(2), length, seed=seed)
    assert (plan.counts_S[plan.diffusion_steps :] == 1).all()
    assert (np.diff(late(plan), axis=1) > 0).all()


@given(schedules, lengths, st.integers(0, 2**40), st.integers(0, 5))
@settings(deadline=None)
def test_a_plan_is_a_function_of_seed_and_sample_whatever_the_batch(
    rule: ScheduleSettings, length: int, seed: int, sample: int
) -> None:
    together = plan_for(rule, range(6), length, seed=seed)
    alone = plan_for(rule, range(sample, sample + 1), length, seed=seed)
    assert (together.counts_S == alone.counts_S).all()
    assert (together.order_BL[sample] == alone.order_BL[0]).all()


@given(schedules, st.integers(2, 48), st.integers(0, 2**40))
@settings(deadline=None)
def test_samples_of_a_template_share_the_order_of_their_given_tokens(
    rule: ScheduleSettings, length: int, seed: int
) -> None:
    plan = plan_for(rule, range(4), length, seed=seed, given=np.arange(0, length, 2))
    assert (plan.order_BL[:, : plan.given] == plan.order_BL[0, : plan.given]).all()


@pytest.mark.parametrize(
    ("alpha_0", "steps", "published"),
    [(1.0, 128, 128), (1.0, 1024, 646), (1.0, 4096, 906), (0.5, 128, 639), (0.25, 128, 879),
     (0.0625, 1024, 1022)],
)  # fmt: skip
def test_mean_network_calls_are_the_published_ones(
    alpha_0: float, steps: int, published: int
) -> None:
    rule = ScheduleSettings(steps, alpha_0)
    mean = np.mean([plan_for(rule, range(1), 1024, seed=seed).nfe for seed in range(40)])
    assert mean == pytest.approx(published, rel=0.03)


def test_the_diffusion_phase_decides_a_binomial_number_of_positions() -> None:
    length, alpha_0, runs = 40, 0.6, 2000
    rule = ScheduleSettings(1, alpha_0)
    left = np.array(
        [late(plan_for(rule, range(1), length, seed=seed)).shape[1] for seed in range(runs)]
    )
    wanted = stats.binom(length, 1 - alpha_0).pmf(np.arange(length + 1)) * runs
    counts = np.bincount(left, minlength=length + 1)
    common = wanted >= 5
    observed = np.append(counts[common], counts[~common].sum())
    assert stats.chisquare(observed, np.append(wanted[common], wanted[~common].sum())).pvalue > 1e-3


@given(st.integers(1, 40), st.integers(1, 48), st.integers(0, 2**40))
@settings(deadline=None)
def test_streams_decide_row_r_of_every_block_from_left_to_right(
    steps: int, length: int, seed: int
) -> None:
    plan = plan_for(ScheduleSettings(steps, 1.0, "streams"), range(1), length, seed=seed)
    block_steps = min(steps, length)
    rows = [list(range(r, length, block_steps)) for r in range(block_steps)]
    found = np.split(plan.order_BL[0], plan.ends_S[:-1])
    assert [row.tolist() for row in found] == rows


@given(st.integers(1, 40), st.integers(1, 48), st.integers(0, 2**40))
@settings(deadline=None)
def test_blocks_decide_the_same_rows_as_streams_in_another_order(
    steps: int, length: int, seed: int
) -> None:
    plan = plan_for(ScheduleSettings(steps, 1.0, "blocks"), range(2), length, seed=seed)
    block_steps = min(steps, length)
    rows = {tuple(range(r, length, block_steps)) for r in range(block_steps)}
    for order in plan.order_BL:
        assert {tuple(sorted(row)) for row in np.split(order, plan.ends_S[:-1])} == rows


def test_blocks_are_shuffled_between_and_within_rows() -> None:
    plan = plan_for(ScheduleSettings(16, 1.0, "blocks"), range(2), 64)
    first_of_rows = plan.order_BL[:, ::4] % 16
    assert not (first_of_rows[0] == first_of_rows[1]).all()
    assert not (np.diff(first_of_rows[0]) > 0).all()
    assert not (np.diff(plan.order_BL[0].reshape(16, 4), axis=1) > 0).all()


def test_only_a_share_alpha_0_of_the_block_steps_runs() -> None:
    plan = plan_for(ScheduleSettings(16, 0.25, "blocks"), range(1), 64)
    assert plan.diffusion_steps == 4
    assert plan.counts_S.tolist() == [4] * 4 + [1] * 48


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("alpha_0", 1.5), ("alpha_0", -0.1), ("alpha_0", float("nan")),
     ("schedule", "block")],
)  # fmt: skip
def test_a_schedule_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ScheduleSettings(**{"steps": 4, field: value})  # type: ignore[arg-type]


@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(1, 40), st.integers(0, 40))
@settings(deadline=None)
def test_a_position_keeps_its_uniforms_when_the_text_grows(
    seed: int, sample: int, length: int, more: int
) -> None:
    short, long = token_uniforms(seed, sample, length), token_uniforms(seed, sample, length + more)
    assert (long[:length] == short).all()


def test_uniforms_of_different_samples_and_seeds_differ() -> None:
    drawn = [token_uniforms(seed, sample, 8) for seed in range(3) for sample in range(3)]
    assert len({array.tobytes() for array in drawn}) == 9
