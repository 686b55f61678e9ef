"""Scores of candidates and the loss of answers, against every prompt and answer run alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import KINDS, load_tiny, save_tiny
from torch import nn
from transformers import AutoModelForCausalLM

from allrec.errors import Wording
from allrec.llm import likelihood as candidate_scoring
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import answer_loss, score_candidates, take_prompts
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import Packed, PromptBuilder, PromptConfig
from allrec.llm.soft_tokens import embed_prompts

TITLES = [
    "rose soap",
    "night cream with velvet and silver",
    None,
    "oil",
    "brush",
    'mirror "two"',
    "comb",
    "a b c d e f g",
]
HISTORIES = [[0, 3, 1], [], [7, 7]]
CANDIDATES = np.array([[1, 2, 5, 0], [6, 7, -1, -1], [3, 3, 4, -1]])


def scene(folder):
    """A model, its plain twin, and three users with candidates of different number and length."""
    llm = LanguageModel.load(LanguageModelConfig(name=str(folder)))
    return about(llm, AutoModelForCausalLM.from_pretrained(folder).eval())


def about(llm, plain, **options):
    config = PromptConfig(**options)
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    builder = PromptBuilder(llm.encode, TITLES, Wording(), config, **layout)
    prompts = builder.prompts(HISTORIES, CANDIDATES)
    is_candidate = CANDIDATES >= 0
    answers = builder.answers(CANDIDATES[is_candidate])
    soft = (
        torch.randn(len(prompts.soft_items), llm.dim, generator=torch.Generator().manual_seed(0)) * llm.embedding_scale
    )
    return SimpleNamespace(
        llm=llm, plain=plain, builder=builder, prompts=prompts, answers=answers, is_candidate=is_candidate, soft=soft
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return scene(save_tiny(tmp_path_factory.mktemp("llm"), request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return scene(save_tiny(tmp_path_factory.mktemp("llm"), "llama"))


def prompt_rows(scene, user):
    """Embeddings of one prompt, put together in a loop."""
    tokens, table = scene.prompts.tokens, scene.plain.get_input_embeddings().weight
    following = int(scene.prompts.is_soft[: tokens.offsets[user]].sum())
    rows = []
    for place in range(tokens.offsets[user], tokens.offsets[user + 1]):
        is_soft = scene.prompts.is_soft[place]
        rows.append(scene.soft[following] if is_soft else table[tokens.values[place]])
        following += int(is_soft)
    return rows


@torch.no_grad()
def token_log_probs(scene, user, answer):
    """Log-probabilities of an answer's tokens, prompt and answer run alone."""
    table = scene.plain.get_input_embeddings().weight
    rows = [*prompt_rows(scene, user), *(table[token] for token in answer)]
    log_probs = torch.log_softmax(scene.plain(inputs_embeds=torch.stack(rows)[None]).logits[0].double(), -1)
    start = len(rows) - len(answer) - 1
    return np.array([log_probs[start + place, token].item() for place, token in enumerate(answer)])


def one_by_one(scene):
    scores = np.full(scene.is_candidate.shape, -np.inf)
    for answer, (user, column) in zip(scene.answers, np.argwhere(scene.is_candidate), strict=True):
        scores[user, column] = token_log_probs(scene, user, answer).sum()
    return scores


def score(scene, **options):
    return score_candidates(scene.llm, scene.prompts, scene.answers, scene.is_candidate, scene.soft, **options)


def test_packed_scores_equal_one_by_one(kind):
    assert kind.llm.can_pack
    scores = score(kind)
    np.testing.assert_allclose(scores.numpy(), one_by_one(kind), atol=1e-4)
    assert scores.dtype == torch.float32


def test_models_that_cannot_pack_are_scored_alike(kind, monkeypatch):
    monkeypatch.setattr(kind.llm, "can_pack", False)
    monkeypatch.setattr(candidate_scoring, "_packed_log_probs", None)
    np.testing.assert_allclose(score(kind).numpy(), one_by_one(kind), atol=1e-4)


def test_prompts_beyond_the_window_are_scored_one_by_one(tmp_path):
    """The mask of a packed pass would let a layer look further back than its window."""
    save_tiny(tmp_path, "qwen3", use_sliding_window=True, sliding_window=24, max_window_layers=1)
    narrow = scene(tmp_path)
    assert narrow.llm.window == 24
    assert narrow.llm.can_pack
    np.testing.assert_allclose(score(narrow).numpy(), one_by_one(narrow), atol=1e-4)


def test_prompts_within_the_window_are_packed(tmp_path, monkeypatch):
    save_tiny(tmp_path, "qwen3", use_sliding_window=True, sliding_window=512, max_window_layers=1)
    wide = scene(tmp_path)
    monkeypatch.setattr(candidate_scoring, "_separate_log_probs", None)
    np.testing.assert_allclose(score(wide).numpy(), one_by_one(wide), atol=1e-4)


@pytest.mark.parametrize("options", [{"soft_token": "before"}, {"soft_token": "none", "has_user": False}])
def test_every_layout_is_scored_as_it_stands(one, options):
    other = about(one.llm, one.plain, **options)
    np.testing.assert_allclose(score(other).numpy(), one_by_one(other), atol=1e-4)


@pytest.mark.parametrize("tokens_per_batch", [1, 400, 100_000])
def test_batch_equals_single(kind, tokens_per_batch):
    np.testing.assert_allclose(score(kind, tokens_per_batch=tokens_per_batch).numpy(), score(kind).numpy(), atol=1e-4)


def test_other_candidates_change_nothing(one):
    """The first user alone with the third candidate: the prompt lists four all the same."""
    chosen, rows = take_prompts(one.prompts, np.array([0]))
    alone = score_candidates(one.llm, chosen, one.answers.take(np.array([2])), np.array([[True]]), one.soft[rows])
    assert alone.item() == pytest.approx(score(one)[0, 2].item(), abs=1e-4)


def test_equal_answers_score_equally(one):
    scores = score(one)
    assert scores[2, 0].item() == pytest.approx(scores[2, 1].item(), abs=1e-5)


def test_padding_is_minus_infinity_and_nothing_is_nan(kind):
    scores = score(kind)
    assert torch.equal(torch.isneginf(scores), ~torch.from_numpy(kind.is_candidate))
    assert not scores.isnan().any()


def test_answers_of_one_token_need_no_second_pass(one):
    answers = Packed.of([[5], [6], [7]])
    is_candidate = np.array([[True, True], [False, False], [True, False]])
    scores = score_candidates(one.llm, one.prompts, answers, is_candidate, one.soft)
    expected = [token_log_probs(one, user, answer).sum() for user, answer in ((0, [5]), (0, [6]), (2, [7]))]
    np.testing.assert_allclose(scores.numpy()[is_candidate], expected, atol=1e-4)


def test_users_without_candidates_have_no_scores(one):
    nobody = np.zeros((3, 2), bool)
    assert torch.isneginf(score_candidates(one.llm, one.prompts, Packed.of([]), nobody, one.soft)).all()
    empty = one.builder.prompts([], [])
    assert score_candidates(one.llm, empty, Packed.of([]), np.zeros((0, 2), bool), one.soft[:0]).shape == (0, 2)


def test_missing_answers_are_refused(one):
    with pytest.raises(ValueError, match="8 answers for 9 candidates; padding has no answer"):
        score_candidates(one.llm, one.prompts, one.answers.take(np.arange(8)), one.is_candidate, one.soft)


def test_soft_tokens_that_do_not_fit_are_refused(one):
    with pytest.raises(ValueError, match=r"places for .* soft tokens"):
        embed_prompts(one.llm, one.prompts, one.soft[1:])


def test_scoring_holds_no_graph(one):
    soft = one.soft.clone().requires_grad_()
    assert not score_candidates(one.llm, one.prompts, one.answers, one.is_candidate, soft).requires_grad


def first_answers(scene):
    return scene.builder.answers(CANDIDATES[:, 0])


def test_loss_is_the_mean_over_answer_tokens(kind, monkeypatch):
    monkeypatch.setattr(candidate_scoring, "LOGITS_PER_CHUNK", 3 * kind.llm.vocabulary)
    answers = first_answers(kind)
    expected = -np.concatenate([token_log_probs(kind, user, answer) for user, answer in enumerate(answers)]).mean()
    assert answer_loss(kind.llm, kind.prompts, answers, kind.soft).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tokens_at_once", [1, 150])
def test_reading_fewer_tokens_at_once_changes_no_loss(one, monkeypatch, tokens_at_once):
    whole = answer_loss(one.llm, one.prompts, first_answers(one), one.soft).item()
    monkeypatch.setattr(candidate_scoring, "CACHED_TOKENS", tokens_at_once)
    assert answer_loss(one.llm, one.prompts, first_answers(one), one.soft).item() == pytest.approx(whole, abs=1e-5)


def test_loss_of_models_that_cannot_pack_is_alike(kind, monkeypatch):
    packed = answer_loss(kind.llm, kind.prompts, first_answers(kind), kind.soft).item()
    monkeypatch.setattr(kind.llm, "can_pack", False)
    monkeypatch.setattr(candidate_scoring, "_packed_log_probs", None)
    assert answer_loss(kind.llm, kind.prompts, first_answers(kind), kind.soft).item() == pytest.approx(packed, abs=1e-4)


def test_loss_of_a_batch_is_the_weighted_loss_of_its_rows(one):
    answers = first_answers(one)
    total = 0.0
    for user in range(3):
        chosen, rows = take_prompts(one.prompts, np.array([user]))
        own = answers.take(np.array([user]))
        total += answer_loss(one.llm, chosen, own, one.soft[rows]).item() * len(own.values)
    whole = answer_loss(one.llm, one.prompts, answers, one.soft).item()
    assert whole == pytest.approx(total / len(answers.values), abs=1e-5)


def test_gradient_reaches_every_soft_token_and_nothing_else(kind):
    soft = kind.soft.clone().requires_grad_()
    answer_loss(kind.llm, kind.prompts, first_answers(kind), soft).backward()
    assert (soft.grad.abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in kind.llm._model.parameters())


def test_gradient_is_the_slope_of_the_loss(one):
    direction = torch.randn(one.soft.shape, generator=torch.Generator().manual_seed(1))
    soft = one.soft.clone().requires_grad_()
    answers = first_answers(one)
    answer_loss(one.llm, one.prompts, answers, soft).backward()
    with torch.no_grad():
        ahead, behind = (
            answer_loss(one.llm, one.prompts, answers, one.soft + step * direction) for step in (1e-3, -1e-3)
        )
    assert (soft.grad * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-3, rel=0.02)


@pytest.mark.parametrize("soft_token", ["last", "none"])
def test_text_before_soft_tokens_keeps_nothing_and_changes_no_gradient(kind, monkeypatch, soft_token):
    world = about(kind.llm, kind.plain, soft_token=soft_token, user_place="last", lists_candidates=False)
    answers, gradients, losses, kept = first_answers(world), [], [], {True: 0, False: 0}
    read, can_pack = kind.llm.read, kind.llm.can_pack
    for is_split in (True, False):

        def watched(embeddings, *given, is_split=is_split, **more):
            kept[is_split] += embeddings.shape[1] * torch.is_grad_enabled()
            return read(embeddings, *given, **more)

        soft = world.soft.clone().requires_grad_()
        with monkeypatch.context() as patch:
            patch.setattr(kind.llm, "read", watched)
            if not is_split:
                patch.setattr(candidate_scoring, "_read", lambda llm, embeddings, is_soft: llm.read(embeddings))
            loss = answer_loss(kind.llm, world.prompts, answers, soft)
        loss.backward()
        losses.append(loss.item())
        gradients.append(soft.grad)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert (gradients[0].abs().sum(1) > 0).all()
    if can_pack:
        assert kept[True] < kept[False] / 2


def test_loss_gradient_and_scores_are_the_same_bytes_on_any_number_of_threads(kind, monkeypatch):
    monkeypatch.setattr(candidate_scoring, "CACHED_TOKENS", 80)
    answers, before = first_answers(kind), torch.get_num_threads()

    def found(threads):
        torch.set_num_threads(threads)
        assert kind.llm.threads == threads
        soft = kind.soft.clone().requires_grad_()
        loss = answer_loss(kind.llm, kind.prompts, answers, soft)
        (2 * loss).backward()
        return loss.detach(), soft.grad, score(kind)

    try:
        alone, together = found(1), found(3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_batches_are_of_one_size_and_even_in_number_where_the_budget_allows_it():
    prompts, answers = np.full(11, 90), np.full(11, 10)
    # Five batches of two and one of one would leave one of two threads idle for a while; six of nearly two do not.
    assert [len(batch) for batch in candidate_scoring._batches(prompts, answers, 250)] == [1, 2, 2, 2, 2, 2]
    assert [len(batch) for batch in candidate_scoring._batches(prompts, answers, 400)] == [2, 3, 3, 3]
    assert [len(batch) for batch in candidate_scoring._batches(prompts, answers, 500)] == [2, 3, 3, 3]
    assert [len(batch) for batch in candidate_scoring._batches(prompts, answers, 2000)] == [11]
    # A long one among short ones would make a batch of one size too wide.
    assert [len(b) for b in candidate_scoring._batches(np.array([90, 10, 10, 10, 10]), np.zeros(5, int), 90)] == [1, 4]
    assert candidate_scoring._batches(prompts[:0], answers[:0], 400) == []


def test_a_model_that_changes_as_it_reads_has_one_thread(tmp_path):
    changing = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert load_tiny(tmp_path / "changing", rope_parameters=changing).threads == 1
        assert load_tiny(tmp_path / "steady").threads == 2
    finally:
        torch.set_num_threads(before)


def test_projections_learn_and_the_model_stays_bitwise_the_same(tmp_path):
    here = about(load_tiny(tmp_path), None)
    weights = {name: value.clone() for name, value in here.llm._model.state_dict().items()}
    vectors = torch.randn(len(here.soft), 6, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        projection = nn.Linear(6, here.llm.dim)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = answer_loss(here.llm, here.prompts, first_answers(here), projection(vectors))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    for name, value in here.llm._model.state_dict().items():
        assert torch.equal(value, weights[name])


@settings(max_examples=25)
@given(rows=st.lists(st.integers(0, 2), max_size=6))
def test_taking_prompts_is_a_plain_loop(one, rows):
    taken, soft_rows = take_prompts(one.prompts, np.array(rows, np.int64))
    is_soft = Packed(one.prompts.is_soft, one.prompts.tokens.offsets)
    ends = np.cumsum([part.sum() for part in is_soft])
    expected = [place for row in rows for place in range(ends[row] - is_soft[row].sum(), ends[row])]
    assert [list(row) for row in taken.tokens] == [list(one.prompts.tokens[row]) for row in rows]
    assert list(taken.is_soft) == [value for row in rows for value in is_soft[row]]
    assert list(soft_rows) == expected
    assert list(taken.soft_items) == list(one.prompts.soft_items[expected])


@settings(max_examples=50)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=20),
    budget=st.integers(1, 300),
)
def test_batches_hold_everyone_once_and_keep_to_the_budget(lengths, budget):
    prompt_tokens, answer_tokens = np.array(lengths, np.int64).reshape(-1, 2).T
    batches = list(candidate_scoring._batches(prompt_tokens, answer_tokens, budget))
    assert sorted(user for batch in batches for user in batch) == list(range(len(lengths)))
    total = prompt_tokens + answer_tokens
    assert all(len(batch) == 1 or total[batch].max() * len(batch) <= budget for batch in batches)
