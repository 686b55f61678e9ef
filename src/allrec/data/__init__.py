"""What happened: interactions and items, from a source to a data set."""

from allrec.data.config import PrepareConfig
from allrec.data.dataset import Dataset, Targets, load_dataset
from allrec.data.preparation import prepare
from allrec.data.simulate import simulate, true_probabilities
from allrec.data.simulation_config import SimulationConfig

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
