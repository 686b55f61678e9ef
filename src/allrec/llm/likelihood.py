"""log P(answer | prompt): the losses that soft tokens and adapters learn from, and the scores of a user's candidates.

A user's candidates are scored together: the prompt is read once, then all answers behind it in one pass, each at the
positions right after the prompt and blind to the others. Answers form a tree: a shared beginning is read once, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from allrec.llm.attention import additive_mask
from allrec.llm.prompt import Packed, Prompts
from allrec.llm.shared_prompts import shared_states, tokens_read
from allrec.llm.soft_tokens import embed_prompts, soft_places
from allrec.parallel import ordered_map

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel

LOGITS_PER_CHUNK = 1 << 24
"""So many logits (64 MiB) are held at once when candidates are scored."""
SHARED_AT_ONCE = 1 << 40
"""More tokens than any batch has."""
CACHED_TOKENS = 2048
"""So many tokens are read at once on a CPU."""


def answer_loss(
    llm: LanguageModel,
    prompts: Prompts,
    answers: Packed,
    soft: Float[Tensor, "soft dim"],
    groups: Int[ndarray, "rows"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy, in nats, of the answers' tokens: the mean over all answer tokens of the batch.

    Args:
        llm: the frozen language model.
        prompts: a prompt a row.
        answers: each prompt's answer.
        soft: soft tokens in the order of ``prompts.soft_items``; they and an adapter alone get a gradient.
        groups: rows whose prompts begin alike, so that their beginnings are read once; the loss is the same without.

    Source: arXiv:2404.11343, section 4.2; a long title weighs more than a short one, as in the public code.
    """
    # A worker of a sharded model reads its share in one pass, as the others do theirs.
    most = SHARED_AT_ONCE if llm.is_sharded else tokens_at_once(llm, len(prompts.tokens.values))
    longest = prompts.tokens.lengths.max(initial=0) + answers.lengths.max(initial=0)
    if groups is not None and llm.can_pack and longest < llm.window:
        parts = _shared_parts(prompts, answers, groups, most)
    else:
        parts = _parts(prompts, answers, np.ones(len(answers), np.int64), most)

    def loss_of(_: _Part, log_probs: Tensor) -> Tensor:
        return -log_probs.sum() / len(answers.values)

    return _loss_by_parts(llm, list(parts), loss_of, soft)


def choice_loss(
    llm: LanguageModel,
    prompts: Prompts,
    answers: Packed,
    priors: Float[ndarray, "users candidates"],
    targets: Int[ndarray, "users"],
    soft: Float[Tensor, "soft dim"],
    scale: float = 1.0,
) -> Float[Tensor, ""]:
    """Cross-entropy, in nats, of the user's choice among candidates: a softmax over scale · (log P(title) - prior).

    Args:
        llm: the frozen language model.
        prompts: a prompt a user.
        answers: every user's candidates, users one after the other, candidates in their order.
        priors: what each candidate's log P is held against, in nats; minus infinity where a row is padded.
        targets: the column of each user's target.
        soft: soft tokens in the order of ``prompts.soft_items``; they and an adapter alone get a gradient.
        scale: inverse temperature, a nat.

    Returns:
        The mean over users.

    Raises:
        ValueError: there are not as many answers as candidates.
    """
    users, columns = _places(priors > -np.inf, answers)
    counts = np.bincount(users, minlength=len(priors))
    parts = _parts(prompts, answers, counts, tokens_at_once(llm, len(prompts.tokens.values) + len(answers.values)))

    def loss_of(part: _Part, log_probs: Tensor) -> Tensor:
        rows, device = part.answer_rows, log_probs.device
        asking, local = np.unique(users[rows], return_inverse=True)
        places = [torch.from_numpy(place).to(device) for place in (local, columns[rows], part.answers.rows)]
        sums = log_probs.new_zeros(len(rows)).index_add(0, places[2], log_probs)
        prior = torch.from_numpy(priors[users[rows], columns[rows]]).to(sums)
        scores = sums.new_full((len(asking), priors.shape[1]), -torch.inf)
        scores = scores.index_put((places[0], places[1]), scale * (sums - prior))
        wanted = torch.from_numpy(targets[asking]).to(device)
        return functional.cross_entropy(scores, wanted, reduction="sum") / len(priors)

    return _loss_by_parts(llm, list(parts), loss_of, soft)


@torch.no_grad()
def score_candidates(
    llm: LanguageModel,
    prompts: Prompts,
    answers: Packed,
    is_candidate: Bool[ndarray, "users candidates"],
    soft: Float[Tensor, "soft dim"],
    *,
    tokens_per_batch: int = 4096,
) -> Float[Tensor, "users candidates"]:
    """log P(answer | prompt), in nats, of every user's candidates.

    Args:
        llm: the frozen language model.
        prompts: a prompt a user.
        answers: an answer for each True of ``is_candidate``, users one after the other, candidates in their order.
        is_candidate: False where a row of candidates is padded.
        soft: soft tokens in the order of ``prompts.soft_items``.
        tokens_per_batch: the most tokens that are read at once, padding included.

    Returns:
        Sums over the answers' tokens in float32 on the CPU, minus infinity where there is no candidate.

    Raises:
        ValueError: there are not as many answers as candidates, or soft tokens as places for them.
    """
    _places(is_candidate, answers)
    num_answers = is_candidate.sum(1)
    sums = torch.zeros(len(answers))

    def fill(part: _Part) -> None:
        log_probs = _log_probs(llm, part, soft[torch.from_numpy(part.soft_rows).to(soft.device)])
        sums[torch.from_numpy(part.answer_rows)] = _sums(log_probs, part.answers)

    parts = _parts(prompts, answers, num_answers, tokens_at_once(llm, tokens_per_batch))
    for _ in ordered_map(fill, parts, llm.threads):
        pass
    scores = torch.full(is_candidate.shape, -torch.inf)
    scores[torch.from_numpy(is_candidate)] = sums
    return scores


def _places(
    is_candidate: Bool[ndarray, "users candidates"], answers: Packed
) -> tuple[Int[ndarray, "answers"], Int[ndarray, "answers"]]:
    """The row and the column of the candidate that each answer is of."""
    rows, columns = np.nonzero(is_candidate)
    if len(rows) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(rows)} candidates; padding has no answer.")
    return rows, columns


def take_prompts(prompts: Prompts, rows: Int[ndarray, "chosen"]) -> tuple[Prompts, Int[ndarray, "chosen_soft"]]:
    """The chosen prompts, in their order, repeats allowed, and the rows of their soft tokens among all."""
    offsets = prompts.tokens.offsets
    soft_rows = Packed(np.arange(len(prompts.soft_items)), prompts.soft_offsets).take(rows).values
    is_soft = Packed(prompts.is_soft, offsets).take(rows).values
    return Prompts(prompts.tokens.take(rows), is_soft, prompts.soft_items[soft_rows]), soft_rows


class _Part(NamedTuple):
    """Users that are read together.

    Attributes:
        prompts: theirs.
        answers: theirs, users one after the other.
        num_answers: how many of them each user has.
        answer_rows: which answers these are among all.
        soft_rows: which soft tokens their prompts have, among all.
        groups: which of the prompts begin alike, where that is made use of; each has one answer then.
    """

    prompts: Prompts
    answers: Packed
    num_answers: Int[ndarray, "users"]
    answer_rows: Int[ndarray, "answers"]
    soft_rows: Int[ndarray, "soft"]
    groups: Int[ndarray, "users"] | None = None


_LossOf = Callable[[_Part, Tensor], Tensor]
"""What a part adds to the loss, from the log-probability of each of its answers' tokens."""


def _loss_by_parts(llm: LanguageModel, parts: list[_Part], loss_of: _LossOf, soft: Tensor) -> Tensor:
    # Autograd asks a function's inputs whether they want a gradient, even where none is kept.
    wanting = (soft, *llm.learning) if torch.is_grad_enabled() else (soft.detach(),)
    loss: Tensor = _LossByParts.apply(llm, parts, loss_of, *wanting)  # type: ignore[no-untyped-call]
    return loss


class _LossByParts(torch.autograd.Function):
    """The sum of the parts' losses. A part's gradient is worked out with it, so that no more is kept."""

    @staticmethod
    def forward(
        ctx: Any, llm: LanguageModel, parts: list[_Part], part_loss: _LossOf, soft: Tensor, *weights: Tensor
    ) -> Tensor:
        is_soft_wanted, is_any_wanted = ctx.needs_input_grad[3], any(ctx.needs_input_grad)
        # The weights that the model holds: of what autograd hands over nothing is read.
        held = llm.learning

        def loss_of(part: _Part) -> tuple[Tensor, list[Tensor]]:
            own = soft[torch.from_numpy(part.soft_rows).to(soft.device)].requires_grad_(is_soft_wanted)
            with torch.set_grad_enabled(is_any_wanted):
                loss = part_loss(part, _log_probs(llm, part, own))
            if not loss.requires_grad:
                return loss.detach(), []
            return loss.detach(), list(torch.autograd.grad(loss, [*[own] * is_soft_wanted, *held]))

        losses, gradient, others = [], torch.zeros_like(soft), [torch.zeros_like(weight) for weight in held]
        for part, (loss, gradients) in zip(parts, ordered_map(loss_of, parts, llm.threads), strict=True):
            losses.append(loss)
            if is_soft_wanted and gradients:
                gradient[torch.from_numpy(part.soft_rows).to(soft.device)] = gradients.pop(0)
            for total, one in zip(others, gradients, strict=False):
                total += one
        ctx.save_for_backward(gradient, *others)
        return torch.stack(losses).sum().to(soft.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *others = ctx.saved_tensors
        return None, None, None, gradient * factor, *(one * factor for one in others)


def tokens_at_once(llm: LanguageModel, most: int) -> int:
    """How many tokens to read at one time: on a CPU few, for what a layer makes of them should stay in its caches."""
    return min(most, CACHED_TOKENS) if llm.device.type == "cpu" else most


def _parts(
    prompts: Prompts, answers: Packed, num_answers: Int[ndarray, "users"], tokens_per_batch: int
) -> Iterator[_Part]:
    """Batches of users who have answers."""
    ends = np.cumsum(num_answers)
    answer_rows = Packed(np.arange(len(answers)), np.concatenate([[0], ends]))
    answer_tokens = np.diff(answers.offsets[answer_rows.offsets])
    answered = np.flatnonzero(num_answers)
    for batch in _batches(prompts.tokens.lengths[answered], answer_tokens[answered], tokens_per_batch):
        chosen, soft_rows = take_prompts(prompts, answered[batch])
        rows = answer_rows.take(answered[batch])
        yield _Part(chosen, answers.take(rows.values), rows.lengths, rows.values, soft_rows)


def _shared_parts(
    prompts: Prompts, answers: Packed, groups: Int[ndarray, "rows"], tokens_per_batch: int
) -> Iterator[_Part]:
    """Batches of whole groups."""
    order = np.argsort(groups, kind="stable")
    _, counts = np.unique(groups, return_counts=True)
    rows_of = Packed(order, np.concatenate([[0], np.cumsum(counts)]))
    for batch in _batches(*tokens_read(prompts, answers, groups), tokens_per_batch):
        rows = rows_of.take(batch).values
        chosen, soft_rows = take_prompts(prompts, rows)
        yield _Part(chosen, answers.take(rows), np.ones(len(rows), np.int64), rows, soft_rows, groups[rows])


def _sums(log_probs: Float[Tensor, "answer_tokens"], answers: Packed) -> Float[Tensor, "answers"]:
    table = torch.zeros(len(answers), int(answers.lengths.max(initial=0)))
    table[torch.from_numpy(answers.is_real)] = log_probs.cpu()
    return table.sum(1)


def _log_probs(llm: LanguageModel, part: _Part, soft: Float[Tensor, "soft dim"]) -> Float[Tensor, "answer_tokens"]:
    """Log-probability of each answer token, all users in one batch; ``soft`` are theirs."""
    prompts, answers, num_answers = part.prompts, part.answers, part.num_answers
    if part.groups is not None:
        return _token_log_probs(llm, shared_states(llm, prompts, answers, part.groups, soft), answers)
    longest = prompts.tokens.lengths.max(initial=0) + answers.lengths.max(initial=0)
    if llm.can_pack and longest < llm.window:
        return _packed_log_probs(llm, prompts, answers, num_answers, soft)
    if (num_answers == 1).all():
        return _answer_log_probs(llm, prompts, answers, soft)
    return _separate_log_probs(llm, prompts, answers, num_answers, soft)


def _packed_log_probs(
    llm: LanguageModel, prompts: Prompts, answers: Packed, num_answers: Int[ndarray, "users"], soft: Tensor
) -> Float[Tensor, "answer_tokens"]:
    """Prompts without their last token become keys and values; last tokens and answers are read behind them."""
    trees = answer_trees(answers, num_answers)
    last = torch.from_numpy(prompts.tokens.lengths - 1).to(llm.device)
    embeddings = embed_prompts(llm, prompts, soft)
    roots = embeddings[torch.arange(len(last), device=llm.device), last]
    nodes = llm.embed(torch.from_numpy(trees.tokens[:, 1:]))
    is_prompt = torch.arange(embeddings.shape[1] - 1, device=llm.device) < last[:, None]
    seen_tree = tree_mask(trees, llm.device)
    is_seen = torch.cat([is_prompt[:, None].expand(-1, seen_tree.shape[1], -1), seen_tree], 2)
    hidden = llm.hidden(
        torch.cat([roots[:, None], nodes], 1),
        additive_mask(is_seen[:, None], llm.dtype),
        last[:, None] + torch.from_numpy(trees.depths).to(llm.device),
        _read(llm, embeddings[:, :-1], soft_places(llm, prompts)[:, :-1]),
    )
    return _token_log_probs(llm, hidden.flatten(0, 1)[torch.from_numpy(trees.sources).to(llm.device)], answers)


def _read(
    llm: LanguageModel, embeddings: Float[Tensor, "users length dim"], is_soft: Bool[Tensor, "users length"]
) -> Any:
    """Keys and values of prompts.

    Where soft tokens follow the text, so that the text is most of it, that is read first, and nothing of it is
    kept for a gradient; an adapter that learns wants all of it.
    """
    places = torch.nonzero(is_soft.any(0))
    first = int(places[0]) if len(places) else is_soft.shape[1]
    if 2 * first < is_soft.shape[1] or not embeddings.requires_grad or llm.learning:
        return llm.read(embeddings)
    with torch.no_grad():
        cache = llm.read(embeddings[:, :first])
    return cache if first == is_soft.shape[1] else llm.read(embeddings[:, first:], cache=cache)


def _separate_log_probs(
    llm: LanguageModel, prompts: Prompts, answers: Packed, num_answers: Int[ndarray, "users"], soft: Tensor
) -> Float[Tensor, "answer_tokens"]:
    """Every answer behind a copy of its prompt, a user at a time: slower, and right for every causal model."""
    parts = []
    offsets = np.concatenate([[0], np.cumsum(num_answers)])
    for user, (start, stop) in enumerate(pairwise(offsets)):
        if stop > start:
            repeated, soft_rows = take_prompts(prompts, np.full(stop - start, user))
            own_soft = soft[torch.from_numpy(soft_rows).to(soft.device)]
            parts.append(_answer_log_probs(llm, repeated, answers.take(np.arange(start, stop)), own_soft))
    return torch.cat(parts) if parts else torch.zeros(0)


def _answer_log_probs(
    llm: LanguageModel, prompts: Prompts, answers: Packed, soft: Tensor
) -> Float[Tensor, "answer_tokens"]:
    """Log-probability of each token of each prompt's one answer."""
    # The last token of the longest row predicts nothing.
    hidden = llm.hidden(embed_prompts(llm, prompts.followed_by(answers), soft)[:, :-1])
    users = answers.rows
    places = prompts.tokens.lengths[users] - 1 + answers.places
    return _token_log_probs(llm, hidden[torch.from_numpy(users), torch.from_numpy(places)], answers)


def _token_log_probs(
    llm: LanguageModel, hidden: Float[Tensor, "answer_tokens hidden_dim"], answers: Packed
) -> Float[Tensor, "answer_tokens"]:
    """Log-probability of each answer token, from the hidden state before it."""
    targets = torch.from_numpy(answers.values).to(llm.device)
    chunk = max(1, len(hidden) if llm.is_sharded else LOGITS_PER_CHUNK // llm.vocabulary)
    pairs = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    return torch.cat([-functional.cross_entropy(llm.logits(states), ids, reduction="none") for states, ids in pairs])


def _batches(
    prompt_tokens: Int[ndarray, "users"], answer_tokens: Int[ndarray, "users"], budget: int
) -> list[Int[ndarray, "batch"]]:
    """Users of like length together, so that little is padding; longest first, so that memory runs out at once.

    Several batches are of one size, and even in number, where the budget allows it: two threads have as much to do.
    """
    tokens = prompt_tokens + answer_tokens
    order = np.argsort(-tokens, kind="stable")
    starts = [0]
    for place in range(1, len(order)):
        # Sorted, so that a batch's first is its widest.
        if tokens[order[starts[-1]]] * (place + 1 - starts[-1]) > budget:
            starts.append(place)
    greedy = [batch for batch in np.split(order, starts[1:]) if len(batch)]
    num_even = len(greedy) + len(greedy) % 2
    shares = np.cumsum(tokens[order]) / max(1, tokens.sum()) * num_even
    even = [batch for batch in np.split(order, np.searchsorted(shares, np.arange(1, num_even))) if len(batch)]
    fit = all(len(batch) == 1 or tokens[batch[0]] * len(batch) <= budget for batch in even)
    return even if len(greedy) > 1 and fit else greedy


@dataclass(frozen=True)
class AnswerTrees:
    """The trees of a batch of users, a row a user: the last token of the prompt is the root, in column 0.

    A node is a beginning that answers of one user share. An answer's last token predicts nothing and has no node.

    Attributes:
        tokens: what is read at each node; 0 at the root, which belongs to the prompt.
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
