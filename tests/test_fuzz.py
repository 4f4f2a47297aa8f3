"""A few hundred mutated files for every reader; `python -m tests.fuzz` makes millions."""

from pathlib import Path

import pytest

from tests import fuzz


@pytest.mark.parametrize("name", ["config", "weights", "tokenizer", "pickle", "archive"])
def test_a_mutated_file_is_read_or_refused_and_nothing_else(name: str, tmp_path: Path) -> None:
    report = fuzz.run(name, seconds=1.0, seed=1, most=200, place=tmp_path)
    assert report.inputs > 10
    assert report.accepted < report.inputs


def test_every_reader_has_its_turn() -> None:
    assert set(fuzz.targets()) == {"config", "weights", "tokenizer", "pickle", "archive"}


def test_the_fuzzer_finds_a_reader_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: Path) -> None:
        if path.read_bytes() != b"seed":
            raise KeyError("careless")

    monkeypatch.setattr(fuzz, "targets", lambda: {"x": fuzz.Target(careless, (b"seed",))})
    with pytest.raises(fuzz.FoundError, match="x: KeyError: 'careless' at "):
        fuzz.run("x", seconds=1.0, seed=0, most=100, place=tmp_path)
