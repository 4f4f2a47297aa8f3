"""Texts in a player for the browser: one file, which asks no network for anything.

Its policy lets nothing run but the player itself, known by its digest; what a model wrote is data,
and becomes text nodes.
"""

import html
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from string import Template

from esogen.view.canvas import SURE, UNSURE
from esogen.view.palette import Coloring, Palette
from esogen.view.scene import Scene
from esogen.view.theme import COLOR_BY
from esogen.visible import visible

_LEGENDS: Mapping[str, Sequence[str]] = {
    "certainty": (f"below {UNSURE:.0%}", f"{UNSURE:.0%} to {SURE:.0%}", f"above {SURE:.0%} sure"),
    "order": ("decided first", "decided last"),
    "step": ("words of one colour came in one step",),
}


def player(
    scenes: Sequence[tuple[int, Scene]], coloring: Coloring, title: str, command: str
) -> str:
    """The whole file, for scenes with the numbers of their texts."""
    style = _variables(coloring.palette) + _file("player.css")
    script = _file("player.js")
    page = Template(_file("player.html"))
    return page.substitute(
        policy=(
            f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)};"
            " base-uri 'none'; form-action 'none'"
        ),
        title=_escaped(title),
        style=style,
        texts="\n".join(f"<p>{_escaped(scene.text)}</p>" for _, scene in scenes),
        command=_escaped(command),
        data=_json(_data(scenes, coloring)),
        script=script,
    )


def _data(scenes: Sequence[tuple[int, Scene]], coloring: Coloring) -> Mapping[str, object]:
    return {
        "by": coloring.by,
        "unsure": UNSURE,
        "sure": SURE,
        "colors": {by: Coloring(coloring.palette, by).colors for by in COLOR_BY},
        "legend": _LEGENDS,
        "texts": [_story(index, scene) for index, scene in scenes],
    }


def _story(index: int, scene: Scene) -> Mapping[str, object]:
    return {
        "index": index,
        "calls": scene.calls,
        "diffusion": scene.diffusion_steps,
        "pace": [round(pace, 4) for pace in scene.timeline.paces],
        "pieces": [
            (visible(piece.text), piece.step, round(piece.certainty, 3)) for piece in scene.pieces
        ],
    }


def _json(value: object) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _variables(palette: Palette) -> str:
    colors = {
        field.name: getattr(palette, field.name)
        for field in fields(palette)
        if isinstance(getattr(palette, field.name), str)
    }
    colors |= {"mask0": palette.mask_diffusion, "mask1": palette.mask_sequential}
    colors |= {f"light{number}": color for number, color in enumerate(palette.lights)}
    return ":root{" + "".join(f"--{name}:{color};" for name, color in colors.items()) + "}\n"


def _digest(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
