"""Prompts that begin alike, such as those of one user's targets: what they share is read once.

Of each group the longest prompt is the trunk. A row branches off where its own tokens begin to differ or a soft token
comes, and is read from there on with its answer, all rows of a group in one pass, each blind to the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.llm.attention import additive_mask
from allrec.llm.prompt import Packed, Prompts
from allrec.llm.soft_tokens import embed_prompts

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel


def leads_of(lengths: Int[ndarray, "rows"], groups: Int[ndarray, "rows"]) -> Int[ndarray, "rows"]:
    """The row of the longest prompt in each row's group, the first of equals."""
    order = np.lexsort([-lengths, groups])
    _, first, group = np.unique(groups[order], return_index=True, return_inverse=True)
    leads = np.empty(len(groups), np.int64)
    leads[order] = order[first][group]
    return leads


def branch_places(prompts: Prompts, leads: Int[ndarray, "rows"]) -> Int[ndarray, "rows"]:
    """How many tokens each row has in common with its lead before any soft token; its last is always its own."""
    tokens, is_soft = prompts.tokens, Packed(prompts.is_soft, prompts.tokens.offsets)
    lengths = np.minimum(tokens.lengths, tokens.lengths[leads])
    start = np.zeros_like(lengths)
    own, lead = (part.cut(start, lengths) for part in (tokens, tokens.take(leads)))
    own_soft, lead_soft = (part.cut(start, lengths) for part in (is_soft, is_soft.take(leads)))
    differs = (own.values != lead.values) | own_soft.values | lead_soft.values
    first = np.minimum.reduceat(np.where(differs, own.places, np.repeat(lengths, lengths)), own.offsets[:-1])
    return np.minimum(first, tokens.lengths - 1)


def tokens_read(
    prompts: Prompts, answers: Packed, groups: Int[ndarray, "rows"]
) -> tuple[Int[ndarray, "groups"], Int[ndarray, "groups"]]:
    """Tokens of each group's trunk, and of all that branches off it."""
    places = branch_places(prompts, leads_of(prompts.tokens.lengths, groups))
    _, members = np.unique(groups, return_inverse=True)
    trunks = np.zeros(members.max(initial=-1) + 1, np.int64)
    np.maximum.at(trunks, members, places)
    chains = prompts.tokens.lengths - places + answers.lengths - 1
    return trunks, np.bincount(members, chains).astype(np.int64)


def shared_states(
    llm: LanguageModel, prompts: Prompts, answers: Packed, groups: Int[ndarray, "rows"], soft: Float[Tensor, "soft dim"]
) -> Float[Tensor, "answer_tokens hidden_dim"]:
    """The hidden state before each answer token; trunks are read without a gradient unless an adapter learns.

    Args:
        llm: the frozen language model.
        prompts: a prompt a row.
        answers: each prompt's answer.
        groups: which rows share a trunk.
        soft: soft tokens in the order of ``prompts.soft_items``.
    """
    lengths = prompts.tokens.lengths
    leads = leads_of(lengths, groups)
    places = branch_places(prompts, leads)
    trunks, members = np.unique(leads, return_inverse=True)
    longest = np.zeros(len(trunks), np.int64)
    np.maximum.at(longest, members, places)
    chains = _chains(prompts, answers, places)
    nodes = _by_group(chains.tokens.lengths, members)
    with torch.set_grad_enabled(torch.is_grad_enabled() and bool(llm.learning)):
        trunk = prompts.tokens.take(trunks).cut(np.zeros_like(longest), longest)
        # A model reads something: where nothing is shared the trunk is one place that no row sees.
        tokens = trunk.padded() if longest.max(initial=0) else np.zeros((len(trunks), 1), np.int64)
        cache = llm.read(llm.embed(torch.from_numpy(tokens)))
    is_node, order = nodes >= 0, nodes[nodes >= 0]
    embeddings = embed_prompts(llm, chains, soft)
    embeddings = embeddings[torch.from_numpy(chains.tokens.is_real).to(llm.device)][torch.from_numpy(order)]
    place = torch.from_numpy(is_node).to(llm.device)
    placed = embeddings.new_zeros(*nodes.shape, embeddings.shape[1]).masked_scatter(place[:, :, None], embeddings)
    hidden = llm.hidden(placed, *_seen(llm, nodes, chains.tokens, places, tokens.shape[1]), cache)
    return hidden[place][torch.from_numpy(np.argsort(order)[_sources(chains.tokens, answers)])]


def _chains(prompts: Prompts, answers: Packed, places: Int[ndarray, "rows"]) -> Prompts:
    """What each row reads behind its trunk: the rest of its prompt, and its answer without the last token."""
    rest = prompts.tokens.lengths - places
    is_soft = Packed(prompts.is_soft, prompts.tokens.offsets).cut(places, rest)
    branches = Prompts(prompts.tokens.cut(places, rest), is_soft.values, prompts.soft_items)
    return branches.followed_by(answers.cut(np.zeros_like(rest), answers.lengths - 1))


def _by_group(lengths: Int[ndarray, "rows"], members: Int[ndarray, "rows"]) -> Int[ndarray, "groups width"]:
    """The nodes of each group, counted through all chains, a row a group; -1 pads."""
    widths = np.bincount(members, lengths).astype(np.int64)
    order = np.argsort(members, kind="stable")
    nodes = Packed(np.arange(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])).take(order).values
    table = np.full((len(widths), widths.max(initial=0)), -1)
    table[np.arange(table.shape[1]) < widths[:, None]] = nodes
    return table


def _seen(
    llm: LanguageModel, nodes: Int[ndarray, "groups width"], chains: Packed, places: ndarray, width: int
) -> tuple[Float[Tensor, "groups 1 width all"], Int[Tensor, "groups width"]]:
    """Mask and positions: a node sees its row's part of the trunk, and its own chain up to itself."""
    row, depth = (np.where(nodes >= 0, part[nodes], -1) for part in (chains.rows, chains.places))
    sees_trunk: Bool[ndarray, "groups width trunk"] = np.arange(width) < np.where(row >= 0, places[row], 0)[..., None]
    sees_chain = (row[:, :, None] == row[:, None, :]) & (depth[:, None, :] <= depth[:, :, None])
    is_seen = torch.from_numpy(np.concatenate([sees_trunk, sees_chain], axis=2)).to(llm.device)
    positions = np.where(row >= 0, places[row] + depth, 0)
    return additive_mask(is_seen[:, None], llm.dtype), torch.from_numpy(positions).to(llm.device)


def _sources(chains: Packed, answers: Packed) -> Int[ndarray, "answer_tokens"]:
    """For each token of the answers the node that predicts it: the one before it."""
    rows = answers.rows
    return chains.offsets[rows + 1] - answers.lengths[rows] + answers.places
