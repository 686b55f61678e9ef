"""What happened: interactions and items, from a source to a data set."""

from allrec.data.config import PrepareConfig
from allrec.data.dataset import Dataset, Targets, load_dataset
from allrec.data.preparation import prepare
from allrec.data.simulator.config import SimulationConfig
from allrec.data.simulator.simulate import simulate, true_probabilities

__all__ = [
    "Dataset",
    "PrepareConfig",
    "SimulationConfig",
    "Targets",
    "load_dataset",
    "prepare",
    "simulate",
    "true_probabilities",
]
