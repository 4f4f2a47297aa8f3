"""From the name of a model to the folder that holds it. Imports no torch."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from esogen.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER)

DEFAULT_MODEL = "stories"
BUILT_IN: Mapping[str, Path] = {
    DEFAULT_MODEL: Path(__file__).parents[1] / "models" / DEFAULT_MODEL,
}

_SHOWN = 5


def resolve(name: str) -> Path:
    """The folder of the model called `name`: a built-in name, else the path of a folder.

    Raises `CheckpointError` where there is none or a file is missing in it.
    """
    folder = BUILT_IN.get(name) or _folder(name)
    if folder is None:
        raise CheckpointError(_nothing_there(name))
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"the model folder {str(folder)!r} lacks {' and '.join(missing)}:"
            f" it must hold {', '.join(FILES)}, and holds {_contents(folder)}"
        )
    return folder


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
    near = get_close_matches(name, [*BUILT_IN, *_siblings(name)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"the model {name!r} is {found}; wanted a built-in name ({', '.join(BUILT_IN)})"
        f" or a folder that holds {', '.join(FILES)}{hint}"
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
