"""Models from the hub: the real client against a hub on loopback, with all that can go wrong."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from esogen.checkpoint.folder import open_checkpoint
from esogen.checkpoint.hub import Unwatched, fetch
from esogen.checkpoint.hub_cache import Reference, cached
from esogen.checkpoint.inventory import cached_models, remove_cached
from esogen.checkpoint.pins import pins_folder, read_pin
from esogen.checkpoint.resolve import resolve, resolve_here
from esogen.errors import CheckpointError
from tests import golden
from tests.hub_fixtures import PUBLISHED, TINY, Home, Offline
from tests.loopback_hub import LoopbackHub, Repository, Trouble, sha256

CPU = torch.device("cpu")
REFERENCE = Reference(TINY)
WEIGHTS = "model.safetensors"


class Told:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def status(self, text: str) -> None:
        self.shown.append(text)

    def clear(self) -> None:
        self.shown.append("")


def blobs(home: Home) -> set[str]:
    """The names of the cached contents: digests, and what is half done."""
    return {path.name for path in home.cache.glob("models--*/blobs/*")}


def refused(name: str = TINY) -> str:
    """What is said when a model cannot be had: one line."""
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The first time, and the second


def test_a_model_is_downloaded_and_opens(hub: LoopbackHub) -> None:
    model = open_checkpoint(TINY, device=CPU, dtype=torch.float32)
    commit = hub.repositories[TINY].refs["main"]
    assert (model.name, model.files.commit) == (TINY, commit)
    assert model.files.weights.read_bytes() == hub.repositories[TINY].commits[commit][WEIGHTS]
    assert model.revision == sha256(model.files.weights.read_bytes())[:12]


@pytest.mark.usefixtures("home")
def test_a_cached_model_is_found_without_a_request(hub: LoopbackHub) -> None:
    first = resolve(TINY)
    before = len(hub.requests)
    assert resolve(TINY) == first
    assert len(hub.requests) == before


def test_a_cached_model_opens_when_the_server_is_down(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, offline: Offline
) -> None:
    from huggingface_hub import constants

    first = resolve(TINY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve(TINY) == first
    offline()
    assert resolve(TINY) == first
    assert not hub.asked("no such")


def test_only_the_files_of_a_model_are_asked_for_and_no_code(hub: LoopbackHub) -> None:
    resolve(TINY)
    files = {line.rsplit("/", 1)[1] for line in hub.asked("/resolve/")}
    assert files == {"config.json", WEIGHTS, "tokenizer.json"}
    assert not hub.asked("model.py")


def test_what_comes_and_how_many_bytes_is_said_before_it_comes(hub: LoopbackHub) -> None:
    told = Told()
    resolve(TINY, told)
    files = hub.repositories[TINY].commits[hub.repositories[TINY].refs["main"]]
    total = sum(len(files[name]) for name in (WEIGHTS, "tokenizer.json"))
    (line,) = told.said
    assert f"({total} bytes)" in line
    assert hub.repositories[TINY].refs["main"][:12] in line
    assert any(text.startswith("[######") and "100%" in text for text in told.shown)
    assert told.shown[-1] == ""


def test_large_files_are_fetched_from_the_second_host_without_the_token(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    resolve(TINY)
    sent = {line: headers.get("authorization") for line, headers in hub.headers}
    assert all(value is None for line, value in sent.items() if "/cdn/" in line)
    assert {value for line, value in sent.items() if "/api/models" in line} == {"Bearer hf_right"}


# Which commit


def second_commit(hub: LoopbackHub, tiny_files: Mapping[str, bytes]) -> str:
    config = json.loads(tiny_files["config.json"]) | {"esogen": {"sampling": {"length": 7}}}
    return hub.repositories[TINY].commit({**tiny_files, "config.json": json.dumps(config).encode()})


def test_the_commit_is_kept_until_an_update_is_asked_for(
    hub: LoopbackHub, tiny_files: Mapping[str, bytes]
) -> None:
    first = hub.repositories[TINY].refs["main"]
    resolve(TINY)
    second = second_commit(hub, tiny_files)
    assert resolve(TINY).commit == first
    weights = len(hub.asked("/cdn/"))
    assert fetch(REFERENCE, Unwatched(), update=True).commit == second
    assert resolve(TINY).commit == second
    assert len(hub.asked("/cdn/")) == weights  # the same weights: by their etag they are here


def test_new_weights_under_an_old_name_are_known_by_their_etag(
    hub: LoopbackHub, home: Home, tiny_files: Mapping[str, bytes]
) -> None:
    old = resolve(TINY).weights
    before = old.read_bytes()
    changed = before[:-1] + bytes([before[-1] ^ 1])
    hub.repositories[TINY].commit({**tiny_files, WEIGHTS: changed})
    fetch(REFERENCE, Unwatched(), update=True)
    assert resolve(TINY).weights.read_bytes() == changed
    assert old.read_bytes() == before
    assert {sha256(before), sha256(changed)} <= blobs(home)


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    hub: LoopbackHub, tiny_files: Mapping[str, bytes]
) -> None:
    first = hub.repositories[TINY].refs["main"]
    second = second_commit(hub, tiny_files)
    hub.repositories[TINY].refs["refs/pr/1"] = first
    assert resolve(TINY).commit == second
    assert resolve(f"{TINY}@refs/pr/1").commit == first
    assert resolve(f"{TINY}@{first}").commit == first


def test_the_pin_says_where_and_when_and_what(hub: LoopbackHub) -> None:
    resolve(TINY)
    pin = read_pin(str(REFERENCE))
    assert pin is not None
    assert (pin.commit, pin.endpoint) == (hub.repositories[TINY].refs["main"], hub.endpoint)
    assert pin.files[WEIGHTS].digest.startswith("sha256:")
    assert time.strptime(pin.resolved[:19], "%Y-%m-%dT%H:%M:%S")


def test_a_damaged_pin_says_which_file_to_delete(hub: LoopbackHub) -> None:
    resolve(TINY)
    (path,) = pins_folder().glob("*.json")
    for content in ("{", "[]", '{"name": 1}', '{"files": {"a": {"size": true}}}'):
        path.write_text(content)
        assert refused().startswith(f"{path} holds no pinned commit")
    path.unlink()
    assert resolve(TINY).commit == hub.repositories[TINY].refs["main"]


def test_what_another_tool_downloaded_is_used_without_a_request(hub: LoopbackHub) -> None:
    from huggingface_hub import hf_hub_download

    for name in ("config.json", WEIGHTS, "tokenizer.json"):
        hf_hub_download(TINY, name)
    before = len(hub.requests)
    assert resolve(TINY).commit == hub.repositories[TINY].refs["main"]
    assert len(hub.requests) == before


def test_what_esogen_downloaded_other_tools_find(hub: LoopbackHub) -> None:
    from huggingface_hub import hf_hub_download

    files = resolve(TINY)
    before = len(hub.asked("/cdn/"))
    assert Path(hf_hub_download(TINY, WEIGHTS, revision=files.commit)) == files.weights
    assert len(hub.asked("/cdn/")) == before


def test_a_name_that_a_file_gave_is_found_in_the_cache_and_never_downloaded(
    hub: LoopbackHub,
) -> None:
    with pytest.raises(CheckpointError, match="esogen models pull somebody/tiny gets it"):
        resolve_here(TINY)
    assert not hub.requests
    assert resolve(TINY) == resolve_here(TINY)


# The tokenizer that published checkpoints lack


@pytest.fixture
def published(hub: LoopbackHub, gpt2_files: Mapping[str, Mapping[str, bytes]]) -> LoopbackHub:
    for name, files in gpt2_files.items():
        hub.add(name, files)
    return hub


def test_a_short_name_brings_gpt2s_tokenizer_and_what_it_was_trained_for(
    published: LoopbackHub,
) -> None:
    model = open_checkpoint("eso-0.25", device=CPU, dtype=torch.float32)
    assert model.files.tokenizer_from == "openai-community/gpt2"
    assert model.tokenizer.decode(model.tokenizer.encode("hello you")) == "hello you"
    assert model.defaults.alpha_0 == 0.25
    assert published.asked(f"{PUBLISHED}/resolve/")
    before = len(published.requests)
    assert resolve("eso-0.25") == model.files
    assert len(published.requests) == before


def test_a_folder_in_the_published_layout_gets_gpt2s_tokenizer_too(
    published: LoopbackHub, gpt2_files: Mapping[str, Mapping[str, bytes]], tmp_path: Path
) -> None:
    for name, data in gpt2_files[PUBLISHED].items():
        (tmp_path / name).write_bytes(data)
    files = resolve(str(tmp_path))
    assert files.tokenizer.read_bytes() == gpt2_files["openai-community/gpt2"]["tokenizer.json"]
    assert published.asked("openai-community/gpt2/resolve/")


def test_without_the_tokenizer_and_offline_its_command_is_named(
    published: LoopbackHub,
    gpt2_files: Mapping[str, Mapping[str, bytes]],
    tmp_path: Path,
    offline: Offline,
) -> None:
    for name, data in gpt2_files[PUBLISHED].items():
        (tmp_path / name).write_bytes(data)
    offline()
    line = refused(str(tmp_path))
    assert "the cache lacks tokenizer.json of openai-community/gpt2" in line
    assert line.endswith("HF_HUB_OFFLINE=0 hf download openai-community/gpt2 tokenizer.json")
    assert not published.requests


def test_another_vocabulary_without_a_tokenizer_is_refused(hub: LoopbackHub) -> None:
    case = golden.folder("esolm-b")
    files = {name: (case / name).read_bytes() for name in ("config.json", WEIGHTS)}
    hub.add("somebody/bare", files)
    line = refused("somebody/bare")
    assert "carries no tokenizer.json, and its vocabulary is not GPT-2's" in line
    assert not hub.asked("/cdn/")


# What cannot be had


def test_no_network_and_not_cached_says_what_is_missing_and_the_command(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = refused()
    assert line.startswith("no answer from http://127.0.0.1:9 (ConnectError: ")
    assert "the cache lacks config.json and model.safetensors of somebody/tiny" in line
    assert line.endswith("run esogen models pull somebody/tiny")
    assert not hub.requests


def test_offline_by_request_says_so(hub: LoopbackHub, offline: Offline) -> None:
    resolve(TINY).weights.unlink()
    before = len(hub.requests)
    offline()
    line = refused()
    assert line.startswith("the cache lacks model.safetensors of somebody/tiny, and HF_HUB_OFFLINE")
    assert line.endswith("run HF_HUB_OFFLINE=0 esogen models pull somebody/tiny")
    assert len(hub.requests) == before


def test_gated_and_private_repositories_say_to_log_in(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[TINY].gated = True
    assert "somebody/tiny is gated: accept its terms at http://127.0.0.1" in refused()
    assert "hf auth login" in refused()
    hub.repositories[TINY].gated, hub.repositories[TINY].private = False, True
    assert "no repository somebody/tiny" in refused()
    assert refused().endswith("or it is private; check the name, or log in with hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "refuses somebody/tiny to you (401)" in refused()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert resolve(TINY).commit


def test_a_repository_that_is_not_there_is_named(hub: LoopbackHub) -> None:
    assert "there is no repository somebody/nothing at http://127.0.0.1" in refused(
        "somebody/nothing"
    )
    assert hub.asked("/api/models/somebody/nothing")


def test_a_revision_that_is_not_there_is_named(hub: LoopbackHub) -> None:
    assert refused(f"{TINY}@v9").startswith("somebody/tiny has no revision 'v9', or not any more;")
    resolve(TINY)
    gone = hub.repositories[TINY]
    hub.repositories[TINY] = Repository(refs=gone.refs)
    resolve(TINY).weights.unlink()
    assert refused().endswith("run esogen models pull somebody/tiny --update")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, "has had too many requests from here (429); wait some minutes"),
        (503, "answered 503, and the cache lacks config.json and model.safetensors"),
        (500, "answered 500, and the cache lacks"),
        (403, "refuses somebody/tiny to you (403); log in with hf auth login"),
    ],
)
def test_an_answer_that_is_no_model_is_told(hub: LoopbackHub, status: int, said: str) -> None:
    hub.troubles.append(Trouble("/api/models", status=status))
    assert said in refused()
    assert resolve(TINY).commit


def test_something_else_than_a_hub_is_told(hub: LoopbackHub) -> None:
    hub.troubles.append(Trouble("/api/models", status=200))
    assert "came damaged (Expecting value" in refused()


def test_another_kind_of_model_is_refused_before_its_weights_come(
    hub: LoopbackHub, tiny_files: Mapping[str, bytes]
) -> None:
    hub.add("somebody/gpt2", {**tiny_files, "config.json": b'{"model_type": "gpt2"}'})
    line = refused("somebody/gpt2")
    assert "somebody/gpt2 is no model that esogen can read; of its config.json: model_type" in line
    assert 'found "gpt2"' in line
    assert not hub.asked("/cdn/")


def test_weights_in_another_form_are_refused(hub: LoopbackHub) -> None:
    hub.add("somebody/pickled", {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    line = refused("somebody/pickled")
    assert "it lacks model.safetensors and holds config.json, pytorch_model.bin;" in line
    assert not hub.asked("/resolve/")


# What breaks on the way


def test_a_cut_connection_is_resumed_where_it_broke(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # it keeps whole chunks only
    hub.troubles.append(Trouble("GET /cdn/", cut=50_000))
    told = Told()
    files = resolve(TINY, told)
    ranges = [headers.get("range") for line, headers in hub.headers if line.startswith("GET /cdn/")]
    assert ranges[0] is None
    assert len([each for each in ranges if each]) == 1
    assert 0 < int(str(ranges[1]).removeprefix("bytes=").removesuffix("-")) <= 50_000
    assert files.weights.read_bytes() == hub.large(files.weights.resolve().name)
    assert any("Trying to resume download" in line for line in told.said)


def test_a_busy_server_is_asked_again(hub: LoopbackHub) -> None:
    busy = Trouble(f"HEAD /{TINY}/resolve", status=503)
    limited = Trouble("GET /cdn/", status=429, header=("Retry-After", "0"))
    hub.troubles += [busy, limited]
    assert resolve(TINY).commit
    assert not busy.times
    assert not limited.times


def test_a_file_of_the_wrong_length_is_thrown_away(hub: LoopbackHub, home: Home) -> None:
    hub.troubles.append(Trouble("GET /cdn/", shorter=100))
    line = refused()
    assert "model.safetensors of somebody/tiny came damaged (Consistency check failed" in line
    assert line.endswith("run esogen models pull somebody/tiny again")
    assert not {name for name in blobs(home) if len(name) == 64}
    assert read_pin(str(REFERENCE)) is None
    assert resolve(TINY).weights.exists()


def test_wrong_bytes_of_the_right_length_are_thrown_away(hub: LoopbackHub, home: Home) -> None:
    hub.troubles.append(Trouble("GET /cdn/", flip=True))
    line = refused()
    assert (
        "model.safetensors of somebody/tiny came damaged: it is not what the hub's digest" in line
    )
    assert not {name for name in blobs(home) if len(name) == 64}
    assert open_checkpoint(TINY, device=CPU, dtype=torch.float32).revision != "unknown"


def test_a_file_that_shrank_in_the_cache_is_downloaded_again(hub: LoopbackHub) -> None:
    weights = resolve(TINY).weights
    whole = weights.read_bytes()
    weights.resolve().write_bytes(whole[:1000])
    held = cached(REFERENCE)
    assert held
    assert held.missing() == [WEIGHTS]
    assert resolve(TINY).weights.read_bytes() == whole
    assert len(hub.asked("GET /cdn/")) == 2


def test_a_pull_finds_a_flipped_bit_in_the_cache_and_mends_it(hub: LoopbackHub) -> None:
    weights = resolve(TINY).weights
    whole = weights.read_bytes()
    fetch(REFERENCE, Unwatched(), check=True)
    before = len(hub.requests)
    weights.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fetch(REFERENCE, Unwatched(), check=True).weights == weights
    assert weights.read_bytes() == whole
    assert len(hub.requests) > before


def test_a_full_disk_is_told_before_anything_comes(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "1.0 kB free and the download takes" in refused()
    assert not hub.asked("/cdn/")


# Processes


def run_esogen(
    home: Home, hub: LoopbackHub, *words: str, prefix: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "esogen", *words],
        env=home.environment(hub) | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_pull_the_same_model_at_once(hub: LoopbackHub, home: Home) -> None:
    both = [run_esogen(home, hub, "models", "pull", TINY) for _ in range(2)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert [code for *_, code in ended] == [0, 0], ended
    assert ended[0][0] == ended[1][0]
    assert "\x1b" not in ended[0][1]
    folder = Path(ended[0][0].strip())
    assert (folder / WEIGHTS).read_bytes() == hub.large((folder / WEIGHTS).resolve().name)
    assert not [name for name in blobs(home) if "incomplete" in name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_download_leaves_a_cache_that_the_next_run_repairs(
    hub: LoopbackHub, home: Home, number: signal.Signals
) -> None:
    hold = threading.Event()
    hub.troubles.append(Trouble("GET /cdn/", hold=hold))
    process = run_esogen(home, hub, "models", "pull", TINY)
    while not hub.asked("GET /cdn/"):
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    hold.set()
    assert (out, process.returncode) == ("", 130), err
    assert err.splitlines()[-1] == "esogen: interrupted"
    assert not [name for name in blobs(home) if "incomplete" in name or len(name) == 64]
    assert resolve(TINY).weights.exists()


def test_a_disk_that_takes_no_more_is_told_and_the_next_run_repairs(
    hub: LoopbackHub, home: Home
) -> None:
    limit = ("sh", "-c", 'ulimit -f 100; exec "$@"', "sh")  # no file of more than 51 kB
    process = run_esogen(home, hub, "models", "pull", TINY, prefix=limit)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 1)
    assert "esogen: the disk is full: model.safetensors of somebody/tiny did not fit" in err
    assert not [name for name in blobs(home) if "incomplete" in name or len(name) == 64]
    assert resolve(TINY).weights.exists()


def test_a_sample_downloads_and_the_next_one_needs_no_server(hub: LoopbackHub, home: Home) -> None:
    words = ("sample", "-m", TINY, "--seed", "1", "-L", "12", "--dtype", "fp32", "Once")
    out, err = run_esogen(home, hub, *words).communicate(timeout=60)
    assert "downloading " in err
    nowhere = LoopbackHub(endpoint="http://127.0.0.1:9")
    assert run_esogen(home, nowhere, *words).communicate(timeout=60)[0] == out


# What is there, and taking it away


def test_cached_models_are_listed_and_removed(hub: LoopbackHub, home: Home) -> None:
    from huggingface_hub import hf_hub_download

    resolve(TINY)
    hub.add("somebody/else", {"config.json": b'{"model_type": "bert"}', WEIGHTS: b"x"})
    for name in ("config.json", WEIGHTS):
        hf_hub_download("somebody/else", name)
    (found,) = cached_models()
    assert found.repository == TINY
    assert found.size >= (found.snapshot / WEIGHTS).stat().st_size
    assert abs(found.used - time.time()) < 3600
    assert remove_cached(TINY) >= found.size
    assert not list(cached_models())
    assert read_pin(str(REFERENCE)) is None
    assert (home.cache / "models--somebody--else").is_dir()
    assert remove_cached(TINY) == 0


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "a/b/c",
        "../b",
        "a/..",
        "a/b@",
        "a/b@../c",
        "-a/b",
        "a /b",
        "a/b\n",
        "a--b/c",
        "~/x",
    ],
)
def test_what_cannot_be_a_repository_is_none(name: str) -> None:
    assert Reference.parse(name) is None
