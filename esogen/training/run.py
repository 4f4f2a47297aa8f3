"""A whole training run: what it begins with, and the folder it is saved to and resumed from."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import tokenizers
import torch

from esogen.atomic import why_no_folder
from esogen.checkpoint.config_file import Card, CardDefaults, read_config
from esogen.checkpoint.folder import begun, save_checkpoint
from esogen.checkpoint.resolve import WEIGHTS, resolve
from esogen.checkpoint.tokenizer import Tokenizer, train_tokenizer
from esogen.checkpoint.weights import build, read_tensors
from esogen.errors import EsogenError, UsageError
from esogen.model.config import ModelConfig
from esogen.model.network import Network, initialise
from esogen.training.data import Rows
from esogen.training.evaluate import Evaluation, evaluate
from esogen.training.growth import deepened
from esogen.training.loop import Precision, Trainer
from esogen.training.settings import Shape
from esogen.training.state import STATE, Configuration, configuration, restore, write_state


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a run begins with: a network on the device it trains on, its tokenizer, its card."""

    network: Network
    tokenizer: Tokenizer
    defaults: CardDefaults = field(default_factory=CardDefaults)


def from_nothing(
    shape: Shape, tokenizer: Tokenizer, seed: int, device: torch.device, *, bos: bool
) -> Start:
    """Fresh weights, the same for the same seed on every device.

    With `bos`, every text begins from end-of-text; a left-to-right one always does.
    Raises `ValueError` for sizes that make no network.
    """
    bos_id = tokenizer.end_of_text if bos else None
    config = begun(replace(shape.config(tokenizer.size + 1), bos_id=bos_id), tokenizer)
    network = Network(config)
    initialise(network, torch.Generator().manual_seed(seed))
    return Start(network.to(device), tokenizer)


def from_model(
    name: str, blocks: int | None, dropout: float | None, bos: bool | None, device: torch.device
) -> Start:
    """The weights of a model folder, to be trained further in float32.

    `dropout` and `bos` replace the model's own; with more `blocks` than it has, it is `deepened`.
    Raises `CheckpointError` where it cannot be read, `ValueError` for a dropout out of range or
    fewer blocks.
    """
    files = resolve(name)
    card = read_config(files.config)
    config = card.model if dropout is None else replace(card.model, dropout=dropout)
    tokenizer = Tokenizer.read(files.tokenizer, config.vocab_size)
    if bos is not None:
        config = replace(config, bos_id=tokenizer.end_of_text if bos else None)
    config = begun(config, tokenizer)
    tensors = read_tensors(files.weights, config)
    if blocks is not None:
        config, tensors = deepened(config, tensors, blocks)
    network = build(config, tensors, folded=False, device=device, dtype=torch.float32)
    return Start(network.requires_grad_(requires_grad=True), tokenizer, card.defaults)


def new_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE for these texts; `vocab_size` counts the mask token."""
    return train_tokenizer(iter(documents), vocab_size - 1)


def given_tokenizer(path: Path, vocab_size: int | None) -> Tokenizer:
    """The tokenizer in a file, with as many tokens as it has where `vocab_size` is not given.

    Raises `CheckpointError` when it cannot be read or `vocab_size` is another.
    """
    return Tokenizer.read(path, _vocabulary(path) if vocab_size is None else vocab_size)


def _vocabulary(path: Path) -> int:
    """Vocabulary for a tokenizer file; a file that is none gets any, and is refused when read."""
    with suppress(Exception):  # the library raises bare `Exception`
        return max(tokenizers.Tokenizer.from_file(str(path)).get_vocab().values()) + 2
    return 2


def claim(folder: Path, *, resume: bool) -> None:
    """Make sure that `folder` can be written and nothing in it would be lost.

    Raises `UsageError` otherwise; makes no folder yet.
    """
    if found := why_no_folder(folder):
        raise UsageError(f"--output is {folder}, but {found}; choose another folder")
    if resume and not (folder / STATE).is_file():
        raise UsageError(
            f"{folder} holds no {STATE}, so there is nothing to resume; leave out --resume"
        )
    if resume:
        return
    if (folder / STATE).exists():
        raise UsageError(
            f"{folder} holds the state of a run; add --resume to go on with it,"
            " or give --output another folder"
        )
    if (folder / WEIGHTS).exists():
        raise UsageError(
            f"{folder} holds a model, which would be overwritten; give --output another folder"
        )


@dataclass(slots=True, eq=False)
class Run:
    """A trainer, and the folder that holds what it has reached so far.

    `notes` go into the model's card. `valid` are the rows that `validate` measures on.
    """

    trainer: Trainer
    folder: Path
    tokenizer: Tokenizer
    defaults: CardDefaults = field(default_factory=CardDefaults)
    notes: dict[str, object] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    valid: Rows | None = None
    _recorded: Configuration = field(init=False)

    def __post_init__(self) -> None:
        trainer = self.trainer
        self._recorded = configuration(
            trainer.settings, self.config, trainer.rows, self.tokenizer.to_json()
        )

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""
        return self.trainer.network.config

    def resume(self) -> None:
        """Continue from the folder's state; raises what `state.restore` raises."""
        restore(self.trainer, self.folder / STATE, self._recorded)

    def save(self) -> None:
        """Write the state, and a model that can be sampled from; each file whole or not at all.

        The state is first: killed in between, the run resumes from it and writes the rest. Raises
        `EsogenError` when they cannot be written.
        """
        card = Card(self.config, self.defaults, {"step": self.trainer.step, **self.notes})
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state(self.folder / STATE, self.trainer, self._recorded)
            save_checkpoint(self.folder, card, self.trainer.weights(), self.tokenizer, self.dtype)

    def validate(self, precision: Precision = nullcontext, batch: int = 32) -> list[Evaluation]:
        """The bound of the averaged weights on `valid`, for every `alpha_0` that is trained for."""
        if self.valid is None:
            return []
        device = self.trainer.network.vocab_embed.embedding.device
        network = build(
            self.config, self.trainer.weights(), folded=True, device=device, dtype=torch.float32
        )
        found = [
            evaluate(network, self.valid, alpha_0, batch=batch, precision=precision)
            for alpha_0 in self.trainer.settings.alphas
        ]
        self.notes["valid"] = {
            "step": self.trainer.step,
            "bits_per_byte": {f"{each.alpha_0:g}": _rounded(each) for each in found},
        }
        return found


def _rounded(evaluation: Evaluation) -> dict[str, float]:
    figure = evaluation.bits_per_byte
    return {name: round(value, 4) for name, value in asdict(figure).items() if math.isfinite(value)}


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EsogenError(
            f"cannot write into {folder}: {error.strerror or error}; make room, or choose another"
            " --output"
        ) from error
