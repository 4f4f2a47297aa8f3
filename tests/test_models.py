"""`esogen models` and `esogen doctor`: what they print, ask, write and refuse."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from esogen import doctor as doctor_module
from esogen.checkpoint.resolve import resolve
from esogen.doctor import Finding, examine
from tests import golden
from tests.calls import Esogen, Result, call
from tests.hub_fixtures import PUBLISHED, TINY, Home, Offline
from tests.loopback_hub import LoopbackHub

WEIGHTS = "model.safetensors"


@pytest.fixture
def esogen() -> Esogen:
    """Calls `esogen` in this process, without a terminal."""
    return call


def facts(result: Result) -> Mapping[str, str]:
    """What `models show` printed, by its labels."""
    return {line[:20].strip(): line[20:] for line in result.stdout.splitlines()}


# pull, show, list, remove


def test_a_pull_says_what_comes_and_prints_the_folder(hub: LoopbackHub, esogen: Esogen) -> None:
    result = esogen("models", "pull", TINY)
    commit = hub.repositories[TINY].refs["main"]
    assert result.code == 0
    assert result.stdout == f"{resolve(TINY).weights.parent}\n"
    first, second = result.stderr.splitlines()
    assert re.match(
        r"downloading 2\d\d\.\d kB \(\d+ bytes\) into /.*/hub: somebody/tiny at ", first
    )
    assert second == f"somebody/tiny is complete at {commit}"
    before = len(hub.requests)
    assert esogen("models", "pull", TINY).stderr == second + "\n"
    assert len(hub.requests) == before
    assert esogen("models", "pull", TINY, "--quiet").stderr == ""


def test_a_pull_updates_only_when_asked(
    hub: LoopbackHub, esogen: Esogen, tiny_files: Mapping[str, bytes]
) -> None:
    first = esogen("models", "pull", TINY).stdout
    newer = hub.repositories[TINY].commit({**tiny_files, "README.md": b"newer"})
    assert esogen("models", "pull", TINY).stdout == first
    updated = esogen("models", "pull", "--update", TINY)
    assert updated.stdout.rstrip().endswith(newer)
    assert esogen("models", "pull", TINY).stdout == updated.stdout


def test_a_pull_offline_of_what_is_there_succeeds_and_of_what_is_not_tells_the_command(
    hub: LoopbackHub, esogen: Esogen, offline: Offline
) -> None:
    esogen("models", "pull", TINY)
    offline()
    assert esogen("models", "pull", TINY).code == 0
    result = esogen("models", "pull", "somebody/else")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == (
        "esogen: the cache lacks config.json and model.safetensors of somebody/else, and"
        " HF_HUB_OFFLINE forbids to get it; with a network, run HF_HUB_OFFLINE=0 esogen models"
        " pull somebody/else\n"
    )
    assert not hub.asked("somebody/else")


def test_show_explains_a_name_and_downloads_nothing(
    hub: LoopbackHub, esogen: Esogen, gpt2_files: Mapping[str, Mapping[str, bytes]]
) -> None:
    shown = esogen("models", "show", "eso-0.25")
    assert "resolved            1. no built-in name\n" in shown.stdout
    assert f"resolved            2. short for {PUBLISHED}\n" in shown.stdout
    assert facts(shown)["not in the cache"] == f"all of it; esogen models pull {PUBLISHED}"
    assert not hub.requests
    for name, files in gpt2_files.items():
        hub.add(name, files)
    resolve("eso-0.25")
    before = len(hub.requests)
    found = facts(esogen("models", "show", "eso-0.25"))
    assert found["commit"] == hub.repositories[PUBLISHED].refs["main"]
    assert hub.endpoint in found["resolved at"]
    assert (found["family"], found["dtype"], found["vocab_size"]) == ("esolm-b", "F16", "50258")
    assert found["tokenizer"].startswith("openai-community/gpt2, /")
    assert found["licence"] == "see its page"
    assert found["default alpha_0"] == "0.25"
    assert len(hub.requests) == before


def test_show_tells_the_fields_that_nobody_knows(
    tiny_folder: Path, tmp_path: Path, esogen: Esogen
) -> None:
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_sise": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert facts(esogen("models", "show", str(tmp_path)))["unknown field"] == "vocab_sise = 3"


def test_the_list_has_built_in_cached_and_published_models(
    hub: LoopbackHub, esogen: Esogen
) -> None:
    esogen("models", "pull", TINY)
    before = len(hub.requests)
    rows = {line.split()[0]: line for line in esogen("models", "list").stdout.splitlines()}
    assert list(rows) == [
        *("name", "stories", "eso-1", "eso-0.25", "mdlm", "bd3lm-4", "bd3lm-8", "bd3lm-16"),
        TINY,
    ]
    assert rows[TINY].endswith("hub, in the cache")
    assert "169,627,218" in rows["eso-1"]
    assert "not downloaded" in rows["eso-1"]
    assert len(hub.requests) == before


def test_remove_asks_and_removes_only_then(hub: LoopbackHub, home: Home, esogen: Esogen) -> None:
    esogen("models", "pull", TINY)
    refused = esogen("models", "remove", TINY)
    assert refused.code == 2
    assert "There is no terminal to ask on; give --yes" in refused.stderr
    assert resolve(TINY).weights.exists()
    screen, code = on_a_terminal(home, hub, "models", "remove", TINY, answer="n\n")
    assert "Remove somebody/tiny (" in screen
    assert code == 0
    assert resolve(TINY).weights.exists()
    assert on_a_terminal(home, hub, "models", "remove", TINY, answer="y\n")[1] == 0
    assert not (home.cache / "models--somebody--tiny").exists()
    again = esogen("models", "remove", "--yes", TINY)
    assert (again.code, again.stdout) == (1, "")
    assert "is not in the cache" in again.stderr


def on_a_terminal(home: Home, hub: LoopbackHub, *words: str, answer: str) -> tuple[str, int]:
    """Run `esogen` on a terminal of its own and type an answer; returns the screen and the code."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "esogen", *words],
        env=home.environment(hub) | {"PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(mine, answer.encode())
    screen = b""
    while select.select([mine], [], [], 60)[0]:
        try:
            screen += os.read(mine, 4096)
        except OSError:
            break
    os.close(mine)
    return screen.decode(), process.wait(60)


@pytest.mark.parametrize("verb", ["pull", "remove"])
def test_what_is_not_on_the_hub_is_neither_pulled_nor_removed(
    esogen: Esogen, tiny_folder: Path, verb: str
) -> None:
    built_in = esogen("models", verb, "stories")
    assert (built_in.code, built_in.stdout) == (2, "")
    assert "stories comes with esogen" in built_in.stderr
    folder = esogen("models", verb, str(tiny_folder))
    assert "is a folder of yours" in folder.stderr
    assert folder.code == 2


def test_a_hostile_name_cannot_steer_the_terminal(
    hub: LoopbackHub, home: Home, tmp_path: Path, tiny_folder: Path
) -> None:
    evil = tmp_path / "evil\x1b[31m"
    evil.symlink_to(tiny_folder)
    screen, code = on_a_terminal(home, hub, "models", "show", str(evil), answer="")
    assert code == 0
    assert "evil␛[31m" in screen
    assert "\x1b[31m" not in screen


def test_a_download_shows_a_bar_on_a_terminal(hub: LoopbackHub, home: Home) -> None:
    screen, code = on_a_terminal(home, hub, "models", "pull", TINY, answer="")
    assert code == 0
    assert "[########################] 100%" in screen
    assert resolve(TINY).weights.exists()


# import and export


def test_a_ckpt_is_imported_from_the_command_line(esogen: Esogen, tmp_path: Path) -> None:
    source = golden.folder("esolm-b") / "lightning.ckpt"
    result = esogen("models", "import", str(source), str(tmp_path / "made"))
    assert (result.code, result.stdout) == (0, f"{tmp_path / 'made'}\n")
    assert "its tokenizer comes from nowhere: put the tokenizer.json of 97 tokens" in result.stderr
    assert "lacks tokenizer.json" in esogen("sample", "-m", str(tmp_path / "made"), "x").stderr
    wanted = load_file(golden.folder("esolm-b") / WEIGHTS)
    assert load_file(tmp_path / "made" / WEIGHTS).keys() == wanted.keys()


def test_a_file_that_is_no_ckpt_is_one_line(esogen: Esogen, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"no")
    result = esogen("models", "import", str(tmp_path / "a.ckpt"), str(tmp_path / "made"))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "is no zip archive, or is cut short" in result.stderr
    assert not (tmp_path / "made").exists()
    told = esogen("sample", "-m", str(tmp_path / "a.ckpt"), "x").stderr
    assert "is a .ckpt file (esogen models import makes a model folder of it)" in told


def test_a_model_is_exported_in_the_published_layout(
    esogen: Esogen, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("models", "export", str(out), "-m", str(tiny_folder))
    assert esogen(*words, "--dtype", "fp64").code == 2
    result = esogen(*words, "--dtype", "bf16")
    assert (result.code, result.stdout) == (0, f"{out}\n")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["auto_map"]["AutoModelForMaskedLM"].endswith("--model.EsoLM")
    assert load_file(out / WEIGHTS).keys() == load_file(tiny_folder / WEIGHTS).keys()
    assert esogen(*words).code == 1


# doctor


def test_doctor_finds_this_machine_able(hub: LoopbackHub, esogen: Esogen) -> None:
    esogen("models", "pull", TINY)
    before = len(hub.requests)
    result = esogen("doctor", "--json")
    document = json.loads(result.stdout)
    assert (result.code, document["ok"]) == (0, True)
    found = {each["name"]: each for each in document["findings"]}
    assert {"python", "torch", "cpu", "dtypes", "attention sdpa", "cache", "smoke run"} <= set(
        found
    )
    assert "8 tokens on" in found["smoke run"]["found"]
    assert found[f"model {TINY}"]["found"].endswith(
        f"sha256 {resolve(TINY).weights.resolve().name[:12]}"
    )
    assert len(hub.requests) == before


def test_doctor_asks_the_hub_only_when_told_to(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "_smoke_run", lambda: iter(()))
    missing = {each.name: each for each in examine(online=True)}["hub online"]
    assert missing.verdict == "problem"
    assert missing.mend == f"curl -I {hub.endpoint}"
    hub.add("openai-community/gpt2", {"config.json": b"{}"})
    found = {each.name: each for each in examine(online=True)}["hub online"]
    assert (found.verdict, hub.endpoint in found.found) == ("ok", True)


def test_doctor_finds_a_damaged_model_and_names_the_command(
    hub: LoopbackHub, esogen: Esogen
) -> None:
    weights = resolve(TINY).weights.resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    result = esogen("doctor")
    assert f"!!  model {TINY:<16}" in result.stdout
    assert f"      try: esogen models pull {TINY}\n" in result.stdout
    assert esogen("models", "pull", TINY).code == 0
    assert "!!" not in esogen("doctor").stdout
    assert hub.requests


def test_doctor_exits_with_1_when_nothing_can_be_written(
    esogen: Esogen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_module, "DEFAULT_MODEL", str(tmp_path))
    result = esogen("doctor")
    assert result.code == 1
    assert "!!  smoke run" in result.stdout
    document = json.loads(esogen("doctor", "--json").stdout)
    assert document["ok"] is False
    (broken,) = [each for each in document["findings"] if each["vital"]]
    assert broken["found"].startswith("CheckpointError: the model folder")


def test_doctor_runs_the_model_of_the_environment_and_downloads_none(
    hub: LoopbackHub, esogen: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESOGEN_MODEL", TINY)
    before = len(hub.requests)
    missing = esogen("doctor")
    assert missing.code == 1
    assert f"is not in the cache; esogen models pull {TINY} gets it" in missing.stdout
    assert len(hub.requests) == before
    esogen("models", "pull", TINY)
    pulled = esogen("doctor")
    assert pulled.code == 0
    assert re.search(f"smoke run .* by {TINY}: loaded in", pulled.stdout)


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _python() -> None:
        raise OSError("no such luck")

    monkeypatch.setattr(doctor_module, "_python", _python)
    assert next(iter(examine())) == Finding("python", "problem", "OSError: no such luck")
