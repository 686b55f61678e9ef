"""Evidence and the models that weigh it: what a trained system ranks with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.hybrid.features import CONTEXT, Evidence, Histories
from allrec.hybrid.fusion import Fusion
from allrec.hybrid.fusion_training import fused_scores
from allrec.hybrid.whole_catalogue import Retrieved, Score, retrieve_scored

Scope = Literal["lists", "catalogue"]
"""Which candidates a fusion was fitted on: given lists of the target among random items, or what retrieval finds."""
LLM_EVIDENCE = ("llm",)
"""Evidence of the language model, by the scorer that gives it; ``readout`` joins where the head is trained."""
ROWS = 1024
"""Rows whose evidence is held at one time."""


class Fused:
    """Evidence of a catalogue, and the fusions over it.

    The language model's evidence joins last: what it adds to the fusion of all else is fitted by itself, so that the
    fast fusion and the whole one differ by that alone.

    Args:
        evidence: all but the language model's.
        models: by scope, a fusion of that evidence.
        with_llm: by scope, what the language model's evidence adds; None where it was found to add nothing.
        depth: items that each scorer and each retrieving space finds.
        num_ranked: so many of the best the language model reads.
        num_fused: so many of what is retrieved are scored by their evidence, as many as are read or asked for at least.
    """

    def __init__(
        self,
        evidence: Evidence,
        models: Mapping[Scope, Fusion],
        with_llm: Mapping[Scope, Fusion | None],
        depth: int,
        num_ranked: int,
        num_fused: int,
    ) -> None:
        self.evidence, self.models, self.with_llm = evidence, dict(models), dict(with_llm)
        self.depth, self.num_ranked, self.num_fused = depth, num_ranked, max(num_fused, num_ranked)

    def find(
        self,
        histories: Histories,
        folds: Int[ndarray, "rows"] | None = None,
        excepted: Int[ndarray, "rows"] | None = None,
    ) -> Iterator[Retrieved]:
        """What retrieval finds in the catalogue for every row, fused, some rows at a time; see ``retrieve_scored``."""
        score = self.score("catalogue", folds)
        return retrieve_scored(self.evidence, score, histories, self.depth, excepted, self.num_fused)

    def score(self, scope: Scope, folds: Int[ndarray, "rows"] | None = None) -> Score:
        """The fusion of a scope; with ``folds`` each row is scored by the member that was fitted without it."""
        model = self.models[scope]
        return lambda features, part: fused_scores(model, features, None if folds is None else folds[part])

    def score_lists(
        self, histories: Histories, candidates: Int[ndarray, "rows candidates"], score: Score
    ) -> Float[ndarray, "rows candidates"]:
        """Scores given lists by their evidence, some rows at a time."""
        scores = np.zeros(candidates.shape, np.float32)
        for start in range(0, len(candidates), ROWS):
            part = slice(start, start + ROWS)
            scores[part] = score(self.evidence.features(histories.part(part), candidates[part]), part)
        return scores

    def llm_names(self, scope: Scope) -> list[str]:
        """Which evidence of the language model a scope's whole fusion reads; none without one."""
        model = self.with_llm.get(scope)
        return [] if model is None else [name for name in model.names if name not in CONTEXT]

    def added_by_llm(
        self,
        scope: Scope,
        features: Float[ndarray, "rows candidates evidence"],
        read: Mapping[str, Float[ndarray, "rows candidates"]],
        folds: Int[ndarray, "rows"] | None = None,
    ) -> Float[ndarray, "rows candidates"]:
        """What the language model's evidence adds to the fused score; zeros where that is nothing.

        Args:
            scope: of the lists.
            features: all other evidence.
            read: the language model's raw scores by name, see ``llm_features``.
            folds: see ``score``.
        """
        model = self.with_llm.get(scope)
        if model is None:
            return np.zeros(features.shape[:2], np.float32)
        return fused_scores(model, llm_features(self.evidence.names, model.names, features, read), folds)


def llm_features(
    names: Sequence[str],
    wanted: Sequence[str],
    features: Float[ndarray, "rows candidates evidence"],
    read: Mapping[str, Float[ndarray, "rows candidates"]],
) -> Float[ndarray, "rows candidates wanted"]:
    """The language model's evidence and the context it is read in.

    Its scores depend on the list in the prompt, so each is taken as a log probability within that list, in nats;
    padding, which scores minus infinity, has zeros.

    Args:
        names: of ``features``.
        wanted: names of the language model's evidence and of context.
        features: all other evidence.
        read: the language model's scores by name.
    """
    columns = [within_list(read[name]) if name in read else features[:, :, list(names).index(name)] for name in wanted]
    return np.stack(columns, axis=2).astype(np.float32)


def within_list(scores: Float[ndarray, "rows candidates"]) -> Float[ndarray, "rows candidates"]:
    """Log of a softmax over each row; 0 where a score is minus infinity."""
    values: Tensor = torch.from_numpy(scores).log_softmax(dim=1)
    return values.nan_to_num(nan=0.0, neginf=0.0).numpy()


def best_of(found: Retrieved, k: int, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    """The k best of what was retrieved, in random order: their candidates, padding last, and their places.

    The order in which a prompt lists candidates must tell nothing of how they were ranked.
    """
    places = found.best(k)
    listed = np.take_along_axis(found.candidates, places, axis=1)
    order = np.argsort(np.where(listed < 0, 2.0, rng.random(listed.shape)), axis=1)
    return np.take_along_axis(listed, order, axis=1), np.take_along_axis(places, order, axis=1)
