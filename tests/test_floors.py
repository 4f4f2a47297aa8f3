"""The floors of the house: imports go down only. Read from the source, so nothing is imported.

A room is a module or a folder right under `esogen/`. It may import itself and the rooms of lower
floors. `esogen/__init__.py` and `esogen/__main__.py` are the door: they may import every room, and
no room imports them.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "esogen"

FLOORS = {
    "cli": 8,
    "bench": 7,
    "doctor": 7,
    "editor": 7,
    "language_model": 6,
    "sampling": 5,
    "scoring": 5,
    "view": 5,
    "peers": 4,
    "ranking": 4,
    "trace": 4,
    "trace_file": 4,
    "training": 4,
    "generate": 3,
    "likelihood": 3,
    "checkpoint": 2,
    "shards": 2,
    "journal": 1,
    "model": 1,
    "ranks": 1,
    "atomic": 0,
    "errors": 0,
    "visible": 0,
}

# Who may import what comes from outside; a package that is not named here is open to all.
OUTSIDE = {
    "click": (),
    "prompt_toolkit": ("editor",),
    "rich": ("cli", "view"),
    "typer": ("cli",),
    "triton": ("generate.draw_kernel", "model.step_kernel"),
    "xformers": ("model.attention",),
}

DOOR = ("__init__", "__main__")


class Import(NamedTuple):
    """One imported name: `importer` as a dotted path inside the package, `target` in full."""

    importer: str
    target: str
    line: int

    @property
    def room(self) -> str:
        return self.importer.split(".", maxsplit=1)[0]

    @property
    def where(self) -> str:
        return f"{self.importer}, line {self.line}"


def broken_rules(package: Path) -> list[str]:
    """What the modules of `package` import against the rules, one sentence each."""
    modules = sorted(package.rglob("*.py"))
    rooms = {_room(module, package) for module in modules}
    sentences = [_unknown(room) for room in sorted(rooms - set(FLOORS) - set(DOOR))]
    for module in modules:
        for found in _imports(module, package):
            sentences += _judge(found, package.name)
    return sentences


def _judge(found: Import, package: str) -> Iterator[str]:
    top, _, inside = found.target.partition(".")
    if top != package:
        yield from _judge_outside(found, top)
    elif found.room not in DOOR:
        yield from _judge_inside(found, inside.split(".")[0])


def _judge_outside(found: Import, top: str) -> Iterator[str]:
    owners = OUTSIDE.get(top)
    if owners is not None and not any(_within(found.importer, owner) for owner in owners):
        yield f"{found.where}: imports {top}, which {_only(owners)} may import"


def _judge_inside(found: Import, room: str) -> Iterator[str]:
    if room not in FLOORS:
        yield f"{found.where}: imports {found.target}, which is no room: name the room it lives in"
    elif found.room in FLOORS and found.room != room and FLOORS[room] >= FLOORS[found.room]:
        yield (
            f"{found.where}: {found.room} (floor {FLOORS[found.room]}) imports {room} "
            f"(floor {FLOORS[room]}); imports go down only"
        )


def _imports(module: Path, package: Path) -> Iterator[Import]:
    path = module.relative_to(package.parent).with_suffix("").parts
    importer = ".".join(path[1:]).removesuffix(".__init__")
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = [*path[: -node.level], node.module] if node.level else [node.module]
            base = ".".join(filter(None, origin))
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(importer, target, node.lineno) for target in targets)


def _room(module: Path, package: Path) -> str:
    return module.relative_to(package).with_suffix("").parts[0]


def _within(importer: str, owner: str) -> bool:
    return f"{importer}.".startswith(f"{owner}.")


def _only(owners: tuple[str, ...]) -> str:
    return f"only {' and '.join(owners)}" if owners else "nobody"


def _unknown(room: str) -> str:
    return (
        f"{room} is a room that has no floor: add it to FLOORS in {Path(__file__).name} "
        "and to docs/architecture.md"
    )


def _house(folder: Path, sources: Mapping[str, str]) -> Path:
    """Build a package `esogen` in `folder` from paths inside it and their sources."""
    package = folder / "esogen"
    for path, source in sources.items():
        module = package / path
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(source, encoding="utf-8")
    return package


def test_imports_of_esogen_go_down_only() -> None:
    assert broken_rules(PACKAGE) == []


@pytest.mark.parametrize(
    "source",
    [
        "from esogen.errors import EsogenError",
        "from esogen import errors",
        "import esogen.model.config as config",
        "from ..model import network",
        "from . import plan",
        "from esogen.generate.plan import Plan",
        "import torch",
        "from __future__ import annotations",
    ],
)
def test_a_room_may_import_itself_lower_floors_and_open_packages(
    tmp_path: Path, source: str
) -> None:
    assert broken_rules(_house(tmp_path, {"generate/denoise.py": source})) == []


@pytest.mark.parametrize(
    "source",
    [
        "from esogen.generate.plan import Plan",
        "from esogen.generate import plan",
        "from esogen import generate",
        "import esogen.generate.plan",
        "from ..generate import plan",
        "from .. import generate",
        "def late():\n    from esogen.generate import plan",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import esogen.generate",
    ],
)
def test_an_import_that_goes_up_is_found_wherever_it_stands(tmp_path: Path, source: str) -> None:
    (sentence,) = broken_rules(_house(tmp_path, {"model/network.py": source}))
    line = source.count("\n") + 1
    assert sentence == (
        f"model.network, line {line}: model (floor 1) imports generate (floor 3); "
        "imports go down only"
    )


def test_neighbours_on_one_floor_do_not_import_each_other(tmp_path: Path) -> None:
    (sentence,) = broken_rules(_house(tmp_path, {"ranking.py": "from esogen.trace import Trace"}))
    assert "ranking (floor 4) imports trace (floor 4)" in sentence


def test_relative_imports_of_a_folders_init_are_read_from_that_folder(tmp_path: Path) -> None:
    house = _house(tmp_path, {"model/__init__.py": "from . import network\nfrom .. import cli"})
    (sentence,) = broken_rules(house)
    assert sentence.startswith("model, line 2: model (floor 1) imports cli (floor 8)")


def test_a_room_without_a_floor_is_told_to_join_the_table(tmp_path: Path) -> None:
    (sentence,) = broken_rules(_house(tmp_path, {"utils/strings.py": ""}))
    assert sentence.startswith("utils is a room that has no floor: add it to FLOORS")


@pytest.mark.parametrize("source", ["import esogen", "from esogen import load", "from . import x"])
def test_nobody_comes_in_by_the_door(tmp_path: Path, source: str) -> None:
    (sentence,) = broken_rules(_house(tmp_path, {"language_model.py": source}))
    assert "which is no room" in sentence


def test_the_door_opens_on_every_room(tmp_path: Path) -> None:
    house = _house(
        tmp_path,
        {
            "__init__.py": "from esogen.language_model import load",
            "__main__.py": "from esogen.cli import main",
        },
    )
    assert broken_rules(house) == []


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("cli.py", "typer"),
        ("cli/sample.py", "typer.testing"),
        ("cli/sample.py", "rich.console"),
        ("view/canvas.py", "rich.text"),
        ("model/attention.py", "xformers.ops"),
    ],
)
def test_packages_of_one_room_are_open_to_it(tmp_path: Path, module: str, package: str) -> None:
    assert broken_rules(_house(tmp_path, {module: f"import {package}"})) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("view/canvas.py", "import typer"),
        ("language_model.py", "from rich.console import Console"),
        ("trace.py", "import typer"),
        ("model/network.py", "import xformers.ops"),
        ("model/attention_masks.py", "from xformers import ops"),
        ("cli/sample.py", "import click"),
        ("__init__.py", "import rich"),
    ],
)
def test_packages_of_one_room_are_closed_to_the_others(
    tmp_path: Path, module: str, source: str
) -> None:
    (sentence,) = broken_rules(_house(tmp_path, {module: source}))
    assert "may import" in sentence
