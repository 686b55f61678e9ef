"""Items by their content: text embeddings and title words, projected into a space that is tuned on what is bought."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.base import Config
from allrec.models.dropout import Dropout, dropout

WORD = re.compile(r"[^\W_]+")


class ContentConfig(Config):
    """Shape of what reads an item's content."""

    dim: int = Field(128, ge=1, description="Width of a content embedding.")
    text_dropout: float = Field(0.2, ge=0, lt=1, description="Share of the text embedding dropped while training.")
    id_dropout: float = Field(
        0.5, ge=0, lt=1, description="How often an item goes by its content alone in a training step of the backbone."
    )


class Words(NamedTuple):
    """Words of items, weighed, one item after the other.

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
    """A backbone's item table while it trains: content plus an embedding of the item itself where it was ever seen.

    The latter is left out of random items in every step, so that content alone learns to stand for them.

    Source: the dropout of ids is DropoutNet's (Volkovs et al., NeurIPS 2017), on the input of SASRec.
    """

    def __init__(
        self, content: ItemContent, texts: Tensor, words: Words, is_seen: Float[Tensor, "items"], id_dropout: float
    ) -> None:
        super().__init__()
        self.content, self.texts, self.words, self.is_seen = content, texts, words, is_seen
        self.id_dropout = id_dropout

    def forward(self, item_table: Float[Tensor, "items dim"]) -> Float[Tensor, "items dim"]:
        """The table that scores, from the items' own embeddings."""
        is_kept = dropout(self.is_seen, self.id_dropout) if self.training else self.is_seen
        return self.content.embed(self.texts, self.words) + item_table * is_kept[:, None]


class ContentTower(nn.Module):
    """Content embeddings on the unit sphere, in which an item lies near what is bought along with it.

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
