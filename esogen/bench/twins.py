"""`python -m esogen.bench.twins -o DIR --valid FILE -- FILE... FLAGS`: twins but for `alpha_0`.

Trains one network for each `alpha_0`, MDLM and a left-to-right one, by `esogen train` with the
files and flags behind `--`, so with the same budget and data; then measures each on held-out text:
the NELBO, and the exact likelihood where the family has one, in bits per byte. What is finished is
kept in DIR: run again to go on, also after `--minutes`. Prints a table and one JSON line, and draws
DIR/twins.svg where matplotlib is installed.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esogen.atomic import replacing
from esogen.bench.likelihoods import subset, total
from esogen.bench.plot import INSTALL, save
from esogen.bench.program import count, run
from esogen.checkpoint.config_file import read_config
from esogen.checkpoint.resolve import CONFIG
from esogen.errors import EsogenError
from esogen.language_model import LanguageModel, load
from esogen.scoring.figures import Figures
from esogen.scoring.records import finite
from esogen.training.data import read_documents
from esogen.training.state import STATE

FIGURES = "figures.json"
Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Twin:
    """One of the networks: `alpha_0` is None where the family has one of its own."""

    name: str
    family: str
    alpha_0: float | None = None

    @property
    def flags(self) -> list[str]:
        """What `esogen train` is told of it; all begin texts from a token, as left to right."""
        alpha = [] if self.alpha_0 is None else [f"--alpha-0={self.alpha_0:g}"]
        bos = [] if self.family == "ar" else ["--bos"]
        return [f"--family={self.family}", *alpha, *bos]


TWINS = (
    *(Twin(f"alpha-{alpha_0:g}", "esolm-b", alpha_0) for alpha_0 in (1.0, 0.5, 0.25, 0.125, 0.0)),
    Twin("mdlm", "mdlm"),
    Twin("left-to-right", "ar"),
)


def main() -> None:
    """Train what is not trained and measure what is not measured, as far as the time goes."""
    options, flags = _options()
    until = time.monotonic() + 60 * options.minutes
    list(read_documents(options.valid))  # what is wrong with them is said before the training
    twins = [twin for twin in TWINS if not options.only or twin.name in options.only]
    for twin in twins:
        folder = options.output / twin.name
        if not trained(folder) and not _train(twin, folder, flags, until):
            break
        if not (folder / FIGURES).is_file():
            _write(folder / FIGURES, _measured(twin, folder, options))
    report(options.output, twins)


def _options() -> tuple[argparse.Namespace, list[str]]:
    words, flags = sys.argv[1:], []
    if "--" in words:
        words, flags = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m esogen.bench.twins", epilog="behind --: files and flags of esogen train"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of all twins")
    parser.add_argument("--valid", type=Path, nargs="+", required=True, help="held-out text")
    parser.add_argument("--minutes", type=float, default=math.inf, help="train no longer now")
    parser.add_argument("--only", nargs="+", choices=[twin.name for twin in TWINS])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--orders", type=count, default=100, help="K of the exact bound")
    parser.add_argument("--time-samples", type=count, default=16, help="draws for the NELBO")
    parser.add_argument("--tokens", type=int, default=10_000, help="of each file, about; 0: all")
    return parser.parse_args(words), flags


def trained(folder: Path) -> bool:
    """Whether the model in `folder` is there and has had all its steps."""
    with suppress(EsogenError):
        notes = read_config(folder / CONFIG).training
        return notes.get("step") == notes.get("steps")
    return False


def _train(twin: Twin, folder: Path, flags: list[str], until: float) -> bool:
    """Train until the end or the moment; whether it reached the end."""
    left = (until - time.monotonic()) / 60
    if left <= 0:
        return False
    timed = [f"--minutes={left:.3f}"] if math.isfinite(left) else []
    resumed = ["--resume"] if (folder / STATE).is_file() else []
    print(f"training {twin.name}", file=sys.stderr, flush=True)
    command = [*flags, "-o", str(folder), *twin.flags, *timed, *resumed]
    code = _finished([sys.executable, "-m", "esogen", "train", *command])
    if code < 0:
        raise EsogenError(f"the training of {twin.name} was killed by signal {-code}; run again")
    if code:
        sys.exit(code)  # the command has said why
    return trained(folder)


def _finished(words: list[str]) -> int:
    """Exit code of a command. An interrupt reaches it too: it saves, which is waited for."""
    with subprocess.Popen(words) as child:
        while True:
            with suppress(KeyboardInterrupt):
                return child.wait()


def _measured(twin: Twin, folder: Path, options: argparse.Namespace) -> list[Found]:
    """Both figures on every held-out file, under the `alpha_0` that the twin was trained for."""
    print(f"measuring {twin.name}", file=sys.stderr, flush=True)
    lm = load(str(folder), device=options.device, dtype="fp32")
    notes = read_config(folder / CONFIG).training
    return [
        {"twin": twin.name, "file": path.name, "steps": notes["steps"], **bits}
        for path in options.valid
        for bits in [_bits(twin, lm, path, options)]
    ]


def _bits(twin: Twin, lm: LanguageModel, path: Path, options: argparse.Namespace) -> Found:
    documents = subset(lm, path, options.tokens)
    found: Found = {}
    if twin.family != "ar":
        alpha_0 = 1.0 if twin.alpha_0 is None else twin.alpha_0
        nelbo = total(lm, documents, alpha_0, bound="nelbo", time_samples=options.time_samples)
        found |= {"nelbo": _figure(nelbo)}
    if twin.family != "mdlm":
        alpha_0 = twin.alpha_0 or 0.0
        exact = total(
            lm, documents, alpha_0, bound="exact", orders=options.orders if alpha_0 else 1
        )
        found |= {"exact": _figure(exact)}
    return found


def _figure(figures: Figures) -> Found:
    return {
        "bits_per_byte": figures.bits_per_byte,
        "error": finite(figures.bits_per_byte_error),
        "tokens": figures.tokens,
        "bytes": figures.bytes,
    }


def _write(path: Path, found: list[Found]) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def report(output: Path, twins: list[Twin]) -> None:
    """Print what is measured as a table and one JSON line; draw it where that can be done."""
    paths = [output / twin.name / FIGURES for twin in twins]
    found = [row for path in paths if path.is_file() for row in json.loads(path.read_text("utf-8"))]
    print("| twin | held-out file | steps | NELBO | exact |\n|---|---|---:|---:|---:|")
    for row in found:
        cells = [_cell(row.get("nelbo")), _cell(row.get("exact"))]
        print(f"| {row['twin']} | {row['file']} | {row['steps']} | {' | '.join(cells)} |")
    print(json.dumps(found))
    if not found:
        return
    try:
        _draw(found, output / "twins.svg")
    except ImportError:
        print(f"twins.svg is not drawn: matplotlib is missing; {INSTALL}", file=sys.stderr)


def _cell(figure: Found | None) -> str:
    if figure is None:
        return ""
    error = f" ± {figure['error']:.4f}" if figure["error"] else ""
    return f"{figure['bits_per_byte']:.4f}{error}"


def _draw(found: list[Found], path: Path) -> None:
    """Bits per byte over the twins, a panel for each file."""
    from matplotlib.figure import Figure as Picture

    names = list(dict.fromkeys(row["file"] for row in found))
    picture = Picture(figsize=(4.5 * len(names), 3.5), layout="constrained")
    for axes, name in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = [row for row in found if row["file"] == name]
        for kind, label, marker in (("nelbo", "NELBO", "o"), ("exact", "exact", "s")):
            points = list(_points(rows, kind))
            axes.errorbar(*zip(*points, strict=True), fmt=marker, fillstyle="none", label=label)
        axes.set(title=name, ylabel="bits per byte")
        axes.tick_params(axis="x", rotation=30)
    picture.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    save(picture, path)


def _points(rows: list[Found], kind: str) -> Iterator[tuple[str, float, float]]:
    """Name, figure and error of each twin; all have a place, also those without the figure."""
    for row in rows:
        figure = row.get(kind, {"bits_per_byte": math.nan, "error": None})
        yield row["twin"], figure["bits_per_byte"], figure["error"] or 0.0


if __name__ == "__main__":
    run(main)
