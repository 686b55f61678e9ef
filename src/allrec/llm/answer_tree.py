"""A user's answers as one tree behind their prompt, so that what answers have in common is read once."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from allrec.llm.prompt import Packed


@dataclass(frozen=True)
class AnswerTrees:
    """The trees of a batch of users, a row a user: the last token of the prompt is the root, in column 0.

    A node is a beginning that answers of one user share. An answer's last token predicts nothing and has no node.

    Attributes:
        tokens: what is read at each node; 0 at the root, which stands in the prompt.
        depths: the root's is 0; 0 as well where a row is padded.
        ancestors: a node's column among those of its user, from the root down to itself, one a depth; -1 below it, and
            everywhere where a row is padded.
        sources: for each token of the answers the node that predicts it, counted through the padded rows.
    """

    tokens: Int[ndarray, "users width"]
    depths: Int[ndarray, "users width"]
    ancestors: Int[ndarray, "users width levels"]
    sources: Int[ndarray, "answer_tokens"]


@dataclass(frozen=True)
class _Level:
    """Nodes of one depth over all users: whose they are, what they read, under which node they hang."""

    users: Int[ndarray, "nodes"]
    tokens: Int[ndarray, "nodes"]
    parents: Int[ndarray, "nodes"]


def answer_trees(answers: Packed, num_answers: Int[ndarray, "users"]) -> AnswerTrees:
    """Grows the trees level by level.

    Args:
        answers: users one after the other.
        num_answers: how many of them each user has.
    """
    levels, sources = _levels(answers, num_answers)
    users, tokens = (np.concatenate([getattr(level, name) for level in levels]) for name in ("users", "tokens"))
    depths = np.repeat(np.arange(len(levels)), [len(level.users) for level in levels])
    widths = np.bincount(users, minlength=len(num_answers))
    order = np.argsort(users, kind="stable")
    columns = np.empty(len(users), np.int64)
    columns[order] = np.arange(len(users)) - np.repeat(np.cumsum(widths) - widths, widths)
    width = int(widths.max(initial=0))
    lines = np.full((len(num_answers), width, len(levels)), -1)
    lines[users, columns] = _lines(levels, columns)
    placed = np.zeros((2, len(num_answers), width), np.int64)
    placed[:, users, columns] = tokens, depths
    return AnswerTrees(placed[0], placed[1], lines, users[sources] * width + columns[sources])


def tree_mask(trees: AnswerTrees, device: torch.device) -> Bool[Tensor, "users width width"]:
    """Whether a node sees another: its ancestors and itself."""
    depths, ancestors = (torch.from_numpy(part).to(device) for part in (trees.depths, trees.ancestors))
    users, width = depths.shape
    at_depth = ancestors.gather(2, depths[:, None].expand(users, width, width))
    return at_depth == torch.arange(width, device=device)


def _levels(answers: Packed, num_answers: Int[ndarray, "users"]) -> tuple[list[_Level], Int[ndarray, "answer_tokens"]]:
    """All levels from the roots on, and the node before each token; nodes are counted through the levels."""
    roots = np.arange(len(num_answers))
    levels = [_Level(roots, np.zeros_like(roots), np.full_like(roots, -1))]
    users = np.repeat(roots, num_answers)
    nodes, num_nodes = users.copy(), len(roots)
    sources = np.empty(len(answers.values), np.int64)
    vocabulary = int(answers.values.max(initial=0)) + 1
    for place in range(int(answers.lengths.max(initial=0))):
        reached = np.flatnonzero(answers.lengths > place)
        sources[answers.offsets[reached] + place] = nodes[reached]
        read = np.flatnonzero(answers.lengths > place + 1)
        tokens = answers.values[answers.offsets[read] + place]
        keys, first, same = np.unique(nodes[read] * vocabulary + tokens, return_index=True, return_inverse=True)
        if len(keys):
            levels.append(_Level(users[read][first], keys % vocabulary, keys // vocabulary))
            nodes[read] = num_nodes + same
            num_nodes += len(keys)
    return levels, sources


def _lines(levels: list[_Level], columns: Int[ndarray, "nodes"]) -> Int[ndarray, "nodes levels"]:
    """The columns of each node's ancestors and its own, by depth."""
    lines = np.full((len(columns), len(levels)), -1)
    start = 0
    for depth, level in enumerate(levels):
        own = np.arange(start, start + len(level.users))
        if depth:
            lines[own] = lines[level.parents]
        lines[own, depth] = columns[own]
        start += len(own)
    return lines


def additive_mask(is_seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where it sees, else the lowest number (minus infinity would make NaN)."""
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, torch.finfo(dtype).min)
