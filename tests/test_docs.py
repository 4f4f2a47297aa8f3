"""The docs say what the program says: every command's help, and every link.

`UPDATE_DOCS=1 python -m pytest tests/test_docs.py` writes the help into docs/commands.md anew.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import esogen
from esogen.cli.app import COMMANDS, whole_command

ROOT = Path(__file__).parent.parent
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEAD = "# Commands\n\nWhat each command says of itself. A test holds this page to it.\n"

WORD = re.compile(r"[\w-]+")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]+)")


def commands() -> list[tuple[str, ...]]:
    """Every command and every command of a group, by the words that are typed."""
    found: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        found.append((name,))
        inner = getattr(whole_command(name), "commands", {})
        found += [(name, each) for each in inner]
    return found


@cache
def help_of(words: tuple[str, ...]) -> str:
    environment = os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "esogen", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def page() -> str:
    sections = (
        f"\n## `{' '.join(('esogen', *words))}`\n\n```text\n{help_of(words)}\n```\n"
        for words in commands()
    )
    return HEAD + "".join(sections)


def test_the_page_of_commands_is_what_they_say() -> None:
    """Word by word: how Typer draws its boxes is not ours to hold."""
    now = page()
    if os.environ.get("UPDATE_DOCS"):
        COMMANDS_PAGE.write_text(now, encoding="utf-8")
    written = COMMANDS_PAGE.read_text(encoding="utf-8")
    assert WORD.findall(written) == WORD.findall(now), "UPDATE_DOCS=1 writes it anew"


def test_help_shows_no_type_of_python() -> None:
    assert re.findall(r"<[\w\[\]|]+>", page().replace("<|endoftext|>", "")) == []
    assert "owner/name[@revision]" in page()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/scoring.md"])
def test_the_python_of_a_page_runs_as_it_stands(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = PYTHON.findall(text)
    assert blocks
    for block in blocks:
        exec(block, {"esogen": esogen})


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in PAGES[1:]:
        assert f"docs/{path.name}" in readme, path.name
