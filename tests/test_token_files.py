"""Texts tokenised once: what is written is read again, and what does not fit is named."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from esogen.checkpoint.tokenizer import Tokenizer, train_tokenizer
from esogen.cli import main
from esogen.errors import EsogenError
from esogen.training.data import Encoded, encode, joined, packed_rows, whole_rows
from esogen.training.state import STATE
from esogen.training.token_files import read_token_file, write_token_files
from tests.conftest import STORIES

NETWORK = ["--hidden-size=16", "--blocks=1", "--heads=1", "--cond-dim=4", "--length=16"]
SHORT = [*NETWORK, "--batch-size=4", "--steps=2", "--device=cpu", "--quiet"]

TEXTS = [*STORIES, "", "猫 é", STORIES[0] * 5]


@pytest.fixture
def esogen(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `esogen`; returns its exit code and what it wrote to stderr."""

    def run(*words: object) -> tuple[int, str]:
        code = main([*map(str, words)])
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return path


def assert_same(found: Encoded, wanted: Encoded) -> None:
    for name in ("ids_T", "ends_D", "bytes_D"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("size", [2, 80, 10**6])
def test_shards_of_any_size_hold_the_same_texts(
    tmp_path: Path, tiny_tokenizer: Tokenizer, size: int
) -> None:
    texts = encode(TEXTS, tiny_tokenizer)
    files = write_token_files(tmp_path, "some", texts, tiny_tokenizer, size)
    found = [read_token_file(path, tiny_tokenizer) for path in files]
    assert_same(joined(found), texts)
    assert all(len(part) == 1 or part.ids_T.nbytes <= size for part in found)
    assert len(files) == {2: len(TEXTS), 10**6: 1}.get(size, len(files))
    assert [path.name for path in files[:2]] == ["some-00.tokens.xz", "some-01.tokens.xz"][
        : len(files)
    ]


def test_a_shard_is_a_line_of_json_and_little_endian_ids(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    (path,) = write_token_files(tmp_path, "a", encode(["The cat"], tiny_tokenizer), tiny_tokenizer)
    line, ids = lzma.decompress(path.read_bytes()).split(b"\n", maxsplit=1)
    wanted = [*tiny_tokenizer.encode("The cat"), tiny_tokenizer.end_of_text]
    assert ids == b"".join(i.to_bytes(2, "little") for i in wanted)
    assert json.loads(line) == {
        "format": "esogen tokens 1",
        "dtype": "<u2",
        "vocabulary": tiny_tokenizer.vocabulary_digest,
        "texts": 1,
        "tokens": len(wanted),
    }


def test_rows_of_a_shard_are_those_of_its_texts(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    texts = encode(TEXTS, tiny_tokenizer)
    (path,) = write_token_files(tmp_path, "a", texts, tiny_tokenizer)
    found, end = read_token_file(path, tiny_tokenizer), tiny_tokenizer.end_of_text
    for one, two in (
        (whole_rows(found, end, 40), whole_rows(texts, end, 40)),
        (packed_rows(found, 7), packed_rows(texts, 7)),
    ):
        np.testing.assert_array_equal(one.ids_RL, two.ids_RL)
        assert (one.counted_R.tolist(), one.bytes) == (two.counted_R.tolist(), two.bytes)
        assert one.dropped == two.dropped


def damaged(head: dict[str, object], ids: list[int]) -> bytes:
    base = {"format": "esogen tokens 1", "dtype": "<u2", "texts": 1, "tokens": len(ids)}
    data = np.array(ids, "<u2").tobytes()
    return lzma.compress(json.dumps({**base, **head}).encode() + b"\n" + data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        (b"plain", "is no intact xz file"),
        (lzma.compress(b"some text\nmore"), "holds no tokens that this version reads"),
        (damaged({"format": "esogen tokens 2"}, [0]), "holds no tokens that this version reads"),
        (damaged({"dtype": "<f8"}, [0]), "holds no tokens that this version reads"),
        (damaged({"vocabulary": "another"}, [5, 0]), "tokens of another vocabulary"),
        (damaged({"texts": 2}, [5, 0]), "does not hold the texts that it names"),
        (damaged({"tokens": 3}, [5, 0]), "does not hold the texts that it names"),
        (damaged({}, [5, 999, 0]), "does not hold the texts that it names"),
        (damaged({}, [0, 5]), "does not hold the texts that it names"),
    ],
)
def test_a_file_that_is_no_such_shard_is_named(
    tmp_path: Path, tiny_tokenizer: Tokenizer, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.tokens.xz"
    if content is not None:
        line, _, _ = content.partition(b"\n")
        path.write_bytes(_of_vocabulary(content, tiny_tokenizer) if line else content)
    with pytest.raises(EsogenError, match=message):
        read_token_file(path, tiny_tokenizer)


def _of_vocabulary(content: bytes, tokenizer: Tokenizer) -> bytes:
    """The same shard under the digest of this tokenizer, where it names none."""
    try:
        line, _, data = lzma.decompress(content).partition(b"\n")
        head = {"vocabulary": tokenizer.vocabulary_digest, **json.loads(line)}
    except (lzma.LZMAError, ValueError):
        return content
    return lzma.compress(json.dumps(head).encode() + b"\n" + data)


def test_another_vocabulary_has_another_digest(tiny_tokenizer: Tokenizer) -> None:
    again = train_tokenizer(iter(STORIES), 299)
    assert again.vocabulary_digest == tiny_tokenizer.vocabulary_digest
    assert train_tokenizer(iter(TEXTS), 299).vocabulary_digest != again.vocabulary_digest


def test_training_on_tokens_is_training_on_their_text(
    esogen: Callable[..., tuple[int, str]], text: Path, tmp_path: Path
) -> None:
    tokens, by_text, by_tokens = (tmp_path / name for name in ("tokens", "one", "two"))
    code, said = esogen("tokenize", text, "-o", tokens, "--vocab-size=300")
    assert code == 0, said
    assert said.startswith("stories: 3 texts, ")
    (shard,) = tokens.glob("*.tokens.xz")
    words = (*SHORT, "--layout=packed")
    assert esogen("train", text, "-o", by_text, "--vocab-size=300", *words)[0] == 0
    assert esogen("train", shard, "-o", by_tokens, *words)[0] == 0
    one, two = (load_file(folder / STATE) for folder in (by_text, by_tokens))
    assert one.keys() == two.keys()
    assert all(bool((one[name] == two[name]).all()) for name in one)


def test_tokens_of_another_tokenizer_are_refused(
    esogen: Callable[..., tuple[int, str]], text: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    tokens = tmp_path / "tokens"
    esogen("tokenize", text, "-o", tokens, "--vocab-size=290")
    (shard,) = tokens.glob("*.tokens.xz")
    code, said = esogen("train", shard, "-o", tmp_path / "out", "--init", tiny_folder, "--steps=1")
    assert code == 1
    assert "tokens of another vocabulary" in said
    (tokens / "tokenizer.json").unlink()
    code, said = esogen("train", shard, "-o", tmp_path / "out", *SHORT)
    assert code == 1
    assert "tokenizer.json cannot be read" in said


def test_what_cannot_be_tokenised_is_one_line(
    esogen: Callable[..., tuple[int, str]], text: Path, tmp_path: Path
) -> None:
    code, said = esogen("tokenize", text, "-o", tmp_path)
    assert (code, "which holds something" in said) == (2, True)
    code, said = esogen("tokenize", text, text, "-o", tmp_path / "new")
    assert (code, "two of the files are called stories" in said) == (2, True)
    code, said = esogen("tokenize", tmp_path / "none.txt", "-o", tmp_path / "new")
    assert (code, "cannot read" in said) == (1, True)
    assert not (tmp_path / "new").exists()
