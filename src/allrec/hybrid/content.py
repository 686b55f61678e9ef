"""Item content: a tower for similarity, and a second SASRec whose item embeddings are content plus a residual."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from allrec import seeds
from allrec.backbones.base import Module, freeze
from allrec.backbones.registry import BackboneConfig
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.backbones.training import Batch, TrainingBatches, validation
from allrec.data.dataset import Dataset
from allrec.errors import Config, InputError
from allrec.files import load_tensors, read_json, save_tensors, write_json
from allrec.hybrid.retrieval import SearchConfig
from allrec.parallel import OnProgress
from allrec.training.batches import LazyBatches, latest_first, pad_histories
from allrec.training.layers import Dropout, dropout
from allrec.training.loop import FitReport, LoopConfig, fit

TABLE = "model.item_table"
CHECKPOINTS = ("tower-checkpoint.safetensors", "checkpoint.safetensors")
"""Of the tower and of the content backbone."""
WORD = re.compile(r"[^\W_]+")
BACKBONE_STREAM = "content backbone"
TOWER_STREAM = "content tower"
NEVER = -1e9
"""Added to a logit that must not count; finite, so that no gradient becomes nan."""


class ContentConfig(Config):
    """Shape of the content encoder."""

    dim: int = Field(128, ge=1, description="Width of a content embedding.")
    text_dropout: float = Field(0.2, ge=0, lt=1, description="Share of the text embedding dropped while training.")
    id_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of items that a training step represents by their content alone.",
    )


class TowerConfig(Config):
    """The content tower and how it is trained."""

    content: ContentConfig = Field(ContentConfig(), description="The content encoder.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of a content embedding dropped while training.")
    max_history: int = Field(10, ge=1, description="Latest items of a history that count.")
    batch_size: int = Field(512, ge=1, description="Histories of a batch.")
    loop: LoopConfig = Field(
        LoopConfig(epochs=5, optimizer="adamw", learning_rate=2e-3), description="Optimizer and epochs."
    )


class ContentBackboneConfig(Config):
    """A SASRec whose item embeddings are content plus a residual, trained by a softmax over the seen items."""

    content: ContentConfig = Field(ContentConfig(), description="The content encoder.")
    backbone: BackboneConfig = Field(
        BackboneConfig(
            model=SASRecConfig(dim=128),
            loss="softmax",
            tokens_per_batch=1024,
            loop=LoopConfig(epochs=30, learning_rate=2e-3, betas=(0.9, 0.98), patience_steps=100, least_steps=300),
        ),
        description="Shape and training of the SASRec.",
    )

    @property
    def shape(self) -> SASRecConfig:
        """The shape of the SASRec.

        Raises:
            InputError: the backbone is another one.
        """
        shape = self.backbone.model
        if not isinstance(shape, SASRecConfig):
            kind = type(shape).__name__
            raise InputError(f"content.backbone.model is {kind}, expected SASRecConfig: leave kind out.")
        return shape


class EvidenceConfig(Config):
    """The content parts and the retrieval that evidence comes from."""

    tower: TowerConfig = Field(TowerConfig(), description="Content embeddings tuned on what is bought together.")
    content: ContentBackboneConfig = Field(ContentBackboneConfig(), description="The second backbone, on item content.")
    ensemble: int = Field(
        1,
        ge=1,
        description="Trainings whose evidence is averaged: the run's own, and the rest with other seeds.",
    )
    search: SearchConfig = Field(SearchConfig(), description="Search of the nearest items.")
    depth: int = Field(100, ge=1, description="Items that each scorer and each retrieving space retrieves.")
    fitted_candidates: int = Field(40, ge=2, description="Retrieved candidates of a row that fusion is fitted on.")


class Words(NamedTuple):
    """Weighted words of items, concatenated.

    Attributes:
        ids: positions in the vocabulary.
        weights: a row's weights have norm 1.
        offsets: where every item's words begin.
    """

    ids: Int[Tensor, "words"]
    weights: Float[Tensor, "words"]
    offsets: Int[Tensor, "items"]


class Vocabulary:
    """The words of a catalogue's titles that two items share at least, and how rare they are; frozen once made.

    A word's weight is log((1 + items) / (1 + items with it)) + 1.

    Source: Salton and Buckley 1988; smoothed as in scikit-learn's TfidfTransformer, terms counted once.
    """

    def __init__(self, words: Sequence[str], rarity: Float[Tensor, "vocabulary"]) -> None:
        self.words, self.rarity = list(words), rarity
        self._places = {word: place for place, word in enumerate(self.words)}

    @classmethod
    def of(cls, titles: Sequence[str | None]) -> "Vocabulary":
        """Reads the titles of the training catalogue."""
        counts = Counter(word for title in titles for word in words_of(title))
        words = sorted(word for word, count in counts.items() if count > 1)
        rarity = [math.log((1 + len(titles)) / (1 + counts[word])) + 1 for word in words]
        return cls(words, torch.tensor(rarity, dtype=torch.float32))

    def __len__(self) -> int:
        return len(self.words)

    def weigh(self, titles: Sequence[str | None]) -> Words:
        """The known words of titles; a title without any has none."""
        places = [[self._places[word] for word in words_of(title) if word in self._places] for title in titles]
        lengths = torch.tensor([len(row) for row in places])
        ids = torch.tensor([place for row in places for place in row], dtype=torch.int64)
        rows = torch.repeat_interleave(torch.arange(len(places)), lengths)
        squares = torch.zeros(len(places)).index_add_(0, rows, self.rarity[ids].square())
        return Words(ids, self.rarity[ids] / squares[rows].sqrt(), lengths.cumsum(0) - lengths)


def words_of(title: str | None) -> list[str]:
    """The distinct words of a title in lower case, sorted."""
    return sorted(set(WORD.findall((title or "").lower())))


class ItemContent(nn.Module):
    """Content embeddings: a projection of the text embedding plus an embedding of every title word.

    Args:
        text_dim: width of text embeddings.
        vocabulary_size: how many words there are.
        config: widths and dropout.
        generator: draws all weights.
    """

    def __init__(self, text_dim: int, vocabulary_size: int, config: ContentConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.dropout = Dropout(config.text_dropout)
        scale = 1 / math.sqrt(text_dim)
        self.projection = nn.Parameter(torch.randn(text_dim, config.dim, generator=generator) * scale)
        self.words = nn.Parameter(torch.randn(vocabulary_size, config.dim, generator=generator) * scale)

    def embed(self, texts: Float[Tensor, "items text_dim"], words: Words) -> Float[Tensor, "items dim"]:
        """Content embeddings, not normalised."""
        text = self.dropout(functional.normalize(texts, dim=1)) @ self.projection
        if len(words.ids) == 0:
            return text
        bags = functional.embedding_bag(
            words.ids, self.words, words.offsets, mode="sum", per_sample_weights=words.weights
        )
        return text + bags


class ContentTable(nn.Module):
    """A backbone's item table while it trains: content plus an embedding of the item itself where it was seen.

    The latter is dropped for random items in every step, so that content alone learns to represent them.

    Source: the dropout of ids is DropoutNet's (Volkovs et al., NeurIPS 2017), on the input of SASRec.
    """

    def __init__(
        self, content: ItemContent, texts: Tensor, words: Words, is_seen: Float[Tensor, "items"], id_dropout: float
    ) -> None:
        super().__init__()
        self.content, self.texts, self.words, self.is_seen = content, texts, words, is_seen
        self.id_dropout = id_dropout

    def forward(self, item_table: Float[Tensor, "items dim"]) -> Float[Tensor, "items dim"]:
        """The whole table, from the items' own embeddings."""
        is_kept = dropout(self.is_seen, self.id_dropout) if self.training else self.is_seen
        return self.content.embed(self.texts, self.words) + item_table * is_kept[:, None]


class ContentTower(nn.Module):
    """Content embeddings on the unit sphere, in which an item is near those that are bought with it.

    A history is the mean of its items, the latest weighing most: exp(-decay · steps back).
    """

    def __init__(self, content: ItemContent, dropout: float) -> None:
        super().__init__()
        self.content, self.dropout = content, Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.raw_decay = nn.Parameter(torch.tensor(0.0))

    def items(self, texts: Float[Tensor, "items text_dim"], words: Words) -> Float[Tensor, "items dim"]:
        """Unit vectors of items."""
        return functional.normalize(self.dropout(self.content.embed(texts, words)), dim=1)

    def users(
        self, items: Float[Tensor, "items dim"], histories: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch dim"]:
        """Histories, the latest item first, -1 pads; scaled, so that a dot product with an item is a logit."""
        steps = torch.arange(histories.shape[1], device=histories.device)
        weights = (histories >= 0) * torch.exp(-functional.softplus(self.raw_decay) * steps)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return self.log_scale.exp() * torch.einsum("bl,bld->bd", weights, items[histories.clamp(min=0)])


class CatalogueContent(NamedTuple):
    """The content of the items, frozen with a run.

    Attributes:
        texts: text embeddings.
        vocabulary: of the titles.
        words: the titles' words.
    """

    texts: Float[Tensor, "items text_dim"]
    vocabulary: Vocabulary
    words: Words


class ContentBackbone(NamedTuple):
    """A frozen SASRec with a plain item table, and the content encoder that gives a new item its row in it."""

    model: SASRec
    content: ItemContent
    report: FitReport


def catalogue_content(dataset: Dataset, text_embeddings: Float[Tensor, "items text_dim"]) -> CatalogueContent:
    """Text embeddings and title words of a data set's items."""
    vocabulary = Vocabulary.of(dataset.titles)
    return CatalogueContent(text_embeddings, vocabulary, vocabulary.weigh(dataset.titles))


def train_content_backbone(
    dataset: Dataset,
    catalogue: CatalogueContent,
    config: ContentBackboneConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
) -> ContentBackbone:
    """Trains a SASRec on item content; items never seen in training are no negatives.

    Args:
        dataset: training interactions and validation targets are read.
        catalogue: texts and words of its items.
        config: shape, loss and optimizer; ``backbone.loss`` is ignored.
        seed: fixes weights, batches and dropout.
        checkpoint: see ``fit``.
        on_progress: see ``fit``.

    Raises:
        InputError: the backbone is no SASRec.
    """
    shape = config.shape
    generator = seeds.torch_generator(seed, BACKBONE_STREAM, "weights")
    content_config = config.content.changed(dim=shape.dim)
    content = ItemContent(catalogue.texts.shape[1], len(catalogue.vocabulary), content_config, generator)
    model = SASRec(dataset.num_items, shape, generator)
    is_seen = torch.from_numpy((dataset.train_counts() > 0).astype(np.float32))
    table = ContentTable(content, catalogue.texts, catalogue.words, is_seen, config.content.id_dropout)
    parametrize.register_parametrization(model, "item_table", table)
    only_seen = (1 - is_seen) * NEVER

    def loss(batch: Batch) -> Tensor:
        is_target = batch.next_items >= 0
        with parametrize.cached():
            logits = model.states(batch.histories)[is_target] @ model.item_embeddings().T
        return functional.cross_entropy(logits + only_seen, batch.next_items[is_target])

    source = TrainingBatches(dataset, config.backbone.changed(loss="softmax"), seed, "cpu")
    validate = validation(model, dataset, config.backbone, seed)
    report = fit(
        model, source, loss, config.backbone.loop,
        seed=seed, stream=BACKBONE_STREAM, checkpoint=checkpoint, validate=validate, on_progress=on_progress,
    )  # fmt: skip
    with torch.no_grad():
        parametrize.remove_parametrizations(model, "item_table", leave_parametrized=True)
    return ContentBackbone(freeze(model), freeze(content), report)


def train_tower(
    dataset: Dataset,
    catalogue: CatalogueContent,
    config: TowerConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress | None = None,
) -> ContentTower:
    """Trains the tower to predict next items by their content, with a softmax over all items seen in training.

    The logarithm of an item's count is added to its logit, so that content need not encode popularity. Items of the
    history are no negatives, and repeats are no targets. ``checkpoint`` and ``on_progress``:
    see ``fit``.

    Raises:
        InputError: no user has two different training items.

    Source: sampled-softmax correction as in Yi et al., RecSys 2019, here over the whole catalogue.
    """
    content = ItemContent(
        catalogue.texts.shape[1],
        len(catalogue.vocabulary),
        config.content,
        seeds.torch_generator(seed, TOWER_STREAM, "weights"),
    )
    tower = ContentTower(content, config.dropout)
    batches = NextItems(dataset, config, seed)
    counts = torch.from_numpy(dataset.train_counts()).float()
    log_counts = torch.where(counts > 0, counts.clamp(min=1).log(), torch.tensor(NEVER))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        histories, targets = batch
        items = tower.items(catalogue.texts, catalogue.words)
        logits = tower.users(items, histories) @ items.T + log_counts
        own = torch.zeros_like(logits).scatter_add_(1, histories.clamp(min=0), (histories >= 0) * NEVER)
        return functional.cross_entropy(logits + own, targets)

    fit(
        tower, batches, loss, config.loop,
        seed=seed, stream=TOWER_STREAM, checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip
    return freeze(tower)


class NextItems:
    """Training histories, the latest item first, with the next item where that is new to the user."""

    def __init__(self, dataset: Dataset, config: TowerConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        offsets, self.items = dataset.train_csr()
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        ends = np.flatnonzero(np.arange(len(users)) > offsets[users])
        starts = offsets[users[ends]]
        histories = latest_first(pad_histories(self.items, starts, ends, config.max_history))
        is_new = (histories.numpy() != self.items[ends][:, None]).all(axis=1)
        self.histories, self.targets = histories[torch.from_numpy(is_new)], self.items[ends[is_new]].astype(np.int64)
        if len(self.targets) == 0:
            raise InputError("no user has two different training items, expected some. Give longer histories.")

    def __call__(self, epoch: int) -> LazyBatches[tuple[Tensor, Tensor]]:
        order = seeds.rng(self.seed, TOWER_STREAM, "order", epoch).permutation(len(self.targets))
        size = self.config.batch_size
        rows = [order[start : start + size] for start in range(0, len(order), size)]
        return LazyBatches(rows, self._build)

    def _build(self, index: int, rows: Int[np.ndarray, "batch"]) -> tuple[Tensor, Tensor]:
        return self.histories[torch.from_numpy(rows)], torch.from_numpy(self.targets[rows])


class TrainingHistories(NamedTuple):
    """The training histories, frozen with a run: added items change nothing of it.

    Attributes:
        offsets: where every user's training items begin.
        items: training items, oldest first within a user.
        num_items: size of the catalogue that was trained on.
    """

    offsets: Int[ndarray, "users+1"]
    items: Int[ndarray, "interactions"]
    num_items: int

    @classmethod
    def of(cls, dataset: Dataset) -> "TrainingHistories":
        """Of a data set."""
        return cls(*dataset.train_csr(), dataset.num_items)


class ContentParts(NamedTuple):
    """The models of item content, frozen.

    Attributes:
        catalogue: texts and words of the items.
        tower: content embeddings tuned on what is bought together.
        model: the second backbone, with a plain item table.
        content: gives a new item its row in that table.
        report: of the second backbone's training; None where the parts were read from a folder.
    """

    catalogue: CatalogueContent
    tower: ContentTower
    model: SASRec
    content: ItemContent
    report: FitReport | None = None

    @torch.no_grad()
    def tuned(self) -> Float[Tensor, "items dim"]:
        """The tower's unit vectors of all items."""
        return self.tower.items(self.catalogue.texts, self.catalogue.words)


def train_content_parts(
    dataset: Dataset,
    text_embeddings: Float[Tensor, "items text_dim"],
    config: EvidenceConfig,
    *,
    seed: int,
    checkpoints: Path | None = None,
    prefix: str = "",
    on_progress: OnProgress | None = None,
) -> ContentParts:
    """Trains the tower and the content backbone; test targets are not read.

    Args:
        dataset: its training interactions and validation targets are read.
        text_embeddings: of every item.
        config: of both.
        seed: of both.
        checkpoints: folder of their checkpoints; None keeps none.
        prefix: of the checkpoints' names.
        on_progress: called for both, one after the other.
    """
    files = [None if checkpoints is None else checkpoints / f"{prefix}{name}" for name in CHECKPOINTS]
    observers = [None if on_progress is None else _half(on_progress, half) for half in range(2)]
    catalogue = catalogue_content(dataset, text_embeddings)
    tower = train_tower(dataset, catalogue, config.tower, seed=seed, checkpoint=files[0], on_progress=observers[0])
    backbone = train_content_backbone(
        dataset, catalogue, config.content, seed=seed, checkpoint=files[1], on_progress=observers[1]
    )
    return ContentParts(catalogue, tower, *backbone)


def _half(on_progress: OnProgress, half: int) -> OnProgress:
    return lambda share, values: on_progress((half + share) / 2, values)


def save_content_parts(folder: Path, parts: ContentParts, name: str = "content") -> None:
    """Writes ``NAME.safetensors`` and ``NAME.json``, without the texts."""
    modules = {"tower": parts.tower, "content": parts.content, "model": parts.model}
    tensors = {
        f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()
    }
    write_json(folder / f"{name}.json", {"words": parts.catalogue.vocabulary.words})
    save_tensors(folder / f"{name}.safetensors", {**tensors, "rarity": parts.catalogue.vocabulary.rarity})


def save_training_histories(folder: Path, train: TrainingHistories) -> None:
    """Writes ``histories.safetensors``."""
    arrays = {"offsets": train.offsets, "items": train.items, "num_items": np.array([train.num_items])}
    save_tensors(folder / "histories.safetensors", {name: torch.from_numpy(array) for name, array in arrays.items()})


def load_training_histories(folder: Path) -> TrainingHistories:
    """Reads what ``save_training_histories`` wrote."""
    tensors = load_tensors(folder / "histories.safetensors")
    return TrainingHistories(tensors["offsets"].numpy(), tensors["items"].numpy(), int(tensors["num_items"]))


def load_content_parts(
    folder: Path,
    titles: Sequence[str | None],
    text_embeddings: Float[Tensor, "items text_dim"],
    config: EvidenceConfig,
    name: str = "content",
    catalogue: CatalogueContent | None = None,
) -> ContentParts:
    """Reads what ``save_content_parts`` wrote; added items get their rows from their content.

    Args:
        folder: the folder.
        titles: of the catalogue, new items last.
        text_embeddings: of the same items.
        config: what the parts were trained with.
        name: of the files.
        catalogue: of the same items, so that it is not built again; None builds it.

    Raises:
        InputError: a file is missing or damaged, or the catalogue has fewer items.
    """
    tensors = load_tensors(folder / f"{name}.safetensors")
    num_trained = len(tensors[TABLE])
    if len(titles) < num_trained:
        raise InputError(
            f"{folder} holds content of {num_trained} items, got {len(titles)}. Give the catalogue it was trained on."
        )
    if catalogue is None:
        vocabulary = Vocabulary(read_json(folder / f"{name}.json")["words"], tensors["rarity"])
        catalogue = CatalogueContent(text_embeddings, vocabulary, vocabulary.weigh(titles))
    shape = config.content.shape
    generator, sizes = torch.Generator(), (text_embeddings.shape[1], len(catalogue.vocabulary))
    content_config = config.content.content.changed(dim=shape.dim)
    content = _filled(ItemContent(*sizes, content_config, generator), tensors, "content")
    tower = ContentTower(ItemContent(*sizes, config.tower.content, generator), config.tower.dropout)
    with torch.no_grad():
        new_rows = content.embed(catalogue.texts, catalogue.words)[num_trained:]
    tensors[TABLE] = torch.cat([tensors[TABLE], new_rows])
    model = _filled(SASRec(len(titles), shape, generator), tensors, "model")
    return ContentParts(catalogue, _filled(tower, tensors, "tower"), model, content)


def _filled(module: Module, tensors: dict[str, Tensor], prefix: str) -> Module:
    start = f"{prefix}."
    module.load_state_dict(
        {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    )
    return freeze(module)
