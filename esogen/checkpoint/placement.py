"""Which device and precision a network runs in, and which kernels compute its attention."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import torch

from esogen.errors import EsogenError, UsageError
from esogen.model.attention import Kernel, attention, xformers_attention

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}

ATTENTIONS = ("auto", "xformers", "sdpa")

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


def choose_device(word: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` names; `auto` is a GPU where there is one.

    Raises `UsageError` for any other word and for a GPU that is not here.
    """
    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if word == "cpu":
        return torch.device("cpu")
    kind, colon, index = word.partition(":")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdigit())):
        wanted = "auto, cuda, cuda:N or cpu"
        raise UsageError(_unknown("device", word, wanted, ("auto", "cuda", "cuda:0", "cpu")))
    return _cuda(word, int(index or 0))


def choose_dtype(word: str, device: torch.device) -> torch.dtype:
    """The precision that `auto`, `bf16`, `fp16` or `fp32` names.

    `auto` is float32 on the CPU, and on a GPU bfloat16 where the hardware has it, else float16.
    Raises `UsageError` for any other word.
    """
    if word == "auto":
        return _natural_dtype(device)
    if word not in DTYPES:
        words = ("auto", *DTYPES)
        raise UsageError(_unknown("dtype", word, ", ".join(words), words))
    return DTYPES[word]


def choose_attention(word: str, device: torch.device) -> Kernel:
    """The attention that `auto`, `xformers` or `sdpa` names; `auto` is torch's own (sdpa).

    Raises `UsageError` for any other word and for xformers on a CPU, `EsogenError` where xformers
    cannot be loaded.
    """
    if word not in ATTENTIONS:
        wanted = ", ".join(ATTENTIONS)
        raise UsageError(_unknown("attention", word, wanted, ATTENTIONS))
    if word != "xformers":
        return attention
    if device.type != "cuda":
        raise UsageError(
            f"attention is 'xformers', which has no kernels for device {device}; use sdpa or auto"
        )
    try:
        return xformers_attention()
    except (ImportError, OSError) as error:
        raise EsogenError(
            f"--attention xformers cannot be loaded ({error}); use sdpa or auto"
        ) from error


def _cuda(word: str, index: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UsageError(f"device is {word!r}, but torch finds no GPU here; use cpu or auto")
    if index >= count:
        raise UsageError(
            f"device is {word!r}, but the GPUs here are cuda:0 to cuda:{count - 1}; use one of them"
        )
    return torch.device(word)


def peak_flops(device: torch.device) -> float | None:
    """Bfloat16 operations a second that `device` can reach at most; None where it is not known."""
    return PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _natural_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _unknown(name: str, word: str, wanted: str, words: Iterable[str]) -> str:
    lowered = word.lower()
    near = _MEANT.get(lowered) or next(iter(get_close_matches(lowered, words, n=1)), None)
    hint = f"; did you mean {near}?" if near else ""
    return f"{name} is {word!r}; it must be one of {wanted}{hint}"
