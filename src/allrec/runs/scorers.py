"""The table of scorers: what evaluation can rank the targets by, each by its name in ``metrics.json``."""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.config import SECOND, TUNED
from allrec.data.dataset import Targets
from allrec.data.protocols import EvaluationProtocol
from allrec.evaluation.evaluate import Ranked, RankingRequest, Scorer
from allrec.evaluation.ranks import candidate_ranks, catalogue_ranks, dot_product_ranks, excluded_of
from allrec.hybrid.features import histories_before, largest_similarity
from allrec.hybrid.fitting import folds_of
from allrec.hybrid.fusion import LENGTH, PRIOR
from allrec.hybrid.ranking import LlmReader
from allrec.hybrid.similarity import DenseSpace
from allrec.llm.score_files import SCORES, USERS_A_CHUNK, chunk_name, score_cache, stored
from allrec.runs.trained_model import TrainedModel

TEXT = "text"
READ_A_CHUNK = 2048
"""Users read by the read-out head between two writes."""


def rank_by_dot_products(model: TrainedModel, request: RankingRequest, *, of_joint: bool) -> Ranked:
    """x_u · E_i, or x_u · what stage 1 decodes of e_i or q_i."""
    items = model.joint_embeddings if of_joint else model.item_embeddings
    users = model.represent(_histories(request))
    return Ranked(dot_product_ranks(users, items, request.dataset, request.targets, request.protocol))


def rank_by_text(model: TrainedModel, request: RankingRequest) -> Ranked:
    """The largest cosine of the candidate's text with the texts of the latest items; nothing of it was trained."""
    targets, space = request.targets, model.evidence.spaces[TEXT]
    histories = histories_before(request.dataset, targets)
    if request.protocol.is_catalogue and isinstance(space, DenseSpace):
        excluded = excluded_of(request.dataset, targets, request.protocol)
        return Ranked(
            catalogue_ranks(
                lambda part: largest_similarity(histories.part(part), space), targets.items, len(space.unit), excluded
            )
        )
    candidates = targets.candidates[request.protocol]
    scores = model.evidence.column(f"{TEXT}_largest", histories, candidates)
    return Ranked(candidate_ranks(scores, candidates, targets.items))


def rank_by_fusion(model: TrainedModel, request: RankingRequest, *, with_llm: bool) -> Ranked:
    """All evidence, with or without the language model's.

    On validation each user is ranked by the members that were fitted without them; on test by all members, which met
    the user's validation target and never the test target.
    """
    ranker, targets = model.fused_ranker, request.targets
    if ranker is None:
        raise ValueError("the model has no fusion")
    folds = None
    if request.split == "valid":
        _, every_fold = folds_of(request.dataset, len(ranker.fusions["lists"].members), model.recipe.seed)
        folds = every_fold[request.rows]
    histories = histories_before(request.dataset, targets)
    if request.protocol.is_catalogue:
        reader = stored_reader(model, request, f"{request.protocol}-best") if with_llm else None
        ranked = ranker.rank_catalogue(histories, _excepted(request), reader, folds=folds)
        last = model.catalogue.num_items - 1
        parts = [scored.ranks(targets.items[scored.rows], last) for scored in ranked]
        return Ranked(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    reader = stored_reader(model, request, request.protocol) if with_llm else None
    lists = ranker.rank_lists(histories, targets.candidates[request.protocol], reader, folds=folds)
    return Ranked(np.concatenate([scored.ranks(targets.items[scored.rows], -1).ranks for scored in lists]))


def rank_by_llm(model: TrainedModel, request: RankingRequest, *, name: str = "llm") -> Ranked:
    """log P(title | prompt), or a control of it; over the catalogue of the backbone's best items, the rest as it is."""
    targets, ranker = request.targets, model.backbone_ranker
    histories = histories_before(request.dataset, targets)
    if request.protocol.is_catalogue:
        reader = stored_reader(model, request, f"{request.protocol}-best")
        ranked = ranker.rank_catalogue(histories, _excepted(request), reader)
        parts = [scored.ranks(targets.items[scored.rows], -1) for scored in ranked]
        ranks, is_retrieved = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Ranked(np.where(is_retrieved, ranks, rank_by_dot_products(model, request, of_joint=False).ranks))
    reader = stored_reader(model, request, request.protocol, name)
    lists = ranker.rank_lists(histories, targets.candidates[request.protocol], reader)
    return Ranked(np.concatenate([scored.ranks(targets.items[scored.rows], -1).ranks for scored in lists]))


def rank_by_readout(model: TrainedModel, request: RankingRequest) -> Ranked:
    """The read-out head's dot products; a user is read once for all protocols."""
    users = stored_readings(model, request)[torch.from_numpy(np.searchsorted(request.read_rows, request.rows))]
    targets, protocol = request.targets, request.protocol
    return Ranked(dot_product_ranks(users, model.readout_items, request.dataset, targets, protocol))


def stored_reader(model: TrainedModel, request: RankingRequest, lists: str, variant: str = "llm") -> LlmReader:
    """The language model for the rows of a request, its scores read where one of the folders has them.

    Args:
        model: scores.
        request: whose rows and folders.
        lists: name of the lists, in the names of files.
        variant: control in place of the scorer "llm".
    """

    def chunk(places: Int[ndarray, "part"], candidates: ndarray, name: str) -> ndarray:
        scorer, rows = variant if name == "llm" else name, request.rows[places]
        file = chunk_name(f"{request.split}-{lists}-{scorer}", int(places[0]), rows, candidates)

        def compute() -> Tensor:
            scores = model.llm_scores(_histories(request, rows), candidates, scorer, score_cache())
            return torch.from_numpy(scores)

        scores = stored(request.folders, file, SCORES, compute).numpy()
        done = float(places[-1] + 1)
        request.on_progress(done / len(request.rows), {"users": done})
        return scores

    def score(places: Int[ndarray, "part"], candidates: ndarray, name: str) -> Float[ndarray, "part listed"]:
        if name in (PRIOR, LENGTH):
            return model.titles.of_titles(candidates, name)
        parts = [slice(start, start + USERS_A_CHUNK) for start in range(0, len(places), USERS_A_CHUNK)]
        return np.concatenate([chunk(places[part], candidates[part], name) for part in parts])

    return LlmReader(score, model.titles.fits_each)


def stored_readings(model: TrainedModel, request: RankingRequest) -> Float[Tensor, "read readout_dim"]:
    """The head's vector of each user, read where one of the folders has it, else computed and written to the first."""
    chunks = []
    for start in range(0, len(request.read_rows), READ_A_CHUNK):
        rows = request.read_rows[start : start + READ_A_CHUNK]

        def compute(rows: Int[ndarray, "rows"] = rows) -> Tensor:
            return model.read(_histories(request, rows))

        file = chunk_name(f"{request.split}-readout", start, rows)
        chunks.append(stored(request.folders, file, "vectors", compute))
        request.on_progress((start + len(rows)) / len(request.read_rows), {"users": float(start + len(rows))})
    return torch.cat(chunks)


def _histories(request: RankingRequest, rows: Int[ndarray, "rows"] | None = None) -> list[Int[ndarray, "length"]]:
    """The history before each target, oldest first."""
    targets = request.dataset.targets[request.split].take(request.rows if rows is None else rows)
    known = histories_before(request.dataset, targets)
    return [known.items[start:end] for start, end in zip(known.starts, known.ends, strict=True)]


def _excepted(request: RankingRequest) -> Int[ndarray, "rows"] | None:
    return request.targets.items if request.protocol.excludes_history else None


def _always(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return None


def _joint(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return "" if model.recipe.alignment.network.kind == "identity" else None


def _fusion(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return None if model.recipe.fusion.enabled else ""


def _readout(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return None if model.has_llm and model.recipe.readout.enabled else ""


def _llm(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    if not model.has_llm:
        return ""
    if protocol.is_catalogue:
        # The ranking that is served is measured; where that is a fusion, this one is not served.
        return "" if model.recipe.fusion.enabled else None
    return _lists_fit(model, targets, protocol)


def _control(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return "" if not model.has_llm or protocol.is_catalogue else _lists_fit(model, targets, protocol)


def _random_items(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return "" if model.recipe.prompt.soft_token == "none" else _control(model, targets, protocol)


def _no_soft(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return "" if model.recipe.prompt.is_bare else _control(model, targets, protocol)


def _allround(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    return None if model.has_llm and model.fused_ranker is not None and model.fused_ranker.additions else ""


def _lists_fit(model: TrainedModel, targets: Targets, protocol: EvaluationProtocol) -> str | None:
    if model.titles.fits(targets.candidates[protocol]):
        return None
    return (
        f"lists of {targets.candidates[protocol].shape[1]} candidates outgrow the prompt: the language model reads "
        f"{model.llm.max_length} tokens. Lower prompt.max_title_tokens, or take a model that reads more."
    )


_STAGE_ONE = ("backbone", "text", "alignment")
_STAGE_TWO = (*_STAGE_ONE, "language_model")
_FUSED = (*_STAGE_ONE, SECOND, TUNED, "content", "ensemble", "fusion")
_CONTROL = partial(Scorer[TrainedModel], reads_llm=True, is_control=True, stages=_STAGE_TWO)
SCORERS: dict[str, Scorer[TrainedModel]] = {
    "cf": Scorer(partial(rank_by_dot_products, of_joint=False), _always, stages=("backbone",)),
    "joint": Scorer(partial(rank_by_dot_products, of_joint=True), _joint, stages=_STAGE_ONE),
    "text": Scorer(rank_by_text, _fusion, stages=("text",)),
    "llm": Scorer(rank_by_llm, _llm, reads_llm=True, is_lead=True, stages=_STAGE_TWO),
    "llm-random-items": _CONTROL(partial(rank_by_llm, name="llm-random-items"), _random_items),
    "llm-no-soft": _CONTROL(partial(rank_by_llm, name="llm-no-soft"), _no_soft),
    "readout": Scorer(rank_by_readout, _readout, reads_llm=True, stages=(*_STAGE_TWO, "readout")),
    "fusion": Scorer(partial(rank_by_fusion, with_llm=False), _fusion, is_lead=True, stages=_FUSED),
    "allround": Scorer(
        partial(rank_by_fusion, with_llm=True), _allround, reads_llm=True, is_lead=True,
        stages=(*_FUSED, "language_model", "readout"),
    ),
}  # fmt: skip
"""Every scorer, in the order of tables; of those that lead, a later one is tested against all earlier ones."""
