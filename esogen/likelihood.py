"""Exact log-probabilities of a text, one pass over masks and text together per order.

Eso-LM (B) gives `log p(x | order)` exactly: every token given all earlier ones as clean
(arXiv 2506.01928, section 3.3).

Shapes: B rows, L positions, V vocabulary.
"""

import torch
from torch import Tensor

from esogen.model import patterns
from esogen.model.attention import Dense
from esogen.model.network import Network, hidden_after_bos


@torch.inference_mode()
def token_log_probs(network: Network, x_BL: Tensor, order_BL: Tensor) -> Tensor:
    """`log p(x at order[j] | x at order[0..j-1])` for every sorted index j, nats, `[B, L]`.

    `x_BL` int64 in natural order; `order_BL` int64: natural position at each sorted index.
    """
    length = x_BL.shape[1]
    clean_BL = x_BL.gather(1, order_BL)
    masks_BL = torch.full_like(clean_BL, network.config.mask_id)
    mask = patterns.two_halves(patterns.causal(length, x_BL.device))
    hidden_BMD = hidden_after_bos(
        network, torch.cat([masks_BL, clean_BL], 1), torch.cat([order_BL, order_BL], 1), Dense(mask)
    )
    log_probs_BLV = network.logits(hidden_BMD[:, :length]).log_softmax(-1)
    return log_probs_BLV.gather(-1, clean_BL[..., None])[..., 0]
