"""The authors' own `.ckpt` files: read without running them, and made into model folders.

Such a file is a zip archive of one pickle and the numbers of its tensors. What counts in it:

    state_dict        raw weights, names as in the published files, and a rotary buffer
    ema               {"shadow_params": [...]}: averaged weights without names, in the order in
                      which the network lists its parameters, which is that of `state_dict`
    hyper_parameters  {"config": OmegaConf tree, "tokenizer": ...}: sizes, attention modes, alpha_0

The pickle names classes of libraries that need not be here; `pickles.py` makes stubs of them.
"""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeGuard

import tokenizers
import torch
from torch import Tensor

from esogen.checkpoint.archive import Entry, read_directory, read_entry
from esogen.checkpoint.config_file import ESOLM_A_MODES, LARGEST_SIZE, Card, CardDefaults
from esogen.checkpoint.pickles import Name, Persistent, PickleError, Stub, read_pickle
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import INV_FREQ, check_tensors, stored_names
from esogen.errors import CheckpointError
from esogen.model.config import Family, ModelConfig

_LARGEST_PICKLE = 64 * 2**20
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_REBUILD = (
    Name("torch._utils", "_rebuild_tensor_v2"),
    Name("torch._utils", "_rebuild_tensor"),
)
"""No set, which would hash what a pickle calls: hashing a deep nest of tuples ends the process."""

_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_FAMILIES: Mapping[str, Family] = {"mdlm": "mdlm", "bd3lm": "bd3lm", "ar": "ar"}
_PREFIX = "backbone."


@dataclass(frozen=True, slots=True)
class Lightning:
    """What a `.ckpt` holds of a network: its card, weights by their names, and its tokenizer.

    `tensors` are views of the file. `tokenizer` is None where the file carries none that fits.
    """

    card: Card
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer | None


def read_lightning(path: Path, *, raw: bool = False) -> Lightning:
    """Read a `.ckpt`: the averaged weights, or with `raw` those that the optimiser moved.

    Raises `CheckpointError` saying what is wrong with the file, or what it lacks.
    """
    archive = _Archive.open(path)
    content = archive.content
    tensors = archive.weights(raw=raw)
    hyper = content.get("hyper_parameters")
    config = _config(path, _Tree.of(hyper).at("config"), tensors)
    training: dict[str, object] = {"imported": path.name, "weights": "raw" if raw else "ema"}
    training |= {k: v for k in ("epoch", "global_step") if _is_count(v := content.get(k))}
    defaults = CardDefaults(alpha_0=_share(_Tree.of(hyper).at("config", "algo", "alpha_0").value))
    check_tensors(path, tensors, config)
    return Lightning(Card(config, defaults, training), tensors, _tokenizer(hyper, config))


@dataclass(frozen=True, slots=True)
class _Archive:
    """An opened file: its entries, what its pickle says, and its bytes, mapped."""

    path: Path
    prefix: str
    entries: Mapping[str, Entry]
    content: Mapping[object, object]
    mapped: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> "_Archive":
        entries = read_directory(path)
        name = next((name for name in entries if name.endswith("data.pkl")), None)
        if name is None:
            raise CheckpointError(f"{path} holds no data.pkl; wanted a .ckpt written by torch.save")
        if entries[name].size > _LARGEST_PICKLE:
            raise CheckpointError(
                f"{path}: its data.pkl has {entries[name].size} bytes, and may have"
                f" {_LARGEST_PICKLE}; this is no checkpoint of this family"
            )
        prefix = name.removesuffix("data.pkl")
        order = entries.get(f"{prefix}byteorder")
        if order and read_entry(path, order) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine; convert it there")
        try:
            content = read_pickle(read_entry(path, entries[name]))
        except PickleError as error:
            raise CheckpointError(f"{path}: its pickle {error}; copy the file again") from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__} instead of a Lightning checkpoint"
            )
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return cls(path, prefix, entries, content, mapped)

    def weights(self, *, raw: bool) -> dict[str, Tensor]:
        """The network's tensors by the names that `Network` gives them."""
        state = self.content.get("state_dict")
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(f"{self.path} has no state_dict of named tensors")
        stored = stored_names(self.path, [name for name in state if _is_weight(name)])
        chosen = {name: state[key] for name, key in stored.items()}
        if not raw:
            named = [*(n for n in chosen if n != INV_FREQ), *_others(state)]
            averaged = dict(zip(named, self._shadow(len(named)), strict=True))
            chosen |= {name: averaged[name] for name in chosen if name in averaged}
        return self._tensors(chosen, state, stored)

    def _shadow(self, wanted: int) -> Sequence[object]:
        ema = self.content.get("ema")
        shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
        if not isinstance(shadow, list):
            raise CheckpointError(
                f"{self.path} holds no averaged weights (ema.shadow_params); --raw takes the others"
            )
        if len(shadow) != wanted:
            raise CheckpointError(
                f"{self.path} holds {len(shadow)} averaged weights for {wanted} parameters, so that"
                " they cannot be told apart; --raw takes the others"
            )
        return shadow

    def _tensors(
        self, chosen: Mapping[str, object], state: Mapping[str, object], stored: Mapping[str, str]
    ) -> dict[str, Tensor]:
        tensors = {name: self._tensor(name, value) for name, value in chosen.items()}
        if sum(tensor.nbytes for tensor in tensors.values()) > len(self.mapped):
            raise CheckpointError(f"{self.path} holds more numbers than it has bytes for")
        for name, tensor in tensors.items():
            raw = self._tensor(name, state[stored[name]])
            if raw.shape != tensor.shape:
                raise CheckpointError(
                    f"{self.path}: the average of {name[:80]!r} has the shape"
                    f" {list(tensor.shape)} instead of {list(raw.shape)}; --raw takes the others"
                )
        return tensors

    def _tensor(self, name: str, value: object) -> Tensor:
        """A view of the numbers of a tensor, which must lie one behind the other in the file."""
        while isinstance(value, Stub) and value.callee == _PARAMETER:
            value = _argument(value, 0)
        if not isinstance(value, Stub) or value.callee not in _REBUILD:
            raise self._no_tensor(name, "something else than a tensor")
        dtype, entry = self._storage(name, _argument(value, 0))
        offset, shape, strides = (_argument(value, place) for place in (1, 2, 3))
        if not _is_count(offset) or not _are_counts(shape) or not _are_counts(strides):
            raise self._no_tensor(name, "a tensor of no shape")
        if not _is_contiguous(shape, strides):
            raise self._no_tensor(name, "a tensor whose numbers do not lie in a row")
        if (offset + prod(shape)) * dtype.itemsize > entry.size:
            raise self._no_tensor(name, f"more numbers than its {entry.size} bytes have")
        start = entry.offset + offset * dtype.itemsize
        return _view(self.mapped, dtype, start, prod(shape)).view(shape)

    def _storage(self, name: str, key: object) -> tuple[torch.dtype, Entry]:
        match key:
            case Persistent(key=("storage", Name(module="torch", attribute=kind), str(number), *_)):
                entry = self.entries.get(f"{self.prefix}data/{number}")
                if kind in _DTYPES and entry:
                    return _DTYPES[kind], entry
        raise self._no_tensor(name, "numbers that are not in the file")

    def _no_tensor(self, name: str, found: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {name} is {found}; the file is damaged or made by hand"
        )


def _is_weight(name: str) -> bool:
    return name.replace("_orig_mod.", "").startswith(_PREFIX)


def _others(state: Mapping[str, object]) -> list[str]:
    """What the authors' trainer averages besides: parameters of the noise schedule, if any."""
    return [name for name in state if name.startswith("noise.")]


def _argument(stub: Stub, place: int) -> object:
    arguments = stub.arguments
    return arguments[place] if isinstance(arguments, tuple) and place < len(arguments) else None


def _share(value: object) -> float | None:
    """A number from 0 to 1, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return float(value)


def _brief(value: object) -> str:
    """A plain value for a message; of anything that may nest only its kind."""
    if isinstance(value, str | bool | float) or _is_count(value):
        return repr(value)[:60]
    return "none" if value is None else f"a {type(value).__name__}"


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= 8 and all(map(_is_count, value))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if len(shape) != len(strides):
        return False
    row = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != row:
            return False
        row *= size
    return True


def _view(mapped: mmap.mmap, dtype: torch.dtype, start: int, count: int) -> Tensor:
    if not count:
        return torch.empty(0, dtype=dtype)
    if start % dtype.itemsize:  # torch.save aligns; a file made by hand may not
        copied = bytearray(mapped[start : start + count * dtype.itemsize])
        return torch.frombuffer(copied, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)


@dataclass(frozen=True, slots=True)
class _Tree:
    """A place in a tree of OmegaConf nodes, dicts or namespaces; `value` is None where none is."""

    value: object

    @classmethod
    def of(cls, node: object) -> "_Tree":
        """What a node stands for: a stub of OmegaConf holds it in its state."""
        if isinstance(node, Stub) and isinstance(node.state, dict):
            return cls(node.state.get("_content", node.state.get("_val", node.state)))
        if isinstance(node, Stub) and node.items:  # a dict of a class of somebody's own
            pairs = [each for each in node.items if isinstance(each, tuple) and len(each) == 2]
            return cls({key: value for key, value in pairs if isinstance(key, str)})
        return cls(node)

    def at(self, *path: str) -> "_Tree":
        """The node at a path of keys."""
        place = self
        for key in path:
            inside = place.value
            place = _Tree.of(inside.get(key) if isinstance(inside, dict) else None)
        return place

    def whole(self, path: Path, *keys: str) -> int:
        """A size. Raises `CheckpointError` where there is none."""
        value = self.at(*keys).value
        if not _is_count(value) or not 1 <= value <= LARGEST_SIZE:
            raise CheckpointError(
                f"{path}: hyper_parameters.config.{'.'.join(keys)} must be a whole number, found"
                f" {_brief(value)}"
            )
        return value


def _config(path: Path, config: _Tree, tensors: Mapping[str, Tensor]) -> ModelConfig:
    family = _family(path, config)
    embedding = tensors.get("vocab_embed.embedding")
    if embedding is None or embedding.ndim != 2:
        raise CheckpointError(f"{path} has no backbone.vocab_embed.embedding of two dimensions")
    dropout = _share(config.at("model", "dropout").value)
    try:
        return ModelConfig(
            family=family,
            vocab_size=embedding.shape[0],
            model_length=config.whole(path, "model", "length"),
            hidden_size=config.whole(path, "model", "hidden_size"),
            n_blocks=config.whole(path, "model", "n_blocks"),
            n_heads=config.whole(path, "model", "n_heads"),
            dropout=0.1 if dropout is None else dropout,
            **({"cond_dim": config.whole(path, "model", "cond_dim")} if family != "ar" else {}),
            **({"block_size": config.whole(path, "block_size")} if family == "bd3lm" else {}),
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _family(path: Path, config: _Tree) -> Family:
    name = config.at("algo", "name").value
    if name == "esolm":
        return _variant(path, config.at("algo"))
    if isinstance(name, str) and name in _FAMILIES:
        return _FAMILIES[name]
    raise CheckpointError(
        f"{path}: hyper_parameters.config.algo.name must be one of esolm, {', '.join(_FAMILIES)},"
        f" found {_brief(name)}; esogen runs these networks only"
    )


def _variant(path: Path, algo: _Tree) -> Family:
    """Eso-LM (A) or (B), by the two attention modes it was trained with."""
    modes = {name: algo.at(name).value for name in ESOLM_A_MODES}
    if modes == ESOLM_A_MODES:
        return "esolm-a"
    if all(mode == "causal" for mode in modes.values()):
        return "esolm-b"
    found = ", ".join(f"{name} {_brief(mode)}" for name, mode in modes.items())
    raise CheckpointError(
        f"{path}: wanted the attention modes of Eso-LM (B), causal twice, or of (A),"
        f" {' and '.join(ESOLM_A_MODES.values())}; found {found}"
    )


def _tokenizer(hyper: object, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer that was pickled beside the config, if it is one and fits the network."""
    for text in _tokenizer_texts(hyper):
        try:
            json.loads(text)
            return Tokenizer(tokenizers.Tokenizer.from_str(text), config.vocab_size)
        except Exception:  # the library raises bare `Exception`
            continue
    return None


def _tokenizer_texts(hyper: object) -> Iterator[str]:
    """A pickled tokenizer carries its own JSON, as bytes that pickle may have spelt in Latin-1."""
    outer = _Tree.of(hyper).at("tokenizer").value
    inner = outer.get("_tokenizer") if isinstance(outer, dict) else outer
    for stub in (inner, outer):
        if isinstance(stub, Stub):
            yield from filter(None, map(_text, (stub.state, _argument(stub, 0))))


def _text(value: object) -> str | None:
    match value:
        case str():
            return value
        case bytes():
            return value.decode("utf-8", "replace")
        case Stub(
            callee=Name(module="_codecs", attribute="encode"), arguments=(str(text), "latin1")
        ):
            return text.encode("latin1", "replace").decode("utf-8", "replace")
    return None
