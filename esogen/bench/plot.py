"""Measured rows as a picture: time against length, tokens/s against batch. Drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esogen.atomic import replacing
from esogen.errors import EsogenError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
INSTALL = "pip install 'esogen[plot]'"

Record = Mapping[str, Any]
_TOLD_APART = ("length", "steps", "alpha_0", "batch_size")
_WORDS = {"batch_size": "batch"}


def check(path: Path) -> None:
    """Raise `UsageError` for another kind of file, `EsogenError` where matplotlib is missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot is {str(path)!r}; it must end in one of {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise EsogenError(f"--plot is drawn with matplotlib, which is missing; {INSTALL}")


def plot(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw the picture into `path`; raises `OSError` where it cannot be written."""
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
    _label(time, "length, tokens", "seconds a batch", [record["length"] for record in records])
    batches = [record["batch_size"] for record in records]
    _label(speed, "batch, texts", "tokens/s, drawing included", batches)
    figure.suptitle(title)
    save(figure, path)


def save(figure: "Figure", path: Path) -> None:
    """Write a picture whole or not at all; raises `OSError` where it cannot be written."""
    from matplotlib import rc_context

    # Words stay words in an .svg: smaller than outlines, and they can be searched for.
    with replacing(path.resolve()) as scratch, rc_context({"svg.fonttype": "none"}):
        figure.savefig(scratch, format=path.suffix[1:].lower())


def series(records: Sequence[Record], along: str) -> dict[str, list[Record]]:
    """Records that differ in `along` only, by a name made of what tells the series apart."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record[along]):
        alike = [other for other in records if other["name"] == record["name"]]
        told = [key for key in _TOLD_APART if key != along and _varies(alike, key)]
        words = [f"{_WORDS.get(key, key)} {record[key]}" for key in told]
        found.setdefault(", ".join([record["name"], *words]), []).append(record)
    return found


def _varies(records: Sequence[Record], key: str) -> bool:
    """Whether `key` has several values; steps that follow the length are told by it."""
    if key == "steps":
        return len({(row["length"], row[key]) for row in records}) > len(
            {row["length"] for row in records}
        )
    return len({row[key] for row in records}) > 1


def _label(axes: "Axes", across: str, up: str, measured: Sequence[int]) -> None:
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.set_xticks(sorted(set(measured)), [str(value) for value in sorted(set(measured))])
    axes.set_xticks([], minor=True)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
