"""Stages 1 and 2: what they learn from, that they learn, that nothing else moves, and that a kill leaves no trace."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.killing import Killed, killed_at
from tests.tiny import load_tiny
from tests.training.histories import bytes_of, dataset_of, make_backbone

from allrec.alignment.model import AlignmentConfig
from allrec.alignment.training import AlignmentStageConfig, train_alignment
from allrec.backbones.base import represent_users
from allrec.errors import InputError
from allrec.llm import soft_token_training as stage_two
from allrec.llm.likelihood import score_candidates
from allrec.llm.prompt import USER, PromptBuilder, PromptConfig
from allrec.llm.soft_token_training import SoftTokensStageConfig, WarmUpConfig, new_soft_tokens, train_soft_tokens
from allrec.llm.soft_tokens import SoftTokens, SoftTokensConfig, project
from allrec.training.examples import initialized, sampled_groups, training_examples
from allrec.training.loop import LoopConfig

HISTORIES = [[0, 1, 2, 3, 4, 5], [6, 7], [8], [1, 1, 2, 6, 7], [3, 2, 1], []]
ADJECTIVES = ["rose", "silver", "velvet", "night"]
NOUNS = ["soap", "comb", "mirror"]
TITLES = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
"""Twelve titles; None in place of one of them below."""


def rows_of(examples):
    return list(zip(examples.users.tolist(), examples.positions.tolist(), examples.items.tolist(), strict=True))


# Examples


def test_the_last_training_item_of_each_user_is_a_target():
    # Training histories: 0 1 2 3, 6 7, 8, 1 1 2, 3, none. A target needs an item before it.
    assert rows_of(training_examples(dataset_of(HISTORIES, 9), "last")) == [(0, 3, 3), (1, 1, 7), (3, 2, 2)]


def test_every_training_item_but_the_first_is_a_target():
    expected = [(0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 1, 7), (3, 1, 1), (3, 2, 2)]
    assert rows_of(training_examples(dataset_of(HISTORIES, 9), "every")) == expected


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_no_target_of_validation_or_test_is_an_example(lengths):
    dataset = dataset_of([list(range(length)) for length in lengths], 7)
    assume((dataset.train_lengths >= 2).any())
    every, last = (training_examples(dataset, positions) for positions in ("every", "last"))
    assert (every.positions < dataset.train_lengths[every.users]).all()
    assert len(every) == sum(max(0, length - 1) for length in dataset.train_lengths)
    assert set(rows_of(last)) <= set(rows_of(every))
    assert len(set(last.users.tolist())) == len(last)


def test_users_are_represented_as_one_by_one():
    dataset, backbone = dataset_of(HISTORIES, 9), make_backbone(9)
    users, positions = np.array([0, 0, 3, 0, 4]), np.array([6, 1, 4, 3, 0])
    together = represent_users(backbone, dataset, users, positions)
    for row, (user, position) in enumerate(zip(users, positions, strict=True)):
        history = torch.tensor([HISTORIES[user][:position]], dtype=torch.int64)
        assert torch.allclose(together[row], backbone.encode(history)[0], atol=1e-6)


# Soft tokens in their places


def test_project_puts_every_soft_token_in_its_place():
    soft_tokens = initialized(lambda: SoftTokens(3, 4, 5), 0, 2)
    users, joint = torch.randn(2, 3), torch.randn(6, 4)
    soft_items = np.array([USER, 4, 0, 4, USER, 0, 5])
    expected = [
        soft_tokens.user(users[0]),
        soft_tokens.item(joint[4]),
        soft_tokens.item(joint[0]),
        soft_tokens.item(joint[4]),
        soft_tokens.user(users[1]),
        soft_tokens.item(joint[0]),
        soft_tokens.item(joint[5]),
    ]
    assert torch.allclose(project(soft_tokens, users, joint, soft_items), torch.stack(expected), atol=1e-6)


def test_project_reads_a_repeated_item_once():
    soft_tokens = initialized(lambda: SoftTokens(3, 4, 5), 0, 2)
    read = []
    soft_tokens.item.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    project(soft_tokens, torch.randn(1, 3), torch.randn(6, 4), np.array([USER, 4, 4, 2, 4]))
    assert read == [2]


@pytest.mark.parametrize("soft_items", [[], [USER], [3, 3], [USER, USER]])
def test_project_serves_prompts_without_users_or_without_items(soft_items):
    soft_tokens = initialized(lambda: SoftTokens(3, 4, 5), 0, 2)
    soft = project(soft_tokens, torch.randn(2, 3), torch.randn(6, 4), np.array(soft_items, np.int64))
    assert soft.shape == (len(soft_items), 5)


def test_first_weights_depend_on_seed_and_stage_alone():
    made = [initialized(lambda: SoftTokens(3, 4, 5), seed, stage) for seed, stage in [(0, 2), (0, 2), (1, 2), (0, 1)]]
    assert bytes_of(made[0]) == bytes_of(made[1])
    assert len({bytes_of(module) for module in made}) == 3


def test_making_a_module_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initialized(lambda: SoftTokens(3, 4, 5), 0, 2)
    assert torch.equal(torch.rand(3), expected)


def test_soft_tokens_take_centre_and_scale_from_users_and_items():
    llm = SimpleNamespace(dim=5, embedding_scale=0.02)
    users, joint = torch.randn(50, 3) * 4 + 2, torch.randn(60, 4) - 7
    soft_tokens = new_soft_tokens(users, joint, llm, SoftTokensConfig(), 0)
    assert torch.allclose(soft_tokens.user.mean, users.mean(0))
    assert torch.allclose(soft_tokens.item.deviation, joint.std(0, correction=0))
    assert soft_tokens.item(joint).square().mean().sqrt() < 0.02
    plain = new_soft_tokens(users, joint, llm, SoftTokensConfig(is_standardized=False, is_scaled=False), 0)
    assert torch.equal(plain.user.mean, torch.zeros(3))
    assert torch.allclose(plain.user.outer.weight * 0.02, soft_tokens.user.outer.weight)


# Stage 1


def alignment_scene(num_items=12):
    """Text embeddings that are a linear view of the item embeddings, so that the two can be matched."""
    rng = np.random.default_rng(0)
    histories = [rng.permutation(num_items)[:7].tolist() for _ in range(60)]
    backbone = make_backbone(num_items)
    backbone.item_table.data = torch.from_numpy(rng.normal(size=(num_items, 8))).float()
    view = torch.from_numpy(rng.normal(size=(8, 6))).float()
    return dataset_of(histories, num_items), backbone, torch.tanh(backbone.item_embeddings().detach() @ view)


def alignment_config(epochs=4, **settings):
    loop = LoopConfig(epochs=epochs, learning_rate=1e-2, checkpoint_every=2)
    return AlignmentStageConfig(network=AlignmentConfig(joint_dim=16), batch_size=64, loop=loop, **settings)


def test_stage_1_learns():
    dataset, backbone, texts = alignment_scene()
    seen = []
    alignment, report = train_alignment(
        dataset, backbone, texts, alignment_config(20), seed=0, on_progress=lambda _, values: seen.append(values)
    )
    assert report.losses[-1] < 0.85 * report.losses[0]
    assert seen[-1]["matching"] < 0.7 * seen[0]["matching"]
    assert seen[-1]["item_reconstruction"] < seen[0]["item_reconstruction"]
    assert seen[-1]["text_reconstruction"] < seen[0]["text_reconstruction"]
    values = seen[-1]
    weighted = values["matching"] + 0.5 * values["item_reconstruction"] + 0.2 * values["text_reconstruction"]
    assert values["total"] == pytest.approx(weighted + values["recommendation"], rel=1e-5)
    assert not alignment.training
    assert not any(parameter.requires_grad for parameter in alignment.parameters())


def test_stage_1_brings_an_items_two_embeddings_together():
    dataset, backbone, texts = alignment_scene()
    alignment, _ = train_alignment(dataset, backbone, texts, alignment_config(20), seed=0)
    e, q = alignment.items.encode(backbone.item_embeddings()), alignment.texts.encode(texts)
    # An item's text lies nearer to it than the texts of others do, as a rule.
    nearest = torch.cdist(e, q).argmin(1)
    assert (nearest == torch.arange(len(e))).float().mean() > 0.5


def test_stage_1_gives_the_same_bytes_for_the_same_seed():
    dataset, backbone, texts = alignment_scene()
    made = [bytes_of(train_alignment(dataset, backbone, texts, alignment_config(), seed=s)[0]) for s in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize("step", [1, 5, 9])
def test_stage_1_killed_and_resumed_ends_in_the_same_bytes(tmp_path, step):
    dataset, backbone, texts = alignment_scene()
    whole, report = train_alignment(dataset, backbone, texts, alignment_config(), seed=0)
    with pytest.raises(Killed):
        train_alignment(
            dataset, backbone, texts, alignment_config(), seed=0, checkpoint=tmp_path / "c", on_progress=killed_at(step)
        )
    resumed, again = train_alignment(dataset, backbone, texts, alignment_config(), seed=0, checkpoint=tmp_path / "c")
    assert bytes_of(resumed) == bytes_of(whole)
    assert again == report


def test_stage_1_leaves_backbone_and_texts_as_they_were():
    dataset, backbone, texts = alignment_scene()
    before, texts_before = bytes_of(backbone), texts.clone()
    train_alignment(dataset, backbone, texts, alignment_config(), seed=0)
    assert bytes_of(backbone) == before
    assert torch.equal(texts, texts_before)


def test_stage_1_counts_its_examples():
    dataset, backbone, texts = alignment_scene()
    # 60 users with 7 - 2 training items, 5 - 1 of them with a history.
    for positions, rows in (("every", 60 * 4), ("last", 60)):
        config = alignment_config(1, positions=positions)
        _, report = train_alignment(dataset, backbone, texts, config, seed=0)
        assert report.steps == -(-rows // 64)


def test_stage_1_without_examples_is_refused():
    dataset = dataset_of([[0, 1, 2], [1]], 4)
    with pytest.raises(InputError, match="small has no user with two training interactions"):
        train_alignment(dataset, make_backbone(4), torch.zeros(4, 3), alignment_config(), seed=0)


# Stage 2


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def scene(llm):
    return soft_scene(llm)


def soft_scene(llm, num_users=8, num_items=12, histories=None, titles=None):
    rng = np.random.default_rng(1)
    others = [rng.permutation([item for item in range(num_items) if item != user]) for user in range(num_users)]
    histories = histories or [[user, *others[user][:5].tolist()] for user in range(num_users)]
    titles = titles or TITLES[:num_items]
    dataset = replace(dataset_of(histories, num_items), titles=titles)
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    builder = PromptBuilder(llm.encode, titles, dataset.wording, PromptConfig(max_history=3), **layout)
    joint = torch.from_numpy(rng.random((num_items, 10))).float()
    return SimpleNamespace(dataset=dataset, backbone=make_backbone(num_items), joint=joint, llm=llm, builder=builder)


def soft_config(epochs=2, checkpoint_every=1, **settings):
    loop = LoopConfig(epochs=epochs, learning_rate=1e-2, checkpoint_every=checkpoint_every)
    return SoftTokensStageConfig(**({"num_candidates": 4, "batch_tokens": 128, "loop": loop} | settings))


def train_on(scene, config, **arguments):
    return train_soft_tokens(
        scene.dataset, scene.backbone, scene.joint, scene.llm, scene.builder, config, **({"seed": 0} | arguments)
    )


def test_stage_2_overfits_eight_users(scene):
    """The title of each user's target becomes the likeliest of the list: by the vectors, for the LLM is random."""
    soft_tokens, report = train_on(scene, soft_config(100, batch_tokens=2048, checkpoint_every=1000))
    assert report.losses[-1] < 0.75 * report.losses[0]
    examples = training_examples(scene.dataset, "last")
    rng = np.random.default_rng(9)
    untouched = [np.setdiff1d(np.arange(12), scene.dataset.train_history(user)) for user in examples.users]
    others = [rng.permutation(items)[:3] for items in untouched]
    candidates = np.column_stack([np.stack(others), examples.items])
    histories = [scene.dataset.history(user)[:3] for user in examples.users]
    prompts = scene.builder.prompts(histories, candidates)
    users = represent_users(scene.backbone, scene.dataset, examples.users, examples.positions)
    with torch.no_grad():
        soft = project(soft_tokens, users, scene.joint, prompts.soft_items)
    answers = scene.builder.answers(candidates.ravel())
    scores = score_candidates(scene.llm, prompts, answers, np.ones(candidates.shape, bool), soft)
    assert (scores.argmax(1) == 3).sum() >= 7
    assert not soft_tokens.training
    assert not any(parameter.requires_grad for parameter in soft_tokens.parameters())


def test_the_warm_up_learns_from_the_targets_of_stage_2_alone(scene, monkeypatch):
    seen = []
    monkeypatch.setattr(stage_two, "warm_up", lambda *given, **_: seen.append((given[2], given[3])))
    warm = WarmUpConfig(epochs=1, towards="titles")
    for positions, sample, expected in (
        ("last", 5, 5),
        ("every", None, len(training_examples(scene.dataset, "every"))),
    ):
        config = soft_config(1, positions=positions, sample=sample, warm_up=warm)
        _, report = train_on(scene, config)
        examples, users = seen.pop()
        assert len(examples) == len(users) == expected
        assert report.examples == {"stage 2": expected, "warm-up": expected}
    _, report = train_on(scene, soft_config(1, sample=5))
    assert (seen, report.examples) == ([], {"stage 2": 5, "warm-up": 0})


def test_stage_2_moves_nothing_but_the_soft_tokens(scene):
    before = (bytes_of(scene.llm._model), bytes_of(scene.backbone), scene.joint.clone())
    first, _ = train_on(scene, soft_config(1), on_progress=None)
    users = torch.zeros(2, 8)
    assert bytes_of(scene.llm._model) == before[0]
    assert bytes_of(scene.backbone) == before[1]
    assert torch.equal(scene.joint, before[2])
    assert not scene.llm._model.training
    assert all(parameter.grad is None for parameter in scene.llm._model.parameters())
    untrained = new_soft_tokens(users, scene.joint, scene.llm, SoftTokensConfig(), 0)
    for name, parameter in untrained.named_parameters():
        assert not torch.equal(parameter, first.get_parameter(name)), f"{name} did not learn"


def test_stage_2_gives_the_same_bytes_for_the_same_seed(scene):
    made = [bytes_of(train_on(scene, soft_config(), seed=seed)[0]) for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize("step", [1, 3])
def test_stage_2_killed_and_resumed_ends_in_the_same_bytes(scene, tmp_path, step):
    config = soft_config(checkpoint_every=2)
    whole, report = train_on(scene, config)
    assert report.steps > 4
    with pytest.raises(Killed):
        train_on(scene, config, checkpoint=tmp_path / "c", on_progress=killed_at(step))
    resumed, again = train_on(scene, config, checkpoint=tmp_path / "c")
    assert bytes_of(resumed) == bytes_of(whole)
    assert again == report


def batches_seen(scene, config, monkeypatch, **arguments):
    """(history, candidates, answer's item) of every prompt that was trained on."""
    prompts, answers, seen = scene.builder.prompts, scene.builder.answers, []
    monkeypatch.setattr(
        scene.builder,
        "prompts",
        lambda histories, candidates: (
            seen.extend(
                [history.tolist(), list(row)] for history, row in zip(histories, candidates.tolist(), strict=True)
            )
            or prompts(histories, candidates)
        ),
    )

    def answers_seen(items):
        for row, item in zip(seen[-len(items) :], items.tolist(), strict=True):
            row.append(item)
        return answers(items)

    monkeypatch.setattr(scene.builder, "answers", answers_seen)
    train_on(scene, config, **arguments)
    return seen


def test_stage_2_reads_the_history_before_each_target_and_candidates_never_touched(llm, monkeypatch):
    scene = soft_scene(llm)
    seen = batches_seen(scene, soft_config(2, positions="every"), monkeypatch)
    # 6 - 2 training items, 4 - 1 of them with a history, twice.
    assert len(seen) == 2 * 8 * 3
    lists = [scene.dataset.train_history(user).tolist() for user in range(8)]
    for history, candidates, item in seen:
        own = lists[history[0]]
        assert own[: len(history) + 1] == [*history, item]
        assert sorted(set(candidates)) == sorted(candidates)
        assert set(candidates) & set(own) == {item}
    by_example = {}
    for history, candidates, item in seen:
        by_example.setdefault((*history, item), []).append(candidates)
    assert all(len(lists) == 2 for lists in by_example.values())
    assert sum(first != second for first, second in by_example.values()) > 20


def test_stage_2_takes_one_target_a_user_or_every_one_or_a_sample(llm, monkeypatch):
    def targets(**settings):
        with monkeypatch.context() as patched:
            seen = batches_seen(soft_scene(llm), soft_config(2, **settings), patched)
        half = len(seen) // 2
        assert sorted((*h, i) for h, _, i in seen[:half]) == sorted((*h, i) for h, _, i in seen[half:])
        return {(*history, item) for history, _, item in seen[:half]}

    last, every = targets(positions="last"), targets(positions="every")
    assert (len(last), len(every)) == (8, 8 * 3)
    assert last < every
    assert targets(positions="every", sample=24) == targets(positions="every", sample=99) == every
    sample = targets(positions="every", sample=5)
    assert len(sample) == 5
    assert sample < every
    assert targets(positions="every", sample=5) == sample


def test_the_target_stands_anywhere_in_the_list(llm, monkeypatch):
    seen = batches_seen(soft_scene(llm), soft_config(4, positions="every"), monkeypatch)
    places = np.bincount([candidates.index(item) for _, candidates, item in seen], minlength=4)
    # 96 lists of four: 24 expected at each place.
    assert places.min() >= 10


def test_short_candidate_lists_of_a_tiny_catalogue_are_padded(llm, monkeypatch):
    histories = [[0, 1, 2, 3], [2, 0, 1], [4, 3, 2, 1, 0], [1, 2]]
    titles = ["rose soap", None, 'a "quoted" comb', "oil", "brush"]
    scene = soft_scene(llm, num_items=5, histories=histories, titles=titles)
    seen = batches_seen(scene, soft_config(1, num_candidates=20), monkeypatch)
    # Users 0, 2 and 3 have a target; of five items they touched 2, 3 and 2 in training.
    assert sorted(sum(item >= 0 for item in candidates) for _, candidates, _ in seen) == [1 + 2, 1 + 3, 1 + 3]
    assert all(len(candidates) == 20 for _, candidates, _ in seen)


def test_stage_2_serves_prompts_without_soft_items_or_user(llm):
    scene = soft_scene(llm)
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    for settings in ({"soft_token": "none"}, {"has_user": False}, {"soft_token": "before"}):
        scene.builder = PromptBuilder(
            llm.encode, scene.dataset.titles, scene.dataset.wording, PromptConfig(**settings), **layout
        )
        _, report = train_on(scene, soft_config(1))
        assert report.steps > 0


def sharing_scene(llm, **options):
    scene = soft_scene(llm)
    config = PromptConfig(max_history=3, soft_token="none", user_place="last", lists_candidates=False, **options)
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    scene.builder = PromptBuilder(llm.encode, scene.dataset.titles, scene.dataset.wording, config, **layout)
    return scene


def test_a_users_targets_share_one_pass_and_train_the_same_weights(llm, monkeypatch):
    scene, config = sharing_scene(llm), soft_config(2, positions="every", batch_tokens=200)
    groups_seen, loss = [], stage_two.answer_loss

    def apart(llm, prompts, answers, soft, groups):
        groups_seen.append(groups)
        return loss(llm, prompts, answers, soft)

    together, report = train_on(scene, config)
    monkeypatch.setattr(stage_two, "answer_loss", apart)
    expected, other = train_on(scene, config)
    assert report.steps == other.steps > 2
    for name, value in together.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-3, atol=1e-4)
    # Each user's three targets are in one batch; the histories of no two of them begin differently.
    assert all((np.bincount(groups)[np.unique(groups)] == 3).all() for groups in groups_seen)


def test_a_sample_of_targets_that_share_is_of_whole_users(llm):
    scene = sharing_scene(llm)
    examples = training_examples(scene.dataset, "every")
    groups = stage_two.shared_beginnings(examples, scene.builder)
    drawn = sampled_groups(examples, groups, 7, np.random.default_rng(0))
    assert len(drawn) == 7
    assert sorted(np.unique(drawn.users, return_counts=True)[1]) == [1, 3, 3]
    assert sampled_groups(examples, groups, None, np.random.default_rng(0)) is examples
    # Where histories are cut to their latest titles, those that begin elsewhere are groups of their own.
    longer = replace(examples, positions=examples.positions + 2)
    assert len(np.unique(stage_two.shared_beginnings(longer, scene.builder))) > len(np.unique(groups))


def test_stage_2_without_examples_is_refused(llm):
    scene = soft_scene(llm, num_items=4, histories=[[0, 1, 2], [3]], titles=TITLES[:4])
    with pytest.raises(InputError, match="small has no user with two training interactions"):
        train_on(scene, soft_config())


def test_batches_are_cut_by_the_tokens_of_their_titles(llm):
    scene = soft_scene(llm)
    examples = training_examples(scene.dataset, "last")
    candidates = np.array([[item, -1, (item + 1) % 12] for item in examples.items])
    wanted, groups = examples.items[:, None], np.arange(len(examples))
    lengths = stage_two.prompt_lengths(scene.dataset, examples, candidates, wanted, groups, scene.builder)
    titles = scene.builder.title_lengths
    for row, user in enumerate(examples.users):
        told = scene.dataset.history(user)[: examples.positions[row]][-3:]
        listed = [examples.items[row], (examples.items[row] + 1) % 12]
        assert lengths[row] == titles[told].sum() + titles[listed].sum() + titles[examples.items[row]]
