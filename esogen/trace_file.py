"""Traces on disk: what a run decided, one JSON object a line. Imports no torch.

A header, one line per text, and a last line that says how many there are, so that a file that was
cut short is known for one. `docs/trace-format.md` has the fields.

A trace may come from anywhere: lines, lengths and numbers are bounded before anything is done with
them, and one text is in memory at a time.
"""

import json
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from math import inf
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeGuard, TypeVar

from esogen.errors import TraceError

FORMAT = "esogen-trace"
VERSION = 1

MOST_POSITIONS = 2**16
"""Of a text: far above every model of the family."""

_MOST_TOKENS = 2**24
_LONGEST_LINE = 64 * MOST_POSITIONS
_DIGEST = 12

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Header:
    """What a trace says of its whole run.

    `model` is a name or a path as the user gave it, `revision` and `tokenizer` the heads of the
    SHA-256 of its weights and of its `tokenizer.json`; `vocab_size` counts the mask token.
    `settings` are those of the run, `command` repeats it, `esogen` is the version that wrote it.
    """

    esogen: str
    command: str
    model: str
    revision: str
    tokenizer: str
    vocab_size: int
    dtype: str
    seed: int
    settings: Mapping[str, object]

    @property
    def raw(self) -> bool:
        """Whether the texts go on behind their end-of-text."""
        return self.settings.get("raw") is True


@dataclass(frozen=True, slots=True)
class RecordedText:
    """One text of a run, over its whole length: tokens behind its end-of-text are there too.

    `tokens` are ids, -1 where the run ended before a position was decided. `steps` is the network
    call that decided each, -1 for those and for given tokens. `log_probs` are in nats, the model's
    own, before temperature and truncation; 0 where nothing was decided. The first
    `diffusion_steps` calls were the diffusion phase. `seconds` is the wall time of its batch.
    `rounds`: for each call, how many drafts it verified and how many of them stood; none where
    nothing was drafted.
    """

    index: int
    seconds: float
    diffusion_steps: int
    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    log_probs: tuple[float, ...]
    rounds: tuple[tuple[int, ...], ...] = ()

    @property
    def calls(self) -> int:
        """Network calls until the text was done."""
        return max(self.steps, default=-1) + 1


class TraceWriter:
    """Writes a trace to an open file: `begin`, `write` for each text, `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._texts = file, 0

    def begin(self, header: Header) -> None:
        """Write what holds for all texts."""
        own = {name: getattr(header, name) for name in Header.__slots__ if name != "settings"}
        self._line({"format": FORMAT, "version": VERSION} | own | {"settings": header.settings})

    def write(self, text: RecordedText) -> None:
        """Write one finished text."""
        self._line(
            {
                "index": text.index,
                "seconds": round(text.seconds, 6),
                "diffusion_steps": text.diffusion_steps,
                "tokens": text.tokens,
                "steps": text.steps,
                "log_probs": [_shortest(value) for value in text.log_probs],
            }
            | ({"rounds": text.rounds} if text.rounds else {})
        )
        self._texts += 1

    def finish(self) -> None:
        """Write the last line."""
        self._line({"texts": self._texts})

    def _line(self, value: Mapping[str, object]) -> None:
        line = json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]


class TraceFile:
    """A trace that has been read once, from its first line to its last, and is as it must be."""

    def __init__(self, path: Path) -> None:
        """Check the whole of `path`. Raises `TraceError` saying what is wrong."""
        self.path = path
        self._places = array("Q")
        with _open(path) as file:
            self.header = _header(self._next(file, 1))
            self._check(file)

    def __len__(self) -> int:
        """How many texts it holds."""
        return len(self._places)

    def __iter__(self) -> Iterator[RecordedText]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> RecordedText:
        """Text `number`, read from the file."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        with _open(self.path) as file:
            file.seek(self._places[number])
            return _text(self._next(file, number + 2), self.header)

    def _check(self, file: BinaryIO) -> None:
        while True:
            place, number = file.tell(), len(self) + 2
            fields = self._next(file, number)
            if "texts" in fields.value:
                break
            _text(fields, self.header)
            self._places.append(place)
        if fields.whole("texts", 0, inf) != len(self):
            fields.wrong("texts", f"{len(self)}, the number of lines before it")
        if file.read(1):
            raise TraceError(f"{self.path} goes on behind its last line; {_AGAIN}")

    def _next(self, file: BinaryIO, number: int) -> "_Fields":
        line = file.readline(_LONGEST_LINE + 1)
        if not line.endswith(b"\n") and len(line) <= _LONGEST_LINE:
            whole = "is cut short" if number > 1 else "is no trace"
            raise TraceError(f"{self.path} {whole}: it ends in line {number}; {_AGAIN}")
        if len(line) > _LONGEST_LINE:
            raise TraceError(
                f"{self.path}, line {number}: it is longer than {_LONGEST_LINE} bytes,"
                f" and a text may have {MOST_POSITIONS} positions at most; {_AGAIN}"
            )
        return _Fields(self.path, number, _parse(line, f"{self.path}, line {number}"))


_AGAIN = "copy it again, or record one with esogen sample --trace FILE"


def digest(path: Path) -> str:
    """The first 12 digits of the SHA-256 of a file, as `sha256sum` prints them."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:_DIGEST]


@dataclass(frozen=True, slots=True)
class _Fields:
    """The object in one line; its fields are asked for by name, kind and range."""

    path: Path
    number: int
    value: Mapping[str, object]

    def whole(self, name: str, least: int, most: float) -> int:
        found = self._get(name, int)
        if not least <= found <= most:
            self.wrong(name, f"a whole number from {least} to {most}")
        return found

    def real(self, name: str) -> float:
        found = self.value.get(name)
        if not _is_real(found) or not 0 <= found <= _LARGEST:
            self.wrong(name, f"a number from 0 to {_LARGEST:g}")
        return float(found)

    def word(self, name: str) -> str:
        return self._get(name, str)

    def mapping(self, name: str) -> Mapping[str, object]:
        found = self._get(name, dict)
        if not all(
            value is None or isinstance(value, str | int | float) for value in found.values()
        ):
            self.wrong(name, "an object of words and numbers")
        return found

    def wholes(self, name: str, least: int, most: int) -> tuple[int, ...]:
        found = self._get(name, list)
        if len(found) > MOST_POSITIONS:
            self.wrong(name, f"a list of at most {MOST_POSITIONS}")
        if not all(type(each) is int and least <= each <= most for each in found):
            self.wrong(name, f"a list of whole numbers from {least} to {most}")
        return tuple(found)

    def reals(self, name: str) -> tuple[float, ...]:
        found = self._get(name, list)
        if not all(_is_real(each) and -_LARGEST <= each <= _ROUNDING for each in found):
            self.wrong(name, f"a list of numbers from {-_LARGEST:g} to 0")
        return tuple(map(float, found))

    def rounds(self, name: str, calls: int) -> tuple[tuple[int, ...], ...]:
        """A pair for each call; none at all where the field is missing."""
        if name not in self.value:
            return ()
        found = self._get(name, list)
        if len(found) != calls or not all(map(_is_round, found)):
            self.wrong(
                name,
                f"a list of {calls}, for each call how many drafts it verified, at most"
                f" {MOST_POSITIONS}, and how many of them stood",
            )
        return tuple(map(tuple, found))

    def _get(self, name: str, kind: type[T]) -> T:
        found = self.value.get(name)
        if not isinstance(found, kind) or isinstance(found, bool):
            self.wrong(name, _KINDS[kind])
        return found

    def wrong(self, name: str, wanted: str) -> NoReturn:
        found = _shown(self.value[name]) if name in self.value else "missing"
        raise TraceError(
            f"{self.path}, line {self.number}: {name} is {found};"
            f" it must be {wanted}. The trace is damaged: {_AGAIN}"
        )


_KINDS: Mapping[type, str] = {int: "a whole number", str: "text", dict: "an object", list: "a list"}
_LARGEST = 1e9
"""Of seconds, and of a log-probability without its sign."""
_ROUNDING = 1e-3
"""How far above 0 rounding may lift a log-probability, at any precision."""


def _is_real(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_round(value: object) -> bool:
    if not isinstance(value, list) or [type(each) for each in value] != [int, int]:
        return False
    return bool(0 <= value[1] <= value[0] <= MOST_POSITIONS)


def _shown(value: object) -> str:
    """The head of a value; a long list is not written out for that."""
    if isinstance(value, list | dict):
        return f"{_KINDS[type(value)]} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _header(fields: _Fields) -> Header:
    if fields.value.get("format") != FORMAT:
        raise TraceError(
            f"{fields.path} is no trace of esogen: its first line has no"
            f' "format":"{FORMAT}"; record one with esogen sample --trace FILE'
        )
    version = fields.whole("version", 1, inf)
    if version > VERSION:
        raise TraceError(
            f"{fields.path} is a trace of version {version}, and this esogen reads version"
            f" {VERSION}; upgrade esogen to read it"
        )
    return Header(
        esogen=fields.word("esogen"),
        command=fields.word("command"),
        model=fields.word("model"),
        revision=fields.word("revision"),
        tokenizer=fields.word("tokenizer"),
        vocab_size=fields.whole("vocab_size", 2, _MOST_TOKENS),
        dtype=fields.word("dtype"),
        seed=fields.whole("seed", 0, 2**63 - 1),
        settings=fields.mapping("settings"),
    )


def _text(fields: _Fields, header: Header) -> RecordedText:
    tokens = fields.wholes("tokens", -1, header.vocab_size - 2)
    steps = fields.wholes("steps", -1, len(tokens) - 1)
    log_probs = fields.reals("log_probs")
    for name, found in (("steps", steps), ("log_probs", log_probs)):
        if len(found) != len(tokens):
            fields.wrong(name, f"a list of {len(tokens)}, one for each token")
    _check_steps(fields, tokens, steps)
    calls = max(steps, default=-1) + 1
    return RecordedText(
        index=fields.whole("index", 0, 2**63 - 1),
        seconds=fields.real("seconds"),
        diffusion_steps=fields.whole("diffusion_steps", 0, calls),
        tokens=tokens,
        steps=steps,
        log_probs=log_probs,
        rounds=fields.rounds("rounds", calls),
    )


def _check_steps(fields: _Fields, tokens: Sequence[int], steps: Sequence[int]) -> None:
    """Every call decides something, and what none decided has no token."""
    made = {step for step in steps if step >= 0}
    if len(made) != max(made, default=-1) + 1:
        fields.wrong("steps", "a list in which every step up to the last decides a token")
    if any(token < 0 <= step for token, step in zip(tokens, steps, strict=True)):
        fields.wrong("tokens", "a list with an id wherever a step decided one")


def _open(path: Path) -> BinaryIO:
    """Open a file that can be read more than once."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for who writes
            raise TraceError(f"{path} is no file but a folder, a device or a pipe; name a trace")
        return path.open("rb")
    except OSError as error:
        raise TraceError(
            f"cannot read {path}: {error.strerror}; wanted a trace: esogen sample --trace FILE"
            " records one"
        ) from error


def _parse(line: bytes, where: str) -> Mapping[str, object]:
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise TraceError(f"{where}: it is no JSON; the trace is damaged: {_AGAIN}") from None
    if not isinstance(value, dict):
        raise TraceError(f"{where}: it is no JSON object; the trace is damaged: {_AGAIN}")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _shortest(value: float) -> float:
    """In the digits that a float32 needs: log-probabilities have no more."""
    return float(f"{value:.9g}")
