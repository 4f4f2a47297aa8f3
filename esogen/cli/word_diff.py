"""What changed between two texts, word by word."""

import re
from difflib import SequenceMatcher

from esogen.visible import visible

_WORDS = re.compile(r"\w+|\s|[^\w\s]")
_RED, _GREEN, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"


def word_diff(old: str, new: str, *, colored: bool) -> str:
    """`new` with what it replaces: `[-old words-]{+new words+}`, red and green where `colored`.

    What could steer a terminal is made visible.
    """
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    parts = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = visible("".join(before[a:b])), visible("".join(after[c:d]))
        if kind == "equal":
            parts.append(gone)
            continue
        parts.append(_marked("[-", gone, "-]", _RED, colored=colored))
        parts.append(_marked("{+", come, "+}", _GREEN, colored=colored))
    return "".join(parts)


def _marked(begin: str, text: str, end: str, color: str, *, colored: bool) -> str:
    if not text:
        return ""
    marked = f"{begin}{text}{end}"
    return f"{color}{marked}{_PLAIN}" if colored else marked
