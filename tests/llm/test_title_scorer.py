"""Scores of titles: the likelihood, what it is held against, and prompts that list no candidates."""

import numpy as np
import pytest
import torch
from tests.tiny import save_tiny

from allrec.errors import Wording
from allrec.llm import title_scorer
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.soft_tokens import SoftTokens
from allrec.llm.title_scorer import LENGTH, PRIOR, TitleScorer, title_priors

TITLES = ["rose soap", "night cream with velvet", None, "oil", 'mirror "two"']
HISTORIES = [[0, 3], [1]]
CANDIDATES = np.array([[1, 2, 4], [3, 0, -1]])


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LanguageModel.load(LanguageModelConfig(name=str(save_tiny(tmp_path_factory.mktemp("llm")))))


def builder_of(llm, **options):
    return PromptBuilder.of(llm, TITLES, Wording(), PromptConfig(**options))


def scorer_of(llm, normalize="sum", **options):
    torch.manual_seed(0)
    builder = builder_of(llm, **options)
    items = torch.randn(len(TITLES), 4)
    priors = title_priors(llm, builder, np.arange(len(TITLES)), tokens_per_batch=4096)
    soft_tokens = SoftTokens(3, 4, llm.dim, llm.embedding_scale)
    return TitleScorer(
        llm, builder, soft_tokens, items, lambda: priors, seed=0, normalize=normalize, tokens_per_batch=4096
    )


def scored(scorer, candidates=CANDIDATES, variant="llm"):
    users = torch.ones(len(HISTORIES), 3)
    return scorer.score(users, [np.array(row) for row in HISTORIES], candidates, variant)


@torch.no_grad()
def log_prob_alone(llm, prompt, answer):
    """The sum over an answer's tokens, prompt and answer read alone."""
    ids = torch.tensor([*prompt, *answer])
    log_probs = llm.logits(llm.hidden(llm.embed(ids)[None]))[0].log_softmax(-1)
    start = len(prompt) - 1
    return sum(log_probs[start + place, token].item() for place, token in enumerate(answer))


def test_priors_are_the_likelihoods_behind_a_new_user(llm):
    bare = builder_of(llm, soft_token="none", has_user=False)
    (prompt,) = bare.prompts([[]], [[]]).tokens
    expected = [log_prob_alone(llm, prompt, answer) for answer in bare.answers(np.arange(len(TITLES)))]
    priors = title_priors(llm, builder_of(llm), np.array([3, 0, 4, 1, 2]), tokens_per_batch=64)
    np.testing.assert_allclose(priors, np.array(expected)[[3, 0, 4, 1, 2]], atol=1e-4)


def test_priors_of_more_titles_than_one_prompt_takes_keep_their_order(llm, monkeypatch):
    whole = title_priors(llm, builder_of(llm), np.arange(5), tokens_per_batch=4096)
    monkeypatch.setattr("allrec.llm.title_scorer.ANSWERS_A_PROMPT", 2)
    np.testing.assert_allclose(title_priors(llm, builder_of(llm), np.arange(5), tokens_per_batch=64), whole, atol=1e-4)


def test_no_titles_have_no_priors(llm):
    assert title_priors(llm, builder_of(llm), np.arange(0), tokens_per_batch=64).shape == (0,)


@pytest.mark.parametrize("normalize", ["mean", "pmi", "pmi-mean"])
def test_what_a_score_is_held_against(llm, normalize):
    scorer, is_candidate = scorer_of(llm), CANDIDATES >= 0
    whole, all_scores = scored(scorer), scored(scorer_of(llm, normalize))
    plain, scores = whole[is_candidate], all_scores[is_candidate]
    lengths, priors = (scorer.of_titles(CANDIDATES, name)[is_candidate] for name in (LENGTH, PRIOR))
    expected = {"mean": plain / lengths, "pmi": plain - priors, "pmi-mean": (plain - priors) / lengths}[normalize]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (all_scores[~is_candidate] == -np.inf).all()
    assert not np.allclose(scores, plain)


def test_without_a_history_there_is_no_information_in_it(llm):
    scorer = scorer_of(llm, "pmi", soft_token="none", has_user=False, lists_candidates=False)
    scores = scorer.score(torch.ones(1, 3), [np.array([], np.int64)], np.array([[0, 1, 2, 3, 4]]))
    np.testing.assert_allclose(scores, 0, atol=1e-4)


def test_titles_that_are_not_listed_do_not_change_each_others_scores(llm):
    few, many = np.array([[1, 2], [3, 0]]), np.array([[1, 2, 4, 0], [3, 0, 2, 1]])
    unlisted, listed = scorer_of(llm, lists_candidates=False), scorer_of(llm, lists_candidates=True)
    np.testing.assert_allclose(scored(unlisted, few), scored(unlisted, many)[:, :2], atol=1e-4)
    assert not np.allclose(scored(listed, few), scored(listed, many)[:, :2], atol=1e-2)


def test_prompts_that_list_nothing_have_soft_tokens_of_user_and_history_alone(llm):
    builder = builder_of(llm, lists_candidates=False)
    prompts, alone = builder.prompts(HISTORIES, CANDIDATES), builder.prompts(HISTORIES, [[], []])
    np.testing.assert_array_equal(prompts.tokens.values, alone.tokens.values)
    np.testing.assert_array_equal(prompts.soft_items, [-1, 0, 3, -1, 1])


def test_any_number_of_candidates_fits_a_prompt_that_lists_none(llm):
    many = np.zeros((1, 100_000), np.int64)
    assert builder_of(llm, lists_candidates=False).fits(many)
    assert not builder_of(llm, lists_candidates=True).fits(many)


def test_an_unknown_variant_is_refused(llm):
    with pytest.raises(ValueError, match="got variant 'nonsense'"):
        scored(scorer_of(llm), variant="nonsense")


def test_bare_prompts_are_scored_once_for_all_runs(llm, tmp_path, monkeypatch):
    builder = builder_of(llm, lists_candidates=False)
    first = title_priors(llm, builder, np.arange(5), tokens_per_batch=4096, cache=tmp_path)
    monkeypatch.setattr(title_scorer, "score_candidates", None)
    again = title_priors(llm, builder, np.arange(5), tokens_per_batch=4096, cache=tmp_path)
    assert np.array_equal(again, first)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    with pytest.raises(TypeError, match="not callable"):
        title_priors(llm, builder, np.arange(4), tokens_per_batch=4096, cache=tmp_path)


def test_soft_tokens_belong_to_a_run_and_are_never_taken_from_another(llm, tmp_path):
    scorer = scorer_of(llm, "sum")
    users, histories, candidates = torch.randn(1, 3), [np.array([0])], np.array([[1, 2]])
    before = scorer.log_probs(users, histories, candidates, cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    bare = scorer.log_probs(users, histories, candidates, "llm-no-soft", tmp_path)
    assert np.array_equal(scorer.log_probs(users, histories, candidates, "llm-no-soft", tmp_path), bare)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert not np.array_equal(bare, before)
