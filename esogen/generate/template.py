"""Text with blanks: read, tokenised so that word boundaries come out right, and laid out.

    [MASK] one token · [MASK:8] eight · [MASK:2-8] a length to be found · ___ a short one, too
    \\[ and \\___ are text; a backslash in front of such a mark is written twice

A space before a blank belongs to the blank's first token, because in byte-level vocabularies a word
carries the space before it: that token must be one that begins a word. All else is tokenised as it
stands, and what is given is never decoded: a filled text repeats it byte for byte.

Shapes: L positions of one text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from esogen.checkpoint.tokenizer import Tokenizer
from esogen.errors import UsageError

SHORT = (1, 4)
"""Lengths, in tokens, that `___` stands for."""
BLANK = -1
"""What stands in a layout where a token is to be found."""

_MARK = re.compile(
    r"\\(?P<slash>\\)(?=\\*(?:\[|_{3}))"
    r"|\\(?P<text>\[|_{3,})"
    r"|\[MASK(?P<inside>[^\[\]\n]*)(?P<end>\]?)"
    r"|(?P<short>_{3,})"
)
_LENGTHS = re.compile(r"(?::(\d{1,9})(?:-(\d{1,9}))?)?")
_ANCHOR = "a"
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Blank:
    """A blank of `least` to `most` tokens; `spaced` if a space stands before it."""

    least: int
    most: int
    spaced: bool = False

    def __str__(self) -> str:
        if self.least < self.most:
            return f"[MASK:{self.least}-{self.most}]"
        return "[MASK]" if self.most == 1 else f"[MASK:{self.most}]"


@dataclass(frozen=True, slots=True)
class Template:
    """Blanks between given texts: one text more than blanks, empty where there is none."""

    texts: tuple[str, ...]
    blanks: tuple[Blank, ...]

    def __str__(self) -> str:
        """The template as it is written, with every mark that is text escaped."""
        pairs = zip(self.texts, self.blanks, strict=False)
        return "".join(f"{_escaped(t)}{_slashes(t)}{b}" for t, b in pairs) + _escaped(
            self.texts[-1]
        )

    def between(self, before: str, after: str) -> "Template":
        """This template with `before` and `after` around it, both plain text."""
        texts = list(self.texts)
        texts[0], texts[-1] = before + texts[0], texts[-1] + after
        return Template(tuple(texts), self.blanks)


def parse(text: str) -> Template:
    """Read a template. Raises `UsageError` that names the place and what to write instead."""
    texts, blanks, end = [""], [], 0
    for mark in _MARK.finditer(text):
        texts[-1] += text[end : mark.start()] + (mark["slash"] or mark["text"] or "")
        end = mark.end()
        if mark["short"] or mark["inside"] is not None:
            blanks.append(Blank(*(SHORT if mark["short"] else _lengths(mark, text))))
            texts.append("")
    texts[-1] += text[end:]
    if not blanks:
        raise UsageError(
            "the template has no blank; write [MASK] for one token, [MASK:8] for eight,"
            " [MASK:2-8] for a length to be found or ___ for a short one"
        )
    return Template(tuple(texts), tuple(blanks))


def _lengths(mark: re.Match[str], text: str) -> tuple[int, int]:
    found, where = mark[0], _place(text, mark.start())
    numbers = _LENGTHS.fullmatch(mark["inside"].rstrip())
    if not mark["end"]:
        shown = found.split()[0]
        raise UsageError(
            f"{shown} at {where} is not closed; write {shown}], or \\[ for a literal bracket"
        )
    if numbers is None:
        raise UsageError(
            f"{found} at {where} is no blank; write [MASK], [MASK:8] or [MASK:2-8],"
            " or \\[ for a literal bracket"
        )
    least = int(numbers[1] or 1)
    most = int(numbers[2] or least)
    if least < 1:
        raise UsageError(f"{found} at {where} may be empty; a blank has at least 1 token")
    if most < least:
        raise UsageError(f"{found} at {where} runs backwards; write [MASK:{most}-{least}]")
    return least, most


def _place(text: str, index: int) -> str:
    line, column = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
    return f"line {line}, column {column}"


def _escaped(text: str) -> str:
    return re.sub(
        r"(\\+)(\[|_{3,})|(\[)(?=MASK)|(_{3,})",
        lambda m: (m[1] or "") * 2 + "\\" + (m[2] or m[3] or m[4]),
        text,
    )


def _slashes(text: str) -> str:
    """Backslashes at the end of a text once more: a blank follows."""
    return text[len(text.rstrip("\\")) :]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A template in token ids: those of each given text, and of fixed words by position."""

    template: Template
    ids: tuple[tuple[int, ...], ...]
    fixed: Mapping[int, int] = field(default_factory=dict)

    @property
    def given(self) -> int:
        """Tokens of the given texts."""
        return sum(map(len, self.ids))

    @property
    def combinations(self) -> int:
        """In how many ways the lengths of the blanks can be chosen."""
        return prod(blank.most - blank.least + 1 for blank in self.template.blanks)


def tokenise(template: Template, tokenizer: Tokenizer) -> Tokens:
    """Token ids of what is given; blanks behind a space are marked `spaced`."""
    blanks, ids = [], []
    for text, blank in zip(template.texts, template.blanks, strict=False):
        blanks.append(replace(blank, spaced=text.endswith(" ")))
        ids.append(tuple(_before_blank(text, tokenizer)))
    ids.append(tuple(tokenizer.encode(template.texts[-1])))
    if any(blank.spaced for blank in blanks) and not tokenizer.begins_word.any():
        raise UsageError(
            "this model's vocabulary has no words that begin with a space, so a blank cannot stand"
            " behind one; take a model with a byte-level vocabulary"
        )
    return Tokens(replace(template, blanks=tuple(blanks)), tuple(ids))


def _before_blank(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text that a blank follows, without the space that goes over to the blank.

    White space at the end is tokenised as it is before a word: a word is put there, then dropped.
    """
    kept = text.removesuffix(" ")
    if not text or not text[-1].isspace():
        return tokenizer.encode(text)
    ids = tokenizer.encode(text + _ANCHOR)
    while tokenizer.decode(ids) != kept and ids:
        ids.pop()
    return ids or tokenizer.encode(kept)


def fix_words(tokens: Tokens, words: Sequence[str], tokenizer: Tokenizer, longest: int) -> Tokens:
    """Fix words, each `POSITION:WORD`, positions counted in tokens from 0 over the whole text.

    Raises `UsageError` for one that is no such pair, is several tokens, contradicts another, or
    stands where text is given; and where the text has more than `longest` tokens.
    """
    if words and tokens.combinations > 1:
        raise UsageError(
            "--fix needs positions that do not move; give every blank one length, as in [MASK:8]"
        )
    length = tokens.given + sum(blank.most for blank in tokens.template.blanks)
    if words and length > longest:
        raise UsageError(_too_long(tokens, length, longest))
    fixed: dict[int, int] = {}
    for word in words:
        position, token = _fixed(word, tokens, tokenizer)
        if fixed.setdefault(position, token) != token:
            raise UsageError(
                f"--fix {word} contradicts another word at position {position}; keep one of them"
            )
    return replace(tokens, fixed=fixed)


def _fixed(pair: str, tokens: Tokens, tokenizer: Tokenizer) -> tuple[int, int]:
    number, colon, word = pair.partition(":")
    if not (colon and word and number.isascii() and number.isdigit()):
        raise UsageError(f"--fix is {pair!r}; it must be POSITION:WORD, as in 5:upon")
    position = int(number)
    layout = Layout.of(tokens, [blank.most for blank in tokens.template.blanks])
    if position >= len(layout.ids_L):
        raise UsageError(
            f"--fix {pair}: the text has positions 0 to {len(layout.ids_L) - 1}; choose one of them"
        )
    if layout.ids_L[position] != BLANK:
        given = tokenizer.decode([int(layout.ids_L[position])])
        raise UsageError(
            f"--fix {pair}: position {position} is the given text {given!r}; blanks stand at"
            f" {_ranges(np.flatnonzero(layout.ids_L == BLANK))}"
        )
    begins = word[0].isalnum() and (position > 0 or bool(layout.spaced_L[0]))
    ids = tokenizer.encode(f" {word}" if begins else word)
    if len(ids) > 1:
        pieces = ", ".join(repr(tokenizer.decode([token])) for token in ids)
        raise UsageError(
            f"--fix {pair}: {word!r} is {len(ids)} tokens ({pieces}), and one can be fixed at a"
            " position; write it into the template between two blanks instead"
        )
    return position, ids[0]


def _ranges(positions: NDArray[np.int64]) -> str:
    parts = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A template whose blanks have their lengths.

    `ids_L` int64: given tokens, `BLANK` elsewhere. `spaced_L` bool: the token must begin a word,
    with the space before it. `starts`, `lengths`: where each blank is, in tokens.
    """

    template: Template
    ids_L: NDArray[np.int64]
    spaced_L: NDArray[np.bool_]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Tokens, lengths: Sequence[int]) -> "Layout":
        """Lay out `tokens` with blanks of these lengths."""
        blanks = [[BLANK] * length for length in lengths]
        runs = [list(tokens.ids[0])]
        for blank, ids in zip(blanks, tokens.ids[1:], strict=True):
            runs += [blank, list(ids)]
        ends = list(accumulate(map(len, runs)))
        ids_L = np.array([token for run in runs for token in run], np.int64)
        starts = tuple(ends[0:-1:2])
        spaced_L = np.zeros(len(ids_L), np.bool_)
        spaced = [s for s, b in zip(starts, tokens.template.blanks, strict=True) if b.spaced]
        spaced_L[spaced] = True
        for position, token in tokens.fixed.items():
            ids_L[position] = token
        return cls(tokens.template, ids_L, spaced_L & (ids_L == BLANK), starts, tuple(lengths))

    def fills(self, tokens_L: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
        """The text of each blank, up to an end of text if it has one."""
        return tuple(
            _fill(tokens_L[start : start + length], blank, tokenizer)
            for start, length, blank in zip(
                self.starts, self.lengths, self.template.blanks, strict=True
            )
        )

    def text(self, fills: Sequence[str]) -> str:
        """The whole text, what is given byte for byte."""
        pairs = zip(fills, self.template.texts[1:], strict=True)
        return self.template.texts[0] + "".join(fill + text for fill, text in pairs)


def _fill(ids: Sequence[int], blank: Blank, tokenizer: Tokenizer) -> str:
    run = [int(token) for token in ids]
    if tokenizer.end_of_text in run:
        run = run[: run.index(tokenizer.end_of_text)]
    text = tokenizer.decode(run)
    return text.removeprefix(" ") if blank.spaced else text


def layouts(tokens: Tokens, longest: int, bound: int) -> list[Layout]:
    """The template with every combination of lengths that fits `longest`, at most `bound` of them.

    Where there are more, they are spread evenly over all. Raises `UsageError` where none fits.
    """
    ranges = [range(blank.least, blank.most + 1) for blank in tokens.template.blanks]
    shortest = tokens.given + sum(each[0] for each in ranges)
    if shortest > longest:
        raise UsageError(_too_long(tokens, shortest, longest))
    ranges = [range(each[0], min(each[-1], longest - shortest + each[0]) + 1) for each in ranges]
    chosen = _spread(ranges, bound)
    fitting = [each for each in chosen if tokens.given + sum(each) <= longest]
    fitting = fitting or [tuple(each[0] for each in ranges)]
    return [Layout.of(tokens, lengths) for lengths in fitting]


def _too_long(tokens: Tokens, shortest: int, longest: int) -> str:
    blanks = shortest - tokens.given
    if blanks > longest:
        return f"the blanks have {blanks} tokens, and the model takes {longest}; write shorter ones"
    return (
        f"the template has {shortest} tokens, {blanks} of them blank, and the model takes"
        f" {longest}; shorten the text or the blanks by {shortest - longest}"
    )


def _spread(ranges: Sequence[range], bound: int) -> Iterator[tuple[int, ...]]:
    """All combinations, or one out of each of `bound` equal parts of their list.

    The place inside a part moves by the golden ratio, so that no blank keeps one length.
    """
    total = prod(map(len, ranges))
    if total <= bound:
        yield from product(*ranges)
        return
    for part in range(bound):
        rest = min(total - 1, int((part + part * _GOLDEN % 1.0) * total / bound))
        lengths = []
        for each in reversed(ranges):
            rest, place = divmod(rest, len(each))
            lengths.append(each[place])
        yield tuple(reversed(lengths))


def whole(before: str, after: str, length: int, tokenizer: Tokenizer) -> Template:
    """A text of `length` tokens that begins with `before` and ends with `after`: one blank between.

    Raises `UsageError` where both together leave no blank.
    """
    ends = tokenise(Template((before, after), (Blank(1, 1),)), tokenizer)
    if length <= ends.given:
        raise UsageError(
            f"--starts-with and --ends-with have {ends.given} tokens, and --length is {length};"
            f" make --length at least {ends.given + 1}"
        )
    return Template((before, after), (Blank(length - ends.given, length - ends.given),))
