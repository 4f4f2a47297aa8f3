"""Our sampler beside the authors': their checkout is imported as it is, and must compute the same.

What stands for their checkout here imports what theirs imports, and has a network of our own.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from esogen.bench.authors import (
    MODULES,
    STOOD_IN,
    difference,
    load_modules,
    rows,
    their_sampler,
)
from esogen.bench.cases import Case, Setup, sized
from esogen.bench.subject import open_subject, random_weights
from esogen.errors import EsogenError, UsageError

CPU = torch.device("cpu")
CASES = [Case("esolm-b", 24, batch, 6, 1.0, "random") for batch in (1, 3)]

CHECKOUT = {
    "utils.py": """
        import fsspec, lightning
        from scipy.integrate import quad
        from timm.scheduler import CosineLRScheduler

        class Decay(CosineLRScheduler): ...
    """,
    "trainer_base.py": """
        import hydra.utils, torch, transformers, dataloader, metrics, models, utils
        import lightning as L

        class LogLinear:
            def __init__(self, alpha_0):
                self.alpha_0 = alpha_0

        class TrainerBase(L.LightningModule):
            def __init__(self, tokenizer: transformers.PreTrainedTokenizer):
                raise AssertionError("sampling needs no trainer")
    """,
    "algo.py": """
        import torch, trainer_base, utils

        class EsoLM(trainer_base.TrainerBase):
            def generate_samples(self, num_samples):
                sampling, length = self.config.sampling, self.num_tokens
                order = torch.rand(num_samples, length).argsort(1).to(self.device)
                z = torch.full((num_samples, length), self.mask_index)
                k = length // sampling.steps
                self.backbone.reset_kv_cache()
                print("a line of their own")
                for stands in range(0, length, k):
                    last = max(stands - k, 0)
                    logits = self.backbone.forward_sample(z, order, last, stands, stands + k)
                    if not sampling.profile_throughput:
                        z[:, stands : stands + k] = logits[..., : self.mask_index].argmax(-1)
                return z, float(sampling.steps), 0.0
    """,
    "models/__init__.py": "from . import dit, ema",
    "models/ema.py": "",
    "models/dit.py": """
        import omegaconf, torch
        from esogen.bench.cases import sized
        from esogen.model.attention import Dense
        from esogen.model.network import Network

        class EsoLMDiT(Network):
            def __init__(self, config, vocab_size, mask_index):
                super().__init__(sized("tiny", "esolm-b", None))
                assert (vocab_size, mask_index) == (self.config.vocab_size, self.config.mask_id)
                assert config.algo.diffusion_attn_mode == "causal" and config.sampling.kv_cache

            def reset_kv_cache(self): ...
            def reset_sorted_rotary_cache(self): ...

            def forward_sample(self, z, order, last, stands, end):
                return self(z[:, :end], order[:, :end], Dense(causal=CAUSAL))[:, stands:]
    """,
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return checked_out(tmp_path, causal=True)


def checked_out(folder: Path, *, causal: bool) -> Path:
    for name, text in CHECKOUT.items():
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(lines).replace("CAUSAL", str(causal)))
    return folder


def test_their_code_is_imported_without_what_only_training_needs(checkout: Path) -> None:
    before = dict(sys.modules), list(sys.path)
    modules = load_modules(checkout)
    assert modules["algo"].__file__ == str(checkout / "algo.py")
    assert modules["algo"].EsoLM.__mro__[1] is modules["trainer_base"].TrainerBase
    after = {name: sys.modules.get(name) for name in (*MODULES, *STOOD_IN)}
    assert after == {name: before[0].get(name) for name in after}
    assert sys.path == before[1]


def test_their_network_gets_our_weights_and_their_sampler_its_settings(checkout: Path) -> None:
    config = sized("tiny", "esolm-b", None)
    weights = random_weights(config, CPU)
    theirs = their_sampler(load_modules(checkout), config, weights, CASES[0], 0.9)
    subject = open_subject(Setup("tiny", device="cpu", dtype="fp32"), "esolm-b", None)
    assert difference(theirs, subject.network, 24) < 1e-5
    assert theirs.sampler.config.sampling.p_nucleus == 0.9
    single, several = rows(theirs, subject, CASES, rounds=1)
    assert (single.their_nfe, single.our_nfe) == (6, subject.plan(CASES[0]).nfe)
    assert (single.batch, several.batch) == (1, 3)
    assert (single.figure.least, several.figure.least) == (20.0, 8.0)
    assert single.figure.ratio > 0


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["authors", *words])
    monkeypatch.delitem(sys.modules, "esogen.bench.authors", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("esogen.bench.authors", run_name="__main__")
    return int(ended.value.code or 0)


TINY = ["--size", "tiny", "-L", "24", "-s", "6", "--device", "cpu", "--dtype", "fp32"]


def test_a_table_and_a_line_of_json_are_said(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(checkout), *TINY, "--rounds", "1"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2].startswith("| the authors' / ours, 6 steps, batch 1, with drawing |")
    document = json.loads(said[-1])
    assert document["logits_apart"] < 1e-5
    assert document["their_commit"] is None
    assert [row["their_nfe"] for row in document["rows"]] == [6]


def test_a_network_that_computes_something_else_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = checked_out(tmp_path, causal=False)
    assert run(str(other), *TINY, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "computes other logits" in said.err


def test_a_folder_without_their_code_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no algo\.py; name a checkout of https://"):
        load_modules(tmp_path)


def test_code_that_cannot_be_imported_is_told_so(checkout: Path) -> None:
    (checkout / "utils.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(EsogenError, match=r"a_package_that_is_not_there.*pip install einops"):
        load_modules(checkout)
