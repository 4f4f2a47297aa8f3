"""`python -m esogen.bench.authors DIR`: our sampler beside the authors' own, with equal weights.

DIR is a checkout of https://github.com/s-sahoo/Eso-LMs. Its code runs as it stands, with einops
installed; of what it imports for training alone nothing is needed. Both sample Eso-LM (B) with
random weights, the same number of steps and the same nucleus, each with its own noise and in the
precision it takes on the device, in turn; the network alone is timed on a GPU only, where theirs
can. Before anything is timed, both are seen to compute the same logits.

Shapes: B rows, L tokens of a text, K tokens of a step, V vocabulary.
"""

import argparse
import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from esogen.bench.cases import SIZES, Case, Setup, sized
from esogen.bench.figures import Figure, interleaved
from esogen.bench.gauges import wait_for
from esogen.bench.machine import commit, device_facts, machine
from esogen.bench.program import count, run, share
from esogen.bench.subject import Subject, open_subject, random_weights
from esogen.checkpoint.placement import choose_device, choose_dtype
from esogen.errors import EsogenError, UsageError
from esogen.model.attention import Dense
from esogen.model.config import ModelConfig
from esogen.model.network import Network

MODULES = ("algo", "trainer_base", "utils", "models", "models.dit", "models.ema")
"""Theirs that sampling goes through."""

STOOD_IN = (
    *("dataloader", "metrics", "fsspec", "hydra", "hydra.utils", "lightning", "omegaconf"),
    *("scipy", "scipy.integrate", "scipy.stats", "timm", "timm.scheduler", "transformers"),
)
"""What they import for data, training and evaluation, and sampling never calls."""

TOLERANCE = 0.03
"""How far logits may lie apart, relative to the largest: bfloat16 rounds each of many layers."""

_STEP = 4
"""Tokens of each of the two steps whose logits are compared."""


class _StandIn(ModuleType):
    """A package that is imported and never used: whatever is asked of it is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package: others may be imported out of it

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def load_modules(checkout: Path) -> dict[str, ModuleType]:
    """The authors' modules by name, out of their checkout; none of them stays importable.

    Runs what lies there. Raises `UsageError` where it is no such checkout, `EsogenError` where it
    cannot be imported.
    """
    for needed in ("algo.py", "models/dit.py"):
        if not (checkout / needed).is_file():
            raise UsageError(
                f"{checkout} has no {needed}; name a checkout of https://github.com/s-sahoo/Eso-LMs"
            )
    before = {name: sys.modules.pop(name, None) for name in (*MODULES, *STOOD_IN)}
    sys.path.insert(0, str(checkout))
    try:
        sys.modules.update({name: _StandIn(name) for name in STOOD_IN})
        return {name: importlib.import_module(name) for name in MODULES}
    except ImportError as error:
        raise EsogenError(
            f"{checkout} cannot be imported ({error}); it needs einops: pip install einops"
        ) from error
    finally:
        sys.path.remove(str(checkout))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@dataclass(frozen=True, slots=True)
class Theirs:
    """The authors' network and sampler, for texts of one length and one number of steps."""

    sampler: Any
    device: torch.device

    def sample(self, rows: int, *, drawing: bool) -> int:
        """Make so many texts, or only run the network for them; returns how often it ran."""
        self.sampler.config.sampling.profile_throughput = not drawing
        with _silent():  # it tells its own time
            _, nfe, _ = self.sampler.generate_samples(rows)
        wait_for(self.device)
        return int(nfe)

    @torch.no_grad()
    def logits(self, ids_BL: Tensor, order_BL: Tensor) -> Tensor:
        """Logits `[B, 2K, V]` of the first two steps of K tokens each; `ids_BL` in sorted order."""
        network, K = self.sampler.backbone, _STEP
        z_BL = torch.full_like(ids_BL, self.sampler.mask_index)
        found = []
        network.reset_kv_cache()
        network.reset_sorted_rotary_cache()
        with _silent():
            for stands in (0, K):
                z_BL[:, :stands] = ids_BL[:, :stands]
                found.append(network.forward_sample(z_BL, order_BL, 0, stands, stands + K))
        return torch.cat(found, 1).float()


def their_sampler(
    modules: Mapping[str, ModuleType],
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    case: Case,
    top_p: float,
) -> Theirs:
    """What these weights make, set up as their trainer does it for sampling, where they are."""
    told, device = _told(config, case, top_p), next(iter(weights.values())).device
    with torch.device(device):
        backbone = modules["models.dit"].EsoLMDiT(told, config.vocab_size, config.mask_id)
    backbone.load_state_dict(weights)
    sampler = object.__new__(modules["algo"].EsoLM)
    vars(sampler).update(
        config=told,
        backbone=backbone.to(device).eval(),
        noise=modules["trainer_base"].LogLinear(told.algo.alpha_0),
        alpha_0=told.algo.alpha_0,
        num_tokens=case.length,
        vocab_size=config.vocab_size,
        mask_index=config.mask_id,
        neg_infinity=-1000000.0,
        device=device,
    )
    return Theirs(sampler, device)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what is printed and warned of meanwhile."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _told(config: ModelConfig, case: Case, top_p: float) -> SimpleNamespace:
    """Their configuration of sampling, as their script for Eso-LM (B) sets it."""
    return SimpleNamespace(
        algo=SimpleNamespace(
            causal_attention=False,
            diffusion_attn_mode="causal",
            sequential_attn_mode="causal",
            alpha_0=case.alpha_0,
        ),
        attn=SimpleNamespace(dynamic_shape=False),
        model=SimpleNamespace(
            hidden_size=config.hidden_size,
            cond_dim=config.cond_dim,
            length=case.length,
            n_blocks=config.n_blocks,
            n_heads=config.n_heads,
            scale_by_sigma=True,
            dropout=config.dropout,
        ),
        sampling=SimpleNamespace(
            kv_cache=True,
            steps=case.steps,
            p_nucleus=top_p,
            subcontext_len=0,
            profile_throughput=False,
        ),
    )


@torch.no_grad()
def our_logits(network: Network, ids_BL: Tensor, order_BL: Tensor) -> Tensor:
    """What `Theirs.logits` must be, without a cache."""
    found = []
    for stands in (0, _STEP):
        z_BL = ids_BL[:, : stands + _STEP].clone()
        z_BL[:, stands:] = network.config.mask_id
        all_BLV = network(z_BL, order_BL[:, : stands + _STEP], Dense(causal=True))
        found.append(all_BLV[:, stands:])
    return torch.cat(found, 1)


def difference(theirs: Theirs, network: Network, length: int) -> float:
    """Largest difference of logits over the largest of them; the mask token's left out."""
    generator, mask_id = torch.Generator().manual_seed(0), network.config.mask_id
    order_BL = torch.rand(2, length, generator=generator).argsort(1).to(theirs.device)
    ids_BL = torch.randint(mask_id, (2, length), generator=generator).to(theirs.device)
    ours_BKV = our_logits(network, ids_BL, order_BL)[..., :mask_id]
    theirs_BKV = theirs.logits(ids_BL, order_BL)[..., :mask_id]
    return float((ours_BKV - theirs_BKV).abs().max() / ours_BKV.abs().max())


@dataclass(frozen=True, slots=True)
class Row:
    """One batch size, with drawing or without: the time of theirs over that of ours.

    Calls of the network and seconds are those of each one's shortest run.
    """

    figure: Figure
    batch: int
    drawing: bool
    our_nfe: int
    our_seconds: float
    their_nfe: int
    their_seconds: float


def rows(theirs: Theirs, subject: Subject, cases: Sequence[Case], rounds: int) -> Iterator[Row]:
    """Each batch size with drawing, and on a GPU without."""
    for case in cases:
        for drawing in (True, False) if theirs.device.type == "cuda" else (True,):
            yield _row(theirs, subject, case, rounds, drawing=drawing)


def _row(theirs: Theirs, subject: Subject, case: Case, rounds: int, *, drawing: bool) -> Row:
    ours = _Timed(lambda: _ours(subject, case, drawing=drawing))
    others = _Timed(lambda: theirs.sample(case.batch_size, drawing=drawing))
    ratio, spread = interleaved(others, ours, rounds)
    words = "with drawing" if drawing else "forward only"
    name = f"the authors' / ours, {case.steps} steps, batch {case.batch_size}, {words}"
    figure = Figure(name, ratio, spread, least=_target(case.batch_size, drawing=drawing))
    return Row(figure, case.batch_size, drawing, *ours.shortest(), *others.shortest())


@dataclass(slots=True)
class _Timed:
    """A run that tells how often the network was called, and what it took each time."""

    make: Callable[[], int]
    took: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self) -> float:
        began = time.perf_counter()
        nfe = self.make()
        self.took.append((nfe, time.perf_counter() - began))
        return self.took[-1][1]

    def shortest(self) -> tuple[int, float]:
        return min(self.took, key=itemgetter(1))


def _ours(subject: Subject, case: Case, *, drawing: bool) -> int:
    plan = subject.plan(case)
    for _ in subject.steps(case, plan, drawing=drawing):
        pass
    wait_for(subject.device)
    return plan.nfe


def _target(batch: int, *, drawing: bool) -> float | None:
    """How many times as long theirs should take at least: of batch 1, or of a large batch."""
    if batch == 1:
        return 20.0 if drawing else None
    return 8.0 if drawing else 5.0


def main() -> None:
    """Print a Markdown table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m esogen.bench.authors", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--size", default="small", choices=SIZES, help="of the random network")
    parser.add_argument("-L", "--length", type=count, default=1024, help="tokens of a text")
    parser.add_argument("-s", "--steps", type=count, default=1024, help="of the diffusion")
    parser.add_argument("--alpha-0", type=share, default=1.0, help="share of the diffusion phase")
    parser.add_argument("--batch-size", type=count, nargs="+", default=[1])
    parser.add_argument("--rounds", type=count, default=3, help="runs of each, in turn")
    parser.add_argument("--top-p", type=share, default=0.9, help="nucleus")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="ours")
    words = parser.parse_args()
    cases = [
        Case("esolm-b", words.length, rows, words.steps, words.alpha_0, "random")
        for rows in words.batch_size
    ]
    setup = Setup(words.size, device=words.device, dtype=words.dtype, top_p=words.top_p)
    device = choose_device(setup.device)
    config = sized(words.size, "esolm-b", None)
    modules = load_modules(words.checkout)
    weights = random_weights(config, device)
    theirs = their_sampler(modules, config, weights, cases[0], setup.top_p)
    subject = open_subject(setup, "esolm-b", None)
    apart = difference(theirs, subject.network, words.length)
    if not apart <= TOLERANCE:
        raise EsogenError(
            f"with the same weights the network in {words.checkout} computes other logits, up to"
            f" {apart:.2g} of the largest apart; there is nothing to compare"
        )
    print("| figure | median | range | target | |\n|---|---:|---|---|---|")
    found = []
    for row in rows(theirs, subject, cases, words.rounds):
        print(row.figure.row(), flush=True)
        found.append(asdict(row))
    about = {
        "machine": machine(),
        "device": device_facts(device),
        "their_commit": commit(words.checkout),
        "size": words.size,
        "length": words.length,
        "steps": words.steps,
        "our_dtype": str(choose_dtype(words.dtype, device)).removeprefix("torch."),
        "logits_apart": apart,
    }
    print(json.dumps({**about, "rows": found}))


if __name__ == "__main__":
    run(main)
