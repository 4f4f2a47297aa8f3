"""Text that no terminal can be steered with: control characters become symbols for them."""

import re
from collections.abc import Mapping

_REPLACEMENT = "\ufffd"
_KEPT = "\n\t"
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_VISIBLE: Mapping[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys(map(ord, _BIDI), _REPLACEMENT),
    **dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT),
}
_BREAKS = re.compile(r"[\n\t]+")


def visible(text: str) -> str:
    """`text` with every character that could steer a terminal replaced by a symbol for it.

    Newlines and tabs stay. ASCII controls become their pictures (ESC is ␛); 8-bit controls,
    marks that change the direction of writing and lone surrogates become U+FFFD.
    """
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """`text` made `visible`, on a single line."""
    return visible(_BREAKS.sub(" ", text))


def counted(number: int, thing: str) -> str:
    """`1 text`, `2 texts`: a number of things whose plural ends in s."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
