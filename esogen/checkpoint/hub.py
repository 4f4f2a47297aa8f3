"""Model files from the hub: found in the cache, else downloaded by the hub's own client.

The files lie in the cache that all users of huggingface-hub share. A revision is resolved to a
commit once and pinned (`pins.py`), so that a cached model starts without a network. What comes is
compared with the digest the hub gave for it; what does not match is thrown away, so that the next
run repairs it. Only the three files named in `wanted` are ever asked for: no code of a repository
reaches this machine, whatever its config says.
"""

import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.hub_cache import (
    COMMIT,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Reference,
    Snapshot,
    amount,
    cached,
    cached_tokenizer,
    held_file,
    intact,
    speaks_gpt2,
)
from esogen.checkpoint.hub_errors import Missing, hub_named
from esogen.checkpoint.known import GPT2_VOCABULARY, TOKENIZER_REPOSITORY
from esogen.checkpoint.pins import Pin, Remote, keep_pin, read_pin
from esogen.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_SHOWN = 5
_TIMEOUT = 10
"""Seconds without an answer before the hub counts as unreachable."""

_URL = re.compile(r"https?://\S+")
_INTERVAL = 1 / 12
_BAR = 24


class Watch(Protocol):
    """Who is told how a download goes."""

    def say(self, text: str) -> None:
        """Take a line that stays."""
        ...

    def status(self, text: str) -> None:
        """Take what is true now, in place of what was true before."""
        ...

    def clear(self) -> None:
        """Take the last status away."""
        ...


class Unwatched:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Pass over it."""

    def status(self, text: str) -> None:
        """Pass over it."""

    def clear(self) -> None:
        """There is nothing to take away."""


def fetch(
    reference: Reference, watch: Watch, *, update: bool = False, check: bool = False
) -> Snapshot:
    """All files of `reference`, downloaded where the cache lacks them.

    `update` resolves the revision anew. `check` compares what is cached with the hub's digests, and
    gets it again where it differs; no request is made where it does not.
    Raises `CheckpointError` saying what is missing, why it did not come and how to get it.
    """
    held = None if update else cached(reference)
    if held and not held.missing() and not (check and _damaged(held)):
        return held
    wanted = _Wanted(
        reference,
        held.commit if held else None,
        held.missing() if held and held.missing() else [CONFIG, WEIGHTS],
        f"esogen models pull {reference.typed}",
    )
    _download(wanted, watch, check=check or update)
    snapshot = cached(reference)
    if snapshot is None or snapshot.missing():
        raise CheckpointError(f"{reference.typed} vanished from the cache while it was downloaded")
    return snapshot


def fetch_tokenizer(watch: Watch) -> Path:
    """GPT-2's `tokenizer.json`, downloaded where the cache lacks it. Raises `CheckpointError`."""
    held = cached_tokenizer()
    if held:
        return held
    _carry_out([_gpt2_order(f"hf download {TOKENIZER_REPOSITORY} {TOKENIZER}", check=False)], watch)
    path = cached_tokenizer()
    if path is None:
        raise CheckpointError(f"{TOKENIZER_REPOSITORY} vanished from the cache while it came")
    return path


def _damaged(held: Snapshot) -> bool:
    """Whether a file is not what the hub's digest says; one that is not is taken away."""
    names = [CONFIG, WEIGHTS, TOKENIZER]
    own = read_pin(str(held.reference))
    gpt2 = read_pin(str(Reference(TOKENIZER_REPOSITORY)))
    foreign = held.tokenizer_from != held.reference.repository
    if own is None or (foreign and gpt2 is None):
        return True  # another tool filled the cache: only the hub knows the digests
    whole = [intact(held.reference.repository, own, n, check=True) for n in names if n in own.files]
    if foreign and gpt2:
        whole.append(intact(TOKENIZER_REPOSITORY, gpt2, TOKENIZER, check=True))
    return not all(whole)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A repository to be had: at a commit, if one is known, by this command."""

    reference: Reference
    commit: str | None
    files: Sequence[str]
    command: str

    def named(self, *files: str) -> AbstractContextManager[None]:
        """Say of whatever goes wrong that these files were wanted."""
        repository, revision = self.reference.repository, self.reference.revision
        return hub_named(Missing(repository, revision, files or self.files, self.command))


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to come of one commit: `files`, of those that `pin.files` lists."""

    wanted: _Wanted
    pin: Pin
    files: Sequence[str]

    @property
    def repository(self) -> str:
        return self.wanted.reference.repository

    @property
    def typed(self) -> str:
        return self.wanted.reference.typed

    @property
    def bytes(self) -> int:
        return sum(self.pin.files[name].size for name in self.files)


def _download(wanted: _Wanted, watch: Watch, *, check: bool) -> None:
    watch.status(f"looking up {wanted.reference.typed} ...")
    order = _order(wanted, (CONFIG, WEIGHTS, TOKENIZER), check=check)
    _check_holds_model(order)
    config = _fetch_config(order)
    orders = [replace(order, files=[name for name in order.files if name != CONFIG])]
    if TOKENIZER not in order.pin.files:
        _check_speaks_gpt2(wanted.reference, config)
        if check or not cached_tokenizer():
            orders.append(_gpt2_order(wanted.command, check=check))
    _carry_out(orders, watch)


def _gpt2_order(command: str, *, check: bool) -> _Order:
    reference = Reference(TOKENIZER_REPOSITORY)
    pin = read_pin(str(reference))
    wanted = _Wanted(reference, pin.commit if pin else None, [TOKENIZER], command)
    return _order(wanted, [TOKENIZER], check=check)


def _order(wanted: _Wanted, names: Sequence[str], *, check: bool) -> _Order:
    """Ask the hub what there is, and find what of it is not in the cache as the hub has it."""
    pin = _look_up(wanted)
    listed = [name for name in names if name in pin.files]
    repository = wanted.reference.repository
    absent = [name for name in listed if not intact(repository, pin, name, check=check)]
    return _Order(wanted, pin, absent)


def _look_up(wanted: _Wanted) -> Pin:
    from huggingface_hub import HfApi, constants

    reference = wanted.reference
    with wanted.named():
        info = _api(HfApi).model_info(
            reference.repository,
            revision=wanted.commit or reference.revision,
            files_metadata=True,
            timeout=_TIMEOUT,
        )
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise CheckpointError(
            f"{constants.ENDPOINT} gave no commit for {reference.typed}, found {info.sha!r};"
            " check HF_ENDPOINT"
        )
    files = {file.rfilename: _remote(file) for file in info.siblings or () if file.size is not None}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Pin(str(reference), info.sha, now, constants.ENDPOINT, files)


def _api(api: type[Any]) -> Any:
    from importlib.metadata import version

    return api(library_name="esogen", library_version=version("esogen"))


def _remote(file: "RepoSibling") -> Remote:
    if file.lfs:
        return Remote(file.lfs.size, f"sha256:{file.lfs.sha256}")
    return Remote(file.size or 0, f"sha1:{file.blob_id}")


def _check_holds_model(order: _Order) -> None:
    lacking = [name for name in (CONFIG, WEIGHTS) if name not in order.pin.files]
    if lacking:
        raise CheckpointError(
            f"the hub repository {order.typed} is no model that esogen can read: it"
            f" lacks {' and '.join(lacking)} and holds {_some(sorted(order.pin.files))}; wanted"
            f" {CONFIG} and {WEIGHTS} of an Eso-LM, MDLM, BD3-LM or left-to-right network"
        )


def _fetch_config(order: _Order) -> Path:
    """Before the large files: a network of another kind is refused for the price of its config."""
    if CONFIG in order.files:
        _get(order, CONFIG, Unwatched(), _Meter(0))
    path = held_file(order.repository, order.pin.commit, CONFIG, None)
    if path is None:
        raise CheckpointError(f"{CONFIG} of {order.typed} vanished from the cache")
    try:
        read_config(path)
    except CheckpointError as error:
        found = str(error).removeprefix(f"{path}: ").partition(";")[0]
        raise CheckpointError(
            f"the hub repository {order.typed} is no model that esogen can read;"
            f" of its {CONFIG}: {found}; wanted an Eso-LM, MDLM, BD3-LM or left-to-right network"
        ) from error
    return path


def _check_speaks_gpt2(reference: Reference, config: Path) -> None:
    if not speaks_gpt2(config):
        raise CheckpointError(
            f"the hub repository {reference.typed} carries no {TOKENIZER}, and its vocabulary is"
            f" not GPT-2's ({GPT2_VOCABULARY} with the mask token); download it into a folder and"
            f" put the {TOKENIZER} there that the network was trained with"
        )


def _carry_out(orders: Sequence[_Order], watch: Watch) -> None:
    """Say what will come, get it, compare it, and only then pin it."""
    _announce(orders, watch)
    meter = _Meter(sum(order.bytes for order in orders))
    try:
        for order in orders:
            for name in order.files:
                if held_file(order.repository, order.pin.commit, name, None) is None:
                    _get(order, name, watch, meter)
            keep_pin(order.pin)
    finally:
        watch.clear()


def _announce(orders: Sequence[_Order], watch: Watch) -> None:
    from huggingface_hub import constants

    coming = [order for order in orders if order.files]
    if not coming:
        return
    wanted = sum(order.bytes for order in coming)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    _check_room(cache, wanted)
    parts = [
        f"{order.typed} at {order.pin.commit[:12]}: "
        + ", ".join(f"{name} ({amount(order.pin.files[name].size)})" for name in order.files)
        for order in coming
    ]
    watch.say(f"downloading {amount(wanted)} ({wanted} bytes) into {cache}: {'; '.join(parts)}")


def _check_room(cache: Path, wanted: int) -> None:
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise CheckpointError(
            f"the disk of {cache} has {amount(free)} free and the download takes {amount(wanted)};"
            " free some space (esogen models remove, hf cache rm), or set HF_HOME to another disk"
        )


def _get(order: _Order, name: str, watch: Watch, meter: "_Meter") -> None:
    from huggingface_hub import hf_hub_download

    with order.wanted.named(name), _client_heard(watch):
        hf_hub_download(
            order.repository,
            name,
            revision=order.pin.commit,
            library_name="esogen",
            tqdm_class=meter.bar(name, watch),
        )
    if not intact(order.repository, order.pin, name, check=True):
        raise CheckpointError(
            f"{name} of {order.typed} came damaged: it is not what the hub's digest says; it was"
            f" thrown away, so run {order.wanted.command} again"
        )


@contextmanager
def _client_heard(watch: Watch) -> Iterator[None]:
    """What the client logs while it tries again goes to `watch`, not to a stream of its own."""
    logger = logging.getLogger("huggingface_hub")
    handlers, logger.handlers = logger.handlers, [_Heard(watch)]
    try:
        yield
    finally:
        logger.handlers = handlers


class _Heard(logging.Handler):
    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        message = _URL.sub("the hub", record.getMessage().strip())
        self._watch.say(" ".join(message.split()))


class _Meter:
    """Bytes that have come, of all files together."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self._due = total, 0, 0.0

    def bar(self, name: str, watch: Watch) -> type[Any]:
        """What the client takes for a progress bar and tells of its bytes."""
        meter = self

        class Bar:
            def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
                self.update(initial)

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                """Nothing is open."""

            def update(self, count: float | None = 1) -> None:
                meter.count(int(count or 0), name, watch)

            def __getattr__(self, _: str) -> Any:
                """Whatever else a bar can do is done by doing nothing."""
                if _.startswith("__"):
                    raise AttributeError(_)
                return lambda *_, **__: None

        return Bar

    def count(self, bytes_come: int, name: str, watch: Watch) -> None:
        self.done += bytes_come
        now = time.monotonic()
        if self.total and (now >= self._due or self.done >= self.total):
            self._due = now + _INTERVAL
            share = min(max(self.done / self.total, 0.0), 1.0)
            full = round(share * _BAR)
            watch.status(
                f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"
                f" {amount(self.done)} of {amount(self.total)} · {name}"
            )


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return (", ".join(names[:_SHOWN]) or "nothing") + (f" and {rest} more" if rest > 0 else "")
