"""The samplers of the other families: cached against uncached, golden, exact in law, refused flags.

The oracle of each law is a sum over every text a tiny network can write: it walks through the
states of the published sampler with the probabilities of the bare network, and shares no code with
plans, calls or draws.
"""

import copy
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from esogen.checkpoint.config_file import Card, CardDefaults
from esogen.checkpoint.folder import save_checkpoint
from esogen.checkpoint.placement import choose_attention
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import build
from esogen.cli import main
from esogen.errors import UsageError
from esogen.generate.denoise import denoise
from esogen.generate.draw import DrawSettings
from esogen.generate.plan import Plan, Positions, ScheduleSettings
from esogen.generate.verify import RowByRow, Side, compare
from esogen.language_model import LanguageModel, load
from esogen.model import patterns
from esogen.model.attention import Dense, Kernels, attention
from esogen.model.config import Family, ModelConfig
from esogen.model.families import UNUSED, check_used
from esogen.model.network import Network
from esogen.peers.family import calls_for, plan_for
from tests import golden
from tests.conftest import random_tensors
from tests.runs import NO_POSITIONS, begin, forced_logits_of

PEERS: tuple[Family, ...] = ("esolm-a", "mdlm", "bd3lm", "ar")
CACHED: tuple[Family, ...] = ("esolm-a", "bd3lm", "ar")
LENGTH = 22
PROMPTS = [NO_POSITIONS, np.arange(3), np.arange(8), np.arange(LENGTH)]
INFILL = np.array([0, 5, 6, 21])


@cache
def network_of(family: Family, *, begins: bool = False) -> Network:
    """Fresh weights, folded; with `begins`, texts begin from token 7 (left to right: always)."""
    bos_id = 7 if begins or family == "ar" else None
    config = ModelConfig(
        *(family, 60, LENGTH, 32, 2, 2), cond_dim=8, block_size=4, dropout=0.0, bos_id=bos_id
    )
    cpu = torch.device("cpu")
    return build(config, random_tensors(config, 0), folded=True, device=cpu, dtype=torch.float32)


def plan_of(
    network: Network,
    samples: range,
    *,
    rule: ScheduleSettings | None = None,
    given: Positions = NO_POSITIONS,
    length: int = LENGTH,
    seed: int = 0,
) -> Plan:
    blank = np.setdiff1d(np.arange(length), given)
    rule = rule or ScheduleSettings(9, 1.0 if network.config.family == "mdlm" else 0.5)
    return plan_for(network.config, rule, seed, samples, given=given, blank=blank)


def forced(network: Network, plan: Plan, text_BL: Tensor, *, cached: bool) -> Tensor:
    return forced_logits_of(network, calls_for(network, plan, cached=cached), plan, text_BL)


def random_text(network: Network, rows: int, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(network.config.mask_id, (rows, length), generator=generator)


# Cached against uncached


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("given", PROMPTS[:3])
@pytest.mark.parametrize("family", CACHED)
def test_cached_logits_are_the_uncached_ones_in_every_batch(
    family: Family, given: Positions, begins: bool
) -> None:
    network = network_of(family, begins=begins)
    text = random_text(network, 5)
    together = forced(network, plan_of(network, range(5), given=given), text, cached=True)
    for row in range(5):
        plan = plan_of(network, range(row, row + 1), given=given)
        alone = forced(network, plan, text[row : row + 1], cached=False)[0]
        assert golden.difference(together[row], alone) < 1e-4


@pytest.mark.parametrize("alpha_0", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("given", [*PROMPTS[:3], INFILL])
def test_eso_lm_a_is_cached_in_every_split_of_its_phases(given: Positions, alpha_0: float) -> None:
    network, rows = network_of("esolm-a", begins=True), range(3)
    text = random_text(network, 3)
    plan = plan_of(network, rows, given=given, rule=ScheduleSettings(6, alpha_0))
    cached, uncached = (forced(network, plan, text, cached=c) for c in (True, False))
    assert golden.difference(cached, uncached) < 1e-4


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("family", PEERS)
def test_drawn_tokens_differ_only_where_the_uniform_is_at_an_edge(
    family: Family, rows: int
) -> None:
    """Cached against uncached, and a batch against its rows one at a time."""
    network, samples = network_of(family), range(rows)
    plan, shaped = plan_of(network, samples), DrawSettings(top_p=0.9)
    alone = [calls_for(network, plan_of(network, range(i, i + 1)), cached=True) for i in samples]
    for candidate in calls_for(network, plan, cached=False), RowByRow(alone):
        reference = Side(network, calls_for(network, plan, cached=True))
        progress = begin(network, plan, samples)
        found = compare(reference, Side(network, candidate), plan, progress, shaped)
        assert found.draws == rows * LENGTH
        assert found.unexplained == 0
        assert found.log_prob_difference < 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("family", PEERS)
def test_a_gpu_agrees_with_itself_without_the_cache(family: Family) -> None:
    network, samples = copy.deepcopy(network_of(family, begins=True)).to("cuda"), range(5)
    plan = plan_of(network, samples)
    kernels = choose_attention("triton", torch.device("cuda"), torch.float32)
    cached, uncached = (
        Side(network, calls_for(network, plan, cached=c, kernels=kernels)) for c in (True, False)
    )
    progress = begin(network, plan, samples, device="cuda")
    found = compare(uncached, cached, plan, progress, DrawSettings(top_p=0.9))
    assert found.unexplained == 0
    assert found.log_prob_difference < 1e-3


@pytest.mark.parametrize("family", CACHED)
def test_a_cache_that_forgets_a_token_is_found_out(family: Family) -> None:
    """The comparison can fail."""
    network = network_of(family)
    plan = plan_of(network, range(2))
    text = random_text(network, 2)
    other = text.clone()
    other[:, plan.order_BL[0, 0]] += 1
    found = forced(network, plan, other % network.config.mask_id, cached=True)
    assert golden.difference(found, forced(network, plan, text, cached=False)) > 1e-3


@pytest.mark.parametrize("family", PEERS)
def test_every_call_decides_what_the_plan_says(family: Family) -> None:
    network = network_of(family)
    plan = plan_of(network, range(3), given=np.arange(5))
    assert (plan.order_BL[:, :5] < 5).all()
    assert (np.sort(plan.order_BL, axis=1) == np.arange(LENGTH)).all()
    if family in ("ar", "bd3lm"):
        assert plan.counts_S.tolist() == [1] * (LENGTH - 5)


def test_blocks_come_left_to_right_and_are_shuffled_inside() -> None:
    network = network_of("bd3lm")
    order_BL = plan_of(network, range(400), given=np.arange(2)).order_BL
    assert (np.diff(order_BL // 4, axis=1) >= 0).all()
    _, first = np.unique(order_BL[:, 2:4], axis=0, return_counts=True)
    _, full = np.unique(order_BL[:, 4:8], axis=0, return_counts=True)
    assert (len(first), len(full)) == (2, 24)
    assert stats.chisquare(first).pvalue > 1e-3
    assert stats.chisquare(full).pvalue > 1e-3


# Golden


def plan_in_order(order_BL: Tensor, given: int, counts: list[int], diffusion_steps: int) -> Plan:
    return Plan(order_BL.numpy(), given, np.array(counts), diffusion_steps)


def natural(ids_BL: Tensor) -> Tensor:
    return torch.arange(ids_BL.shape[1]).expand_as(ids_BL).contiguous()


@pytest.mark.parametrize("cached", [True, False])
def test_mdlm_and_bd3lm_calls_reproduce_the_golden_logits(cached: bool) -> None:
    """All that is masked is decided in one call, which is then the golden one."""
    network, case = golden.network("mdlm", folded=True), golden.expected("mdlm")
    for zt, wanted in zip(case["zt"], case["logits"], strict=True):
        masked = zt == network.config.mask_id
        order = torch.cat([(~masked).nonzero()[:, 0], masked.nonzero()[:, 0]])[None]
        plan = plan_in_order(order, int((~masked).sum()), [int(masked.sum())], 1)
        found = forced(network, plan, zt[None], cached=cached)[0]
        assert golden.difference(found, wanted[masked]) < golden.TOLERANCE

    network, case = golden.network("bd3lm", folded=True), golden.expected("bd3lm")
    for tokens, wanted in zip(case["sampling.tokens"], case["sampling.logits"], strict=True):
        masked = tokens == network.config.mask_id
        order = torch.cat([(~masked).nonzero()[:, 0], masked.nonzero()[:, 0]])[None]
        plan = plan_in_order(order, int((~masked).sum()), [int(masked.sum())], 0)
        found = forced(network, plan, tokens[None], cached=cached)[0]
        assert golden.difference(found, wanted[masked[-4:]]) < golden.TOLERANCE


@pytest.mark.parametrize("cached", [True, False])
def test_eso_lm_a_calls_reproduce_the_golden_logits_of_both_phases(cached: bool) -> None:
    network, case = golden.network("esolm-a", folded=True), golden.expected("esolm-a")
    mask_id = network.config.mask_id
    for row, order in enumerate(case["diffusion.order"]):
        zt = case["diffusion.zt"][row]
        masks = int((zt == mask_id).sum())
        plan = plan_in_order(order[None], len(order) - masks, [masks], 1)
        found = forced(network, plan, zt[None], cached=cached)[0]
        wanted = case["diffusion.logits"][row, -masks:]
        assert golden.difference(found, wanted) < golden.TOLERANCE
    for row, order in enumerate(case["sequential.order"]):
        masks = int((case["sequential.zt"][row] == mask_id).sum())
        plan = plan_in_order(order[None], len(order) - masks, [1] * masks, 0)
        found = forced(network, plan, case["x0"][row : row + 1], cached=cached)[0]
        wanted = case["sequential.logits"][row, -masks:]
        assert golden.difference(found, wanted) < golden.TOLERANCE


@pytest.mark.parametrize("cached", [True, False])
def test_left_to_right_calls_reproduce_the_golden_logits(cached: bool) -> None:
    """The first token of the golden text is what it begins from."""
    whole, case = golden.network("ar", folded=True), golden.expected("ar")
    for x, wanted in zip(case["x"], case["logits"], strict=True):
        network = Network(replace(whole.config, bos_id=int(x[0])), folded=True).eval()
        network.load_state_dict(whole.state_dict())
        text = x[None, 1:]
        plan = plan_in_order(natural(text), 0, [1] * text.shape[1], 0)
        found = forced(network, plan, text, cached=cached)[0]
        assert golden.difference(found, wanted[:-1]) < golden.TOLERANCE


# The law of what is written

Text = tuple[int, ...]
MASK = 3
SHORT = 4
"""Texts of the tiny networks: four positions of three tokens, the fourth being the mask."""


@cache
def tiny(family: Family) -> Network:
    bos_id = 1 if family == "ar" else None
    config = ModelConfig(
        *(family, 4, SHORT, 8, 2, 2), cond_dim=4, dropout=0.0, block_size=2, bos_id=bos_id
    )
    network = Network(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.6, generator=generator)
    return network.eval()


@cache
def bare_probs(network: Network, seen: Text) -> np.ndarray:
    """Probabilities `[L, V]` of a whole text with masks, under the family's dense pattern."""
    family, length = network.config.family, len(seen)
    mask = patterns.block_causal(length, network.config.block_size) if family == "bd3lm" else None
    with torch.no_grad():
        logits = network(torch.tensor([seen]), torch.arange(length)[None], Dense(mask))
    return np.asarray(logits[0].double().softmax(-1))


def fillings(
    state: Text, chosen: tuple[int, ...], probs: np.ndarray
) -> Iterator[tuple[Text, float]]:
    """Every way to fill the chosen positions at once, with its probability."""
    for tokens in itertools.product(range(MASK), repeat=len(chosen)):
        filled = list(state)
        for position, token in zip(chosen, tokens, strict=True):
            filled[position] = token
        yield tuple(filled), math.prod(probs[p, t] for p, t in zip(chosen, tokens, strict=True))


def law(
    network: Network,
    start: Text,
    choices: Callable[[Text, int], list[tuple[int, ...]]],
    calls: int,
) -> dict[Text, float]:
    """Probability of every text, each of `choices(state, call)` being equally likely."""
    states = {start: 1.0}
    for call in range(calls):
        following: dict[Text, float] = {}
        for state, weight in states.items():
            probs, options = bare_probs(network, state), choices(state, call)
            for chosen in options:
                for filled, share in fillings(state, chosen, probs):
                    following[filled] = following.get(filled, 0.0) + weight * share / len(options)
        states = following
    return states


def hidden_in(state: Text) -> tuple[int, ...]:
    return tuple(p for p, token in enumerate(state) if token == MASK)


def mdlm_law(start: Text, counts: list[int]) -> dict[Text, float]:
    def choices(state: Text, call: int) -> list[tuple[int, ...]]:
        return list(itertools.combinations(hidden_in(state), counts[call]))

    return law(tiny("mdlm"), start, choices, len(counts))


def bd3lm_law(start: Text) -> dict[Text, float]:
    def choices(state: Text, call: int) -> list[tuple[int, ...]]:
        hidden = hidden_in(state)
        return [(p,) for p in hidden if p // 2 == hidden[0] // 2]

    return law(tiny("bd3lm"), start, choices, len(hidden_in(start)))


def ar_law(start: Text) -> dict[Text, float]:
    """The chain rule, by the network's own rows: row i, behind token 1, predicts position i."""
    network, known = tiny("ar"), start[: start.index(MASK)]
    with torch.no_grad():
        texts = [known + rest for rest in itertools.product(range(3), repeat=SHORT - len(known))]
        ids = torch.tensor([(1, *text[:-1]) for text in texts])
        positions = torch.arange(SHORT).expand_as(ids)
        logits = network(ids, positions, Dense(causal=True)).double().log_softmax(-1)
    picked = logits.gather(-1, torch.tensor(texts)[..., None])[..., 0][:, len(known) :]
    return dict(zip(texts, picked.sum(1).exp().tolist(), strict=True))


def written(network: Network, plan: Plan, start: Text, seed: int, rows: int) -> list[Text]:
    progress = begin(network, plan, range(rows), seed=seed)
    given = torch.tensor(start) != MASK
    progress.canvas_BL[:, given] = torch.tensor(start)[given]
    calls = calls_for(network, plan, cached=True)
    for _ in denoise(network, calls, plan, progress, DrawSettings()):
        pass
    return [tuple(row) for row in progress.canvas_BL.tolist()]


def assert_law(found: list[Text], wanted: Mapping[Text, float]) -> None:
    assert sum(wanted.values()) == pytest.approx(1.0)
    texts = sorted(wanted)
    times = Counter(found)
    counts = np.array([times[text] for text in texts])
    expected = np.array([wanted[text] for text in texts]) * len(found)
    rare = expected < 5.0
    if rare.any():
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


STARTS: list[Text] = [(MASK,) * 4, (2, MASK, MASK, MASK), (2, 0, 1, MASK)]


@pytest.mark.parametrize("start", [*STARTS, (MASK, 1, MASK, MASK)])
@pytest.mark.parametrize("seed", [0, 1])
def test_mdlm_writes_by_the_law_of_its_ancestral_sampler(start: Text, seed: int) -> None:
    network, rows = tiny("mdlm"), 2000
    given = np.array([p for p, token in enumerate(start) if token != MASK], np.int64)
    rule = ScheduleSettings(3, 1.0)
    plan = plan_of(network, range(rows), rule=rule, given=given, length=SHORT, seed=seed)
    assert_law(written(network, plan, start, seed, rows), mdlm_law(start, plan.counts_S.tolist()))


@pytest.mark.parametrize("start", STARTS)
def test_bd3lm_writes_by_the_law_of_first_hitting_steps(start: Text) -> None:
    network, rows = tiny("bd3lm"), 2500
    given = np.flatnonzero(np.array(start) != MASK)
    plan = plan_of(network, range(rows), given=given, length=SHORT)
    assert_law(written(network, plan, start, 0, rows), bd3lm_law(start))


@pytest.mark.parametrize("start", STARTS)
def test_a_left_to_right_model_writes_by_the_chain_rule(start: Text) -> None:
    network, rows = tiny("ar"), 2500
    given = np.flatnonzero(np.array(start) != MASK)
    plan = plan_of(network, range(rows), given=given, length=SHORT)
    assert_law(written(network, plan, start, 0, rows), ar_law(start))


def test_mdlm_makes_the_calls_that_the_published_shortcut_makes() -> None:
    """The oracle walks through the published loop: a prediction holds until a token changes."""
    random, length, steps = np.random.default_rng(0), 16, 24
    published = []
    for _ in range(1500):
        hidden, calls, prediction_holds = length, 0, False
        for step in range(steps, 0, -1):
            if not hidden:
                break
            calls += not prediction_holds
            decided = random.binomial(hidden, 1.0 / step)
            hidden, prediction_holds = hidden - decided, decided == 0
        published.append(calls)
    network, rule = network_of("mdlm"), ScheduleSettings(steps, 1.0)
    found = [
        plan_of(network, range(1), rule=rule, length=length, seed=seed).nfe for seed in range(1500)
    ]
    values, counts = np.unique(np.concatenate([found, published]), return_counts=True)
    often = values[counts > 20]
    table = [[np.sum(np.array(x) == value) for value in often] for x in (found, published)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


# Through the Python face and the command line


@pytest.fixture(scope="module")
def folders(
    tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Family, Path]:
    """A tiny model of every family; their cards ask for what some have no use for."""
    place = tmp_path_factory.mktemp("families")
    for family in PEERS:
        config = ModelConfig(
            family, tiny_tokenizer.size + 1, 32, 16, 2, 2, cond_dim=8, block_size=4
        )
        card = Card(config, CardDefaults(steps=5, alpha_0=0.5, schedule="blocks"))
        tensors = random_tensors(config, 0)
        save_checkpoint(place / family, card, tensors, tiny_tokenizer, torch.float32)
    return {family: place / family for family in PEERS}


@pytest.fixture(scope="module")
def models(folders: Mapping[Family, Path]) -> Mapping[Family, LanguageModel]:
    return {family: load(str(folder), device="cpu") for family, folder in folders.items()}


@pytest.mark.parametrize("family", PEERS)
def test_every_family_continues_a_prompt_the_same_in_every_batch(
    models: Mapping[Family, LanguageModel], family: Family
) -> None:
    lm = models[family]
    many = list(lm.sample("Once upon", n=7, seed=3, batch_size=3, temperature=2.0, top_p=1.0))
    few = list(lm.sample("Once upon", n=2, seed=3, batch_size=1, temperature=2.0, top_p=1.0))
    assert [sample.tokens for sample in many[:2]] == [sample.tokens for sample in few]
    assert len({sample.tokens for sample in many}) == 7
    given = lm.encode_prompt("Once upon", 32)
    for sample in many:
        assert sample.text.startswith("Once upon")
        assert sample.tokens[: len(given)] == tuple(given)
        assert len(sample.steps) == len(sample.tokens)
        assert sample.log_prob == pytest.approx(sum(sample.log_probs))


@pytest.mark.parametrize("family", PEERS)
def test_texts_that_end_are_the_whole_ones_up_to_their_end(
    models: Mapping[Family, LanguageModel], family: Family
) -> None:
    lm = models[family]
    end = lm.checkpoint.tokenizer.end_of_text
    ended, raw = (
        list(lm.sample(n=16, seed=0, temperature=3.0, top_p=1.0, raw=r)) for r in (False, True)
    )
    assert any(end in sample.tokens for sample in ended)
    for short, whole in zip(ended, raw, strict=True):
        assert len(whole.tokens) == 32
        assert whole.tokens[: len(short.tokens)] == short.tokens
        assert end not in short.tokens[:-1]
        assert short.nfe <= whole.nfe


@pytest.mark.parametrize("family", PEERS)
def test_a_whole_text_may_be_given(models: Mapping[Family, LanguageModel], family: Family) -> None:
    lm = models[family]
    given = lm.encode_prompt("Once upon a time", 32)
    sample = next(lm.sample("Once upon a time", length=len(given), seed=0, raw=True))
    assert (sample.text, sample.nfe) == ("Once upon a time", 0)


def test_what_a_card_asks_for_in_vain_changes_nothing(
    models: Mapping[Family, LanguageModel],
) -> None:
    found = {family: lm.settings(seed=0).schedule for family, lm in models.items()}
    assert found["esolm-a"] == ScheduleSettings(5, 0.5, "blocks")
    assert found["mdlm"] == ScheduleSettings(5, 1.0, "random")
    assert (found["bd3lm"].alpha_0, found["ar"].alpha_0) == (1.0, 0.0)


def test_a_left_to_right_model_begins_from_end_of_text(
    models: Mapping[Family, LanguageModel],
) -> None:
    checkpoint = models["ar"].checkpoint
    assert checkpoint.network.config.bos_id == checkpoint.tokenizer.end_of_text


@pytest.mark.parametrize("family", ["bd3lm", "ar"])
def test_a_token_behind_a_blank_is_refused_where_it_would_not_be_seen(family: Family) -> None:
    with pytest.raises(UsageError, match="token 1 is to be decided and token 21 is given"):
        plan_of(network_of(family), range(1), given=INFILL)


@pytest.mark.parametrize("family", ["mdlm", "esolm-a"])
def test_a_token_behind_a_blank_is_seen_by_the_others(family: Family) -> None:
    network = network_of(family)
    plan = plan_of(network, range(1), given=INFILL)
    text = random_text(network, 1)
    other = text.clone()
    other[:, 21] = (other[:, 21] + 1) % network.config.mask_id
    found, changed = (forced(network, plan, x, cached=True) for x in (text, other))
    assert golden.difference(found[:, :1], changed[:, :1]) > 1e-3


FLAGS = {
    "steps": ["--steps=3"],
    "alpha_0": ["--alpha-0=0.5"],
    "schedule": ["--schedule=blocks"],
    "kv_cache": ["--no-kv-cache"],
    "draft": ["--draft=3"],
    "best_of": ["--best-of=2"],
}


@pytest.mark.parametrize("family", PEERS)
@pytest.mark.parametrize("setting", FLAGS)
def test_a_flag_is_honoured_or_refused_by_name(
    folders: Mapping[Family, Path],
    family: Family,
    setting: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["sample", "-m", str(folders[family]), "--seed=0", "--quiet", "x", *FLAGS[setting]]
    code = main(words)
    found = capfd.readouterr()
    if setting not in UNUSED[family]:
        assert (code, found.err) == (0, "seed 0\n" if found.err else "")
        assert found.out.startswith("x")
        return
    flag = FLAGS[setting][0].partition("=")[0]
    assert code == 2
    assert found.out == ""
    assert found.err.startswith(f"esogen: {flag} is ")
    assert f"a model of the family {family} {UNUSED[family][setting]}; leave it out" in found.err
    assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize("family", PEERS)
def test_verify_runs_or_says_that_there_is_no_cache(
    folders: Mapping[Family, Path], family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["sample", "-m", str(folders[family]), "--seed=0", "-n2", "--verify", "x"])
    found = capfd.readouterr()
    if family == "mdlm":
        assert code == 2
        assert "--verify compares runs with and without the KV cache" in found.err
    else:
        assert code == 0
        assert "0 unexplained" in found.err


@pytest.mark.parametrize("family", PEERS)
def test_a_recorded_run_of_every_family_replays(
    folders: Mapping[Family, Path],
    family: Family,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trace = str(tmp_path / "run.trace")
    words = ["sample", "-m", str(folders[family]), "--seed=0", "--trace", trace, "x"]
    assert main(words) == 0
    written = capfd.readouterr().out
    assert main(["replay", trace]) == 0
    assert capfd.readouterr().out == written


@pytest.mark.parametrize("family", PEERS)
def test_json_says_nothing_of_what_a_family_has_no_use_for(
    folders: Mapping[Family, Path], family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "-m", str(folders[family]), "--seed=0", "--format=jsonl", "x"]) == 0
    fields = json.loads(capfd.readouterr().out)
    for name in ("steps", "alpha_0", "schedule"):
        assert (fields[name] is None) == (name in UNUSED[family])


@pytest.mark.parametrize("family", PEERS)
def test_the_command_that_reproduces_a_run_is_one_that_runs(
    models: Mapping[Family, LanguageModel], family: Family
) -> None:
    from esogen.cli.summary import command_line, sampling_flags

    lm = models[family]
    settings = lm.settings(seed=0)
    flags = sampling_flags(settings, n=1, model="m", device="cpu", dtype="fp32", unused=lm.unused)
    words = command_line("sample", flags, "x")
    for name, flag in (("steps", "-s"), ("alpha_0", "--alpha-0"), ("schedule", "--schedule")):
        assert (f" {flag} " in words) == (name not in lm.unused)


def test_kernels_for_a_cache_are_refused_where_there_is_none(
    models: Mapping[Family, LanguageModel],
) -> None:
    def kernel(
        q_BLNH: Tensor,
        k_BMNH: Tensor,
        v_BMNH: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        return attention(q_BLNH, k_BMNH, v_BMNH, mask, causal=causal)

    for family, lm in models.items():
        other = LanguageModel(lm.checkpoint, lm.device, Kernels(kernel, word="xformers"))
        if family == "mdlm":
            with pytest.raises(UsageError, match="attention is xformers, and a model of the famil"):
                other.settings()
        else:
            wanted = next(lm.sample("x", seed=0)).tokens
            assert next(other.sample("x", seed=0)).tokens == wanted


def test_every_setting_that_is_unused_is_named_with_its_value() -> None:
    with pytest.raises(ValueError, match="card_steps is 3, and a model of the family ar decides"):
        check_used("ar", {"steps": 3}, prefix="card_")
    check_used("esolm-b", {"steps": 3, "alpha_0": 0.5, "schedule": "blocks", "kv_cache": False})
