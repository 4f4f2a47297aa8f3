"""A text while masks become tokens: one moment of it, laid out in lines of spans with roles.

Pure: nothing here knows a terminal, a model or the time. The live view and a replay draw the same.

Shapes: L positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esogen.trace import GIVEN as GIVEN_STEP
from esogen.trace import UNDECIDED
from esogen.view import theme
from esogen.view.flow import SPACE, WORD, Flow, Line, Part, parts_of
from esogen.view.theme import ColorBy
from esogen.visible import visible

UNSURE, SURE = 0.3, 0.7
"""Certainty below which a token just decided is low, and from which it is high."""

_HALF = "\ufffd"
_LONGEST_HALF = 64
"""Tokens that may wait together for the rest of a character."""

_SHADE, _PEN_SHADE = "░", "▓"
_LETTERS = (3, 2, 4, 3, 1, 5, 3, 2, 4, 2, 3, 6, 2, 3, 1, 4, 3, 5, 2, 3)
"""Widths of the words that masks stand for: about those of text, and about as uneven."""

_TRIED = 32
"""Pairs of tokens after which it is known how a tokenizer joins them."""

_ROLES = (
    *(theme.MASK, theme.PEN, theme.DRAFT, theme.GIVEN, theme.SETTLED, theme.WRITTEN),
    *(theme.LOW, theme.MIDDLE, theme.HIGH, *theme.ORDERS, *theme.CYCLE),
)
_ROLE = {role: number for number, role in enumerate(_ROLES)}

Parts = tuple[Part, ...]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One text at one moment.

    `tokens_L` int64, `UNDECIDED` where a mask stands. `steps_L` int64: the call that decided each
    position, -1 where it was given or none has yet. `certainty_L`: probability in [0, 1] that the
    model gave the token then. `given_L` bool. `step`: index of the latest call, -1 before the
    first; of `steps` calls in the plan the first `diffusion_steps` are the diffusion phase. What
    call number `since` and later ones decided counts as just decided. `ended`: behind the last
    position stands the end of the text. `drafts_L`: ids of drafts that are still to be verified,
    `UNDECIDED` elsewhere, or None where nothing is drafted.
    """

    tokens_L: NDArray[np.int64]
    steps_L: NDArray[np.int64]
    certainty_L: NDArray[np.float64]
    given_L: NDArray[np.bool_]
    step: int
    steps: int
    diffusion_steps: int
    since: int
    ended: bool = False
    drafts_L: NDArray[np.int64] | None = None

    @property
    def shown_L(self) -> NDArray[np.int64]:
        """Ids to be shown: drafts stand where masks do."""
        if self.drafts_L is None:
            return self.tokens_L
        return np.where(self.tokens_L == UNDECIDED, self.drafts_L, self.tokens_L)

    @property
    def sequential(self) -> bool:
        """Whether the latest call was of the sequential phase."""
        return self.step >= 0 and self.step >= self.diffusion_steps

    @property
    def masks_left(self) -> int:
        """Positions that are still to be decided."""
        return int((self.tokens_L == UNDECIDED).sum())

    def until(self, end_of_text: int | None) -> "Frame":
        """Without the first end-of-text and what stands behind it: that is no text for good.

        Tokens are decided once, so an end only ever moves to the left.
        """
        ends = np.flatnonzero(self.tokens_L == end_of_text)
        if not len(ends):
            return self
        end = int(ends[0])
        return replace(
            self,
            tokens_L=self.tokens_L[:end],
            steps_L=self.steps_L[:end],
            certainty_L=self.certainty_L[:end],
            given_L=self.given_L[:end],
            drafts_L=None if self.drafts_L is None else self.drafts_L[:end],
            ended=True,
        )


class Page(NamedTuple):
    """A frame laid out: `focus` is the line of its first mask, or its last line."""

    lines: list[Line]
    focus: int


def layout(frame: Frame, pieces: "Pieces", width: int, color_by: ColorBy) -> Page:
    """Wrap a frame to `width` columns."""
    ids = frame.shown_L.tolist()
    flow, focus = Flow(width), -1
    for position, (parts, role) in enumerate(
        zip(pieces.parts(ids), roles(frame, color_by), strict=True)
    ):
        if focus < 0 and ids[position] == UNDECIDED:
            focus = len(flow.lines)
        for part in _as_pen(parts) if role == theme.PEN else parts:
            flow.add(part, role)
    if frame.ended:
        flow.add(_END, theme.QUIET)
    lines = flow.finish()
    return Page(lines, focus if focus >= 0 else max(0, len(lines) - 1))


_END = Part(WORD, "∎", 1)


def _as_pen(parts: "Parts") -> "Parts":
    """The mask that the sequential phase decides next, darker, so that it needs no colour."""
    return tuple(part._replace(text=part.text.replace(_SHADE, _PEN_SHADE)) for part in parts)


def roles(frame: Frame, color_by: ColorBy) -> list[str]:
    """What each position is, so that a theme can paint it."""
    if color_by == "certainty":
        numbers_L = _by_certainty(frame)
    elif color_by == "order":
        shade_L = frame.steps_L * len(theme.ORDERS) // max(frame.steps, 1)
        numbers_L = _ROLE[theme.ORDERS[0]] + shade_L.clip(0, len(theme.ORDERS) - 1)
    else:
        numbers_L = _ROLE[theme.CYCLE[0]] + frame.steps_L % len(theme.CYCLE)
    numbers_L[frame.tokens_L == UNDECIDED] = _ROLE[theme.DRAFT]
    masks_L = frame.shown_L == UNDECIDED
    numbers_L[masks_L] = _ROLE[theme.MASK]
    numbers_L[frame.given_L] = _ROLE[theme.GIVEN]
    if frame.sequential and masks_L.any():
        numbers_L[int(masks_L.argmax())] = _ROLE[theme.PEN]
    return [_ROLES[number] for number in numbers_L.tolist()]


def _by_certainty(frame: Frame) -> NDArray[np.int64]:
    """Just decided tokens by certainty, the others by the phase that decided them."""
    grade_L = (frame.certainty_L >= UNSURE).astype(np.int64) + (frame.certainty_L >= SURE)
    late_L = frame.steps_L >= frame.diffusion_steps
    calm_L = np.where(late_L, _ROLE[theme.WRITTEN], _ROLE[theme.SETTLED])
    just_L = (frame.steps_L >= frame.since) & (frame.steps_L != GIVEN_STEP)
    return np.where(just_L, _ROLE[theme.LOW] + grade_L, calm_L)


class Pieces:
    """What each token of a text shows, remembered from frame to frame.

    `decode` turns a run of ids into text. Half a character shows nothing but a narrow mask until
    the other half is decided.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._alone: dict[int, str] = {}
        self._parts: dict[tuple[int, int], Parts] = {}
        self._halves: dict[tuple[int, ...], str] = {}
        self._joined = self._tried = 0

    def parts(self, ids: Sequence[int]) -> list[Parts]:
        """Parts for each of `ids`; those of a mask stand for a word of about the usual width."""
        shown: list[Parts] = []
        halves = _Halves(self._decode_halves)
        before = UNDECIDED
        for position, token in enumerate(ids):
            if token == UNDECIDED:
                halves.cut_off(shown)
                shown.append(_MASKS[position % len(_MASKS)] if position else _MASKS[0][1:])
            elif self._is_half(token):
                shown.append(halves.add(token, after_mask=before == UNDECIDED and position > 0))
            else:
                halves.end(shown)
                shown.append(self._part(before, token))
            before = token
        halves.end(shown)
        return shown

    def _is_half(self, token: int) -> bool:
        text = self._alone.get(token)
        if text is None:
            text = self._alone[token] = self._decode([token])
        return _HALF in text

    def _part(self, before: int, token: int) -> Parts:
        if before == UNDECIDED or (self._joined == _TRIED and self._tried == _TRIED):
            before = UNDECIDED
        key = (before, token)
        parts = self._parts.get(key)
        if parts is None:
            parts = self._parts[key] = parts_of(visible(self._text(before, token)))
        return parts

    def _text(self, before: int, token: int) -> str:
        """What `token` adds behind `before`: some tokenizers put a space between words."""
        alone = self._alone[token]
        if before == UNDECIDED or self._is_half(before):
            return alone
        both, first = self._decode([before, token]), self._alone[before]
        added = both.removeprefix(first) if both.startswith(first) else alone
        if self._tried < _TRIED:
            self._tried += 1
            self._joined += added == alone
        return added

    def _decode_halves(self, ids: tuple[int, ...]) -> str:
        text = self._halves.get(ids)
        if text is None:
            text = self._halves[ids] = self._decode(ids)
        return text


_HALF_MASK: Parts = (Part(WORD, _SHADE, 1),)
_MASKS: tuple[Parts, ...] = tuple(
    (Part(SPACE, " ", 1), Part(WORD, _SHADE * width, width)) for width in _LETTERS
)


class _Halves:
    """A run of tokens that are no whole characters by themselves."""

    def __init__(self, decode: Callable[[tuple[int, ...]], str]) -> None:
        self._decode = decode
        self._clear()

    def _clear(self) -> None:
        self._ids: tuple[int, ...] = ()
        self._shown = 0
        self._lead = False

    def add(self, token: int, *, after_mask: bool) -> Parts:
        """The characters that `token` completes."""
        if not self._ids:
            self._lead = after_mask
        self._ids += (token,)
        text = self._decode(self._ids)
        whole = text.rstrip(_HALF) if len(self._ids) < _LONGEST_HALF else text
        parts = self._new(whole)
        if whole == text:
            self._clear()
        return parts

    def end(self, shown: list[Parts]) -> None:
        """The run is over, and what is no character now is none."""
        if self._ids:
            shown[-1] += self._new(self._decode(self._ids))
            self._clear()

    def cut_off(self, shown: list[Parts]) -> None:
        """A mask follows, which may hold the other half."""
        if self._ids:
            shown[-1] += _HALF_MASK
            self._clear()

    def _new(self, whole: str) -> Parts:
        """What of `whole` has not been shown; its head may belong to a character in a mask."""
        added, self._shown = whole[self._shown :], max(self._shown, len(whole))
        if not self._lead or not added:
            return parts_of(visible(added))
        self._lead = False
        rest = added.lstrip(_HALF)
        return parts_of(visible(rest)) if rest == added else (*_HALF_MASK, *parts_of(visible(rest)))
