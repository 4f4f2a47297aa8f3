"""The working file: every state of an edit, written whole after each change, and read back.

It holds texts, token ids and settings; keys and values are computed again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from esogen.atomic import replacing
from esogen.editor.session import Session
from esogen.editor.state import Knobs, State
from esogen.errors import EsogenError
from esogen.generate.draw import DrawSettings
from esogen.generate.plan import ScheduleSettings
from esogen.generate.template import Blank, Layout, Template

FORMAT = 1


def write(path: Path, session: Session, model: str, *, typed: str = "") -> None:
    """Write the whole session, so that it is there or not; `typed` is a template not yet filled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {
        "format": FORMAT,
        "model": model,
        "seed": session.settings.seed,
        "typed": typed,
        "current": session.tree.current_number,
        "sample": session.sample,
        "states": [_plain(state) for state in session.tree.states],
    }
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path, model: str, seed: int | None = None) -> Mapping[str, Any]:
    """What a working file holds.

    Raises `EsogenError` for one that is not of this model, or not of this seed where one is asked
    for.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found, written = value["format"], value["model"]
    except FileNotFoundError as error:
        raise EsogenError(
            f"{path}: there is no working file to resume; begin without --resume"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EsogenError(
            f"{path} is no working file ({error!r}); name another with --work"
        ) from error
    if found != FORMAT:
        raise EsogenError(f"{path} has the format {found}; this esogen reads {FORMAT}")
    if written != model:
        raise EsogenError(f"{path} was made with the model {written}; give it with --model")
    if seed not in (None, drawn_with := value.get("seed")):
        raise EsogenError(f"{path} goes on with --seed {drawn_with}; leave out --seed {seed}")
    return dict(value)


def check_ours(path: Path) -> None:
    """Raise `EsogenError` where something else is than a working file, or nothing.

    It is somebody's, and stays as it is.
    """
    if not path.exists():
        return
    try:
        ours = json.loads(path.read_text(encoding="utf-8")).keys() >= {"format", "model", "states"}
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise EsogenError(
            f"{path} is no working file of the editor, and is left as it is; name another with"
            " --work"
        )


def set_aside(path: Path) -> None:
    """Move the working file of an earlier session, if there is one, to `NAME.previous.SUFFIX`.

    Raises as `check_ours` does.
    """
    check_ours(path)
    if path.exists():
        path.replace(path.with_suffix(".previous" + path.suffix))


def resume(value: Mapping[str, Any], session: Session, path: Path) -> None:
    """Take the states of a working file up; raises `EsogenError` where they contradict."""
    try:
        states = [_state(each) for each in value["states"]]
        session.settings = session.settings.seeded(int(value["seed"]))
        if states:
            session.resume(states, int(value["current"]), int(value["sample"]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EsogenError(f"{path} is damaged ({error}); start without --resume") from error


def _plain(state: State) -> dict[str, object]:
    layout, knobs = state.layout, state.knobs
    return {
        "number": state.number,
        "parent": state.parent,
        "what": state.what,
        "texts": layout.template.texts,
        "blanks": [asdict(blank) for blank in layout.template.blanks],
        "ids": layout.ids_L.tolist(),
        "spaced": np.flatnonzero(layout.spaced_L).tolist(),
        "starts": layout.starts,
        "lengths": layout.lengths,
        "tokens": state.tokens_L.tolist(),
        "log_probs": state.log_probs_L.tolist(),
        "order": state.order.tolist(),
        "clean": state.clean,
        "fork": state.fork,
        "decided": state.decided,
        "locked": sorted(state.locked),
        "schedule": asdict(knobs.schedule),
        "draw": asdict(knobs.draw),
        "sample": state.sample,
    }


def _state(value: Mapping[str, Any]) -> State:
    template = Template(tuple(value["texts"]), tuple(Blank(**blank) for blank in value["blanks"]))
    ids_L = np.array(value["ids"], np.int64)
    spaced_L = np.isin(np.arange(len(ids_L)), value["spaced"])
    starts, lengths = tuple(value["starts"]), tuple(value["lengths"])
    return State(
        number=value["number"],
        parent=value["parent"],
        what=value["what"],
        layout=Layout(template, ids_L, spaced_L, starts, lengths),
        tokens_L=np.array(value["tokens"], np.int64),
        log_probs_L=np.array(value["log_probs"], np.float64),
        order=np.array(value["order"], np.int64),
        clean=value["clean"],
        fork=value["fork"],
        decided=tuple(value["decided"]),
        locked=frozenset(value["locked"]),
        knobs=Knobs(ScheduleSettings(**value["schedule"]), DrawSettings(**value["draw"])),
        sample=value["sample"],
    )
