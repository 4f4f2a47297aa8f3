"""The training loop: a generator that yields what happened and never prints.

Step `n` is a function of the settings, the data and the state after step `n - 1`, so a run that was
stopped and resumed ends with the weights of one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from esogen.errors import NumericalError
from esogen.model.network import Network
from esogen.training.batch import Share, shares
from esogen.training.data import Rows, batch_indices
from esogen.training.flops import step_flops
from esogen.training.objective import Forward
from esogen.training.settings import TrainingSettings, ema_decay, learning_rate

Precision = Callable[[], AbstractContextManager[object]]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step.

    `loss` in nats per token is what the step minimised, without the padding's part: for `alpha_0`
    = 1 it is not the bound, whose weights have more variance. `gradient` is its norm before
    clipping, `tokens` counts those of the batch's texts, `seconds` wall time, `flops` what
    `step_flops` says.
    """

    step: int
    loss: float
    gradient: float
    tokens: int
    seconds: float
    flops: float


class Trainer:
    """Raw weights, their moving average and the optimiser, moved on by `run`.

    `forward` computes the losses of `network`: the network itself, or its compiled calls.
    """

    def __init__(
        self,
        network: Network,
        rows: Rows,
        settings: TrainingSettings,
        *,
        forward: Forward | None = None,
    ) -> None:
        self.network, self.rows, self.settings = network.train(), rows, settings
        self.step = 0
        self.parameters = dict(network.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=settings.weight_decay,
            fused=next(network.parameters()).is_cuda,
        )
        self._device = next(network.parameters()).device
        self._ahead: tuple[int, list[Share]] | None = None
        self._forward: Forward = network if forward is None else forward

    def run(self, precision: Precision = nullcontext) -> Iterator[StepReport]:
        """Train until `settings.steps`; stopping between two reports loses nothing.

        Raises `NumericalError` when the loss is no longer a number; the state is then unchanged.
        """
        while self.step < self.settings.steps:
            began = time.perf_counter()
            batch = self._batch(self.step)
            loss, gradient = self._update(batch, precision)
            tokens = self._tokens()
            flops = sum(step_flops(self.network.config, share) for share in batch)
            self.step += 1
            yield StepReport(self.step, loss, gradient, tokens, time.perf_counter() - began, flops)

    def _batch(self, step: int) -> list[Share]:
        """The batch of a step; the one that was made ahead if it is that."""
        if self._ahead and self._ahead[0] == step:
            return self._ahead[1]
        return shares(self.rows, self.settings, step, self.network.config, self._device)

    def _tokens(self) -> int:
        """Tokens of this step's texts; padding is not counted."""
        settings = self.settings
        rows = batch_indices(len(self.rows), settings.batch_size, self.step, settings.seed)
        return int(self.rows.counted_R[rows].sum())

    def _update(self, batch: list[Share], precision: Precision) -> tuple[float, float]:
        torch.manual_seed(_dropout_seed(self.settings.seed, self.step))
        self.optimiser.zero_grad(set_to_none=True)
        minimised, shown = self._accumulate(batch, precision)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        # While a GPU is still at work on this batch, the CPU makes the next one.
        self._ahead = self.step + 1, self._batch(self.step + 1)
        loss, gradient = float(shown), float(norm)
        if not (math.isfinite(float(minimised)) and math.isfinite(gradient)):
            raise NumericalError(
                f"the loss of step {self.step + 1} is not a number;"
                " train again with a lower learning rate or a longer warm-up"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        self.optimiser.step()
        self._update_average(ema_decay(self.settings, self.step))
        return loss, gradient

    def _accumulate(self, batch: list[Share], precision: Precision) -> tuple[Tensor, Tensor]:
        """The batch's loss, and that of its texts alone; gradients add up over passes of rows."""
        minimised, shown = torch.zeros(2, device=self._device)
        for share in batch:
            for part in share.passes(self.settings.micro_batch):
                with precision():
                    nats_BL = part.nats(self._forward)
                loss = part.loss(nats_BL)
                loss.backward()  # type: ignore[no-untyped-call]
                minimised += loss.detach()
                shown += part.text_loss(nats_BL.detach())
        return minimised, shown

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        torch._foreach_lerp_(
            list(self.average.values()), list(self.parameters.values()), 1.0 - decay
        )

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the network's tensors, averaged; they are the live ones."""
        return {**dict(self.network.named_buffers()), **self.average}

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name; they are the live ones."""
        tensors = {f"raw.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"ema.{name}": t for name, t in self.average.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = value
        return tensors

    def state_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `state()` after `step` steps."""
        moments = _MOMENTS if step else ()
        kinds = ("raw", "ema", *(f"optimiser.{key}" for key in moments))
        shapes = {
            f"{kind}.{name}": tuple(p.shape)
            for kind in kinds
            for name, p in self.parameters.items()
        }
        return shapes | {f"optimiser.step.{name}": () for name in self.parameters if step}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Continue from `state()` as it was after `step` steps."""
        self.step = step
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"raw.{name}"])
            self.average[name].copy_(tensors[f"ema.{name}"])
            if step:
                self.optimiser.state[parameter] = {
                    # The fused kernel of a GPU counts there, the others on the CPU.
                    "step": tensors[f"optimiser.step.{name}"].to(parameter.device, copy=True),
                    **{
                        key: tensors[f"optimiser.{key}.{name}"].to(parameter.device, copy=True)
                        for key in _MOMENTS
                    },
                }


def _dropout_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
