"""The authors' `.ckpt` files: what becomes of one, and that nothing in it ever runs."""

import copyreg
import io
import json
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from esogen.checkpoint import pickles
from esogen.checkpoint.convert import export, import_lightning
from esogen.checkpoint.folder import open_checkpoint
from esogen.checkpoint.hub import Unwatched
from esogen.checkpoint.lightning import read_lightning
from esogen.checkpoint.pickles import Name, PickleError, Stub, read_pickle
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import INV_FREQ
from esogen.errors import CheckpointError
from esogen.model.config import Family, ModelConfig
from tests import golden
from tests.conftest import random_tensors

CPU = torch.device("cpu")


@pytest.fixture
def ckpt() -> Path:
    return golden.folder("esolm-b") / "lightning.ckpt"


# What the golden file becomes


def test_the_average_is_the_published_checkpoint(ckpt: Path, tmp_path: Path) -> None:
    import_lightning(ckpt, tmp_path / "made", raw=False, tokenizer=None)
    found = load_file(tmp_path / "made" / "model.safetensors")
    wanted = load_file(golden.folder("esolm-b") / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    written, published = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "made", golden.folder("esolm-b"))
    )
    assert written.pop("esogen")["training"]["weights"] == "ema"
    left_out = {"hidden_dim", "transformers_version"}
    assert written == {k: v for k, v in published.items() if k not in left_out}


def test_raw_is_the_state_dict(ckpt: Path, tmp_path: Path) -> None:
    import_lightning(ckpt, tmp_path / "made", raw=True, tokenizer=None)
    found = load_file(tmp_path / "made" / "model.safetensors")
    wanted = state_dict_by_torch(ckpt)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    averaged = load_file(golden.folder("esolm-b") / "model.safetensors")
    assert not any(torch.equal(found[n], averaged[n]) for n in found if "inv_freq" not in n)


def state_dict_by_torch(path: Path) -> dict[str, Tensor]:
    """The oracle: Python's own unpickler, with torch's own function for tensors and no classes."""
    with zipfile.ZipFile(path) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}

    class Inert:
        def __init__(self, *_: object) -> None:
            """Take whatever comes."""

        def __setstate__(self, _: object) -> None:
            """Pass over it."""

    class Oracle(pickle.Unpickler):
        def find_class(self, module: str, attribute: str) -> Any:
            trusted = ("torch._utils", "collections", "torch")
            return super().find_class(module, attribute) if module in trusted else Inert

        def persistent_load(self, key: Any) -> Any:
            numbers = torch.frombuffer(bytearray(files[f"data/{key[2]}"]), dtype=torch.float32)
            make: Any = torch.storage.TypedStorage
            return make(wrap_storage=numbers.untyped_storage(), dtype=numbers.dtype, _internal=True)

    state: dict[str, Tensor] = Oracle(io.BytesIO(files["data.pkl"])).load()["state_dict"]
    return state


def test_the_settings_of_the_run_are_kept(ckpt: Path) -> None:
    card = read_lightning(ckpt).card
    assert card.model == ModelConfig("esolm-b", 98, 64, 64, 3, 4, 32, 0.1)
    assert card.defaults.alpha_0 == 0.25
    assert card.training == {
        "imported": "lightning.ckpt",
        "weights": "ema",
        "epoch": 14,
        "global_step": 250_000,
    }


def test_an_imported_folder_opens_and_is_exported_again(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], tiny_config: ModelConfig, tiny_folder: Path
) -> None:
    path = lightning_file(tmp_path / "own.ckpt", tiny_config, tiny_tensors)
    origin = import_lightning(
        path, tmp_path / "made", raw=False, tokenizer=tiny_folder / "tokenizer.json"
    )
    assert origin == str(tiny_folder / "tokenizer.json")
    open_checkpoint(str(tmp_path / "made"), device=CPU, dtype=torch.float32)
    export(str(tmp_path / "made"), tmp_path / "out", torch.bfloat16, Unwatched())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in tiny_tensors.items():
        dtype = torch.float32 if name == INV_FREQ else torch.bfloat16
        assert torch.equal(stored[f"backbone.{name}"], tensor.to(dtype))
    with pytest.raises(CheckpointError, match=r"out holds config.json and .* already"):
        export(str(tmp_path / "made"), tmp_path / "out", None, Unwatched())


class Backend:
    """As transformers wraps a tokenizer."""

    def __init__(self, tokenizer: object) -> None:
        self._tokenizer = tokenizer


def test_the_tokenizer_inside_is_used_where_it_fits(
    tmp_path: Path,
    tiny_tensors: dict[str, Tensor],
    tiny_config: ModelConfig,
    tiny_tokenizer: Tokenizer,
) -> None:
    backend = Backend(tiny_tokenizer._inner)
    path = lightning_file(tmp_path / "a.ckpt", tiny_config, tiny_tensors, tokenizer=backend)
    found = read_lightning(path).tokenizer
    assert found is not None
    assert found.to_json() == tiny_tokenizer.to_json()


# Files made here, as the authors' trainer makes them


def lightning_file(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: object = None,
    **changes: Any,
) -> Path:
    """A `.ckpt` in which the average is `tensors` and the raw weights are twice that."""
    algo: dict[str, object] = {"name": config.family, "alpha_0": 0.5}
    if config.family.startswith("esolm"):
        modes = ("causal", "causal") if config.family == "esolm-b" else ("mixed2", "mixed")
        algo |= {"name": "esolm", "diffusion_attn_mode": modes[0], "sequential_attn_mode": modes[1]}
    sizes = ("hidden_size", "n_blocks", "n_heads", "cond_dim", "dropout")
    model = {name: getattr(config, name) for name in sizes} | {"length": config.model_length}
    hyper = {"algo": algo, "model": model, "block_size": config.block_size}
    content = {
        "epoch": 1,
        "global_step": 10,
        "state_dict": {f"backbone.{n}": t if n == INV_FREQ else t * 2 for n, t in tensors.items()},
        "ema": {"shadow_params": [t.clone() for n, t in tensors.items() if n != INV_FREQ]},
        "hyper_parameters": {"config": hyper, "tokenizer": tokenizer},
    }
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize("family", ["esolm-a", "esolm-b", "mdlm", "bd3lm", "ar"])
def test_every_family_is_told_by_what_it_was_trained_with(family: Family, tmp_path: Path) -> None:
    block_size = 4 if family == "bd3lm" else 1
    cond_dim = 128 if family == "ar" else 8
    config = ModelConfig(family, 50, 16, 8, 2, 2, cond_dim, 0.0, block_size)
    tensors = random_tensors(config, 5)
    found = read_lightning(lightning_file(tmp_path / "a.ckpt", config, tensors))
    assert found.card.model == config
    assert found.tensors.keys() == tensors.keys()
    averaged = {name: tensor for name, tensor in tensors.items() if name != INV_FREQ}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in averaged.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": 3}, "has no state_dict of named tensors"),
        (
            {"state_dict": {}, "ema": {"shadow_params": []}},
            r"has no backbone\.vocab_embed\.embedding of two dimensions",
        ),
        ({"ema": None}, r"holds no averaged weights \(ema.shadow_params\); --raw takes"),
        ({"ema": {"shadow_params": []}}, r"holds 0 averaged weights for \d+ parameters"),
        ({"hyper_parameters": None}, r"algo\.name must be one of esolm, mdlm, .* found none"),
        ({"hyper_parameters": {"config": {"algo": {"name": "sedd"}}}}, "found 'sedd'; esogen runs"),
        (
            {"hyper_parameters": {"config": {"algo": {"name": "esolm"}}}},
            "wanted the attention modes of Eso-LM",
        ),
        (
            {
                "hyper_parameters": {
                    "config": {"algo": {"name": "esolm", "diffusion_attn_mode": {}}}
                }
            },
            "found diffusion_attn_mode a dict, sequential_attn_mode none",
        ),
        (
            {"hyper_parameters": {"config": {"algo": {"name": "mdlm"}}}},
            r"hyper_parameters\.config\.model\.length must be a whole number, found none",
        ),
    ],
)
def test_what_a_file_lacks_is_named(
    tmp_path: Path,
    tiny_config: ModelConfig,
    tiny_tensors: dict[str, Tensor],
    changes: dict[str, Any],
    message: str,
) -> None:
    path = lightning_file(tmp_path / "a.ckpt", tiny_config, tiny_tensors, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_lightning(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_not_there_are_refused(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in tiny_tensors.items()}
    name = "backbone.vocab_embed.embedding"
    for changed, message in (
        (torch.zeros(1).expand(300, 32), "whose numbers do not lie in a row"),
        (state[name].t().contiguous().t(), "whose numbers do not lie in a row"),
        (3, "is something else than a tensor"),
    ):
        path = lightning_file(
            tmp_path / "a.ckpt", tiny_config, tiny_tensors, state_dict={**state, name: changed}
        )
        with pytest.raises(CheckpointError, match=message):
            read_lightning(path, raw=True)


@pytest.mark.parametrize("kept", [0, 10, 1000, 100_000, -1])
def test_a_file_that_is_cut_short_is_refused(ckpt: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(ckpt.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is no zip archive, or is cut short"):
        read_lightning(path)


def test_a_folder_that_holds_a_model_is_left_alone(ckpt: Path, tiny_folder: Path) -> None:
    before = (tiny_folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="already, which would be overwritten"):
        import_lightning(ckpt, tiny_folder, raw=False, tokenizer=None)
    assert (tiny_folder / "model.safetensors").read_bytes() == before


# Gadgets: files that run a command when pickle reads them


def text(value: object) -> bytes:
    data = str(value).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def raw_bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(callee: bytes, *arguments: bytes) -> bytes:
    return callee + b"(" + b"".join(arguments) + b"tR"


def texts(*values: object) -> bytes:
    return b"]" + b"".join(text(value) + b"a" for value in values)


def touching(mark: Path) -> bytes:
    return text(f"touch {mark}")


def python_touching(mark: Path) -> bytes:
    return text(f"__import__('pathlib').Path({str(mark)!r}).touch()")


def a_file_of_torch(mark: Path) -> bytes:
    """What torch.save writes, with a gadget for a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + call(SYSTEM, touching(mark)) + b".")
        archive.writestr("a/version", b"3\n")
    return buffer.getvalue()


SYSTEM = name("posix", "system")
LOAD_UNSAFELY = b"".join(
    (
        name("functools", "partial"),
        b"(" + name("torch", "load") + b"t",
        b"}" + text("weights_only") + b"\x89s",
        b"\x92",
    )
)
GADGETS: Mapping[str, Callable[[Path], bytes]] = {
    "os.system": lambda mark: call(SYSTEM, touching(mark)),
    "os.system by its name on the stack": lambda mark: call(
        text("posix") + text("system") + b"\x93", touching(mark)
    ),
    "os.system by INST": lambda mark: b"(" + touching(mark) + b"iposix\nsystem\n",
    "os.system by OBJ": lambda mark: b"(" + SYSTEM + touching(mark) + b"o",
    "os.system by an extension code": lambda mark: call(b"\x82\xf1", touching(mark)),
    "subprocess.Popen": lambda mark: call(
        call(name("operator", "methodcaller"), text("wait")),
        call(name("subprocess", "Popen"), texts("touch", mark)),
    ),
    "subprocess.check_output": lambda mark: call(
        name("subprocess", "check_output"), texts("touch", mark)
    ),
    "builtins.eval": lambda mark: call(name("builtins", "eval"), python_touching(mark)),
    "builtins.exec": lambda mark: call(name("builtins", "exec"), python_touching(mark)),
    "builtins.getattr of an import": lambda mark: call(
        call(
            name("builtins", "getattr"),
            call(name("builtins", "__import__"), text("os")),
            text("system"),
        ),
        touching(mark),
    ),
    "builtins.map in a list": lambda mark: call(
        name("builtins", "list"),
        call(name("builtins", "map"), SYSTEM, b"]" + touching(mark) + b"a"),
    ),
    "pickle.loads": lambda mark: call(
        name("_pickle", "loads"), raw_bytes(b"\x80\x03" + call(SYSTEM, touching(mark)) + b".")
    ),
    "torch.storage._load_from_bytes": lambda mark: call(
        name("torch.storage", "_load_from_bytes"), raw_bytes(a_file_of_torch(mark))
    ),
    "torch.load of bytes inside": lambda mark: call(
        LOAD_UNSAFELY, call(name("_io", "BytesIO"), raw_bytes(a_file_of_torch(mark)))
    ),
    "__setstate__ that was put there before": lambda mark: b"".join(
        (
            name("types", "SimpleNamespace") + b")\x81",
            b"}" + text("__setstate__") + SYSTEM + b"sb",
            touching(mark) + b"b",
        )
    ),
    "__setitem__ of the environment": lambda _: (
        name("os", "environ") + text("ESOGEN_GADGET") + text("1") + b"s"
    ),
    "append to the path of imports": lambda _: name("sys", "path") + text("/esogen-gadget") + b"a",
}


REFUSED = {"__setitem__ of the environment", "append to the path of imports"}
"""The others are read as data."""


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension("posix", "system", 241)
    yield
    copyreg.remove_extension("posix", "system", 241)


def has_run(mark: Path) -> bool:
    """Whether a gadget did what it is for; what it changed in this process is put back."""
    ran = mark.exists() or "ESOGEN_GADGET" in os.environ or "/esogen-gadget" in sys.path
    os.environ.pop("ESOGEN_GADGET", None)
    sys.path[:] = [place for place in sys.path if place != "/esogen-gadget"]
    mark.unlink(missing_ok=True)
    return ran


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("gadget", GADGETS)
def test_a_gadget_that_runs_in_pickle_is_data_here(gadget: str, ckpt: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    expression = GADGETS[gadget](mark)
    pickle.loads(b"\x80\x04" + expression + b".")
    assert has_run(mark), "the gadget is none"

    path = with_pickle(
        ckpt, tmp_path / "gadget.ckpt", lambda old: old[:-1] + text("x") + expression + b"s."
    )
    if gadget in REFUSED:
        with pytest.raises(CheckpointError, match="its pickle (sets items of|appends to) a Name"):
            read_lightning(path)
        assert not has_run(mark)
        return
    import_lightning(path, tmp_path / "made", raw=False, tokenizer=None)
    assert not has_run(mark)
    found = load_file(tmp_path / "made" / "model.safetensors")
    wanted = load_file(golden.folder("esolm-b") / "model.safetensors")
    assert all(torch.equal(found[each], wanted[each]) for each in wanted)


def test_a_gadget_in_place_of_a_tensor_is_refused_and_does_not_run(
    ckpt: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    state = b"}" + text("backbone.vocab_embed.embedding") + call(SYSTEM, touching(mark)) + b"s"
    path = with_pickle(
        ckpt, tmp_path / "a.ckpt", lambda old: old[:-1] + text("state_dict") + state + b"s."
    )
    with pytest.raises(CheckpointError, match="is something else than a tensor"):
        read_lightning(path, raw=True)
    assert not has_run(mark)


def with_pickle(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """A copy of an archive whose pickle is changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for each in old.namelist():
            data = old.read(each)
            new.writestr(each, change(data) if each.endswith("data.pkl") else data)
    return target


def test_a_call_of_a_nest_of_tuples_is_refused(ckpt: Path, tmp_path: Path) -> None:
    nest = b")" + b"\x85" * 200_000 + b")R"
    state = b"}" + text("backbone.vocab_embed.embedding") + nest + b"s"
    path = with_pickle(
        ckpt, tmp_path / "a.ckpt", lambda old: old[:-1] + text("state_dict") + state + b"s."
    )
    with pytest.raises(CheckpointError, match="is something else than a tensor"):
        read_lightning(path, raw=True)


# Archives that are made to do harm


def test_an_archive_that_would_unpack_to_gigabytes_is_refused(ckpt: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"]" * 100_000_000)
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="is compressed or encrypted"):
        read_lightning(path)
    assert ckpt.exists()


def test_an_archive_of_paths_that_lead_out_writes_nothing_there(ckpt: Path, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path = inside / "out.ckpt"
    with zipfile.ZipFile(ckpt) as old, zipfile.ZipFile(path, "w") as new:
        for each in old.namelist():
            new.writestr(each.replace("lightning/", "../../out/"), old.read(each))
        new.writestr("../../evil", b"evil")
        new.writestr(f"{tmp_path}/evil", b"evil")
    import_lightning(path, inside / "made", raw=False, tokenizer=None)
    found = sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*"))
    made = [f"a/b/made/{each}" for each in ("config.json", "model.safetensors")]
    assert found == ["a", "a/b", "a/b/made", *made, "a/b/out.ckpt"]


def test_entries_of_one_place_cannot_add_up_to_more_than_the_file(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    shared = torch.zeros(1_000_000)
    state = {f"backbone.x{i}": shared.view(1000, 1000) for i in range(50)}
    path = lightning_file(tmp_path / "a.ckpt", tiny_config, tiny_tensors, state_dict=state)
    with pytest.raises(CheckpointError, match="holds more numbers than it has bytes for"):
        read_lightning(path, raw=True)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "damaged"),
        (b"]", "damaged|no end|does not end"),
        (b"\x80\x04N", "damaged|does not end"),
        (b".", "damaged"),
        (b"(.", "takes a mark for a value"),
        (b"0.", "damaged"),
        (b"h\x05.", "damaged"),
        (b"t.", "ends a list that it never began"),
        (b"Na.", "damaged"),
        (b"NNa.", "appends to a NoneType"),
        (b"}]Ns.", "uses a list as a key"),
        (b"})" + b"\x85" * 5 + b"Ns.", "uses a tuple as a key"),
        (b"}I" + b"9" * 30 + b"\nNs.", "uses a int as a key"),
        (b"}I" + b"9" * 5000 + b"\nNs.", "damaged"),
        (b"\x8e" + b"\xff" * 7 + b"\x0f.", "damaged"),
        (b"\x8b\xff\xff\xff\x7f.", "damaged"),
        (b"(K\x01d.", "a key without a value"),
        (b"]}b.", "sets up a list"),
        (b"K\x01K\x02\x93.", "names an object by something else than texts"),
    ],
)
def test_a_pickle_that_is_damaged_is_told_so(program: bytes, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        read_pickle(program)


def test_a_text_of_an_old_pickle_is_read_as_it_stands_though_an_escape_is_unknown() -> None:
    assert read_pickle(b"S'a\\ub'\n.") == "a\\ub"


def test_pickles_made_to_grow_or_to_nest_do_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    read_pickle(b"]" * 200_000 + b"a" * 199_999 + b".")
    read_pickle(b")" + b"\x85" * 200_000 + b".")
    read_pickle(b")" + b"2\x86" * 200 + b".")  # as a tree it would have 2 ** 200 leaves
    read_pickle(b"Nr\xff\xff\xff\x7f.")
    with pytest.raises(PickleError, match="uses a tuple as a key"):
        read_pickle(b"}" + b")" + b"\x85" * 200_000 + b"Ns.")
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    with pytest.raises(PickleError, match="does not end within 1000 opcodes"):
        read_pickle(b"N" * 1000 + b".")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-(2**40), 2**40), inner)
        | st.sets(st.text())
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(4, 5))
def test_plain_data_are_read_as_pickle_reads_them(value: object, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@settings(max_examples=300)
@given(
    program=st.binary(max_size=60)
    | st.lists(st.sampled_from(pickletools.opcodes)).map(
        lambda codes: b"".join(code.code.encode("latin1") + b"\x01\n" for code in codes)
    )
)
def test_any_bytes_are_a_value_or_a_pickle_error(program: bytes) -> None:
    with suppress(PickleError):
        read_pickle(program)


def test_what_is_named_and_called_is_kept_to_be_read() -> None:
    found = read_pickle(b"\x80\x02" + call(SYSTEM, text("ls")) + b".")
    assert isinstance(found, Stub)
    assert (found.callee, found.arguments) == (Name("posix", "system"), ("ls",))
