"""`esogen infill` on the command line: what it writes, and what it says goes wrong."""

import json
import shlex
from functools import partial
from pathlib import Path

import pytest

from esogen.cli.word_diff import word_diff
from esogen.trace_file import TraceFile
from tests.calls import Esogen, Result, call, problem
from tests.test_cli import on_terminal

__all__ = ["on_terminal"]

SEED = ("--seed", "1", "-n", "3")
TEMPLATE = "The [MASK:2] sat on [MASK:1-2].\n\n"


@pytest.fixture(autouse=True)
def environment(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESOGEN_MODEL", str(tiny_folder))


@pytest.fixture
def infill() -> Esogen:
    """Calls `esogen infill` in this process, with a stdin that is given and no terminal."""
    return partial(call, "infill")


def test_stdout_is_the_filled_text_byte_for_byte(infill: Esogen) -> None:
    result = infill(TEMPLATE, *SEED)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("The ")
    assert result.stdout.endswith(".\n\n\n")
    assert " sat on " in result.stdout


def test_argument_file_and_stdin_give_the_same(infill: Esogen, tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_text("A [MASK:3] cat.\n")
    expected = infill("A [MASK:3] cat.", *SEED).stdout
    assert infill("-f", str(file), *SEED).stdout == expected
    assert infill(*SEED, stdin=b"A [MASK:3] cat.\n").stdout == expected
    assert infill("-", *SEED, stdin=b"A [MASK:3] cat.").stdout == expected


def test_the_best_fills_come_as_a_table_or_as_json(infill: Esogen) -> None:
    lines = infill(TEMPLATE, *SEED, "--top", "4").stdout.splitlines()
    found = json.loads(infill(TEMPLATE, *SEED, "--top", "4", "--format", "json").stdout)
    assert len(lines) == 5
    assert found["template"] == TEMPLATE
    for rank, (line, each) in enumerate(zip(lines[1:], found["candidates"], strict=True), 1):
        assert line.split()[:2] == [str(rank), f"{each['score_per_token']:.4f}"]
    assert found["search"]["combinations"] == found["search"]["tried"] == 2
    assert {tuple(each["lengths"]) for each in found["search"]["lengths"]} == {(2, 1), (2, 2)}
    best = found["candidates"][0]
    assert [step < 0 for step in best["steps"]] == [
        p in best["given"] for p in range(len(best["tokens"]))
    ]
    one_by_one = infill(TEMPLATE, *SEED, "--top", "4", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["text"] for line in one_by_one] == [
        each["text"] for each in found["candidates"]
    ]


def test_many_templates_are_filled_as_each_alone_and_broken_lines_are_told(
    infill: Esogen,
) -> None:
    lines = ['"The [MASK:2] sat."', "{", '{"template": "none", "id": 3}', "",
             '{"template": "[MASK:9] cat", "id": "x"}', '{"text": 1}', '"[MASK:99]"',
             '{"template": "[MASK]", "seed": 1}']  # fmt: skip
    result = infill("--jsonl", *SEED, stdin="\n".join(lines).encode() + b"\n\xff\n")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.code == 1
    assert [each["line"] for each in objects] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert ["error" in each for each in objects] == [False, True, True, False] + [True] * 4
    assert objects[3]["id"] == "x"
    for each, template in ((objects[0], "The [MASK:2] sat."), (objects[3], "[MASK:9] cat")):
        alone = json.loads(infill(template, *SEED, "--format", "json").stdout)
        for name in ("text", "tokens", "lengths"):
            assert each["candidates"][0][name] == alone["candidates"][0][name]
    told = result.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in told[:-1]] == [
        f"line {i}" for i in (2, 3, 6, 7, 8, 9)
    ]
    assert told[-1].startswith("esogen: 6 of 8 lines could not be filled")


def test_a_bound_on_combinations_is_said_when_it_bites(infill: Esogen) -> None:
    result = infill("[MASK:1-9] cat", *SEED, "--max-combinations", "3")
    assert result.stderr.startswith("trying 3 of 9 combinations of lengths")
    assert infill("[MASK:1-3] cat", *SEED, "--max-combinations", "3").stderr == ""


def test_a_run_is_the_same_without_the_cache_and_verify_finds_nothing(infill: Esogen) -> None:
    cached, uncached = (infill(TEMPLATE, *SEED, *f) for f in ((), ("--no-kv-cache",)))
    assert cached.stdout == uncached.stdout
    verified = infill(TEMPLATE, *SEED, "--verify")
    assert verified.stdout == cached.stdout
    assert " 0 unexplained" in verified.stderr


def test_the_line_after_a_run_gives_the_same_text_again(
    on_terminal: Esogen, infill: Esogen
) -> None:
    words = ("infill", "The [MASK:3] sat\n[MASK:2]", "-n", "3", "--fix", "2:the", "--seed", "4")
    result = on_terminal(*words, streams="stderr")
    again = result.screen.split("esogen infill ")[-1].splitlines()[0].removesuffix("\x1b[0m")
    assert (
        infill(*shlex.split(again.replace("$'", "'").replace("\\n", "\n"))).stdout == result.stdout
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a",), "the template has no blank"),
        (("[MASK", ), "is not closed; write [MASK]"),
        (("a", "b"), "TEMPLATE is 2 arguments"),
        (("[MASK:70]",), "the model takes 64"),
        (("[MASK:2]", "--fix", "0:zebra"), "is 5 tokens"),
        (("[MASK:2]", "--fix", "9:the"), "--fix 9:the: the text has positions 0 to 1"),
        (("[MASK]", "-L", "5"), "--length is for a text without a template"),
        (("[MASK]", "--keep", "x"), "--keep is for --revise; give both, or leave --keep out"),
        (("[MASK]", "--jsonl"), "--jsonl reads its templates from stdin"),
        (("--revise", "30", "x"), "--revise is '30'; it must be a share such as 30% or 0.3; did"),
        (("--revise", "0%", "x"), "it must be a share"),
        (("--revise", "200%", "x"), "it must be a share such as 30% or 0.3\n"),
        (("[MASK]", "--orders", "0"), "--orders is 0"),
        (("[MASK]", "-f", "x"), "exclude each other"),
        (("--starts-with", "The cat", "-L", "1"), "make --length at least"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_is_told_in_one_line(
    infill: Esogen, words: tuple[str, ...], said: str
) -> None:
    assert said in problem(infill(*words), 2)


def test_text_that_is_no_utf8_is_told_with_its_place(infill: Esogen, tmp_path: Path) -> None:
    file = tmp_path / "latin"
    file.write_bytes(b"caf\xe9 [MASK]")
    assert "latin is not UTF-8: there is the byte 0xe9 at 3" in problem(infill("-f", str(file)), 2)
    assert "stdin is not UTF-8" in problem(infill(stdin=b"caf\xe9 [MASK]"), 2)
    assert "No such file" in problem(infill("-f", str(tmp_path / "none")), 1)


DRAFT = "Once upon a time there was a little cat. The cat zzqx had a red 🙂 hat."


def revised(infill: Esogen, tmp_path: Path, *words: str) -> tuple[str, str]:
    file = tmp_path / "draft.txt"
    file.write_text(DRAFT + "\n")
    result = infill("--revise", "30%", str(file), *SEED, *words)
    assert result.code == 0
    return result.stdout, result.stderr


def test_a_draft_is_revised_and_what_changed_is_shown(infill: Esogen, tmp_path: Path) -> None:
    text, diff = revised(infill, tmp_path)
    assert text.removesuffix("\n") != DRAFT
    assert diff.removesuffix("\n") == word_diff(DRAFT, text.removesuffix("\n"), colored=False)


def test_what_is_to_be_kept_is_kept(infill: Esogen, tmp_path: Path) -> None:
    text, _ = revised(infill, tmp_path, "--keep", "upon a time", "--keep", "🙂")
    assert "upon a time" in text
    assert "🙂" in text
    assert "upon a time" not in revised(infill, tmp_path)[0]


def test_a_draft_that_cannot_be_revised_is_told(infill: Esogen, tmp_path: Path) -> None:
    file = tmp_path / "draft.txt"
    file.write_text(DRAFT)
    words = ("--revise", "30%", str(file))
    assert "is no regular expression" in problem(infill(*words, "--keep", "("), 2)
    assert "none is to be revised" in problem(infill(*words, "--keep", "(?s).*"), 2)
    assert "--fix is for templates" in problem(infill(*words, "--fix", "1:a"), 2)
    file.write_text("")
    assert "the draft has 0 tokens" in problem(infill(*words), 2)


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("a b c", "a x c", "a [-b-]{+x+} c"),
        ("a c", "a b c", "a {+b +}c"),
        ("same", "same", "same"),
        ("a\x1b", "b", "[-a␛-]{+b+}"),
    ],
)
def test_a_word_diff_marks_words(old: str, new: str, shown: str) -> None:
    assert word_diff(old, new, colored=False) == shown
    assert word_diff(old, old, colored=True) == word_diff(old, old, colored=False)


# The editor line by line, on the command line


def plain(infill: Esogen, work: Path, *words: str, commands: str) -> Result:
    return infill("--plain", "--work", str(work), *SEED, *words, stdin=commands.encode())


def test_commands_from_stdin_edit_and_only_the_accepted_text_is_on_stdout(
    infill: Esogen, tmp_path: Path
) -> None:
    work = tmp_path / "state" / "work.json"
    result = plain(infill, work, "The [MASK:2] cat.", commands="reroll 1\nundo\naccept\n")
    assert result.code == 0
    assert result.stdout.startswith("The ")
    assert result.stdout.endswith(" cat.\n")
    assert "state 2 (reroll 1)" in result.stderr


def test_what_was_left_is_resumed(infill: Esogen, tmp_path: Path) -> None:
    work = tmp_path / "work.json"
    left = plain(infill, work, "The [MASK:2] cat.", commands="reroll\nlock 1\n")
    assert (left.code, left.stdout) == (0, "")
    assert f"kept in {work}; --resume returns to it" in left.stderr
    shown = [line for line in left.stderr.splitlines() if line.startswith("The [1: ")][-1]
    again = plain(infill, work, "--resume", commands="accept\n")
    assert again.stderr.splitlines()[0] == shown
    assert again.stdout == shown.replace("[1: ", "").replace("*", "").replace("]", "") + "\n"
    plain(infill, work, "A [MASK] hat.", commands="")
    assert "cat." in (tmp_path / "work.previous.json").read_text()


def test_an_edit_is_resumed_with_its_own_seed(infill: Esogen, tmp_path: Path) -> None:
    work = tmp_path / "work.json"
    plain(infill, work, "The [MASK:2] cat.", commands="reroll\n")
    words = ("--plain", "--work", str(work), "--resume")
    assert "leave out --seed 7" in problem(infill(*words, "--seed", "7"), 1)
    assert infill(*words, stdin=b"accept\n").code == 0


def test_what_was_typed_is_in_the_working_file_before_it_is_filled(
    infill: Esogen, tmp_path: Path
) -> None:
    work = tmp_path / "work.json"
    problem(plain(infill, work, "The [MASK:999] cat.", commands=""), 2)
    assert json.loads(work.read_text())["typed"] == "The [MASK:999] cat."


def test_a_session_in_which_nothing_was_done_leaves_the_last_one_where_it_is(
    infill: Esogen, tmp_path: Path
) -> None:
    work = tmp_path / "work.json"
    plain(infill, work, "The [MASK:2] cat.", commands="reroll\n")
    held = work.read_bytes()
    assert "--plain needs a TEMPLATE" in problem(plain(infill, work, commands=""), 2)
    assert work.read_bytes() == held
    assert [*tmp_path.iterdir()] == [work]


def test_a_revision_without_a_draft_is_told_so(on_terminal: Esogen) -> None:
    result = on_terminal("infill", "--revise", "30%")
    assert "--revise needs a draft: name its file, or - for stdin" in result.screen
    assert result.code == 2


def test_a_terminal_that_cannot_be_drawn_on_is_edited_line_by_line(
    on_terminal: Esogen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    result = on_terminal("infill", "-m", "stories")
    assert "edit line by line with --plain" in result.screen
    assert "\x1b[?1049h" not in result.screen
    assert result.code == 2


def test_a_broken_line_keeps_its_id(infill: Esogen) -> None:
    result = infill("--jsonl", *SEED, stdin=b'{"template": "no blank", "id": "b"}\n{"id": 1}\n')
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["line"], first["id"]) == (1, "b")
    assert "no blank" in first["error"]
    assert "id" not in second


def test_many_templates_as_json_are_one_array_of_the_same_objects(infill: Esogen) -> None:
    templates = b'"The [MASK:2] cat."\n"no blank"\n"A [MASK] hat."\n"none"\n'
    words = ("--jsonl", *SEED, "-n", "2", "--batch-size", "2")
    lines, array = (infill(*words, *how, stdin=templates) for how in ((), ("--format", "json")))
    assert json.loads(array.stdout) == [json.loads(line) for line in lines.stdout.splitlines()]
    assert array.code == 1
    assert json.loads(infill(*words, "--format", "json", stdin=b"").stdout) == []


@pytest.mark.parametrize("held", ["Dear diary,", '{"title": "a letter"}', "[]", None])
def test_what_is_no_working_file_is_left_as_it_is(
    infill: Esogen, held: str | None, tmp_path: Path
) -> None:
    work = tmp_path / "mine.txt"
    if held is None:
        work.mkdir()
    else:
        work.write_text(held)
    result = plain(infill, work, "The [MASK] cat.", commands="accept\n")
    assert "is no working file of the editor, and is left as it is" in problem(result, 1)
    assert [*tmp_path.iterdir()] == [work]
    assert work.is_dir() if held is None else work.read_text() == held


def test_a_wrong_command_in_a_script_is_told_and_the_rest_is_done(
    infill: Esogen, tmp_path: Path
) -> None:
    work = tmp_path / "work.json"
    result = plain(infill, work, "The [MASK] cat.", commands="dance\naccept\n")
    assert result.code == 1
    assert result.stdout.endswith(" cat.\n")
    assert "dance: there is no command 'dance'; help lists them" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("esogen: 1 of the commands went wrong")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--plain",), 2, "--plain needs a TEMPLATE"),
        (("--plain", "-"), 2, "--plain reads commands from stdin"),
        (("--plain", "--resume", "[MASK]"), 2, "--resume goes on with the text of the working"),
        (("--plain", "--resume"), 1, "there is no working file to resume"),
    ],
)
def test_an_editor_that_cannot_begin_says_why(
    infill: Esogen, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in problem(infill(*words, "--work", str(tmp_path / "none.json")), code)


def test_a_trace_holds_every_candidate_with_its_given_positions(
    infill: Esogen, tmp_path: Path
) -> None:
    path = tmp_path / "run.trace"
    found = json.loads(infill("The [MASK:1-2] cat.", *SEED, "--format", "json", "--top", "9",
                              "--trace", str(path)).stdout)  # fmt: skip
    texts = list(TraceFile(path))
    assert len(texts) == 6
    recorded = {each.tokens: each.steps for each in texts}
    for each in found["candidates"]:
        steps = recorded[tuple(each["tokens"])]
        assert [p for p, step in enumerate(steps) if step < 0] == each["given"]


def test_the_live_view_shows_the_text_being_filled(
    on_terminal: Esogen,
) -> None:
    words = ("infill", "The [MASK:8] cat.", *SEED, "--live")
    result = on_terminal(*words, streams="stderr")
    assert result.stdout.endswith(" cat.\n")
    assert "cat." in result.screen
