"""A text with blanks, filled and changed at will, with exact undo.

Every change keeps the longest run of the KV cache that is still right, cuts the tail, computes the
kept tokens behind the cut once, and decides the rest. `Tree` holds the states, `TextCache` follows
them, `changes` says what a change keeps, and `Filling` decides what it does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from esogen.editor import changes
from esogen.editor.filling import Filling
from esogen.editor.state import Knobs, State
from esogen.editor.text_cache import TextCache
from esogen.editor.tree import Tree
from esogen.errors import UsageError
from esogen.generate.denoise import Step
from esogen.generate.plan import make_plan
from esogen.generate.template import BLANK, Layout, Tokens, layouts
from esogen.language_model import LanguageModel
from esogen.ranking.infilling import InfillSettings
from esogen.sampling import DEFAULT_BATCH


class Session:
    """Edits one text: `tree` has its states, and `cache` stands where the current one does.

    `live` is the state that is being decided, whose arrays fill up with every step; `sample` the
    number of the last noise that was used.
    """

    def __init__(self, lm: LanguageModel, settings: InfillSettings) -> None:
        self.engine = lm.infilling(settings).engine
        self.settings, self.sample = settings, 0
        self.tree, self.cache = Tree(), TextCache(self.engine)
        self.live: State | None = None
        self._lm = lm

    @property
    def current(self) -> State:
        """The state that is shown."""
        return self.tree.current

    # What decides tokens. Each of these yields the steps of the network as it makes them.

    def open(self, tokens: Tokens) -> Iterator[Step]:
        """Begin with a template; blanks whose length is to be found get the best one."""
        layout, sample = self._found(tokens)
        if self.tree.states:
            wanted = changes.lay_out(self.current, layout, "template", self.engine)
        else:
            unfilled = self._unfilled(layout, sample)
            self.cache.restore(unfilled)
            self.tree.add(unfilled)
            wanted = replace(unfilled, what="fill")
        yield from self._decide(replace(wanted, sample=sample))

    def reroll(self, number: int | None = None) -> Iterator[Step]:
        """Decide blank `number` again, or all blanks; what is locked or fixed stays."""
        return self._change(changes.reroll(self.current, number))

    def branch(self, position: int) -> Iterator[Step]:
        """Go back to before the token at `position` was decided, and on from there anew."""
        return self._change(changes.branch(self.current, position))

    def blank_out(self, text: str) -> Iterator[Step]:
        """Make a blank of the first place where `text` is given, as long as it is in tokens."""
        texts = self.current.layout.template.texts
        found = [i for i, given in enumerate(texts) if text and text in given]
        if not found:
            raise UsageError(f"{text!r} is not among the given words; reroll or lock the others")
        return self.blank_part(found[0], texts[found[0]].index(text), len(text))

    def blank_part(self, which: int, start: int, length: int) -> Iterator[Step]:
        """Make a blank of `length` characters from `start` on in given text number `which`."""
        return self._change(changes.blank_part(self.current, which, start, length, self.engine))

    def resize(self, number: int, length: int) -> Iterator[Step]:
        """Give blank `number` another length in tokens, and decide it again."""
        return self._change(changes.resize(self.current, number, length, self.engine))

    def next(self) -> Iterator[Step]:
        """The next candidate for what this state decided: one that is there, or a new one."""
        state, candidates = self.current, self.tree.candidates()
        place = candidates.index(state.number)
        if place + 1 < len(candidates):
            self.go_to(candidates[place + 1])
            return iter(())
        return self._another(state)

    def _another(self, state: State) -> Iterator[Step]:
        """What `state` decided, decided anew; back at it if that is not brought to its end."""
        assert state.parent is not None
        self.go_to(state.parent)
        try:
            yield from self._change(changes.without(state, {*state.decided}, state.what))
        except BaseException:
            self.go_to(state.number)
            raise

    # What computes nothing.

    def previous(self) -> None:
        """The candidate before this one."""
        candidates = self.tree.candidates()
        place = candidates.index(self.current.number)
        if place == 0:
            raise UsageError("this is the first candidate; next makes another")
        self.go_to(candidates[place - 1])

    def lock(self, positions: Sequence[int], *, locked: bool) -> None:
        """Keep these positions from being decided again, or no longer."""
        state = self.current
        now = state.locked | {*positions} if locked else state.locked - {*positions}
        what = "lock" if locked else "unlock"
        self.tree.add(replace(state, what=what, fork=state.clean, decided=(), locked=now))

    def turn(self, knobs: Knobs, what: str) -> None:
        """Decide from here on in another way."""
        state = self.current
        self.tree.add(replace(state, what=what, fork=state.clean, decided=(), knobs=knobs))

    def undo(self) -> None:
        """Back to the state this one was made from."""
        if self.current.parent is None:
            raise UsageError("there is nothing to undo")
        self.go_to(self.current.parent)

    def redo(self) -> None:
        """Forward to the state that was left last."""
        child = self.tree.left_last.get(self.current.number)
        if child is None:
            raise UsageError("there is nothing to redo")
        self.go_to(child)

    def go_to(self, number: int) -> None:
        """To any state, along the tree; the KV cache becomes, to the bit, what it was there."""
        for step in self.tree.path(number):
            here, there = self.current, self.tree.states[step]
            fork = here.fork if here.parent == step else there.fork
            self.cache.lay_aside(here, fork)
            self.cache.take_back(there, fork)
            self.tree.step(step)

    def resume(self, states: Sequence[State], current: int, sample: int) -> None:
        """Take up states that were written down; the text is there, the cache computed anew."""
        self.tree, self.sample = Tree(states, current), sample
        self.cache.restore(self.current)

    # How it is done.

    def _found(self, tokens: Tokens) -> tuple[Layout, int]:
        """The template laid out, and the noise of its best candidate."""
        if tokens.combinations == 1:
            return layouts(tokens, self.engine.longest, 1)[0], self._fresh_sample()
        (filled,) = self._lm.infilling(self.settings).carry_out([tokens], DEFAULT_BATCH)
        self.sample = max(self.sample, filled[0].index)
        return Layout.of(tokens, filled[0].lengths), filled[0].index

    def _unfilled(self, layout: Layout, sample: int) -> State:
        """The first state: given tokens in the order of every run, and blanks."""
        knobs = Knobs(self.settings.schedule, self.settings.draw)
        given = np.flatnonzero(layout.ids_L != BLANK)
        plan = make_plan(knobs.schedule, self.settings.seed, range(1), given, given[:0])
        return State(
            0, None, "template", layout, layout.ids_L, np.zeros(len(layout.ids_L)),
            plan.order_BL[0], len(given), 0, (), frozenset(), knobs, sample,
        )  # fmt: skip

    def _fresh_sample(self) -> int:
        self.sample += 1
        return self.sample

    def _change(self, wanted: State) -> Iterator[Step]:
        """Decide the blanks of `wanted` with noise that was not used before."""
        return self._decide(replace(wanted, sample=self._fresh_sample()))

    def _decide(self, wanted: State) -> Iterator[Step]:
        """Decide the blanks of `wanted`, made from the current state: its child when all are."""
        parent, filling = self.current, Filling(self.engine, self.settings, wanted)
        fork = parent.shared(filling.state)
        self.cache.lay_aside(parent, fork)
        self.live = filling.state
        try:
            yield from filling.steps(self.cache)
        except BaseException:
            self.cache.take_back(parent, fork)
            raise
        finally:
            self.live = None
        self.tree.add(replace(filling.state, clean=self.cache.standing, fork=fork))
