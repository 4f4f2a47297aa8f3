"""A text with blanks, filled and changed at will, with exact undo.

The KV cache of the one text is append-only in the order its tokens were decided. Every change keeps
the longest run of it that is still right, cuts the tail, computes the kept tokens behind the cut
once, and decides the rest. What is cut off is laid aside with the state it belongs to, so that a
return to that state puts back the very same bytes and computes nothing.

States form a tree: undo goes to the parent, redo to the child that was left last, and nothing that
was made is ever dropped.

Shapes: L positions of the text, K tokens of one step, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esogen.editor.state import Ids, Knobs, State
from esogen.errors import UsageError
from esogen.generate.captured import Through
from esogen.generate.denoise import Step
from esogen.generate.fill import Rule, decide
from esogen.generate.plan import make_plan
from esogen.generate.streams import token_uniforms
from esogen.generate.template import BLANK, Blank, Layout, Template, Tokens, layouts, tokenise
from esogen.language_model import LanguageModel
from esogen.model.cache import KVCache
from esogen.model.network import with_bos
from esogen.ranking.infilling import BEGINS_WORD, FREE, InfillSettings
from esogen.sampling import DEFAULT_BATCH

LAID_ASIDE = 2**29
"""Bytes of keys and values kept for undo; states beyond are computed again when returned to."""


class Session:
    """Edits one text.

    `computed` counts the tokens that went through the network; `live` is the state that is being
    decided, whose arrays fill up with every step.
    """

    def __init__(self, lm: LanguageModel, settings: InfillSettings) -> None:
        self.engine = lm.infilling(settings).engine
        self.settings, self.computed = settings, 0
        self.states: list[State] = []
        self.live: State | None = None
        self.current_number = -1
        self.left_last: dict[int, int] = {}
        network = self.engine.network
        dtype = network.vocab_embed.embedding.dtype
        capacity = network.config.model_length
        self._lm = lm
        self._cache = KVCache(
            network.config,
            1,
            capacity,
            device=self.engine.device,
            dtype=dtype,
            kernel=lm.kernels.whole,
        )
        self._through = Through(network, self._cache, lm.kernels)
        self._aside: dict[int, Tensor] = {}
        self._sample = 0
        self._bos = self._begin_cache()

    @property
    def current(self) -> State:
        """The state that is shown."""
        return self.states[self.current_number]

    # What can be done. Each of these yields the steps of the network as it makes them.

    def open(self, tokens: Tokens) -> Iterator[Step]:
        """Begin with a template; blanks whose length is to be found get the best one."""
        layout, sample = self._found(tokens)
        if self.states:
            yield from self._change(layout, "template", sample)
            return
        knobs = Knobs(self.settings.schedule, self.settings.draw)
        given = np.flatnonzero(layout.ids_L != BLANK)
        plan = make_plan(knobs.schedule, self.settings.seed, range(1), given, given[:0])
        state = State(
            0, None, "template", layout, layout.ids_L, np.zeros(len(layout.ids_L)),
            plan.order_BL[0], len(given), 0, (), frozenset(), knobs, sample,
        )  # fmt: skip
        self._restore(state)
        self._add(state)
        yield from self._redecide(set(np.flatnonzero(layout.ids_L == BLANK)), "fill", sample)

    def reroll(self, number: int | None = None) -> Iterator[Step]:
        """Decide blank `number` again, or all blanks; what is locked or fixed stays."""
        state = self.current
        numbers = range(1, len(state.layout.starts) + 1) if number is None else [number]
        there = {p for each in numbers for p in self._blank(each)}
        positions = {p for p in there if state.layout.ids_L[p] == BLANK} - state.locked
        if not positions:
            raise UsageError("everything there is locked or fixed; unlock a word or a blank first")
        return self._redecide(positions, "reroll" if number is None else f"reroll {number}")

    def branch(self, position: int) -> Iterator[Step]:
        """Go back to before the token at `position` was decided, and on from there anew."""
        state = self.current
        if state.layout.ids_L[position] != BLANK:
            raise UsageError("that word was given; branch at a word of a blank")
        if state.tokens_L[position] == BLANK:
            raise UsageError("nothing is decided there yet; reroll fills the blank")
        later = state.order[state.order.tolist().index(position) :].tolist()
        positions = {p for p in later if state.layout.ids_L[p] == BLANK} - state.locked
        return self._redecide(positions | {position}, "branch")

    def next(self) -> Iterator[Step]:
        """The next candidate for what this state decided: one that is there, or a new one."""
        state = self.current
        if not state.decided:
            raise UsageError("nothing was decided here; reroll a blank to have candidates of it")
        siblings = self._siblings(state)
        place = siblings.index(state.number)
        if place + 1 < len(siblings):
            self.go_to(siblings[place + 1])
            return iter(())
        return self._another(state)

    def _another(self, state: State) -> Iterator[Step]:
        """What `state` decided, decided anew; back at it if that is not brought to its end."""
        assert state.parent is not None
        kept = state.order[: len(state.order) - len(state.decided)]
        tokens_L = state.tokens_L.copy()
        tokens_L[[*state.decided]] = BLANK
        self.go_to(state.parent)
        try:
            yield from self._decide(
                replace(state, tokens_L=tokens_L, order=kept, sample=self._fresh_sample())
            )
        except BaseException:
            self.go_to(state.number)
            raise

    def previous(self) -> None:
        """The candidate before this one."""
        siblings = self._siblings(self.current)
        place = siblings.index(self.current_number)
        if place == 0:
            raise UsageError("this is the first candidate; next makes another")
        self.go_to(siblings[place - 1])

    def blank_out(self, text: str) -> Iterator[Step]:
        """Make a blank of the first place where `text` is given, as long as it is in tokens."""
        template = self.current.layout.template
        found = [i for i, given in enumerate(template.texts) if text and text in given]
        if not found:
            raise UsageError(f"{text!r} is not among the given words; reroll or lock the others")
        return self.blank_part(found[0], template.texts[found[0]].index(text), len(text))

    def blank_part(self, which: int, start: int, length: int) -> Iterator[Step]:
        """Make a blank of `length` characters from `start` on in given text number `which`."""
        state, tokenizer = self.current, self.engine.tokenizer
        template = state.layout.template
        given = template.texts[which]
        part = given[start : start + length]
        start, part = start + len(part) - len(part.lstrip(" ")), part.strip(" ")
        if not part:
            raise UsageError("a blank needs a word; select one")
        before, after = given[:start], given[start + len(part) :]
        count = len(tokenizer.encode((" " if before.endswith(" ") else "") + part))
        texts = (*template.texts[:which], before, after, *template.texts[which + 1 :])
        blanks = list(template.blanks)
        blanks.insert(which, Blank(count, count))
        lengths = list(state.layout.lengths)
        lengths.insert(which, count)
        tokens = tokenise(Template(texts, tuple(blanks)), tokenizer)
        old: list[int | None] = [*range(1, len(template.blanks) + 1)]
        old.insert(which, None)
        return self._change(Layout.of(tokens, lengths), f"blank {part!r}", None, old)

    def resize(self, number: int, length: int) -> Iterator[Step]:
        """Give blank `number` another length in tokens, and decide it again."""
        blank, state = self._blank(number), self.current
        if length < 1:
            raise UsageError(f"the length is {length}; a blank has at least 1 token")
        room = self.engine.longest - len(state.layout.ids_L) + len(blank)
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
        layout = Layout.of(tokenise(template, self.engine.tokenizer), lengths)
        old = range(1, len(blanks) + 1)
        return self._change(layout, f"length {number} {length}", None, old, fresh=number)

    # What computes nothing.

    def lock(self, positions: Sequence[int], *, locked: bool) -> None:
        """Keep these positions from being decided again, or no longer."""
        state = self.current
        now = state.locked | {*positions} if locked else state.locked - {*positions}
        self._add(self._same(state, "lock" if locked else "unlock", locked=now))

    def turn(self, knobs: Knobs, what: str) -> None:
        """Decide from here on in another way."""
        self._add(self._same(self.current, what, knobs=knobs))

    def undo(self) -> None:
        """Back to the state this one was made from."""
        if self.current.parent is None:
            raise UsageError("there is nothing to undo")
        self.go_to(self.current.parent)

    def redo(self) -> None:
        """Forward to the state that was left last."""
        child = self.left_last.get(self.current_number)
        if child is None:
            raise UsageError("there is nothing to redo")
        self.go_to(child)

    def go_to(self, number: int) -> None:
        """To any state, along the tree; the KV cache becomes, to the bit, what it was there."""
        if not 0 <= number < len(self.states):
            raise UsageError(f"there is no state {number}; there are 0 to {len(self.states) - 1}")
        for step in self._path(number):
            self._walk(step)

    def resume(self, states: Sequence[State], current: int, sample: int) -> None:
        """Take up states that were written down; the text is there, the cache computed anew."""
        self.states, self._sample = [*states], sample
        self._restore(self.states[current])
        self.current_number = current

    @property
    def sample(self) -> int:
        """The number of the last noise that was used."""
        return self._sample

    # How it is done.

    @torch.inference_mode()
    def _begin_cache(self) -> int:
        """Feed the model's bos token, if it has one: how many tokens stand before every text."""
        network, nothing = self.engine.network, torch.zeros(1, 0, dtype=torch.int64)
        ids, positions = with_bos(network.config, nothing, nothing)
        if count := ids.shape[1]:
            device = self.engine.device
            self._through(ids.to(device), positions.to(device))
            self._cache.commit(count)
        return count

    @property
    def _standing(self) -> int:
        """Tokens of the text that stand in the cache."""
        return int(self._cache.lengths_B[0]) - self._bos

    def _blank(self, number: int) -> range:
        try:
            return self.current.blank(number)
        except IndexError:
            blanks = len(self.current.layout.starts)
            raise UsageError(f"there is no blank {number}; there are 1 to {blanks}") from None

    def _found(self, tokens: Tokens) -> tuple[Layout, int]:
        """The template laid out, and the noise of its best candidate."""
        if tokens.combinations == 1:
            return layouts(tokens, self.engine.longest, 1)[0], self._fresh_sample()
        (filled,) = self._lm.infilling(self.settings).carry_out([tokens], DEFAULT_BATCH)
        self._sample = max(self._sample, filled[0].index)
        return Layout.of(tokens, filled[0].lengths), filled[0].index

    def _fresh_sample(self) -> int:
        self._sample += 1
        return self._sample

    def _siblings(self, state: State) -> list[int]:
        return [
            each.number
            for each in self.states
            if each.parent == state.parent and each.decided and each.what == state.what
        ]

    def _redecide(
        self, positions: set[int], what: str, sample: int | None = None
    ) -> Iterator[Step]:
        """Decide these positions of the text again, all others kept in their order."""
        state = self.current
        tokens_L = state.tokens_L.copy()
        tokens_L[sorted(positions)] = BLANK
        kept = np.array([p for p in state.order.tolist() if tokens_L[p] != BLANK], np.int64)
        return self._decide(
            replace(
                state,
                tokens_L=tokens_L,
                order=kept,
                what=what,
                sample=self._fresh_sample() if sample is None else sample,
            )
        )

    def _change(
        self,
        layout: Layout,
        what: str,
        sample: int | None,
        old: Sequence[int | None] = (),
        fresh: int | None = None,
    ) -> Iterator[Step]:
        """Another layout: blank i keeps the tokens of blank `old[i]`, kept tokens their order.

        Of blank `fresh` only the fixed words are kept.
        """
        state, layout = self.current, self._fixed(layout, old)
        if len(layout.ids_L) > self.engine.longest:
            raise UsageError(
                f"the text has {len(layout.ids_L)} tokens; the model takes {self.engine.longest}"
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
        return self._decide(
            replace(
                state,
                layout=layout,
                what=what,
                tokens_L=tokens_L,
                log_probs_L=np.zeros(len(tokens_L)),
                order=np.array([*kept, *rest.tolist()], np.int64),
                locked=frozenset(moved[p] for p in state.locked if p in moved),
                sample=self._fresh_sample() if sample is None else sample,
            )
        )

    def _fixed(self, layout: Layout, old: Sequence[int | None]) -> Layout:
        """This layout with the fixed words of blank `old[i]` at their places in blank i."""
        ids_L = layout.ids_L.copy()
        for start, before in zip(layout.starts, old, strict=False):
            then_L = self.current.layout.ids_L[[*self.current.blank(before)] if before else []]
            there = np.flatnonzero(then_L != BLANK)
            ids_L[start + there] = then_L[there]
        return replace(layout, ids_L=ids_L, spaced_L=layout.spaced_L & (ids_L == BLANK))

    @torch.inference_mode()
    def _decide(self, wanted: State) -> Iterator[Step]:
        """Decide the blanks of `wanted`, a child of the current state whose `order` is kept."""
        parent, kept = self.current, wanted.order
        tokens_L, log_probs_L = wanted.tokens_L.copy(), wanted.log_probs_L.copy()
        blank = np.flatnonzero(tokens_L == BLANK)
        samples = range(wanted.sample, wanted.sample + 1)
        schedule, seed = wanted.knobs.schedule, self.settings.seed
        plan = make_plan(schedule, seed, samples, np.sort(kept), blank)
        order = np.concatenate([kept, plan.order_BL[0, plan.given :]])
        fork = _common(parent.standing, np.stack([kept, tokens_L[kept]], 1))
        noise, finished = self._noise(wanted), False
        self._lay_aside(parent, fork)
        fresh = tuple(blank.tolist())
        self.live = replace(wanted, tokens_L=tokens_L, log_probs_L=log_probs_L, decided=fresh)
        try:
            decided = len(kept)
            for index, count in enumerate(plan.counts_S.tolist()):
                positions = order[decided : decided + count]
                tokens, log_probs = self._draw(noise, tokens_L, order[: decided + count], count)
                tokens_L[positions], log_probs_L[positions] = tokens.cpu(), log_probs.cpu()
                decided += count
                yield Step(
                    index,
                    index >= plan.diffusion_steps,
                    np.zeros(1, np.int64),
                    torch.from_numpy(positions)[None],
                    tokens[None],
                    log_probs[None],
                )
            finished = True
        finally:
            self.live = None
            if not finished:
                self._take_back(parent, fork)
        self._add(
            replace(
                wanted,
                number=len(self.states),
                parent=parent.number,
                tokens_L=tokens_L,
                log_probs_L=log_probs_L,
                order=order,
                clean=self._standing,
                fork=fork,
                decided=fresh,
            )
        )

    def _noise(self, state: State) -> "_Noise":
        uniforms_L3 = token_uniforms(self.settings.seed, state.sample, len(state.tokens_L))
        kinds_L = np.where(state.layout.spaced_L, BEGINS_WORD, FREE)
        uniforms, kinds = (
            torch.from_numpy(x).to(self.engine.device) for x in (uniforms_L3[:, 0], kinds_L)
        )
        rule = replace(self.settings, draw=state.knobs.draw).rule(self.engine)
        return _Noise(uniforms, kinds, rule)

    def _draw(
        self, noise: "_Noise", tokens_L: Ids, order: Ids, count: int
    ) -> tuple[Tensor, Tensor]:
        """One step: what does not stand yet becomes clean, then the last `count` are drawn."""
        clean = len(order) - count
        hidden_KD = self._feed(tokens_L, order, clean)
        at = torch.from_numpy(order[clean:]).to(self.engine.device)
        uniforms, kinds = noise.uniforms_L[at], noise.kinds_L[at]
        drawn = decide(self.engine.network, hidden_KD, uniforms, kinds, noise.rule)
        return drawn.tokens, drawn.log_probs

    @torch.inference_mode()
    def _feed(self, tokens_L: Ids, order: Ids, clean: int) -> Tensor:
        """Compute what of `order` does not stand yet; its first `clean` tokens stand from now on.

        Returns the hidden states `[K, D]` of the masks behind them.
        """
        standing = self._standing
        new = order[standing:]
        ids = np.where(tokens_L[new] == BLANK, self.engine.network.config.mask_id, tokens_L[new])
        ids_BL, positions_BL = (
            torch.from_numpy(x)[None].to(self.engine.device) for x in (ids, new)
        )
        hidden_BLD = self._through(ids_BL, positions_BL)
        self.computed += len(new)
        self._cache.commit(clean - standing)
        return hidden_BLD[0, clean - standing :]

    def _same(
        self,
        state: State,
        what: str,
        *,
        locked: frozenset[int] | None = None,
        knobs: Knobs | None = None,
    ) -> State:
        """A child of `state` that differs in what is locked or in how it goes on."""
        return replace(
            state,
            number=len(self.states),
            parent=state.number,
            what=what,
            fork=state.clean,
            decided=(),
            locked=state.locked if locked is None else locked,
            knobs=state.knobs if knobs is None else knobs,
        )

    def _add(self, state: State) -> None:
        self.states.append(state)
        if state.parent is not None:
            self.left_last[state.parent] = state.number
        self.current_number = state.number

    # Moving about the tree.

    def _path(self, number: int) -> list[int]:
        """The states to step through, one edge of the tree at a time."""
        up, down = self._ancestors(self.current_number), self._ancestors(number)
        meet = next(each for each in up if each in down)
        return [*up[1 : up.index(meet) + 1], *reversed(down[: down.index(meet)])]

    def _ancestors(self, number: int | None) -> list[int]:
        found = []
        while number is not None:
            found.append(number)
            number = self.states[number].parent
        return found

    def _walk(self, number: int) -> None:
        """Along one edge: the tail that is left is laid aside, the other one put back."""
        here, there = self.current, self.states[number]
        child = here if here.parent == number else there
        if child is here:
            self.left_last[number] = here.number
        else:
            self.left_last[here.number] = number
        self._lay_aside(here, child.fork)
        self._take_back(there, child.fork)
        self.current_number = number

    def _lay_aside(self, state: State, fork: int) -> None:
        """Cut the cache to `fork` tokens, and keep what was behind for `state`."""
        length, first = int(self._cache.lengths_B[0]), fork + self._bos
        layers = range(self.engine.network.config.n_blocks)
        tails = [torch.stack([x[:, first:] for x in self._cache.read(i, length)]) for i in layers]
        self._aside.pop(state.number, None)
        self._aside[state.number] = torch.stack(tails)
        while sum(kept.nbytes for kept in self._aside.values()) > LAID_ASIDE:
            self._aside.pop(next(iter(self._aside)))
        self._cache.cut(first)

    def _take_back(self, state: State, fork: int) -> None:
        """Put back behind `fork` tokens what was laid aside for `state`, or compute it again."""
        first = fork + self._bos
        self._cache.cut(first)
        kept = self._aside.pop(state.number, None)
        if kept is None:
            self._restore(state)
            return
        for layer, (k_BLNH, v_BLNH) in enumerate(kept):
            self._cache.write(layer, slice(first, first + kept.shape[3]), k_BLNH, v_BLNH)
        self._cache.commit(kept.shape[3])

    def _restore(self, state: State) -> None:
        """Compute what of `state` does not stand."""
        if self._standing < state.clean:
            self._feed(state.tokens_L, state.order[: state.clean], state.clean)


class _Noise(NamedTuple):
    """What the tokens of a state are drawn with, by position, and how."""

    uniforms_L: Tensor
    kinds_L: Tensor
    rule: Rule


def _common(one: Ids, other: Ids) -> int:
    """Length of the common beginning of two lists of rows."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero((one[:shorter] != other[:shorter]).any(1))
    return int(differ[0]) if len(differ) else shorter


def _moved(before_L: Ids, after_L: Ids) -> dict[int, int]:
    """Where each token that is kept has gone: old position to new."""
    matcher = SequenceMatcher(None, before_L.tolist(), after_L.tolist(), autojunk=False)
    return {
        block.a + i: block.b + i
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
        if after_L[block.b + i] != BLANK
    }
