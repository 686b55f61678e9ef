"""Interactions and items, from a source to a prepared data set. Modules are imported at first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allrec.data.config import PrepareConfig
    from allrec.data.dataset import Dataset, Targets, load_dataset
    from allrec.data.preparation import prepare
    from allrec.data.simulator.market import SimulationConfig
    from allrec.data.simulator.simulate import simulate

_WHERE = {
    "Dataset": "dataset",
    "PrepareConfig": "config",
    "SimulationConfig": "simulator.market",
    "Targets": "dataset",
    "load_dataset": "dataset",
    "prepare": "preparation",
    "simulate": "simulator.simulate",
}

__all__ = [
    "Dataset",
    "PrepareConfig",
    "SimulationConfig",
    "Targets",
    "load_dataset",
    "prepare",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'allrec.data' has no attribute {name!r}")
    return getattr(import_module(f"allrec.data.{_WHERE[name]}"), name)
