"""Changes of a text: what is kept of a state, and what is to be decided anew.

Each returns the state that is wanted: blank where something is to be decided, with the positions
that are kept as its `order`. Each raises `UsageError` for what cannot be done.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np

from esogen.editor.state import Ids, State
from esogen.errors import UsageError
from esogen.generate.engine import Engine
from esogen.generate.template import BLANK, Blank, Layout, Template, tokenise


def without(state: State, positions: set[int], what: str) -> State:
    """These positions of the text blank, all others kept in their order."""
    tokens_L = state.tokens_L.copy()
    tokens_L[sorted(positions)] = BLANK
    kept = np.array([p for p in state.order.tolist() if tokens_L[p] != BLANK], np.int64)
    return replace(state, tokens_L=tokens_L, order=kept, what=what)


def reroll(state: State, number: int | None) -> State:
    """Blank `number` blank again, or all; what is locked or fixed stays."""
    numbers = range(1, len(state.layout.starts) + 1) if number is None else [number]
    positions = _free(state, (p for each in numbers for p in state.blank(each)))
    if not positions:
        raise UsageError("everything there is locked or fixed; unlock a word or a blank first")
    return without(state, positions, "reroll" if number is None else f"reroll {number}")


def branch(state: State, position: int) -> State:
    """As it was before the token at `position` was decided, but for what is locked or fixed."""
    if state.layout.ids_L[position] != BLANK:
        raise UsageError("that word was given; branch at a word of a blank")
    if state.tokens_L[position] == BLANK:
        raise UsageError("nothing is decided there yet; reroll fills the blank")
    later = state.order[state.order.tolist().index(position) :].tolist()
    return without(state, _free(state, later) | {position}, "branch")


def blank_part(state: State, which: int, start: int, length: int, engine: Engine) -> State:
    """A blank in place of `length` characters from `start` on in given text number `which`."""
    template = state.layout.template
    given = template.texts[which]
    part = given[start : start + length]
    start, part = start + len(part) - len(part.lstrip(" ")), part.strip(" ")
    if not part:
        raise UsageError("a blank needs a word; select one")
    before, after = given[:start], given[start + len(part) :]
    count = len(engine.tokenizer.encode((" " if before.endswith(" ") else "") + part))
    texts = (*template.texts[:which], before, after, *template.texts[which + 1 :])
    blanks = list(template.blanks)
    blanks.insert(which, Blank(count, count))
    lengths = list(state.layout.lengths)
    lengths.insert(which, count)
    tokens = tokenise(Template(texts, tuple(blanks)), engine.tokenizer)
    old: list[int | None] = [*range(1, len(template.blanks) + 1)]
    old.insert(which, None)
    return lay_out(state, Layout.of(tokens, lengths), f"blank {part!r}", engine, old=old)


def resize(state: State, number: int, length: int, engine: Engine) -> State:
    """Blank `number` with another length in tokens, and only its fixed words kept."""
    blank = state.blank(number)
    if length < 1:
        raise UsageError(f"the length is {length}; a blank has at least 1 token")
    room = engine.longest - len(state.layout.ids_L) + len(blank)
    if length > room:
        raise UsageError(f"the length is {length}; there is room for {room} tokens")
    fixed = np.flatnonzero(state.layout.ids_L[[*blank]] != BLANK)
    if length <= fixed.max(initial=-1):
        raise UsageError(
            f"the length is {length}; token {fixed.max() + 1} of the blank is a fixed word"
        )
    blanks, lengths = list(state.layout.template.blanks), list(state.layout.lengths)
    blanks[number - 1], lengths[number - 1] = Blank(length, length), length
    template = replace(state.layout.template, blanks=tuple(blanks))
    layout = Layout.of(tokenise(template, engine.tokenizer), lengths)
    old = range(1, len(blanks) + 1)
    return lay_out(state, layout, f"length {number} {length}", engine, old=old, fresh=number)


def lay_out(
    state: State,
    layout: Layout,
    what: str,
    engine: Engine,
    *,
    old: Sequence[int | None] = (),
    fresh: int | None = None,
) -> State:
    """Another layout: blank i keeps the tokens of blank `old[i]`, kept tokens their order.

    Of blank `fresh` only the fixed words are kept.
    """
    layout = _fixed(state, layout, old)
    if len(layout.ids_L) > engine.longest:
        raise UsageError(
            f"the text has {len(layout.ids_L)} tokens; the model takes {engine.longest}"
        )
    tokens_L = layout.ids_L.copy()
    for number, before in zip(range(1, len(old) + 1), old, strict=True):
        if before is not None and number != fresh:
            start = layout.starts[number - 1]
            content = state.tokens_L[[*state.blank(before)]]
            tokens_L[start : start + len(content)] = content
    moved = _moved(state.tokens_L, tokens_L)
    kept = [moved[p] for p in state.order.tolist() if p in moved]
    rest = np.setdiff1d(np.flatnonzero(tokens_L != BLANK), kept)
    return replace(
        state,
        layout=layout,
        what=what,
        tokens_L=tokens_L,
        log_probs_L=np.zeros(len(tokens_L)),
        order=np.array([*kept, *rest.tolist()], np.int64),
        locked=frozenset(moved[p] for p in state.locked if p in moved),
    )


def _fixed(state: State, layout: Layout, old: Sequence[int | None]) -> Layout:
    """This layout with the fixed words of blank `old[i]` at their places in blank i."""
    ids_L = layout.ids_L.copy()
    for start, before in zip(layout.starts, old, strict=False):
        then_L = state.layout.ids_L[[*state.blank(before)] if before else []]
        there = np.flatnonzero(then_L != BLANK)
        ids_L[start + there] = then_L[there]
    return replace(layout, ids_L=ids_L, spaced_L=layout.spaced_L & (ids_L == BLANK))


def _free(state: State, positions: Iterable[int]) -> set[int]:
    """Those of the positions that may be decided again."""
    return {p for p in positions if state.layout.ids_L[p] == BLANK} - state.locked


def _moved(before_L: Ids, after_L: Ids) -> dict[int, int]:
    """Where each token that is kept has gone: old position to new."""
    matcher = SequenceMatcher(None, before_L.tolist(), after_L.tolist(), autojunk=False)
    return {
        block.a + i: block.b + i
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
        if after_L[block.b + i] != BLANK
    }
