"""From one form of a checkpoint to another: a `.ckpt` or a model into a folder."""

from pathlib import Path

import torch

from esogen.atomic import why_no_folder
from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.folder import save_checkpoint
from esogen.checkpoint.hub import Watch
from esogen.checkpoint.known import GPT2_VOCABULARY
from esogen.checkpoint.lightning import read_lightning
from esogen.checkpoint.resolve import FILES, resolve
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import INV_FREQ, read_tensors
from esogen.errors import CheckpointError
from esogen.model.config import ModelConfig
from esogen.model.network import rotary_frequencies


def import_lightning(source: Path, folder: Path, *, raw: bool, tokenizer: Path | None) -> str:
    """Make a model folder of the authors' `.ckpt`, in the precision it is in.

    `raw` takes the weights of the optimiser, not their average; `tokenizer` is a `tokenizer.json`,
    for which the file's own stands in. Returns where the tokenizer of the folder comes from.
    Raises `CheckpointError` for a file that cannot be used, `OSError` when nothing can be written.
    """
    claim(folder)
    found = read_lightning(source, raw=raw)
    size = found.card.model.vocab_size
    chosen = Tokenizer.read(tokenizer, size) if tokenizer else found.tokenizer
    tensors = _complete(found.tensors, found.card.model)
    dtype = tensors["vocab_embed.embedding"].dtype
    save_checkpoint(folder, found.card, tensors, chosen, dtype)
    if chosen:
        return str(tokenizer) if tokenizer else "the file"
    if size == GPT2_VOCABULARY:
        return "GPT-2, from the hub when it is first needed"
    return f"nowhere: put the tokenizer.json of {size - 1} tokens into {folder}"


def export(name: str, folder: Path, dtype: torch.dtype | None, watch: Watch) -> None:
    """Write the model called `name` as published checkpoints are laid out, and nothing else.

    In `dtype`, or in the precision it has. The authors' hub code loads such a folder.
    Raises `CheckpointError` where the model cannot be read, `OSError` when nothing can be written.
    """
    claim(folder)
    files = resolve(name, watch)
    card = read_config(files.config)
    tokenizer = Tokenizer.read(files.tokenizer, card.model.vocab_size)
    tensors = _complete(read_tensors(files.weights, card.model), card.model)
    used = dtype or tensors["vocab_embed.embedding"].dtype
    save_checkpoint(folder, card, tensors, tokenizer, used)


def claim(folder: Path) -> None:
    """Raise `CheckpointError` if no folder can be there, or a model would be overwritten."""
    if found := why_no_folder(folder):
        raise CheckpointError(f"a folder {folder} cannot be made: {found}; name another folder")
    held = [file for file in FILES if (folder / file).exists()]
    if held:
        raise CheckpointError(
            f"{folder} holds {' and '.join(held)} already, which would be overwritten;"
            " name another folder"
        )


def _complete(tensors: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """With the rotary buffer, which the authors' code wants and esogen computes."""
    return {**tensors, INV_FREQ: tensors.get(INV_FREQ, rotary_frequencies(config.head_size))}
