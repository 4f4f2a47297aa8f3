"""The golden cases: tiny checkpoints and what the authors' implementation computes from them.

The originals lie in `../shared/golden`. A clone has copies in `tests/golden`, with the weights as
they are and the first row of whatever was expected; `python -m tests.golden` makes them again.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.weights import build, read_tensors
from esogen.model.attention import Dense
from esogen.model.network import Network

ORIGINALS = Path(__file__).parents[2] / "shared" / "golden"
COPIES = Path(__file__).parent / "golden"
CASES = ("ar", "bd3lm", "esolm-a", "esolm-b", "mdlm")
COPIED = CASES
WHOLE = ("config.json", "expected.json", "model.safetensors", "lightning.ckpt")
"""The files that are copied as they are; only one case has the last."""

TOLERANCE = 1e-4


def folder(case: str) -> Path:
    """Where the case lies; skips the test in a clone that has no copy of it."""
    for root in (ORIGINALS, COPIES):
        if (root / case).is_dir():
            return root / case
    pytest.skip(f"the golden case {case} is not copied into the repository")


def network(case: str, *, folded: bool) -> Network:
    """The network of a case in float32 on the CPU, read as any checkpoint is."""
    place = folder(case)
    config = read_config(place / "config.json").model
    tensors = read_tensors(place / "model.safetensors", config)
    return build(config, tensors, folded=folded, device=torch.device("cpu"), dtype=torch.float32)


def expected(case: str, *, root: Path | None = None) -> dict[str, Tensor]:
    """The expected tensors of a case, and the inputs they were computed from."""
    return load_file(((root / case) if root else folder(case)) / "expected.safetensors")


def difference(logits: Tensor, wanted: Tensor) -> float:
    """Greatest difference in log-probability over the tokens that can be drawn."""
    mask_id = logits.shape[-1] - 1
    logits, wanted = logits[..., :mask_id], wanted[..., :mask_id]
    return (logits.log_softmax(-1) - wanted.log_softmax(-1)).abs().max().item()


def noisy_half(
    network: Network, noisy_BL: Tensor, clean_BL: Tensor, order_BL: Tensor, mask: Tensor
) -> Tensor:
    """Logits over the first half of `noisy ++ clean`, both in the same order."""
    ids, positions = torch.cat([noisy_BL, clean_BL], 1), torch.cat([order_BL, order_BL], 1)
    logits: Tensor = network(ids, positions, Dense(mask))
    return logits[:, : noisy_BL.shape[1]]


def copy(case: str) -> None:
    """Copy a case into the repository, with only the first row of what is expected."""
    source, target = ORIGINALS / case, COPIES / case
    target.mkdir(parents=True, exist_ok=True)
    for name in WHOLE:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    save_file(first_row(expected(case, root=ORIGINALS)), target / "expected.safetensors")


def first_row(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first of the rows; a tensor of one dimension has none and is kept."""
    return {
        name: tensor[:1].clone() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()
    }


if __name__ == "__main__":
    for each in COPIED:
        copy(each)
