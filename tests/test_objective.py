"""The hybrid objective against sums over every mask, every order and every time.

The oracle asks a tiny network, one token at a time, for its `-log p` given the clean tokens and the
masks before it, and adds up what the two terms say. It shares no code with the objective.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from esogen.generate.streams import Purpose, stream
from esogen.likelihood import token_log_probs
from esogen.model.attention import Dense
from esogen.model.config import ModelConfig
from esogen.model.fold import fold
from esogen.model.network import Network
from esogen.training.batch import Share, diffusion_rows, low_discrepancy_times, shares
from esogen.training.data import Rows
from esogen.training.evaluate import Figure, _places, evaluate
from esogen.training.objective import (
    TIME_EPS,
    Noise,
    decision_noise,
    diffusion_loss,
    diffusion_noise,
    sequential_loss,
    sequential_noise,
)
from esogen.training.settings import TrainingSettings

Text = tuple[int, ...]
Positions = tuple[int, ...]

TEXT: Text = (2, 0, 3)
LONGER: Text = (1, 3, 0, 2)
EXACT = 2e-5
"""Largest difference in nats that float32 may make on a sum over a text."""


@cache
def tiny_network() -> Network:
    """Four tokens and the mask; no weight is zero, so adaLN modulates."""
    return _random_network(vocab_size=5, seed=0)


@cache
def tiny_network_with_bos() -> Network:
    """The same, for texts that begin from token 2."""
    return _random_network(vocab_size=5, seed=0, bos_id=2)


with_and_without_bos = pytest.mark.parametrize("network_of", [tiny_network, tiny_network_with_bos])


def _random_network(vocab_size: int, seed: int, bos_id: int | None = None) -> Network:
    config = ModelConfig("esolm-b", vocab_size, 4, 8, 2, 2, cond_dim=4, dropout=0.0, bos_id=bos_id)
    network = Network(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.6, generator=generator)
    return network.eval()


@cache
def nats(network: Network, text: Text, clean: Positions, masks: Positions) -> float:
    """`-log p` of the last of `masks`, given `clean` in this order and the masks before it."""
    bos_id = network.config.bos_id
    order = (*clean, *masks) if bos_id is None else (-1, *clean, *masks)
    ids = [text[p] if p >= 0 else bos_id for p in order[: len(order) - len(masks)]]
    ids += [network.config.mask_id] * len(masks)
    with torch.no_grad():
        logits = network(torch.tensor([ids]), torch.tensor([order]), Dense(causal=True))
    return -float(logits[0, -1].log_softmax(-1)[text[masks[-1]]])


def subsets(length: int) -> Iterator[tuple[Positions, Positions]]:
    """Every split of the positions into kept and hidden ones."""
    for hidden in itertools.product((False, True), repeat=length):
        positions = range(length)
        yield (
            tuple(p for p in positions if not hidden[p]),
            tuple(p for p in positions if hidden[p]),
        )


def orders(kept: Positions, hidden: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Every order of the kept ones with every order of the hidden ones."""
    return itertools.product(itertools.permutations(kept), itertools.permutations(hidden))


def all_nats(network: Network, text: Text, clean: Positions, masks: Positions) -> float:
    """Loss of all masks in one input."""
    return sum(nats(network, text, clean, masks[: j + 1]) for j in range(len(masks)))


def one_by_one(network: Network, text: Text, clean: Positions, hidden: Positions) -> float:
    """Loss of the hidden ones left to right, each given all that come before it as clean."""
    return sum(
        nats(network, text, (*clean, *hidden[:j]), hidden[j : j + 1]) for j in range(len(hidden))
    )


@cache
def mean_diffusion_nats(network: Network, text: Text) -> dict[Positions, float]:
    """For every hidden set, its loss averaged over all orders."""
    return {
        hidden: float(np.mean([all_nats(network, text, *o) for o in orders(kept, hidden)]))
        for kept, hidden in subsets(len(text))
    }


def brute_diffusion(
    network: Network,
    text: Text,
    alpha_0: float,
    *,
    lowest: float = TIME_EPS,
    true_weight: bool = True,
) -> float:
    """The diffusion term in nats, its mean over t in [lowest, 1] by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        t = lowest + (1.0 - lowest) * (node + 1.0) / 2.0
        clean_share = alpha_0 * (1.0 - t)
        factor = alpha_0 / (1.0 - clean_share) if true_weight else 1.0
        for hidden, loss in mean_diffusion_nats(network, text).items():
            kept = len(text) - len(hidden)
            probability = clean_share**kept * (1.0 - clean_share) ** len(hidden)
            total += weight / 2.0 * factor * probability * loss
    return total


def brute_sequential(network: Network, text: Text, alpha_0: float) -> float:
    """The autoregressive term in nats, over every set of kept tokens in every order."""
    total = 0.0
    for kept, hidden in subsets(len(text)):
        probability = alpha_0 ** len(kept) * (1.0 - alpha_0) ** len(hidden)
        losses = [one_by_one(network, text, o, hidden) for o in itertools.permutations(kept)]
        total += probability * float(np.mean(losses))
    return total


def brute_nelbo(network: Network, text: Text, alpha_0: float) -> float:
    """The whole bound in nats, over all times down to 0."""
    return brute_diffusion(network, text, alpha_0, lowest=0.0) + brute_sequential(
        network, text, alpha_0
    )


def brute_training_loss(network: Network, text: Text, alpha_0: float) -> float:
    """What one value of `alpha_0` adds to a batch's loss, in nats per token."""
    diffusion = brute_diffusion(network, text, alpha_0, true_weight=alpha_0 < 1.0)
    return (diffusion + brute_sequential(network, text, alpha_0)) / len(text)


def repeated(text: Text, rows: int) -> Tensor:
    return torch.tensor([text]).expand(rows, -1)


def uniforms(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(stream(seed, Purpose.TRAINING, 9).random((rows, length, 2)))


def assert_mean(values: np.ndarray, wanted: float) -> None:
    """The mean of the draws is `wanted`, within four standard errors that are small themselves."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert error < 0.03 * max(wanted, 0.1)
    assert abs(values.mean() - wanted) < 4.0 * error + EXACT


# The two losses, for every noise there is


def noise_of(inputs: list[tuple[Positions, Positions]], weight: float) -> Noise:
    order_BL = torch.tensor([(*clean, *masks) for clean, masks in inputs])
    masked_BL = torch.tensor(
        [[False] * len(clean) + [True] * len(masks) for clean, masks in inputs]
    )
    return Noise(order_BL, masked_BL, torch.full((len(inputs), 1), weight))


@with_and_without_bos
@pytest.mark.parametrize("text", [TEXT, LONGER])
def test_the_diffusion_loss_of_every_mask_and_order_is_the_sum_one_by_one(
    text: Text, network_of: Callable[[], Network]
) -> None:
    network = network_of()
    inputs = [o for split in subsets(len(text)) for o in orders(*split)]
    with torch.no_grad():
        found = diffusion_loss(network, repeated(text, len(inputs)), noise_of(inputs, 1.7)).sum(1)
    wanted = [1.7 * all_nats(network, text, *o) for o in inputs]
    assert found.tolist() == pytest.approx(wanted, abs=EXACT)


@with_and_without_bos
@pytest.mark.parametrize("text", [TEXT, LONGER])
def test_the_sequential_loss_of_every_mask_and_order_is_the_sum_one_by_one(
    text: Text, network_of: Callable[[], Network]
) -> None:
    network = network_of()
    inputs = [
        (order, hidden)
        for kept, hidden in subsets(len(text))
        for order in itertools.permutations(kept)
    ]
    with torch.no_grad():
        found = sequential_loss(network, repeated(text, len(inputs)), noise_of(inputs, 1.0)).sum(1)
    wanted = [one_by_one(network, text, *o) for o in inputs]
    assert found.tolist() == pytest.approx(wanted, abs=EXACT)


# The noise: its law, by the mean of the estimators


@pytest.mark.parametrize("alpha_0", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("true_weight", [True, False])
def test_the_mean_of_the_diffusion_estimator_is_the_integral(
    alpha_0: float, *, true_weight: bool
) -> None:
    network, rows = tiny_network(), 60_000
    times = torch.from_numpy(low_discrepancy_times(stream(1, Purpose.TRAINING), rows))
    noise = diffusion_noise(uniforms(rows, 3), times, alpha_0, true_weight=true_weight)
    with torch.no_grad():
        found = diffusion_loss(network, repeated(TEXT, rows), noise).sum(1).numpy()
    wanted = brute_diffusion(network, TEXT, alpha_0, true_weight=true_weight)
    assert_mean(found, wanted)


@pytest.mark.parametrize("alpha_0", [0.5, 0.25, 0.0])
def test_the_mean_of_the_sequential_estimator_is_the_sum(alpha_0: float) -> None:
    network, rows = tiny_network(), 20_000
    with torch.no_grad():
        noise = sequential_noise(uniforms(rows, 3), alpha_0)
        found = sequential_loss(network, repeated(TEXT, rows), noise).sum(1).numpy()
    if alpha_0:
        assert_mean(found, brute_sequential(network, TEXT, alpha_0))
    else:
        assert found == pytest.approx(brute_sequential(network, TEXT, 0.0), abs=EXACT)


@pytest.mark.parametrize("alpha_0", [1.0, 0.5, 0.25])
def test_the_mean_over_decisions_is_the_integral_over_all_times(alpha_0: float) -> None:
    network, rows = tiny_network(), 30_000
    places = torch.from_numpy(_places(rows, 0, 0, 1))
    counted = torch.ones(rows, 3, dtype=torch.bool)
    noise = decision_noise(uniforms(rows, 3), places, alpha_0, counted)
    with torch.no_grad():
        found = diffusion_loss(network, repeated(TEXT, rows), noise).sum(1).numpy()
    assert_mean(found, brute_diffusion(network, TEXT, alpha_0, lowest=0.0))


def test_clean_tokens_and_masks_come_in_every_order_equally_often() -> None:
    rows = 24_000
    noise = diffusion_noise(uniforms(rows, 4), torch.full((rows,), 0.5).double(), 1.0)
    two_each = (noise.masked_BL.sum(1) == 2).nonzero()[:, 0]
    _, counts = np.unique(noise.order_BL[two_each].numpy(), axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_hidden_tokens_of_the_sequential_phase_stand_left_to_right() -> None:
    noise = sequential_noise(uniforms(500, 4), 0.4)
    for order, masked in zip(noise.order_BL, noise.masked_BL, strict=True):
        hidden = order[masked]
        assert torch.equal(hidden, hidden.sort().values)
        assert not masked[: int((~masked).sum())].any()


@pytest.mark.parametrize(("alpha_0", "t", "weight"), [(1.0, 0.1, 10.0), (0.25, 1.0, 0.25)])
def test_the_weight_is_the_rate_over_the_hidden_share(
    alpha_0: float, t: float, weight: float
) -> None:
    noise = diffusion_noise(uniforms(1, 3), torch.tensor([t]), alpha_0)
    assert noise.weight_BL.item() == pytest.approx(weight)
    plain = diffusion_noise(uniforms(1, 3), torch.tensor([t]), alpha_0, true_weight=False)
    assert plain.weight_BL.item() == 1.0


def test_a_batch_without_a_hidden_token_has_loss_zero_and_gradients() -> None:
    network = _random_network(5, 0)
    noise = sequential_noise(uniforms(2, 3), 1.0)
    loss = sequential_loss(network, repeated(TEXT, 2), noise).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


# Times


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_times_hit_every_stretch_once(rows: int) -> None:
    for draw in range(50):
        times = low_discrepancy_times(stream(draw, Purpose.TRAINING), rows)
        share = (times - TIME_EPS) / (1.0 - TIME_EPS)
        assert sorted(np.floor(share * rows).astype(int)) == list(range(rows))


def test_a_time_is_uniform_in_law() -> None:
    draws = [low_discrepancy_times(stream(i, Purpose.TRAINING), 8) for i in range(500)]
    found = stats.kstest((np.concatenate(draws) - TIME_EPS) / (1.0 - TIME_EPS), "uniform")
    assert found.pvalue > 1e-3


def test_places_of_all_rows_and_samples_hit_every_stretch_once() -> None:
    places = np.concatenate([_places(5, 0, sample, 3) for sample in range(3)])
    assert sorted(np.ceil(places * 15).astype(int)) == list(range(1, 16))


def test_the_place_of_one_row_is_uniform_in_law() -> None:
    draws = [_places(8, seed, 0, 1)[0] for seed in range(2000)]
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


# A batch


def settings(*alphas: float, batch_size: int = 8, micro_batch: int = 8) -> TrainingSettings:
    return TrainingSettings(10, alphas, batch_size=batch_size, micro_batch=micro_batch)


def rows_of(*texts: Text, counted: list[int] | None = None) -> Rows:
    lengths = counted or [len(text) for text in texts]
    return Rows(np.array(texts, np.int32), np.array(lengths, np.int32), bytes=sum(lengths))


def loss_of(batch: list[Share], network: Network) -> float:
    with torch.no_grad():
        return sum(float(share.loss(share.nats(network))) for share in batch)


@pytest.mark.parametrize(
    ("alpha_0", "rows", "wanted"), [(1.0, 7, 7), (0.0, 7, 0), (0.5, 8, 4), (0.25, 7, 3)]
)
def test_half_of_the_rows_take_the_diffusion_term(alpha_0: float, rows: int, wanted: int) -> None:
    assert diffusion_rows(rows, alpha_0) == wanted
    batch = shares(rows_of(TEXT), settings(alpha_0, batch_size=rows), 0, tiny_network().config)
    found = {share.row_loss: len(share.x_BL) for share in batch}
    assert found.get(diffusion_loss, 0) == wanted
    assert found.get(sequential_loss, 0) == rows - wanted


@pytest.mark.parametrize("alphas", [(1.0,), (0.5,), (0.25,), (0.0,), (1.0, 0.25), (1.0, 0.5, 0.0)])
def test_the_mean_loss_of_batches_is_the_objective(alphas: tuple[float, ...]) -> None:
    network, texts = tiny_network(), (TEXT, (1, 1, 2))
    recipe = settings(*alphas, batch_size=126)
    found = [
        loss_of(shares(rows_of(*texts), recipe, step, network.config), network)
        for step in range(150)
    ]
    wanted = [brute_training_loss(network, text, alpha) for text in texts for alpha in alphas]
    assert_mean(np.array(found), float(np.mean(wanted)))


def test_several_alphas_make_the_mean_of_their_losses() -> None:
    network = tiny_network()
    batch = shares(rows_of(TEXT, LONGER[:3]), settings(1.0, 0.25, batch_size=12), 0, network.config)
    with torch.no_grad():
        per_token = [float(share.nats(network).mean()) for share in batch]
    only_one, diffusion, sequential = per_token
    assert loss_of(batch, network) == pytest.approx((only_one + diffusion + sequential) / 2)


@pytest.mark.parametrize("passes", [1, 100])
def test_the_loss_that_is_shown_leaves_padding_out(passes: int) -> None:
    """Left to right every token has a loss, so the scorer knows what is to be shown."""
    network, counted = tiny_network(), [2, 4]
    rows = rows_of(LONGER, (0, 2, 3, 1), counted=counted)
    batch = shares(rows, settings(0.0, batch_size=2), 0, network.config)
    with torch.no_grad():
        shown = sum(
            float(part.text_loss(part.nats(network)))
            for share in batch
            for part in share.passes(passes)
        )
    order_BL = torch.arange(4).expand(2, 4)
    log_probs_BL = token_log_probs(network, torch.from_numpy(rows.ids_RL).long(), order_BL)
    wanted = -sum(float(log_probs_BL[row, :n].sum()) for row, n in enumerate(counted)) / sum(
        counted
    )
    assert shown == pytest.approx(wanted, abs=EXACT)
    assert shown != pytest.approx(loss_of(batch, network), abs=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_cutting_a_batch_into_passes_changes_neither_loss_nor_gradients(rows: int) -> None:
    whole, cut = _random_network(5, 0), _random_network(5, 0)
    batch = shares(rows_of(TEXT, (1, 1, 2)), settings(1.0, 0.25, batch_size=14), 3, whole.config)
    torch.stack([share.loss(share.nats(whole)) for share in batch]).sum().backward()  # type: ignore[no-untyped-call]
    total = 0.0
    for share in batch:
        for part in share.passes(rows):
            assert len(part.x_BL) <= rows
            loss = part.loss(part.nats(cut))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
    assert total == pytest.approx(loss_of(batch, whole), rel=1e-6)
    for found, wanted in zip(cut.parameters(), whole.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)


# The bound


@pytest.mark.parametrize("alpha_0", [1.0, 0.5, 0.25, 0.0])
def test_the_bound_leaves_no_more_than_one_for_all_texts_together(alpha_0: float) -> None:
    network = _random_network(vocab_size=4, seed=3)
    texts = itertools.product(range(3), repeat=3)
    total = sum(math.exp(-brute_nelbo(network, text, alpha_0)) for text in texts)
    assert total <= 1.0 + 1e-5
    assert total > 0.3
    if alpha_0 == 0.0:
        assert total == pytest.approx(1.0, abs=1e-5)


def test_without_diffusion_the_bound_is_the_likelihood_left_to_right() -> None:
    network = tiny_network()
    log_probs = token_log_probs(network, torch.tensor([LONGER]), torch.arange(4)[None])
    assert brute_nelbo(network, LONGER, 0.0) == pytest.approx(-float(log_probs.sum()), abs=EXACT)


# Evaluation


def assert_figure(figure: Figure, wanted: float) -> None:
    assert figure.error < 0.02 * max(wanted, 0.1)
    assert abs(figure.value - wanted) < 4.0 * figure.error + EXACT


@pytest.mark.parametrize("alpha_0", [1.0, 0.25, 0.0])
def test_evaluation_finds_both_terms_of_texts_of_any_length(alpha_0: float) -> None:
    network, padded = tiny_network(), (1, 3, 0, 0)
    many = rows_of(*[LONGER, padded] * 3000, counted=[4, 2] * 3000)
    found = evaluate(network, many, alpha_0, batch=6000)
    texts: list[Text] = [LONGER, padded[:2]]
    diffusion = sum(brute_diffusion(network, text, alpha_0, lowest=0.0) for text in texts) / 6
    sequential = sum(brute_sequential(network, text, alpha_0) for text in texts) / 6
    assert_figure(found.diffusion, diffusion)
    assert_figure(found.sequential, sequential)
    assert_figure(found.nelbo, diffusion + sequential)
    assert (found.tokens, found.bytes) == (18_000, 18_000)
    assert found.bits_per_byte.value == pytest.approx(found.nelbo.value / math.log(2.0))
    assert found.bits_per_byte.error == pytest.approx(found.nelbo.error / math.log(2.0))


def test_more_samples_make_a_smaller_error_around_the_same_figure() -> None:
    network, rows = tiny_network(), rows_of(*[LONGER] * 60)
    once, often = (evaluate(network, rows, 1.0, samples=samples) for samples in (1, 25))
    assert often.nelbo.error < 0.4 * once.nelbo.error
    assert_figure(often.nelbo, brute_nelbo(network, LONGER, 1.0) / 4)


@pytest.mark.parametrize("alpha_0", [1.0, 0.5, 0.0])
def test_neither_batch_nor_padding_nor_folding_changes_an_evaluation(alpha_0: float) -> None:
    network = tiny_network()
    folded = Network(network.config, folded=True)
    folded.load_state_dict(dict(fold(network.state_dict(), network.config)))
    texts = [LONGER, (2, 1, 0, 0), (3, 3, 0, 0)]
    counted = [4, 2, 3]
    wanted = evaluate(network, rows_of(*texts, counted=counted), alpha_0, samples=3)
    padded = rows_of(*[(*text, 0, 0) for text in texts], counted=counted)
    for other, rows, batch in (
        (network, rows_of(*texts, counted=counted), 1),
        (network, padded, 32),
        (folded, padded, 2),
    ):
        found = evaluate(other, rows, alpha_0, samples=3, batch=batch)
        assert found.nelbo.value == pytest.approx(wanted.nelbo.value, abs=1e-5)
        assert found.nelbo.error == pytest.approx(wanted.nelbo.error, abs=1e-5)


def test_the_error_of_one_row_is_unknown() -> None:
    single = evaluate(tiny_network(), rows_of(TEXT), 0.0).nelbo
    assert math.isnan(single.error)
    assert f"{single:.2f}" == f"{single.value:.2f}"
    assert f"{Figure(1.5, 0.25):.2f}" == "1.50 ± 0.25"


def test_no_rows_are_nothing_to_evaluate() -> None:
    nothing = Rows(np.empty((0, 3), np.int32), np.empty(0, np.int32), 0)
    with pytest.raises(ValueError, match="0 rows and 1 samples; each must be at least 1"):
        evaluate(tiny_network(), nothing, 1.0)


def test_no_samples_are_no_evaluation() -> None:
    with pytest.raises(ValueError, match="1 rows and 0 samples; each must be at least 1"):
        evaluate(tiny_network(), rows_of(TEXT), 1.0, samples=0)
