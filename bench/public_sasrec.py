"""SASRec as the public PyTorch code trains it (SASRec.pytorch), written anew and plainly.

Histories padded on the left to a fixed length, the padding attended to; a sampler in Python that draws one negative a
place; binary cross-entropy at the places that are real; Adam over every weight; Conv1d of width 1 as feed-forward
layers; torch's own multi-head attention with a boolean mask. Hyper-parameters are its defaults but the length, which
A-LLMRec sets to 50.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

DIM, BLOCKS, HEADS, DROPOUT, LENGTH, BATCH = 50, 2, 1, 0.2, 50, 128


class FeedForward(nn.Module):
    """Two convolutions of width 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(DIM, DIM, 1), nn.Conv1d(DIM, DIM, 1)
        self.first_dropout, self.second_dropout = nn.Dropout(DROPOUT), nn.Dropout(DROPOUT)

    def forward(self, states: Tensor) -> Tensor:
        """Of the shape of what comes in."""
        inner = torch.relu(self.first_dropout(self.first(states.transpose(1, 2))))
        return self.second_dropout(self.second(inner)).transpose(1, 2)


class PublicSASRec(nn.Module):
    """Items are numbered from 1; 0 pads."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, DIM, padding_idx=0)
        self.places = nn.Embedding(LENGTH + 1, DIM, padding_idx=0)
        self.dropout = nn.Dropout(DROPOUT)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-8) for _ in range(BLOCKS))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(DIM, HEADS, DROPOUT) for _ in range(BLOCKS))
        self.forward_norms = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-8) for _ in range(BLOCKS))
        self.forwards = nn.ModuleList(FeedForward() for _ in range(BLOCKS))
        self.last_norm = nn.LayerNorm(DIM, eps=1e-8)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight.data)
        self.items.weight.data[0] = 0
        self.places.weight.data[0] = 0

    def states(self, histories: np.ndarray) -> Tensor:
        """A state a place, its attention's norm after the residual as in the public code today."""
        states = self.items(torch.LongTensor(histories)) * DIM**0.5
        places = np.tile(np.arange(1, histories.shape[1] + 1), [len(histories), 1]) * (histories != 0)
        states = self.dropout(states + self.places(torch.LongTensor(places)))
        length = states.shape[1]
        is_hidden = ~torch.tril(torch.ones(length, length, dtype=torch.bool))
        for norm, attention, forward_norm, forward in zip(
            self.attention_norms, self.attentions, self.forward_norms, self.forwards, strict=True
        ):
            turned = states.transpose(0, 1)
            seen, _ = attention(turned, turned, turned, attn_mask=is_hidden)
            states = norm(turned + seen).transpose(0, 1)
            states = forward_norm(states + forward(states))
        return self.last_norm(states)

    def loss(self, histories: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> Tensor:
        """Binary cross-entropy of the next items and of one negative each, where there is a next item."""
        states, is_real = self.states(histories), np.where(positives != 0)
        positive = (states * self.items(torch.LongTensor(positives))).sum(-1)[is_real]
        negative = (states * self.items(torch.LongTensor(negatives))).sum(-1)[is_real]
        cross_entropy = nn.BCEWithLogitsLoss()
        yes, no = (
            cross_entropy(positive, torch.ones_like(positive)),
            cross_entropy(negative, torch.zeros_like(negative)),
        )
        return yes + no

    @torch.no_grad()
    def scores(self, history: np.ndarray, candidates: np.ndarray) -> Tensor:
        """Logits of candidates, 0-based items, for one user, as the public code evaluates."""
        padded = np.zeros((1, LENGTH), np.int32)
        latest = history[-LENGTH:] + 1
        padded[0, LENGTH - len(latest) :] = latest
        return self.items(torch.LongTensor(candidates + 1)) @ self.states(padded)[0, -1]


def sample_batches(
    histories: list[np.ndarray], num_items: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches for ever, users shuffled anew each time round, a place after the other in Python."""
    users = [user for user, history in enumerate(histories) if len(history) > 1]
    while True:
        rng.shuffle(users)
        for start in range(0, len(users), BATCH):
            rows = [_sample(histories[user], num_items, rng) for user in users[start : start + BATCH]]
            yield tuple(np.array(part) for part in zip(*rows, strict=True))  # type: ignore[misc]


def _sample(history: np.ndarray, num_items: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    sequence, positive, negative = (np.zeros(LENGTH, np.int32) for _ in range(3))
    touched, following, place = set(history), history[-1], LENGTH - 1
    for item in reversed(history[:-1]):
        sequence[place], positive[place] = item + 1, following + 1
        drawn = rng.integers(num_items)
        while drawn in touched:
            drawn = rng.integers(num_items)
        negative[place] = drawn + 1
        following, place = item, place - 1
        if place < 0:
            break
    return sequence, positive, negative
