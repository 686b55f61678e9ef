"""Evaluation protocols: which candidates a target is ranked among."""

from enum import StrEnum

from allrec.errors import InputError, nearest

NUM_NEGATIVES = {"paper": 19, "sampled-99": 99}
"""Negatives of the protocols whose lists are stored with a data set."""


class EvaluationProtocol(StrEnum):
    """What a target is ranked among; every list of protocols derives from this.

    Example:
        >>> EvaluationProtocol("full-repeat").is_catalogue
        True
        >>> EvaluationProtocol.PAPER.num_negatives
        19
    """

    PAPER = "paper"
    """The target and 19 uniform negatives that the user never interacted with, stored with the data set."""
    SAMPLED_99 = "sampled-99"
    """The same with 99 negatives."""
    FULL = "full"
    """The whole catalogue without the other items of the user's history."""
    FULL_REPEAT = "full-repeat"
    """The whole catalogue."""

    @property
    def num_negatives(self) -> int | None:
        """Negatives of a stored list; None where the catalogue is ranked."""
        return NUM_NEGATIVES.get(self.value)

    @property
    def is_catalogue(self) -> bool:
        """Whether the whole catalogue is ranked."""
        return self.num_negatives is None

    @property
    def excludes_history(self) -> bool:
        """Whether items of the history are taken out of the candidates, the target itself excepted."""
        return self is EvaluationProtocol.FULL

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise InputError(f"unknown protocol {value!r}: {nearest(str(value), [one.value for one in cls])}.")
