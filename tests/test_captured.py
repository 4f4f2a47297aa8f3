"""Recorded calls are the cached calls, which are the uncached network.

A CUDA graph is stood in for by the list of operations that torch saw while the step was recorded:
a replay does the same operations on the same tensors, and no Python of the step runs again.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esogen.checkpoint.folder import Checkpoint
from esogen.checkpoint.placement import choose_attention
from esogen.checkpoint.weights import build
from esogen.editor.session import Session
from esogen.generate import captured as captured_module
from esogen.generate.captured import Run, Through, worth_recording
from esogen.generate.denoise import Calls, Step, denoise
from esogen.generate.draft_costs import measured
from esogen.generate.draw import DrawSettings, choose_draw
from esogen.generate.plan import Plan, ScheduleSettings
from esogen.generate.verify import Side, compare
from esogen.language_model import LanguageModel, load
from esogen.model.attention import Kernels, Places, triton_attention
from esogen.model.cache import KVCache, step_by_torch
from esogen.model.config import Family, ModelConfig
from esogen.model.heads import Heads
from esogen.model.network import Network
from esogen.peers.family import calls_for
from esogen.peers.family import plan_for as family_plan
from tests.conftest import random_tensors
from tests.runs import NO_POSITIONS, begin, behind_bos, plan_for

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

    def on(self, device: torch.device) -> "Recordings":
        """What a device records with."""
        return self

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


BY_TORCH = Kernels(step=step_by_torch)
CPU = torch.device("cpu")
NUCLEUS = DrawSettings(top_p=0.9)


@pytest.fixture(scope="module", params=[None, 7], ids=["plain", "with bos"])
def network(
    request: pytest.FixtureRequest, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> Network:
    config = replace(tiny_config, bos_id=request.param)
    return build(config, dict(tiny_tensors), folded=True, device=CPU, dtype=torch.float32)


@pytest.fixture(autouse=True)
def recordings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Recordings:
    """Few calls are worth recording; on a CPU, by the stand-in."""
    monkeypatch.setattr(captured_module, "LEAST_CALLS", 4)
    found = Recordings()
    if not request.node.get_closest_marker("cuda"):
        monkeypatch.setattr(captured_module, "CudaGraphs", found.on)
    return found


def captured(network: Network, plan: Plan) -> Calls:
    return calls_for(network, plan, cached=True, kernels=BY_TORCH)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("fixed", [NO_POSITIONS, np.arange(1, LENGTH, 4)], ids=["empty", "given"])
def test_replayed_steps_are_those_of_the_uncached_network(
    network: Network, rule: ScheduleSettings, fixed: np.ndarray, recordings: Recordings
) -> None:
    plan = plan_for(rule, range(3), LENGTH, given=fixed)
    reference, candidate = uncached(network, plan), captured(network, plan)
    begun = begin(network, plan, range(3))
    found = compare(Side(network, reference), Side(network, candidate), plan, begun, NUCLEUS)
    assert recordings.replayed > plan.nfe // 2
    assert recordings.recorded <= 6
    assert found.draws == 3 * plan.counts_S.sum()
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


def uncached(network: Network, plan: Plan) -> Calls:
    return calls_for(network, plan, cached=False)


@pytest.mark.parametrize("end", [None, 37, 111])
def test_a_replayed_run_is_the_cached_run_when_rows_leave_too(
    network: Network, end: int | None, recordings: Recordings
) -> None:
    """Steps are kept and read at the end: what they hold must not be overwritten by replays."""
    plan = plan_for(ScheduleSettings(12, 0.3), range(5), LENGTH)
    both = captured(network, plan), calls_for(network, plan, cached=True)
    found, wanted = ([*run(network, calls, plan, end)] for calls in both)
    assert recordings.replayed
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


def test_some_of_those_runs_lose_rows_and_record_again(
    network: Network, recordings: Recordings
) -> None:
    plan, kept = plan_for(ScheduleSettings(12, 0.3), range(5), LENGTH), np.array([1, 3])
    calls, other = captured(network, plan), calls_for(network, plan, cached=True)
    progress, decided, fresh = begin(network, plan, range(5)), plan.given, plan.given
    for index, count in enumerate(plan.counts_S.tolist()):
        if index == plan.nfe // 2:
            before = recordings.recorded
            progress.keep(kept)
            calls.keep(kept)
            other.keep(kept)
        with torch.inference_mode():
            found, wanted = (each(progress, decided, fresh, count) for each in (calls, other))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        decided, fresh = decided + count, count
    assert recordings.recorded > before > 0


@pytest.mark.parametrize("given", [0, 6])
@pytest.mark.parametrize("bos", [None, 7])
@pytest.mark.parametrize(
    ("family", "recorded"), [("ar", 1), ("mdlm", 1), ("bd3lm", 2), ("esolm-a", 1)]
)
def test_the_other_families_are_replayed_too(
    family: Family, recorded: int, bos: int | None, given: int, recordings: Recordings
) -> None:
    """A left-to-right text by one recording, blocks by one for their first calls and one more."""
    block = 3 if family == "bd3lm" else 1
    bos = 7 if family == "ar" else bos
    config = ModelConfig(family, 300, LENGTH, 32, 2, 2, 16, bos_id=bos, block_size=block)
    tensors = random_tensors(config, seed=0)
    network = build(config, tensors, folded=True, device=CPU, dtype=torch.float32)
    positions, rule = np.arange(LENGTH), ScheduleSettings(30, 1.0 if family == "mdlm" else 0.2)
    plan = family_plan(config, rule, 0, range(3), given=positions[:given], blank=positions[given:])
    reference, candidate = uncached(network, plan), captured(network, plan)
    begun = begin(network, plan, range(3))
    found = compare(Side(network, reference), Side(network, candidate), plan, begun, NUCLEUS)
    assert recordings.recorded == recorded
    assert recordings.replayed > 8
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-4


@pytest.fixture(params=["nothing", "bos"])
def models(
    request: pytest.FixtureRequest, tiny_checkpoint: Checkpoint
) -> tuple[LanguageModel, LanguageModel]:
    """One model twice: its calls as they are, and recorded."""
    model = behind_bos(tiny_checkpoint) if request.param == "bos" else tiny_checkpoint
    return LanguageModel(model, CPU), LanguageModel(model, CPU, BY_TORCH)


@pytest.mark.parametrize("draft", [None, 4], ids=["plain", "drafts"])
def test_candidates_of_recorded_calls_are_those_of_plain_ones(
    models: tuple[LanguageModel, LanguageModel], draft: int | None, recordings: Recordings
) -> None:
    """Rows of three lengths, so of three prefixes, and of unequal widths."""
    template, steps = "The [MASK:20] sat on the big [MASK:12-14].", None if draft else 12
    plain, recorded = (
        lm.infill(template, n=2, seed=3, steps=steps, alpha_0=0.6, draft=draft) for lm in models
    )
    assert recordings.replayed > 4
    assert [each.tokens for each in recorded] == [each.tokens for each in plain]
    np.testing.assert_allclose(
        [each.log_prob for each in recorded], [each.log_prob for each in plain], atol=1e-3
    )


@pytest.mark.parametrize("draft", [3, 6])
@pytest.mark.parametrize("alpha_0", [1.0, 0.0])
def test_drafts_verified_by_recorded_calls_are_those_of_plain_ones(
    models: tuple[LanguageModel, LanguageModel], draft: int, alpha_0: float, recordings: Recordings
) -> None:
    """Rows stand at lengths of their own, and each call has a pattern of its own."""
    plain, recorded = (
        [*lm.sample("A", n=3, length=48, draft=draft, alpha_0=alpha_0, seed=2, raw=True)]
        for lm in models
    )
    assert recordings.replayed > 4
    assert [each.tokens for each in recorded] == [each.tokens for each in plain]
    assert [each.steps for each in recorded] == [each.steps for each in plain]
    np.testing.assert_allclose(
        [each.log_prob for each in recorded], [each.log_prob for each in plain], atol=1e-3
    )


def test_what_drafts_cost_is_measured_with_recorded_calls(
    network: Network, recordings: Recordings
) -> None:
    """Those that draft nothing, two tokens, and as many more as were tried."""
    measured(network, 2, 48, kernels=BY_TORCH)
    assert recordings.recorded >= 2
    assert recordings.replayed >= 2 * recordings.recorded


def test_the_editor_replays_its_calls(
    models: tuple[LanguageModel, LanguageModel], recordings: Recordings
) -> None:
    """Undo puts other keys under what was recorded, and another length."""
    texts = []
    for lm in models:
        session = Session(lm, lm.infill_settings(lm.settings(seed=1, steps=9), n=1))
        drain(session.open(lm.read_template("A [MASK:9] sat on [MASK:9].")))
        drain(session.reroll(1))
        session.undo()
        drain(session.reroll(2))
        texts.append([state.tokens_L.tolist() for state in session.tree.states])
    assert recordings.replayed > 4
    assert texts[0] == texts[1]


def drain(steps: Iterator[Step]) -> None:
    for _ in steps:
        pass


def test_a_recording_that_keeps_its_length_is_found_out(network: Network) -> None:
    """The comparison can fail: here a length is a number of the recording, not a tensor."""

    def frozen(heads: Heads, places: Places) -> Tensor:
        return step_by_torch(
            heads, places._replace(stands_B=torch.tensor(places.stands_B.tolist()))
        )

    plan = plan_for(ScheduleSettings(3, 0.0), range(2), LENGTH)
    calls = calls_for(network, plan, cached=True, kernels=Kernels(step=frozen))
    sides = Side(network, uncached(network, plan)), Side(network, calls)
    begun = begin(network, plan, range(2))
    assert compare(*sides, plan, begun, DrawSettings()).log_prob_difference > 1e-3


def test_calls_too_wide_for_a_launch_to_matter_are_not_recorded(
    network: Network, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_module, "MOST_TOKENS", 5)
    plan = plan_for(ScheduleSettings(1, 0.0), range(3), LENGTH)
    run(network, captured(network, plan), plan, None)
    assert recordings.recorded == 0


@pytest.mark.parametrize("told", [False, True])
def test_a_call_is_padded_to_a_recorded_one_as_far_as_there_is_room(
    network: Network, recordings: Recordings, told: bool
) -> None:
    """Widths that nobody foresaw; what pads must leave no trace where a later call is wider."""
    places = 47 - (network.config.bos_id is not None)
    caches = [KVCache(network.config, 2, places) for _ in range(2)]
    plain, recorded = Through(network, caches[0]), Through(network, caches[1], BY_TORCH)
    generator = torch.Generator().manual_seed(0)
    for width, replayed in zip(
        (6, 6, 6, 6, 4, 6, 5, 3, 4), (0, 0, 0, 1, 2, 3, 4, 4, 4), strict=True
    ):
        ids = torch.randint(0, 299, (2, width), generator=generator)
        positions = torch.randint(0, 64, (2, width), generator=generator)
        seen = torch.rand(2, width, width, generator=generator) < 0.5
        seen |= torch.eye(width, dtype=torch.bool)
        with torch.inference_mode():
            found, wanted = (
                each(ids, positions, seen if told else None, slice(1, None))
                for each in (recorded, plain)
            )
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert recordings.replayed == replayed
        for cache in caches:
            cache.commit(np.array([width, width - 1]))
    assert recordings.recorded == 1


@pytest.mark.parametrize("family", ["esolm-b", "bd3lm"])
def test_the_kernel_of_triton_serves_a_recorded_run(
    family: Family,
    tiny_tensors: dict[str, Tensor],
    tiny_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Causal, and told who sees whom. What is interpreted is no operation of torch: no stand-in."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    config = replace(tiny_config, family=family, block_size=3 if family == "bd3lm" else 1)
    network = build(config, dict(tiny_tensors), folded=True, device=CPU, dtype=torch.float32)
    rule, positions = ScheduleSettings(9, 1.0), np.arange(12)
    plan = family_plan(config, rule, 0, range(2), given=NO_POSITIONS, blank=positions)
    monkeypatch.setattr(captured_module, "CudaGraphs", lambda device: lambda run: run)
    kernels = Kernels(step=triton_attention())
    calls = calls_for(network, plan, cached=True, kernels=kernels)
    sides = Side(network, uncached(network, plan)), Side(network, calls)
    found = compare(*sides, plan, begin(network, plan, range(2)), NUCLEUS)
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
def test_a_width_is_recorded_where_enough_calls_can_use_it(
    widths: list[int], recorded: list[int]
) -> None:
    assert worth_recording(widths, 4) == recorded


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
    sides = Side(moved, uncached(moved, plan)), Side(moved, replayed)
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
@pytest.mark.parametrize("draft", [None, 4], ids=["plain", "drafts"])
def test_texts_and_candidates_by_graphs_are_the_plain_ones_on_a_gpu(
    tiny_folder: Path, draft: int | None
) -> None:
    found = []
    for word in ("triton", "sdpa"):
        lm = load(str(tiny_folder), device="cuda", dtype="fp32", attention=word)
        how: dict[str, Any] = {"draft": draft, "steps": None if draft else 12, "seed": 3}
        samples = [*lm.sample("A", n=3, length=48, raw=True, **how)]
        candidates = lm.infill("The [MASK:20] sat on the big [MASK:12-14].", n=2, **how)
        found.append([each.tokens for each in (*samples, *candidates)])
    assert found[0] == found[1]


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
