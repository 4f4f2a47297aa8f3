"""What this machine can do, what is missing, and the command that mends it.

Every check stands alone: one that fails is a finding like the others. Nothing is asked of the hub
unless it is asked for.
"""

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from esogen.atomic import why_no_folder
from esogen.checkpoint.hub_cache import WEIGHTS, amount
from esogen.checkpoint.inventory import cached_models
from esogen.checkpoint.known import (
    BUILT_IN,
    DEFAULT_MODEL,
    MODEL_VARIABLE,
    TOKENIZER_REPOSITORY,
)
from esogen.checkpoint.pins import pins_folder
from esogen.checkpoint.resolve import resolve_here
from esogen.visible import counted

if TYPE_CHECKING:
    import torch

Verdict = Literal["ok", "note", "problem"]
_ROOM = 2 * 10**9
"""Bytes that a published checkpoint takes on the disk, and some to spare."""

_SMOKE = 8
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and the command that mends it if need be.

    A `problem` that is `vital` means that esogen cannot write text here.
    """

    name: str
    verdict: Verdict
    found: str
    mend: str | None = None
    vital: bool = False


def examine(*, online: bool = False) -> Iterator[Finding]:
    """Look at everything, a finding at a time; with `online`, at the hub too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _torch,
        _devices,
        _precision,
        _attention,
        _cache,
        _checkpoints,
        *([_hub] if online else []),
        _smoke_run,
    ]
    for check in checks:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check()
        except Exception as error:  # a check that breaks is a finding too
            yield Finding(name, "problem", f"{type(error).__name__}: {error}", vital=check in VITAL)


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding("esogen", "ok", version("esogen"))


def _torch() -> Iterator[Finding]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        again = f"{sys.executable} -m pip install --force-reinstall torch"
        yield Finding("torch", "problem", f"cannot be imported: {error}", again, vital=True)
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("torch", "ok", f"{torch.__version__} ({built})")


def _devices() -> Iterator[Finding]:
    import torch

    from esogen.checkpoint.placement import gpus

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    used = f"{counted(threads, 'thread')} used by torch"
    yield Finding("cpu", "ok", f"{counted(cores, 'core')}, {used}")
    driver = _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else None
    if driver:
        yield Finding("driver", "ok", " ".join(driver.split()))
    count, why_not = gpus()
    for index in range(count):
        gpu = torch.cuda.get_device_properties(index)
        found = f"{gpu.name}, {amount(gpu.total_memory)}, compute {gpu.major}.{gpu.minor}"
        yield Finding(f"cuda:{index}", "ok", found)
    if not count:
        yield _no_gpu(driver, torch.version.cuda, why_not)


def _no_gpu(driver: str | None, cuda: str | None, why_not: str | None) -> Finding:
    if driver and not cuda:
        mend = f"{sys.executable} -m pip install --force-reinstall torch (a build with CUDA)"
        return Finding("gpu", "note", "there is one, but this torch is built for CPUs only", mend)
    if driver:
        reason = f": {why_not}" if why_not else ""
        return Finding(
            "gpu", "note", f"there is one, but torch cannot use it{reason}", "nvidia-smi"
        )
    return Finding("gpu", "note", "none found; the CPU is used")


def _precision() -> Iterator[Finding]:
    from esogen.checkpoint.placement import DTYPES, choose_device, choose_dtype

    device = choose_device("auto")
    chosen = choose_dtype("auto", device)
    words = [word for word, dtype in DTYPES.items() if _computes(device, dtype)]
    auto = next(word for word, dtype in DTYPES.items() if dtype == chosen)
    verdict: Verdict = "ok" if auto in words else "problem"
    mend = None if auto in words else f"esogen sample --dtype {words[0] if words else 'fp32'}"
    yield Finding(
        "dtypes", verdict, f"{', '.join(words)} compute on {device.type}; auto is {auto}", mend
    )


def _computes(device: "torch.device", dtype: "torch.dtype") -> bool:
    import torch

    try:
        square = torch.ones(2, 2, device=device, dtype=dtype)
        return bool((square @ square == 2).all())
    except RuntimeError:
        return False


def _attention() -> Iterator[Finding]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from esogen.checkpoint.placement import choose_device, choose_dtype

    device = choose_device("auto")
    q = torch.ones(1, 1, 2, 8, device=device, dtype=choose_dtype("auto", device))
    scaled_dot_product_attention(q, q, q)
    yield Finding("attention sdpa", "ok", f"runs on {device.type}")
    yield _xformers(device.type)
    yield from _triton(device)


def _triton(device: "torch.device") -> Iterator[Finding]:
    """Kernels that are compiled here: whether they do what torch's own do."""
    from esogen.checkpoint.placement import choose_attention, choose_dtype
    from esogen.generate.draw import choose_draw

    if device.type != "cuda":
        yield Finding("triton", "note", "its kernels are for GPUs; torch's own serve")
        return
    attends = choose_attention("auto", device, choose_dtype("auto", device))
    for name, note in (("attention triton", attends.note), ("drawing", choose_draw(device).note)):
        found = note or f"Triton {version('triton')} runs on {device}, and agrees with torch"
        yield Finding(name, "note" if note else "ok", found)


def _xformers(device: str) -> Finding:
    """Imported by name: the kernels themselves are used in `model/attention.py` only."""
    wanted = device == "cuda"
    try:
        importlib.import_module("xformers.ops")
    except (ImportError, OSError, RuntimeError) as error:
        mend = f"{sys.executable} -m pip install xformers" if wanted else None
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"fails: {error}"
        return Finding("attention xformers", "note", f"{reason}; sdpa serves", mend)
    return Finding("attention xformers", "ok", version("xformers"))


def _cache() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{cache}, {amount(free)} free"
    if why := why_no_folder(cache):
        yield Finding("cache", "problem", f"{found}; {why}", "export HF_HOME=FOLDER")
    elif free < _ROOM:
        yield Finding("cache", "note", f"{found}; a download takes up to 1 GB", "hf cache rm")
    else:
        yield Finding("cache", "ok", found)
    pins = len(list(pins_folder().glob("*.json")))
    yield Finding("pinned commits", "ok", f"{pins} in {pins_folder()}")
    offline = "; HF_HUB_OFFLINE is set: no downloads" if constants.is_offline_mode() else ""
    login = "a token is set" if get_token() else "no token (hf auth login, for private models)"
    yield Finding("hub", "ok", f"{constants.ENDPOINT}, {login}{offline}")


def _checkpoints() -> Iterator[Finding]:
    for name, folder in BUILT_IN.items():
        yield _checkpoint(name, folder / WEIGHTS, f"{sys.executable} -m pip install esogen")
    for model in cached_models():
        mend = f"esogen models pull {model.repository}"
        yield _checkpoint(model.repository, model.snapshot / WEIGHTS, mend)


def _checkpoint(name: str, weights: Path, mend: str) -> Finding:
    try:
        with weights.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Finding(f"model {name}", "problem", f"{weights}: {error.strerror}", mend)
    blob = weights.resolve().name
    if len(blob) == len(digest) and blob != digest:  # the cache names large files by their digest
        found = f"damaged: its sha256 is {digest[:12]} instead of {blob[:12]}"
        return Finding(f"model {name}", "problem", found, mend)
    size = amount(weights.stat().st_size)
    return Finding(f"model {name}", "ok", f"{size}, sha256 {digest[:12]}")


def _hub() -> Iterator[Finding]:
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        found = "HF_HUB_OFFLINE is set, so it was not asked"
        yield Finding("hub online", "note", found, "unset HF_HUB_OFFLINE")
        return
    began = time.perf_counter()
    try:
        HfApi(library_name="esogen").model_info(TOKENIZER_REPOSITORY, timeout=10)
    except Exception as error:  # whatever it is, the finding is the same
        found = f"{constants.ENDPOINT} cannot be had ({type(error).__name__}: {error})"
        yield Finding("hub online", "problem", found, f"curl -I {constants.ENDPOINT}")
        return
    took = time.perf_counter() - began
    yield Finding("hub online", "ok", f"{constants.ENDPOINT} answers in {took:.2f} s")


def _smoke_run() -> Iterator[Finding]:
    from esogen.language_model import load

    name = os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL  # what is sampled from unless said
    resolve_here(name)
    began = time.perf_counter()
    lm = load(name)
    loaded = time.perf_counter() - began
    (sample,) = lm.sample(length=_SMOKE, seed=0, raw=True)
    took = time.perf_counter() - began - loaded
    made = f"{len(sample.tokens)} tokens on {lm.device} in {lm.checkpoint.dtype}"
    times = f"loaded in {loaded:.2f} s, ran in {took:.2f} s"
    yield Finding("smoke run", "ok", f"{made} by {name}: {times}")


VITAL = (_torch, _smoke_run)
"""Checks without which no text can be written."""
