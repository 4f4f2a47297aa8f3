"""`model.safetensors`: reading, checking, folding and placing a network's weights; writing them.

Memory: tensors that are read are views of the mapped file and cost nothing until they are touched.
`build` finishes them one by one, so that at no time more private memory is in use than the weights
in their final precision and one tensor in float32.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esogen.atomic import replacing
from esogen.errors import CheckpointError
from esogen.model.config import ModelConfig
from esogen.model.fold import Tensors, fold
from esogen.model.network import Network, rotary_frequencies
from esogen.model.packed import pack, packs

INV_FREQ = "rotary_emb.inv_freq"
"""The one tensor that is no weight: always float32, and computed where a file lacks it."""

_PREFIX = "backbone."
_DTYPES = ("F64", "F32", "BF16", "F16")
_NAMED, _LONGEST = 3, 100

Shape = tuple[int, ...]


def read_tensors(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a weights file under the names of `Network(config)`, in the file's precision.

    Raises `CheckpointError` for a file that is damaged, whose tensors are not exactly those of the
    network, or whose numbers are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = stored_names(path, file.keys())
            slices = {name: file.get_slice(key) for name, key in stored.items()}
            _check_dtypes(path, {name: part.get_dtype() for name, part in slices.items()})
            _check_shapes(path, {n: tuple(p.get_shape()) for n, p in slices.items()}, config)
            tensors = {name: file.get_tensor(key) for name, key in stored.items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({error}); download or copy it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    _check_finite(path, tensors)
    return tensors


def build(
    config: ModelConfig,
    tensors: Tensors,
    *,
    folded: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Network:
    """A network of these tensors on `device` in `dtype`, in eval mode and without gradients.

    `tensors` are those of `Network(config)`; the mapping is emptied on the way, the tensors in it
    are left as they are and share no memory with the network. A folded network in float16 on a CPU
    that packs computes in float32, with matrices in half precision; raises `OverflowError` where
    they do not fit that.
    """
    with torch.device("meta"):
        network = Network(config, folded=folded)
    packed = folded and (device.type, dtype) == ("cpu", torch.float16) and packs()
    state: dict[str, Tensor] = {}
    for name, tensor in _finished(config, tensors, folded=folded):
        exact = packed or name == INV_FREQ
        placed = tensor.to(device, torch.float32 if exact else dtype, copy=not folded)
        matrix = folded and name.endswith(".weight")
        state[name] = _laid_out(placed) if matrix and not packed else placed
        if packed:
            pack(network, state)
    state.setdefault(INV_FREQ, rotary_frequencies(config.head_size).to(device))
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def write_weights(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write the tensors of an unfolded network in `dtype` under their published names.

    Raises `OSError` when the file cannot be written; `path` then keeps what it held.
    """
    stored = {
        _PREFIX + name: _portable(tensor, torch.float32 if name == INV_FREQ else dtype)
        for name, tensor in tensors.items()
    }
    with replacing(path) as scratch:
        try:
            save_file(stored, scratch, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def check_tensors(path: Path, tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Raise `CheckpointError` unless these are the tensors of the network, and finite."""
    _check_shapes(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    _check_finite(path, tensors)


def stored_names(path: Path, keys: list[str]) -> dict[str, str]:
    """From the network's names to those in the file, which may have been through a compiler.

    Raises `CheckpointError` where two of them are the same.
    """
    stored = {key.replace("_orig_mod.", "").removeprefix(_PREFIX): key for key in keys}
    if len(stored) < len(keys):
        twice = sorted(set(keys) - set(stored.values()))
        raise CheckpointError(f"{path} holds tensors twice under two names: {_some(twice)}")
    return stored


def _finished(
    config: ModelConfig, tensors: Tensors, *, folded: bool
) -> Iterator[tuple[str, Tensor]]:
    if folded:
        yield from fold(tensors, config)
    else:
        for name in list(tensors):
            yield name, tensors.pop(name)


def _laid_out(weight: Tensor) -> Tensor:
    """The same matrix with its longer side contiguous in memory.

    The products of a step have a few rows each, so reading the matrix is all they cost, and a CPU
    reads few long runs faster than many short ones.
    """
    if weight.device.type != "cpu" or weight.ndim < 2 or weight.shape[0] <= weight.shape[1]:
        return weight
    return weight.t().contiguous().t()


def _portable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()


def _check_dtypes(path: Path, dtypes: Mapping[str, str]) -> None:
    wrong = [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in _DTYPES]
    if wrong:
        raise CheckpointError(
            f"{path}: weights must be one of {', '.join(_DTYPES)}, but {_some(wrong)};"
            " quantised weights cannot be used, take the original ones"
        )


def _check_shapes(path: Path, found: Mapping[str, Shape], config: ModelConfig) -> None:
    wanted = _wanted_shapes(path, found, config)
    missing = [name for name in wanted if name not in found and name != INV_FREQ]
    extra = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    complaints = [
        f"{kind} {_some(names)}"
        for kind, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if names
    ]
    if complaints:
        raise CheckpointError(
            f"{path} does not fit the config that came with it: {'; '.join(complaints)};"
            " take both from the same checkpoint"
        )


def _wanted_shapes(path: Path, found: Mapping[str, Shape], config: ModelConfig) -> dict[str, Shape]:
    blocks = {match[0] for match in map(re.compile(r"blocks\.\d+\.").match, found) if match}
    if config.n_blocks > len(blocks):  # said before a network of any number of blocks is built
        raise CheckpointError(
            f"{path} holds {len(blocks)} blocks, but the config that came with it wants"
            f" {config.n_blocks}; take both from the same checkpoint"
        )
    with torch.device("meta"):
        network = Network(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong:
        raise CheckpointError(
            f"{path}: not all numbers are finite in {_some(wrong)};"
            " the training went wrong or the file is damaged, take another one"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Without a copy: the least and greatest of the numbers show any NaN or infinity."""
    return all(math.isfinite(extreme) for extreme in tensor.aminmax())


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    named = [name if name.isprintable() else repr(name) for name in names[:_NAMED]]
    return ", ".join(name[:_LONGEST] for name in named) + (f" and {rest} more" if rest > 0 else "")
