"""Triton's kernels do what torch's own do: interpreted, or compiled where there is a GPU."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esogen import doctor
from esogen.checkpoint import placement
from esogen.checkpoint.placement import choose_attention
from esogen.errors import EsogenError, UsageError
from esogen.generate import draw as draw_module
from esogen.generate.draw import Drawn, DrawSettings, choose_draw, draw, shape
from esogen.model.attention import Places, Prefix, triton_attention
from esogen.model.cache import step_by_torch
from esogen.model.heads import Heads, Rotation, angles_of

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDING = 5e-6
"""How far the two cumulative distributions may lie apart: a few units of float32."""

RULES = [
    DrawSettings(),
    DrawSettings(temperature=0.7),
    DrawSettings(temperature=1.7, top_k=5),
    DrawSettings(top_k=40),
    DrawSettings(top_p=0.9),
    DrawSettings(top_p=0.05),
    DrawSettings(0.8, 30, 0.6),
    DrawSettings(temperature=1e300),
    DrawSettings(temperature=1e-310),
    DrawSettings(temperature=0.0),
]


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Iterator[None]:
    """Several tiles of a small vocabulary: interpreted, a tile takes as long as a large one."""
    from esogen.generate import draw_kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_kernel, "TILE", 256)
        yield


def drawn_by_kernel(logits_KV: Tensor, uniforms_K: Tensor, rule: DrawSettings) -> Drawn:
    from esogen.generate import draw_kernel

    drawn = draw_kernel.draw(logits_KV.to(DEVICE), uniforms_K.to(DEVICE), rule)
    return Drawn(drawn.tokens.cpu(), drawn.log_probs.cpu())


def ends_of_intervals(logits_V: Tensor, rule: DrawSettings) -> tuple[Tensor, Tensor]:
    """The tokens that can be drawn, and the ends of their intervals, the first of which is 0."""
    shaped_V = shape(logits_V.log_softmax(-1), rule).double()
    kept = shaped_V.nonzero()[:, 0]
    sums = shaped_V[kept].cumsum(0)
    return kept, torch.cat([torch.zeros(1).double(), sums / sums[-1]])


def logits_with_ties(seed: int, vocabulary: int, spread: float) -> Tensor:
    """Two rows, the second with ties; the mask token is impossible, and one token besides."""
    generator = torch.Generator().manual_seed(seed)
    plain_V = torch.randn(vocabulary, generator=generator) * spread
    logits_KV = torch.stack([plain_V, plain_V.round()])
    logits_KV[:, [seed % (vocabulary - 1), -1]] = -math.inf
    return logits_KV


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_just_inside_both_ends_of_its_interval_a_token_is_drawn(rule: DrawSettings) -> None:
    """The kernel's intervals end where the reference's do, to float32 rounding: no other kept
    token, no other order, no other share."""
    for logits_V in logits_with_ties(3, 400, 2.0):
        kept, ends = ends_of_intervals(logits_V, rule)
        wide = ends.diff() > 2.5 * ROUNDING
        few = slice(None, None, max(1, int(wide.sum()) // 4))
        tokens, lower, upper = kept[wide][few], ends[:-1][wide][few], ends[1:][wide][few]
        uniforms = torch.cat([lower + ROUNDING, upper - ROUNDING])
        drawn = drawn_by_kernel(logits_V.expand(len(uniforms), -1), uniforms, rule)
        assert drawn.tokens.tolist() == [*tokens.tolist()] * 2
        log_probs = logits_V.log_softmax(-1)[drawn.tokens]
        torch.testing.assert_close(drawn.log_probs, log_probs, atol=1e-6, rtol=1e-6)


rules = st.builds(
    DrawSettings,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.3]),
    top_k=st.sampled_from([None, 1, 2, 7, 100]),
    top_p=st.sampled_from([0.2, 0.9, 0.999, 1.0]),
)


@given(rules, st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 4.0]), st.floats(0, 1 - 2**-53))
@settings(deadline=None, max_examples=12)
def test_a_token_differs_only_where_its_uniform_is_at_an_edge(
    rule: DrawSettings, seed: int, spread: float, uniform: float
) -> None:
    logits_V = logits_with_ties(seed, 33, spread)[seed % 2]
    uniforms_K = torch.tensor([uniform], dtype=torch.float64)
    found, wanted = (by(logits_V[None], uniforms_K, rule) for by in (drawn_by_kernel, draw))
    _, ends = ends_of_intervals(logits_V, rule)
    edge = bool((ends - uniform).abs().min() < ROUNDING) or nucleus_at_edge(logits_V, rule)
    assert edge or found.tokens == wanted.tokens


def nucleus_at_edge(logits_V: Tensor, rule: DrawSettings) -> bool:
    """Whether rounding decides if a token belongs to the nucleus."""
    whole = DrawSettings(rule.temperature, rule.top_k)
    probs = shape(logits_V.log_softmax(-1), whole).double().sort(descending=True).values
    before = (probs.cumsum(0) - probs) / probs.sum()
    return bool(((before - rule.top_p).abs() < ROUNDING).any())


@pytest.mark.parametrize("rule", [DrawSettings(), DrawSettings(1.0, 3, 0.9)], ids=str)
def test_the_ends_of_the_unit_interval_draw_what_is_possible(rule: DrawSettings) -> None:
    logits_KV = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]]).expand(2, -1)
    uniforms_K = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert drawn_by_kernel(logits_KV, uniforms_K, rule).tokens.tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_logits_that_are_no_numbers_give_log_probabilities_that_are_none() -> None:
    uniforms_K = torch.tensor([0.5], dtype=torch.float64)
    for rule in DrawSettings(), DrawSettings(top_k=2), DrawSettings(0.7, 2, 0.9):
        drawn = drawn_by_kernel(torch.full((1, 4), torch.nan), uniforms_K, rule)
        assert drawn.log_probs.isnan().all()
        assert 0 <= drawn.tokens.item() < 4


def test_a_kernel_that_draws_otherwise_is_found_out() -> None:
    assert draw_module.checked(draw, torch.device("cpu")) is draw

    def colder(logits_KV: Tensor, uniforms_K: Tensor, rule: DrawSettings) -> Drawn:
        return draw(logits_KV, uniforms_K, DrawSettings(0.9, rule.top_k, rule.top_p))

    with pytest.raises(RuntimeError, match="draws otherwise"):
        draw_module.checked(colder, torch.device("cpu"))


def test_the_kernel_that_draws_passes_the_check_that_chooses_it() -> None:
    from esogen.generate import draw_kernel

    assert draw_module.checked(draw_kernel.draw, DEVICE) is draw_kernel.draw


def test_a_cpu_draws_by_sorting() -> None:
    assert choose_draw(torch.device("cpu")) == (draw, None)


SHAPES = [  # B, L, N, H, P, tokens standing in each row, parts
    (2, 3, 2, 16, 64, [0, 0], None),
    (2, 5, 3, 16, 300, [200, 17], 3),
    (1, 37, 2, 20, 150, [100], 4),
    (3, 1, 2, 64, 70, [5, 0, 69], 2),
    (1, 2, 1, 16, 40, [3], 32),
]
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
"""The interpreter multiplies bfloat16 matrices as if they were integers."""


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["causal", "told", "told alike", "behind a prefix"])
def test_a_step_turns_writes_and_attends_as_torch_does(
    sizes: tuple[int, int, int, int, int, list[int], int | None], dtype: torch.dtype, kind: str
) -> None:
    """What stands behind a row's own places is poison: it must be seen by nobody."""
    from esogen.model.step_kernel import step_attention

    rows, queries, count, width, room, stands, parts = sizes
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    angles = angles_of(noise(rows, queries, width))
    heads = Heads(noise(rows, queries, 3, count, width), Rotation(angles.cos(), angles.sin()))
    seen_BLL = torch.rand(rows, queries, queries, generator=generator).to(DEVICE) < 0.5
    seen_BLL |= torch.eye(queries, dtype=torch.bool, device=DEVICE)
    prefix = Prefix(
        noise(2, 90, count, width),
        noise(2, 90, count, width),
        torch.arange(rows, device=DEVICE) % 2,
        torch.tensor([90, 0, 3], device=DEVICE)[:rows],
    )
    told: Mapping[str, tuple[Tensor | None, Prefix | None]] = {
        "causal": (None, None),
        "told": (seen_BLL, None),
        "told alike": (seen_BLL[:1], None),
        "behind a prefix": (seen_BLL, prefix),
    }
    seen, before = told[kind]
    clean, poisoned = (noise(2, rows, room, count, width) for _ in range(2))
    poisoned.copy_(clean)
    for row, stand in enumerate(stands):
        poisoned[:, row, stand + queries :] = torch.nan
    stands_B = torch.tensor(stands, device=DEVICE)
    places = Places(clean[0].float(), clean[1].float(), stands_B, seen, before and _float(before))
    wanted = step_by_torch(_float(heads), places)
    found = step_attention(heads, Places(poisoned[0], poisoned[1], stands_B, seen, before), parts)
    assert found.dtype == dtype
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(found.float(), wanted, atol=tolerance, rtol=tolerance)
    for row, stand in enumerate(stands):
        written = (each[row, : stand + queries] for each in (*poisoned, *places[:2]))
        k, v, k_wanted, v_wanted = written
        torch.testing.assert_close(k.float(), k_wanted, atol=tolerance, rtol=tolerance)
        assert (v.float() == v_wanted).all()


def _float(word: Any) -> Any:
    """The same in float32, whatever it is made of."""
    if isinstance(word, Tensor):
        return word.float() if word.is_floating_point() else word
    return type(word)(*map(_float, word))


def test_a_kernel_that_attends_or_writes_otherwise_is_found_out() -> None:
    kernel = triton_attention()
    assert placement.checked(kernel, DEVICE, torch.float32) is kernel

    def one_further(heads: Heads, places: Places) -> Tensor:
        return kernel(heads, places._replace(stands_B=places.stands_B + 1))

    def unturned(heads: Heads, places: Places) -> Tensor:
        out = kernel(heads, places)
        places.k_BPNH[0, 30] = heads.qkv_BL3NH[0, 0, 1]
        return out

    def before_the_prefix(heads: Heads, places: Places) -> Tensor:
        return kernel(heads, places._replace(prefix=None))

    def causal(heads: Heads, places: Places) -> Tensor:
        return kernel(heads, places._replace(seen_BLL=None))

    for other in (one_further, unturned, before_the_prefix, causal):
        with pytest.raises(RuntimeError, match="differs from sdpa by"):
            placement.checked(other, DEVICE, torch.float32)


def test_where_the_kernels_fail_auto_says_so_and_a_word_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ImportError("no Triton here")

    monkeypatch.setattr(placement, "triton_attention", missing)
    gpu = torch.device("cuda")
    chosen = choose_attention("auto", gpu, torch.bfloat16)
    assert chosen.step is None
    assert "sdpa" in str(chosen.note)
    assert "no Triton here" in str(chosen.note)
    with pytest.raises(EsogenError, match="triton cannot be loaded .*no Triton here"):
        choose_attention("triton", gpu, torch.bfloat16)


def test_doctor_says_why_a_kernel_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("no Triton here")

    monkeypatch.setattr(placement, "triton_attention", missing)
    monkeypatch.setattr(placement, "choose_dtype", lambda *asked: torch.float16)
    attends, draws = doctor._triton(torch.device("cuda"))
    assert (attends.name, attends.verdict) == ("attention triton", "note")
    assert "no Triton here" in attends.found
    assert draws.verdict == ("ok" if DEVICE.type == "cuda" else "note")
    (alone,) = doctor._triton(torch.device("cpu"))
    assert "torch's own serve" in alone.found


def test_a_cpu_has_no_kernels_to_choose() -> None:
    cpu = torch.device("cpu")
    assert choose_attention("auto", cpu, torch.float32) == choose_attention(
        "sdpa", cpu, torch.float32
    )
    with pytest.raises(UsageError, match="'triton', which has no kernels for device cpu"):
        choose_attention("triton", cpu, torch.float32)


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from esogen.generate.draw_kernel import TILE, WARPS, _draw
from esogen.model.step_kernel import _attend_part, _merge_parts, _turn_and_write

def check(kernel, types, constants, warps):
    signature = {name: "i32" for name in kernel.arg_names} | types
    signature |= {name: "constexpr" for name in constants}
    options = {"num_warps": warps, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants)
    made = compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    assert made.metadata.shared <= 99 * 1024, made.metadata.shared

floats = {"logits": "*fp32", "uniforms": "*fp64", "tokens": "*i64", "log_probs": "*fp32"}
for k, p in ((False, False), (False, True), (True, True)):
    constants = {"HAS_TOP_K": k, "HAS_TOP_P": p, "TILE": TILE}
    check(_draw, floats | {"coldness": "fp32", "top_p": "fp32"}, constants, WARPS)
for dtype, queries, tile in (("bf16", 16, 64), ("fp16", 32, 64), ("fp32", 32, 32)):
    types = dict.fromkeys(("qkv", "cos", "sin", *"qkv"), f"*{dtype}") | {"stands": "*i64"}
    check(_turn_and_write, types, {"HEADS": 16, "WIDTH": 64}, 4)
    for seen, prefix in ((False, False), (True, False), (False, True), (True, True)):
        names = (*"qkv", "k_shared", "v_shared")
        types = dict.fromkeys(names, f"*{dtype}") | {"part": "*fp32", "sums": "*fp32"}
        types |= dict.fromkeys(("stands", "group", "length"), "*i64")
        types |= {"seen": "*u8" if seen else "*i64", "scale": "fp32"}
        constants = {"SEEN": seen, "PREFIX": prefix}
        check(_attend_part, types, constants | {"QUERIES": queries, "WIDTH": 64, "TILE": tile}, 4)
    types = {"part": "*fp32", "sums": "*fp32", "out": f"*{dtype}"}
    check(_merge_parts, types, {"PARTS": 32, "WIDTH": 64}, 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability: int) -> None:
    plain = {key: word for key, word in os.environ.items() if key != "TRITON_INTERPRET"}
    made = subprocess.run(
        [sys.executable, "-c", f"CAPABILITY = {capability}\n{COMPILE}"],
        capture_output=True,
        encoding="utf-8",
        env=plain,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]


def test_a_wide_batch_of_draws_keeps_its_shape() -> None:
    logits_BKV = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    uniforms_BK = torch.from_numpy(np.random.default_rng(0).random((2, 3)))
    found = drawn_by_kernel(logits_BKV, uniforms_BK, DrawSettings())
    wanted = draw(logits_BKV, uniforms_BK, DrawSettings())
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.log_probs.shape == (2, 3)
