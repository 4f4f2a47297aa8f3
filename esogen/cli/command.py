"""What every command has in common: its help shows no types, its messages name flags."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from esogen.errors import UsageError

_ON, _OFF = "False -> True", "True -> False"
_KV_CACHE = {"is False": "is given", _OFF: _ON, _ON: _OFF}
"""What is said of the setting, and what that says of its flag, which is the contrary."""


class Command(TyperCommand):
    """A command that says what a person typed, in its help and when a value is wrong."""

    def get_params(self, ctx: Any) -> Any:
        """Those of Typer, as `_readable` has them."""
        return _readable(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what a message calls by an argument's name it calls by its flag.

        A `ValueError` that names one is of settings, and becomes a `UsageError`.
        """
        try:
            return super().invoke(ctx)
        except (UsageError, ValueError) as error:
            found = str(error)
            words = flags_named(found, _flags(self.params))
            if words == found:
                raise
            raise UsageError(words) from error


class Group(TyperGroup):
    """Several commands, with help as that of `Command`."""

    def get_params(self, ctx: Any) -> Any:
        """Those of Typer, as `_readable` has them."""
        return _readable(super().get_params(ctx))


def flags_named(message: str, flags: Mapping[str, str]) -> str:
    """A message about arguments as one about `flags`, which are by the names of the arguments.

    A name that is a word like others counts where a value follows: `steps is 0`, `seed 0 -> 3`.
    """
    if not flags:
        return message
    contrary = rf"(?<!\w)kv_cache ({'|'.join(_KV_CACHE)})"
    words = re.sub(contrary, lambda match: f"no_kv_cache {_KV_CACHE[match[1]]}", message)
    names = "|".join(map(re.escape, flags))
    valued = rf"(?:^|(?<= and )|(?<=, )|(?<=\())(?:{names})(?= is | \S+ -> )"
    alone = rf"(?<![\w/.'\"-])(?=[a-z0-9]+_)(?:{names})(?![\w/.,)'\"-])"
    return re.sub(f"{valued}|{alone}", lambda match: flags[match[0]], words)


def _flags(params: Iterable[Any]) -> Mapping[str, str]:
    """The flag of every option, by the name it has in Python and by the word of the flag."""
    found: dict[str, str] = {}
    for option in params:
        if isinstance(option, TyperOption):
            flag = max(option.opts, key=len)
            found |= {option.name: flag, flag.removeprefix("--").replace("-", "_"): flag}
    return found


def _readable(params: Any) -> Any:
    """No type of Python beside a flag, which takes no value, nor beside the name of an argument."""
    for param in params:
        if not isinstance(param, TyperOption):
            param.display_type_rich = lambda ctx: None  # there is no public way
        elif param.is_flag:
            param.metavar = ""
    return params
