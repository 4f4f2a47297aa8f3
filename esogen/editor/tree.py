"""The states of an edit as a tree: each but the first was made from another.

Undo goes to the parent, redo to the child that was left last, and nothing that was made is ever
dropped.
"""

from collections.abc import Sequence
from dataclasses import replace

from esogen.editor.state import State
from esogen.errors import UsageError


class Tree:
    """States by number, and the number of the current one: -1 before there is any.

    `left_last`: of each state, its child that was left last.
    """

    def __init__(self, states: Sequence[State] = (), current_number: int = -1) -> None:
        self.states, self.current_number = [*states], current_number
        self.left_last: dict[int, int] = {}

    @property
    def current(self) -> State:
        """The state that is shown."""
        return self.states[self.current_number]

    def add(self, state: State) -> None:
        """Take up a state that was made from the current one, and show it; it is numbered here."""
        number, parent = len(self.states), self.current_number if self.states else None
        self.states.append(replace(state, number=number, parent=parent))
        if parent is not None:
            self.left_last[parent] = number
        self.current_number = number

    def step(self, number: int) -> None:
        """Show the parent or a child of the current state."""
        here = self.current
        if here.parent == number:
            self.left_last[number] = here.number
        else:
            self.left_last[here.number] = number
        self.current_number = number

    def candidates(self) -> list[int]:
        """The current state and all that decided the same, made from the same parent.

        Raises `UsageError` where it decided nothing.
        """
        here = self.current
        if not here.decided:
            raise UsageError("nothing was decided here; reroll a blank to have candidates of it")
        return [
            each.number
            for each in self.states
            if each.parent == here.parent and each.decided and each.what == here.what
        ]

    def path(self, number: int) -> list[int]:
        """The states to step through on the way to this one. Raises `UsageError` for no state."""
        if not 0 <= number < len(self.states):
            raise UsageError(f"there is no state {number}; there are 0 to {len(self.states) - 1}")
        up, down = self._ancestors(self.current_number), self._ancestors(number)
        meet = next(each for each in up if each in down)
        return [*up[1 : up.index(meet) + 1], *reversed(down[: down.index(meet)])]

    def _ancestors(self, number: int | None) -> list[int]:
        """From this state to the first."""
        found = []
        while number is not None:
            found.append(number)
            number = self.states[number].parent
        return found
