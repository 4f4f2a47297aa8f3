"""`config.json`, read and written in the dialects of the published checkpoints.

    model_type  family              width        also
    EsoLM       esolm-b or esolm-a  hidden_size  a stray hidden_dim may stand beside it
    mdlm        mdlm                hidden_dim
    bd3lm       bd3lm               hidden_dim   block_size
    ar          ar                  hidden_dim   no cond_dim

An Eso-LM is variant (A) where it names the two attention modes of (A), and (B) where it names none.
What only esogen knows stands under a key of its own that the authors' code passes over:

    "esogen": {"bos_id": 0,
               "sampling": {"length": 256, "steps": 64, "alpha_0": 1.0, "schedule": "random"},
               "training": {...}}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from esogen.atomic import replacing
from esogen.errors import CheckpointError
from esogen.model.config import Family, ModelConfig

Schedule = Literal["random", "blocks", "streams"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

ESOLM_A_MODES = {"diffusion_attn_mode": "mixed2", "sequential_attn_mode": "mixed"}
"""The keys that make an Eso-LM variant (A)."""

_BD3LM_ALWAYS = {
    "time_conditioning": False,
    "adaln": True,
    "causal": False,
    "cross_attn": True,
    "attn_backend": "sdpa",
}

LARGEST_SIZE = 2**24
"""Of any size: far above every model of the family, and too small to overflow a product of two."""


class _Dialect(NamedTuple):
    """How the config files of one family are written; `hub_code` is what `auto_map` points to."""

    model_type: str
    architecture: str
    width: str
    hub_code: tuple[str, str, str] | None = None


_ESOLM = _Dialect(
    "EsoLM", "EsoLM", "hidden_size", ("sahoo-diffusion/Eso-LM-B-alpha-1", "configuration", "model")
)
_DIALECTS: Mapping[Family, _Dialect] = {
    "esolm-b": _ESOLM,
    "esolm-a": _ESOLM,
    "mdlm": _Dialect(
        "mdlm",
        "MDLM",
        "hidden_dim",
        ("kuleshov-group/mdlm-owt", "configuration_mdlm", "modeling_mdlm"),
    ),
    "bd3lm": _Dialect(
        "bd3lm",
        "BD3LM",
        "hidden_dim",
        ("kuleshov-group/bd3lm-owt-block_size4", "configuration", "modeling_bd3lm"),
    ),
    "ar": _Dialect("ar", "AR", "hidden_dim"),
}
MODEL_TYPES = frozenset(dialect.model_type for dialect in _DIALECTS.values())
"""What `model_type` may be."""

_PASSED_OVER = {"auto_map", "dtype", "return_dict", "torch_dtype", "transformers_version"}
_PASSED_OVER |= {"hidden_dim", "sampling_eps_max", "sampling_eps_min", "var_min"}
"""Fields of published configs that change nothing here; `auto_map` names code that never runs."""


@dataclass(frozen=True, slots=True)
class CardDefaults:
    """Sampling settings that a checkpoint asks for where the user says nothing; None = not given.

    `length` and `steps` are counts of tokens and steps, `alpha_0` the share of the diffusion phase.
    """

    length: int | None = None
    steps: int | None = None
    alpha_0: float | None = None
    schedule: Schedule | None = None

    def filled(self, others: "CardDefaults") -> "CardDefaults":
        """These, with those of `others` for what is not given here."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(others, **given)


@dataclass(frozen=True, slots=True)
class Card:
    """All that `config.json` says: the network's shape, default settings, notes on its training.

    `unknown`: fields that no published config has, kept as they are.
    """

    model: ModelConfig
    defaults: CardDefaults = CardDefaults()
    training: Mapping[str, object] = field(default_factory=dict)
    unknown: Mapping[str, object] = field(default_factory=dict)


def read_config(path: Path) -> Card:
    """Read a `config.json` of any of the dialects.

    Raises `CheckpointError` for a file that cannot be read and for a field that is missing, out of
    range or that only another kind of network has.
    """
    fields = _Fields(path, _read_object(path))
    own = fields.inner("esogen")
    model = _model(fields, own)
    return Card(
        model,
        _defaults(own.inner("sampling"), model),
        own.inner("training").values,
        _unknown(fields.values, model),
    )


def write_config(path: Path, card: Card, torch_dtype: str) -> None:
    """Write `card` so that both esogen and the authors' own code read it.

    `torch_dtype` is the precision of the weights beside it, as in "bfloat16".
    Raises `OSError` when the file cannot be written.
    """
    values = dict(card.unknown) | _dialect(card.model) | {"torch_dtype": torch_dtype}
    sampling = {name: value for name, value in asdict(card.defaults).items() if value is not None}
    own = {"bos_id": card.model.bos_id, "sampling": sampling, "training": dict(card.training)}
    own = {name: value for name, value in own.items() if value not in (None, {})}
    if own:
        values["esogen"] = own
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one JSON object; `within` is where it stands in the file, as in "esogen."."""

    path: Path
    values: Mapping[str, object]
    within: str = ""

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def inner(self, name: str) -> "_Fields":
        """The object under `name`; one without fields where there is none."""
        value = self.values.get(name) if self.has(name) else {}
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return _Fields(self.path, value, f"{self.within}{name}.")

    def whole(self, name: str, most: int = LARGEST_SIZE) -> int:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(name, f"a whole number from 1 to {most}")
        return value

    def token(self, name: str) -> int:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "the id of a token")
        return value

    def share(self, name: str) -> float:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise self.error(name, "a number from 0 to 1")
        return float(value)

    def error(self, name: str, wanted: str) -> CheckpointError:
        found = _brief(self.values[name]) if name in self.values else "no such field"
        return CheckpointError(
            f"{self.path}: {self.within}{name} must be {wanted}, found {found};"
            " mend it, or take the config.json that came with the weights"
        )


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_object(path: Path) -> Mapping[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download or copy it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: wanted a JSON object, found {_brief(value)}")
    return value


def _model(fields: _Fields, own: _Fields) -> ModelConfig:
    family = _family(fields)
    adaln = family != "ar"
    if adaln:
        _refuse_other_networks(fields)
    try:
        return ModelConfig(
            family=family,
            vocab_size=fields.whole("vocab_size"),
            model_length=fields.whole("model_length"),
            hidden_size=fields.whole(_DIALECTS[family].width),
            n_blocks=fields.whole("n_blocks"),
            n_heads=fields.whole("n_heads"),
            dropout=fields.share("dropout"),
            **({"cond_dim": fields.whole("cond_dim")} if adaln else {}),
            **({"block_size": fields.whole("block_size")} if family == "bd3lm" else {}),
            bos_id=own.token("bos_id") if own.has("bos_id") else None,
        )
    except ValueError as error:
        raise CheckpointError(f"{fields.path}: {error}") from error


def _family(fields: _Fields) -> Family:
    match fields.values.get("model_type"):
        case "EsoLM":
            family = _variant(fields)
        case "mdlm" | "bd3lm" | "ar" as family:
            pass
        case _:
            raise fields.error("model_type", 'one of "EsoLM", "mdlm", "bd3lm", "ar"')
    _check_architecture(fields, _DIALECTS[family])
    return family


def _check_architecture(fields: _Fields, dialect: _Dialect) -> None:
    """`architectures` may be left out or name somebody else's class, but not another family's."""
    named = fields.values.get("architectures") or []
    others = {each.architecture for each in _DIALECTS.values()} - {dialect.architecture}
    if not isinstance(named, list) or any(
        name in others for name in named if isinstance(name, str)
    ):
        wanted = f'["{dialect.architecture}"], as model_type "{dialect.model_type}" says'
        raise fields.error("architectures", wanted)


def _variant(fields: _Fields) -> Family:
    modes = {name: fields.values[name] for name in ESOLM_A_MODES if name in fields.values}
    if not modes:
        return "esolm-b"
    for name, mode in ESOLM_A_MODES.items():
        if modes.get(name) != mode:
            raise fields.error(name, f'"{mode}", as in Eso-LM (A), or both modes absent, as in (B)')
    return "esolm-a"


def _refuse_other_networks(fields: _Fields) -> None:
    """Fields that may be left out, but that promise another network when they differ."""
    mask_id = fields.whole("vocab_size") - 1
    only = {"time_conditioning": False, "causal": False, "adaln": True, "mask_index": mask_id}
    only |= {"cross_attn": True}
    for name, value in only.items():
        if fields.values.get(name, value) != value:
            raise fields.error(name, f"{_brief(value)} for this family")


def _defaults(fields: _Fields, model: ModelConfig) -> CardDefaults:
    length = fields.whole("length", model.model_length) if fields.has("length") else None
    steps = fields.whole("steps") if fields.has("steps") else None
    alpha_0 = fields.share("alpha_0") if fields.has("alpha_0") else None
    return CardDefaults(length, steps, alpha_0, _schedule(fields))


def _schedule(fields: _Fields) -> Schedule | None:
    if not fields.has("schedule"):
        return None
    for word in SCHEDULES:
        if fields.values["schedule"] == word:
            return word
    raise fields.error("schedule", f"one of {', '.join(SCHEDULES)}")


def _unknown(values: Mapping[str, object], model: ModelConfig) -> dict[str, object]:
    known = {*_dialect(model), *_PASSED_OVER, *ESOLM_A_MODES, *_BD3LM_ALWAYS}
    known |= {"esogen", "architectures", "mask_index"}
    return {name: value for name, value in values.items() if name not in known}


def _dialect(model: ModelConfig) -> dict[str, object]:
    values: dict[str, object] = _heading(_DIALECTS[model.family]) | {
        "vocab_size": model.vocab_size,
        "model_length": model.model_length,
        _DIALECTS[model.family].width: model.hidden_size,
        "n_blocks": model.n_blocks,
        "n_heads": model.n_heads,
        "dropout": model.dropout,
    }
    if model.has_adaln:
        values |= {"cond_dim": model.cond_dim, "return_dict": False}
    match model.family:
        case "esolm-b":
            values |= {"mask_index": model.mask_id}
        case "esolm-a":
            values |= {"mask_index": model.mask_id, **ESOLM_A_MODES}
        case "mdlm":
            values |= {"time_conditioning": False}
        case "bd3lm":
            values |= {"block_size": model.block_size, **_BD3LM_ALWAYS}
        case "ar":
            pass
    return values


def _heading(dialect: _Dialect) -> dict[str, object]:
    values: dict[str, object] = {
        "architectures": [dialect.architecture],
        "model_type": dialect.model_type,
    }
    if dialect.hub_code:
        repository, configuration, module = dialect.hub_code
        values["auto_map"] = {
            "AutoConfig": f"{repository}--{configuration}.{dialect.architecture}Config",
            "AutoModelForMaskedLM": f"{repository}--{module}.{dialect.architecture}",
        }
    return values
