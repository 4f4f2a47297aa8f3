"""Which models are on this machine, and taking those from the hub away again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esogen.checkpoint.config_file import MODEL_TYPES
from esogen.checkpoint.hub_cache import CONFIG, WEIGHTS
from esogen.checkpoint.pins import drop_pins

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A hub repository in the cache that holds a model of this family.

    `size` in bytes on the disk, all commits together; `used` in seconds since 1970, as the system
    noted the last reading of one of its files.
    """

    repository: str
    size: int
    used: float
    snapshot: Path


def cached_models() -> Iterator[CachedModel]:
    """What the cache holds of this family, by name; other repositories are passed over."""
    for repo in sorted(_repositories(), key=lambda repo: repo.repo_id):
        snapshots = sorted(repo.revisions, key=lambda revision: revision.last_modified)
        holding = [each.snapshot_path for each in snapshots if _holds_model(each.snapshot_path)]
        if holding:
            yield CachedModel(repo.repo_id, repo.size_on_disk, repo.last_accessed, holding[-1])


def remove_cached(repository: str) -> int:
    """Take every commit of a repository out of the cache, and its pins; returns the bytes freed.

    Raises `OSError` when a file cannot be removed.
    """
    from huggingface_hub import constants, scan_cache_dir

    commits = [
        revision.commit_hash
        for repo in _repositories()
        if repo.repo_id == repository
        for revision in repo.revisions
    ]
    drop_pins(repository)
    if not commits:
        return 0
    plan = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*commits)
    plan.execute()
    return plan.expected_freed_size


def _repositories() -> "Iterator[CachedRepoInfo]":
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError):  # nothing was ever downloaded here
        return
    yield from (repo for repo in repositories if repo.repo_type == "model")


def _holds_model(snapshot: Path) -> bool:
    """Whether a commit has the config of a network of this family, and its weights."""
    try:
        config = json.loads((snapshot / CONFIG).read_bytes())
        return (snapshot / WEIGHTS).exists() and config.get("model_type") in MODEL_TYPES
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False
