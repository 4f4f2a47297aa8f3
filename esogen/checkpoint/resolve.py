"""From the name of a model to the files that hold it. Imports no torch.

In this order: a built-in name, a short name of a published model, a folder, a repository on the hub
as `owner/name` or `owner/name@revision`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from esogen.checkpoint.config_file import CardDefaults, read_config
from esogen.checkpoint.hub import Unwatched, Watch, fetch, fetch_tokenizer
from esogen.checkpoint.hub_cache import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Reference,
    Snapshot,
    cached,
    cached_tokenizer,
)
from esogen.checkpoint.known import (
    BUILT_IN,
    DEFAULT_MODEL,
    GPT2_VOCABULARY,
    PUBLISHED,
    TOKENIZER_REPOSITORY,
    published,
)
from esogen.errors import CheckpointError

FILES = (CONFIG, WEIGHTS, TOKENIZER)

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name stands for: a folder or a repository. `steps` tells how that was found."""

    name: str
    place: Path | Reference
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model, all there. `commit`: that of the hub they came from, None elsewhere.

    `tokenizer_from` says where the tokenizer is from if it is not the model's own; `defaults` are
    those of a published model, for what its config does not say.
    """

    name: str
    config: Path
    weights: Path
    tokenizer: Path
    commit: str | None = None
    tokenizer_from: str | None = None
    defaults: CardDefaults = field(default_factory=CardDefaults)


def resolve(name: str, watch: Watch | None = None) -> ModelFiles:
    """The files of the model called `name`; those of a hub repository are downloaded if need be.

    `watch` is told of a download. Raises `CheckpointError` where there is no such model, a file is
    missing, or the hub cannot be had.
    """
    watch = watch or Unwatched()
    place = explain(name).place
    if isinstance(place, Path):
        return _in_folder(name, place, lambda: fetch_tokenizer(watch))
    return files_of(name, fetch(place, watch))


def resolve_here(name: str) -> ModelFiles:
    """`resolve` without a download, for a name that a file gave and not the user.

    Raises `CheckpointError` naming the command that downloads, if that is what it takes.
    """
    place = explain(name).place
    if isinstance(place, Path):
        return _in_folder(name, place, _tokenizer_here)
    snapshot = cached(place)
    if snapshot is None or snapshot.missing():
        raise CheckpointError(
            f"the model {name!r} is not in the cache; esogen models pull {place.typed} gets it"
        )
    return files_of(name, snapshot)


def explain(name: str) -> Meaning:
    """What `name` stands for, without looking into it or asking anybody.

    Raises `CheckpointError` where it cannot be any of those.
    """
    steps: list[str] = []
    for step, place in _tries(name):
        steps.append(step)
        if place:
            return Meaning(name, place, tuple(steps))
    raise CheckpointError(_nothing_there(name))


def files_of(name: str, snapshot: Snapshot) -> ModelFiles:
    """The files of a hub repository, all of which are in the cache."""
    config, weights, tokenizer = snapshot.config, snapshot.weights, snapshot.tokenizer
    if config is None or weights is None or tokenizer is None:
        raise ValueError(f"{name} lacks {snapshot.missing()}")
    entry = published(snapshot.reference.repository)
    own = snapshot.tokenizer_from == snapshot.reference.repository
    return ModelFiles(
        name,
        config,
        weights,
        tokenizer,
        snapshot.commit,
        None if own else snapshot.tokenizer_from,
        CardDefaults(alpha_0=entry.alpha_0 if entry else None),
    )


def _tries(name: str) -> Iterator[tuple[str, Path | Reference | None]]:
    built_in = BUILT_IN.get(name)
    yield ("a built-in name" if built_in else "no built-in name"), built_in
    alias = PUBLISHED.get(name)
    yield (
        f"short for {alias.repository}" if alias else "no short name of a published model",
        Reference(alias.repository) if alias else None,
    )
    folder = _folder(name)
    yield ("a folder" if folder else "no folder here"), folder
    reference = Reference.parse(name)
    yield (
        f"the hub repository {reference.repository} at {reference.revision}"
        if reference
        else "no name of a hub repository",
        reference,
    )


def _in_folder(name: str, folder: Path, gpt2: Callable[[], Path]) -> ModelFiles:
    missing = [file for file in FILES if not (folder / file).is_file()]
    config, weights, tokenizer = (folder / file for file in FILES)
    if missing == [TOKENIZER] and read_config(config).model.vocab_size == GPT2_VOCABULARY:
        return ModelFiles(name, config, weights, gpt2(), None, TOKENIZER_REPOSITORY)
    if missing:
        raise CheckpointError(
            f"the model folder {str(folder)!r} lacks {' and '.join(missing)}:"
            f" it must hold {', '.join(FILES)}, and holds {_contents(folder)}"
        )
    return ModelFiles(name, config, weights, tokenizer)


def _tokenizer_here() -> Path:
    path = cached_tokenizer()
    if path is None:
        raise CheckpointError(
            f"the tokenizer of GPT-2 is not in the cache; hf download {TOKENIZER_REPOSITORY}"
            f" {TOKENIZER} gets it"
        )
    return path


def _folder(name: str) -> Path | None:
    """The folder that `name` is the path of, if it is one at all."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # no path, no such home, not ours to look into
        return None


def _nothing_there(name: str) -> str:
    is_file = os.path.isfile(name)  # noqa: PTH113 - never raises
    found = "a file" if is_file else "neither a built-in model nor a folder here"
    if is_file and name.endswith(".ckpt"):
        found = "a .ckpt file (esogen models import makes a model folder of it)"
    near = get_close_matches(name, [*BUILT_IN, *PUBLISHED, *_siblings(name)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"the model {name!r} is {found}; wanted a built-in name ({', '.join(BUILT_IN)}),"
        f" a short name ({', '.join(PUBLISHED)}), a folder that holds {', '.join(FILES)},"
        f" or a hub repository as owner/name{hint}"
    )


def _siblings(name: str) -> list[str]:
    """The model folders beside the place that was named, as a person would type them."""
    try:
        return [str(path.parent) for path in Path(name).parent.glob(f"*/{CONFIG}")]
    except (OSError, ValueError):
        return []


def _contents(folder: Path) -> str:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names only
    except OSError as error:
        return f"nothing that can be read ({error.strerror})"
    rest = len(names) - _SHOWN
    return (", ".join(names[:_SHOWN]) or "nothing") + (f" and {rest} more" if rest > 0 else "")


__all__ = [
    "BUILT_IN",
    "CONFIG",
    "DEFAULT_MODEL",
    "FILES",
    "TOKENIZER",
    "WEIGHTS",
    "Meaning",
    "ModelFiles",
    "explain",
    "files_of",
    "resolve",
    "resolve_here",
]
