"""How much arithmetic a training step needs: what a device's utilisation is a share of.

Counted are the matrix products of the objective, forward once and backward twice as much, two
operations a multiplication: no norms, no recomputation, no padding of blocks. A token costs 12 D^2
products a block, a pair of tokens that sees each other 2 D, a hidden token D V in the output layer.
The clean half of two halves ends in the last block with its keys and values.

Shapes: L tokens of a row, D model width, V vocabulary.
"""

from collections.abc import Callable

from esogen.model.config import ModelConfig
from esogen.training.batch import Share
from esogen.training.objective import diffusion_loss, sequential_loss
from esogen.training.peer_objectives import bd3lm_loss

_FORWARD_AND_BACKWARD = 3
_HALVES = (sequential_loss, bd3lm_loss)


def step_flops(config: ModelConfig, share: Share) -> float:
    """Floating-point operations of one share of a batch, its gradients included."""
    rows, length = share.x_BL.shape
    width, blocks = config.hidden_size, config.n_blocks
    twice = share.row_loss in _HALVES
    products: float = 12 * width**2 * blocks * length * (1 + twice)
    if twice:
        products -= 9 * width**2 * length
    products += 2 * width * blocks * _pairs(config, length, share.row_loss)
    hidden = int(share.noise.masked_BL.sum())
    return 2.0 * _FORWARD_AND_BACKWARD * (rows * products + hidden * width * config.vocab_size)


def _pairs(config: ModelConfig, length: int, row_loss: Callable[..., object]) -> float:
    """Pairs of a row of which one sees the other, without bos; (A) is counted as if it were (B)."""
    causal = length * (length + 1) / 2
    if row_loss is sequential_loss:
        return 2 * causal
    if row_loss is bd3lm_loss:
        return length * (length + config.block_size)
    return causal if row_loss is diffusion_loss or config.family == "ar" else length**2
