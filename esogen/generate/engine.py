"""What a run runs on: all that stays the same from one run to the next.

Shapes: V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from esogen.checkpoint.tokenizer import Tokenizer
from esogen.generate.draw import Draw
from esogen.model.attention import Kernels
from esogen.model.network import Network


@dataclass(frozen=True, slots=True)
class Engine:
    """A network and its tokenizer, the device they are on, what attends there and what draws."""

    network: Network
    tokenizer: Tokenizer
    device: torch.device
    kernels: Kernels
    draw: Draw

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.network.config.model_length

    def allowed(self, *, end: bool) -> Tensor:
        """Tokens that may be drawn, bool `[2, V]`, for positions that are free or begin a word."""
        begins_V = torch.from_numpy(self.tokenizer.begins_word)
        allowed_CV = torch.stack([torch.ones_like(begins_V), begins_V])
        allowed_CV[:, self.tokenizer.end_of_text] = end
        return allowed_CV.to(self.device)
