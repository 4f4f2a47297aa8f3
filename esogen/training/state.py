"""The resumable state of a run: one safetensors file, read without executing anything in it.

Beside the tensors it records what the run is a function of, so that another run is never continued
by mistake. Where it runs (device, precision, compiled or not) is not recorded: a run may move.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from esogen.atomic import replacing
from esogen.errors import CheckpointError, UsageError
from esogen.model.config import ModelConfig
from esogen.training.data import Rows
from esogen.training.loop import Trainer
from esogen.training.settings import TrainingSettings, differing

STATE = "state.safetensors"

Configuration = Mapping[str, Any]

_NAMED = 3


def configuration(
    settings: TrainingSettings, model: ModelConfig, rows: Rows, tokenizer_json: str
) -> Configuration:
    """What the weights of a run are a function of, as plain values.

    A run without decay does not depend on how long it will be, so it may be made longer.
    """
    values = settings.as_dict()
    if settings.decay == "constant":
        del values["steps"]
    return {
        **values,
        **asdict(model),
        "length": int(rows.ids_RL.shape[1]),
        "data": sha256(rows.ids_RL.astype("<i4").tobytes()).hexdigest()[:16],
        "tokenizer": sha256(tokenizer_json.encode()).hexdigest()[:16],
    }


def write_state(path: Path, trainer: Trainer, recorded: Configuration) -> None:
    """Write the state of `trainer`; raises `OSError`, and `path` then keeps what it held."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trainer.state().items()}
    metadata = {
        "format": "pt",
        "step": str(trainer.step),
        "configuration": json.dumps(recorded, sort_keys=True),
    }
    with replacing(path) as scratch:
        try:
            save_file(tensors, scratch, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def restore(trainer: Trainer, path: Path, wanted: Configuration) -> None:
    """Continue `trainer` from the state at `path`.

    Raises `UsageError` when it is the state of another run than `wanted`, and `CheckpointError`
    when the file is missing, damaged or no state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            step = _checked_step(path, file.metadata() or {}, wanted)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_shapes(path, shapes, trainer.state_shapes(step))
            tensors = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({error}); it cannot be resumed, train again"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); there is nothing to resume"
        ) from error
    if step > trainer.settings.steps:
        raise UsageError(
            f"{path} is at step {step}, past the {trainer.settings.steps} steps wanted;"
            f" give --steps {step} or more"
        )
    trainer.restore(tensors, step)


def _checked_step(path: Path, metadata: Mapping[str, str], wanted: Configuration) -> int:
    try:
        step = int(metadata["step"])
        recorded = json.loads(metadata["configuration"])
    except (KeyError, ValueError, RecursionError) as error:
        raise _no_state(path) from error
    if step < 0 or not isinstance(recorded, dict):
        raise _no_state(path)
    differences = differing(recorded, dict(wanted))
    if differences:
        raise UsageError(
            f"{path} is the state of another run ({_some(differences)});"
            " resume with the command it was started with, or train into another folder"
        )
    return step


def _check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = sorted(
        name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
    )
    if wrong:
        raise CheckpointError(
            f"{path} does not hold the tensors of this network (missing, extra or misshapen:"
            f" {_some(wrong)}); it cannot be resumed, train again"
        )


def _no_state(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} holds no state that esogen train wrote; name the folder of an interrupted run"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
