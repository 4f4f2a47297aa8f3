"""What the cache of huggingface-hub holds of a repository; asks nobody.

The cache is shared by all tools that use the client. Commits come from esogen's pins, else from
what the cache itself noted when another tool filled it.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha1
from pathlib import Path

from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.known import GPT2_VOCABULARY, TOKENIZER_REPOSITORY
from esogen.checkpoint.pins import Pin, Remote, read_pin
from esogen.errors import CheckpointError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
COMMIT = re.compile(r"[0-9a-f]{40}")

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w][\w./-]*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository on the hub at a branch, tag or commit."""

    repository: str
    revision: str = "main"

    @classmethod
    def parse(cls, name: str) -> "Reference | None":
        """`owner/name` or `owner/name@revision`; None for what cannot be either."""
        match = _NAME.fullmatch(name)
        if not match or ".." in name or "--" in match[1]:
            return None
        return cls(match[1], match[2] or "main")

    def __str__(self) -> str:
        """As it is pinned: `owner/name@revision`."""
        return f"{self.repository}@{self.revision}"

    @property
    def typed(self) -> str:
        """As a person types it."""
        return self.repository if self.revision == "main" else str(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one commit that are in the cache; None for those that are not.

    `tokenizer_from` is the repository of the tokenizer.
    """

    reference: Reference
    commit: str
    config: Path | None
    weights: Path | None
    tokenizer: Path | None
    tokenizer_from: str

    def missing(self) -> list[str]:
        """The names of the files that are not there."""
        held = {CONFIG: self.config, WEIGHTS: self.weights, TOKENIZER: self.tokenizer}
        return [name for name, path in held.items() if path is None]


def cached(reference: Reference) -> Snapshot | None:
    """What the cache holds of `reference`, without a request; None if not even its commit is known.

    A file whose size is not the one the hub gave counts as not there.
    """
    pin = read_pin(str(reference))
    commit = pin.commit if pin else _cached_commit(reference)
    if commit is None:
        return None
    sizes = pin.files if pin else {}
    config, weights, own = (
        held_file(reference.repository, commit, name, sizes.get(name))
        for name in (CONFIG, WEIGHTS, TOKENIZER)
    )
    if own or (pin and TOKENIZER in pin.files) or not speaks_gpt2(config):
        return Snapshot(reference, commit, config, weights, own, reference.repository)
    return Snapshot(reference, commit, config, weights, cached_tokenizer(), TOKENIZER_REPOSITORY)


def cached_tokenizer() -> Path | None:
    """GPT-2's `tokenizer.json`, if it is in the cache."""
    reference = Reference(TOKENIZER_REPOSITORY)
    pin = read_pin(str(reference))
    commit = pin.commit if pin else _cached_commit(reference, TOKENIZER)
    size = pin.files.get(TOKENIZER) if pin else None
    return held_file(TOKENIZER_REPOSITORY, commit, TOKENIZER, size) if commit else None


def _cached_commit(reference: Reference, name: str = CONFIG) -> str | None:
    """The commit that the cache itself has for a revision, as another tool may have left it."""
    from huggingface_hub import try_to_load_from_cache

    if COMMIT.fullmatch(reference.revision):
        return reference.revision
    found = try_to_load_from_cache(reference.repository, name, revision=reference.revision)
    return Path(found).parent.name if isinstance(found, str) else None


def held_file(repository: str, commit: str, name: str, remote: Remote | None) -> Path | None:
    """A file of a commit, if the cache has it and, where `remote` is known, in that size."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=commit)
    if not isinstance(found, str):
        return None
    with suppress(OSError):
        if remote is None or Path(found).stat().st_size == remote.size:
            return Path(found)
    return None


def intact(repository: str, pin: Pin, name: str, *, check: bool) -> bool:
    """Whether the cache holds the file as the hub has it; what it holds otherwise is removed."""
    path = held_file(repository, pin.commit, name, None)
    if path is None:
        return False
    remote = pin.files[name]
    if path.stat().st_size == remote.size and (not check or _digest(path, remote) == remote.digest):
        return True
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    return False


def _digest(path: Path, remote: Remote) -> str:
    with path.open("rb") as file:
        if remote.digest.startswith("sha256:"):
            return f"sha256:{file_digest(file, 'sha256').hexdigest()}"
        header = b"blob %d\0" % path.stat().st_size
        return f"sha1:{sha1(header + file.read(), usedforsecurity=False).hexdigest()}"


def speaks_gpt2(config: Path | None) -> bool:
    """Whether a network has GPT-2's vocabulary; one whose config is not there yet may have it."""
    if config is None:
        return True
    with suppress(CheckpointError):
        return read_config(config).model.vocab_size == GPT2_VOCABULARY
    return False


def amount(count: int) -> str:
    """Bytes as people read them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
