"""Text to ids and back, byte for byte; tokenizers that do not fit are refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esogen.checkpoint.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from esogen.errors import CheckpointError, UsageError

TRAINED = train_tokenizer(iter(["the cat sat on the mat. " * 20, "žluťoučký kůň 猫 🐈"]), 290)


def written(folder: Path, content: str) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    return path


def with_added(token: str, token_id: int) -> str:
    """The trained tokenizer's file with one more special token."""
    values = json.loads(TRAINED.to_json())
    values["added_tokens"].append(
        {**values["added_tokens"][0], "id": token_id, "content": token, "special": True}
    )
    return json.dumps(values)


@given(st.text())
def test_decoding_what_was_encoded_gives_the_same_text(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(st.lists(st.text(), max_size=4))
def test_encoding_many_texts_is_encoding_each(texts: list[str]) -> None:
    assert TRAINED.encode_many(texts) == [TRAINED.encode(text) for text in texts]


@given(st.lists(st.integers(-(2**70), 2**70) | st.integers(0, 300)))
def test_any_ids_decode_to_text(ids: list[int]) -> None:
    TRAINED.decode(ids).encode("utf-8")


def test_merges_are_learned() -> None:
    assert len(TRAINED.encode("the cat sat on the mat.")) < 15


def test_special_tokens_written_in_a_text_are_text() -> None:
    ids = TRAINED.encode(f"one{END_OF_TEXT}two")
    assert TRAINED.end_of_text not in ids
    assert TRAINED.decode(ids) == f"one{END_OF_TEXT}two"


def test_end_of_text_decodes_to_its_name() -> None:
    assert TRAINED.decode([TRAINED.end_of_text]) == END_OF_TEXT


def test_masks_and_unknown_ids_decode_to_the_replacement_character() -> None:
    mask_id = TRAINED.size
    ids = [*TRAINED.encode("the cat"), mask_id, mask_id, *TRAINED.encode(" mat"), -1, 10**12]
    assert TRAINED.decode(ids) == "the cat\ufffd\ufffd mat\ufffd\ufffd"


def test_a_character_of_several_tokens_decodes_as_a_run() -> None:
    ids = TRAINED.encode("🦊")
    assert len(ids) > 1
    assert TRAINED.decode(ids) == "🦊"
    assert "🦊" not in "".join(TRAINED.decode([token_id]) for token_id in ids)


def test_a_string_of_undecodable_bytes_is_named() -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"):
        TRAINED.encode("caf\udce9")


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="256 tokens is too small; it must have at least 257"):
        train_tokenizer(iter([]), 256)


def test_a_tokenizer_of_few_texts_is_smaller_than_asked() -> None:
    assert train_tokenizer(iter(["ab"]), 1000).size == 258


def test_a_written_tokenizer_reads_as_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, TRAINED.to_json())
    read = Tokenizer.read(path, TRAINED.size + 1)
    assert (read.size, read.end_of_text) == (TRAINED.size, TRAINED.end_of_text)
    assert read.encode("the cat 🐈") == TRAINED.encode("the cat 🐈")


def test_a_tokenizer_whose_last_token_is_the_mask_fits(tmp_path: Path) -> None:
    path = written(tmp_path, with_added("[MASK]", TRAINED.size))
    tokenizer = Tokenizer.read(path, TRAINED.size + 1)
    assert tokenizer.size == TRAINED.size + 1
    assert tokenizer.decode([TRAINED.size]) == "\ufffd"
    assert TRAINED.size not in tokenizer.encode("[MASK]")


def test_a_tokenizer_as_large_as_the_vocabulary_without_a_mask_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, TRAINED.to_json())
    with pytest.raises(CheckpointError, match=f"holds {TRAINED.size} .* of {TRAINED.size}, that"):
        Tokenizer.read(path, TRAINED.size)


@pytest.mark.parametrize("vocab_size", [2, 300, 50258])
def test_a_tokenizer_of_another_vocabulary_is_refused_with_both_numbers(
    tmp_path: Path, vocab_size: int
) -> None:
    path = written(tmp_path, TRAINED.to_json())
    with pytest.raises(CheckpointError, match=f"holds {TRAINED.size} .* of {vocab_size}, that"):
        Tokenizer.read(path, vocab_size)


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, TRAINED.to_json().replace(END_OF_TEXT, "<|fin|>"))
    with pytest.raises(CheckpointError, match="no end-of-text token"):
        Tokenizer.read(path, TRAINED.size + 1)


def test_stored_truncation_and_padding_are_not_followed(tmp_path: Path) -> None:
    values = json.loads(TRAINED.to_json())
    values["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    tokenizer = Tokenizer.read(written(tmp_path, json.dumps(values)), TRAINED.size + 1)
    assert tokenizer.decode(tokenizer.encode("a longer text")) == "a longer text"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"model": 3}', "\0" * 99])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"is no tokenizer .* copy it again"):
        Tokenizer.read(path, 300)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        Tokenizer.read(path, 300)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: No such file"):
        Tokenizer.read(tmp_path / "tokenizer.json", 300)
