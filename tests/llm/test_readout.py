"""The read-out head: its losses against arithmetic and plain NumPy, its states against whole sequences run alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.llm.test_candidate_scoring import HISTORIES, about, prompt_rows
from tests.oracles import readout as oracle
from tests.tiny import KINDS, save_tiny
from transformers import AutoModelForCausalLM

from allrec.errors import InputError
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.readout import (
    ReadOut,
    ReadOutConfig,
    ReadOutLosses,
    distillation_loss,
    read_out,
    uniformity_loss,
)


def scene(folder):
    llm = LanguageModel.load(LanguageModelConfig(name=str(folder)))
    made = about(llm, AutoModelForCausalLM.from_pretrained(folder).eval())
    made.prompts = made.builder.prompts(HISTORIES, [()] * len(HISTORIES))
    generator = torch.Generator().manual_seed(1)
    made.soft = torch.randn(len(made.prompts.soft_items), llm.dim, generator=generator) * llm.embedding_scale
    made.vector = torch.randn(llm.dim, generator=generator) * llm.embedding_scale
    return made


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return scene(save_tiny(tmp_path_factory.mktemp("llm"), request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return scene(save_tiny(tmp_path_factory.mktemp("llm"), "llama"))


@torch.no_grad()
def state_alone(scene, row):
    """The last hidden state of one prompt with the vector behind it."""
    rows = torch.stack([*prompt_rows(scene, row), scene.vector])
    return scene.plain.base_model(inputs_embeds=rows[None]).last_hidden_state[0, -1]


def states(scene, **changes):
    given = {"prompts": scene.prompts, "soft": scene.soft, "vector": scene.vector} | changes
    return read_out(scene.llm, **given)


def test_states_equal_whole_sequences_run_alone(kind):
    expected = torch.stack([state_alone(kind, row) for row in range(len(HISTORIES))])
    got = states(kind)
    assert got.shape == (len(HISTORIES), kind.llm.hidden_dim)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_usable_cache_is_read_in_one_pass(kind, monkeypatch):
    expected = states(kind)
    monkeypatch.setattr(kind.llm, "can_pack", False)
    monkeypatch.setattr(kind.llm, "read", None)
    torch.testing.assert_close(states(kind), expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_beyond_the_window_is_read_in_one_pass(tmp_path):
    save_tiny(tmp_path, "qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    narrow = scene(tmp_path)
    expected = torch.stack([state_alone(narrow, row) for row in range(len(HISTORIES))])
    torch.testing.assert_close(states(narrow), expected, atol=1e-4, rtol=1e-4)


def test_batch_equals_single_and_padding_changes_nothing(kind):
    together = states(kind)
    offsets = kind.prompts.soft_offsets
    for row, history in enumerate(HISTORIES):
        alone = kind.builder.prompts([history], [()])
        soft = kind.soft[offsets[row] : offsets[row + 1]]
        torch.testing.assert_close(states(kind, prompts=alone, soft=soft)[0], together[row], atol=1e-4, rtol=1e-4)


def gradient_of_vector(scene, soft):
    vector = scene.vector.clone().requires_grad_(True)
    states(scene, soft=soft, vector=vector).square().sum().backward()
    return vector.grad


def test_the_vectors_gradient_is_the_same_with_the_prompt_read_apart(one, monkeypatch):
    expected = gradient_of_vector(one, one.soft)
    trained = one.soft.clone().requires_grad_(True)
    torch.testing.assert_close(gradient_of_vector(one, trained), expected, atol=1e-4, rtol=1e-4)
    assert trained.grad.abs().sum(1).min() > 0
    monkeypatch.setattr(one.llm, "can_pack", False)
    torch.testing.assert_close(gradient_of_vector(one, one.soft), expected, atol=1e-4, rtol=1e-4)
    assert one.soft.grad is None


def test_prompt_and_vector_both_matter(one):
    vector = one.vector.roll(1)
    soft = one.soft.roll(1, 1)
    assert not torch.allclose(states(one, vector=vector), states(one), atol=1e-3)
    assert not torch.allclose(states(one, soft=soft), states(one), atol=1e-3)


# Losses


def rows_of(seed, rows, dim=5):
    return np.random.default_rng(seed).normal(size=(rows, dim))


@given(rows=st.integers(2, 6), seed=st.integers(0, 99))
def test_losses_equal_their_equations(rows, seed):
    students, teachers = rows_of(seed, rows), rows_of(seed + 100, rows)
    first, second = torch.from_numpy(students), torch.from_numpy(teachers)
    assert distillation_loss(first, second).item() == pytest.approx(oracle.distillation(students, teachers))
    assert uniformity_loss(first).item() == pytest.approx(oracle.uniformity(students))


def test_distillation_is_blind_to_length_and_not_to_direction():
    # Unit vectors (1, 0) and (0, 1) differ by (1, -1): a mean square of 1. The second rows agree.
    students = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    teachers = torch.tensor([[0.0, 7.0], [0.0, 1.0]])
    assert distillation_loss(students, teachers).item() == pytest.approx((1 + 1) / (2 * 2))
    assert distillation_loss(students, 9 * students).item() == pytest.approx(0)


def test_uniformity_of_equal_opposite_and_orthogonal_vectors():
    right, left, up = [2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]
    assert uniformity_loss(torch.tensor([right, right])).item() == pytest.approx(1)
    assert uniformity_loss(torch.tensor([right, left])).item() == pytest.approx(math.exp(-2 * 2**2))
    expected = (math.exp(-2 * 2**2) + 2 * math.exp(-2 * 2)) / 3
    assert uniformity_loss(torch.tensor([right, left, up])).item() == pytest.approx(expected)


def test_a_batch_of_one_has_nothing_to_be_uniform_with():
    alone = torch.ones(1, 3, requires_grad=True)
    loss = uniformity_loss(alone)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(alone.grad, torch.zeros(1, 3))


def test_the_total_weighs_each_loss():
    losses = ReadOutLosses(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0))
    assert losses.total(0.5, 0.1).item() == pytest.approx(2 + 0.5 * 3 + 0.1 * 5)


def test_the_vector_begins_at_the_size_it_is_told():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        readout = ReadOut(7, 1000, 4, 3, ReadOutConfig(dim=5), 0.02)
    assert readout.vector.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.1)
    assert readout.users(torch.zeros(2, 7)).shape == readout.items(torch.zeros(2, 4)).shape == (2, 5)
    assert readout.soft_tokens is None


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match=r"ReadOutConfig.distillation: .* \(got -1\)"):
        ReadOutConfig(distillation=-1)
