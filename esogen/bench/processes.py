"""Whole commands, as a person waits for them: wall time of fresh processes, in turn."""

import subprocess
import sys
import time
from collections.abc import Callable

from esogen.bench.figures import Figure, interleaved
from esogen.errors import EsogenError

ONE_COMMAND = """
import typer
app = typer.Typer()
@app.command()
def hello(name: str = "world", times: int = 1) -> None:
    "Say hello."
app()
"""


def help_time(rounds: int) -> Figure:
    """`esogen --help` against the `--help` of a Typer program with one command."""
    ratio, spread = interleaved(
        _command("-m", "esogen", "--help"), _command("-c", ONE_COMMAND, "--help"), rounds
    )
    return Figure("esogen --help / a one-command Typer program's", ratio, spread, most=1.5)


def cold_sample(model: str, rounds: int) -> Figure:
    """`esogen sample` with default settings against importing torch."""
    sample = _command("-m", "esogen", "sample", "-m", model, "--seed", "1", "Once upon a time")
    ratio, spread = interleaved(sample, _command("-c", "import torch"), rounds)
    return Figure("esogen sample, cold / import torch", ratio, spread, most=2.5)


def _command(*words: str) -> Callable[[], float]:
    def seconds() -> float:
        call, began = [sys.executable, *words], time.perf_counter()
        done = subprocess.run(
            call, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise EsogenError(done.stderr.strip().removeprefix("esogen: "))
        return time.perf_counter() - began

    return seconds
