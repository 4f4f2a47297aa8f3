"""A checkpoint folder: opened as a network with its tokenizer, or written."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import file_digest
from pathlib import Path

import torch

from esogen.atomic import replacing
from esogen.checkpoint.config_file import Card, CardDefaults, read_config, write_config
from esogen.checkpoint.placement import DTYPES
from esogen.checkpoint.resolve import CONFIG, TOKENIZER, WEIGHTS, ModelFiles, resolve
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import build, read_tensors, write_weights
from esogen.errors import CheckpointError
from esogen.model.config import ModelConfig
from esogen.model.fold import Tensors
from esogen.model.network import Network

Stamp = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network that is ready to sample from, with its tokenizer and where both came from.

    `name` is what the user asked for, `files` where it was found, `stamp` tells whether its
    weights file is still the one that was read, `dtype` is the precision of the weights as
    `choose_dtype` calls it.
    """

    network: Network
    tokenizer: Tokenizer
    config: ModelConfig
    defaults: CardDefaults
    name: str
    files: ModelFiles
    stamp: Stamp
    dtype: str

    @cached_property
    def revision(self) -> str:
        """The first 12 digits of the weights file's SHA-256, as `sha256sum` prints them.

        Computed at the first use, because hashing a large file takes a second or two; "unknown"
        if by then another file stands in its place.
        """
        try:
            with self.files.weights.open("rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
            return digest[:12] if _stamp(self.files.weights) == self.stamp else "unknown"
        except OSError:
            return "unknown"


def open_checkpoint(name: str, *, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """Find the model called `name` and make it ready to sample from, folded, on `device`.

    One from the hub is downloaded first if the cache lacks it.

    Raises `CheckpointError` where there is no such model or one of its files cannot be used.
    """
    files = resolve(name)
    stamp = _stamp(files.weights)
    card = read_config(files.config)
    tokenizer = Tokenizer.read(files.tokenizer, card.model.vocab_size)
    config = begun(card.model, tokenizer)
    tensors = read_tensors(files.weights, config)
    try:
        network = build(config, tensors, folded=True, device=device, dtype=dtype)
    except OverflowError as error:
        raise CheckpointError(f"{files.weights}: {error}; use --dtype fp32") from error
    defaults = card.defaults.filled(files.defaults)
    word = next(word for word, meant in DTYPES.items() if meant == dtype)
    return Checkpoint(network, tokenizer, config, defaults, name, files, stamp, word)


def begun(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """`config`, with the token that a left-to-right text begins from where it names none."""
    if config.family == "ar" and config.bos_id is None:
        return replace(config, bos_id=tokenizer.end_of_text)
    return config


def save_checkpoint(
    folder: Path, card: Card, tensors: Tensors, tokenizer: Tokenizer | None, dtype: torch.dtype
) -> None:
    """Write a model folder, each file whole or not at all, last the config that tells of the rest.

    `tensors` are those of the unfolded network. Without a `tokenizer` the folder is one of the
    published layout, which carries none. Raises `OSError` when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        with replacing(folder / TOKENIZER) as scratch:
            scratch.write_text(tokenizer.to_json(), encoding="utf-8")
    write_weights(folder / WEIGHTS, tensors, dtype)
    write_config(folder / CONFIG, card, str(dtype).removeprefix("torch."))


def _stamp(weights: Path) -> Stamp:
    """What changes when the weights file is replaced or written anew."""
    status = weights.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
