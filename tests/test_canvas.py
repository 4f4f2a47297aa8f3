"""A text while masks become tokens, laid out: what a reader sees, at any moment and any width."""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from esogen.checkpoint.resolve import BUILT_IN, DEFAULT_MODEL, TOKENIZER
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.trace import UNDECIDED
from esogen.view import theme
from esogen.view.canvas import Frame, Pieces, layout, roles
from esogen.view.flow import Flow, Line, parts_of
from esogen.view.stage import Painter, Report, Size, Stage, bar
from esogen.visible import visible
from tests.conftest import STORIES

MIXED = "naïve “tea” 你好，世界 👩‍👩‍👧 e\u0301 \x1b[31m[bold]x[/] \x07 fin…"
SHADES = {*"░▓"}


def frame(
    ids: Sequence[int],
    *,
    steps: Sequence[int] | None = None,
    certainty: Sequence[float] | None = None,
    step: int = 0,
    calls: int = 8,
    diffusion: int = 4,
    since: int = 0,
) -> Frame:
    """A text of which some tokens are given (step -1) and others decided by a call or not yet."""
    tokens_L = np.array(ids, np.int64)
    steps_L = np.array([0] * len(ids) if steps is None else steps, np.int64)
    return Frame(
        tokens_L,
        steps_L,
        np.array([1.0] * len(ids) if certainty is None else certainty),
        (steps_L == -1) & (tokens_L != UNDECIDED),
        step,
        calls,
        diffusion,
        since,
    )


def texts(lines: Sequence[Line]) -> list[str]:
    return ["".join(text for text, _ in line.spans) for line in lines]


def shown(tokenizer: Tokenizer, ids: Sequence[int], width: int = 10**6) -> list[str]:
    return texts(layout(frame(ids), Pieces(tokenizer.decode), width, "certainty").lines)


def flowed(text: str, width: int) -> list[str]:
    flow = Flow(width)
    for part in parts_of(text):
        flow.add(part, theme.PLAIN)
    return texts(flow.finish())


# What the text reads


@settings(deadline=None)
@given(data=st.data())
def test_a_text_that_is_decided_reads_as_it_will_be_written(
    tiny_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tiny_tokenizer.size - 1), max_size=40))
    written = visible(tiny_tokenizer.decode(ids))
    if "\t" not in written:
        expected = [line.rstrip() for line in written.split("\n")]  # no line ends in white space
        found = [line.rstrip() for line in shown(tiny_tokenizer, ids)]
        assert "\n".join(found).rstrip("\n") == "\n".join(expected).rstrip("\n")


@settings(deadline=None)
@given(data=st.data())
def test_half_a_character_is_never_seen(tiny_tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([*STORIES, MIXED, "你好，世界。" * 4, "👩‍👩‍👧🇩🇪" * 3]))
    ids = tiny_tokenizer.encode(text)
    masked = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    half = [UNDECIDED if mask else token for token, mask in zip(ids, masked, strict=True)]
    seen = "".join(shown(tiny_tokenizer, half))
    assert "\ufffd" not in seen
    assert {*seen} <= {*visible(text), *SHADES, " "}


def test_a_character_of_many_tokens_comes_with_its_last_one(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("a👩b")
    assert len(ids) == 6
    for known in range(2, 5):
        partly = [*ids[:known], *[UNDECIDED] * (5 - known), ids[5]]
        (line,) = shown(tiny_tokenizer, partly)
        assert line.startswith("a░")
        assert line.endswith("b")
    assert shown(tiny_tokenizer, ids) == ["a👩b"]


def test_what_is_no_character_in_the_end_is_told_as_it_will_be_written(
    tiny_tokenizer: Tokenizer,
) -> None:
    broken = tiny_tokenizer.encode("👩")[:2]
    assert shown(tiny_tokenizer, broken) == [tiny_tokenizer.decode(broken)]


def test_a_tokenizer_that_parts_words_with_spaces_is_understood() -> None:
    words = ["Once", "upon", "a", "time"]

    def decode(ids: Sequence[int]) -> str:
        return " ".join(words[i] for i in ids)

    ids = [0, 1, 2, 3] * 12
    lines = layout(frame(ids), Pieces(decode), 10**6, "certainty").lines
    assert texts(lines) == [decode(ids)]


@pytest.mark.parametrize("end", [0, 3, 5])
def test_what_stands_behind_the_end_of_text_is_not_seen(
    tiny_tokenizer: Tokenizer, end: int
) -> None:
    ids = tiny_tokenizer.encode("The cat had a hat.")
    tokenizer_end = tiny_tokenizer.end_of_text
    whole = [*ids[:end], tokenizer_end, *ids[end:], UNDECIDED, tokenizer_end]
    cut = frame(whole, steps=[0] * len(whole)).until(tokenizer_end)
    assert (len(cut.tokens_L), cut.ended, cut.masks_left) == (end, True, 0)
    (line,) = texts(layout(cut, Pieces(tiny_tokenizer.decode), 999, "certainty").lines)
    assert line == tiny_tokenizer.decode(ids[:end]) + "∎"
    raw = frame(whole).until(None)
    assert (len(raw.tokens_L), raw.ended) == (len(whole), False)


@settings(deadline=None)
@given(text=st.text(max_size=20), width=st.integers(1, 30))
def test_nothing_that_is_shown_can_steer_a_terminal(
    tiny_tokenizer: Tokenizer, text: str, width: int
) -> None:
    ids = tiny_tokenizer.encode(text.encode("utf-8", "replace").decode())
    seen = "".join(shown(tiny_tokenizer, ids, width))
    assert not {c for c in seen if unicodedata.category(c) in ("Cc", "Cs")}


# Where it stands


@settings(deadline=None)
@given(text=st.sampled_from([*STORIES, MIXED, "你好，世界。" * 9]), width=st.integers(6, 40))
def test_no_line_is_wider_than_the_screen_and_no_word_is_lost(text: str, width: int) -> None:
    safe = visible(text)
    lines = flowed(safe, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(safe.split())


def test_words_stay_whole_where_they_fit() -> None:
    assert flowed("one two three", 8) == ["one two", "three"]
    assert flowed("one incomprehensible", 8) == ["one", "incompre", "hensible"]


def test_indents_and_empty_lines_and_tabs_stay() -> None:
    assert flowed("a\n\n  b c\n\td", 20) == ["a", "", "  b c", "        d"]
    assert flowed("a\n      bcd", 6) == ["a", "   bcd"]


def test_wide_characters_break_anywhere_and_take_two_columns() -> None:
    assert flowed("你好世界", 5) == ["你好", "世界"]
    assert flowed("ab你好", 5) == ["ab你", "好"]


def test_combining_characters_stay_with_their_letter() -> None:
    assert flowed("e\u0301" * 6, 4) == ["e\u0301" * 4, "e\u0301" * 2]


def test_masks_take_about_the_room_of_the_words_they_stand_for() -> None:
    tokenizer = Tokenizer.read(BUILT_IN[DEFAULT_MODEL] / TOKENIZER, 2560)
    ids = tokenizer.encode(" ".join(STORIES).replace("“", '"').replace("”", '"'))
    known, masked = (shown(tokenizer, x)[0] for x in (ids, [UNDECIDED] * len(ids)))
    assert math.isclose(cell_len(known), cell_len(masked), rel_tol=0.15)


def test_a_mask_is_as_wide_in_every_frame(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("The cat")
    tail = [UNDECIDED] * 6
    (before,), (after,) = (
        shown(tiny_tokenizer, [*x, *tail]) for x in ([UNDECIDED] * len(ids), ids)
    )
    masks = after.removeprefix("The cat")
    assert before.endswith(masks)


# How it looks


def test_just_decided_tokens_are_graded_and_the_others_are_calm() -> None:
    certainty = [1.0, 0.29, 0.3, 0.69, 0.7, 0.1, 0.1, 1.0]
    moment = frame(
        [5] * 7 + [UNDECIDED],
        steps=[-1, 5, 5, 6, 6, 0, 4, -1],
        certainty=certainty,
        step=6,
        diffusion=4,
        since=5,
    )
    assert roles(moment, "certainty") == [
        *("given", "low", "middle", "middle", "high", "settled", "written", "pen")
    ]


def test_the_next_mask_is_marked_only_where_the_sequential_phase_writes(
    tiny_tokenizer: Tokenizer,
) -> None:
    ids = [*tiny_tokenizer.encode("The"), UNDECIDED, UNDECIDED]
    pieces = Pieces(tiny_tokenizer.decode)
    for step, marked in ((3, 0), (4, 1)):
        (line,) = texts(layout(frame(ids, step=step), pieces, 99, "certainty").lines)
        assert len({*line.split()} & {"▓" * n for n in range(1, 9)}) == marked


def test_colours_can_tell_the_order_or_the_step() -> None:
    moment = frame([5] * 4 + [UNDECIDED], steps=[-1, 0, 4, 7, -1], step=7)
    assert roles(moment, "order")[:4] == ["given", "order-0", "order-4", "order-7"]
    assert roles(moment, "step")[:4] == ["given", "step-0", "step-4", "step-1"]


@pytest.mark.parametrize("looks", theme.THEMES.values(), ids=theme.THEMES)
def test_a_theme_paints_every_role_and_tells_grades_apart(looks: theme.Theme) -> None:
    assert {*looks} == {*theme.UNPAINTED}
    graded = [looks[role] for role in (theme.LOW, theme.MIDDLE, theme.HIGH, theme.SETTLED)]
    assert len({paint.code for paint in graded}) == 4


def test_themes_for_all_eyes_grade_without_hue() -> None:
    plain = theme.THEMES["monochrome"]
    assert {paint.color for paint in plain.values()} == {None}
    safe = theme.THEMES["colorblind"]
    weights = {(safe[r].bold, safe[r].underline) for r in (theme.LOW, theme.MIDDLE, theme.HIGH)}
    assert len(weights) == 3


def test_what_is_painted_is_plain_again_at_the_end_of_a_line() -> None:
    painter = Painter(theme.THEMES["default"])
    line = Line([("a", theme.LOW), (" ", theme.PLAIN), ("b", theme.LOW), ("c", theme.PLAIN)], 4)
    low = theme.THEMES["default"][theme.LOW].code
    assert painter.text(line) == f"{low}a b{theme.RESET}c"
    assert Painter(theme.UNPAINTED).text(line) == "a bc"


# The screen around it


@pytest.mark.parametrize(
    ("step", "diffusion", "expected"),
    [
        (-1, 4, "────◆───────────"),
        (1, 4, "━━──◆───────────"),
        (3, 4, "━━━━◆───────────"),
        (4, 4, "━━━━◆───────────"),
        (9, 4, "━━━━◆━━━━━──────"),
        (15, 4, "━━━━◆━━━━━━━━━━━"),
        (7, 16, "━━━━━━━━────────"),
        (7, 0, "━━━━━━━━────────"),
    ],
)
def test_the_bar_marks_where_the_phases_meet(step: int, diffusion: int, expected: str) -> None:
    line = bar(frame([1], step=step, calls=16, diffusion=diffusion), 16)
    assert texts([line]) == [expected]


@settings(deadline=None)
@given(
    columns=st.integers(1, 150),
    rows=st.integers(1, 50),
    count=st.integers(1, 5),
    step=st.integers(-1, 7),
)
def test_every_screen_is_filled_to_its_size_and_no_further(
    tiny_tokenizer: Tokenizer, columns: int, rows: int, count: int, step: int
) -> None:
    ids = [*tiny_tokenizer.encode(visible(MIXED)), *[UNDECIDED] * 9]
    stage = Stage(Pieces(tiny_tokenizer.decode), "certainty")
    names = [f"text {i}" for i in range(count)]
    report = Report(columns / 10, 12, names if count > 1 else (), "text 1-5 of 9")
    lines = stage.rows([frame(ids, step=step)] * count, report, Size(columns, rows))
    assert len(lines) == rows
    assert all(cell_len(text) <= columns for text in texts(lines))


def test_a_tall_text_turns_its_pages_and_follows_the_pen(tiny_tokenizer: Tokenizer) -> None:
    words = tiny_tokenizer.encode("word\n")
    ids = words * 40
    stage = Stage(Pieces(tiny_tokenizer.decode), "certainty")

    def told(step: int, seconds: float, tokens: Sequence[int]) -> str:
        moment = frame(tokens, step=step)
        return texts(stage.rows([moment], Report(seconds, 9), Size(80, 12)))[-1]

    assert "lines 1-10/40" in told(0, 1.0, ids)
    assert "lines 11-20/40" in told(0, 3.0, ids)
    written = [*words * 30, UNDECIDED, *words * 9]
    top, last = map(int, told(6, 1.0, written).split("lines ")[1].split("/")[0].split("-"))
    assert top <= 31 <= last


def test_texts_stand_side_by_side_where_they_fit(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("The cat")
    stage = Stage(Pieces(tiny_tokenizer.decode), "certainty")
    report = Report(0.0, 0, ["text 1", "text 2"])
    wide = texts(stage.rows([frame(ids)] * 2, report, Size(80, 8)))
    assert [part.strip() for part in wide[0].split("│")] == ["text 1 ✓", "text 2 ✓"]
    assert wide[1].count("The cat") == 2
    narrow = texts(stage.rows([frame(ids)] * 2, report, Size(40, 8)))
    assert [sum("The cat" in line for line in narrow), narrow[0]] == [2, "text 1 ✓"]
