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
from esogen.training.batch import shares
from esogen.training.data import Rows, batch_indices
from esogen.training.objective import Forward
from esogen.training.settings import TrainingSettings, ema_decay, learning_rate

Precision = Callable[[], AbstractContextManager[object]]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step.

    `loss` in nats per token is what the step minimised: for `alpha_0` = 1 that is not the bound,
    whose weights have more variance. `gradient` is its norm before clipping, `tokens` counts those
    of the batch, padding included, `seconds` wall time.
    """

    step: int
    loss: float
    gradient: float
    tokens: int
    seconds: float


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
        )
        self._forward: Forward = network if forward is None else forward

    def run(self, precision: Precision = nullcontext) -> Iterator[StepReport]:
        """Train until `settings.steps`; stopping between two reports loses nothing.

        Raises `NumericalError` when the loss is no longer a number; the state is then unchanged.
        """
        while self.step < self.settings.steps:
            began = time.perf_counter()
            loss, gradient = self._update(precision)
            tokens = self._tokens()
            self.step += 1
            yield StepReport(self.step, loss, gradient, tokens, time.perf_counter() - began)

    def _tokens(self) -> int:
        """Tokens of this step's texts; padding is not counted."""
        settings = self.settings
        rows = batch_indices(len(self.rows), settings.batch_size, self.step, settings.seed)
        return int(self.rows.counted_R[rows].sum())

    def _update(self, precision: Precision) -> tuple[float, float]:
        torch.manual_seed(_dropout_seed(self.settings.seed, self.step))
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._accumulate(precision)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        loss_value, gradient = float(loss), float(norm)
        if not (math.isfinite(loss_value) and math.isfinite(gradient)):
            raise NumericalError(
                f"the loss of step {self.step + 1} is not a number;"
                " train again with a lower learning rate or a longer warm-up"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        self.optimiser.step()
        self._update_average(ema_decay(self.settings, self.step))
        return loss_value, gradient

    def _accumulate(self, precision: Precision) -> Tensor:
        """The batch's loss, its gradients added up over passes of `micro_batch` rows."""
        device = next(iter(self.parameters.values())).device
        total = torch.zeros((), device=device)
        for share in shares(self.rows, self.settings, self.step, self.network.config):
            for part in share.passes(self.settings.micro_batch):
                with precision():
                    loss = part.to(device).loss(self._forward)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        return total

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
                    "step": tensors[f"optimiser.step.{name}"].clone(),
                    **{
                        key: tensors[f"optimiser.{key}.{name}"].to(parameter.device, copy=True)
                        for key in _MOMENTS
                    },
                }


def _dropout_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
