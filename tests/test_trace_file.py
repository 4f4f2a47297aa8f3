"""Traces on disk: what goes in comes out, and what no run can have made is told."""

import os
import tracemalloc
from pathlib import Path

import pytest

from esogen.checkpoint.folder import Checkpoint
from esogen.errors import TraceError
from esogen.trace_file import MOST_POSITIONS, RecordedText, TraceFile
from tests.traces import changed, header_for, text_of, written

MEGABYTE = 2**20


@pytest.fixture
def trace(tmp_path: Path, tiny_folder: Path, tiny_checkpoint: Checkpoint) -> Path:
    """Two texts: one with a given token, one that ended before all of it was decided."""
    path = tmp_path / "run.jsonl"
    header = header_for(tiny_folder, tiny_checkpoint.config.vocab_size)
    texts = [
        text_of([5, 6, 7, 8], [-1, 1, 0, 2], diffusion_steps=2),
        text_of([5, 0, -1, 9], [-1, 1, -1, 0], diffusion_steps=1, index=1),
    ]
    path.write_bytes(written(header, texts))
    return path


def problem(path: Path) -> str:
    """What is said of a trace that is wrong: one line that names the file."""
    with pytest.raises(TraceError) as caught:
        TraceFile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


def test_what_is_written_is_read(trace: Path, tiny_folder: Path) -> None:
    read = TraceFile(trace)
    assert read.header == header_for(tiny_folder, 300)
    assert len(read) == 2
    assert [text.index for text in read] == [0, 1]
    assert read[1].tokens == (5, 0, -1, 9)
    assert read[1].steps == (-1, 1, -1, 0)
    assert [text.calls for text in read] == [3, 2]


def test_log_probabilities_keep_the_float32_that_they_were(
    tmp_path: Path, tiny_folder: Path
) -> None:
    import numpy as np

    values = np.log(np.random.default_rng(0).random(64)).astype(np.float32)
    recorded = RecordedText(
        0, 0.1, 0, (5,) * 64, tuple(range(64)), tuple(values.astype(float).tolist())
    )
    path = tmp_path / "run.jsonl"
    path.write_bytes(written(header_for(tiny_folder, 300), [recorded]))
    assert np.array_equal(np.array(TraceFile(path)[0].log_probs, np.float32), values)


def test_a_trace_without_texts_is_one(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(written(header_for(tiny_folder, 300), []))
    assert len(TraceFile(path)) == 0


def test_a_trace_that_is_cut_anywhere_is_known_for_one(trace: Path) -> None:
    whole = trace.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for size in {0, 1, *ends[:-1], *(end - 1 for end in ends), *(end - 9 for end in ends)}:
        trace.write_bytes(whole[:size])
        assert "cut short" in problem(trace) or size < ends[0]


def test_a_trace_that_goes_on_is_known_for_one(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes() + b"\n")
    assert "goes on behind its last line" in problem(trace)


def test_a_newer_trace_is_told_what_to_upgrade(trace: Path) -> None:
    trace.write_bytes(changed(trace.read_bytes(), 1, version=2))
    assert problem(trace).endswith(
        "is a trace of version 2, and this esogen reads version 1; upgrade esogen to read it"
    )


@pytest.mark.parametrize(
    ("number", "fields", "said"),
    [
        (1, {"format": "something"}, "is no trace of esogen"),
        (1, {"version": "1"}, 'version is "1"; it must be a whole number'),
        (1, {"version": True}, "version is true"),
        (1, {"model": 3}, "model is 3; it must be text"),
        (1, {"command": None}, "command is missing"),
        (1, {"vocab_size": 10**9}, "vocab_size is 1000000000"),
        (1, {"settings": []}, "settings is a list of 0; it must be an object"),
        (1, {"settings": {"alpha_0": {}}}, "it must be an object of words and numbers"),
        (2, {"tokens": [5, 6, 7, 299]}, "tokens is a list of 4; it must be a list of whole"),
        (2, {"tokens": [5, 6, 7, -2]}, "whole numbers from -1 to 298"),
        (2, {"tokens": [5, 6, 7, True]}, "whole numbers from -1 to 298"),
        (2, {"tokens": [5, 6, 7, 8.0]}, "whole numbers from -1 to 298"),
        (2, {"tokens": [5, 6, 7, -1]}, "an id wherever a step decided one"),
        (2, {"tokens": "5678"}, 'tokens is "5678"; it must be a list'),
        (2, {"steps": [-1, 1, 0]}, "steps is a list of 3; it must be a list of 4"),
        (2, {"steps": [-1, 1, 0, 10**9]}, "whole numbers from -1 to 3"),
        (2, {"steps": [-1, 1, 0, 3]}, "every step up to the last decides a token"),
        (2, {"log_probs": [0, 0, 0]}, "log_probs is a list of 3; it must be a list of 4"),
        (2, {"log_probs": [0, 0, 0, 2]}, "numbers from -1e+09 to 0"),
        (2, {"log_probs": [0, 0, 0, -(10**400)]}, "numbers from -1e+09 to 0"),
        (2, {"log_probs": [0, 0, 0, "x"]}, "numbers from -1e+09 to 0"),
        (2, {"diffusion_steps": 4}, "diffusion_steps is 4; it must be a whole number from 0 to 3"),
        (2, {"seconds": -1}, "seconds is -1"),
        (2, {"seconds": 10**400}, "seconds is 1000"),
        (3, {"index": -1}, "index is -1"),
        (4, {"texts": 3}, "texts is 3; it must be 2"),
        (4, {"texts": "2"}, 'texts is "2"'),
    ],
)
def test_what_no_run_can_have_made_is_told(
    trace: Path, number: int, fields: dict[str, object], said: str
) -> None:
    trace.write_bytes(changed(trace.read_bytes(), number, **fields))
    assert said in problem(trace)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"3",
        b'"\x1b[2J"',
        b"\xff\xfe",
        b'{"log_probs":[NaN]}',
        b'{"log_probs":[-Infinity]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
    ],
)
def test_a_line_that_is_no_object_is_told(trace: Path, line: bytes) -> None:
    lines = trace.read_bytes().splitlines()
    trace.write_bytes(b"\n".join([lines[0], line, *lines[2:]]) + b"\n")
    message = problem(trace)
    assert ", line 2: it is no JSON" in message
    assert "\x1b" not in message


def test_escape_codes_in_a_field_are_not_passed_on(trace: Path) -> None:
    trace.write_bytes(changed(trace.read_bytes(), 2, tokens="\x1b]0;owned\x07"))
    assert "\x1b" not in problem(trace)


def test_a_billion_positions_cost_little_memory(trace: Path) -> None:
    head = trace.read_bytes().splitlines()[0] + b'\n{"tokens":['
    with trace.open("wb") as file:
        file.write(head)
        file.seek(2**30)  # a hole, which takes no space on the disk either
        file.write(b"]}\n")
    tracemalloc.start()
    try:
        assert f"a text may have {MOST_POSITIONS} positions at most" in problem(trace)
        assert tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_more_positions_than_any_model_has_are_told(trace: Path) -> None:
    many = [0] * (MOST_POSITIONS + 1)
    trace.write_bytes(changed(trace.read_bytes(), 2, tokens=many))
    assert f"it must be a list of at most {MOST_POSITIONS}" in problem(trace)


def test_many_texts_are_one_in_memory_at_a_time(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "run.jsonl"
    texts = [text_of([5] * 300, range(300), index=number) for number in range(60)]
    path.write_bytes(written(header_for(tiny_folder, 300), texts))
    del texts
    tracemalloc.start()
    try:
        assert sum(1 for _ in TraceFile(path)) == 60
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (Path(os.devnull), tmp_path, fifo):
        assert "no file but a folder, a device or a pipe" in problem(path)


def test_fields_that_a_later_esogen_adds_are_passed_over(trace: Path) -> None:
    trace.write_bytes(changed(trace.read_bytes(), 2, more={"of": "it"}))
    assert len(TraceFile(trace)) == 2
