"""The network that is measured, where it runs, and its runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from esogen.bench.cases import Case, Setup, sized
from esogen.checkpoint.folder import open_checkpoint
from esogen.checkpoint.placement import choose_attention, choose_device, choose_dtype
from esogen.checkpoint.weights import build
from esogen.generate.denoise import Step, denoise, start
from esogen.generate.draft_calls import draft_calls
from esogen.generate.draft_costs import measured
from esogen.generate.draft_rows import Rows, Text
from esogen.generate.drafting import Drafting
from esogen.generate.draw import Drawing, Drawn, DrawSettings, choose_draw
from esogen.generate.fill import Rule
from esogen.generate.lossless import Lossless
from esogen.generate.plan import Plan, ScheduleSettings
from esogen.generate.streams import Uniforms, token_uniforms
from esogen.model.attention import Kernels
from esogen.model.config import Family, ModelConfig
from esogen.model.families import ALPHA_0
from esogen.model.network import Network, initialise
from esogen.peers.family import calls_for, plan_for

SEED = 0
LOGIT_SPREAD = 3.5
"""Standard deviation of random logits: 50 000 tokens then have an entropy of 5 to 6 nats, and a
nucleus of 0.9 holds about a thousand, not nearly all, of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A network on its device, and how its tokens are drawn."""

    network: Network
    kernels: Kernels
    draw: DrawSettings
    drawing: Drawing

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.vocab_embed.embedding.device

    @property
    def notes(self) -> list[str]:
        """What this machine does not do in the usual way, a line each."""
        return [note for note in (self.kernels.note, self.drawing.note) if note]

    def serves(self, case: Case) -> bool:
        """Whether this is the network of a case."""
        config = self.network.config
        return (config.family, config.block_size) == (case.family, case.block_size or 1)

    def least_bytes(self, case: Case) -> int:
        """Bytes that a batch takes at least: those of its cache, or of a call's hidden states."""
        config, like = self.network.config, self.network.vocab_embed.embedding
        widths = 2 * config.n_blocks if case.kv_cache else 1
        return case.batch_size * case.length * widths * config.hidden_size * like.itemsize

    def plan(self, case: Case) -> Plan:
        """The plan of a batch, cut after `timed_steps`."""
        plan = whole_plan(self.network.config, case)
        steps = plan.nfe if case.timed_steps is None else min(plan.nfe, case.timed_steps)
        return replace(
            plan, counts_S=plan.counts_S[:steps], diffusion_steps=min(plan.diffusion_steps, steps)
        )

    def drafting(self, case: Case) -> Drafting | None:
        """How many drafts a case verifies; None where it drafts nothing, or nothing to verify."""
        match case.draft:
            case None:
                return None
            case "auto":
                kernels, drawing = self.kernels, self.drawing.by
                found = measured(
                    self.network, case.batch_size, case.length, kernels=kernels, drawing=drawing
                )
            case number:
                found = Drafting(number)
        return found if found.verifies else None

    def drafted(self, case: Case, plan: Plan, drafting: Drafting) -> Iterator[Step]:
        """A fresh run in the order of `plan`, its drafts verified."""
        nothing_L = np.zeros(case.length, np.int64)
        texts = (
            Text(nothing_L, nothing_L, order_L, 0, plan.late, uniforms_L3)
            for order_L, uniforms_L3 in zip(plan.order_BL, _uniforms(case), strict=True)
        )
        rows, cached = Rows.places(case.batch_size, case.length), case.kv_cache is not False
        calls = draft_calls(self.network, rows, drafting, cached=cached, kernels=self.kernels)
        run = Lossless(self.network, calls, rows, Rule(self.draw), drafting, waiting=texts)
        return run.steps(range(case.batch_size))

    def steps(self, case: Case, plan: Plan, *, drawing: bool = True) -> Iterator[Step]:
        """A fresh run of `plan`; without `drawing` the network alone, output layer included."""
        uniforms_BL = np.stack([uniforms_L3[:, 0] for uniforms_L3 in _uniforms(case)])
        given_L = np.zeros(case.length, np.int64)  # none of which is read: nothing is given
        progress = start(self.network, plan, given_L, uniforms_BL, self.device)
        cached = case.kv_cache is not False
        calls = calls_for(self.network, plan, cached=cached, kernels=self.kernels)
        how = self.drawing.by if drawing else _undrawn
        return denoise(self.network, calls, plan, progress, self.draw, drawing=how)


def open_subject(setup: Setup, family: Family, block_size: int | None) -> Subject:
    """The checkpoint, or random weights, on the device and in the precision asked for.

    Raises `UsageError` for a device, precision or attention that is not here.
    """
    device = choose_device(setup.device)
    dtype = choose_dtype(setup.dtype, device)
    kernels = choose_attention(setup.attention, device, dtype)
    if setup.model:
        network = open_checkpoint(setup.model, device=device, dtype=dtype).network
    else:
        network = random_network(sized(setup.size, family, block_size), device, dtype)
    return Subject(network, kernels, DrawSettings(top_p=setup.top_p), choose_draw(device))


def whole_plan(config: ModelConfig, case: Case) -> Plan:
    """The plan of all steps of a batch; nothing is given."""
    alpha_0 = ALPHA_0.get(case.family, 1.0 if case.alpha_0 is None else case.alpha_0)
    settings = ScheduleSettings(case.steps or 1, alpha_0, case.schedule or "random")
    positions = np.arange(case.length)
    samples = range(case.batch_size)
    plan = plan_for(config, settings, SEED, samples, given=positions[:0], blank=positions)
    return plan if case.draft is None else plan.one_by_one()


def _uniforms(case: Case) -> Iterator[Uniforms]:
    """Of each row, `[L, 3]`."""
    return (token_uniforms(SEED, row, case.length) for row in range(case.batch_size))


def random_network(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Network:
    """The network of `random_weights`, folded as that of a checkpoint is."""
    tensors = random_weights(config, device)
    return build(config, tensors, folded=True, device=device, dtype=dtype)


@torch.no_grad()
def random_weights(config: ModelConfig, device: torch.device) -> dict[str, Tensor]:
    """Fresh weights, the same at every call, with no matrix of zeros.

    A GPU draws less power multiplying by zeros, and so runs faster than it would.
    """
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.device(device):
        network = Network(config)
    initialise(network, generator)
    for name, parameter in network.blocks.named_parameters():
        if "adaLN_modulation" in name:
            parameter.normal_(std=0.3, generator=generator)
    spread = LOGIT_SPREAD / math.sqrt(config.hidden_size)
    network.output_layer.linear.weight.normal_(std=spread, generator=generator)
    return network.state_dict()


def _undrawn(logits_KV: Tensor, uniforms_K: Tensor, settings: DrawSettings) -> Drawn:
    """What stands for drawing where the network is timed alone: token 0."""
    tokens_K = torch.zeros_like(uniforms_K, dtype=torch.int64)
    return Drawn(tokens_K, torch.zeros_like(uniforms_K, dtype=torch.float32))
