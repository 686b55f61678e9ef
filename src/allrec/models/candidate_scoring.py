"""log P(answer | prompt): the loss that soft tokens learn from, and the scores of a user's candidates.

A user's candidates are scored together: the prompt is read once, then all answers behind it in one pass, each at the
positions right after the prompt and blind to the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec.models.language_model import LanguageModel, additive_mask
from allrec.models.prompt import Packed, Prompts
from allrec.models.soft_tokens import insert

LOGITS_PER_CHUNK = 1 << 24
"""So many logits (64 MiB) are held at once when candidates are scored."""


def answer_loss(
    llm: LanguageModel, prompts: Prompts, answers: Packed, soft: Float[Tensor, "soft dim"]
) -> Float[Tensor, ""]:
    """Cross-entropy, in nats, of the answers' tokens: the mean over all answer tokens of the batch.

    Args:
        llm: the frozen language model.
        prompts: a prompt a row.
        answers: each prompt's answer.
        soft: soft tokens in the order of ``prompts.soft_items``; the only thing that gets a gradient.

    Source: arXiv:2404.11343, section 4.2; a long title weighs more than a short one, as in the public code.
    """
    return -_answer_log_probs(llm, prompts, answers, soft).mean()


def score_candidates(
    llm: LanguageModel,
    prompts: Prompts,
    answers: Packed,
    is_candidate: Bool[ndarray, "users candidates"],
    soft: Float[Tensor, "soft dim"],
    *,
    normalize: Literal["sum", "mean"] = "sum",
    tokens_per_batch: int = 4096,
) -> Float[Tensor, "users candidates"]:
    """Scores every user's candidates by their answers' likelihood.

    Args:
        llm: the frozen language model.
        prompts: a prompt a user.
        answers: an answer for each True of ``is_candidate``, users one after the other, candidates in their order.
        is_candidate: False where a row of candidates is padded.
        soft: soft tokens in the order of ``prompts.soft_items``.
        normalize: "sum" is log P(answer | prompt) in nats, which favours short titles; "mean" is that over the number
            of tokens, which favours titles whose ends can be guessed from their beginnings.
        tokens_per_batch: users are read together up to so many tokens, padding included.

    Returns:
        Scores in float32 on the CPU, minus infinity where there is no candidate.

    Raises:
        ValueError: there are not as many answers as candidates, or soft tokens as places for them.
    """
    users, _ = np.nonzero(is_candidate)
    if len(users) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(users)} candidates; padding has no answer.")
    sums = torch.zeros(len(answers))
    answer_rows = Packed(np.arange(len(answers)), np.searchsorted(users, np.arange(len(is_candidate) + 1)))
    answer_tokens = np.diff(answers.offsets[answer_rows.offsets])
    asked = np.flatnonzero(answer_rows.lengths)
    for batch in _batches(prompts.tokens.lengths[asked], answer_tokens[asked], tokens_per_batch):
        chosen, soft_rows = take_prompts(prompts, asked[batch])
        rows = answer_rows.take(asked[batch])
        batch_soft = soft[torch.from_numpy(soft_rows).to(soft.device)]
        sums[torch.from_numpy(rows.values)] = _score(llm, chosen, answers.take(rows.values), rows.lengths, batch_soft)
    if normalize == "mean":
        sums /= torch.from_numpy(answers.lengths).clamp(min=1)
    scores = torch.full(is_candidate.shape, -torch.inf)
    scores[torch.from_numpy(is_candidate)] = sums
    return scores


def take_prompts(prompts: Prompts, rows: Int[ndarray, "chosen"]) -> tuple[Prompts, Int[ndarray, "chosen_soft"]]:
    """The chosen prompts, in their order, repeats allowed, and the rows of their soft tokens among all."""
    offsets = prompts.tokens.offsets
    soft_rows = Packed(np.arange(len(prompts.soft_items)), prompts.soft_offsets).take(rows).values
    is_soft = Packed(prompts.is_soft, offsets).take(rows).values
    return Prompts(prompts.tokens.take(rows), is_soft, prompts.soft_items[soft_rows]), soft_rows


def embed_prompts(
    llm: LanguageModel, prompts: Prompts, soft: Float[Tensor, "soft dim"]
) -> Float[Tensor, "batch length dim"]:
    """Embeddings of prompts with their soft tokens in place, padded on the right."""
    tokens = _padded(prompts.tokens)
    is_soft = _padded(Packed(prompts.is_soft, prompts.tokens.offsets))
    embeddings = llm.embed(torch.from_numpy(tokens))
    return insert(embeddings, torch.from_numpy(is_soft).to(llm.device), soft.to(llm.device))


@dataclass(frozen=True)
class _Layout:
    """Where the answers of a batch of users stand in one row a user, each answer without its last token."""

    tokens: Int[ndarray, "users width"]
    answer_ids: Int[ndarray, "users width"]
    """-1 where a row is padded."""
    places: Int[ndarray, "users width"]
    """How far into its answer a token is, from 0."""
    sources: Int[ndarray, "answer_tokens"]
    """For each answer token what predicts it: the end of user u's prompt is u, the i-th laid out token is users + i."""


def _layout(answers: Packed, num_answers: Int[ndarray, "users"]) -> _Layout:
    users = np.repeat(np.arange(len(num_answers)), num_answers)
    answer_ids = np.repeat(np.arange(len(answers)), answers.lengths)
    places = np.arange(len(answer_ids)) - answers.offsets[answer_ids]
    is_read = places < answers.lengths[answer_ids] - 1
    num_read = np.bincount(users[answer_ids[is_read]], minlength=len(num_answers))
    offsets = np.concatenate([[0], np.cumsum(num_read)])
    previous = len(num_answers) - 1 + np.cumsum(is_read) - is_read
    return _Layout(
        _padded(Packed(answers.values[is_read], offsets)),
        _padded(Packed(answer_ids[is_read], offsets), -1),
        _padded(Packed(places[is_read], offsets)),
        np.where(places == 0, users[answer_ids], previous),
    )


@torch.no_grad()
def _score(
    llm: LanguageModel, prompts: Prompts, answers: Packed, num_answers: Int[ndarray, "users"], soft: Tensor
) -> Float[Tensor, "answers"]:
    """Sums of the answers' log-probabilities, all users in one batch."""
    longest = prompts.tokens.lengths.max(initial=0) + answers.lengths.max(initial=0)
    if llm.can_pack and longest < llm.window:
        log_probs = _packed_log_probs(llm, prompts, answers, num_answers, soft)
    else:
        log_probs = _separate_log_probs(llm, prompts, answers, num_answers, soft)
    table = torch.zeros(len(answers), int(answers.lengths.max(initial=0)))
    table[torch.from_numpy(_is_real(answers))] = log_probs.cpu()
    return table.sum(1)


def _packed_log_probs(
    llm: LanguageModel, prompts: Prompts, answers: Packed, num_answers: Int[ndarray, "users"], soft: Tensor
) -> Float[Tensor, "answer_tokens"]:
    layout = _layout(answers, num_answers)
    parts = (layout.tokens, layout.answer_ids, layout.places, layout.sources)
    tokens, ids, places, sources = (torch.from_numpy(part).to(llm.device) for part in parts)
    lengths = torch.from_numpy(prompts.tokens.lengths).to(llm.device)
    prompt_hidden, cache = llm.prefill(embed_prompts(llm, prompts, soft))
    hidden = prompt_hidden[torch.arange(len(lengths), device=llm.device), lengths - 1]
    if tokens.shape[1]:
        mask = _answer_mask(lengths, prompt_hidden.shape[1], ids, places, llm.dtype)
        answer_hidden = llm.hidden(llm.embed(tokens), mask, lengths[:, None] + places, cache)
        hidden = torch.cat([hidden, answer_hidden[ids >= 0]])
    return _token_log_probs(llm, hidden[sources], answers)


def _answer_mask(
    lengths: Int[Tensor, "users"],
    prompt_width: int,
    ids: Int[Tensor, "users width"],
    places: Int[Tensor, "users width"],
    dtype: torch.dtype,
) -> Float[Tensor, "users 1 width keys"]:
    """An answer's token sees its prompt and what came before it in its own answer."""
    in_prompt = torch.arange(prompt_width, device=ids.device) < lengths[:, None]
    in_answer = (ids[:, :, None] == ids[:, None]) & (places[:, :, None] >= places[:, None])
    is_seen = torch.cat([in_prompt[:, None].expand(-1, ids.shape[1], -1), in_answer], 2)
    return additive_mask(is_seen[:, None], dtype)


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
    both = _join(prompts.tokens, answers)
    is_soft = _join(
        Packed(prompts.is_soft, prompts.tokens.offsets), Packed(np.zeros(len(answers.values), bool), answers.offsets)
    )
    rows = Prompts(both, is_soft.values, prompts.soft_items)
    # The last token of the longest row predicts nothing.
    hidden = llm.hidden(embed_prompts(llm, rows, soft)[:, :-1])
    users = np.repeat(np.arange(len(answers)), answers.lengths)
    places = prompts.tokens.lengths[users] - 1 + np.arange(len(users)) - answers.offsets[users]
    return _token_log_probs(llm, hidden[torch.from_numpy(users), torch.from_numpy(places)], answers)


def _token_log_probs(
    llm: LanguageModel, hidden: Float[Tensor, "answer_tokens hidden_dim"], answers: Packed
) -> Float[Tensor, "answer_tokens"]:
    """Log-probability of each answer token, from the hidden state before it."""
    targets = torch.from_numpy(answers.values).to(llm.device)
    chunk = max(1, LOGITS_PER_CHUNK // llm.vocabulary)
    pairs = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    return torch.cat([-functional.cross_entropy(llm.logits(states), ids, reduction="none") for states, ids in pairs])


def _join(left: Packed, right: Packed) -> Packed:
    """Row i of both, one behind the other."""
    stacked = Packed(
        np.concatenate([left.values, right.values]),
        np.concatenate([left.offsets, left.offsets[-1] + right.offsets[1:]]),
    )
    taken = stacked.take(np.arange(2 * len(left)).reshape(2, -1).T.ravel())
    return Packed(taken.values, taken.offsets[::2])


def _is_real(rows: Packed) -> Bool[ndarray, "rows width"]:
    is_real: Bool[ndarray, "rows width"] = np.arange(rows.lengths.max(initial=0)) < rows.lengths[:, None]
    return is_real


def _padded(rows: Packed, fill: int = 0) -> ndarray:
    is_real = _is_real(rows)
    table = np.full(is_real.shape, fill, rows.values.dtype)
    table[is_real] = rows.values
    return table


def _batches(
    prompt_tokens: Int[ndarray, "users"], answer_tokens: Int[ndarray, "users"], budget: int
) -> Iterator[Int[ndarray, "batch"]]:
    """Users of like length together, so that little is padding; longest first, so that memory runs out at once."""
    order = np.argsort(-(prompt_tokens + answer_tokens), kind="stable")
    start = width = 0
    for place, user in enumerate(order):
        wider = max(width, int(prompt_tokens[user] + answer_tokens[user]))
        if place > start and wider * (place + 1 - start) > budget:
            yield order[start:place]
            start, wider = place, int(prompt_tokens[user] + answer_tokens[user])
        width = wider
    if start < len(order):
        yield order[start:]
