"""The read-out stage: a learned vector behind the prompt learns to rank the catalogue through the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from allrec import seeds
from allrec.backbones.base import Backbone, freeze, represent_users
from allrec.backbones.losses import Negatives, sampled_softmax, softmax
from allrec.backbones.training import drawn_shares, shared_negatives, validation_targets
from allrec.data.dataset import Dataset
from allrec.data.protocols import EvaluationProtocol
from allrec.errors import Config
from allrec.evaluation.metrics import ndcg_at
from allrec.evaluation.ranks import dot_product_ranks
from allrec.llm.prompt import PromptBuilder
from allrec.llm.readout import (
    ReadOut,
    ReadOutConfig,
    ReadOutLosses,
    distillation_loss,
    read_out,
    uniformity_loss,
)
from allrec.llm.soft_token_training import history_lengths
from allrec.llm.soft_tokens import SoftTokens, project
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches, length_batches
from allrec.training.distributed import Place, share_rows, whole_batch
from allrec.training.examples import initialized, sampled, training_examples
from allrec.training.loop import FitReport, LoopConfig, fit

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

Retrieval = Callable[[ReadOut, Tensor, ndarray, np.random.Generator], Tensor]
"""The head, users' vectors, their next items, and what a sample of the catalogue is drawn with, to a loss in nats."""
STANDARDIZED_ON, READ_TOGETHER = 512, 64
"""Prompts whose hidden states give f_U its centre and scale, and how many of them are read at one time."""


class ReadOutStageConfig(Config):
    """The read-out head beside title likelihood."""

    enabled: bool = Field(False, description="Whether a run has this stage; the paper's recipes do without.")
    head: ReadOutConfig = ReadOutConfig()
    soft_tokens: Literal["frozen", "trained"] = Field(
        "frozen", description="Stage 2's F_U and F_I as they are, or a copy of them that learns along with the head."
    )
    positions: Literal["last", "every"] = Field(
        "every", description="Targets: one a user, the last training item, or every one."
    )
    sample: int | None = Field(None, ge=1, description="Targets to train on, drawn once at random; none takes all.")
    batch_tokens: int = Field(4096, ge=1, description="Tokens of titles a step.")
    sampled_softmax_above: int = Field(
        100_000, ge=1, description="Catalogue size above which the softmax is over a sample of the catalogue."
    )
    num_negatives: int = Field(4096, ge=1, description="Shared negatives of a step where it is.")
    validation_protocol: EvaluationProtocol = Field(
        EvaluationProtocol.FULL, description="Candidates of the validation that decides which epoch is kept."
    )
    validation_users: int = Field(1000, ge=1, description="Users of that validation at most, drawn once.")
    loop: LoopConfig = LoopConfig(epochs=3, learning_rate=2e-3, patience_steps=1, checkpoint_every=50)


class Batch(NamedTuple):
    """Rows of the examples, what a sample of the catalogue is drawn with, and how many rows all workers have."""

    rows: Int[ndarray, "batch"]
    draw: int
    num_rows: int


class Reader(NamedTuple):
    """What reads a user: the frozen parts below the head.

    Attributes:
        llm: frozen.
        builder: lays out prompts.
        backbone: frozen; gives x_u.
        joint_items: e_i, or q_i where cold: what items are scored by.
        item_inputs: what F_I reads of every item.
        soft_tokens: those of stage 2, frozen; a head that trained its own has no use for them.
    """

    llm: LanguageModel
    builder: PromptBuilder
    backbone: Backbone
    joint_items: Float[Tensor, "items joint"]
    item_inputs: Float[Tensor, "items joint"]
    soft_tokens: SoftTokens

    def states(
        self, readout: ReadOut, users: Float[Tensor, "batch dim"], histories: Sequence[Int[ndarray, "length"]]
    ) -> Float[Tensor, "batch read_dim"]:
        """Hidden states at the vector, behind prompts without candidates, in one forward pass; or x_u for the control.

        Args:
            readout: the head.
            users: x_u of each user.
            histories: item positions, oldest first.
        """
        if readout.reads == "user":
            return users
        prompts = self.builder.prompts(histories, [()] * len(histories))
        soft_tokens = self.soft_tokens if readout.soft_tokens is None else readout.soft_tokens
        soft = project(soft_tokens, users, self.item_inputs, prompts.soft_items)
        return read_out(self.llm, prompts, soft, readout.vector)

    @torch.no_grad()
    def read(
        self,
        readout: ReadOut,
        users: Float[Tensor, "rows dim"],
        histories: Sequence[Int[ndarray, "length"]],
        max_tokens: int,
    ) -> Float[Tensor, "rows dim"]:
        """z of every user, those of like length together.

        Args:
            readout: the head, in eval mode.
            users: x_u of each user.
            histories: item positions, oldest first.
            max_tokens: tokens of titles read at one time, padding included.
        """
        read = users.new_empty(len(histories), readout.users.outer.out_features)
        lengths = np.array([self._told(history) for history in histories], np.int64)
        for rows in length_batches(lengths + 1, max_tokens, np.random.default_rng(0)):
            states = self.states(readout, users[rows], [histories[row] for row in rows])
            read[torch.from_numpy(rows)] = readout.users(states)
        return read

    def _told(self, history: Int[ndarray, "length"]) -> int:
        start = max(0, len(history) - self.builder.config.max_history)
        return int(self.builder.title_lengths[history[start:]].sum())


def train_readout(
    dataset: Dataset,
    reader: Reader,
    config: ReadOutStageConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[ReadOut, FitReport]:
    """Learns the vector and the projections, and F_U and F_I too where ``config.soft_tokens`` says so.

    The epoch with the best NDCG@10 on validation is kept.

    Args:
        dataset: its training interactions are learned from; test targets are not read.
        reader: the frozen parts.
        config: of the stage.
        seed: of samples, batches and first weights.
        checkpoint: see ``fit``.
        on_progress: see ``fit``.

    Source: LLM-SRec, arXiv:2502.13909.
    """
    rng = seeds.rng(seed, "readout", "sample")
    examples = sampled(training_examples(dataset, config.positions), config.sample, rng)
    users = represent_users(reader.backbone, dataset, examples.users, examples.positions)
    readout = new_readout(users, reader, config, seed)

    def states(rows: Int[ndarray, "batch"]) -> Float[Tensor, "batch read_dim"]:
        histories = [dataset.history(examples.users[row])[: examples.positions[row]] for row in rows]
        return reader.states(readout, users[rows], histories)

    _standardize(readout, states, rng.permutation(len(examples))[:STANDARDIZED_ON])
    retrieval = _retrieval(dataset, reader.joint_items, config)

    def loss(batch: Batch) -> dict[str, Tensor]:
        rows = batch.rows
        vectors, teachers = readout.users(states(rows)), readout.teacher(users[rows])
        pairs = [uniformity_loss(whole_batch(one, batch.num_rows)) for one in (vectors, teachers)]
        losses = ReadOutLosses(
            retrieval=retrieval(readout, vectors, examples.items[rows], np.random.default_rng(batch.draw)),
            distillation=distillation_loss(vectors, teachers),
            uniformity=pairs[0] + pairs[1],
        )
        return {"total": losses.total(config.head.distillation, config.head.uniformity), **losses._asdict()}

    batches = _batches(history_lengths(dataset, examples, reader.builder), config, seed)
    validate = _validation(readout, dataset, reader, config, seed)
    report = fit(
        readout, batches, loss, config.loop,
        seed=seed, stream="readout", checkpoint=checkpoint, validate=validate, on_progress=on_progress, share=_share,
        is_validated_by_all=reader.llm.is_sharded,
    )  # fmt: skip
    return freeze(readout), report


@torch.no_grad()
def _standardize(readout: ReadOut, states: Callable[[ndarray], Tensor], rows: Int[ndarray, "rows"]) -> None:
    """Centres and scales what f_U reads by the hidden states of some examples, before anything is learned."""
    parts = [states(rows[start : start + READ_TOGETHER]) for start in range(0, len(rows), READ_TOGETHER)]
    readout.users.standardize(torch.cat(parts))


def new_readout(users: Float[Tensor, "rows dim"], reader: Reader, config: ReadOutStageConfig, seed: int = 0) -> ReadOut:
    """The head before it has learned anything; what it reads is centred and scaled by the data.

    Its own F_U and F_I, where it has them, begin as those of stage 2.
    """
    llm, joint_items = reader.llm, reader.joint_items
    own = deepcopy(reader.soft_tokens).requires_grad_(True) if config.soft_tokens == "trained" else None
    read_dim = llm.hidden_dim if config.head.reads == "llm" else users.shape[1]
    sizes = (read_dim, llm.dim, joint_items.shape[1], users.shape[1])
    readout = initialized(lambda: ReadOut(*sizes, config.head, llm.embedding_scale, own), seed, "readout")
    readout.items.standardize(joint_items)
    readout.teacher.standardize(users)
    return readout


def _batches(
    lengths: Int[ndarray, "rows"], config: ReadOutStageConfig, seed: int
) -> Callable[[int], LazyBatches[Batch]]:
    def batches(epoch: int) -> LazyBatches[Batch]:
        rng = seeds.rng(seed, "readout", "epoch", epoch)
        rows = length_batches(lengths + 1, config.batch_tokens, rng)
        draws = rng.integers(1 << 62, size=len(rows))
        return LazyBatches(rows, lambda index, chosen: Batch(chosen, int(draws[index]), len(chosen)))

    return batches


def _share(batch: Batch, here: Place) -> tuple[Batch, float]:
    """A worker's rows of a batch; losses are means over rows, but for those over pairs, see ``whole_batch``."""
    rows, weight = share_rows(len(batch.rows), here)
    return batch._replace(rows=batch.rows[rows]), weight


def _retrieval(dataset: Dataset, joint_items: Float[Tensor, "items joint"], config: ReadOutStageConfig) -> Retrieval:
    """Cross-entropy of the next item over the catalogue, or over a sample of it where the catalogue is large."""
    shares = drawn_shares(dataset.train_counts())

    def whole(readout: ReadOut, vectors: Tensor, targets: ndarray, rng: np.random.Generator) -> Tensor:
        return softmax(vectors, torch.from_numpy(targets), readout.items(joint_items))

    def of_a_sample(readout: ReadOut, vectors: Tensor, targets: ndarray, rng: np.random.Generator) -> Tensor:
        items, log_expected = shared_negatives(shares, config.num_negatives, rng)
        projected, places = np.unique(np.concatenate([targets, items]), return_inverse=True)
        target_places, places = np.split(places, [len(targets)])
        negatives = Negatives(torch.from_numpy(places), log_expected)
        table = readout.items(joint_items[torch.from_numpy(projected)])
        return sampled_softmax(vectors, torch.from_numpy(target_places), table, negatives)

    return of_a_sample if dataset.num_items > config.sampled_softmax_above else whole


def _validation(
    readout: ReadOut, dataset: Dataset, reader: Reader, config: ReadOutStageConfig, seed: int
) -> Callable[[], float] | None:
    targets = validation_targets(dataset, config.validation_users, seeds.rng(seed, "readout", "validation users"))
    if len(targets) == 0:
        return None
    users = represent_users(reader.backbone, dataset, targets.users, targets.positions)
    starts = dataset.offsets[targets.users]
    ends = starts + targets.positions
    histories = [dataset.items[start:end] for start, end in zip(starts, ends, strict=True)]

    def validate() -> float:
        vectors = reader.read(readout, users, histories, config.batch_tokens)
        items = readout.items(reader.joint_items)
        return ndcg_at(dot_product_ranks(vectors, items, dataset, targets, config.validation_protocol), 10)

    return validate
