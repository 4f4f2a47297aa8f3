"""A hub on loopback, an empty cache, and models to put there."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from esogen.checkpoint.hub_cache import TOKENIZER
from esogen.checkpoint.known import GPT2_VOCABULARY, TOKENIZER_REPOSITORY
from esogen.checkpoint.resolve import FILES
from esogen.checkpoint.tokenizer import END_OF_TEXT
from esogen.model.config import ModelConfig
from tests.loopback_hub import LoopbackHub, serving

TINY = "somebody/tiny"
PUBLISHED = "sahoo-diffusion/Eso-LM-B-alpha-0_25"
"""The repository that `eso-0.25` is short for; on loopback a tiny network with its vocabulary."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where the client keeps its cache and esogen its pins, both empty at first."""

    cache: Path
    data: Path

    def environment(self, hub: LoopbackHub) -> dict[str, str]:
        """The environment of another process that uses them."""
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return kept | {
            "HF_HOME": str(self.cache.parent),
            "HF_ENDPOINT": hub.endpoint,
            "XDG_DATA_HOME": str(self.data),
            "HOME": str(self.data),
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
        }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty cache and data folder, which this process uses too."""
    from huggingface_hub import constants

    home = Home(tmp_path / "hf" / "hub", tmp_path / "data")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home.data))
    return home


@pytest.fixture
def hub(
    home: Home, monkeypatch: pytest.MonkeyPatch, tiny_files: Mapping[str, bytes]
) -> Iterator[LoopbackHub]:
    """A hub that has the tiny model; the client of this process is told where it is."""
    with serving() as hub:
        hub.add(TINY, tiny_files)
        _point_client(monkeypatch, hub.endpoint)
        yield hub


Offline = Callable[[], None]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Offline:
    """Called, it takes the network away as HF_HUB_OFFLINE does."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def _point_client(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT does, in a process where the client has read it already."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def tiny_files(tiny_folder: Path) -> Mapping[str, bytes]:
    """The tiny model, and files that a repository has besides."""
    files = {name: (tiny_folder / name).read_bytes() for name in FILES}
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "model.EsoLM"}}
    files["config.json"] = json.dumps(config).encode()
    return files | {"README.md": b"# tiny", "model.py": b"raise SystemExit('remote code ran')"}


@pytest.fixture(scope="session")
def gpt2_files() -> Mapping[str, Mapping[str, bytes]]:
    """A published checkpoint in small, without a tokenizer, and the repository that has one."""
    from tests.conftest import random_tensors

    config = ModelConfig("esolm-b", GPT2_VOCABULARY, 32, 4, 1, 2, 4)
    tensors = {f"backbone.{name}": t.half() for name, t in random_tensors(config, 3).items()}
    values = {
        "model_type": "EsoLM",
        "architectures": ["EsoLM"],
        "vocab_size": config.vocab_size,
        "model_length": 32,
        "hidden_size": 4,
        "n_blocks": 1,
        "n_heads": 2,
        "cond_dim": 4,
        "dropout": 0.1,
    }
    weights = save(tensors)
    return {
        PUBLISHED: {"config.json": json.dumps(values).encode(), "model.safetensors": weights},
        TOKENIZER_REPOSITORY: {
            TOKENIZER: _gpt2_tokenizer(),
            "config.json": b'{"model_type": "gpt2"}',
        },
    }


def _gpt2_tokenizer() -> bytes:
    """A byte-level tokenizer of as many tokens as GPT-2's, the end of text the last of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    filler = [f"filler{i}" for i in range(GPT2_VOCABULARY - 2 - len(alphabet))]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *filler, END_OF_TEXT])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner.to_str().encode()
