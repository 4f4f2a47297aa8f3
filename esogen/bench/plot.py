"""Measured rows as a picture: time against length, tokens/s against batch. Drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esogen.atomic import replacing
from esogen.errors import EsogenError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")
INSTALL = "pip install 'esogen[plot]'"

Record = Mapping[str, Any]
_TOLD_APART = ("name", "length", "steps", "alpha_0", "batch_size")
_WORDS = {"batch_size": "batch"}


def check(path: Path) -> None:
    """Raise `UsageError` for another kind of file, `EsogenError` where matplotlib is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot is {str(path)!r}; it must end in one of {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise EsogenError(f"--plot is drawn with matplotlib, which is missing; {INSTALL}")


def plot(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw the picture into `path`; raises `OSError` where it cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    time, speed = figure.subplots(1, 2)
    for name, points in series(records, "length").items():
        seconds = [point["seconds"] for point in points]
        below = [point["seconds"] - point["seconds_low"] for point in points]
        above = [point["seconds_high"] - point["seconds"] for point in points]
        lengths = [point["length"] for point in points]
        time.errorbar(lengths, seconds, (below, above), marker="o", capsize=3, label=name)
    for name, points in series(records, "batch_size").items():
        speeds = [point["tokens_per_second"] for point in points]
        speed.plot([point["batch_size"] for point in points], speeds, marker="o", label=name)
    _label(time, "length, tokens", "seconds a batch")
    _label(speed, "batch, texts", "tokens/s, drawing included")
    figure.suptitle(title)
    # Words stay words in an .svg: smaller than outlines, and they can be searched for.
    with replacing(path.resolve()) as scratch, rc_context({"svg.fonttype": "none"}):
        figure.savefig(scratch, format=path.suffix[1:].lower())


def series(records: Sequence[Record], along: str) -> dict[str, list[Record]]:
    """Records that differ in `along` only, by a name made of what tells the series apart."""
    apart = [name for name in _TOLD_APART if name not in (along, "name")]
    if along == "length" and _follows(records, "steps", along):
        apart.remove("steps")
    varied = [name for name in apart if len({record[name] for record in records}) > 1]
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record[along]):
        words = [
            f"{_WORDS.get(name, name)} {record[name]}"
            for name in varied
            if record[name] is not None
        ]
        found.setdefault(", ".join([record["name"], *words]), []).append(record)
    return found


def _follows(records: Sequence[Record], name: str, along: str) -> bool:
    """Whether `along` says all that `name` does."""
    return all(
        a[name] == b[name]
        for a in records
        for b in records
        if (a["name"], a[along]) == (b["name"], b[along])
    )


def _label(axes: "Axes", across: str, up: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
