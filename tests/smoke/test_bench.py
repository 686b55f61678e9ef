"""The plain ways of working in ``bench`` give the same results as the package: else the ratios compare two things."""

import argparse

import numpy as np
import pytest
import torch

import plain
from measure import dataset_of
from scene import make_scene
from shapes import make_llm


@pytest.fixture(scope="module", params=["tiny", "embedded-small"])
def scene(request):
    given = argparse.Namespace(dataset=None, seed=0)
    return make_scene(dataset_of(given, 60, 80), make_llm(request.param), given)


def test_plain_prompts_are_the_packages(scene):
    rows = np.arange(8)
    prompts = scene.builder.prompts(scene.histories(rows), scene.candidates[rows])
    for row, tokens in zip(rows, prompts.tokens, strict=True):
        assert plain.prompt_embeddings(scene, int(row)).shape == (len(tokens), scene.llm.dim)


def test_plain_losses_and_gradients_are_the_packages(scene):
    rows = np.arange(2)
    scene.soft_tokens.zero_grad()
    (expected,) = plain.train(scene, rows)
    gradient = scene.soft_tokens.item.inner.weight.grad.clone()
    scene.soft_tokens.zero_grad()
    loss = scene.loss(rows)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(scene.soft_tokens.item.inner.weight.grad, gradient, rtol=1e-3, atol=1e-5)


def test_plain_scores_are_the_packages(scene):
    rows = np.arange(1)
    torch.testing.assert_close(scene.scores(rows, 4096), plain.score(scene, rows), rtol=1e-5, atol=1e-4)


def test_plain_generation_takes_every_user(scene):
    assert plain.generate(scene, np.arange(3)) == 3
