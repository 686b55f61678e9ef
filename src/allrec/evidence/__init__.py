"""Named evidence for candidates, and the retrieval of candidates from the whole catalogue."""

from allrec.evidence.evidence import CONTEXT, FREE, Evidence, Scorer
from allrec.evidence.histories import Histories
from allrec.evidence.similarity import DenseSpace, Neighbours, WordSpace

__all__ = ["CONTEXT", "FREE", "DenseSpace", "Evidence", "Histories", "Neighbours", "Scorer", "WordSpace"]
