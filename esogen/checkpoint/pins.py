"""Which commit of a hub repository is used, kept until the user asks for a newer one.

One small JSON file for each `owner/name@revision` in the user's data folder, so that no process
changes what another one wrote. Each is written whole or not at all. Sizes and digests of the files
are those that the hub gave for the commit.

    {"name": "owner/name@main", "commit": "0123...", "resolved": "2026-01-31T12:00:00+00:00",
     "endpoint": "https://...", "files": {"config.json": {"size": 503, "digest": "sha1:..."}}}
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from esogen.atomic import replacing
from esogen.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Remote:
    """One file of a commit: bytes, and `sha256:` (large files) or git's `sha1:` of its content."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Pin:
    """The commit that a revision was resolved to, when (ISO 8601), where, and what it holds.

    `name` is `owner/name@revision`.
    """

    name: str
    commit: str
    resolved: str
    endpoint: str
    files: Mapping[str, Remote]


def data_folder() -> Path:
    """Where what esogen keeps for a user is, by the custom of the system."""
    home = os.environ.get("XDG_DATA_HOME")
    if home:
        return Path(home) / "esogen"
    custom = {"darwin": "~/Library/Application Support", "win32": "~/AppData/Local"}
    return Path(custom.get(sys.platform, "~/.local/share")).expanduser() / "esogen"


def pins_folder() -> Path:
    """Where the pins are."""
    return data_folder() / "pins"


def read_pin(name: str) -> Pin | None:
    """The pin of `owner/name@revision`; None where there is none.

    Raises `CheckpointError` for a file that holds something else.
    """
    path = _path(name)
    try:
        pin = _pin(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} holds no pinned commit ({type(error).__name__}: {error}); delete it, and the"
            " next run with a network writes a new one"
        ) from error
    return pin


def keep_pin(pin: Pin) -> None:
    """Write a pin in place of the one of the same name. Raises `OSError` when it cannot."""
    path = _path(pin.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(asdict(pin), indent=2) + "\n", encoding="utf-8")


def drop_pins(repository: str) -> None:
    """Forget every revision of a repository. Raises `OSError` when one cannot be removed."""
    for path in pins_folder().glob(f"{quote(repository, safe='')}@*.json"):
        path.unlink(missing_ok=True)


def _path(name: str) -> Path:
    return pins_folder() / f"{quote(name, safe='@')}.json"


def _pin(values: Mapping[str, object]) -> Pin:
    files = values["files"]
    if not isinstance(files, dict):
        raise TypeError("files is no object")
    return Pin(
        name=_text(values["name"]),
        commit=_text(values["commit"]),
        resolved=_text(values["resolved"]),
        endpoint=_text(values["endpoint"]),
        files={name: _remote(file) for name, file in files.items()},
    )


def _remote(values: Mapping[str, object]) -> Remote:
    size = values["size"]
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"size is {size!r}")
    return Remote(size, _text(values["digest"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
