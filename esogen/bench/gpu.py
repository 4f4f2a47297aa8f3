"""`python -m esogen.bench.gpu -o DIR`: every figure that takes a large GPU, one after the other.

What each command prints goes into DIR, and where one fails the others go on. Ends with the targets
as a table, then one line of JSON. `--tiny` runs all of it at sizes that mean nothing, on a CPU too,
to see that it works.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esogen.bench.figures import Figure
from esogen.bench.program import run

_TESTS = Path(__file__).parents[2] / "tests"

Document = Mapping[str, Any]
Row = Mapping[str, Any]


def commands(
    folder: Path, device: str, *, tiny: bool, authors: Path | None = None
) -> dict[str, list[str]]:
    """The words behind `python -m` of each command, by the name of its file.

    `authors`: a checkout of theirs, without which nothing is set beside it.
    """
    there = ["--device", device]
    bench = ["esogen", "bench", *there, "--size", "tiny" if tiny else "small"]
    whole = ["-L", "48", "-s", "8,48"] if tiny else ["-L", "1024", "-s", "16,128,1024"]
    few = ["-L", "48", "-s", "8"] if tiny else ["-L", "1024", "-s", "16,128"]
    paper = ["-L", "32,64", "-s", "4,8", "--batch-size", "4", "--mdlm-steps", "2"] if tiny else []
    lengths = ["-L", "16,32", "-s", "8"] if tiny else ["-L", "512,1024,2048", "-s", "128"]
    families = ["--family", "esolm-b,mdlm,bd3lm,ar", "--batch-size", "1,4" if tiny else "1,16"]
    drafts = ["-L", "32", "--rounds", "1"] if tiny else ["--dtype", "bf16"]
    batches = ["--batches", "1", "2"] if tiny else ["--batches", "1", "64", "512"]
    once = ["--one-shot", "--batch-size"]
    # Tests that want a package which is not there do not stop the others.
    which = ["--continue-on-collection-errors", "-m", "cuda or not slow"]
    found = {
        "tests": ["pytest", "-q", *which, str(_TESTS)],
        "doctor": ["esogen", "doctor"],
        "steps": [*bench, *whole, *once, "1,4" if tiny else "1,512", "--profile"],
        "unrecorded": [*bench, *few, *once, "1", "--attention", "sdpa"],
        "paper": [*bench, "--paper", *paper],
        "families": [*bench, *lengths, *families, "--plot", str(folder / "families.svg")],
        "agreement": ["esogen.bench.agreement", *there, "--rows", "1" if tiny else "16"],
        "drafts": ["esogen.bench.drafts", "speed", *there, *drafts, *batches],
    }
    if authors:
        beside = ["--size", "tiny", "-L", "48", "-s", "8"] if tiny else ["-L", "1024", "-s", "1024"]
        rows = ["--batch-size", "1", "4" if tiny else "512", "--rounds", "2"]
        found["authors"] = ["esogen.bench.authors", str(authors), *there, *beside, *rows]
    if tiny or not _TESTS.is_dir():
        del found["tests"]
    return found


def targets(found: Mapping[str, Document]) -> Iterator[Figure]:
    """What is aimed at, of the last lines of those commands that came to their end."""
    if "steps" in found:
        yield from _of_steps(found["steps"]["rows"])
    if "steps" in found and "unrecorded" in found:
        yield from _of_one_shots(found["steps"]["rows"], found["unrecorded"]["rows"])
    if "paper" in found:
        yield from _of_latency(found["paper"]["rows"])
    if "drafts" in found:
        yield from _of_drafts(found["drafts"]["speed"])
    if "authors" in found:
        yield from (Figure(**row["figure"]) for row in found["authors"]["rows"])


def _of_steps(rows: Sequence[Row]) -> Iterator[Figure]:
    most = max(row["steps"] for row in rows)
    single = min(row["batch_size"] for row in rows)
    for row in rows:
        where = f"{row['steps']} steps, batch {row['batch_size']}"
        if row["steps"] == most:
            share, whole = row["floor_share"], row["seconds"]
            spread = share * whole / row["seconds_high"], share * whole / row["seconds_low"]
            least = 0.35 if row["batch_size"] == single else 0.6
            yield Figure(f"of the bandwidth floor, {where}", share, spread, least=least)
        yield _figure(f"drawing / whole, {where}", row["drawing_share"], most=0.15)
        if row["peak_share"] is not None:
            words = f"peak memory / (weights + cache + a chunk), {where}"
            yield _figure(words, row["peak_share"], most=1.15)


def _of_one_shots(rows: Sequence[Row], unrecorded: Sequence[Row]) -> Iterator[Figure]:
    """What recording adds to the first runs of a process, with a twentieth for noise."""
    alone = {row["steps"]: row for row in rows if row["batch_size"] == 1}
    for plain in unrecorded:
        for word in ("first", "second"):
            key = f"{word}_run_seconds"
            ratio = alone[plain["steps"]][key] / plain[key]
            name = f"{word} run / unrecorded, {plain['steps']} steps, batch 1"
            yield _figure(name, ratio, most=1.05)


def _of_latency(rows: Sequence[Row]) -> Iterator[Figure]:
    longest = max(row["length"] for row in rows)
    wanted = {"mdlm": 25.0, "bd3lm 16": 1 / 1.1, "ar": 1 / 1.1}
    for row in rows:
        if (row["table"], row["length"]) == ("latency", longest) and row["name"] in wanted:
            name = f"{row['name']} / esolm-b, NFE = L = {longest}, batch 1"
            yield _figure(name, row["ratio"], least=wanted[row["name"]])


def _of_drafts(rows: Sequence[Row]) -> Iterator[Figure]:
    for row in rows:
        if row["way"].startswith("draft"):
            least = 3.5 if row["batch"] == 1 else 1.0
            name = f"one token per step / {row['way']}, batch {row['batch']}"
            spread = row["lowest"], row["highest"]
            yield Figure(name, row["times faster"], spread, least=least)


def _figure(
    name: str, ratio: float, *, least: float | None = None, most: float | None = None
) -> Figure:
    return Figure(name, ratio, (ratio, ratio), least, most)


def main() -> None:
    """Run every command, tell the targets, and end with 1 where a command failed."""
    parser = argparse.ArgumentParser(prog="python -m esogen.bench.gpu", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of what is said")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing")
    parser.add_argument("--authors", type=Path, help="checkout of theirs, to be set beside ours")
    parser.add_argument("--only", nargs="+", help="names of commands, as their files are called")
    words = parser.parse_args()
    words.output.mkdir(parents=True, exist_ok=True)
    found, failed = {}, []
    wanted = commands(words.output, words.device, tiny=words.tiny, authors=words.authors)
    if unknown := {*(words.only or ())} - {*wanted}:
        parser.error(f"--only {min(unknown)} is none of {', '.join(wanted)}")
    for name, command in wanted.items():
        if words.only and name not in words.only:
            continue
        print(f"{name}: python -m {' '.join(command)}", file=sys.stderr, flush=True)
        path = words.output / f"{name}.txt"
        with path.open("w", encoding="utf-8") as file:
            made = subprocess.run([sys.executable, "-m", *command], stdout=file, check=False)
        if made.returncode:
            print(f"{name} failed; {path} has what it said", file=sys.stderr)
            failed.append(name)
        elif name not in ("tests", "doctor"):
            found[name] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    print("| figure | median | range | target | |\n|---|---:|---|---|---|")
    figures = [*targets(found)]
    for figure in figures:
        print(figure.row())
    print(
        json.dumps({"failed": failed, "figures": [asdict(figure) for figure in figures], **found})
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    run(main)
