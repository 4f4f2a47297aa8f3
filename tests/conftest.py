"""A tiny random Eso-LM (B), written and opened as every real checkpoint is."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from esogen.checkpoint.config_file import Card, CardDefaults
from esogen.checkpoint.folder import Checkpoint, open_checkpoint, save_checkpoint
from esogen.checkpoint.tokenizer import Tokenizer, train_tokenizer
from esogen.model.config import ModelConfig
from esogen.model.network import Network, initialise
from tests.hub_fixtures import gpt2_files, home, hub, offline, tiny_files

__all__ = ["gpt2_files", "home", "hub", "offline", "random_tensors", "tiny_files"]

# The hub's client reads them when it is first imported: no test finds what the user has, nor
# reaches the hub.
_NOWHERE = tempfile.TemporaryDirectory(prefix="esogen-tests-")
os.environ |= {
    "HF_HOME": f"{_NOWHERE.name}/hf",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "XDG_DATA_HOME": f"{_NOWHERE.name}/data",
    "NO_PROXY": "*",
}
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)

# Where it counts, the same examples every time; by hand, new ones, to find what nobody thought of.
settings.register_profile("steady", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("steady")

# Nor does one find how the user, a launcher or CI wants what is printed, here or in what it starts.
for _name in tuple(os.environ):
    if _name.startswith("ESOGEN_"):
        del os.environ[_name]
for _name in ("CI", "NO_COLOR", "FORCE_COLOR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(_name, None)
os.environ["TERM"] = "xterm"

# Without a GPU, Triton's kernels are interpreted; it must be told before the first is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# What a shell starts in the background ignores these keys, and so would everything started here.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

STORIES = [
    "Once upon a time there was a little cat. The cat had a red hat and a big, round ball.",
    "Tom said, “I am hungry!” His mother gave him an apple and a glass of milk.",
    "One day the sun was very hot, and the birds sang in the old tree near the river.",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE of 299 tokens, so that a vocabulary with the mask token has 300."""
    return train_tokenizer(iter(STORIES), 299)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        "esolm-b",
        vocab_size=tiny_tokenizer.size + 1,
        model_length=64,
        hidden_size=32,
        n_blocks=2,
        n_heads=2,
        cond_dim=16,
    )


@pytest.fixture(scope="session")
def tiny_tensors(tiny_config: ModelConfig) -> dict[str, Tensor]:
    """Random weights, float32 and unfolded. Read them only: the whole session shares them."""
    return random_tensors(tiny_config, seed=0)


@pytest.fixture(scope="session")
def tiny_folder(
    tiny_config: ModelConfig,
    tiny_tensors: dict[str, Tensor],
    tiny_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model folder in float32. Read it only: copy it to change a file."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    card = Card(tiny_config, CardDefaults(length=48, steps=12), {"seed": 0})
    save_checkpoint(folder, card, tiny_tensors, tiny_tokenizer, torch.float32)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_folder: Path) -> Checkpoint:
    """The tiny model, ready to sample from in float32 on the CPU."""
    return open_checkpoint(str(tiny_folder), device=torch.device("cpu"), dtype=torch.float32)


def random_tensors(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Fresh weights without zeros: blocks do something, and tokens are not equally likely."""
    generator = torch.Generator().manual_seed(seed)
    network = Network(config)
    initialise(network, generator)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3, generator=generator)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}
