"""What the rest of a text tells of each token, beyond what stands before it.

    gain = log p(token | all earlier text, every token of the other parity)
         - log p(token | all earlier text)

Three passes: left to right; odd positions first, then even; even first, then odd. In the last two
each token is read from the one in which its parity comes second.
"""

import numpy as np

from esogen.checkpoint.folder import Checkpoint
from esogen.errors import UsageError
from esogen.likelihood import Numbers, Passage, read
from esogen.scoring.score import Score
from esogen.scoring.settings import ScoreSettings
from esogen.scoring.windows import Window, windows_of


def gains(checkpoint: Checkpoint, score: Score, settings: ScoreSettings) -> Numbers:
    """Gain of each token of a text scored left to right, nats, `[L]`.

    Parities count from the start of each window. Raises `UsageError` for another order, and
    for a model that has but one.
    """
    if checkpoint.config.family != "esolm-b":
        raise UsageError("gain takes three orders, and this model has one; leave it out")
    if settings.order != "left-to-right" or settings.bound != "exact":
        raise UsageError("gain is told from the left-to-right order; leave the other order out")
    tokens_L, gain_L = np.array(score.tokens), np.zeros(len(score.tokens))
    windows = list(windows_of(len(tokens_L), settings))
    for parity in (0, 1):
        passages = [_second(tokens_L, window, parity) for window in windows]
        readings = read(checkpoint.network, passages)
        for window, reading in zip(windows, readings, strict=True):
            later = np.arange(window.given, window.end - window.start)
            later = later[later % 2 == parity]
            gain_L[window.start + later] = reading.log_probs_L[later]
    return gain_L - _left_to_right(score)


def _second(tokens_L: np.ndarray, window: Window, parity: int) -> Passage:
    """The window in the order in which positions of this parity come second."""
    positions = np.arange(window.given, window.end - window.start)
    first = np.arange(window.given)
    order = [first, positions[positions % 2 != parity], positions[positions % 2 == parity]]
    return Passage(tokens_L[window.start : window.end], np.concatenate(order), window.given)


def _left_to_right(score: Score) -> Numbers:
    if score.log_probs_L is None:
        raise ValueError("the score has no log-probabilities of its tokens")
    return score.log_probs_L
