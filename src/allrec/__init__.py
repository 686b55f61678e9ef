"""allrec: an all-round recommender. Heavy parts are imported when they are first used."""

from importlib import import_module
from typing import Any

_WHERE = {
    "AllRec": "allrec.recommender",
    "Recommendation": "allrec.recommender",
    "InputError": "allrec.errors",
    "Dataset": "allrec.data",
    "PrepareConfig": "allrec.data",
    "SimulationConfig": "allrec.data",
    "load_dataset": "allrec.data",
    "prepare": "allrec.data",
    "simulate": "allrec.data",
    "Recipe": "allrec.config",
    "load_recipe": "allrec.config",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'allrec' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
