"""Templates: what is a blank, what is text, and which tokens stand around a blank."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import UsageError
from esogen.generate.template import (
    BLANK,
    SHORT,
    Blank,
    Layout,
    Template,
    Tokens,
    fix_words,
    layouts,
    parse,
    tokenise,
    whole,
)

texts = st.text(st.sampled_from("ab ñé🙂\n\t.,[]_\\MASK:12-"), max_size=12)
blanks = st.builds(
    lambda least, more: Blank(least, least + more), st.integers(1, 5), st.integers(0, 3)
)


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("[MASK]", Template(("", ""), (Blank(1, 1),))),
        ("a [MASK:8] b", Template(("a ", " b"), (Blank(8, 8),))),
        ("[MASK:2-8][MASK]", Template(("", "", ""), (Blank(2, 8), Blank(1, 1)))),
        ("a ___.", Template(("a ", "."), (Blank(*SHORT),))),
        ("a _____", Template(("a ", ""), (Blank(*SHORT),))),
        (r"\[MASK] [1] __ [MASK]", Template(("[MASK] [1] __ ", ""), (Blank(1, 1),))),
        (r"\___ ___", Template(("___ ", ""), (Blank(*SHORT),))),
        (r"\\[MASK]", Template(("\\", ""), (Blank(1, 1),))),
        (r"\\\[x] a\\b \n [MASK]", Template((r"\[x] a\\b \n ", ""), (Blank(1, 1),))),
        ("[mask] [MASK]", Template(("[mask] ", ""), (Blank(1, 1),))),
    ],
)
def test_a_template_is_read(text: str, template: Template) -> None:
    assert parse(text) == template


@given(st.lists(texts, min_size=2, max_size=4), st.data())
def test_a_template_that_is_written_is_read_back(parts: list[str], data: st.DataObject) -> None:
    template = Template(tuple(parts), tuple(data.draw(blanks) for _ in parts[1:]))
    assert parse(str(template)) == template


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing here", "has no blank; write [MASK]"),
        ("", "has no blank"),
        (r"\[MASK]", "has no blank"),
        ("The [MASK", "[MASK at line 1, column 5 is not closed; write [MASK]"),
        ("a\nb [MASK:3 c [MASK]", "[MASK:3 at line 2, column 3 is not closed; write [MASK:3]"),
        ("[MASK:0]", "[MASK:0] at line 1, column 1 may be empty; a blank has at least 1 token"),
        ("[MASK:8-2]", "runs backwards; write [MASK:2-8]"),
        ("[MASK:x]", "[MASK:x] at line 1, column 1 is no blank; write [MASK], [MASK:8]"),
        ("[MASKED]", "or \\[ for a literal bracket"),
        ("[MASK:-3]", "is no blank"),
        ("[MASK:99999999999]", "is no blank"),
    ],
)
def test_what_is_no_template_is_told_where_and_what_to_write(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert said in str(raised.value)


def read(text: str, tokenizer: Tokenizer) -> Tokens:
    return tokenise(parse(text), tokenizer)


@given(st.lists(texts, min_size=2, max_size=4))
@settings(deadline=None)
def test_given_tokens_are_the_given_text_but_for_the_space_before_a_blank(
    tiny_tokenizer: Tokenizer, parts: list[str]
) -> None:
    template = Template(tuple(parts), (Blank(1, 1),) * (len(parts) - 1))
    tokens = tokenise(template, tiny_tokenizer)
    decoded = [tiny_tokenizer.decode(ids) for ids in tokens.ids]
    spaces = [" " if blank.spaced else "" for blank in tokens.template.blanks] + [""]
    assert [text + space for text, space in zip(decoded, spaces, strict=True)] == parts
    assert [blank.spaced for blank in tokens.template.blanks] == [
        part.endswith(" ") for part in parts[:-1]
    ]


@pytest.mark.parametrize(
    ("before", "word", "after"),
    [
        ("Once upon a ", "time", " there was"),
        ("there was a", " little", " cat."),
        ("The cat had a red hat\n", "The", " cat"),
        ("The cat\n\n", "The", " cat"),
        ("a  ", "red", " hat"),
        ("He said, “", "I", " am"),
        ("", "Once", " upon"),
    ],
)
def test_tokens_around_a_blank_are_those_of_the_whole_text(
    tiny_tokenizer: Tokenizer, before: str, word: str, after: str
) -> None:
    """A word taken out of a text leaves the other tokens of that text as they were."""
    whole_ids = tiny_tokenizer.encode(before + word + after)
    spaced = before.endswith(" ")
    middle = tiny_tokenizer.encode(f" {word}" if spaced else word)
    tokens = tokenise(Template((before, after), (Blank(1, 1),)), tiny_tokenizer)
    assert [*tokens.ids[0], *middle, *tokens.ids[1]] == whole_ids


def test_a_vocabulary_knows_which_tokens_begin_a_word(tiny_tokenizer: Tokenizer) -> None:
    begins = tiny_tokenizer.begins_word
    assert len(begins) == tiny_tokenizer.size + 1
    assert begins[tiny_tokenizer.encode(" the")[0]]
    for text in ("the", " ", "\n", "."):
        assert not begins[tiny_tokenizer.encode(text)[0]]


def test_layouts_have_every_combination_of_lengths(tiny_tokenizer: Tokenizer) -> None:
    tokens = read("The [MASK:1-3] sat [MASK:2-3].", tiny_tokenizer)
    assert tokens.combinations == 6
    found = layouts(tokens, 64, 64)
    assert [each.lengths for each in found] == [(a, b) for a in (1, 2, 3) for b in (2, 3)]
    for each in found:
        assert (each.ids_L == BLANK).sum() == sum(each.lengths)
        assert [t for t in each.ids_L if t != BLANK] == [t for ids in tokens.ids for t in ids]
        assert list(each.spaced_L.nonzero()[0]) == list(each.starts)


def test_a_bound_on_combinations_spreads_them_over_every_blank(tiny_tokenizer: Tokenizer) -> None:
    tokens = read("[MASK:1-8] a [MASK:1-8] b [MASK:1-8]", tiny_tokenizer)
    found = [each.lengths for each in layouts(tokens, 64, 32)]
    assert tokens.combinations == 512
    assert len(found) == len(set(found)) == 32
    for blank in range(3):
        assert len({lengths[blank] for lengths in found}) >= 6


def test_lengths_that_do_not_fit_the_model_are_not_tried(tiny_tokenizer: Tokenizer) -> None:
    tokens = read("[MASK:1-50]a[MASK:1-50]", tiny_tokenizer)
    found = layouts(tokens, 20, 10**6)
    assert {sum(each.lengths) for each in found} == set(range(2, 20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[MASK:65]", "the blanks have 65 tokens, and the model takes 64"),
        ("[MASK:60] " + "cat " * 9, "60 of them blank, and the model takes 64; shorten the text"),
    ],
)
def test_a_template_over_the_length_is_refused(
    tiny_tokenizer: Tokenizer, text: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        layouts(read(text, tiny_tokenizer), 64, 8)


def test_a_filled_text_repeats_what_is_given_byte_for_byte(tiny_tokenizer: Tokenizer) -> None:
    tokens = read("A [MASK:2], ñ\r\n[MASK:2]\t", tiny_tokenizer)
    layout = Layout.of(tokens, (2, 2))
    ids = layout.ids_L.copy()
    ids[ids == BLANK] = tiny_tokenizer.encode(" cat")[0], 200, 201, tiny_tokenizer.end_of_text
    fills = layout.fills(ids.tolist(), tiny_tokenizer)
    assert not fills[0].startswith(" ")
    assert layout.text(fills) == f"A {fills[0]}, ñ\r\n{fills[1]}\t"
    assert fills[1] == tiny_tokenizer.decode([201])


def test_fixed_words_stand_where_they_were_put(tiny_tokenizer: Tokenizer) -> None:
    tokens = fix_words(
        read("The [MASK:3] sat.", tiny_tokenizer), ["2:cat", "3:,"], tiny_tokenizer, 16
    )
    (layout,) = layouts(tokens, 64, 1)
    start = layout.starts[0]
    assert start == 1
    assert layout.ids_L[2:4].tolist() == tiny_tokenizer.encode(" cat,")
    assert layout.ids_L[1] == BLANK


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("The [MASK:3]", ["cat"], "must be POSITION:WORD, as in 5:upon"),
        ("The [MASK:3]", ["-1:cat"], "must be POSITION:WORD"),
        ("The [MASK:3]", ["1:"], "must be POSITION:WORD"),
        ("The [MASK:3]", ["4:cat"], "the text has positions 0 to 3"),
        ("The [MASK:3]", ["0:cat"], "position 0 is the given text 'The'; blanks stand at 1-3"),
        ("The [MASK:3]", ["1:cat", "1:the"], "--fix 1:the contradicts another word at position 1"),
        ("The [MASK:3]", ["1:catapult"], "'catapult' is [0-9] tokens"),
        ("The [MASK:999999999]", ["0:cat"], "the blanks have 999999999 tokens"),
        ("The [MASK:2-3]", ["1:cat"], "--fix needs positions that do not move"),
    ],
)
def test_words_that_cannot_be_fixed_are_refused(
    tiny_tokenizer: Tokenizer, text: str, words: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        fix_words(read(text, tiny_tokenizer), words, tiny_tokenizer, 16)


def test_two_ends_and_a_length_make_one_blank(tiny_tokenizer: Tokenizer) -> None:
    template = whole("Once ", ".", 12, tiny_tokenizer)
    (layout,) = layouts(tokenise(template, tiny_tokenizer), 64, 1)
    assert len(layout.ids_L) == 12
    assert layout.template.texts == ("Once ", ".")
    with pytest.raises(UsageError, match=r"make --length at least \d+"):
        whole("Once upon a time", "", 2, tiny_tokenizer)


def test_ends_go_around_a_template() -> None:
    template = parse("a [MASK] b").between("[MASK] ", "!")
    assert template.texts == ("[MASK] a ", " b!")
    assert len(template.blanks) == 1
