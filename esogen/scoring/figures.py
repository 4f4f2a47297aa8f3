"""From log-probabilities to what is reported: sums, bounds, and their standard errors.

Shapes: K orders, W windows, S draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esogen.likelihood import Numbers


@dataclass(frozen=True, slots=True)
class Estimate:
    """A log-probability in nats with its standard error (NaN where one draw says nothing of it).

    `orders`: of how many orders (or draws) it was made.
    """

    orders: int
    log_prob: float
    error: float

    def __add__(self, other: "Estimate") -> "Estimate":
        """Of both texts: the errors are independent."""
        return Estimate(
            max(self.orders, other.orders),
            self.log_prob + other.log_prob,
            math.hypot(self.error, other.error),
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What is said of one text, or of many together.

    `tokens` counted, the end of a text among them where it counts; `bytes` of the texts' UTF-8.
    `estimate` is the figure; `tightening` the same from fewer orders, fewest first.
    """

    tokens: int
    bytes: int
    estimate: Estimate
    tightening: tuple[Estimate, ...] = ()

    def __add__(self, other: "Figures") -> "Figures":
        """Of both together."""
        pairs = zip(self.tightening, other.tightening, strict=True)
        return Figures(
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.estimate + other.estimate,
            tuple(one + two for one, two in pairs),
        )

    @property
    def log_prob(self) -> float:
        """Log-probability, or a lower bound on it, in nats."""
        return self.estimate.log_prob

    @property
    def nats_per_token(self) -> float:
        """Nats per token: minus the log-probability, spread over the tokens."""
        return -self.log_prob / self.tokens

    @property
    def perplexity(self) -> float:
        """`exp(nats_per_token)`, infinite where no float can hold it."""
        return exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8; NaN for a text of no bytes."""
        return -self.log_prob / (math.log(2.0) * self.bytes) if self.bytes else math.nan

    @property
    def bits_per_byte_error(self) -> float:
        """Standard error of `bits_per_byte`."""
        return self.estimate.error / (math.log(2.0) * self.bytes) if self.bytes else math.nan


def exp(x: float) -> float:
    """`math.exp` that overflows to infinity."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def levels(orders: int) -> list[int]:
    """Numbers of orders at which a bound is told: 1, 10, 100 ... and all of them."""
    powers = [10**i for i in range(len(str(orders)))]
    return sorted({*powers, orders})


def bounds_of_windows(log_prob_WK: Sequence[Numbers]) -> tuple[Estimate, ...]:
    """Importance-weighted bounds of a text, one for each of `levels`, tightest last.

    A text's windows have independent orders, so each is bounded by itself and the bounds add up:
    that is the bound of all combinations of their orders.
    """
    orders = len(log_prob_WK[0])
    found = []
    for m in levels(orders):
        of_windows = [bound(log_prob_K, m) for log_prob_K in log_prob_WK]
        value = math.fsum(estimate.log_prob for estimate in of_windows)
        error = math.hypot(*(estimate.error for estimate in of_windows))
        found.append(Estimate(m, value, error))
    return tuple(found)


def bound(log_prob_K: Numbers, m: int) -> Estimate:
    """`log mean exp` over m orders, averaged over the `K // m` groups of so many.

    The error is that of the mean over groups. Of a single group it is the jackknife's, which is on
    average no smaller than the spread (Efron and Stein 1981), also where one order outweighs all.
    """
    groups = len(log_prob_K) // m
    value_G = _log_mean_exp(log_prob_K[: groups * m].reshape(groups, m))
    value = float(value_G.mean())
    if groups > 1:
        return Estimate(m, value, float(value_G.std(ddof=1)) / math.sqrt(groups))
    if m == 1:
        return Estimate(m, value, math.nan)
    without_K = _leaving_one_out(log_prob_K)
    return Estimate(m, value, float(without_K.std()) * math.sqrt(m - 1))


def _leaving_one_out(log_prob_K: Numbers) -> Numbers:
    """`log mean exp` of all but each."""
    most = int(log_prob_K.argmax())
    weight_K = np.exp(log_prob_K - log_prob_K[most])
    rest_K = weight_K.sum() - weight_K
    rest_K[most] = 1.0  # the largest is taken out with care: the others may be as good as nothing
    without_K: Numbers = log_prob_K[most] + np.log(rest_K / (len(log_prob_K) - 1))
    without_K[most] = _log_mean_exp(np.delete(log_prob_K, most)[None])[0]
    return without_K


def _log_mean_exp(log_prob_GK: Numbers) -> Numbers:
    most_G1 = log_prob_GK.max(1, keepdims=True)
    mean_G: Numbers = np.exp(log_prob_GK - most_G1).mean(1)
    found: Numbers = most_G1[:, 0] + np.log(mean_G)
    return found


def mean_of_draws(nats_WS: Sequence[Numbers]) -> Estimate:
    """The NELBO as a log-probability: minus the mean over draws, summed over windows.

    Draw s of a window is from stretch s of its times, so neighbours are paired: half the squared
    difference of two is, on average, at least the variance of either.
    """
    samples = len(nats_WS[0])
    value = -math.fsum(float(nats_S.mean()) for nats_S in nats_WS)
    if samples == 1:
        return Estimate(samples, value, math.nan)
    squares = math.fsum(_squared_error(nats_S) for nats_S in nats_WS)
    return Estimate(samples, value, math.sqrt(squares))


def _squared_error(nats_S: Numbers) -> float:
    difference = np.diff(nats_S)[::2]
    return float((difference**2).mean()) / 2 / len(nats_S)
