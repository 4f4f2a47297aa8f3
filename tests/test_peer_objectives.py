"""The objective of every other family against sums over every mask and every time, and golden ones.

The oracle asks a tiny network, in inputs that hold no more than one token's `-log p` needs, and
adds up what was published. It draws its own attention masks and shares no code with the objectives.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from esogen.generate.streams import Purpose, stream
from esogen.model.attention import Dense
from esogen.model.config import Family, ModelConfig
from esogen.model.families import ALPHA_0
from esogen.model.network import Network
from esogen.training.batch import low_discrepancy_times, shares
from esogen.training.data import Rows
from esogen.training.evaluate import _places, evaluate
from esogen.training.objective import (
    TIME_EPS,
    Noise,
    decision_noise,
    diffusion_loss,
    sequential_loss,
)
from esogen.training.peer_objectives import (
    bd3lm_loss,
    block_decision_noise,
    block_noise,
    mdlm_loss,
    next_token_loss,
    whole_noise,
)
from esogen.training.settings import TrainingSettings
from tests import golden

Text = tuple[int, ...]
Positions = tuple[int, ...]

TEXT: Text = (1, 3, 0, 2, 2)
BLOCK = 2
BOS = 2
EXACT = 2e-5
PEERS: tuple[Family, ...] = ("esolm-a", "mdlm", "bd3lm", "ar")
with_and_without_bos = pytest.mark.parametrize("begins", [False, True])


@cache
def tiny(family: Family, *, begins: bool = False, vocab_size: int = 5) -> Network:
    """No weight is zero, so adaLN modulates; with `begins`, texts begin from a token."""
    bos_id = BOS if begins or family == "ar" else None
    config = ModelConfig(
        *(family, vocab_size, 5, 8, 2, 2), cond_dim=4, dropout=0.0, block_size=BLOCK, bos_id=bos_id
    )
    network = Network(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.6, generator=generator)
    return network.eval()


@cache
def bare_nats(
    network: Network, ids: Text, positions: Positions, groups: Positions, *, row: int, token: int
) -> float:
    """`-log p(token)` at a row of an input in which i sees j if the group of j is not later.

    The network's bos token, if any, stands first; only MDLM lets it see the others.
    """
    if network.config.bos_id is not None:
        ids, positions, row = (network.config.bos_id, *ids), (-1, *positions), row + 1
        groups = (groups[0] if network.config.family == "mdlm" else -1, *groups)
    seen = torch.tensor([[later >= earlier for earlier in groups] for later in groups])
    with torch.no_grad():
        logits = network(torch.tensor([ids]), torch.tensor([positions]), Dense(seen))
    return -float(logits[0, row].double().log_softmax(-1)[token])


def shown(network: Network, text: Text, hidden: Positions) -> Text:
    mask_id = network.config.mask_id
    return tuple(mask_id if p in hidden else token for p, token in enumerate(text))


def mdlm_nats(network: Network, text: Text, hidden: Positions) -> float:
    positions = tuple(range(len(text)))
    ids, together = shown(network, text, hidden), (0,) * len(text)
    return sum(bare_nats(network, ids, positions, together, row=p, token=text[p]) for p in hidden)


def block_nats(network: Network, text: Text, block: int, hidden: Positions) -> float:
    """Loss of one block, given those before it; what comes later is not there at all."""
    known = text[: (block + 1) * BLOCK]
    positions = tuple(range(len(known)))
    ids, groups = shown(network, known, hidden), tuple(p // BLOCK for p in positions)
    return sum(bare_nats(network, ids, positions, groups, row=p, token=text[p]) for p in hidden)


def ar_nats(network: Network, text: Text) -> float:
    """By the chain rule, one input a token; the bos token is its row 0."""
    total = 0.0
    for p, token in enumerate(text):
        ids, positions = (BOS, *text[:p]), tuple(range(-1, p))
        with torch.no_grad():
            logits = network(torch.tensor([ids]), torch.tensor([positions]), Dense(causal=True))
        total -= float(logits[0, -1].double().log_softmax(-1)[token])
    return total


def a_diffusion_nats(network: Network, text: Text, clean: Positions, masks: Positions) -> float:
    """Eso-LM (A): clean tokens both ways, then masks, each seeing those before it."""
    total = 0.0
    for j, p in enumerate(masks):
        positions = (*clean, *masks[: j + 1])
        ids = tuple(text[q] for q in clean) + (network.config.mask_id,) * (j + 1)
        groups = (0,) * len(clean) + tuple(range(1, j + 2))
        total += bare_nats(network, ids, positions, groups, row=len(ids) - 1, token=text[p])
    return total


def a_sequential_nats(network: Network, text: Text, clean: Positions, hidden: Positions) -> float:
    """Eso-LM (A): clean tokens both ways, then those decided since, then one mask."""
    total = 0.0
    for j, p in enumerate(hidden):
        positions = (*clean, *hidden[: j + 1])
        ids = (*(text[q] for q in (*clean, *hidden[:j])), network.config.mask_id)
        groups = (0,) * len(clean) + tuple(range(1, j + 2))
        total += bare_nats(network, ids, positions, groups, row=len(ids) - 1, token=text[p])
    return total


def subsets(positions: Positions) -> Iterator[Positions]:
    for size in range(len(positions) + 1):
        yield from itertools.combinations(positions, size)


def integral(losses: dict[Positions, float], length: int, lowest: float) -> float:
    """Mean over t in [lowest, 1] of `1 / t` times the mean loss at t, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        t = lowest + (1.0 - lowest) * (node + 1.0) / 2.0
        at_t = sum(
            t ** len(hidden) * (1.0 - t) ** (length - len(hidden)) * loss
            for hidden, loss in losses.items()
        )
        total += weight / 2.0 * at_t / t
    return total


def brute_mdlm(network: Network, text: Text, lowest: float = 0.0) -> float:
    losses = {h: mdlm_nats(network, text, h) for h in subsets(tuple(range(len(text))))}
    return integral(losses, len(text), lowest)


def brute_bd3lm(network: Network, text: Text, lowest: float = 0.0) -> float:
    total = 0.0
    for block in range(math.ceil(len(text) / BLOCK)):
        inside = tuple(range(len(text)))[block * BLOCK : (block + 1) * BLOCK]
        losses = {h: block_nats(network, text, block, h) for h in subsets(inside)}
        total += integral(losses, len(inside), lowest)
    return total


def brute_a(network: Network, text: Text, alpha_0: float) -> float:
    """Both terms of Eso-LM (A), over all times, hidden sets and orders of masks."""
    places = tuple(range(len(text)))
    total, nodes = 0.0, np.polynomial.legendre.leggauss(16)
    for hidden in subsets(places):
        clean = tuple(p for p in places if p not in hidden)
        orders = list(itertools.permutations(hidden))
        diffusion = float(np.mean([a_diffusion_nats(network, text, clean, o) for o in orders]))
        for node, weight in zip(*nodes, strict=True):
            kept = float(alpha_0 * (1.0 - node) / 2.0)
            chance = kept ** len(clean) * (1.0 - kept) ** len(hidden)
            total += float(weight) / 2.0 * alpha_0 / (1.0 - kept) * chance * diffusion
        chance = alpha_0 ** len(clean) * (1.0 - alpha_0) ** len(hidden)
        total += chance * a_sequential_nats(network, text, clean, hidden)
    return total


def brute_ar(network: Network, text: Text, lowest: float = 0.0) -> float:
    """Exact, so there are no times."""
    return ar_nats(network, text)


class Brute(Protocol):
    def __call__(self, network: Network, text: Text, lowest: float = 0.0) -> float: ...


BRUTE: Mapping[Family, Brute] = {"mdlm": brute_mdlm, "bd3lm": brute_bd3lm, "ar": brute_ar}


def repeated(text: Text, rows: int) -> Tensor:
    return torch.tensor([text]).expand(rows, -1)


def uniforms(rows: int, length: int) -> Tensor:
    return torch.from_numpy(stream(0, Purpose.TRAINING, 9).random((rows, length, 2)))


def assert_mean(values: np.ndarray, wanted: float) -> None:
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert error < 0.03 * max(wanted, 0.1)
    assert abs(values.mean() - wanted) < 4.0 * error + EXACT


# The losses, for every hidden set


def noise_in(orders: list[Positions], hidden: list[Positions], weight: float) -> Noise:
    masked = [[p in h for p in order] for order, h in zip(orders, hidden, strict=True)]
    return Noise(torch.tensor(orders), torch.tensor(masked), torch.full((len(orders), 1), weight))


@with_and_without_bos
def test_the_mdlm_loss_of_every_hidden_set_is_the_sum_one_by_one(begins: bool) -> None:
    network, places = tiny("mdlm", begins=begins), tuple(range(5))
    sets = list(subsets(places))
    orders = [tuple(p for p in places if p not in h) + h[::-1] for h in sets]
    with torch.no_grad():
        found = mdlm_loss(network, repeated(TEXT, len(sets)), noise_in(orders, sets, 1.7))
    wanted = [1.7 * mdlm_nats(network, TEXT, h) for h in sets]
    assert found.tolist() == pytest.approx(wanted, abs=EXACT)


@with_and_without_bos
def test_the_bd3lm_loss_of_every_hidden_set_is_the_sum_over_blocks(begins: bool) -> None:
    network, places = tiny("bd3lm", begins=begins), tuple(range(5))
    sets = list(subsets(places))
    with torch.no_grad():
        noise = noise_in([places] * len(sets), sets, 1.0)
        found = bd3lm_loss(network, repeated(TEXT, len(sets)), noise)
    wanted = [
        sum(
            block_nats(network, TEXT, block, tuple(p for p in h if p // BLOCK == block))
            for block in range(3)
        )
        for h in sets
    ]
    assert found.tolist() == pytest.approx(wanted, abs=EXACT)


@with_and_without_bos
def test_the_losses_of_eso_lm_a_are_the_sums_one_by_one(begins: bool) -> None:
    network, places = tiny("esolm-a", begins=begins), tuple(range(4))
    text, sets = TEXT[:4], list(subsets(places))
    clean = [tuple(p for p in reversed(places) if p not in h) for h in sets]
    inputs = [(c, o) for c, h in zip(clean, sets, strict=True) for o in itertools.permutations(h)]
    with torch.no_grad():
        noise = noise_in([(*c, *o) for c, o in inputs], [o for _, o in inputs], 1.0)
        found = diffusion_loss(network, repeated(text, len(inputs)), noise)
        noise = noise_in([(*c, *h) for c, h in zip(clean, sets, strict=True)], sets, 1.0)
        one_by_one = sequential_loss(network, repeated(text, len(sets)), noise)
    wanted = [a_diffusion_nats(network, text, c, o) for c, o in inputs]
    assert found.tolist() == pytest.approx(wanted, abs=EXACT)
    wanted = [a_sequential_nats(network, text, c, h) for c, h in zip(clean, sets, strict=True)]
    assert one_by_one.tolist() == pytest.approx(wanted, abs=EXACT)


def test_the_left_to_right_loss_is_the_chain_rule() -> None:
    network = tiny("ar")
    texts = list(itertools.product(range(4), repeat=3))
    with torch.no_grad():
        found = next_token_loss(network, torch.tensor(texts), whole_noise(torch.tensor(texts)))
    assert found.tolist() == pytest.approx([ar_nats(network, t) for t in texts], abs=EXACT)
    assert float((-found).exp().sum()) == pytest.approx(1.0, abs=1e-5)


# Golden


def golden_nats(logits: Tensor, x: Tensor, hidden: Tensor) -> list[float]:
    """What the authors' logits say of the hidden tokens, summed over each row."""
    nats = -logits.log_softmax(-1).gather(-1, x[..., None])[..., 0]
    sums: list[float] = (nats * hidden).sum(1).tolist()
    return sums


def plain_noise(hidden: Tensor, order: Tensor | None = None) -> Noise:
    order = torch.arange(hidden.shape[1]).expand_as(hidden) if order is None else order
    return Noise(order, hidden.gather(1, order), torch.ones(len(hidden), 1))


def test_the_losses_are_those_of_the_golden_training_logits() -> None:
    with torch.no_grad():
        network, case = golden.network("mdlm", folded=False), golden.expected("mdlm")
        hidden = case["zt"] == network.config.mask_id
        found = mdlm_loss(network, case["x0"], plain_noise(hidden))
        assert found.tolist() == pytest.approx(golden_nats(case["logits"], case["x0"], hidden))

        network, case = golden.network("bd3lm", folded=False), golden.expected("bd3lm")
        hidden = case["training.zt"] == network.config.mask_id
        found = bd3lm_loss(network, case["x0"], plain_noise(hidden))
        wanted = golden_nats(case["training.logits"], case["x0"], hidden)
        assert found.tolist() == pytest.approx(wanted)

        network, case = golden.network("ar", folded=False), golden.expected("ar")
        wanted = golden_nats(case["logits"][:, :-1], case["x"][:, 1:], torch.ones(1, 63))
        for x, nats in zip(case["x"], wanted, strict=True):
            begun = Network(ModelConfig(*_sizes(network.config), bos_id=int(x[0]))).eval()
            begun.load_state_dict(network.state_dict())
            text = x[None, 1:]
            found = next_token_loss(begun, text, whole_noise(text))
            assert found.tolist() == pytest.approx([nats])


def _sizes(config: ModelConfig) -> tuple[Family, int, int, int, int, int]:
    return (
        *(config.family, config.vocab_size, config.model_length),
        *(config.hidden_size, config.n_blocks, config.n_heads),
    )


@pytest.mark.parametrize("phase", ["diffusion", "sequential"])
def test_the_losses_of_eso_lm_a_are_those_of_the_golden_logits(phase: str) -> None:
    network, case = golden.network("esolm-a", folded=False), golden.expected("esolm-a")
    order, x0 = case[f"{phase}.order"], case["x0"]
    hidden = case[f"{phase}.zt"] == network.config.mask_id
    loss = diffusion_loss if phase == "diffusion" else sequential_loss
    with torch.no_grad():
        found = loss(network, x0, plain_noise(hidden, order))
    sorted_x, sorted_hidden = x0.gather(1, order), hidden.gather(1, order)
    wanted = golden_nats(case[f"{phase}.logits"], sorted_x, sorted_hidden)
    assert found.tolist() == pytest.approx(wanted)


# The noise, by the mean of the estimators


def test_the_mean_of_the_block_estimators_is_the_integral() -> None:
    network, rows = tiny("bd3lm"), 10_000
    times = low_discrepancy_times(stream(1, Purpose.TRAINING), rows * 3)
    shuffled = times[stream(2, Purpose.TRAINING).random(rows * 3).argsort()]
    u = uniforms(rows, 5)
    training = block_noise(u[..., 0], torch.from_numpy(shuffled.reshape(rows, 3)), BLOCK)
    places, counted = torch.from_numpy(_places(rows, 0, 0, 1)), torch.ones(rows, 5).bool()
    with torch.no_grad():
        found = bd3lm_loss(network, repeated(TEXT, rows), training).numpy()
        noise = block_decision_noise(u, places, counted, BLOCK)
        decisions = bd3lm_loss(network, repeated(TEXT, rows), noise).numpy()
    assert_mean(found, brute_bd3lm(network, TEXT, lowest=TIME_EPS))
    assert_mean(decisions, brute_bd3lm(network, TEXT))
    assert decisions.std() < found.std()


def test_hidden_tokens_of_a_block_come_in_every_number_equally_often() -> None:
    counted = torch.ones(4000, 4).bool()
    counted[:, 3] = False
    places = torch.from_numpy(_places(4000, 0, 0, 1))
    noise = block_decision_noise(uniforms(4000, 4), places, counted, BLOCK)
    assert not noise.masked_BL[:, 3].any()
    assert noise.masked_BL[:, 2].all()
    hidden = noise.masked_BL[:, :2].sum(1)
    assert hidden.bincount().tolist() == [0, 2000, 2000]
    assert torch.equal(noise.weight_BL[:, 0], 2.0 / hidden)


def test_noise_says_how_many_tokens_of_a_text_are_clean() -> None:
    counted = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    noise = decision_noise(uniforms(2, 4), torch.tensor([0.5, 1.0]), 1.0, counted)
    assert noise.clean_B.tolist() == [2, 0]
    assert noise.rows(slice(1, 2)).clean_B.tolist() == [0]
    assert plain_noise(torch.tensor([[True, False, False]])).clean_B.tolist() == [2]


# Batches and evaluation


def rows_of(texts: list[Text], counted: list[int]) -> Rows:
    return Rows(np.array(texts, np.int32), np.array(counted, np.int32), bytes=sum(counted))


@pytest.mark.parametrize("family", ["mdlm", "bd3lm", "ar"])
def test_the_mean_loss_of_batches_is_the_published_objective(family: Family) -> None:
    network, texts = tiny(family), [TEXT, (0, 0, 1, 3, 3)]
    recipe = TrainingSettings(10, (ALPHA_0[family],), batch_size=128)
    found = []
    for step in range(40):
        (share,) = shares(rows_of(texts, [5, 5]), recipe, step, network.config)
        parts = list(share.passes(50))
        assert [len(part.x_BL) for part in parts] == [50, 50, 28]
        with torch.no_grad():
            found.append(sum(float(part.loss(network)) for part in parts))
    wanted = [BRUTE[family](network, text, lowest=TIME_EPS) / 5 for text in texts]
    assert_mean(np.array(found), float(np.mean(wanted)))


@with_and_without_bos
@pytest.mark.parametrize("family", ["mdlm", "bd3lm", "ar"])
def test_evaluation_finds_the_bound_of_texts_of_any_length(family: Family, begins: bool) -> None:
    network, texts = tiny(family, begins=begins), [TEXT, (1, 3, 0, 0, 0), (2, 0, 0, 0, 0)]
    counted = [5, 3, 1]
    many = rows_of(texts * 1200, counted * 1200)
    found = evaluate(network, many, ALPHA_0[family], batch=6000)
    brute = [BRUTE[family](network, t[:n]) for t, n in zip(texts, counted, strict=True)]
    wanted = sum(brute) / sum(counted)
    assert abs(found.nelbo.value - wanted) < 4.0 * found.nelbo.error + EXACT
    assert found.nelbo.error < 0.02 * wanted
    assert (found.diffusion.value == 0.0) == (family == "ar")
    if family == "ar":
        assert found.nelbo.value == pytest.approx(wanted, abs=EXACT)


@pytest.mark.parametrize("alpha_0", [1.0, 0.5])
def test_evaluation_finds_the_bound_of_eso_lm_a(alpha_0: float) -> None:
    network, texts, counted = tiny("esolm-a"), [TEXT, (1, 3, 0, 0, 0)], [4, 2]
    found = evaluate(network, rows_of(texts * 1500, counted * 1500), alpha_0, batch=6000)
    brute = [brute_a(network, t[:n], alpha_0) for t, n in zip(texts, counted, strict=True)]
    assert abs(found.nelbo.value - sum(brute) / 6) < 4.0 * found.nelbo.error + EXACT


@pytest.mark.parametrize("family", PEERS)
def test_neither_batch_nor_padding_changes_an_evaluation(family: Family) -> None:
    network, alpha_0 = tiny(family), ALPHA_0.get(family, 0.5)
    texts, counted = [TEXT, (2, 1, 0, 0, 0), (3, 3, 1, 0, 0)], [5, 2, 3]
    wanted = evaluate(network, rows_of(texts, counted), alpha_0, samples=2, batch=1)
    other: list[Text] = [(*t[:n], *[1] * (9 - n)) for t, n in zip(texts, counted, strict=True)]
    for rows, batch in (rows_of(texts, counted), 3), (rows_of(other, counted), 2):
        found = evaluate(network, rows, alpha_0, samples=2, batch=batch)
        assert found.nelbo.value == pytest.approx(wanted.nelbo.value, abs=1e-5)
        assert found.nelbo.error == pytest.approx(wanted.nelbo.error, abs=1e-5)


@pytest.mark.parametrize("family", ["mdlm", "bd3lm", "ar"])
def test_the_bound_leaves_no_more_than_one_for_all_texts_together(family: Family) -> None:
    network = tiny(family, vocab_size=4)
    texts = itertools.product(range(3), repeat=3)
    total = sum(math.exp(-BRUTE[family](network, text)) for text in texts)
    assert total == pytest.approx(1.0, abs=1e-5) if family == "ar" else 0.3 < total <= 1.0


def test_an_alpha_0_that_a_family_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha_0 is 0.5; of the family mdlm it is 1.0"):
        evaluate(tiny("mdlm"), rows_of([TEXT], [5]), 0.5)
