"""The cached sampler is the uncached network, in every batch and every precision it promises."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esogen.checkpoint.config_file import SCHEDULES
from esogen.checkpoint.folder import Checkpoint, open_checkpoint
from esogen.checkpoint.placement import choose_attention
from esogen.checkpoint.weights import build
from esogen.generate import denoise as denoise_module
from esogen.generate.captured import Through
from esogen.generate.denoise import CachedCalls
from esogen.generate.draw import DrawSettings
from esogen.generate.plan import Plan, ScheduleSettings
from esogen.generate.verify import Agreement, RowByRow, Side, compare
from esogen.likelihood import token_log_probs
from esogen.model.attention import Attend, attention
from esogen.model.cache import KVCache
from esogen.model.config import ModelConfig
from esogen.model.network import EVERYTHING, Network
from esogen.trace import GIVEN, UNDECIDED, Recorder, Trace
from tests import golden
from tests.runs import NO_POSITIONS, begin, calls_for, forced_logits, plan_for, run

LENGTH = 40
RULES = [
    ScheduleSettings(8, 1.0),
    ScheduleSettings(12, 0.5),
    ScheduleSettings(3, 0.0),
    ScheduleSettings(6, 1.0, "blocks"),
    ScheduleSettings(7, 0.5, "streams"),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
BATCHES = (1, 2, 3, 5, 64)


@pytest.fixture(scope="module")
def network(tiny_checkpoint: Checkpoint) -> Network:
    return tiny_checkpoint.network


def trace_of(
    network: Network, plan: Plan, samples: range, *, cached: bool = True, end: int | None = None
) -> Trace:
    progress = begin(network, plan, samples)
    given_L = np.zeros(plan.order_BL.shape[1], np.int64)
    given = plan.order_BL[0, : plan.given]
    given_L[given] = progress.canvas_BL[0].numpy()[given]
    recorder = Recorder(plan, given_L)
    for step in run(network, plan, samples, cached=cached, end_of_text=end):
        recorder.record(step)
    return recorder.finish(end_of_text=end)


def test_cached_sampling_reproduces_the_golden_logits() -> None:
    network, case = golden.network("esolm-b", folded=True), golden.expected("esolm-b")
    order, text = case["sampling.order"], case["x0"]
    counts = case["sampling.tokens_per_step"].numpy()
    plan = Plan(order.numpy(), 0, counts, len(counts))
    logits = forced_logits(network, plan, text, cached=True)
    assert golden.difference(logits, case["sampling.logits"]) < golden.TOLERANCE


@every_rule
@pytest.mark.parametrize("fixed", [NO_POSITIONS, np.arange(5), np.arange(1, LENGTH, 3)])
def test_cached_logits_are_the_uncached_ones_in_every_batch(
    network: Network, rule: ScheduleSettings, fixed: np.ndarray
) -> None:
    """Promise (1): teacher-forced log-probabilities within 1e-4 at float32."""
    text = random_text(network, max(BATCHES))
    alone: dict[int, Tensor] = {}
    for batch in BATCHES:
        plan = plan_for(rule, range(batch), LENGTH, given=fixed)
        cached = forced_logits(network, plan, text[:batch], cached=True)
        for row in range(min(batch, 2)):
            single = plan_for(rule, range(row, row + 1), LENGTH, given=fixed)
            if row not in alone:
                one = text[row : row + 1]
                alone[row] = forced_logits(network, single, one, cached=False)[0]
            assert golden.difference(cached[row], alone[row]) < 1e-4


@pytest.fixture(scope="module")
def network_with_bos(tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]) -> Network:
    """The same weights, for texts that begin from token 7."""
    config, cpu = replace(tiny_config, bos_id=7), torch.device("cpu")
    return build(config, dict(tiny_tensors), folded=True, device=cpu, dtype=torch.float32)


@every_rule
@pytest.mark.parametrize("fixed", [NO_POSITIONS, np.arange(1, LENGTH, 3)])
def test_a_text_that_begins_from_a_token_is_one_that_is_longer_by_it(
    network: Network, network_with_bos: Network, rule: ScheduleSettings, fixed: np.ndarray
) -> None:
    """The oracle is a plain network shown the token first, at the position before the text."""
    text = random_text(network, 3)
    plan = plan_for(rule, range(3), LENGTH, given=fixed)
    longer = np.pad(plan.order_BL + 1, ((0, 0), (1, 0)))
    shown = torch.nn.functional.pad(text, (1, 0), value=7)
    expected = forced_logits(
        network,
        Plan(longer, plan.given + 1, plan.counts_S, plan.diffusion_steps),
        shown,
        cached=False,
    )
    for cached in (True, False):
        logits = forced_logits(network_with_bos, plan, text, cached=cached)
        assert golden.difference(logits, expected) < 1e-4


def test_the_scorer_begins_from_the_same_token(network_with_bos: Network) -> None:
    plan = plan_for(ScheduleSettings(10**6, 1.0), range(3), LENGTH)
    trace = trace_of(network_with_bos, plan, range(3))
    order = torch.from_numpy(plan.order_BL)
    scored = token_log_probs(network_with_bos, torch.from_numpy(trace.tokens_BL), order)
    assert (scored - torch.from_numpy(trace.log_probs_BL).gather(1, order)).abs().max() < 1e-4


def random_text(network: Network, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(network.config.mask_id, (rows, LENGTH), generator=generator)


def agreement(
    reference: Network, candidate: Network, rule: ScheduleSettings, rows: int
) -> Agreement:
    plan = plan_for(rule, range(rows), LENGTH)
    sides = (
        Side(reference, calls_for(reference, plan, cached=False)),
        Side(candidate, calls_for(candidate, plan, cached=True)),
    )
    return compare(*sides, plan, begin(reference, plan, range(rows)), DrawSettings(top_p=0.9))


@every_rule
@pytest.mark.parametrize("rows", BATCHES)
def test_drawn_tokens_differ_only_where_the_uniform_is_at_an_edge(
    network: Network, rule: ScheduleSettings, rows: int
) -> None:
    """Promise (2)."""
    found = agreement(network, network, rule, rows)
    assert found.draws == rows * LENGTH
    assert found.unexplained == 0
    assert found.edge <= found.draws / 100
    assert found.log_prob_difference < 1e-4


@every_rule
@pytest.mark.parametrize("rows", BATCHES)
def test_bfloat16_keeps_noise_and_order_and_most_tokens(
    tiny_folder: object, network: Network, rule: ScheduleSettings, rows: int
) -> None:
    """Promise (3): another precision moves the distributions a little, and nothing else."""
    lower = open_checkpoint(str(tiny_folder), device=torch.device("cpu"), dtype=torch.bfloat16)
    found = agreement(network, lower.network, rule, rows)
    assert found.unexplained == 0
    assert 0.0 < found.log_prob_difference < 0.5
    assert found.different < 0.1 * found.draws + 5


def test_a_shifted_cache_is_found_out(network: Network) -> None:
    """The comparison can fail: a network that reads wrong positions is not explained by edges."""

    class Shifted(Network):
        def hidden(
            self, ids_BL: Tensor, positions_BL: Tensor, attend: Attend, wanted: slice = EVERYTHING
        ) -> Tensor:
            return super().hidden(ids_BL, positions_BL // 2, attend, wanted)

    shifted = Shifted(network.config, folded=True)
    shifted.load_state_dict(network.state_dict())
    found = agreement(network, shifted.eval(), RULES[1], 4)
    assert found.log_prob_difference > 0.1
    assert found.different > 0


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_alone_and_in_a_batch_differ_at_edges_only(
    tiny_folder: object, rule: ScheduleSettings, dtype: torch.dtype
) -> None:
    """The same network, 5 rows at once against one at a time."""
    model = open_checkpoint(str(tiny_folder), device=torch.device("cpu"), dtype=dtype).network
    rows = range(5)
    plan = plan_for(rule, rows, LENGTH)
    alone = [calls_for(model, plan_for(rule, range(i, i + 1), LENGTH), cached=True) for i in rows]
    found = compare(
        Side(model, calls_for(model, plan, cached=True)),
        Side(model, RowByRow(alone)),
        plan,
        begin(model, plan, rows),
        DrawSettings(top_p=0.9),
    )
    assert found.unexplained == 0
    assert found.log_prob_difference < (1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("rows", BATCHES)
def test_a_sample_is_the_same_in_every_batch(network: Network, rows: int) -> None:
    """No uniform of these is at an edge: the test before counts those that are."""
    rule = RULES[1]
    together = trace_of(network, plan_for(rule, range(rows), LENGTH), range(rows))
    for row in {0, rows - 1}:
        one = range(row, row + 1)
        alone = trace_of(network, plan_for(rule, one, LENGTH), one)
        assert (together.tokens_BL[row] == alone.tokens_BL[0]).all()
        np.testing.assert_allclose(together.log_probs_BL[row], alone.log_probs_BL[0], atol=1e-4)


@every_rule
def test_every_position_is_recorded_once_with_its_step(
    network: Network, rule: ScheduleSettings
) -> None:
    fixed = np.array([0, 7, 8])
    plan = plan_for(rule, range(3), LENGTH, given=fixed)
    trace = trace_of(network, plan, range(3))
    assert (trace.tokens_BL != UNDECIDED).all()
    assert (trace.steps_BL[:, fixed] == GIVEN).all()
    counts = [np.bincount(row[row >= 0], minlength=plan.nfe).tolist() for row in trace.steps_BL]
    assert counts == [plan.counts_S.tolist()] * 3
    assert (trace.nfe_B == plan.nfe).all()


def test_one_token_per_step_records_what_the_scorer_computes(network: Network) -> None:
    rule = ScheduleSettings(10**6, 1.0)
    plan = plan_for(rule, range(3), LENGTH)
    assert plan.nfe == LENGTH
    trace = trace_of(network, plan, range(3))
    order = torch.from_numpy(plan.order_BL)
    scored = token_log_probs(network, torch.from_numpy(trace.tokens_BL), order)
    recorded = torch.from_numpy(trace.log_probs_BL).gather(1, order)
    assert (scored - recorded).abs().max() < 1e-4


class TestTextsThatEnd:
    """Rows leave once their first end-of-text has no undecided position before it."""

    @pytest.mark.parametrize("alpha_0", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("interval", [1, 3, 1000])
    def test_how_often_rows_are_looked_at_changes_nothing(
        self, network: Network, monkeypatch: pytest.MonkeyPatch, alpha_0: float, interval: int
    ) -> None:
        rows, end = range(12), 3
        plan = plan_for(ScheduleSettings(6, alpha_0), rows, LENGTH)
        whole = trace_of(network, plan, rows)
        monkeypatch.setattr(denoise_module, "END_CHECK_INTERVAL", interval)
        ended = trace_of(network, plan, rows, end=end)
        for row in rows:
            tokens = whole.tokens_BL[row]
            if end not in tokens:
                assert (ended.tokens_BL[row] == tokens).all()
                continue
            stop = int(np.flatnonzero(tokens == end)[0])
            assert (ended.tokens_BL[row, : stop + 1] == tokens[: stop + 1]).all()
            needed = max(whole.steps_BL[row, : stop + 1].max() + 1, plan.diffusion_steps)
            assert ended.nfe_B[row] == needed
            late = whole.steps_BL[row] >= needed
            assert (ended.tokens_BL[row, late] == UNDECIDED).all()
            assert (ended.tokens_BL[row, ~late] == tokens[~late]).all()

    def test_a_run_ends_when_all_rows_have(self, network: Network) -> None:
        """An end-of-text that is given at position 0 leaves nothing to do after the check."""
        plan = plan_for(ScheduleSettings(1, 0.0), range(2), LENGTH, given=np.array([0]))
        steps = list(run(network, plan, range(2), end_of_text=0))
        assert len(steps) <= denoise_module.END_CHECK_INTERVAL


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_cutting_the_cache_is_the_exact_earlier_state(widths: list[int], kept: int) -> None:
    network = golden.network("esolm-b", folded=True)
    ids = torch.arange(sum(widths))[None] * 5 % 97
    positions = torch.arange(sum(widths))[None].flip(1)
    cache = KVCache(network.config, 1, sum(widths))
    starts = np.cumsum([0, *widths])
    kept = min(kept, len(widths) - 1)

    def feed(first: int, last: int) -> Tensor:
        attend = cache.attend(last - first)
        with torch.inference_mode():
            hidden = network.hidden(ids[:, first:last], positions[:, first:last], attend)
        cache.commit(last - first)
        return hidden

    before = [feed(int(a), int(b)) for a, b in pairwise(starts)]
    cache.cut(int(starts[kept]))
    again = feed(int(starts[kept]), int(starts[kept + 1]))
    assert torch.equal(again, before[kept])


def test_rows_of_a_cache_may_have_lengths_of_their_own() -> None:
    """Two rows that stand at different lengths attend as each would alone."""
    network = golden.network("esolm-b", folded=True)
    ids, positions = torch.arange(12)[None] * 5 % 97, torch.arange(12)[None]
    lengths, width = (3, 8), 4

    def prefilled(length: int) -> KVCache:
        cache = KVCache(network.config, 1, 12)
        network.hidden(ids[:, :length], positions[:, :length], cache.attend(length))
        cache.commit(length)
        return cache

    both = KVCache(network.config, 2, 12)
    wide = ids[:, :8].expand(2, -1), positions[:, :8].expand(2, -1)
    with torch.inference_mode():
        network.hidden(*wide, both.attend(8))
        both.commit(np.array(lengths))
        rows = [(ids[:, n : n + width], positions[:, n : n + width]) for n in lengths]
        together = network.hidden(
            torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows]), both.attend(width)
        )
        for row, n in enumerate(lengths):
            alone = network.hidden(*rows[row], prefilled(n).attend(width))
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_a_cache_that_is_full_says_so() -> None:
    cache = KVCache(golden.network("esolm-b", folded=True).config, 1, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4"):
        cache.attend(5)


def test_every_schedule_has_a_rule_above() -> None:
    assert {rule.schedule for rule in RULES} == set(SCHEDULES)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_xformers_attends_as_torch_does(tiny_folder: object, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    kernel = choose_attention("xformers", device, dtype).whole
    network = open_checkpoint(str(tiny_folder), device=device, dtype=dtype).network
    plan = plan_for(RULES[1], range(3), LENGTH, given=np.arange(5))
    caches = [
        KVCache(network.config, 3, LENGTH, device=device, dtype=dtype, kernel=each)
        for each in (attention, kernel)
    ]
    torchs, xformers = (
        Side(network, CachedCalls(network, Through(network, cache))) for cache in caches
    )
    begun = begin(network, plan, range(3), device="cuda")
    found = compare(torchs, xformers, plan, begun, DrawSettings(top_p=0.9))
    assert found.unexplained == 0
    assert found.log_prob_difference < 0.5
