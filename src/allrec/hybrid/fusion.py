"""Fusion: a small listwise model over named evidence, whose score is the sum of each evidence's contribution.

    score(u, i) = sum over evidence f of gate_f(context) · shape_f(evidence_f) + interplay

A shape is piecewise linear and, for monotone evidence, never falls; a gate is positive and reads the context alone
(training count of the item, length of the history, whether the item is in it). The interplay is a small
network that never falls in the same evidence.

Source: neural additive models, Agarwal et al., arXiv:2004.13912; positive weights for monotone networks, Sill 1998.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec import seeds
from allrec.backbones.base import freeze
from allrec.errors import Config
from allrec.files import load_tensors, read_json, save_tensors, write_json

Scope = Literal["lists", "catalogue"]
"""The candidates that a fusion is fitted on: stored lists of the target among random items, or retrieved ones."""
SCOPES: tuple[Scope, ...] = ("lists", "catalogue")

PRIOR, LENGTH = "title_prior", "title_length"
LLM_EVIDENCE = ("llm", PRIOR, LENGTH)
"""Evidence of the language model: its score, log P(title | no history) and the number of the title's tokens.

``readout`` is added where the head is trained.
"""

STREAM = "fusion"

SCORED = 1 << 12
"""Candidates scored at one time, so few that intermediate results stay in a core's cache."""


INTERPLAY = "interplay"
BLOCK = 64
"""Candidates of a block."""
# softplus of it is 1, so that gates begin open.
ONE = math.log(math.e - 1)
# softplus of it is 0.13, a small slope.
SMALL = -2.0


class FusionConfig(Config):
    """Shape of the fusion model."""

    knots: int = Field(8, ge=2, description="Ends of the pieces of a shape, at quantiles of the evidence.")
    gate_width: int = Field(16, ge=1, description="Hidden width of the gates' network.")
    interplay_width: int = Field(16, ge=0, description="Hidden width of the interplay; 0 leaves it out.")
    members: int = Field(1, ge=1, description="Models whose scores are averaged; fitting leaves out a fold for each.")


class EvidenceScale(NamedTuple):
    """Mean, spread and quantiles of the evidence that fusion is fitted on; frozen, so independent of the list."""

    mean: Float[Tensor, "evidence"]
    spread: Float[Tensor, "evidence"]
    knots: Float[Tensor, "evidence knots"]


def evidence_scale(features: Float[Tensor, "values evidence"], num_knots: int) -> EvidenceScale:
    """Mean, standard deviation (1 for a constant) and standardised quantiles, made strictly ascending."""
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    values = ((features - mean) / spread).sort(dim=0).values
    places = torch.linspace(0.02, 0.98, num_knots) * (len(values) - 1)
    knots = values[places.round().long()].T
    # Equal quantiles are pulled apart, so that no piece has length 0.
    return EvidenceScale(mean, spread, knots + torch.arange(num_knots) * 1e-3)


class Fusion(nn.Module):
    """Scores candidates by their evidence; a mean over members.

    Args:
        names: of the evidence, in the order of the features.
        free: names of evidence that is not monotone.
        context: names of evidence that the gates read.
        config: widths.
        scale: of the evidence where fusion is fitted.
        generator: draws all weights.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        names: Sequence[str],
        free: Sequence[str],
        context: Sequence[str],
        config: FusionConfig,
        scale: EvidenceScale,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.names, self.free, self.context, self.config = list(names), list(free), list(context), config
        is_monotone = torch.tensor([name not in free for name in names])
        places = torch.tensor([self.names.index(name) for name in context])
        self.register_buffer("mean", scale.mean)
        self.register_buffer("spread", scale.spread)
        self.members = nn.ModuleList(
            Member(is_monotone, places, config, scale.knots, generator) for _ in range(config.members)
        )

    def contributions(
        self, features: Float[Tensor, "rows candidates evidence"], member: int | None = None
    ) -> Float[Tensor, "rows candidates evidence_and_interplay"]:
        """Contributions of each evidence, and last of the interplay, to the score; they sum to it.

        Args:
            features: evidence.
            member: of this one alone; None is the mean over all.
        """
        added = self._added(features, member).transpose(1, 2).flatten(0, 1)
        return added[: features.shape[0] * features.shape[1]].view(*features.shape[:2], -1)

    def score(
        self, features: Float[Tensor, "rows candidates evidence"], member: int | None = None
    ) -> Float[Tensor, "rows candidates"]:
        """Logits of a softmax over the candidates of a row; larger is better."""
        added = self._added(features, member).sum(dim=1).flatten()
        return added[: features.shape[0] * features.shape[1]].view(features.shape[:2])

    def _added(
        self, features: Float[Tensor, "rows candidates evidence"], member: int | None
    ) -> Float[Tensor, "blocks evidence_and_interplay values"]:
        """Contributions by all members at once, with candidates in the last dimension, where memory is contiguous.

        Candidates go in blocks of one size: matrix products of a ragged size round differently, and equal evidence
        must tie.
        """
        members = [cast(Member, one) for one in (self.members if member is None else [self.members[member]])]
        values = ((features - self.mean) / self.spread).flatten(0, 1)
        values = functional.pad(values, (0, 0, 0, -len(values) % BLOCK))
        values = values.view(-1, BLOCK, values.shape[1]).transpose(1, 2).contiguous()
        hidden = _products([one.gate_input for one in members], values[:, members[0].context])
        hidden = torch.tanh(hidden + _columns("gate_bias", members))
        gates = torch.stack([one.gate_output.T for one in members]) @ hidden
        gates = functional.softplus(gates + _columns("gate_offset", members))
        hidden = _products([one.rising(one.interplay_input) for one in members], values)
        hidden = torch.tanh(hidden + _columns("interplay_bias", members))
        interplay = (functional.softplus(_columns("interplay_output", members)) * hidden).sum(dim=2).mean(dim=1)
        shaped = (gates * _shapes(members, values)).mean(dim=1)
        return torch.cat([shaped, interplay[:, None]], dim=1)

    def loss(
        self,
        features: Float[Tensor, "rows candidates evidence"],
        is_candidate: Bool[Tensor, "rows candidates"],
        targets: Int[Tensor, "rows"],
        offsets: Float[Tensor, "rows candidates"] | None = None,
        weights: Float[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of each member's softmax over a row's candidates, a mean over rows and members, in nats.

        Args:
            features: evidence.
            is_candidate: False for padding.
            targets: each row's target, as its place among the candidates.
            offsets: added to the scores, such as those of the fusion that this model adds to.
            weights: of the rows in the mean; None is all the same.
        """
        known = 0.0 if offsets is None else offsets
        weights = torch.ones(len(targets)) if weights is None else weights
        scores = [self.score(features, member) + known for member in range(len(self.members))]
        logits = [one.masked_fill(~is_candidate, -torch.inf) for one in scores]
        losses = [functional.cross_entropy(one, targets, reduction="none") for one in logits]
        return (torch.stack(losses) @ weights).mean() / weights.sum()


class Member(nn.Module):
    """The weights of one model of the fusion; ``Fusion`` computes with those of several at once."""

    is_monotone: Tensor
    context: Tensor
    knots: Tensor

    def __init__(
        self,
        is_monotone: Bool[Tensor, "evidence"],
        context: Int[Tensor, "context"],
        config: FusionConfig,
        knots: Float[Tensor, "evidence knots"],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        num_evidence, num_context = len(is_monotone), len(context)
        self.register_buffer("is_monotone", is_monotone)
        self.register_buffer("context", context)
        self.register_buffer("knots", knots)
        start = torch.where(is_monotone, SMALL, 0.0)
        self.rises = nn.Parameter(start[:, None].repeat(1, knots.shape[1] - 1))
        self.slopes = nn.Parameter(start.clone())
        self.gate_input = drawn(num_context, config.gate_width, generator)
        self.gate_bias = nn.Parameter(torch.zeros(config.gate_width))
        self.gate_output = nn.Parameter(torch.zeros(config.gate_width, num_evidence))
        self.gate_offset = nn.Parameter(torch.full((num_evidence,), ONE))
        self.interplay_input = drawn(num_evidence, config.interplay_width, generator)
        self.interplay_bias = nn.Parameter(torch.randn(config.interplay_width, generator=generator))
        self.interplay_output = nn.Parameter(torch.full((config.interplay_width,), SMALL))

    def rising(self, parameter: Float[Tensor, "evidence *more"]) -> Float[Tensor, "evidence *more"]:
        """The parameter itself for free evidence, made positive for monotone evidence."""
        is_monotone = self.is_monotone.view(-1, *[1] * (parameter.dim() - 1))
        return torch.where(is_monotone, functional.softplus(parameter), parameter)


def _shapes(
    members: Sequence[Member], values: Float[Tensor, "blocks evidence values"]
) -> Float[Tensor, "blocks members evidence values"]:
    """Piecewise linear functions, one an evidence and member; linear beyond the outer knots."""
    lower, upper = members[0].knots[:, :-1, None], members[0].knots[:, 1:, None]
    covered = torch.minimum(torch.maximum(values[:, :, None], lower), upper) - lower
    rises = torch.stack([one.rising(one.rises) for one in members], dim=1)
    slopes = torch.stack([one.rising(one.slopes) for one in members])
    steepness = rises / (upper - lower)[:, None, :, 0]
    return (steepness @ covered).transpose(1, 2) + slopes[:, :, None] * values[:, None]


def _products(
    weights: Sequence[Float[Tensor, "inputs outputs"]], values: Float[Tensor, "blocks inputs values"]
) -> Float[Tensor, "blocks members outputs values"]:
    return torch.stack([one.T for one in weights]) @ values[:, None]


def _columns(name: str, members: Sequence[Member]) -> Float[Tensor, "members width 1"]:
    return torch.stack([getattr(one, name) for one in members])[:, :, None]


def drawn(inputs: int, outputs: int, generator: torch.Generator) -> nn.Parameter:
    """A weight, normal with variance 1 / inputs."""
    return nn.Parameter(torch.randn(inputs, outputs, generator=generator) / math.sqrt(inputs))


def save_fusion(folder: Path, fusion: Fusion, name: str = "fusion") -> None:
    """Writes ``NAME.safetensors`` and ``NAME.json``."""
    described = {"names": fusion.names, "free": fusion.free, "context": fusion.context}
    write_json(folder / f"{name}.json", described | {"config": fusion.config.model_dump()})
    save_tensors(folder / f"{name}.safetensors", fusion.state_dict())


def save_addition(folder: Path, fusion: Fusion | None, name: str) -> None:
    """Writes the model that is added to a fusion; ``NAME.json`` is null where there is none."""
    if fusion is None:
        write_json(folder / f"{name}.json", None)
    else:
        save_fusion(folder, fusion, name)


def load_addition(folder: Path, name: str) -> Fusion | None:
    """Reads what ``save_addition`` wrote.

    Raises:
        InputError: a file is missing or damaged.
    """
    return None if read_json(folder / f"{name}.json") is None else load_fusion(folder, name)


def load_fusion(folder: Path, name: str = "fusion") -> Fusion:
    """Reads what ``save_fusion`` wrote, frozen.

    Raises:
        InputError: a file is missing or damaged.
    """
    described, tensors = read_json(folder / f"{name}.json"), load_tensors(folder / f"{name}.safetensors")
    scale = EvidenceScale(tensors["mean"], tensors["spread"], tensors["members.0.knots"])
    config = FusionConfig(**described["config"])
    fusion = Fusion(
        described["names"], described["free"], described["context"], config, scale, torch.Generator().manual_seed(0)
    )
    fusion.load_state_dict(tensors)
    return freeze(fusion)


def fold_of(clusters: Int[ndarray, "rows"], num_folds: int, seed: int) -> Int[ndarray, "rows"]:
    """The fold of every row of a split's targets, each of as many clusters as the others.

    Users of one history and target, who are a cluster (see ``clusters_of``), are in one fold: a member that was fitted
    without one of them never met the others. With fewer than two clusters a fold, hardly anybody would be left to fit
    on, and the rows themselves are spread.
    """
    rng = seeds.rng(seed, STREAM, "folds", num_folds)
    distinct, own = np.unique(clusters, return_inverse=True)
    if len(distinct) < 2 * num_folds:
        return np.asarray(rng.permutation(len(clusters)) % num_folds)
    return np.asarray(rng.permutation(len(distinct)) % num_folds)[own]


@torch.no_grad()
def fused_scores(
    model: Fusion,
    features: Float[ndarray, "rows candidates evidence"],
    folds: Int[ndarray, "rows"] | None = None,
) -> Float[ndarray, "rows candidates"]:
    """Scores of candidates, in chunks of rows; with ``folds`` each row by the member fitted without its fold."""
    scores = np.zeros(features.shape[:2], np.float32)
    step = max(1, SCORED // max(1, features.shape[1]))
    everyone = np.arange(len(features))
    groups = [(None, everyone)] if folds is None else [(k, everyone[folds == k]) for k in range(len(model.members))]
    for member, rows in groups:
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            scores[part] = model.score(torch.from_numpy(features[part]), member).numpy()
    return scores


def llm_features(
    names: Sequence[str],
    wanted: Sequence[str],
    features: Float[ndarray, "rows candidates evidence"],
    read: Mapping[str, Float[ndarray, "rows candidates"]],
) -> Float[ndarray, "rows candidates wanted"]:
    """The language model's evidence and the context evidence.

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
