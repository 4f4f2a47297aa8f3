"""`import esogen` and `esogen --help` start fast: they import none of the heavy packages."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

import esogen

HEAVY = {
    "huggingface_hub", "numpy", "prompt_toolkit", "safetensors", "scipy", "tokenizers", "torch",
    "triton", "xformers",
}  # fmt: skip


def packages_imported_by(arguments: Sequence[str]) -> set[str]:
    """Top-level packages that a new `python ARGUMENTS` imports, by its own log of imports."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return {_package(line) for line in run.stderr.splitlines() if line.startswith("import time:")}


def _package(line: str) -> str:
    return line.rsplit("|", maxsplit=1)[-1].strip().split(".", maxsplit=1)[0]


def test_the_log_of_imports_shows_a_heavy_package() -> None:
    assert "numpy" in packages_imported_by(["-c", "import numpy"])


def test_import_esogen_imports_nothing_but_itself() -> None:
    imported = packages_imported_by(["-c", "import esogen"])
    assert "esogen" in imported
    assert not imported & (HEAVY | {"rich", "typer"})


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["sample", "--help"],
        ["score", "--help"],
        ["infill", "--help"],
        ["train", "--help"],
        ["tokenize", "--help"],
        ["models", "pull", "--help"],
        ["doctor", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_imports_no_heavy_package(words: list[str]) -> None:
    imported = packages_imported_by(["-m", "esogen", *words])
    assert "typer" in imported
    assert not imported & HEAVY


def test_the_version_is_found_without_heavy_packages() -> None:
    imported = packages_imported_by(["-c", "import esogen; print(esogen.__version__)"])
    assert not imported & HEAVY


def test_every_public_name_is_listed_and_can_be_had() -> None:
    assert set(esogen.__all__) <= set(dir(esogen))
    assert all(getattr(esogen, name) for name in esogen.__all__)


def test_a_name_that_esogen_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'esogen' has no attribute 'nothing'"):
        esogen.nothing  # type: ignore[attr-defined]  # noqa: B018
