"""Verified drafts have the law of one token per step: against the enumeration of all texts."""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from esogen.checkpoint.folder import Checkpoint
from esogen.checkpoint.weights import build
from esogen.cli import main
from esogen.generate import draft_costs
from esogen.generate import lossless as lossless_module
from esogen.generate.denoise import Step
from esogen.generate.draft_calls import CachedDrafts, Call, DraftCalls, UncachedDrafts, draft_calls
from esogen.generate.draft_costs import measured
from esogen.generate.draft_rows import Rows, Text
from esogen.generate.drafting import Drafting
from esogen.generate.draw import DrawSettings, shape
from esogen.generate.fill import Rule
from esogen.generate.lossless import Lossless
from esogen.generate.plan import ScheduleSettings
from esogen.generate.streams import Purpose, stream, token_uniforms
from esogen.language_model import LanguageModel
from esogen.likelihood import token_log_probs
from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.cache import KVCache
from esogen.model.config import ModelConfig
from esogen.model.network import Network
from esogen.trace_file import TraceFile
from tests.conftest import random_tensors
from tests.runs import behind_bos, plan_for

Ids = NDArray[np.int64]
CPU = torch.device("cpu")

TOKENS, LENGTH = 3, 5
SHARPENED = 2.0
"""What makes the tiny network's drafts bad: its weights times this."""

ORDERS = {"random": [3, 0, 4, 1, 2], "blocks": [1, 3, 0, 4, 2], "left to right": [0, 1, 2, 3, 4]}
PLAIN, TRUNCATED = DrawSettings(), DrawSettings(temperature=0.8, top_p=0.7)
ALWAYS = 0.001
"""How unlikely statistics of a right sampler may be, of all configurations together."""


class Law(NamedTuple):
    """All texts in sorted order, their probabilities, and how far drafts are from the truth."""

    texts: Ids
    probs: NDArray[np.float64]
    draft_distance: float


@pytest.fixture(scope="module")
def sharp() -> Network:
    """Three tokens and a mask; what stands matters a great deal."""
    config = ModelConfig(
        "esolm-b",
        vocab_size=TOKENS + 1,
        model_length=LENGTH,
        hidden_size=16,
        n_blocks=1,
        n_heads=2,
        cond_dim=8,
    )
    tensors = random_tensors(config, seed=0)
    for name in tensors:
        if any(part in name for part in ("attn", "mlp.", "output_layer.linear")):
            tensors[name] = tensors[name] * SHARPENED
    return build(config, tensors, folded=True, device=CPU, dtype=torch.float32)


@torch.inference_mode()
def law_of(network: Network, order: list[int], draw: DrawSettings) -> Law:
    """One token per step, by enumeration and without a cache."""
    texts = torch.tensor(list(product(range(TOKENS), repeat=LENGTH)))
    order_BL = torch.tensor(order).expand(len(texts), -1)
    masks = torch.full_like(texts, TOKENS)
    both = torch.cat([masks, texts], 1), torch.cat([order_BL, order_BL], 1)
    attend = Dense(patterns.two_halves(patterns.causal(LENGTH)))
    p = normalised(network.logits(network.hidden(*both, attend)[:, :LENGTH]), draw)
    drafts = network.hidden(masks[:1], order_BL[:1], Dense(causal=True))
    q = normalised(network.logits(drafts), draw)
    probs = p.gather(-1, texts[..., None])[..., 0].prod(1)
    apart = (p - q).abs().sum(-1).mean(1) / 2
    return Law(texts.numpy(), (probs / probs.sum()).numpy(), float((apart * probs).sum()))


def normalised(logits: Tensor, draw: DrawSettings) -> Tensor:
    probs = shape(logits.log_softmax(-1), draw).double()
    return probs / probs.sum(-1, keepdim=True)


def p_value(
    network: Network, order: list[int], draw: DrawSettings, drafting: Drafting, samples: int
) -> float:
    """Of the chi-square statistic of lossless texts against the law; small cells are pooled."""
    law = law_of(network, order, draw)
    uniforms = stream(1, Purpose.TOKENS, drafting.most).random((samples, LENGTH, 3))
    found = np.zeros(TOKENS**LENGTH)
    for part in np.array_split(uniforms, -(-samples // 10_000)):
        rows = start([text_of(np.array(order))])
        rows.keep(np.zeros(len(part), np.int64))
        rows.uniforms_BL3, rows.rows = part, np.arange(len(part))
        tokens_BL = texts_of(run(network, rows, drafting, draw), np.array(order), len(part))
        found += np.bincount(tokens_BL @ TOKENS ** np.arange(LENGTH)[::-1], minlength=len(found))
    expected = law.probs * samples
    rare = expected < 5
    if rare.any():
        found, expected = (np.append(x[~rare], x[rare].sum()) for x in (found, expected))
        if expected[-1] == 0:  # what truncation leaves no room for
            assert found[-1] == 0
            found, expected = found[:-1], expected[:-1]
    return float(stats.chisquare(found, expected).pvalue)


def text_of(order: Ids, given: int = 0, uniforms: NDArray[np.float64] | None = None) -> Text:
    nothing = np.zeros(len(order), np.int64)
    if uniforms is None:
        uniforms = np.zeros((len(order), 3))
    return Text(nothing, nothing, order, given, len(order), uniforms)


def start(texts: Sequence[Text]) -> Rows:
    """These texts before their first call."""
    rows = Rows.places(len(texts), max(len(text.ids_L) for text in texts))
    for b, text in enumerate(texts):
        rows.enter(b, text, b)
    return rows


def run(
    network: Network,
    rows: Rows,
    drafting: Drafting,
    draw: DrawSettings,
    *,
    calls: DraftCalls | None = None,
    waiting: Sequence[Text] = (),
    end_of_text: int | None = None,
) -> Iterator[Step]:
    calls = calls or draft_calls(network, rows, drafting)
    rule = Rule(draw, torch.ones(1, network.config.vocab_size, dtype=torch.bool))
    made = Lossless(network, calls, rows, rule, drafting, waiting=waiting, end_of_text=end_of_text)
    return made.steps(range(len(rows.rows) + len(waiting)))


def texts_of(steps: Iterator[Step], order: Ids, rows: int) -> Ids:
    """Tokens by sorted index, `[B, L]`; every one must have been decided once."""
    tokens_BL = np.full((rows, len(order)), -1)
    for step in steps:
        at = step.rows[:, None], step.positions_BK.numpy()
        assert (tokens_BL[at] == -1).all()
        tokens_BL[at] = step.tokens_BK.numpy()
    assert (tokens_BL >= 0).all()
    return tokens_BL[:, order]


def test_drafts_of_the_sharpened_network_are_bad(sharp: Network) -> None:
    for order in ORDERS.values():
        assert law_of(sharp, order, PLAIN).draft_distance > 0.2


FEW = [
    ("random", 3, PLAIN),
    ("left to right", 5, TRUNCATED),
]
MANY = list(product(ORDERS, (1, 2, 3, 5), (PLAIN, TRUNCATED, DrawSettings(top_k=2))))
COSTS = (1.0, 1.05, 1.1, 1.2)


@pytest.mark.parametrize(("order", "k", "draw"), FEW, ids=str)
def test_lossless_texts_have_the_law_of_one_token_per_step(
    sharp: Network, order: str, k: int, draw: DrawSettings
) -> None:
    assert p_value(sharp, ORDERS[order], draw, Drafting(k), 50_000) > ALWAYS


@pytest.mark.slow
@pytest.mark.parametrize(("order", "k", "draw"), MANY, ids=str)
def test_lossless_texts_have_that_law_in_every_configuration(
    sharp: Network, order: str, k: int, draw: DrawSettings
) -> None:
    bound = 0.01 / (len(MANY) + len(ORDERS))
    assert p_value(sharp, ORDERS[order], draw, Drafting(k), 200_000) > bound


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_drafting_as_many_as_pay_has_that_law(sharp: Network, order: str) -> None:
    bound = 0.01 / (len(MANY) + len(ORDERS))
    assert p_value(sharp, ORDERS[order], PLAIN, Drafting.adaptive(COSTS), 200_000) > bound


def test_what_a_draft_was_drawn_from_need_not_be_good(
    sharp: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where drafts have seen a refused token beside them, which is avoided for speed alone."""
    monkeypatch.setattr(Rows, "apart_B", lambda _, most_B: np.maximum(most_B, 0))
    order = ORDERS["left to right"]
    assert p_value(sharp, order, PLAIN, Drafting(LENGTH), 50_000) > ALWAYS


def test_accepting_every_draft_has_another_law(
    sharp: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossless_module, "accepted", lambda p, q, u: p >= 0)
    assert p_value(sharp, ORDERS["random"], PLAIN, Drafting(3), 20_000) < 1e-9


def test_drawing_from_p_instead_of_the_residual_has_another_law(
    sharp: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossless_module, "residual", lambda p, q: p)
    assert p_value(sharp, ORDERS["random"], PLAIN, Drafting(3), 20_000) < 1e-9


def test_truncating_p_and_q_differently_has_another_law(
    sharp: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts and residuals are truncated, and the probability that a draft is accepted is not."""
    masks = lossless_module._Masks
    truncated = masks.verify

    def untruncated(self: lossless_module._Masks, numbers: Tensor, tokens: Tensor) -> object:
        rule = replace(self._rule, draw=PLAIN)
        plain = masks(self._network, rule, self._hidden_MD, self._kinds_M)
        return truncated(plain, numbers, tokens)

    monkeypatch.setattr(masks, "verify", untruncated)
    draw = DrawSettings(top_k=2)
    assert p_value(sharp, ORDERS["random"], draw, Drafting(3), 20_000) < 1e-9


def test_the_residual_is_what_p_has_and_q_has_not_or_p_where_rounding_leaves_nothing() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    q = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    expected = torch.tensor([[0.4, 0.0, 0.0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(lossless_module.residual(p, q), expected)


LONG = 40
RULES = [
    ScheduleSettings(8, 1.0),
    ScheduleSettings(6, 0.5, "blocks"),
    ScheduleSettings(3, 0.0),
]
GIVEN = np.array([0, 7, 8, 30])


def long_texts(rule: ScheduleSettings, samples: range, given: Ids = GIVEN) -> list[Text]:
    plan = plan_for(rule, samples, LONG, given=given)
    ids = np.arange(LONG) * 7 % 299
    late = plan.given + int(plan.counts_S[: plan.diffusion_steps].sum())
    return [
        Text(ids, 0 * ids, order_L, plan.given, late, token_uniforms(0, sample, LONG))
        for sample, order_L in zip(samples, plan.order_BL, strict=True)
    ]


def long_rows(rule: ScheduleSettings, samples: range, given: Ids = GIVEN) -> Rows:
    return start(long_texts(rule, samples, given))


Found = tuple[Ids, NDArray[np.float64], Ids]


def collected(steps: Iterator[Step], rows: int) -> Found:
    """Tokens (given ones as -1), log-probabilities and calls by natural position."""
    tokens, log_probs, calls = (
        np.full((rows, LONG), -1),
        np.zeros((rows, LONG)),
        np.full((rows, LONG), -1),
    )
    for step in steps:
        at = step.rows[:, None], step.positions_BK.numpy()
        tokens[at], log_probs[at], calls[at] = step.tokens_BK, step.log_probs_BK, step.index
    return tokens, log_probs, calls


@pytest.fixture(scope="module", params=["nothing", "bos"])
def network(request: pytest.FixtureRequest, tiny_checkpoint: Checkpoint) -> Network:
    """A tiny model whose texts begin from nothing, and one whose begin from end-of-text."""
    return (behind_bos(tiny_checkpoint) if request.param == "bos" else tiny_checkpoint).network


NUCLEUS = DrawSettings(top_p=0.9)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("given", [np.zeros(0, np.int64), GIVEN], ids=["all", "some"])
def test_the_recorded_log_probability_is_the_scorers(
    network: Network, rule: ScheduleSettings, given: Ids
) -> None:
    rows = long_rows(rule, range(5), given)
    order = torch.from_numpy(rows.order_BL)
    tokens, found, _ = collected(run(network, rows, Drafting(6), NUCLEUS), 5)
    ids = np.where(tokens < 0, np.arange(LONG) * 7 % 299, tokens)
    scored = token_log_probs(network, torch.from_numpy(ids), order)[:, len(given) :]
    recorded = torch.from_numpy(found).gather(1, order)[:, len(given) :]
    assert (scored - recorded).abs().max() < 1e-4


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_texts_are_those_without_a_cache(network: Network, rule: ScheduleSettings) -> None:
    """No uniform of these is at an edge."""
    uncached = UncachedDrafts(network, 5, CPU)
    first, second = (
        collected(run(network, long_rows(rule, range(5)), Drafting(6), NUCLEUS, calls=calls), 5)
        for calls in (None, uncached)
    )
    assert (first[0] == second[0]).all()
    assert (first[2] == second[2]).all()
    np.testing.assert_allclose(first[1], second[1], atol=1e-4)


@pytest.mark.parametrize("drafting", [Drafting(6), Drafting.adaptive(COSTS)], ids=str)
def test_a_text_is_the_same_in_every_batch(network: Network, drafting: Drafting) -> None:
    """Rows advance unevenly, so that each stands elsewhere in the cache."""
    together = collected(run(network, long_rows(RULES[0], range(9)), drafting, NUCLEUS), 9)
    for row in (0, 4, 8):
        alone = long_rows(RULES[0], range(row, row + 1))
        found = collected(run(network, alone, drafting, NUCLEUS), 1)
        assert (together[0][row] == found[0][0]).all()
        assert (together[2][row] == found[2][0]).all()


class Counted(CachedDrafts):
    """DraftCalls that are counted, through a cache for so many texts."""

    def __init__(self, network: Network, texts: int, drafting: Drafting) -> None:
        cache = KVCache(network.config, texts, drafting.places(LONG))
        super().__init__(network, cache)
        self.made = 0

    def __call__(self, rows: Rows, call: Call) -> Tensor:
        self.made += 1
        return super().__call__(rows, call)


@pytest.mark.parametrize("given", [np.zeros(0, np.int64), GIVEN], ids=["all", "some"])
@pytest.mark.parametrize("places", [1, 4])
def test_waiting_texts_take_the_places_of_those_that_are_done(
    network: Network, given: Ids, places: int
) -> None:
    """The same texts in the same calls of theirs, and fewer calls in all than batch after batch."""
    drafting, texts = Drafting(6), long_texts(RULES[2], range(17), given)
    whole, _, _ = collected(run(network, start(texts), drafting, NUCLEUS), len(texts))
    end = int(np.bincount(whole[whole >= 0]).argmax())

    def made(at_once: list[Text], waiting: list[Text]) -> tuple[int, Found]:
        calls = Counted(network, len(at_once), drafting)
        steps = run(
            network,
            start(at_once),
            drafting,
            NUCLEUS,
            calls=calls,
            waiting=waiting,
            end_of_text=end,
        )
        found = collected(steps, len(at_once) + len(waiting))
        return calls.made, found

    stream_calls, stream = made(texts[:places], texts[places:])
    for row, text in enumerate(texts):
        _, alone = made([text], [])
        assert (stream[0][row] == alone[0][0]).all()
        assert (stream[2][row] == alone[2][0]).all()
        np.testing.assert_allclose(stream[1][row], alone[1][0], atol=1e-4)
    batches = [texts[i : i + places] for i in range(0, len(texts), places)]
    batch_calls = sum(made(batch, [])[0] for batch in batches)
    assert stream_calls == batch_calls if places == 1 else stream_calls < 0.9 * batch_calls


def test_texts_that_wait_for_a_place_are_those_without_a_cache(network: Network) -> None:
    """Each begins with other given tokens than the one whose place it takes."""
    texts = [
        replace(text, ids_L=(text.ids_L + number // 4 * 11) % 299)
        for number, text in enumerate(long_texts(RULES[1], range(9)))
    ]
    found = [
        collected(
            run(
                network,
                start(texts[:2]),
                Drafting(5),
                NUCLEUS,
                calls=calls,
                waiting=texts[2:],
            ),
            9,
        )
        for calls in (None, UncachedDrafts(network, 2, CPU))
    ]
    assert (found[0][0] == found[1][0]).all()
    assert (found[0][2] == found[1][2]).all()


def test_after_every_call_the_cache_is_a_fresh_prefill_of_what_stands(network: Network) -> None:
    """Also where waiting texts took the places of others."""
    rows, refusals = long_rows(RULES[2], range(3)), 0
    waiting = long_texts(RULES[2], range(3, 6))
    drafting = Drafting(6)
    cache = KVCache(network.config, 3, drafting.places(LONG))
    calls = CachedDrafts(network, cache)
    begins = int(network.config.bos_id is not None)
    for _ in run(network, rows, drafting, NUCLEUS, calls=calls, waiting=waiting):
        refusals = max(refusals, int(rows.refused_B.sum()))
        for b in range(len(rows.rows)):
            stands = int(calls.cached_B[b])
            fresh = KVCache(network.config, 1, LONG)
            bos = [network.config.bos_id] * begins
            ids = torch.tensor([*bos, *rows.tokens_BL[b, :stands].tolist()])[None]
            positions = torch.tensor([*[-1] * begins, *rows.order_BL[b, :stands].tolist()])[None]
            with torch.inference_mode():
                network.hidden(ids, positions, fresh.attend(ids.shape[1]))
            for layer in range(network.config.n_blocks):
                kept, again = (each.read(layer, stands + begins) for each in (cache, fresh))
                assert (kept[b] - again[0]).abs().max() < 1e-5
    assert refusals > 5


def test_one_draft_is_one_token_per_step(network: Network) -> None:
    """Nothing is ever drafted ahead: a call for each token."""
    _, _, calls = collected(run(network, long_rows(RULES[0], range(2)), Drafting(1), NUCLEUS), 2)
    assert (np.sort(calls, 1) == [-1] * len(GIVEN) + [*range(LONG - len(GIVEN))]).all()


def test_a_text_ends_once_nothing_is_undecided_before_its_end(network: Network) -> None:
    rule = RULES[2]
    whole, _, calls = collected(run(network, long_rows(rule, range(12)), Drafting(4), NUCLEUS), 12)
    end = int(np.bincount(whole[whole >= 0]).argmax())
    ended, _, _ = collected(
        run(network, long_rows(rule, range(12)), Drafting(4), NUCLEUS, end_of_text=end), 12
    )
    short = 0
    for row in range(12):
        ends = np.flatnonzero(whole[row] == end)
        if not len(ends):
            assert (ended[row] == whole[row]).all()
            continue
        short += 1
        last = calls[row, : ends[0] + 1].max()
        assert (ended[row] == np.where(calls[row] <= last, whole[row], -1)).all()
    assert short


def test_greedy_drafting_is_greedy_decoding(network: Network) -> None:
    greedy = DrawSettings(temperature=0.0)
    found = [
        collected(run(network, long_rows(RULES[0], range(3)), Drafting(k), greedy), 3)
        for k in (1, 7)
    ]
    assert (found[0][0] == found[1][0]).all()
    assert found[1][2].max() <= found[0][2].max()


def test_as_many_are_drafted_as_pay() -> None:
    """Drafts that are never refused are worth their price; where calls are dear, none is."""
    never, always = (np.array([0]), np.array([1000])), (np.array([1000]), np.array([1000]))
    cheap, dear = Drafting.adaptive((1.0, 1.1, 1.2, 1.3)), Drafting.adaptive((1.0, 2.0, 4.0))
    assert cheap.count(*never) == [8]
    assert cheap.count(*always) == [1]
    assert dear.count(*never) == [1]


@pytest.mark.parametrize("most", [0, -3])
def test_a_number_of_drafts_out_of_range_is_named(most: int) -> None:
    with pytest.raises(ValueError, match=f"draft is {most}; it must be at least 1, or auto"):
        Drafting(most)


def test_more_drafts_than_positions_are_cut_to_them(network: Network) -> None:
    many, all_ = (
        collected(run(network, long_rows(RULES[0], range(2)), Drafting(k), NUCLEUS), 2)
        for k in (1000, LONG - len(GIVEN))
    )
    assert (many[0] == all_[0]).all()
    assert (many[2] == all_[2]).all()


def test_the_costs_that_are_measured_say_how_many_are_drafted(network: Network) -> None:
    found = measured(network, 2, LONG)
    assert found.costs[0] == 1.0
    assert found.most == 2 ** (len(found.costs) - 1)


@pytest.mark.parametrize(
    ("milliseconds", "costs"),
    [
        ((2.0, 2.2, 2.5, 3.0, 4.0), (1.0, 1.1, 1.25, 1.5, 2.0)),
        ((2.0, 3.0, 5.0, 9.9), (1.0, 1.5, 2.5, 4.95)),
        ((2.0, 4.2, 4.6, 5.0, 12.0), (1.0, 2.1, 2.3, 2.5, 6.0)),
        ((2.0, 3.4, 6.4, 13.0), (1.0,)),
    ],
    ids=str,
)
def test_what_a_call_drafts_ends_where_it_pays_less_and_where_it_pays_little_nothing_is(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: tuple[float, ...],
    costs: tuple[float, ...],
) -> None:
    taken = iter(milliseconds)
    monkeypatch.setattr(draft_costs, "_quickest", lambda *_: next(taken))
    assert measured(network, 2, LONG).costs == costs


@pytest.fixture
def cli(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `esogen sample` on the tiny model; its stdout."""

    def run_it(*words: str) -> str:
        assert main(["sample", "-m", str(tiny_folder), "--seed=5", "--quiet", *words]) == 0
        return capfd.readouterr().out

    return run_it


@pytest.mark.parametrize("words", [("--draft=5",), ("--draft=auto", "--alpha-0=0")], ids=str)
def test_the_command_in_a_trace_gives_the_same_texts(
    cli: Callable[..., str],
    tmp_path: Path,
    words: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it was measured how many drafts pay: the costs are in the command."""
    taken = iter((2.0, 2.2, 2.5, 9.0))
    monkeypatch.setattr(draft_costs, "_quickest", lambda *_: next(taken))
    path = tmp_path / "run.trace"
    first = cli(*words, "-n3", "--trace", str(path), "Tom")
    trace = TraceFile(path)
    again = shlex.split(trace.header.command)[1:]
    assert ("--draft-costs" in again) == ("--draft=auto" in words)
    assert main([*again, "--batch-size=1", "--quiet"]) == 0
    assert capfd.readouterr().out == first
    assert main(["replay", str(path)]) == 0
    assert capfd.readouterr().out == first
    for text in trace:
        assert len(text.rounds) == text.calls
        decided = np.bincount([step for step in text.steps if step >= 0])
        drafts, stood = np.array(text.rounds).T
        assert ((stood == decided) | (stood == decided - 1)).all()
        assert (stood <= drafts).all()


def test_json_has_what_was_drafted_and_what_stood(cli: Callable[..., str]) -> None:
    found = json.loads(cli("--draft=5", "--format=jsonl", "--top-k=3", "Tom"))
    assert 0 < found["accepted"] <= found["drafts"]
    assert found["nfe"] < 47
    assert (found["steps"], found["draft"]) == (None, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--draft=0",), "--draft is 0; it must be a whole number of at least 1, or auto"),
        (("--draft=x",), "--draft is 'x'; it must be a whole number of at least 1, or auto"),
        (("--draft=4", "--steps=9"), "--draft is 4 and --steps is 9;"),
        (("--draft=4", "--draft-costs=1,2"), "--draft-costs is given and --draft is not"),
        (("--draft=auto", "--draft-costs=1,0"), "--draft-costs is 0; it must be numbers above 0"),
        (("--draft=4", "--verify"), "--verify compares runs of one plan"),
    ],
    ids=str,
)
def test_drafting_that_makes_no_sense_is_refused(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert main(["sample", "-m", str(tiny_folder), *words, "Tom"]) == 2
    found = capfd.readouterr()
    assert found.err.startswith(f"esogen: {message}")
    assert (found.out, len(found.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("cached", [True, False])
def test_python_drafts_with_the_same_words(tiny_checkpoint: Checkpoint, cached: bool) -> None:
    """Samples are the same whatever number has a place at once."""
    lm = LanguageModel(tiny_checkpoint, CPU)
    alone = list(lm.sample("Tom", n=5, draft=6, seed=5, batch_size=1))
    assert any(sample.accepted for sample in alone)
    for places in (2, 5):
        made = lm.sample("Tom", n=5, draft=6, seed=5, batch_size=places, kv_cache=cached)
        for one, other in zip(made, alone, strict=True):
            assert (one.index, one.tokens, one.steps) == (other.index, other.tokens, other.steps)
            assert (one.nfe, one.drafts, one.accepted) == (other.nfe, other.drafts, other.accepted)
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)


def test_batches_may_be_driven_in_any_order(tiny_checkpoint: Checkpoint) -> None:
    """What is decided of a later batch meanwhile is kept for it."""
    lm = LanguageModel(tiny_checkpoint, CPU)
    settings = lm.settings(draft=6, seed=5)
    batches = list(lm.batches("Tom", settings, n=6, batch_size=2))
    for batch in reversed(batches):
        for step in batch.steps():
            assert set(step.rows) <= {0, 1}
    found = [sample.tokens for batch in batches for sample in batch.samples()]
    assert found == [s.tokens for s in lm.sample("Tom", n=6, draft=6, seed=5, batch_size=1)]
