"""Reading a pickle without running it: an interpreter of pickle's opcodes that calls nothing.

A pickle is a program. Its opcodes can name any importable object and call it; that is how a file
runs a command. Here a name is never looked up. It becomes a `Name`, and calling one gives a `Stub`
that keeps what it was called with and what state it was given. Plain data become themselves: None,
numbers, texts, bytes, lists, tuples, dicts, sets. Parsing the opcodes is `pickletools.genops`,
which only splits bytes.

Nothing is copied that an opcode can repeat, and the number of opcodes is bounded, so memory is too;
keys of dicts and members of sets must be short and plain, so that hashing neither recurses nor
collides.
"""

import pickletools
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple


class Name(NamedTuple):
    """An importable object that a pickle names, as `module.attribute`; never looked up."""

    module: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.module}.{self.attribute}"


@dataclass(slots=True, eq=False)
class Stub:
    """An object that the pickle would have made by calling `callee` with `arguments`.

    `state` is what it was to be set up with; `items` what was to be put into it, pairs for a
    mapping.
    """

    callee: object
    arguments: object = ()
    state: object = None
    items: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Persistent:
    """A reference to something that is kept outside the pickle, such as a tensor's numbers."""

    key: object


class PickleError(ValueError):
    """A pickle that is damaged, or that does what plain data never need."""


MOST_OPCODES = 4_000_000
"""Several times what a checkpoint with a tokenizer needs; each makes one small object at most."""

_LARGEST_KEY = 2**60
_MARK = object()


def read_pickle(data: bytes) -> object:
    """The value of the first pickle in `data`, everything in it inert.

    Raises `PickleError` when it is damaged.
    """
    machine = _Machine()
    try:
        # An old text with an unknown escape, which Python reads with a warning about its source.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            for opcode, argument, position in islice(pickletools.genops(data), MOST_OPCODES):
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, argument, position)
    except PickleError:
        raise
    except RecursionError as error:
        raise PickleError("is nested too deeply") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, SyntaxError) as error:
        raise PickleError(f"is damaged ({type(error).__name__}: {error})") from error
    raise PickleError(f"does not end within {MOST_OPCODES} opcodes")


class _Machine:
    """A stack, a memo, and for each opcode what it does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int | None) -> None:
        """Carry out one opcode."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _VERBS:
            _VERBS[name](self, argument)
        elif name not in _NOTHING:
            raise PickleError(
                f"has the opcode {name} at byte {position}, which plain data need not"
            )

    def pop_mark(self) -> list[Any]:
        """Everything above the topmost mark, which goes too."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                above = self.stack[place + 1 :]
                del self.stack[place:]
                return above
        raise PickleError("ends a list that it never began")

    def pop(self) -> Any:
        """The top of the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("takes a mark for a value")
        return value

    def top(self) -> Any:
        """The top of the stack, which stays."""
        value = self.stack[-1]
        if value is _MARK:
            raise PickleError("takes a mark for a value")
        return value

    def put(self, index: int) -> None:
        """Keep the top of the stack under a number."""
        self._memo[index] = self.top()

    def get(self, index: int) -> None:
        """Push what was kept under a number."""
        self.stack.append(self._memo[index])

    def memoize(self, _: object) -> None:
        """Keep the top of the stack under the next number."""
        self.put(len(self._memo))


def _key(value: object) -> Hashable:
    """`value` if it may be a key: plain, and no number that is made to collide with others."""
    if isinstance(value, int):
        if abs(value) < _LARGEST_KEY:
            return value
    elif value is None or isinstance(value, str | bytes | Name) or type(value) is Stub:
        return value
    elif isinstance(value, tuple) and len(value) <= 4 and not any(map(_nests, value)):
        return tuple(_key(each) for each in value)
    raise PickleError(f"uses a {type(value).__name__} as a key, which plain data need not")


def _nests(value: object) -> bool:
    return isinstance(value, tuple) and not isinstance(value, Name)


def _global(machine: _Machine, argument: str) -> None:
    module, _, attribute = argument.partition(" ")
    machine.stack.append(Name(module, attribute))


def _stack_global(machine: _Machine, _: object) -> None:
    attribute, module = machine.pop(), machine.pop()
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise PickleError("names an object by something else than texts")
    machine.stack.append(Name(module, attribute))


def _extension(machine: _Machine, number: int) -> None:
    machine.stack.append(Name("copyreg", f"extension {number}"))


def _reduce(machine: _Machine, _: object) -> None:
    arguments, callee = machine.pop(), machine.pop()
    machine.stack.append(_called(callee, arguments))


def _new_object(machine: _Machine, _: object) -> None:
    arguments, callee = machine.pop(), machine.pop()
    machine.stack.append(Stub(callee, arguments))


def _new_object_by_keyword(machine: _Machine, _: object) -> None:
    keywords, arguments, callee = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append(Stub(callee, (arguments, keywords)))


def _object(machine: _Machine, _: object) -> None:
    callee, *arguments = machine.pop_mark()
    machine.stack.append(Stub(callee, tuple(arguments)))


def _instance(machine: _Machine, argument: str) -> None:
    module, _, attribute = argument.partition(" ")
    machine.stack.append(Stub(Name(module, attribute), tuple(machine.pop_mark())))


def _called(callee: object, arguments: object) -> object:
    """An empty mapping of the standard library is a dict; everything else stays uncalled."""
    if callee == Name("collections", "OrderedDict") and arguments == ():
        return {}
    return Stub(callee, arguments)


def _build(machine: _Machine, _: object) -> None:
    state, built = machine.pop(), machine.top()
    if isinstance(built, Stub):
        built.state = state
    elif not isinstance(built, dict):  # the attributes of an OrderedDict, which nobody needs
        raise PickleError(f"sets up a {type(built).__name__} as if it were an object")


def _append(machine: _Machine, _: object) -> None:
    value = machine.pop()
    _list_of(machine.top()).append(value)


def _appends(machine: _Machine, _: object) -> None:
    values = machine.pop_mark()
    _list_of(machine.top()).extend(values)


def _list_of(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, Stub):
        return value.items
    raise PickleError(f"appends to a {type(value).__name__}")


def _set_item(machine: _Machine, _: object) -> None:
    value, key = machine.pop(), machine.pop()
    _put_pairs(machine.top(), [key, value])


def _set_items(machine: _Machine, _: object) -> None:
    values = machine.pop_mark()
    _put_pairs(machine.top(), values)


def _put_pairs(target: object, flat: list[Any]) -> None:
    if len(flat) % 2:
        raise PickleError("gives a mapping a key without a value")
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in pairs)
    elif isinstance(target, Stub):
        target.items.extend(pairs)
    else:
        raise PickleError(f"sets items of a {type(target).__name__}")


def _add_items(machine: _Machine, _: object) -> None:
    values = machine.pop_mark()
    target = machine.top()
    if isinstance(target, set):
        target.update(map(_key, values))
    elif isinstance(target, Stub):
        target.items.extend(values)
    else:
        raise PickleError(f"adds to a {type(target).__name__}")


def _dict(machine: _Machine, _: object) -> None:
    made: dict[Hashable, object] = {}
    _put_pairs(made, machine.pop_mark())
    machine.stack.append(made)


def _tuple(count: int) -> "_Verb":
    def verb(machine: _Machine, _: object) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return verb


_Verb = Callable[[_Machine, Any], object]

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
"""Opcodes that push what they carry."""

_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
"""Opcodes that push something new."""

_NOTHING = {"PROTO", "FRAME"}

_VERBS: Mapping[str, _Verb] = {
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "PUT": lambda machine, index: machine.put(index),
    "BINPUT": lambda machine, index: machine.put(index),
    "LONG_BINPUT": lambda machine, index: machine.put(index),
    "MEMOIZE": _Machine.memoize,
    "GET": lambda machine, index: machine.get(index),
    "BINGET": lambda machine, index: machine.get(index),
    "LONG_BINGET": lambda machine, index: machine.get(index),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "DICT": _dict,
    "FROZENSET": lambda machine, _: machine.stack.append(frozenset(map(_key, machine.pop_mark()))),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "ADDITEMS": _add_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "EXT1": _extension,
    "EXT2": _extension,
    "EXT4": _extension,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_by_keyword,
    "OBJ": _object,
    "INST": _instance,
    "BUILD": _build,
    "PERSID": lambda machine, key: machine.stack.append(Persistent(key)),
    "BINPERSID": lambda machine, _: machine.stack.append(Persistent(machine.pop())),
}
"""Opcodes that work on the stack and the memo."""
