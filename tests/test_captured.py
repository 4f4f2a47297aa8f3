"""Recorded steps are the cached steps, which are the uncached network.

A CUDA graph is stood in for by the list of operations that torch saw while the step was recorded:
a replay does the same operations on the same tensors, and no Python of the step runs again.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esogen.checkpoint.placement import choose_attention
from esogen.checkpoint.weights import build
from esogen.generate import captured as captured_module
from esogen.generate.captured import CapturedCalls, Run, worth_recording
from esogen.generate.denoise import CachedCalls, Calls, Step, UncachedCalls, denoise
from esogen.generate.draw import DrawSettings, choose_draw
from esogen.generate.plan import Plan, ScheduleSettings
from esogen.generate.verify import Side, compare
from esogen.model.attention import attention
from esogen.model.cache import KVCache
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.peers import ar
from esogen.peers.family import calls_for
from esogen.peers.family import plan_for as family_plan
from tests.conftest import random_tensors
from tests.runs import NO_POSITIONS, begin, plan_for

LENGTH = 24
RULES = [
    ScheduleSettings(30, 1.0),
    ScheduleSettings(12, 0.5),
    ScheduleSettings(3, 0.0),
]


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation with its arguments and results, in place of a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class Recordings:
    """A stand-in for CUDA graphs; counts what was recorded and what was replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Run) -> Run:
        self.recorded += 1
        tape = Tape()
        with tape:
            out = run()

        def replay() -> Tensor:
            self.replayed += 1
            for func, args, kwargs, wanted in tape.operations:
                _lay_over(wanted, func(*args, **kwargs))
            return out

        return replay


def _lay_over(wanted: Any, found: Any) -> None:
    """A graph's results stand where they stood when it was recorded."""
    if isinstance(found, Tensor):
        if wanted.data_ptr() != found.data_ptr():
            wanted.copy_(found)
    elif isinstance(found, tuple | list):
        for one, other in zip(wanted, found, strict=True):
            _lay_over(one, other)


def seen_attention(q_BLNH: Tensor, k_BPNH: Tensor, v_BPNH: Tensor, stands_B: Tensor) -> Tensor:
    """What the step kernel computes, by torch: every place, under a mask made on the device."""
    queries, places = q_BLNH.shape[1], k_BPNH.shape[1]
    last_BL = stands_B[:, None] + torch.arange(queries, device=q_BLNH.device)
    seen_BLP = torch.arange(places, device=q_BLNH.device) <= last_BL[..., None]
    return attention(q_BLNH, k_BPNH, v_BPNH, seen_BLP[:, None])


@pytest.fixture(scope="module", params=[None, 7], ids=["plain", "with bos"])
def network(
    request: pytest.FixtureRequest, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> Network:
    config, cpu = replace(tiny_config, bos_id=request.param), torch.device("cpu")
    return build(config, dict(tiny_tensors), folded=True, device=cpu, dtype=torch.float32)


@pytest.fixture(autouse=True)
def few_steps_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_module, "LEAST_STEPS", 4)


def captured(network: Network, plan: Plan, record: Recordings) -> Calls:
    rows, length = plan.order_BL.shape
    cache = KVCache(network.config, rows, length)
    plain = CachedCalls(network, cache)
    return CapturedCalls(plain, network, cache, plan, kernel=seen_attention, record=record)


def cached(network: Network, plan: Plan) -> Calls:
    rows, length = plan.order_BL.shape
    return CachedCalls(network, KVCache(network.config, rows, length))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("fixed", [NO_POSITIONS, np.arange(1, LENGTH, 4)], ids=["empty", "given"])
def test_replayed_steps_are_those_of_the_uncached_network(
    network: Network, rule: ScheduleSettings, fixed: np.ndarray
) -> None:
    plan, record = plan_for(rule, range(3), LENGTH, given=fixed), Recordings()
    candidate = Side(network, captured(network, plan, record))
    reference = Side(network, UncachedCalls(network))
    found = compare(
        reference, candidate, plan, begin(network, plan, range(3)), DrawSettings(top_p=0.9)
    )
    assert record.replayed > plan.nfe // 2
    assert record.recorded <= 6
    assert found.draws == 3 * plan.counts_S.sum()
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


@pytest.mark.parametrize("end", [None, 37, 111])
def test_a_replayed_run_is_the_cached_run_when_rows_leave_too(
    network: Network, end: int | None
) -> None:
    """Steps are kept and read at the end: what they hold must not be overwritten by replays."""
    plan = plan_for(ScheduleSettings(12, 0.3), range(5), LENGTH)
    record = Recordings()
    both = captured(network, plan, record), cached(network, plan)
    found, wanted = ([*run(network, calls, plan, end)] for calls in both)
    assert record.replayed
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert (one.tokens_BK == other.tokens_BK).all()
        torch.testing.assert_close(one.log_probs_BK, other.log_probs_BK, atol=1e-4, rtol=1e-4)


def run(network: Network, calls: Calls, plan: Plan, end: int | None) -> list[Step]:
    progress = begin(network, plan, range(len(plan.order_BL)))
    return [
        *denoise(network, calls, plan, progress, DrawSettings(temperature=2.0), end_of_text=end)
    ]


def test_some_of_those_runs_lose_rows_and_record_again(network: Network) -> None:
    plan, kept = plan_for(ScheduleSettings(12, 0.3), range(5), LENGTH), np.array([1, 3])
    record = Recordings()
    calls, other = captured(network, plan, record), cached(network, plan)
    progress, decided, fresh = begin(network, plan, range(5)), plan.given, plan.given
    for index, count in enumerate(plan.counts_S.tolist()):
        if index == plan.nfe // 2:
            before = record.recorded
            progress.keep(kept)
            calls.keep(kept)
            other.keep(kept)
        with torch.inference_mode():
            found, wanted = (each(progress, decided, fresh, count) for each in (calls, other))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        decided, fresh = decided + count, count
    assert record.recorded > before > 0


@pytest.mark.parametrize("given", [0, 6])
def test_a_model_that_goes_left_to_right_is_replayed_too(given: int) -> None:
    config = ModelConfig("ar", 300, LENGTH, hidden_size=32, n_blocks=2, n_heads=2, bos_id=7)
    cpu, tensors = torch.device("cpu"), random_tensors(config, seed=0)
    network = build(config, tensors, folded=True, device=cpu, dtype=torch.float32)
    positions, record = np.arange(LENGTH), Recordings()
    rule = ScheduleSettings(1)
    plan = family_plan(config, rule, 0, range(3), given=positions[:given], blank=positions[given:])
    cache = KVCache(config, 3, LENGTH)
    plain = ar.CachedCalls(network, cache)
    calls = CapturedCalls(
        plain, network, cache, plan, kernel=seen_attention, record=record, with_masks=False
    )
    sides = Side(network, ar.UncachedCalls(network)), Side(network, calls)
    found = compare(*sides, plan, begin(network, plan, range(3)), DrawSettings(top_p=0.9))
    assert (record.recorded, record.replayed) == (1, plan.nfe - 2)
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


def test_a_recording_that_keeps_its_length_is_found_out(network: Network) -> None:
    """The comparison can fail: here a length is a number of the recording, not a tensor."""

    def frozen(q: Tensor, k: Tensor, v: Tensor, stands_B: Tensor) -> Tensor:
        return seen_attention(q, k, v, torch.tensor(stands_B.tolist()))

    plan = plan_for(ScheduleSettings(3, 0.0), range(2), LENGTH)
    rows, length = plan.order_BL.shape
    cache = KVCache(network.config, rows, length)
    plain = CachedCalls(network, cache)
    calls = CapturedCalls(plain, network, cache, plan, kernel=frozen, record=Recordings())
    sides = Side(network, UncachedCalls(network)), Side(network, calls)
    begun = begin(network, plan, range(2))
    assert compare(*sides, plan, begun, DrawSettings()).log_prob_difference > 1e-3


def test_the_kernel_of_triton_serves_a_recorded_run(network: Network) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    from esogen.model.step_kernel import step_attention

    plan = plan_for(ScheduleSettings(9, 1.0), range(2), 12)
    cache = KVCache(network.config, 2, 12)
    plain = CachedCalls(network, cache)
    calls = CapturedCalls(
        plain, network, cache, plan, kernel=step_attention, record=lambda run: run
    )
    sides = Side(network, UncachedCalls(network)), Side(network, calls)
    found = compare(*sides, plan, begin(network, plan, range(2)), DrawSettings(top_p=0.9))
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


@pytest.mark.parametrize(
    ("widths", "recorded"),
    [
        ([2] * 3, []),
        ([2] * 100, [2]),
        ([9, 8, 7, 7] + [2] * 100, [9, 2]),
        ([500, 9] + [2] * 100, [2]),
        ([12, 11, 10, 9, 8, 7, 6, 6, 2], [12, 8]),
        ([3] * 50 + [2] * 50, [3, 2]),
        ([], []),
    ],
)
def test_a_width_is_recorded_where_enough_steps_can_use_it(
    widths: list[int], recorded: list[int]
) -> None:
    assert worth_recording(widths) == recorded


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-3), (torch.bfloat16, 0.5), (torch.float16, 0.1)],
    ids=str,
)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_graphs_on_a_gpu_are_the_uncached_network(
    network: Network,
    tiny_tensors: dict[str, Tensor],
    rule: ScheduleSettings,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    device = torch.device("cuda")
    moved = build(network.config, dict(tiny_tensors), folded=True, device=device, dtype=dtype)
    plan = plan_for(rule, range(5), LENGTH, given=np.arange(1, LENGTH, 4))
    kernels = choose_attention("triton", device, dtype)
    replayed = calls_for(moved, plan, cached=True, kernels=kernels)
    sides = Side(moved, UncachedCalls(moved)), Side(moved, replayed)
    begun = begin(moved, plan, range(5), device="cuda")
    found = compare(*sides, plan, begun, DrawSettings(top_p=0.9))
    assert found.unexplained == 0
    assert found.log_prob_difference < tolerance


@pytest.mark.cuda
@pytest.mark.parametrize("end", [None, 37, 111])
def test_a_run_by_graphs_is_the_cached_run_on_a_gpu(
    network: Network, tiny_tensors: dict[str, Tensor], end: int | None
) -> None:
    device, dtype, rule = torch.device("cuda"), torch.float32, DrawSettings(top_p=0.9)
    moved = build(network.config, dict(tiny_tensors), folded=True, device=device, dtype=dtype)
    plan = plan_for(ScheduleSettings(12, 0.3), range(5), LENGTH)
    runs = []
    for word in ("triton", "sdpa"):
        kernels = choose_attention(word, device, dtype)
        calls = calls_for(moved, plan, cached=True, kernels=kernels)
        progress = begin(moved, plan, range(5), device="cuda")
        runs.append([*denoise(moved, calls, plan, progress, rule, end_of_text=end)])
    for one, other in zip(*runs, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert (one.tokens_BK == other.tokens_BK).all()
        torch.testing.assert_close(one.log_probs_BK, other.log_probs_BK, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
def test_the_loop_never_waits_for_the_gpu(
    tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    """torch raises where an operation would make the host wait."""
    device, dtype = torch.device("cuda"), torch.float32
    network = build(tiny_config, dict(tiny_tensors), folded=True, device=device, dtype=dtype)
    plan = plan_for(ScheduleSettings(12, 0.3), range(5), LENGTH)
    kernels, drawing = choose_attention("triton", device, dtype), choose_draw(device).by
    calls = calls_for(network, plan, cached=True, kernels=kernels)
    progress = begin(network, plan, range(5), device="cuda")
    rule = DrawSettings(top_p=0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [*denoise(network, calls, plan, progress, rule, drawing=drawing)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == plan.nfe
