"""Evidence for candidates: named features of a user and an item, independent of the other candidates."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec.backbones.base import Backbone, encode_histories, together
from allrec.data.dataset import Dataset, Targets
from allrec.hybrid.content import ContentParts
from allrec.hybrid.retrieval import Search, SearchConfig, reciprocal_rank_fusion
from allrec.hybrid.similarity import DenseSpace, Occurrences, Space, WordSpace
from allrec.parallel import ordered_map
from allrec.training.batches import latest_first, pad_histories

RETRIEVING = ("text", "tuned_text")
"""Spaces that retrieve besides the scorers; those of the backbones' items hardly add items that rank first."""

Rows = slice | Int[ndarray, "part"]


class Histories(NamedTuple):
    """One history a row: ``items[start:end]``, oldest first, of any length."""

    items: Int[ndarray, "interactions"]
    starts: Int[ndarray, "rows"]
    ends: Int[ndarray, "rows"]

    @property
    def num_rows(self) -> int:
        """How many histories there are."""
        return len(self.starts)

    def part(self, rows: Rows) -> "Histories":
        """Some of the rows."""
        return Histories(self.items, self.starts[rows], self.ends[rows])

    def latest_first(self, length: int) -> Int[Tensor, "rows length"]:
        """The latest ``length`` items, the very latest first, padded with -1; one column at least."""
        padded = latest_first(pad_histories(self.items, self.starts, self.ends, length))
        return padded if padded.shape[1] else padded.new_full((len(padded), 1), -1)


def histories_of(sequences: Sequence[Int[ndarray, "length"]]) -> Histories:
    """From one array a user, oldest first."""
    ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
    items = np.concatenate([np.zeros(0, np.int64), *sequences]).astype(np.int64)
    return Histories(items, np.concatenate([[0], ends[:-1]]).astype(np.int64), ends)


def histories_before(dataset: Dataset, targets: Targets, rows: Rows = slice(None)) -> Histories:
    """The history before each target."""
    starts = dataset.offsets[targets.users[rows]]
    return Histories(dataset.items, starts, starts + targets.positions[rows])


LATEST = 10
"""Latest items of a history that similarity looks at."""
STEP_BACK = 0.7
"""Weight of an item in a mean over the history, relative to the item after it."""
RECALLED = 50
"""Latest items of a history in which a candidate is looked up."""
ROWS = 1024
"""Rows whose evidence is held at one time where only one column of it is needed."""
CELLS = 1 << 13
"""Candidates whose evidence is computed at one time; with fewer, the overhead of threads outweighs the gain."""

POOLS = ("largest", "latest", "mean")
HISTORY = ("in_history", "times_in_history", "recency_in_history", "log_count", "history_length")
FREE = ("log_count", "history_length", "title_prior", "title_length")
"""Evidence that may raise or lower a score; the score never falls in any other evidence."""
CONTEXT = ("log_count", "history_length", "in_history")
"""Evidence that the gates read: it weighs the other evidence."""


class Scorer(NamedTuple):
    """x · item, of a backbone's users and any table of items: its own embeddings (cf), or joint ones (joint)."""

    backbone: Backbone
    items: Float[Tensor, "items dim"]


class Users(NamedTuple):
    """Users as the scorers represent them.

    Attributes:
        vectors: x_u, one tensor a scorer.
        normalisers: log of the sum of exponentials of a user's scores over the catalogue, one tensor a scorer.
    """

    vectors: list[Float[Tensor, "rows dim"]]
    normalisers: list[Float[Tensor, "rows"]]

    def part(self, rows: Rows) -> "Users":
        """Of some of the rows."""
        return Users([one[rows] for one in self.vectors], [one[rows] for one in self.normalisers])


class Retrieved(NamedTuple):
    """Retrieved candidates.

    Attributes:
        candidates: item positions, each once a row: the latest items first, then by reciprocal rank fusion of the
            lists; -1 at the end of rows that have fewer.
        users: of the rows.
    """

    candidates: Int[ndarray, "rows retrieved"]
    users: Users


class Evidence:
    """The frozen models and spaces of a catalogue, and the evidence that they give.

    Args:
        train_counts: how often every item occurs in training.
        scorers: name -> scorer; its evidence is the log probability of a softmax over the catalogue, in nats.
        num_trained: items of the catalogue that was trained on, all where None; that softmax is over them alone, so
            that added items change no evidence of the others.
        spaces: name -> space; its evidence is the similarity to the latest ten items of the history: the largest, the
            very latest item's, and a mean in which older items weigh less.
        search: of the nearest items; by an index, normalisers of the softmax are estimates.
        retrieving: names of the dense spaces that retrieve besides the scorers, all where None; the others give
            evidence only.

    Raises:
        InputError: the search needs FAISS, which is not installed.
    """

    def __init__(
        self,
        train_counts: Int[ndarray, "items"],
        scorers: Mapping[str, Scorer],
        spaces: Mapping[str, Space],
        num_trained: int | None = None,
        search: SearchConfig | None = None,
        retrieving: Sequence[str] | None = None,
    ) -> None:
        self.train_counts, self.log_counts = train_counts, torch.from_numpy(np.log1p(train_counts)).float()
        self.num_items = len(train_counts)
        self.num_trained = self.num_items if num_trained is None else num_trained
        self.scorers, self.spaces = dict(scorers), dict(spaces)
        tables = {name: scorer.items for name, scorer in self.scorers.items()}
        dense = {name: space for name, space in self.spaces.items() if isinstance(space, DenseSpace)}
        self.retrieving = {name: dense[name] for name in (dense if retrieving is None else retrieving)}
        tables |= {name: space.unit for name, space in self.retrieving.items()}
        self.searches = {name: Search(items, search or SearchConfig()) for name, items in tables.items()}

    @property
    def names(self) -> list[str]:
        """Names of the evidence, in the order of the features."""
        return [*self.scorers, *(f"{space}_{pool}" for space in self.spaces for pool in POOLS), *HISTORY]

    @torch.no_grad()
    def features(
        self, histories: Histories, candidates: Int[ndarray, "rows candidates"], users: "Users | None" = None
    ) -> Float[ndarray, "rows candidates evidence"]:
        """The evidence for every candidate of every row, float32.

        Args:
            histories: one a row, before the target.
            candidates: item positions; -1 pads, and has zeros.
            users: of the same rows, as ``retrieve`` gives them; None computes them.
        """
        features = np.zeros((*candidates.shape, len(self.names)), np.float32)
        known = self.represent(histories) if users is None else users
        # Sorted by length, so that there is hardly any padding.
        order = np.argsort(histories.ends - histories.starts, kind="stable")
        step = max(1, CELLS // max(1, candidates.shape[1]))

        def fill(start: int) -> None:
            rows = order[start : start + step]
            own, chunk = histories.part(rows), torch.from_numpy(candidates[rows].astype(np.int64))
            columns = [*self._score(known.part(rows), chunk), *self._compare(own, chunk), *self._recall(own, chunk)]
            features[rows] = torch.stack(columns, dim=2).numpy()

        for _ in ordered_map(fill, range(0, len(order), step)):
            pass
        features[candidates < 0] = 0
        return features

    def column(
        self, name: str, histories: Histories, candidates: Int[ndarray, "rows candidates"]
    ) -> Float[ndarray, "rows candidates"]:
        """One evidence for every candidate of every row."""
        values = np.zeros(candidates.shape, np.float32)
        for start in range(0, len(candidates), ROWS):
            part = slice(start, start + ROWS)
            values[part] = self.features(histories.part(part), candidates[part])[:, :, self.names.index(name)]
        return values

    @torch.no_grad()
    def represent(self, histories: Histories) -> "Users":
        """Users as the scorers represent them; each scorer passes over the catalogue once."""
        return self._nearest(histories, 0, None)[1]

    @torch.no_grad()
    def retrieve(
        self,
        histories: Histories,
        depth: int,
        num_queries: int | None = None,
        allowed: Bool[ndarray, "rows items"] | None = None,
    ) -> "Retrieved":
        """The union of the items nearest by each scorer and retrieving space, and of the latest items themselves.

        Args:
            histories: one a row.
            depth: items that each of them retrieves.
            num_queries: rows of the whole task, of which these are a part; None is these alone.
            allowed: the items that may be retrieved for each row, all where None.
        """
        depth = min(depth, self.num_items)
        lists, users = self._nearest(histories, depth, num_queries, allowed)
        latest = histories.latest_first(LATEST)
        for name, space in self.retrieving.items():
            queries = mean_embeddings(latest, space)
            lists.append(self.searches[name].nearest(queries, depth, 0, num_queries, allowed)[0])
        return Retrieved(reciprocal_rank_fusion(lists, only_allowed(latest.numpy(), allowed)), users)

    def _nearest(
        self,
        histories: Histories,
        depth: int,
        num_queries: int | None,
        allowed: Bool[ndarray, "rows items"] | None = None,
    ) -> tuple[list[Int[ndarray, "rows depth"]], "Users"]:
        encoded: dict[int, Tensor] = {}
        nearest = []
        for name, scorer in self.scorers.items():
            if id(scorer.backbone) not in encoded:
                encoded[id(scorer.backbone)] = encode_histories(
                    scorer.backbone, histories.items, histories.starts, histories.ends
                )
            users = encoded[id(scorer.backbone)]
            nearest.append(self.searches[name].nearest(users, depth, self.num_trained, num_queries, allowed))
        vectors = [encoded[id(scorer.backbone)] for scorer in self.scorers.values()]
        return [items for items, _ in nearest], Users(vectors, [normaliser for _, normaliser in nearest])

    def _score(self, users: "Users", candidates: Tensor) -> Iterator[Float[Tensor, "rows candidates"]]:
        wanted = candidates.clamp(min=0)
        for scorer, vectors, normalisers in zip(self.scorers.values(), *users, strict=True):
            yield (functional.embedding(wanted, scorer.items) @ vectors[:, :, None])[:, :, 0] - normalisers[:, None]

    def _compare(self, histories: Histories, candidates: Tensor) -> Iterator[Float[Tensor, "rows candidates"]]:
        latest = histories.latest_first(LATEST)
        is_item = (latest >= 0)[:, :, None]
        weights = step_weights(latest)[:, None]
        for space in self.spaces.values():
            similarity = space.similarity(latest, candidates)
            yield similarity.masked_fill(~is_item, -1).amax(dim=1) * is_item[:, 0]
            yield similarity[:, 0] * is_item[:, 0]
            yield (weights @ similarity)[:, 0]

    def _recall(self, histories: Histories, candidates: Tensor) -> Iterator[Float[Tensor, "rows candidates"]]:
        recalled = histories.latest_first(RECALLED)
        is_same = (recalled[:, :, None] == candidates[:, None]) & (recalled >= 0)[:, :, None]
        steps = torch.arange(recalled.shape[1])[:, None]
        lengths = torch.from_numpy(np.log1p(histories.ends - histories.starts)).float()
        yield is_same.any(dim=1).float()
        yield is_same.sum(dim=1).float().log1p()
        yield (is_same / (1.0 + steps)).amax(dim=1)
        yield self.log_counts[candidates.clamp(min=0)]
        yield lengths[:, None].expand(-1, candidates.shape[1])


def only_allowed(
    items: Int[ndarray, "rows places"], allowed: Bool[ndarray, "rows items"] | None
) -> Int[ndarray, "rows places"]:
    """The same items, -1 in place of those that are not allowed; all where ``allowed`` is None."""
    if allowed is None:
        return items
    return np.where((items >= 0) & np.take_along_axis(allowed, items.clip(min=0), axis=1), items, -1)


def largest_similarity(histories: Histories, space: DenseSpace) -> Float[Tensor, "rows items"]:
    """The largest cosine of every item of the catalogue with the latest items of each history; -1 without any."""
    latest = histories.latest_first(LATEST)
    largest = torch.full((len(latest), len(space.unit)), -1.0)
    for step in range(latest.shape[1]):
        cosines = space.unit[latest[:, step].clamp(min=0)] @ space.unit.T
        largest = torch.maximum(largest, cosines.masked_fill(latest[:, step, None] < 0, -1))
    return largest


def step_weights(latest: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length"]:
    """Weights of a mean over the history, the latest item first; each row sums to 1, an empty one to 0."""
    weights = (latest >= 0) * STEP_BACK ** torch.arange(latest.shape[1])
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


def mean_embeddings(latest: Int[Tensor, "rows length"], space: DenseSpace) -> Float[Tensor, "rows dim"]:
    """The weighted mean of the latest items' embeddings, the very latest first."""
    embeddings = functional.embedding(latest.clamp(min=0), space.unit)
    return (step_weights(latest)[:, None] @ embeddings)[:, 0]


class Learned(NamedTuple):
    """The frozen models of one training that give evidence.

    Attributes:
        backbone: the collaborative one.
        content: of ``train_content_parts``.
        joint_embeddings: scored by x_u; None leaves that evidence out.
    """

    backbone: Backbone
    content: ContentParts
    joint_embeddings: Float[Tensor, "items dim"] | None = None


def collect(
    train: Occurrences,
    ensemble: Sequence[Learned],
    search: SearchConfig | None = None,
    texts: Mapping[str, Float[Tensor, "items text_dim"]] | None = None,
) -> Evidence:
    """All evidence but the language model's.

    Scores and similarities of trained embeddings are means over the ensemble. What is not trained (texts, words,
    neighbours, counts) is that of the first.

    Args:
        train: counts of the training histories.
        ensemble: of the same data, one a seed; one at least.
        search: of the nearest items.
        texts: name -> embeddings of the items' texts by an encoder, each gives a similarity; "text" is among them. None
            is those that the content parts read.
    """
    content, parts = ensemble[0].content, [learned.content for learned in ensemble]
    catalogue = content.catalogue
    backbone = together([learned.backbone for learned in ensemble])
    model = together([part.model for part in parts])
    scorers = {"cf": Scorer(backbone, backbone.item_embeddings().detach())}
    scorers["content"] = Scorer(model, model.item_embeddings().detach())
    joint = [learned.joint_embeddings for learned in ensemble if learned.joint_embeddings is not None]
    if joint:
        scorers["joint"] = Scorer(backbone, torch.cat(joint, dim=1))
    texts = {"text": catalogue.texts} if texts is None else texts
    spaces: dict[str, Space] = {
        **{name: DenseSpace.of(embeddings) for name, embeddings in texts.items()},
        "tuned_text": DenseSpace.of(*(part.tuned() for part in parts)),
        "cf_items": DenseSpace.of(*(learned.backbone.item_embeddings() for learned in ensemble)),
        "content_items": DenseSpace.of(*(part.model.item_table for part in parts)),
        "words": WordSpace.of(catalogue.words, len(catalogue.vocabulary)),
        "neighbours": train.neighbours,
    }
    return Evidence(train.counts, scorers, spaces, train.num_trained, search, RETRIEVING)


def families(contributions: dict[str, float]) -> dict[str, float]:
    """Contributions summed by family of evidence, for short tables."""
    sums: dict[str, float] = {}
    for name, value in contributions.items():
        family = next((family for start, family in FAMILIES.items() if name.startswith(start)), name)
        sums[family] = sums.get(family, 0.0) + value
    return sums


FAMILIES = {
    "cf": "cf", "joint": "joint", "content": "content", "text": "text", "tuned_text": "text", "second_text": "text",
    "words": "words", "neighbours": "neighbours", "in_history": "history", "times_in": "history", "recency": "history",
    "log_count": "popularity", "history_length": "history", "llm": "llm",
}  # fmt: skip
"""The family of evidence by the beginning of its name."""
