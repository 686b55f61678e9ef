"""The plain ways of working in ``bench`` give the same results as the package: else the ratios compare two things."""

import argparse

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import everyone
import plain
from allrec.data import prepare
from allrec.data.negatives import NUM_NEGATIVES
from measure import CLOCKS, dataset_of, rates, ratio
from preparation import sorted_tables
from public_sasrec import sample_batches
from reading import Reading
from scene import make_scene
from shapes import make_llm
from simulated import write_interactions


@pytest.fixture(scope="module", params=["tiny"])
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
    torch.testing.assert_close(scene.scores(rows, 4096), plain.score(scene, rows), rtol=5e-5, atol=1e-4)


def test_plain_generation_takes_every_user(scene):
    assert plain.generate(scene, np.arange(3)) == 3


def test_what_a_reading_model_has_to_read_is_counted_once():
    given = argparse.Namespace(dataset=None, seed=0, shape="tiny")
    reading = Reading(dataset_of(given, 60, 80), given)
    users = reading.users[:3]
    expected = 0
    for user in users:
        (prompt,) = reading.builder.bare().prompts([reading.dataset.history(user)], [()]).tokens
        titles = [tuple(title) for title in reading.builder.answers(reading.titles[user])]
        # A last token is predicted and never read.
        beginnings = {title[:length] for title in titles for length in range(1, len(title))}
        expected += len(prompt) + len(beginnings)
    assert reading.rank(users) == expected
    assert reading.forward(users, expected) == expected // 3 * 3
    assert reading.train(users, "last") == 3
    assert reading.train(users, "every") > 3


def test_polars_alone_makes_the_packages_tables(tmp_path):
    source = tmp_path / "interactions.parquet"
    write_interactions(source, 3000, 300, 300, 0)
    prepare(source, tmp_path / "dataset")
    for name, table in sorted_tables(source).items():
        ours = pl.read_parquet(tmp_path / "dataset" / f"{name}.parquet")
        assert set(ours.columns) - set(table.columns) <= {*NUM_NEGATIVES, "title", "text"}
        assert_frame_equal(ours.select(table.columns), table, check_dtypes=False)


def test_the_read_out_head_ranks_every_item_in_whole_batches_as_alone(scene):
    rows, head = np.arange(3), scene.read_out()
    best = scene.whole_catalogue(rows, head, k=scene.dataset.num_items)
    assert (best.sort(1).values == torch.arange(scene.dataset.num_items)).all()
    alone = torch.cat([scene.whole_catalogue(rows[[row]], head) for row in rows])
    assert (best[:, :5] == alone[:, :5]).all()


def test_ratios_are_medians_over_repeats():
    assert ratio({"allrec": [2.0, 4.0, 9.0], "plain": [1.0, 1.0, 3.0]}, "allrec", "plain") == 9 / 3


def test_sides_take_turns_and_rates_are_work_over_time(monkeypatch):
    now, order = [0.0], []

    def side(name, seconds):
        def run(repeat):
            order.append((repeat, name))
            now[0] += seconds
            return 6

        return run

    monkeypatch.setitem(CLOCKS, "wall", lambda: now[0])
    given = argparse.Namespace(clock="wall", repeats=2)
    assert rates({"a": side("a", 2.0), "b": side("b", 3.0)}, given) == {"a": [6 / 2, 6 / 2], "b": [6 / 3, 6 / 3]}
    assert order == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_the_public_sampler_pads_on_the_left_and_draws_what_was_not_touched():
    histories = [np.array([4, 0, 2]), np.array([3])]
    sequence, positive, negative = next(sample_batches(histories, 6, np.random.default_rng(0)))
    # Items are numbered from 1; a user with one item has nothing to learn from.
    assert sequence.tolist() == [[0] * 48 + [5, 1]]
    assert positive.tolist() == [[0] * 48 + [1, 3]]
    assert set(negative[0, 48:]) <= {2, 4, 6}
    assert not negative[0, :48].any()


def test_everyone_is_recommended_to_and_the_workers_memory_is_seen(tmp_path):
    arguments = ["--users", "150", "--items", "120", "--trained-users", "100", "--part", "64", "--workers", "2"]
    (line,) = everyone.main([*arguments, "--folder", str(tmp_path)])
    assert (line["users"], line["workers"], len(line["worker_mib"])) == (150, 2, 2)
    assert min(line["worker_mib"]) > 50
    assert min(line["users_a_second"], line["users_a_cpu_second"], line["program_mib"]) > 0
