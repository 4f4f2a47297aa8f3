"""Which device and precision a network runs in, and which kernels compute its attention."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

import torch
from torch import Tensor

from esogen.checkpoint.cpu_precision import quickest_on_cpu
from esogen.errors import EsogenError, UsageError
from esogen.model.attention import (
    SDPA,
    Kernels,
    Places,
    Prefix,
    StepKernel,
    triton_attention,
    xformers_attention,
)
from esogen.model.cache import step_by_torch
from esogen.model.heads import Heads, Rotation, angles_of

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}

ATTENTIONS = ("auto", "triton", "xformers", "sdpa")

PEAKS: Mapping[str, float] = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 operations a second that the makers state, by the name torch gives a GPU."""

_MEANT = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
}


def choose_device(word: str, told: Callable[[str], object] = warnings.warn) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names; `auto` is a GPU where there is one.

    Where torch cannot use the one there is, `told` is told why `auto` is the CPU. Raises
    `UsageError` for any other word and for a GPU that is not here.
    """
    if word == "auto":
        count, why_not = gpus()
        if why_not:
            told(f"device is cpu, for torch cannot use the GPU: {why_not}")
        return torch.device("cuda" if count else "cpu")
    if word == "cpu":
        return torch.device("cpu")
    kind, colon, index = word.partition(":")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdigit())):
        wanted = "auto, cuda, cuda:N or cpu"
        raise UsageError(_unknown("device", word, wanted, ("auto", "cuda", "cuda:0", "cpu")))
    return _cuda(word, int(index or 0))


def choose_dtype(word: str, device: torch.device) -> torch.dtype:
    """The precision that `auto`, `bf16`, `fp16` or `fp32` names.

    `auto` is bfloat16 on a GPU that has it, float16 on another; on a CPU float32, or what is
    measured to be quicker. Raises `UsageError` for any other word.
    """
    if word == "auto":
        return _natural_dtype(device)
    if word not in DTYPES:
        words = ("auto", *DTYPES)
        raise UsageError(_unknown("dtype", word, ", ".join(words), words))
    return DTYPES[word]


def choose_attention(word: str, device: torch.device, dtype: torch.dtype) -> Kernels:
    """The attention that `auto`, `triton`, `xformers` or `sdpa` (torch's own) names.

    `auto` on a GPU is Triton's where that gives what sdpa gives, and sdpa, with a note, where it
    does not; sdpa on a CPU. Raises `UsageError` for any other word and for kernels that a CPU does
    not have, `EsogenError` where the kernels asked for cannot be had.
    """
    if word not in ATTENTIONS:
        wanted = ", ".join(ATTENTIONS)
        raise UsageError(_unknown("attention", word, wanted, ATTENTIONS))
    if word == "sdpa" or (word == "auto" and device.type != "cuda"):
        return SDPA
    if device.type != "cuda":
        raise UsageError(
            f"attention is {word!r}, which has no kernels for device {device}; use sdpa or auto"
        )
    try:
        if word == "xformers":
            return Kernels(xformers_attention(), word=word)
        step = checked(triton_attention(), device, dtype)
    except Exception as error:  # compilers fail in many ways
        reason = f"{type(error).__name__}: {error}"
        if word == "auto":
            return Kernels(note=f"attention is sdpa, and steps are not recorded ({reason})")
        raise EsogenError(
            f"--attention {word} cannot be loaded ({reason}); use sdpa or auto"
        ) from error
    return Kernels(step=step, word=None if word == "auto" else word)


def checked(kernel: StepKernel, device: torch.device, dtype: torch.dtype) -> StepKernel:
    """The same kernel, after steps of 3 tokens have come out as they do by torch's operations.

    Of the three kinds there are: plain, told who sees whom, and behind a prefix. Raises
    `RuntimeError` where one has not; and whatever the kernel raises.
    """
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    angles = angles_of(noise(2, 3, 64))
    heads = Heads(noise(2, 3, 3, 2, 64), Rotation(angles.cos(), angles.sin()))
    stands_B = torch.tensor([30, 5], device=device)
    seen_BLL = torch.eye(3, dtype=torch.bool, device=device)[None]
    prefix = Prefix(noise(1, 20, 2, 64), noise(1, 20, 2, 64), stands_B * 0, stands_B // 2)
    kv = noise(2, 2, 40, 2, 64)
    for seen, before in ((None, None), (seen_BLL, None), (None, prefix)):
        found, wanted = (
            [by(heads, Places(both[0], both[1], stands_B, seen, before)), both]
            for by in (kernel, step_by_torch)
            for both in [kv.clone()]
        )
        apart = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
        if not apart <= max(8 * torch.finfo(dtype).eps, 1e-5):
            raise RuntimeError(f"it differs from sdpa by {apart:.2g} in {str(dtype)[6:]}")
    return kernel


def gpus() -> tuple[int, str | None]:
    """How many GPUs torch can use, and why it cannot use one that is there: its driver is too old.

    torch says so once in a process.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count or not said:
        return count, None
    return 0, str(said[0].message).removeprefix("CUDA initialization: ").partition(". ")[0]


def _cuda(word: str, index: int) -> torch.device:
    count, why_not = gpus()
    if not count:
        reason = f" ({why_not})" if why_not else ""
        raise UsageError(
            f"device is {word!r}, but torch finds no GPU here{reason}; use cpu or auto"
        )
    if index >= count:
        raise UsageError(
            f"device is {word!r}, but the GPUs here are cuda:0 to cuda:{count - 1}; use one of them"
        )
    return torch.device(word)


def peak_flops(device: torch.device) -> float | None:
    """Bfloat16 operations a second that `device` can reach at most; None where it is not known."""
    return PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def narrowed(word: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is to be told where `auto` is not the precision that GPUs usually have."""
    if (word, dtype, device.type) == ("auto", torch.float16, "cuda"):
        return "dtype is fp16, for this GPU has no bfloat16"
    return None


def _natural_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return quickest_on_cpu()
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _unknown(name: str, word: str, wanted: str, words: Iterable[str]) -> str:
    lowered = word.lower()
    near = _MEANT.get(lowered) or next(iter(get_close_matches(lowered, words, n=1)), None)
    hint = f"; did you mean {near}?" if near else ""
    return f"{name} is {word!r}; it must be one of {wanted}{hint}"
