"""Stage 2 and ranking as the public code goes about them, on the same model.

Two users a batch, texts tokenised when they are read, one soft token put in after the other, rows padded, logits at
every position; candidates are scored as so many whole sequences, or a title is generated token by token.

Source: github.com/ghdtjr/A-LLMRec at e216bbc, models/a_llmrec_model.py and models/llm4rec.py. Ours cuts titles as the
recipes do, so that both sides read the same; the public code tells them whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from allrec.llm.prompt import wording_pieces
from scene import Scene

BATCH = 2
MARKER = "\N{OBJECT REPLACEMENT CHARACTER}"


def prompt_text(scene: Scene, history: ndarray, candidates: ndarray) -> str:
    """A prompt in words, with a character of its own where a soft token goes."""
    wording, config = scene.dataset.wording, scene.builder.config
    opening, history_end, newcomer, listing, closing = wording_pieces(wording, config)

    def listed(items: ndarray) -> str:
        return ",".join(f"{title_text(scene, int(item))}{MARKER}" for item in items)

    latest = history[max(0, len(history) - config.max_history) :]
    told = opening + listed(latest) + history_end if len(latest) else newcomer
    return MARKER + told + listing + listed(candidates) + closing


def title_text(scene: Scene, item: int) -> str:
    """A title between quotes, with the space before it."""
    title = scene.dataset.titles[item]
    spoken = f"untitled {scene.dataset.wording.noun}" if title is None else title.replace('"', "'")
    return f' "{spoken}"'


def tokenized(scene: Scene, text: str) -> list[int]:
    """Token ids of a text: titles are cut as the package cuts them, so that both sides read the same."""
    llm, limit = scene.llm, scene.builder.config.max_title_tokens
    row = llm.encode([text])[0]
    quote = llm.encode(['"'])[0]
    return row if len(row) <= limit or not text.startswith(' "') else row[: limit - len(quote)] + quote


def prompt_embeddings(scene: Scene, row: int) -> Tensor:
    """Embeddings of one user's prompt, its soft tokens put in one by one."""
    llm, history = scene.llm, scene.histories(np.array([row]))[0]
    candidates = scene.candidates[row]
    latest = [int(item) for item in history[max(0, len(history) - scene.builder.config.max_history) :]]
    soft = [scene.soft_tokens.user(scene.users[row])]
    soft += [scene.soft_tokens.item(scene.items[item]) for item in [*latest, *map(int, candidates)]]
    parts = [llm.embed(torch.tensor(llm.begin, dtype=torch.long))]
    texts = prompt_text(scene, history, candidates).split(MARKER)
    for text, vector in zip(texts, [*soft, None], strict=True):
        parts += [llm.embed(torch.tensor(piece, dtype=torch.long)) for piece in pieces(scene, text)]
        if vector is not None:
            parts.append(vector[None].to(llm.dtype))
    return torch.cat(parts)


def pieces(scene: Scene, text: str) -> list[list[int]]:
    """Token ids of what stands between two soft tokens: wording, a comma, a title."""
    before, quote, title = text.partition(' "')
    return [tokenized(scene, part) for part in (before, quote + title) if part]


def answer_ids(scene: Scene, item: int) -> list[int]:
    """Token ids of a title and of the end."""
    return tokenized(scene, title_text(scene, item)) + scene.llm.end


def _whole(scene: Scene, rows: list[Tensor], answers: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with their answers, padded on the right; which places are real; labels, -100 elsewhere."""
    llm = scene.llm
    sequences = [torch.cat([row, llm.embed(torch.tensor(ids))]) for row, ids in zip(rows, answers, strict=True)]
    labels = [torch.tensor([-100] * len(row) + ids) for row, ids in zip(rows, answers, strict=True)]
    is_real = [torch.ones(len(sequence), dtype=torch.long) for sequence in sequences]
    padded = pad_sequence(labels, batch_first=True, padding_value=-100)
    return (
        pad_sequence(sequences, batch_first=True),
        pad_sequence(is_real, batch_first=True).to(llm.device),
        padded.to(llm.device),
    )


@contextmanager
def built_in(model: Any) -> Iterator[None]:
    """Inside, the model has the attention and the norms that it comes with, not the package's own."""
    ours = model.config._attn_implementation
    norms = [(module, module.__dict__.pop("forward")) for module in model.modules() if is_quickened(module)]
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)
        for module, forward in norms:
            module.forward = forward


def is_quickened(module: Any) -> bool:
    """Whether a norm has the package's way of working in place of its own."""
    return type(module).__name__.endswith("RMSNorm") and "forward" in module.__dict__


def train(scene: Scene, rows: ndarray) -> list[float]:
    """Losses and gradients of stage 2, two users a step; the optimizer is left out on both sides."""
    losses = []
    for start in range(0, len(rows), BATCH):
        chosen = [int(row) for row in rows[start : start + BATCH]]
        prompts = [prompt_embeddings(scene, row) for row in chosen]
        answers = [answer_ids(scene, int(scene.examples.items[row])) for row in chosen]
        embeddings, is_real, labels = _whole(scene, prompts, answers)
        with built_in(scene.llm._model):
            loss = scene.llm._model(inputs_embeds=embeddings, attention_mask=is_real, labels=labels).loss
            loss.backward()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def score(scene: Scene, rows: ndarray) -> Tensor:
    """Log-likelihoods of candidates, each behind a prompt of its own."""
    scores = []
    for row in rows:
        items = [int(item) for item in scene.candidates[row]]
        for start in range(0, len(items), BATCH):
            chosen = items[start : start + BATCH]
            prompts = [prompt_embeddings(scene, int(row)) for _ in chosen]
            embeddings, is_real, labels = _whole(scene, prompts, [answer_ids(scene, item) for item in chosen])
            with built_in(scene.llm._model):
                logits = scene.llm._model(inputs_embeds=embeddings, attention_mask=is_real).logits[:, :-1].float()
            targets = labels[:, 1:]
            found = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0]
            scores.extend((found * (targets >= 0)).sum(1).tolist())
    return torch.tensor(scores).view(len(rows), -1)


@torch.no_grad()
def generate(scene: Scene, rows: ndarray) -> int:
    """A title for each user, token by token; how many users that were.

    As many tokens as the longer target's title of a batch has, and the end: what the public code has its model learn to
    write, after which ``generate`` stops (``max_length=512`` cuts off what never ends). Its penalty on repetitions is
    left out: it costs next to nothing, and takes tokens of a title away.
    """
    llm = scene.llm
    for start in range(0, len(rows), BATCH):
        chosen = [int(row) for row in rows[start : start + BATCH]]
        prompts = [prompt_embeddings(scene, row).flip(0) for row in chosen]
        is_real = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in prompts], batch_first=True).flip(1)
        num_tokens = max(len(answer_ids(scene, int(scene.examples.items[row]))) for row in chosen)
        with built_in(llm._model):
            llm._model.generate(
                inputs_embeds=pad_sequence(prompts, batch_first=True).flip(1), attention_mask=is_real.to(llm.device),
                min_new_tokens=num_tokens, max_new_tokens=num_tokens, do_sample=False, eos_token_id=llm.end[0],
                pad_token_id=llm.end[0],
            )  # fmt: skip
    return len(rows)


def ranking_sides(scene: Scene, users: int, plain_users: int, tokens: int) -> dict[str, Callable[[int], float]]:
    """The package's ranking and the two plain ways: a repeat each, to how many users it ranked."""

    def package(repeat: int) -> float:
        scene.scores(scene.rows(repeat, users), tokens)
        return users

    def sequences(repeat: int) -> float:
        score(scene, scene.rows(repeat, plain_users))
        return plain_users

    def generation(repeat: int) -> float:
        return generate(scene, scene.rows(repeat, plain_users))

    return {"rank": package, "rank 20 sequences": sequences, "generate a title": generation}
