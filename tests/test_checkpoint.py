"""Model folders: what is read, what is refused and in which words, what is written."""

import hashlib
import json
import re
import resource
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from esogen.checkpoint import resolve as resolver
from esogen.checkpoint.config_file import SCHEDULES, Card, CardDefaults, read_config, write_config
from esogen.checkpoint.folder import Checkpoint, open_checkpoint, save_checkpoint
from esogen.checkpoint.known import GPT2_VOCABULARY, PUBLISHED
from esogen.checkpoint.placement import choose_device, choose_dtype
from esogen.checkpoint.resolve import FILES, resolve
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import INV_FREQ, build, read_tensors, write_weights
from esogen.errors import CheckpointError, UsageError
from esogen.model.attention import Dense
from esogen.model.config import FAMILIES, Family, ModelConfig
from esogen.model.network import Network
from tests import golden
from tests.conftest import random_tensors

CPU = torch.device("cpu")


# config.json


def base(case: str) -> dict[str, object]:
    """The fields of a published config."""
    values: dict[str, object] = json.loads((golden.folder(case) / "config.json").read_text())
    return values


def config_with(folder: Path, case: str, changes: Mapping[str, object]) -> Path:
    """A published config with some fields changed; `...` takes a field away."""
    values = {key: value for key, value in {**base(case), **changes}.items() if value is not ...}
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_dialect_is_read(family: Family) -> None:
    model = read_config(golden.folder(family) / "config.json").model
    cond_dim = 128 if family == "ar" else 32
    block_size = 4 if family == "bd3lm" else 1
    assert model == ModelConfig(family, 98, 64, 64, 3, 4, cond_dim, 0.1, block_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_published_dialect(family: Family, tmp_path: Path) -> None:
    published = base(family)
    path = tmp_path / "config.json"
    write_config(path, read_config(golden.folder(family) / "config.json"), "float32")
    written = json.loads(path.read_text())
    left_out = {name for name in published if name not in written}
    assert left_out <= {
        "hidden_dim",
        "transformers_version",
        "var_min",
        "sampling_eps_min",
        "sampling_eps_max",
    }
    assert written == {name: value for name, value in published.items() if name not in left_out}


@st.composite
def cards(draw: st.DrawFn) -> Card:
    family = draw(st.sampled_from(FAMILIES))
    sizes = st.integers(1, 2**20)
    n_heads = draw(st.integers(1, 64))
    model = ModelConfig(
        family,
        vocab_size=draw(st.integers(2, 2**20)),
        model_length=draw(sizes),
        hidden_size=n_heads * 2 * draw(st.integers(1, 64)),
        n_blocks=draw(sizes),
        n_heads=n_heads,
        cond_dim=128 if family == "ar" else draw(sizes),
        dropout=draw(st.floats(0, 1, exclude_max=True)),
        block_size=draw(sizes) if family == "bd3lm" else 1,
    )
    defaults = CardDefaults(
        draw(st.none() | st.integers(1, model.model_length)),
        draw(st.none() | sizes),
        draw(st.none() | st.floats(0, 1)),
        draw(st.none() | st.sampled_from(SCHEDULES)),
    )
    training = draw(st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=3))
    return Card(model, defaults, training)


@given(card=cards())
def test_a_written_card_reads_as_the_same(
    card: Card, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("card") / "config.json"
    write_config(path, card, "bfloat16")
    assert read_config(path) == card


def test_defaults_that_are_not_given_are_none(tmp_path: Path) -> None:
    path = config_with(tmp_path, "esolm-b", {"esogen": {"sampling": {"alpha_0": 1}}})
    assert read_config(path).defaults == CardDefaults(alpha_0=1.0)
    assert read_config(golden.folder("esolm-b") / "config.json").defaults == CardDefaults()


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("esolm-b", {"model_type": "gpt2"}, 'model_type must be one of "EsoLM", .* found "gpt2"'),
        ("esolm-b", {"model_type": ...}, "model_type must be .* found no such field"),
        ("esolm-b", {"model_type": ["EsoLM"]}, "model_type must be"),
        ("esolm-b", {"hidden_size": ...}, "hidden_size must be a whole number .* no such field"),
        ("mdlm", {"hidden_dim": ..., "hidden_size": 64}, "hidden_dim must be .* no such field"),
        ("mdlm", {"cond_dim": ...}, "cond_dim must be .* no such field"),
        ("bd3lm", {"block_size": ...}, "block_size must be .* no such field"),
        ("esolm-b", {"vocab_size": "98"}, 'vocab_size must be a whole number .* found "98"'),
        ("ar", {"vocab_size": 1}, "vocab_size is 1; it must be a whole number of at least 2"),
        ("esolm-b", {"n_blocks": True}, "n_blocks must be a whole number .* found true"),
        ("esolm-b", {"n_heads": 0}, "n_heads must be a whole number .* found 0"),
        ("esolm-b", {"n_heads": 5}, "hidden_size is 64 and n_heads is 5; it must divide"),
        ("esolm-b", {"model_length": 10**40}, "model_length must be a whole number from 1 to"),
        ("esolm-b", {"dropout": 1}, "dropout is 1.0; it must be in"),
        ("esolm-b", {"dropout": None}, "dropout must be a number from 0 to 1, found null"),
        ("esolm-b", {"dropout": float("nan")}, "dropout must be .* found NaN"),
        ("esolm-b", {"mask_index": 0}, "mask_index must be 97 for this family, found 0"),
        ("mdlm", {"time_conditioning": True}, "time_conditioning must be false .* found true"),
        ("bd3lm", {"adaln": False}, "adaln must be true for this family, found false"),
        ("bd3lm", {"cross_attn": False}, "cross_attn must be true for this family, found false"),
        (
            "esolm-b",
            {"architectures": ["MDLM"]},
            r'architectures must be \["EsoLM"\], as model_type "EsoLM" says, found \["MDLM"\]',
        ),
        ("mdlm", {"architectures": "MDLM"}, r"architectures must be .* found \"MDLM\""),
        ("bd3lm", {"causal": True}, "causal must be false for this family, found true"),
        ("esolm-a", {"sequential_attn_mode": ...}, 'sequential_attn_mode must be "mixed", as in'),
        ("esolm-a", {"diffusion_attn_mode": "causal"}, 'diffusion_attn_mode .* found "causal"'),
        ("esolm-b", {"esogen": 3}, "esogen must be an object, found 3"),
        ("esolm-b", {"esogen": {"sampling": []}}, r"esogen\.sampling must be an object"),
        (
            "esolm-b",
            {"esogen": {"sampling": {"length": 65}}},
            r"esogen\.sampling\.length must be a whole number from 1 to 64, found 65",
        ),
        ("esolm-b", {"esogen": {"sampling": {"steps": 0.5}}}, r"sampling\.steps must be"),
        ("esolm-b", {"esogen": {"sampling": {"alpha_0": 1.5}}}, r"sampling\.alpha_0 must be"),
        (
            "esolm-b",
            {"esogen": {"sampling": {"schedule": "Random"}}},
            r'schedule must be one of random, blocks, streams, found "Random"',
        ),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    tmp_path: Path, case: str, changes: Mapping[str, object], message: str
) -> None:
    path = config_with(tmp_path, case, changes)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{message}") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_nobody_knows_are_kept_and_told(family: Family, tmp_path: Path) -> None:
    added = {"vocab_sise": 98, "use_flux": {"capacitor": True}, "architectures": ["Mine"]}
    card = read_config(config_with(tmp_path, family, added))
    assert card.unknown == {"vocab_sise": 98, "use_flux": {"capacitor": True}}
    write_config(tmp_path / "again.json", card, "float32")
    assert read_config(tmp_path / "again.json") == card
    assert read_config(golden.folder(family) / "config.json").unknown == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_config(path)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(list(range(100))))
    with pytest.raises(CheckpointError, match=r"wanted a JSON object, found \[0, 1, .*\.\.\.$"):
        read_config(path)


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_config(tmp_path)


# model.safetensors


def changed(folder: Path, tensors: Mapping[str, Tensor], changes: Mapping[str, object]) -> Path:
    """A weights file with some tensors changed; `...` takes a tensor away."""
    path = folder / "model.safetensors"
    kept = {
        f"backbone.{name}": tensor
        for name, tensor in {**tensors, **changes}.items()
        if isinstance(tensor, Tensor)
    }
    save_file(kept, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.norm1.weight": ...}, r"missing blocks\.0\.norm1\.weight;"),
        ({"head": torch.zeros(1)}, "extra head;"),
        (
            {"blocks.1.norm2.weight": torch.zeros(31)},
            r"misshapen blocks\.1\.norm2\.weight \[31\] instead of \[32\];",
        ),
        ({f"more.{i}": torch.zeros(1) for i in range(9)}, r"extra more\.0, .* and 6 more"),
        (
            {"blocks.0.attn_out.weight": ..., "head": torch.zeros(1)},
            r"missing blocks\.0\.attn_out\.weight; extra head;",
        ),
        ({"vocab_embed.embedding": torch.full((300, 32), torch.nan)}, "not all .* finite in vocab"),
        ({"blocks.0.norm1.weight": torch.full((32,), -torch.inf)}, "not all numbers are finite"),
        (
            {"blocks.0.norm1.weight": torch.ones(32, dtype=torch.int8)},
            r"blocks\.0\.norm1\.weight is I8; quantised",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path,
    tiny_config: ModelConfig,
    tiny_tensors: dict[str, Tensor],
    changes: Mapping[str, object],
    message: str,
) -> None:
    path = changed(tmp_path, tiny_tensors, changes)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{message}") as caught:
        read_tensors(path, tiny_config)
    assert "\n" not in str(caught.value)


def test_one_number_that_is_not_finite_is_found(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    weight = tiny_tensors["blocks.0.mlp.0.weight"].clone()
    weight[3, 5] = torch.nan
    path = changed(tmp_path, tiny_tensors, {"blocks.0.mlp.0.weight": weight})
    with pytest.raises(CheckpointError, match=r"finite in blocks\.0\.mlp\.0\.weight"):
        read_tensors(path, tiny_config)


def test_a_config_of_more_blocks_than_the_file_is_refused_at_once(tiny_folder: Path) -> None:
    config = ModelConfig("esolm-b", 300, 64, 32, 10_000_000, 2, 16)
    with pytest.raises(CheckpointError, match=r"holds 2 blocks, but the .* wants 10000000"):
        read_tensors(tiny_folder / "model.safetensors", config)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5_000, -1])
def test_a_weights_file_that_is_cut_short_is_refused(
    tmp_path: Path, tiny_folder: Path, tiny_config: ModelConfig, kept: int
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((tiny_folder / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"is cut short or damaged .* copy it again"):
        read_tensors(path, tiny_config)


@given(data=st.data())
def test_a_flipped_bit_in_the_header_never_crashes(
    data: st.DataObject,
    tiny_folder: Path,
    tiny_config: ModelConfig,
    tiny_tensors: dict[str, Tensor],
) -> None:
    content = bytearray((tiny_folder / "model.safetensors").read_bytes())
    (header,) = struct.unpack("<Q", content[:8])
    content[data.draw(st.integers(0, 8 + header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tiny_folder.parent / "flipped.safetensors"
    path.write_bytes(content)
    with suppress(CheckpointError):  # else the flip was in padding, metadata or a name's prefix
        assert read_tensors(path, tiny_config).keys() == tiny_tensors.keys()


def test_a_weights_file_that_cannot_be_read_is_named(
    tmp_path: Path, tiny_config: ModelConfig
) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "model.safetensors", tiny_config)


def test_names_of_a_compiled_network_are_read(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    path = tmp_path / "model.safetensors"
    names = {name: name.replace("blocks.", "blocks._orig_mod.") for name in tiny_tensors}
    save_file({f"_orig_mod.backbone.{names[n]}": t for n, t in tiny_tensors.items()}, path)
    assert read_tensors(path, tiny_config).keys() == tiny_tensors.keys()


def test_a_tensor_under_two_names_is_refused(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    name = "_orig_mod.vocab_embed.embedding"
    path = changed(tmp_path, tiny_tensors, {name: torch.zeros(300, 32)})
    with pytest.raises(CheckpointError, match=r"twice under two names: backbone.*embedding"):
        read_tensors(path, tiny_config)


def test_rotary_frequencies_that_a_file_lacks_are_computed(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    path = changed(tmp_path, tiny_tensors, {INV_FREQ: ...})
    tensors = read_tensors(path, tiny_config)
    network = build(tiny_config, tensors, folded=True, device=CPU, dtype=torch.bfloat16)
    assert torch.equal(network.rotary_emb.inv_freq, tiny_tensors[INV_FREQ])


# build


def log_probs(network: Network) -> Tensor:
    ids = torch.arange(60).view(2, 30)
    positions = torch.arange(30).expand(2, 30)
    logits: Tensor = network(ids, positions, Dense(causal=True))
    return logits[..., : network.config.mask_id].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_network_computes_what_the_unfolded_one_does(family: Family) -> None:
    config = ModelConfig(family, 300, 64, 32, 2, 2, 16)
    unfolded, folded = (
        build(config, random_tensors(config, 1), folded=folded, device=CPU, dtype=torch.float32)
        for folded in (False, True)
    )
    assert (log_probs(unfolded) - log_probs(folded)).abs().max() < golden.TOLERANCE


def test_building_empties_the_mapping_and_leaves_the_tensors(
    tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor]
) -> None:
    for folded in (False, True):
        before = {name: tensor.clone() for name, tensor in tiny_tensors.items()}
        given = dict(tiny_tensors)
        network = build(tiny_config, given, folded=folded, device=CPU, dtype=torch.float32)
        assert not given
        assert all(torch.equal(before[name], tiny_tensors[name]) for name in before)
        places = {tensor.data_ptr() for tensor in network.state_dict().values()}
        assert not places & {tensor.data_ptr() for tensor in tiny_tensors.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_built_network_is_ready_to_sample_from(
    tiny_config: ModelConfig, tiny_tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    network = build(tiny_config, dict(tiny_tensors), folded=True, device=CPU, dtype=dtype)
    state = network.state_dict()
    assert state.pop(INV_FREQ).dtype == torch.float32
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert log_probs(network).isfinite().all()


def test_building_holds_little_more_than_the_finished_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig("esolm-b", 4000, 64, 64, 12, 2, 16)
    path = tmp_path / "model.safetensors"
    write_weights(path, random_tensors(config, 2), torch.float32)
    tensors = read_tensors(path, config)
    largest = max(tensor.nbytes for tensor in tensors.values())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        network = build(config, tensors, folded=True, device=CPU, dtype=torch.bfloat16)
    finished = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert peak_bytes(profile) < 1.15 * finished + largest


def peak_bytes(profile: torch.profiler.profile) -> int:
    """Greatest sum of what was allocated and not yet freed, from the allocator's own events."""
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [
        (event.start_ns(), event.nbytes())  # type: ignore[union-attr]
        for event in events
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


# folders


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_a_saved_folder_opens_as_what_was_saved(
    tiny_checkpoint: Checkpoint,
    tiny_folder: Path,
    tiny_config: ModelConfig,
    tiny_tensors: dict[str, Tensor],
) -> None:
    assert tiny_checkpoint.config == tiny_config
    assert tiny_checkpoint.defaults == CardDefaults(length=48, steps=12)
    assert tiny_checkpoint.name == str(tiny_folder)
    wanted = build(tiny_config, dict(tiny_tensors), folded=True, device=CPU, dtype=torch.float32)
    assert torch.equal(log_probs(tiny_checkpoint.network), log_probs(wanted))
    assert sorted(path.name for path in tiny_folder.iterdir()) == sorted(FILES)


def test_saved_weights_have_the_published_names_and_the_precision_asked_for(
    tmp_path: Path,
    tiny_config: ModelConfig,
    tiny_tensors: dict[str, Tensor],
    tiny_tokenizer: Tokenizer,
) -> None:
    save_checkpoint(
        tmp_path / "a" / "b", Card(tiny_config), tiny_tensors, tiny_tokenizer, torch.bfloat16
    )
    stored = load_file(tmp_path / "a" / "b" / "model.safetensors")
    assert stored.keys() == {f"backbone.{name}" for name in tiny_tensors}
    assert stored.pop(f"backbone.{INV_FREQ}").dtype == torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_the_revision_is_the_digest_of_the_weights(
    tiny_checkpoint: Checkpoint, tiny_folder: Path
) -> None:
    digest = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    assert tiny_checkpoint.revision == digest[:12]


def test_the_revision_of_weights_that_were_replaced_since_is_unknown(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder), device=CPU, dtype=torch.float32)
    gone = open_checkpoint(str(folder), device=CPU, dtype=torch.float32)
    write_weights(folder / "model.safetensors", random_tensors(checkpoint.config, 9), torch.float32)
    assert checkpoint.revision == "unknown"
    (folder / "model.safetensors").unlink()
    assert gone.revision == "unknown"


@contextmanager
def full_disk() -> Iterator[None]:
    """Stands for a full disk: no file of more than 10 kB can be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(folder: Path, tiny_tensors: dict[str, Tensor]) -> None:
    path = folder / "model.safetensors"
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"safetensors cannot be written: .*too large"):
        write_weights(path, tiny_tensors, torch.float32)
    assert path.read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)


# names


def test_a_folder_is_found_by_its_path(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tiny_folder / "model.safetensors"
    assert resolve(str(tiny_folder)).weights == weights
    monkeypatch.chdir(tiny_folder.parent)
    assert resolve("./tiny").weights.samefile(weights)
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert resolve("~/tiny").weights == weights


def test_a_folder_comes_before_a_hub_repository_of_its_name(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "somebody" / "tiny")
    monkeypatch.chdir(tmp_path)
    found = resolver.explain("somebody/tiny")
    assert found.place == Path("somebody/tiny")
    assert found.steps == (
        "no built-in name",
        "no short name of a published model",
        "a folder",
    )
    assert resolver.explain("somebody/other").steps[-1] == (
        "the hub repository somebody/other at main"
    )


def test_short_names_are_no_repositories_and_name_one_each() -> None:
    assert set(PUBLISHED) == {"eso-1", "eso-0.25", "mdlm", "bd3lm-4", "bd3lm-8", "bd3lm-16"}
    assert not any("/" in name for name in (*PUBLISHED, *resolver.BUILT_IN))
    assert not set(PUBLISHED) & set(resolver.BUILT_IN)
    places = [resolver.explain(name).place for name in PUBLISHED]
    assert [str(place) for place in places] == [f"{e.repository}@main" for e in PUBLISHED.values()]


@pytest.mark.parametrize("family", ["esolm-b", "mdlm", "bd3lm"])
def test_the_parameters_that_the_table_names_are_those_of_the_network(family: Family) -> None:
    with torch.device("meta"):
        network = Network(ModelConfig(family, GPT2_VOCABULARY, 1024, 768, 12, 12, 128))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert {entry.parameters for entry in PUBLISHED.values()} == {parameters}


def test_a_built_in_name_comes_before_a_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "BUILT_IN", {"pocket": tiny_folder})
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("pocket").config == tiny_folder / "config.json"


def test_the_default_model_is_built_in() -> None:
    assert resolver.DEFAULT_MODEL in resolver.BUILT_IN


@pytest.mark.parametrize(
    "name", ["", "owner/name/more", "nowhere", "~nobody-here/x", "a\0b", "x" * 5000]
)
def test_a_name_of_nothing_says_what_can_be_named(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert "neither a built-in model nor a folder here" in str(caught.value)
    assert "a built-in name (stories), a short name (eso-1, " in str(caught.value)
    assert "a folder that holds config.json" in str(caught.value)
    assert "or a hub repository as owner/name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_built_in_name_is_put_right() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'stories'"):
        resolve("storys")
    with pytest.raises(CheckpointError, match="did you mean 'eso-0.25'"):
        resolve("eso-025")


def test_a_misspelt_folder_is_put_right(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"did you mean '{tiny_folder}'"):
        resolve(str(tiny_folder.parent / "tyni"))


def test_a_file_is_no_model(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"safetensors' is a file; wanted a built-in name"):
        resolve(str(tiny_folder / "model.safetensors"))


def test_a_folder_that_lacks_files_says_which_and_what_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(
        CheckpointError,
        match=r"lacks model\.safetensors and tokenizer\.json: .* holds config\.json, vocab\.json$",
    ):
        resolve(str(folder))


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds nothing$"):
        resolve(str(tmp_path))


# device and precision


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_used() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("word", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_here_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError, match=f"'{word}', but torch finds no GPU here; use cpu or auto"):
        choose_device(word)


def test_a_driver_that_is_too_old_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "The NVIDIA driver on your system is too old (found version 11040)"

    def is_available() -> bool:
        words = f"CUDA initialization: {reason}. Please update your GPU driver by downloading ..."
        warnings.warn(words, UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    told: list[str] = []
    assert choose_device("auto", told.append) == choose_device("cpu", told.append) == CPU
    assert told == [f"device is cpu, for torch cannot use the GPU: {reason}"]
    with pytest.raises(UsageError, match=r"no GPU here \(The NVIDIA driver .*11040\)\); use cpu"):
        choose_device("cuda")


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_chosen_by_number() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="the GPUs here are cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("gpu", "cuda"),
        ("CUDA", "cuda"),
        ("cuda1", "cuda"),
        ("cuda:x", "cuda"),
        ("cuda:", "cuda"),
        ("cpus", "cpu"),
        ("Auto", "auto"),
    ],
)
def test_an_unknown_device_names_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"must be one of auto, cuda, .* did you mean {hint}"):
        choose_device(word)


@pytest.mark.parametrize(
    ("word", "dtype"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)],
)
def test_a_precision_is_chosen_by_its_word(word: str, dtype: torch.dtype) -> None:
    assert choose_dtype(word, CPU) == dtype


@pytest.mark.parametrize(
    ("word", "hint"), [("bfloat16", "bf16"), ("float", "fp32"), ("f16", "fp16")]
)
def test_an_unknown_precision_names_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"must be one of auto, .* did you mean {hint}"):
        choose_dtype(word, CPU)


def test_a_word_that_is_near_to_nothing_gets_no_hint() -> None:
    with pytest.raises(UsageError, match=r"it must be one of auto, bf16, fp16, fp32$"):
        choose_dtype("zzz", CPU)


@pytest.mark.cuda
def test_a_gpu_uses_half_precision_of_its_own() -> None:
    device = choose_device("auto")
    assert device.type == "cuda"
    assert choose_dtype("auto", device) in {torch.bfloat16, torch.float16}
