"""Mutated files for every reader of checkpoints: `python -m tests.fuzz --seconds 600`.

An input may be read or refused with `CheckpointError`, and nothing else: no other exception, no
crash, no hang, no memory beyond twice the file and what a reader takes for the smallest. Each
reader runs in a process of its own, so that a crash of a library is seen; the input it crashed on
is kept.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.lightning import read_lightning
from esogen.checkpoint.tokenizer import Tokenizer
from esogen.checkpoint.weights import read_tensors
from esogen.errors import CheckpointError
from esogen.model.config import ModelConfig
from tests import golden

FLOOR = 64 * 2**20
"""Bytes that any input may take; small files cost more than twice their size in Python objects."""

PATIENCE = 10.0
"""Seconds that one input may take."""

Reader = Callable[[Path], object]
_MODEL = Path(__file__).parents[1] / "esogen" / "models" / "stories"
_NUMBERS = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x00" * 8)
_WORDS = (
    *(b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"true", b"99999999999999999999"),
    *(b"[" * 500, b'{"a":' * 200, b"\\u0000", b"PK\x05\x06", b"cos\nsystem\n", b"R", b"b", b"."),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, files to begin from, and where in them to mutate: `head` bytes, 0 for all."""

    read: Reader
    seeds: tuple[bytes, ...]
    head: int = 0


@dataclass(slots=True)
class Report:
    """What came of one reader: inputs tried and accepted, the slowest one in seconds, memory."""

    target: str
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    growth: int = 0


class FoundError(AssertionError):
    """An input that does what none may."""


def targets() -> dict[str, Target]:
    """Every reader of files that come from elsewhere."""
    case = golden.folder("esolm-b")
    config = read_config(case / "config.json").model
    small = ModelConfig("esolm-b", 2560, 256, 192, 4, 3, 16)
    weights = (case / "model.safetensors").read_bytes()
    ckpt = (case / "lightning.ckpt").read_bytes()
    configs = tuple((golden.folder(c) / "config.json").read_bytes() for c in golden.CASES)
    tokenizer = (_MODEL / "tokenizer.json").read_bytes()
    return {
        "config": Target(read_config, (*configs, (_MODEL / "config.json").read_bytes())),
        "weights": Target(lambda path: read_tensors(path, config), (weights,), 4096),
        "tokenizer": Target(lambda p: _use(Tokenizer.read(p, small.vocab_size)), (tokenizer,)),
        "pickle": Target(read_lightning, (_pickle(ckpt),)),
        "archive": Target(read_lightning, (_directory_first(ckpt),), 6000),
    }


def _use(tokenizer: Tokenizer) -> None:
    tokenizer.decode(tokenizer.encode("Once upon a time, there was <|endoftext|>"))


def _pickle(ckpt: bytes) -> bytes:
    """The pickle alone; `_wrapped` makes an archive of whatever becomes of it."""
    with zipfile.ZipFile(BytesIO(ckpt)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _wrapped(pickle: bytes) -> bytes:
    """An archive of this pickle beside the numbers that the golden one has."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        for number, size in enumerate(_sizes()):
            archive.writestr(f"a/data/{number}", bytes(size))
    return buffer.getvalue()


@cache
def _sizes() -> list[int]:
    with zipfile.ZipFile(golden.folder("esolm-b") / "lightning.ckpt") as archive:
        sizes = {each.filename: each.file_size for each in archive.infolist()}
    return [sizes[f"lightning/data/{number}"] for number in range(len(sizes) - 6)]


def _directory_first(ckpt: bytes) -> bytes:
    """Backwards, so that the directory at the end is the head that is mutated."""
    return ckpt[::-1]


FINISH: Mapping[str, Callable[[bytes], bytes]] = {
    "pickle": _wrapped,
    "archive": lambda data: data[::-1],
}
"""From a mutated seed to the file that is read, where that is another."""


def mutated(chance: random.Random, seed: bytes, head: int) -> bytes:
    """`seed` with a few of its bytes, words or pieces changed, taken away, doubled or cut."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(min(len(data), head or len(data)) or 1)
        size = chance.choice((1, 2, 4, 8, 64))
        data[at : at + size] = chance.choice(_EDITS)(chance, bytes(data[at : at + size]))
        if chance.randrange(100) == 0:
            del data[at:]
    return bytes(data)


def _flipped(chance: random.Random, piece: bytes) -> bytes:
    if not piece:
        return piece
    return bytes([piece[0] ^ (1 << chance.randrange(8))]) + piece[1:]


_EDITS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flipped,
    _flipped,
    lambda chance, _: chance.choice(_NUMBERS),
    lambda chance, _: chance.choice(_WORDS),
    lambda chance, piece: chance.choice(_WORDS) + piece,
    lambda _chance, _piece: b"",
    lambda chance, piece: piece * chance.choice((2, 3, 100)),
    lambda _, piece: piece[::-1],
    lambda chance, piece: chance.randbytes(len(piece)),
)


def run(name: str, seconds: float, seed: int, most: int, place: Path) -> Report:
    """Fuzz one reader for so many seconds, or inputs; raises `FoundError` and leaves the input."""
    target, chance, report = targets()[name], random.Random(seed), Report(name)
    finish = FINISH.get(name, bytes)
    path = place / name
    for whole in target.seeds:
        path.write_bytes(finish(whole))
        _read(target.read, path, report)
    floor, began = _resident(), time.monotonic()
    while report.inputs < most and time.monotonic() - began < seconds:
        path.write_bytes(finish(mutated(chance, chance.choice(target.seeds), target.head)))
        _read(target.read, path, report)
        report.growth = max(report.growth, _resident() - floor)
        if report.growth > FLOOR + 2 * path.stat().st_size:
            raise FoundError(f"{name}: {report.growth} bytes of memory at {path}")
    return report


def _read(read: Reader, path: Path, report: Report) -> None:
    began = time.perf_counter()
    try:
        read(path)
        report.accepted += 1
    except CheckpointError as error:
        if "\n" in str(error):
            raise FoundError(f"{report.target}: several lines for {path}: {error}") from error
    except BaseException as error:
        raise FoundError(f"{report.target}: {type(error).__name__}: {error} at {path}") from error
    took = time.perf_counter() - began
    report.inputs += 1
    report.slowest = max(report.slowest, took)
    if took > PATIENCE:
        raise FoundError(f"{report.target}: {took:.1f} s for {path}")


def _resident() -> int:
    """Greatest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def everything(seconds: float, seed: int) -> Iterator[Report]:
    """Fuzz each reader in a process of its own, each for its share of the time."""
    names = list(targets())
    for name in names:
        words = ["--only", name, "--seconds", str(seconds / len(names)), "--seed", str(seed)]
        child = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words],
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
        )
        if child.returncode:
            raise FoundError(f"{name}: exit code {child.returncode}\n{child.stderr[-2000:]}")
        yield Report(**json.loads(child.stdout))


def main() -> None:
    """Fuzz for some seconds and print a line for each reader."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one reader, in this process")
    words = parser.parse_args()
    if not words.only:
        for report in everything(words.seconds, words.seed):
            print(asdict(report), flush=True)
        return
    place = Path(tempfile.mkdtemp(prefix="esogen-fuzz-"))
    print(json.dumps(asdict(run(words.only, words.seconds, words.seed, 10**9, place))))
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
