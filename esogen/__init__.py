"""Text generation with Esoteric Language Models.

Public names are imported when they are first used, so that `import esogen` imports no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esogen.errors import EsogenError
    from esogen.language_model import LanguageModel, load
    from esogen.sampling import Sample
    from esogen.scoring.score import Score

    __version__: str

__all__ = ["EsogenError", "LanguageModel", "Sample", "Score", "__version__", "load"]

_HOMES = {
    "EsogenError": "esogen.errors",
    "LanguageModel": "esogen.language_model",
    "Sample": "esogen.sampling",
    "Score": "esogen.scoring.score",
    "load": "esogen.language_model",
}

if not TYPE_CHECKING:  # a checker sees the names above, and no others

    def __getattr__(name: str) -> object:
        value = globals()[name] = _find(name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _find(name: str) -> object:
    import importlib
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("esogen")
    if name not in _HOMES:
        raise AttributeError(f"module 'esogen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
