"""`--devices`: one process on each, started as `torchrun` starts them."""

import logging
import os
from collections.abc import Sequence

import typer

from esogen.errors import EsogenError, Interrupted, UsageError


def read_devices(word: str | None, device: str) -> tuple[str, ...]:
    """The devices of `0,1` or `cuda:0,cpu`; raises `UsageError` for one that is not here."""
    if word is None:
        return ()
    if device != "auto":
        raise UsageError("--device and --devices exclude each other; give one of them")
    from esogen.checkpoint.placement import choose_device

    names = [name.strip() for name in word.split(",")]
    devices = tuple(f"cuda:{name}" if name.isdecimal() else name for name in names)
    for name in devices:
        try:
            choose_device(name)
        except UsageError as error:
            raise UsageError(f"--devices is {word!r}: {error}") from error
    return devices


def launch(words: Sequence[str], devices: Sequence[str]) -> None:
    """Run `esogen` with these words in as many processes as there are devices, and wait for them.

    Each has said itself what went wrong: `typer.Exit` has its code. Raises `EsogenError` for one
    that was killed, `Interrupted` where this process was.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)  # the processes speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(devices))))
    how = ("--standalone", "--nproc-per-node", str(len(devices)), "-m", "esogen")
    try:
        torchrun.run(torchrun.parse_args([*how, *words]))  # type: ignore[no-untyped-call]
    except SignalException:
        raise Interrupted("interrupted; the same command goes on") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise EsogenError(
                f"the process on {devices[rank]} was killed by signal {-failure.exitcode}; what is"
                " finished is kept, and the same command goes on"
            ) from None
        raise typer.Exit(failure.exitcode) from None
