"""Prompts that begin alike are read together: the same loss and gradients as apart, and fewer tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tests.llm.test_candidate_scoring import TITLES, about
from tests.tiny import KINDS, load_tiny

from allrec.llm.adapter import LoraConfig
from allrec.llm.likelihood import answer_loss
from allrec.llm.shared_prompts import branch_places, leads_of, tokens_read

LAYOUTS = [
    {"soft_token": "none", "user_place": "last"},
    {"soft_token": "none", "user_place": "history"},
    {"soft_token": "last", "user_place": "last"},
    {"soft_token": "none", "has_user": False},
    {"soft_token": "after", "user_place": "first"},
]


@pytest.fixture(scope="module", params=KINDS)
def llm(request, tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("llm"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("llm"), "llama")


def every_position(llm, histories, **layout):
    """A row for each item of each history but the first, what comes before it as its prompt; users are the groups."""
    builder = about(llm, None, lists_candidates=False, **layout).builder
    rows = [
        (user, history[:end], history[end]) for user, history in enumerate(histories) for end in range(len(history))
    ]
    prompts = builder.prompts([row[1] for row in rows], [[] for _ in rows])
    answers = builder.answers(np.array([row[2] for row in rows]))
    generator = torch.Generator().manual_seed(0)
    soft = torch.randn(len(prompts.soft_items), llm.dim, generator=generator) * llm.embedding_scale
    return prompts, answers, soft, np.array([row[0] for row in rows])


def loss_and_gradient(llm, prompts, answers, soft, groups):
    soft = soft.clone().requires_grad_(len(soft) > 0)
    loss = answer_loss(llm, prompts, answers, soft, groups)
    wanted = [soft] * (len(soft) > 0) + llm.learning
    return loss.detach(), torch.autograd.grad(loss, wanted) if wanted else ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_are_those_of_prompts_apart(llm, layout):
    *given, groups = every_position(llm, [[0, 3, 1, 6], [2], [7, 7, 4]], **layout)
    torch.testing.assert_close(
        loss_and_gradient(llm, *given, groups), loss_and_gradient(llm, *given, None), rtol=1e-4, atol=1e-5
    )


@given(
    st.lists(st.lists(st.integers(0, len(TITLES) - 1), min_size=1, max_size=6), min_size=1, max_size=4),
    st.sampled_from(LAYOUTS),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_whatever_the_histories_and_whichever_rows_are_grouped(one, histories, layout, random):
    *given, groups = every_position(one, histories, **layout)
    wild = np.array([random.randrange(3) for _ in groups])
    expected = loss_and_gradient(one, *given, None)
    for rows in (groups, wild):
        torch.testing.assert_close(loss_and_gradient(one, *given, rows), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_gets_the_gradient_of_the_trunk_too(llm):
    tuned = llm.adapted(LoraConfig(rank=2), 0)
    for weight in tuned.adapter.parameters():
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    *given, groups = every_position(tuned, [[0, 3, 1, 6], [7, 7, 4]], soft_token="none", has_user=False)
    torch.testing.assert_close(
        loss_and_gradient(tuned, *given, groups), loss_and_gradient(tuned, *given, None), rtol=1e-3, atol=1e-5
    )


def test_a_row_branches_where_it_differs_or_a_soft_token_comes(one):
    prompts, answers, _, groups = every_position(one, [[0, 3, 1]], soft_token="none", user_place="last")
    leads = leads_of(prompts.tokens.lengths, groups)
    assert_array_equal(leads, [2, 2, 2])
    places = branch_places(prompts, leads)
    for row, place in enumerate(places):
        own, lead = prompts.tokens[row], prompts.tokens[2]
        assert_array_equal(own[:place], lead[:place])
        assert place == len(own) - 1 or own[place] != lead[place]
    trunks, chains = tokens_read(prompts, answers, groups)
    assert_array_equal(trunks, [places.max()])
    assert chains[0] == (prompts.tokens.lengths - places + answers.lengths - 1).sum()


def test_shared_beginnings_are_read_once(one, monkeypatch):
    """Every token that the model is given: a fraction of what the prompts hold one by one."""
    counted = []

    def counting(name):
        method = getattr(one, name)

        def called(rows, *given, **named):
            counted.append(rows.shape[:2].numel())
            return method(rows, *given, **named)

        monkeypatch.setattr(one, name, called)

    counting("read")
    counting("hidden")
    _ = one.can_pack
    *given, groups = every_position(one, [[0, 3, 1, 6, 4, 2, 5, 0]], soft_token="none", user_place="last")

    def tokens(rows):
        counted.clear()
        answer_loss(one, *given, rows)
        return sum(counted)

    assert tokens(groups) < tokens(None) / 2
    trunks, chains = tokens_read(given[0], given[1], groups)
    assert tokens(groups) == trunks.sum() + chains.sum()
